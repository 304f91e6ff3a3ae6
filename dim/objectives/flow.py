"""Learning a flow from real images: its velocity (Lipman et al. 2023), then its mean velocities (MeanFlow, Geng et al. 2025)."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dim import rng
from dim.config import FlowConfig
from dim.processes import ALONE, Processes
from dim.trajectory.hypergrad import load_forward_mode

if TYPE_CHECKING:  # diffusers takes seconds to import
    from dim.nets.generators.diffusion import Diffusion


def mean_velocity_target(generator: "Diffusion", x: Tensor, r: Tensor, t: Tensor, y: Tensor, velocity: Tensor) -> Tensor:
    """What u(x_t, r, t) should be: v - (t - r) du/dt along the flow (Geng et al. 2025, eq. 6), without a gradient.

    Args:
        generator: gives `average_velocity`.
        x: (B, C, H, W), points x_t of the flow.
        r, t: (B,) times, r <= t.
        y: int64 (B,) labels.
        velocity: (B, C, H, W), v at x_t.

    Returns:
        (B, C, H, W), float32 or wider.
    """
    load_forward_mode()
    with torch.no_grad():
        _, change = torch.func.jvp(
            lambda x, t: generator.average_velocity(x, r, t, y), (x, t), (velocity.to(x.dtype), torch.ones_like(t))
        )
        return velocity - (t - r).view(-1, 1, 1, 1) * change.to(velocity.dtype)


class FlowMatching:
    """Moves the generator's weights towards the data; nothing is generated for it.

    Args:
        config: times, and how much of a batch learns mean velocities.
        few_steps_from: step from which mean velocities are learned beside the velocity.
        seed: seed of the run.
        processes: those that share every batch; draws are for all of it.
    """

    @classmethod
    def of_run(cls, config: FlowConfig, *, steps: int, seed: int, processes: Processes) -> "FlowMatching":
        """As a run makes it, whose stage one has so many steps."""
        return cls(config, few_steps_from=round(config.mean_from * steps), seed=seed, processes=processes)

    def __init__(self, config: FlowConfig, *, few_steps_from: int, seed: int, processes: Processes = ALONE) -> None:
        self.config, self._few_steps_from, self._seed, self._processes = config, few_steps_from, seed, processes

    def regress(self, generator: "Diffusion", real: Tensor, targets: Tensor, *, step: int) -> dict[str, Tensor]:
        """Add the gradient of the flow's loss to the gradients of the generator's parameters.

        The loss of an image is |u - target|^2, divided by its own size (adaptive weighting, Geng et al. 2025, eq. 22).

        Args:
            generator: the network.
            real: float32 (B, C, H, W) in [-1, 1].
            targets: int64 (B,) labels.
            step: number of the step, from which every random draw derives.

        Returns:
            Detached mean squared errors per pixel: `flow` of the velocity and, where they are learned, `mean_flow`.
        """
        processes, drawing = self._processes, {"device": real.device}
        drawing["generator"] = rng.generator(self._seed, "flow", step, 0, **drawing)
        batch = processes.world * len(real)
        noise = processes.part(torch.randn(batch, *real.shape[1:], **drawing))
        times = processes.part(torch.randn(2, batch, **drawing).T).T
        times = torch.sigmoid(times * self.config.time_std + self.config.time_mean)
        dropped = processes.part(torch.rand(batch, **drawing)) < self.config.label_dropout
        labels = torch.where(dropped, generator.null, targets)
        whole = batch - round(batch * self.config.mean_share) if step >= self._few_steps_from else batch
        split = len(processes.part(range(whole)))  # of this process's images, those of the velocity
        late, early = times.amax(0), times.amin(0)
        t = torch.cat((times[0, :split], late[split:]))
        r = torch.cat((t[:split], early[split:]))
        weight = t.view(-1, 1, 1, 1)
        x, velocity = torch.lerp(real, noise, weight), noise - real
        wanted = velocity
        if split < len(real):
            mean = mean_velocity_target(generator, x[split:], r[split:], t[split:], labels[split:], velocity[split:])
            wanted = torch.cat((velocity[:split], mean))
        error = (generator.average_velocity(x, r, t, labels).float() - wanted).square().flatten(1).mean(1)
        (error / (error.detach() + 1e-3)).mean().backward()
        parts = {"flow": (error[:split], whole), "mean_flow": (error[split:], batch - whole)}
        return {name: _mean(part.detach(), count / processes.world) for name, (part, count) in parts.items() if count}


def _mean(errors: Tensor, share: float) -> Tensor:
    """The mean of errors that may be more or fewer than this process's even `share`, so that the mean over processes is right."""
    return errors.mean() * (len(errors) / share) if len(errors) else errors.sum()
