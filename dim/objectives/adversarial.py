"""AC-GAN with WGAN-GP (Odena et al. 2017; Gulrajani et al. 2017), the adversarial half of DiM."""

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dim import rng
from dim.augment import Augment
from dim.config import AdversarialConfig
from dim.nets.discriminators import Discriminator
from dim.objectives import add_gradient
from dim.spec import DataSpec


def gradient_penalty(discriminator: nn.Module, real: Tensor, generated: Tensor, mixture: Tensor) -> Tensor:
    """E[(|grad_x critic(x)| - 1)^2] at x = m * real + (1 - m) * generated (Gulrajani et al. 2017, eq. 3).

    Args:
        real, generated: (B, C, H, W).
        mixture: (B, 1, 1, 1) in [0, 1].
    """
    points = torch.lerp(generated, real, mixture).requires_grad_()
    critic, _ = discriminator(points)
    (gradient,) = torch.autograd.grad(critic.sum(), points, create_graph=True)
    # The root has no derivative at 0; the offset is far below float32's resolution of a norm near 1.
    norm = (gradient.flatten(1).square().sum(1) + 1e-12).sqrt()
    return (norm - 1).square().mean()


class Adversarial:
    """The two-player loss: `advance` teaches the discriminator, `accumulate` moves images by it.

    Args:
        discriminator: the network.
        optimizer: its optimiser.
        config: weights of the losses.
        spec: the data.
        seed: seed of the run.
        finish: called with the discriminator's parameters between backward and the optimiser's step (averaging over
            processes, clipping); returns the norm of the gradient.
        rank: number of this process, so that each draws its own mixtures.
    """

    def __init__(
        self,
        discriminator: Discriminator,
        optimizer: torch.optim.Optimizer,
        config: AdversarialConfig,
        spec: DataSpec,
        *,
        seed: int,
        finish: Callable[[Iterable[nn.Parameter]], Tensor | None],
        rank: int = 0,
    ) -> None:
        self.discriminator, self.optimizer, self.config = discriminator, optimizer, config
        self._augment, self._seed, self._rank, self._finish = Augment(config.augment, spec), seed, rank, finish

    def advance(self, generated: Tensor, labels: Tensor, *, real: Tensor, step: int) -> dict[str, Tensor]:
        """One step of the discriminator: fake - real + class losses + penalty, on images that get no gradient."""
        device = real.device
        if self._augment.families:
            source = rng.generator(self._seed, "discriminator-augment", step, self._rank, device=device)
            real, generated = self._augment(real, source), self._augment(generated, source)
        # Layer norm keeps images apart, so one pass over both halves equals two passes.
        critic, logits = self.discriminator(torch.cat((real, generated)))
        critic_real, critic_fake = critic.float().chunk(2)
        class_loss = 2 * F.cross_entropy(logits.float(), labels.repeat(2))  # of real plus of generated images
        loss = critic_fake.mean() - critic_real.mean() + self.config.class_weight * class_loss
        if self.config.gradient_penalty > 0:
            source = rng.generator(self._seed, "penalty", step, self._rank, device=device)
            mixture = torch.rand(len(real), 1, 1, 1, generator=source, device=device)
            with torch.autocast(device.type, enabled=False):
                loss = loss + self.config.gradient_penalty * gradient_penalty(
                    self.discriminator, real.float(), generated.float(), mixture
                )
        loss.backward()
        self._finish(self.discriminator.parameters())
        self.optimizer.step()
        self.optimizer.zero_grad()
        return {"critic": loss.detach(), "distance": (critic_real.mean() - critic_fake.mean()).detach()}

    def accumulate(self, images: Tensor, targets: Tensor, *, real: Tensor, step: int) -> dict[str, Tensor]:
        """See `dim.objectives.Objective`: -critic + class loss."""
        inputs = images
        if self._augment.families:
            source = rng.generator(self._seed, "generator-augment", step, self._rank, device=images.device)
            inputs = self._augment(images, source)
        critic, logits = self.discriminator(inputs)
        class_loss = F.cross_entropy(logits.float(), targets)
        loss = -critic.float().mean() + self.config.class_weight * class_loss
        add_gradient(images, torch.autograd.grad(loss, images)[0])
        return {"adversarial": loss.detach(), "class": class_loss.detach()}
