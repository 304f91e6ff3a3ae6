"""The gradient of a trajectory-matching loss in the synthetic images, their labels and the step size.

A student starts at an expert's weights theta_0 = theta_start and takes N steps of gradient descent on synthetic batches,
theta_{i+1} = theta_i - beta * g_i with g_i the gradient of its training loss. The loss is how far it ends from where the
expert went (Cazenavette et al. 2022, eq. 2):

    L = |theta_N - theta_target|^2 / |theta_start - theta_target|^2

which is the distance `endpoint`. It asks a student of a few steps to go as far as the expert did in many, so it wants images
whose gradients are large. `direction` asks for the way only, and is L at the best of all lengths of the student's whole
displacement d = theta_N - theta_start, beside the expert's e = theta_target - theta_start:

    L = min over a >= 0 of |a d - e|^2 / |e|^2 = 1 - cos^2(d, e), or 1 where the student went the opposite way

Three ways to differentiate it:

- `unroll` (MTT, DATM): one graph over all N steps. Exact; memory grows by every activation of every step.
- `adjoint`: exact, and only the N weight vectors are kept. With lambda_N = dL/dtheta_N, going back through the steps,
  dL/dbeta -= lambda . g_i and one derivative of the scalar s_i = lambda . g_i(theta_i, x_i, y_i) gives the rest:
  dL/dx_i = -beta ds_i/dx_i, dL/dy_i = -beta ds_i/dy_i, lambda -= beta ds_i/dtheta_i (a Hessian-vector product).
- `frozen` (TESLA, Cui et al. 2023, eq. 6): lambda stays lambda_N, as though every theta_i were a constant. Not the gradient
  of L unless N = 1; kept because it is what the paper does. The published code loses the factor 2 of lambda_N in the images'
  gradient (`2 *` repeats a tuple there), but not in the step size's. Here both have it, so that at the published learning rate
  of images every update moves them twice as far as that code does. Recipes keep the published rate and do not compensate: half
  of it gives the code's updates.
"""

import functools
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor
from torch.func import grad, grad_and_value, jvp, vjp, vmap

from dim.compiling import compiled
from dim.config.settings import Distance
from dim.config.trajectory import Gradient as Method
from dim.config.trajectory import Order
from dim.errors import InputError, nearest

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(theta (P,), x (b, C, H, W), y (b,) or (b, K)) -> scalar: a student's training loss."""
Transform = Callable[[int, Tensor], Tensor]
"""(step, batch of images) -> the images as the student sees them; the same at every call, once differentiable."""
METHODS, DISTANCES, ORDERS = get_args(Method), get_args(Distance), get_args(Order)


@dataclass(frozen=True)
class Hypergradient:
    """What `hypergradient` returns; all tensors are detached."""

    loss: Tensor
    """Scalar: squared distance to the target over the squared distance that the expert covered; in [0, 1] for `direction`."""
    images: Tensor
    """dL/dimages, like the images."""
    targets: Tensor | None
    """dL/dtargets, like the targets; None for integer class labels."""
    step_size: Tensor
    """dL/dbeta, scalar."""


