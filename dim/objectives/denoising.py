"""Learning to denoise latents of real images, as latent diffusion does (Ho et al. 2020; Rombach et al. 2022)."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dim import rng
from dim.config import FlowConfig

if TYPE_CHECKING:  # diffusers takes seconds to import
    from dim.nets.generators.pipeline import Pipeline


class Denoising:
    """Moves the weights of a pretrained pipeline's denoiser towards the data; nothing is generated for it.

    Args:
        label_dropout: part of the images that are shown without their class, where the pipeline has a class for none.
        seed: seed of the run.
        rank: number of this process, so that each makes its own draws.
    """

    @classmethod
    def of_run(cls, config: FlowConfig, *, steps: int, seed: int, rank: int) -> "Denoising":
        """As a run makes it; it learns the same in all of its steps."""
        return cls(label_dropout=config.label_dropout, seed=seed, rank=rank)

    def __init__(self, *, label_dropout: float, seed: int, rank: int = 0) -> None:
        self._label_dropout, self._seed, self._rank = label_dropout, seed, rank

    def regress(self, generator: "Pipeline", real: Tensor, targets: Tensor, *, step: int) -> dict[str, Tensor]:
        """Add the gradient of the denoising loss to the gradients of the generator's parameters.

        x_t = a latents + s noise with a^2 = alpha_bar_t and s^2 = 1 - a^2 (Ho et al. 2020, eq. 4) at uniform times; the squared
        error (eq. 14) is that of what the pipeline was trained to predict: the noise, v = a noise - s latents (Salimans & Ho
        2022), or the latents. A head for variances is left as it is.

        Args:
            generator: the pipeline.
            real: float32 (B, C, H, W) in [-1, 1].
            targets: int64 (B,) labels.
            step: number of the step, from which every random draw derives.

        Returns:
            The detached mean squared error, `denoising`.
        """
        source = rng.generator(self._seed, "denoising", step, self._rank, device=real.device)
        latents = generator.encode(real, source)
        noise = torch.randn(latents.shape, generator=source, device=real.device)
        levels = generator.scheduler.alphas_cumprod.to(real.device)
        times = torch.randint(len(levels), (len(real),), generator=source, device=real.device)
        dropped = torch.rand(len(real), generator=source, device=real.device) < self._label_dropout
        classes = generator.classes[targets]
        if generator.null is not None:
            classes = torch.where(dropped, generator.null, classes)
        level = levels[times].view(-1, 1, 1, 1)
        a, s = level.sqrt(), (1 - level).sqrt()
        wanted = {"epsilon": noise, "v_prediction": a * noise - s * latents, "sample": latents}
        prediction = generator.predict(a * latents + s * noise, times, classes).float()
        loss = (prediction - wanted[generator.scheduler.config.prediction_type]).square().mean()
        loss.backward()
        return {"denoising": loss.detach()}
