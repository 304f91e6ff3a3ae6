"""Relativistic loss with R1 and R2 (R3GAN, Huang et al. 2024): a projection discriminator judges real and generated images of a
class in pairs. Augmentation may have an adaptive probability (Karras et al. 2020)."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from dim import rng
from dim.augment import Augment
from dim.compiling import compiled_whole
from dim.config import AdversarialConfig, require
from dim.nets.discriminators import ProjectionDiscriminator
from dim.objectives import add_gradient, set_gradients
from dim.processes import ALONE, Processes
from dim.spec import DataSpec

__all__ = ["Relativistic"]


@dataclass(frozen=True, kw_only=True)
class RelativisticOptions:
    """Of the loss `relativistic`."""

    gamma: float = 0.05
    """Weight of R1 + R2, halved: the squared norms of the discriminator's gradient at real and at generated images."""
    gamma_end: float | None = None
    """Gamma that a cosine reaches at the end of stage one. Default: constant."""
    penalty_every: int = 1
    """Take R1 + R2 only every so many steps, multiplied by that number (lazy regularisation, Karras et al. 2020)."""
    augment_target: float | None = None
    """Augment each image with a probability that adapts (ADA, Karras et al. 2020). It rises while the discriminator ranks more
    than this share of pairs correctly, counted as right minus wrong, in (0, 1). Needs `augment`. Default: augment all images."""
    augment_images: int = 500_000
    """Images in which that probability can go from 0 to 1. Needs `augment_target`."""

    def __post_init__(self) -> None:
        require(self.gamma >= 0, "adversarial.gamma", self.gamma, "0 or more")
        require(self.gamma_end is None or self.gamma_end >= 0, "adversarial.gamma_end", self.gamma_end, "0 or more")
        for name in ("penalty_every", "augment_images"):
            require(getattr(self, name) >= 1, f"adversarial.{name}", getattr(self, name), "at least 1")
        target = self.augment_target
        require(target is None or 0 < target < 1, "adversarial.augment_target", target, "a number in (0, 1)")
        require(target is None or self.augment != "", "adversarial.augment_target", target, "an augmentation beside it")