class Derivatives:
    """The two functions of a training loss that trajectory matching needs, each complete, so that it can be compiled.

    Args:
        loss: (theta (P,), x, y) -> scalar; twice differentiable in theta, once more in x and y.
        order: how the second derivative is taken. All three give the same up to rounding. `reverse-over-forward`
            differentiates the tangent of the loss once, so that no operation needs a double backward, and is fastest compiled;
            `reverse-over-reverse` is fastest where nothing is compiled. Default: the fastest.
        compile: compile both with `torch.compile`; worth its half minute for hundreds of iterations. Shapes should stay the
            same from call to call.
        frozen: leave out the derivative in theta, which `frozen` does not use.

    Raises:
        InputError: for an unknown order.
    """

    def __init__(self, loss: Loss, *, order: Order | None = None, compile: bool = False, frozen: bool = False) -> None:
        order = order or ("reverse-over-forward" if compile else "reverse-over-reverse")
        if order not in ORDERS:
            raise InputError(f"unknown order {order!r}. {nearest(order, ORDERS)}")
        load_forward_mode()
        self.loss, self.frozen = loss, frozen
        pulls = {
            "reverse-over-forward": self._reverse_over_forward,
            "reverse-over-reverse": self._reverse_over_reverse,
            "forward-over-reverse": self._forward_over_reverse,
        }
        wrap = compiled if compile else (lambda function: function)
        self._gradient = wrap(grad(loss))
        self._pull = wrap(pulls[order])
        self._gradient_each = wrap(vmap(grad(loss), (0, None, None)))
        self._pull_each = wrap(vmap(pulls[order], (0, None, None, 0)))

    def gradient(self, theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """Gradient of the loss in `theta`: (P,), or (E, P) for each of E students, which all see `x` (b, C, H, W) and `y` (b,) or
        (b, K)."""
        with torch.no_grad():
            return self._gradient(theta, x, y) if theta.ndim == 1 else self._gradient_each(theta, x, y)

    def pull(self, theta: Tensor, x: Tensor, y: Tensor, direction: Tensor) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
        """s = `direction` . gradient(`theta`, `x`, `y`), and its derivatives in theta, x and y; direction is like theta.

        For theta (E, P) the value and the derivative in theta are per student, those in x and y summed over them. The
        derivative in theta is None when `frozen`, that in y for integer labels.
        """
        with torch.no_grad():
            if theta.ndim == 1:
                value, *parts = self._pull(theta, x, y, direction)
            else:
                value, *parts = self._pull_each(theta, x, y, direction)
        parts = dict(zip(self._names(y), parts, strict=True))
        if theta.ndim == 2:
            parts |= {name: part.sum(0) for name, part in parts.items() if name != "theta"}
        return value, parts.get("theta"), parts["x"], parts.get("y")

    def _names(self, y: Tensor) -> list[str]:
        return ["theta"] * (not self.frozen) + ["x"] + ["y"] * y.is_floating_point()

    def _positions(self, y: Tensor) -> tuple[int, ...]:
        return tuple({"theta": 0, "x": 1, "y": 2}[name] for name in self._names(y))

    def _reverse_over_forward(self, theta: Tensor, x: Tensor, y: Tensor, direction: Tensor) -> tuple[Tensor, ...]:
        def along(theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
            return jvp(lambda theta: self.loss(theta, x, y), (theta,), (direction,))[1]

        parts, value = grad_and_value(along, argnums=self._positions(y))(theta, x, y)
        return value, *parts

    def _reverse_over_reverse(self, theta: Tensor, x: Tensor, y: Tensor, direction: Tensor) -> tuple[Tensor, ...]:
        positions = self._positions(y)
        inputs = (theta, x, y)

        def gradient(*chosen: Tensor) -> Tensor:
            full = list(inputs)
            for position, value in zip(positions, chosen, strict=True):
                full[position] = value
            return grad(self.loss)(*full)

        value, pull = vjp(gradient, *(inputs[position] for position in positions))
        return direction @ value, *pull(direction)

    def _forward_over_reverse(self, theta: Tensor, x: Tensor, y: Tensor, direction: Tensor) -> tuple[Tensor, ...]:
        positions = self._positions(y)
        wanted = positions if 0 in positions else (0, *positions)

        def gradients(theta: Tensor) -> tuple[Tensor, ...]:
            return grad(self.loss, argnums=wanted)(theta, x, y)

        values, tangents = jvp(gradients, (theta,), (direction,))
        parts = dict(zip(wanted, tangents, strict=True))
        return direction @ values[0], *(parts[position] for position in positions)


@functools.cache
def load_forward_mode() -> None:
    """PyTorch scripts what forward mode needs when that is first used, and warns that scripting is deprecated."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit\.script`")
        jvp(torch.clone, (torch.zeros(()),), (torch.zeros(()),))


def hypergradient(
    loss: Loss | Derivatives,
    theta_start: Tensor,
    theta_target: Tensor,
    images: Tensor,
    targets: Tensor,
    step_size: Tensor | float,
    batches: Sequence[Tensor],
    *,
    method: Method = "adjoint",
    distance: Distance = "endpoint",
    transform: Transform | None = None,
    offload: bool = False,
) -> Hypergradient:
    """Differentiate the trajectory-matching loss; see the module's description.

    Args:
        loss: the student's training loss, or its `Derivatives` (compiled, say), made once and used for every call.
        theta_start: (P,) weights where the student starts, or (E, P) for E students that see the same batches, whose
            losses are averaged.
        theta_target: like `theta_start`, where the expert went.
        images: float (N, C, H, W), the synthetic images.
        targets: (N,) integer labels, or float (N, K): whatever `loss` takes as y.
        step_size: beta, a positive scalar.
        batches: one int64 index tensor per student step, into `images`; repeats are allowed.
        method: `adjoint` (default), `unroll` or `frozen`.
        distance: `endpoint` (default) or `direction`. The second is taken from the difference of the last and the first weights:
            in float32 its gradient in the images loses digits where a student hardly moves. Its gradient in the step size is 0
            for one step and small for more, and not one to learn by.
        transform: augmentation of a step's batch, replayed: it is called once or twice per step with the same step number
            and must do the same each time. It stays outside the derivative in theta, so it is differentiated once.
        offload: keep the N weight vectors in host memory (`adjoint` on an accelerator).

    Returns:
        The loss and its gradients, detached. Sums over steps are kept in float32 or better.

    Raises:
        InputError: for an unknown method or distance, no batches, shapes that disagree, or a step size that is not positive.
    """
    if method not in METHODS:
        raise InputError(f"unknown method {method!r}. {nearest(method, METHODS)}")
    if distance not in DISTANCES:
        raise InputError(f"unknown distance {distance!r}. {nearest(distance, DISTANCES)}")
    _require_fitting(theta_start, theta_target, images, targets, batches)
    beta = torch.as_tensor(step_size, dtype=theta_start.dtype, device=theta_start.device).detach()
    if not 0 < float(beta) < math.inf:
        raise InputError(f"step_size is {float(beta)}: expected a positive number")
    if method == "unroll":
        plain = loss.loss if isinstance(loss, Derivatives) else loss
        return _unroll(plain, theta_start, theta_target, images, targets, beta, batches, transform, distance)
    derivatives = loss if isinstance(loss, Derivatives) else Derivatives(loss, frozen=method == "frozen")
    steps = _Steps(images.detach(), targets.detach(), batches, transform)
    if method == "frozen":
        return _frozen(derivatives, theta_start.detach(), theta_target.detach(), steps, beta, distance)
    if derivatives.frozen:
        raise InputError("these derivatives were made with frozen=True: make them without it for method 'adjoint'")
    return _adjoint(derivatives, theta_start.detach(), theta_target.detach(), steps, beta, offload, distance)


def _require_fitting(start: Tensor, target: Tensor, images: Tensor, targets: Tensor, batches: Sequence[Tensor]) -> None:
    if start.shape != target.shape or start.ndim not in (1, 2):
        shapes = f"{tuple(start.shape)} and {tuple(target.shape)}"
        raise InputError(f"theta_start and theta_target have shapes {shapes}: expected (P,) or (E, P), both alike")
    if not len(batches):
        raise InputError("no batches: expected at least one student step")
    if len(images) != len(targets):
        raise InputError(f"{len(images)} images and {len(targets)} targets: expected as many of one as of the other")


class _Steps:
    """The student's batches: what each step sees, and the way back to the images and targets."""

    def __init__(self, images: Tensor, targets: Tensor, batches: Sequence[Tensor], transform: Transform | None) -> None:
        self.images, self.targets, self.batches, self.transform = images, targets, batches, transform
        self.image_gradient = torch.zeros_like(images, dtype=_wide(images))
        self.target_gradient = torch.zeros_like(targets, dtype=_wide(targets)) if targets.is_floating_point() else None

    def __len__(self) -> int:
        return len(self.batches)

    def at(self, step: int) -> tuple[Tensor, Tensor]:
        """Images and targets of a step."""
        x, y = self.images[self.batches[step]], self.targets[self.batches[step]]
        return x if self.transform is None else self.transform(step, x), y

    def graph_at(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """The batch's images as a leaf, what the student sees of them, and the targets."""
        leaf = self.images[self.batches[step]].requires_grad_()
        y = self.targets[self.batches[step]]
        if self.transform is None:
            return leaf, leaf, y
        with torch.enable_grad():
            return leaf, self.transform(step, leaf), y

    def scatter(self, step: int, leaf: Tensor, seen: Tensor, x: Tensor, y: Tensor | None, scale: Tensor) -> None:
        """Add `scale` times the derivatives in what a step saw to the gradients of the images and targets."""
        if seen is not leaf:
            x = torch.autograd.grad(seen, leaf, x.to(seen.dtype))[0] if seen.requires_grad else torch.zeros_like(leaf)
        self.image_gradient.index_add_(0, self.batches[step], (scale * x).to(self.image_gradient.dtype))
        if y is not None:
            self.target_gradient.index_add_(0, self.batches[step], (scale * y).to(self.target_gradient.dtype))

    def gradients(self, loss: Tensor, step_size: Tensor, count: int) -> Hypergradient:
        """The result, averaged over `count` students."""
        targets = None if self.target_gradient is None else (self.target_gradient / count).to(self.targets.dtype)
        return Hypergradient(loss, (self.image_gradient / count).to(self.images.dtype), targets, step_size / count)


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _count(theta: Tensor) -> int:
    return 1 if theta.ndim == 1 else len(theta)


def _end(theta: Tensor, start: Tensor, target: Tensor, distance: Distance) -> tuple[Tensor, Tensor]:
    """The loss (mean over students) and its gradient at the last weights, of each student's own loss."""
    start, end, target = (weights.to(_wide(theta)) for weights in (start, theta, target))
    covered = (start - target).square().sum(-1, keepdim=True)
    length, gap = torch.ones_like(covered), end - target
    if distance == "direction":
        # The best length is a minimum, so that the gradient sees it as a constant. It is 0 for a student that stood still.
        moved, wanted = end - start, target - start
        own = moved.square().sum(-1, keepdim=True).clamp(min=torch.finfo(end.dtype).tiny)
        length = ((moved * wanted).sum(-1, keepdim=True) / own).clamp(min=0)
        gap = length * moved - wanted
    return (gap.square().sum(-1, keepdim=True) / covered).mean(), 2 * length * gap / covered


def _adjoint(
    derivatives: Derivatives,
    start: Tensor,
    target: Tensor,
    steps: _Steps,
    beta: Tensor,
    offload: bool,
    distance: Distance,
) -> Hypergradient:
    theta, kept = start, []
    for step in range(len(steps)):
        kept.append(theta.to("cpu", non_blocking=False) if offload else theta)
        theta = theta - beta * derivatives.gradient(theta, *steps.at(step)).to(theta.dtype)
    loss, adjoint = _end(theta, start, target, distance)
    step_size = torch.zeros((), dtype=_wide(theta), device=theta.device)
    for step in reversed(range(len(steps))):
        theta = kept.pop().to(start.device)
        leaf, seen, y = steps.graph_at(step)
        value, by_theta, by_x, by_y = derivatives.pull(theta, seen.detach(), y, adjoint.to(theta.dtype))
        step_size -= value.sum()
        steps.scatter(step, leaf, seen, by_x, by_y, -beta)
        adjoint = adjoint - beta * by_theta
    return steps.gradients(loss, step_size, _count(start))


def _frozen(
    derivatives: Derivatives, start: Tensor, target: Tensor, steps: _Steps, beta: Tensor, distance: Distance
) -> Hypergradient:
    theta = start
    for step in range(len(steps)):
        theta = theta - beta * derivatives.gradient(theta, *steps.at(step)).to(theta.dtype)
    loss, adjoint = _end(theta, start, target, distance)
    # L depends on beta through theta_N = theta_0 - beta * sum of g_i, whose sum is known.
    step_size = (adjoint * (theta - start)).sum() / beta
    theta = start
    for step in range(len(steps)):
        leaf, seen, y = steps.graph_at(step)
        _, _, by_x, by_y = derivatives.pull(theta, seen.detach(), y, adjoint.to(theta.dtype))
        steps.scatter(step, leaf, seen, by_x, by_y, -beta)
        if step + 1 < len(steps):
            theta = theta - beta * derivatives.gradient(theta, seen.detach(), y).to(theta.dtype)
    return steps.gradients(loss, step_size, _count(start))


def _unroll(
    loss: Loss,
    start: Tensor,
    target: Tensor,
    images: Tensor,
    targets: Tensor,
    beta: Tensor,
    batches: Sequence[Tensor],
    transform: Transform | None,
    distance: Distance,
) -> Hypergradient:
    images = images.detach().requires_grad_()
    soft = targets.is_floating_point()
    targets = targets.detach().requires_grad_(soft)
    beta = beta.clone().requires_grad_()
    students = [start] if start.ndim == 1 else list(start)
    goals = [target] if target.ndim == 1 else list(target)
    total = torch.zeros((), dtype=_wide(start), device=start.device)
    with torch.enable_grad():
        seen = [images[batch] if transform is None else transform(step, images[batch]) for step, batch in enumerate(batches)]
        for first, goal in zip(students, goals, strict=True):
            theta = first.detach().requires_grad_()
            for x, batch in zip(seen, batches, strict=True):
                value = loss(theta, x, targets[batch])
                theta = theta - beta * torch.autograd.grad(value, theta, create_graph=True)[0]
            total = total + _end(theta, first.detach(), goal.detach(), distance)[0] / len(students)
        wanted = [images, beta, *([targets] if soft else [])]
        parts = torch.autograd.grad(total, wanted, materialize_grads=True)
    return Hypergradient(total.detach(), parts[0], parts[2] if soft else None, parts[1])
