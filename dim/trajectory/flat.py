"""A network as a function of one flat vector of weights, which is how trajectories are stored, matched and differentiated."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from dim.chunks import FORWARD, JUDGED, chunk_size
from dim.config.settings import FixedPrecision
from dim.errors import InputError
from dim.nets.layers import arrange, channels_last
from dim.nets.student import build_student
from dim.spec import DataSpec


class FlatNetwork:
    """A student as a pure function of (theta, images).

    Args:
        student: architecture, as `build_student` reads it.
        spec: the data that it sees.
        device: where it lives.
        compiled: arrange the network for a compiler; same parameters, same values up to rounding.
        norms: arrange instance norms too, which is faster where second derivatives are taken and slower where only first.
        precision: `bf16` evaluates the body of the network in bfloat16 for a loss. Weights, its gradients, the last layer and the
            loss are float32 as before; so is what `logits` and `features` return. It is cast here and not by autocast, which
            chooses for each operation and would be asked again for each derivative.

    Raises:
        InputError: for an unknown student, or one whose output is no function of its weights and images alone: running
            statistics change with every batch, dropout is random.
    """

    def __init__(
        self,
        student: str,
        spec: DataSpec,
        device: torch.device | str = "cpu",
        *,
        compiled: bool = False,
        norms: bool = True,
        precision: FixedPrecision = "fp32",
    ) -> None:
        self.student, self.spec = student, spec
        self.net = build_student(student, spec, seed=0).to(device).train().requires_grad_(False)
        for module in self.net.modules():
            if getattr(module, "track_running_stats", False):
                raise InputError(
                    f"student {student!r} keeps running statistics, which trajectory matching cannot differentiate: "
                    "use norm=instance, layer, group or batchstats"
                )
            if isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0:
                raise InputError(f"student {student!r} has dropout, so its gradient is random: use an architecture without it")
        self._compiled, self.precision = compiled, precision
        if compiled:
            arrange(self.net, norms=norms)
        named = dict(self.net.named_parameters())
        self.names = list(named)
        self.shapes = [parameter.shape for parameter in named.values()]
        self.sizes = [parameter.numel() for parameter in named.values()]
        self.size = sum(self.sizes)
        self.device = torch.device(device)

    def initial(self, seed: int) -> Tensor:
        """Freshly initialised weights, float32 (P,)."""
        net = build_student(self.student, self.spec, seed=seed)
        return torch.cat([parameter.detach().reshape(-1) for parameter in net.parameters()]).to(self.device)

    def unflatten(self, theta: Tensor) -> dict[str, Tensor]:
        """(P,) -> the parameters by name, as views."""
        parts = theta.split(self.sizes)
        return {name: part.view(shape) for name, part, shape in zip(self.names, parts, self.shapes, strict=True)}

    def logits(self, theta: Tensor, images: Tensor) -> Tensor:
        """theta (P,), float (B, C, H, W) in [-1, 1] -> (B, classes)."""
        if self._compiled:
            images = channels_last(images)
        return functional_call(self.net, self.unflatten(theta), (images,))

    def features(self, theta: Tensor, images: Tensor) -> Tensor:
        """What the last layer is given: theta (P,), float (B, C, H, W) in [-1, 1] -> (B, F)."""
        return self._features(theta, images, theta.dtype)

    def _features(self, theta: Tensor, images: Tensor, dtype: torch.dtype) -> Tensor:
        images = ((images - self.net.mean) / self.net.std).to(dtype)
        return functional_call(self.net.body, self._part("body.", theta.to(dtype)), (images,)).flatten(1)

    def _part(self, prefix: str, theta: Tensor) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): p for name, p in self.unflatten(theta).items() if name.startswith(prefix)}

    def _logits_in_training(self, theta: Tensor, images: Tensor) -> Tensor:
        if self.precision == "fp32":
            return self.logits(theta, images)
        if self._compiled:
            images = channels_last(images)
        features = self._features(theta, images, torch.bfloat16).to(theta.dtype)
        return functional_call(self.net.head, self._part("head.", theta), (features,))

    def loss(self, theta: Tensor, images: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy with int64 (B,) labels or float (B, classes) probabilities."""
        return F.cross_entropy(self._logits_in_training(theta, images), targets)

    def loss_of_label_logits(self, theta: Tensor, images: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy with the softmax of float (B, classes) label logits (DATM)."""
        return F.cross_entropy(self._logits_in_training(theta, images), targets.softmax(1))

    @torch.no_grad()
    def predict(self, theta: Tensor, images: Tensor) -> Tensor:
        """Logits of many images, (N, classes), without a graph."""
        size = chunk_size(4 * images[:1].numel(), JUDGED, FORWARD)
        return torch.cat([self.logits(theta, part.to(self.device)) for part in images.split(size)])

    def tensor_norms(self, theta: Tensor) -> Tensor:
        """Euclidean norm of each parameter tensor: (..., P) -> (..., tensors)."""
        return torch.stack([part.norm(dim=-1) for part in theta.split(self.sizes, dim=-1)], dim=-1)
