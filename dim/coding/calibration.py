"""Moves a generator's weights until, rounded, they make the images that it made before."""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.func import functional_call

from dim import rng
from dim.coding import weights
from dim.nets.generator import Generator

_JUDGED = 8  # batches by which the result is judged, which nothing is fitted to
_SEED = 0x5CA1E


class _Fit:
    """A generator's weights, their rounding, and the change of its images."""

    def __init__(self, generator: Generator, bits: int) -> None:
        self.net, self.device = generator, generator.device
        self.state = {name: value.detach() for name, value in generator.state_dict().items()}
        shapes = weights.shapes_of(self.state, [name for name, _ in generator.named_parameters()])
        bits_of = {name: weights.bits_of(name, shape, bits) for name, shape in shapes.items()}
        self._bits = {name: own for name, own in bits_of.items() if own}
        self._rows = {name: (weights.rows_of(name, shapes[name]), -1) for name in self._bits}
        self.scales = {
            name: weights.scales(self.state[name].float().reshape(size), self._bits[name]) for name, size in self._rows.items()
        }
        self.moved = [name for name in self._bits if name != weights.ANCHORS]

    def draw(self, number: int, size: int) -> tuple[Tensor, Tensor]:
        """Latents (size, Z) and labels (size,) of batch `number`."""
        places = number * size + torch.arange(size)
        labels, indices = places % self.net.spec.num_classes, places // self.net.spec.num_classes
        latents = self.net.latents(labels, indices, seed=rng.fold(_SEED, "calibration"))
        return latents.to(self.device, next(self.net.parameters()).dtype), labels.to(self.device)

    def error(self, moved: Mapping[str, Tensor], number: int, size: int) -> Tensor:
        """Mean square change of a batch of images by rounded weights."""
        batch = self.draw(number, size)
        with torch.no_grad():
            wanted = self.net(*batch)
        made = functional_call(
            self.net, {**self.state, **{name: self._rounded(name, value) for name, value in moved.items()}}, batch
        )
        return (made - wanted).float().square().mean()

    def _rounded(self, name: str, value: Tensor) -> Tensor:
        """The rounded value; the gradient passes rounding unchanged."""
        rows, scale = value.detach().float().reshape(self._rows[name]), self.scales[name]
        near = (weights.rounded(rows, scale, self._bits[name]).float() * scale.float()).reshape(value.shape)
        return value + (near.to(value.dtype) - value).detach()


def calibrated(
    generator: Generator,
    bits: int,
    *,
    steps: int = 300,
    batch_size: int = 32,
    lr: float = 0.01,
    progress: Callable[[], None] = lambda: None,
) -> tuple[dict[str, Tensor], dict[str, Tensor], tuple[float, float]]:
    """Fit a generator's weights to its own images.

    The gradient passes rounding unchanged (Bengio et al. 2013, arXiv 1308.3432), the loss is the mean square difference to the
    images of the generator on random latents, and scales stay. It is judged on other latents; where rounding alone changes their
    images less, the weights stay as they were.

    Args:
        generator: left as it is; on any device.
        bits: see `dim.coding.weights.code`.
        steps, batch_size, lr: of Adam, whose learning rate falls to 0; `lr` is in steps of a tensor's rounding.
        progress: called after every step.

    Returns:
        The state on the CPU, the scales of its rounded tensors for `dim.coding.weights.code`, and the root mean square change of
        an image's values, in [-1, 1], by rounding alone and after calibration.
    """
    training = generator.training
    generator.eval()
    try:
        fit = _Fit(generator, bits)
        moving = {name: fit.state[name].clone().requires_grad_() for name in fit.moved}
        judged = {"number": 0, "size": _JUDGED * batch_size}
        with torch.no_grad():
            plain = float(fit.error({name: fit.state[name] for name in moving}, **judged))
        optimizer = torch.optim.Adam([{"params": [value], "lr": 0.0} for value in moving.values()])
        sizes = [float(fit.scales[name].float().mean()) for name in moving]
        for step in range(steps):
            for group, size in zip(optimizer.param_groups, sizes, strict=True):
                group["lr"] = lr * size * (1 - step / steps)
            optimizer.zero_grad()
            fit.error(moving, _JUDGED + step, batch_size).backward()
            optimizer.step()
            progress()
        with torch.no_grad():
            error = float(fit.error(moving, **judged))
    finally:
        generator.train(training)
    chosen = moving if error < plain else {}
    state = {name: chosen.get(name, value).detach().cpu() for name, value in fit.state.items()}
    scales = {name: value.cpu() for name, value in fit.scales.items()}
    return state, scales, (math.sqrt(plain), math.sqrt(min(error, plain)))