class Relativistic:
    """Real and generated images of a class are judged in pairs; `advance` and `accumulate` as in `Adversarial`.

    The discriminator lowers E softplus(D(fake) - D(real)) + gamma / 2 * (R1 + R2), the generator E softplus(D(real) - D(fake)),
    with R1 and R2 the mean squared norms of D's gradient at real and at generated images, taken at the augmented ones.

    Args:
        discriminator: the network.
        optimizer: its optimiser.
        config: weights and augmentation.
        spec: the data.
        seed: seed of the run.
        finish: called with the discriminator's parameters between backward and the optimiser's step.
        gamma: weight of the penalties at a step.
        processes: those that share every batch; draws are for all of it.
        compile: compile what either turn asks of the discriminator, penalty and all derivatives in one graph.
    """

    Options: ClassVar = RelativisticOptions
    network: ClassVar = ProjectionDiscriminator
    discriminator_options: ClassVar = ("width", "blocks")
    compiles: ClassVar = True

    @classmethod
    def of_run(
        cls,
        discriminator: ProjectionDiscriminator,
        optimizer: torch.optim.Optimizer,
        config: AdversarialConfig,
        spec: DataSpec,
        *,
        scheduled: Callable[[int, float, float | None], float],
        **shared: Any,
    ) -> Self:
        """As a run makes it: `scheduled` gives a value between two at a step of stage one."""
        return cls(
            discriminator,
            optimizer,
            config,
            spec,
            gamma=lambda step: scheduled(step, config.gamma, config.gamma_end),
            **shared,
        )

    def __init__(
        self,
        discriminator: ProjectionDiscriminator,
        optimizer: torch.optim.Optimizer,
        config: AdversarialConfig,
        spec: DataSpec,
        *,
        seed: int,
        finish: Callable[[Iterable[nn.Parameter]], Tensor | None],
        gamma: Callable[[int], float],
        processes: Processes = ALONE,
        compile: bool = False,
    ) -> None:
        self.discriminator, self.optimizer, self.config = discriminator, optimizer, config
        self._augment, self._seed, self._processes, self._finish = Augment(config.augment, spec), seed, processes, finish
        self._gamma = gamma
        wrap = compiled_whole if compile else (lambda function: function)
        self._gradients = {penalised: wrap(partial(self._judge, penalised)) for penalised in (False, True)}
        self._image_gradients = wrap(self._compare)
        device = next(discriminator.parameters()).device
        self.probability = torch.zeros((), device=device)
        """Share of images that are augmented, a scalar that stays on the device; unused unless it adapts."""

    def _augmented(self, images: Tensor, turn: str, step: int) -> Tensor:
        """Images under this turn's augmentation, each with the present probability."""
        if not self._augment.families:
            return images
        source = rng.generator(self._seed, f"relativistic-{turn}", step, 0, device=images.device)
        changed = self._augment(images, source, self._processes)
        if self.config.augment_target is None:
            return changed
        drawn = torch.rand(self._processes.world * len(images), 1, 1, 1, generator=source, device=images.device)
        return torch.where(self._processes.part(drawn) < self.probability, changed, images)

    def advance(self, images: Tensor, targets: Tensor, *, real: Tensor, step: int) -> dict[str, Tensor]:
        """One step of the discriminator. `images.grad` is left alone."""
        both = self._augmented(torch.cat((real, images.detach())), "discriminator", step)
        penalised = self._gamma(step) > 0 and step % self.config.penalty_every == 0
        weight = torch.full((), self._gamma(step) / 2 * self.config.penalty_every, device=both.device)
        parameters = dict(self.discriminator.named_parameters())
        found = self._gradients[penalised](parameters, both, targets.repeat(2), weight)
        set_gradients(parameters, found["gradients"])
        margins = found["margins"]
        losses = {"critic": found["critic"], "distance": margins.mean()}
        if penalised:
            losses["penalty"] = found["penalty"]
        self._finish(self.discriminator.parameters())
        self.optimizer.step()
        self.optimizer.zero_grad()
        torch.clear_autocast_cache()  # it holds casts of the weights as they were
        if self.config.augment_target is not None:
            margin = self._processes.mean(margins.sign().mean()) - self.config.augment_target
            seen = self._processes.world * len(real)
            self.probability = (self.probability + margin.sign() * seen / self.config.augment_images).clamp(0, 1)
            losses["augment_probability"] = self.probability
        return losses

    def _judge(
        self, penalised: bool, parameters: dict[str, Tensor], both: Tensor, targets: Tensor, weight: Tensor
    ) -> dict[str, Any]:
        """Gradients of the discriminator's loss by parameter, and what is reported, of real images and as many generated ones."""
        with torch.enable_grad():
            both = both.detach().requires_grad_(penalised)
            leaves = {name: value.detach().requires_grad_() for name, value in parameters.items()}
            values = functional_call(self.discriminator, leaves, (both, targets)).float()
            real_values, fake_values = values.chunk(2)
            loss = critic = F.softplus(fake_values - real_values).mean()
            found = {"critic": critic.detach(), "margins": (real_values - fake_values).detach()}
            if penalised:
                # Nothing in the network couples images, so one gradient of the sum holds every image's own.
                (gradient,) = torch.autograd.grad(values.sum(), both, create_graph=True)
                penalty = 2 * gradient.float().flatten(1).square().sum(1).mean()  # R1 + R2, each a mean over half of the images
                loss = loss + weight * penalty
                found["penalty"] = penalty.detach()
            gradients = torch.autograd.grad(loss, list(leaves.values()))
        return {**found, "gradients": dict(zip(leaves, gradients, strict=True))}

    def accumulate(self, images: Tensor, targets: Tensor, *, real: Tensor, step: int) -> dict[str, Tensor]:
        """See `dim.objectives.Objective`: the generated image of a pair should be judged the better one."""
        shown = self._augmented(torch.cat((real, images)), "generator", step)
        found = self._image_gradients(dict(self.discriminator.named_parameters()), shown.detach(), targets)
        both = torch.cat((torch.zeros_like(real), found["gradient"]))
        add_gradient(images, torch.autograd.grad(shown, images, both)[0])  # through the augmentation, to the generated half
        return {"adversarial": found["loss"]}

    def _compare(self, parameters: dict[str, Tensor], both: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """The generator's loss, and its gradient at the generated half of real images and as many generated ones."""
        constants = {name: value.detach() for name, value in parameters.items()}
        real, given = both.chunk(2)
        with torch.no_grad():
            real_values = functional_call(self.discriminator, constants, (real, targets)).float()
        with torch.enable_grad():
            given = given.detach().requires_grad_()
            values = functional_call(self.discriminator, constants, (given, targets)).float()
            loss = F.softplus(real_values - values).mean()
            (gradient,) = torch.autograd.grad(loss, given)
        return {"loss": loss.detach(), "gradient": gradient}

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint must hold beside the network and its optimiser."""
        return {"probability": self.probability}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `state` gave."""
        self.probability = tensors["probability"]
