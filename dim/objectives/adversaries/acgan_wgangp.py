"""AC-GAN with WGAN-GP (Odena et al. 2017; Gulrajani et al. 2017), the adversarial half of DiM: a critic with a classifier and a
gradient penalty (published)."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from dim import rng
from dim.augment import Augment
from dim.compiling import compiled_whole
from dim.config import AdversarialConfig, require
from dim.nets.discriminators import Discriminator
from dim.objectives import add_gradient, set_gradients, without_gradients
from dim.processes import ALONE, Processes
from dim.spec import DataSpec

__all__ = ["Adversarial"]


@dataclass(frozen=True, kw_only=True)
class AdversarialOptions:
    """Of the loss `acgan-wgangp`."""

    gradient_penalty: float = 10.0
    """Weight of the gradient penalty (Gulrajani et al. 2017, eq. 3)."""
    class_weight: float = 1.0
    """Weight of the classification loss of both networks (Odena et al. 2017)."""
    class_weight_generated: float = 1.0
    """Weight of the discriminator's classification loss on generated images, beside 1 for real ones. Published: 1. At 0 it learns
    classes from real images only, so that early images, which do not show their class yet, cannot disturb it."""

    def __post_init__(self) -> None:
        for name in ("gradient_penalty", "class_weight", "class_weight_generated"):
            require(getattr(self, name) >= 0, f"adversarial.{name}", getattr(self, name), "0 or more")


def gradient_penalty(
    discriminator: Callable[[Tensor], tuple[Tensor, Tensor]], real: Tensor, generated: Tensor, mixture: Tensor
) -> Tensor:
    """E[(|grad_x critic(x)| - 1)^2] at x = m * real + (1 - m) * generated (Gulrajani et al. 2017, eq. 3), in float32.

    Args:
        discriminator: images -> critic values and logits.
        real, generated: (B, C, H, W).
        mixture: (B, 1, 1, 1) in [0, 1].
    """
    points = torch.lerp(generated, real, mixture).requires_grad_()
    critic, _ = discriminator(points)
    (gradient,) = torch.autograd.grad(critic.sum(), points, create_graph=True)
    # The root has no derivative at 0; the offset is far below float32's resolution of a norm near 1.
    norm = (gradient.float().flatten(1).square().sum(1) + 1e-12).sqrt()
    return (norm - 1).square().mean()


class Adversarial:
    """The two-player loss: `advance` teaches the discriminator, `accumulate` then moves the same images by it.

    The players take turns: the second sees the other's update. (Letting both move from the same state would save one pass
    of the discriminator, but trained worse: on the digits, sets at IPC 50 lost eight points.) The published code draws
    other noise for each turn; here both use the same images, which saves a pass of the generator.

    Args:
        discriminator: the network.
        optimizer: its optimiser.
        config: weights of the losses.
        spec: the data.
        seed: seed of the run.
        finish: called with the discriminator's parameters between backward and the optimiser's step (averaging over
            processes, clipping).
        processes: those that share every batch; draws are for all of it.
        compile: compile the discriminator's step, with the penalty and its derivatives in one graph.
    """

    Options: ClassVar = AdversarialOptions
    network: ClassVar = Discriminator
    discriminator_options: ClassVar = ("width",)
    compiles: ClassVar = True

    @classmethod
    def of_run(cls, *common: Any, scheduled: Any, **shared: Any) -> Self:
        """As a run makes it: nothing of it follows a schedule."""
        return cls(*common, **shared)

    def __init__(
        self,
        discriminator: Discriminator,
        optimizer: torch.optim.Optimizer,
        config: AdversarialConfig,
        spec: DataSpec,
        *,
        seed: int,
        finish: Callable[[Iterable[nn.Parameter]], Tensor | None],
        processes: Processes = ALONE,
        compile: bool = False,
    ) -> None:
        self.discriminator, self.optimizer, self.config = discriminator, optimizer, config
        self._augment, self._seed, self._processes, self._finish = Augment(config.augment, spec), seed, processes, finish
        self._gradients = compiled_whole(self._judge) if compile else self._judge

    def _augmented(self, images: Tensor, step: int) -> Tensor:
        """Images under the step's augmentation."""
        if not self._augment.families:
            return images
        source = rng.generator(self._seed, "adversarial-augment", step, 0, device=images.device)
        return self._augment(images, source, self._processes)

    def advance(self, images: Tensor, targets: Tensor, *, real: Tensor, step: int) -> dict[str, Tensor]:
        """One step of the discriminator: fake - real + class losses + penalty. `images.grad` is left alone."""
        images = images.detach()
        both, mixture = self._augmented(torch.cat((real, images)), step), None
        if self.config.gradient_penalty > 0:
            source = rng.generator(self._seed, "penalty", step, 0, device=real.device)
            drawn = torch.rand(self._processes.world * len(real), 1, 1, 1, generator=source, device=real.device)
            mixture = self._processes.part(drawn)
        parameters = dict(self.discriminator.named_parameters())
        found = self._gradients(parameters, both, targets, real, images, mixture)
        set_gradients(parameters, found["gradients"])
        self._finish(self.discriminator.parameters())
        self.optimizer.step()
        self.optimizer.zero_grad()
        torch.clear_autocast_cache()  # it holds casts of the weights as they were
        return {"critic": found["critic"], "distance": found["distance"]}

    def _judge(
        self,
        parameters: dict[str, Tensor],
        both: Tensor,
        targets: Tensor,
        real: Tensor,
        images: Tensor,
        mixture: Tensor | None,
    ) -> dict[str, Any]:
        """Gradients of the discriminator's loss by parameter, and what is reported.

        Args:
            parameters: the discriminator's.
            both: real images and as many generated ones, augmented.
            targets: labels of either half.
            real, images: the same as they are.
            mixture: see `gradient_penalty`; None: no penalty.
        """
        with torch.enable_grad():
            leaves = {name: value.detach().requires_grad_() for name, value in parameters.items()}

            def discriminator(images: Tensor) -> tuple[Tensor, Tensor]:
                return functional_call(self.discriminator, leaves, (images,))

            # Layer norm keeps images apart, so one pass over both halves equals two passes.
            critic, logits = (value.float() for value in discriminator(both))
            (critic_real, critic_fake), (logits_real, logits_fake) = critic.chunk(2), logits.chunk(2)
            class_loss = F.cross_entropy(logits_real, targets)
            if self.config.class_weight_generated > 0:
                class_loss = class_loss + self.config.class_weight_generated * F.cross_entropy(logits_fake, targets)
            distance = critic_real.mean() - critic_fake.mean()
            loss = self.config.class_weight * class_loss - distance
            if mixture is not None:
                loss = loss + self.config.gradient_penalty * gradient_penalty(discriminator, real, images, mixture)
            gradients = torch.autograd.grad(loss, list(leaves.values()))
        named = dict(zip(leaves, gradients, strict=True))
        return {"critic": loss.detach(), "distance": distance.detach(), "gradients": named}

    def accumulate(self, images: Tensor, targets: Tensor, *, real: Tensor, step: int) -> dict[str, Tensor]:
        """See `dim.objectives.Objective`: -critic + class loss."""
        with without_gradients(self.discriminator):
            critic, logits = (value.float() for value in self.discriminator(self._augmented(images, step)))
            class_loss = F.cross_entropy(logits, targets)
            loss = self.config.class_weight * class_loss - critic.mean()
            add_gradient(images, torch.autograd.grad(loss, images)[0])
        return {"adversarial": loss.detach(), "class": class_loss.detach()}

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint must hold beside the network and its optimiser: nothing."""
        return {}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `state` gave."""
