"""Learning to denoise latents of real images, as latent diffusion does (Ho et al. 2020; Rombach et al. 2022)."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dim import rng
from dim.config import FlowConfig
from dim.processes import ALONE, Processes

if TYPE_CHECKING:  # diffusers takes seconds to import
    from dim.nets.generators.pipeline import Pipeline


class Denoising:
    """Moves the weights of a pretrained pipeline's denoiser towards the data; nothing is generated for it.

    Args:
        label_dropout: part of the images that are shown without their class, where the pipeline has a class for none.
        seed: seed of the run.
        processes: those that share every batch; draws are for all of it.
    """

    @classmethod
    def of_run(cls, config: FlowConfig, *, steps: int, seed: int, processes: Processes) -> "Denoising":
        """As a run makes it; it learns the same in all of its steps."""
        return cls(label_dropout=config.label_dropout, seed=seed, processes=processes)

    def __init__(self, *, label_dropout: float, seed: int, processes: Processes = ALONE) -> None:
        self._label_dropout, self._seed, self._processes = label_dropout, seed, processes

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
        source = rng.generator(self._seed, "denoising", step, 0, device=real.device)
        drawing, batch = {"generator": source, "device": real.device}, self._processes.world * len(real)
        latents = generator.encode(real, source, self._processes)
        noise = torch.randn(batch, *latents.shape[1:], **drawing)
        levels = generator.scheduler.alphas_cumprod.to(real.device)
        times = torch.randint(len(levels), (batch,), **drawing)
        dropped = torch.rand(batch, **drawing) < self._label_dropout
        noise, times, dropped = (self._processes.part(drawn) for drawn in (noise, times, dropped))
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
