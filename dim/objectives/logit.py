"""Matching through a pool: what its models say of real and of generated images agrees (DiM, Wang et al. 2023, section 3.3)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from dim import rng
from dim.augment import Augment
from dim.config import MatchingConfig
from dim.objectives import add_gradient
from dim.objectives.statistics import class_distance, gaussians, moments, standardised, waves
from dim.pool import ModelPool
from dim.spec import DataSpec


def paired_distance(real: Tensor, generated: Tensor) -> Tensor:
    """Published: mean over images and classes of the squared difference of log-probabilities of two paired images.

    Pairs are of one class and otherwise random, so in expectation this is the distance of the class means *plus the
    variances of both sides*: lowering the spread of generated images lowers it. See `mean_distance`.

    Args:
        real, generated: float (B, K) log-probabilities, paired by row.

    Returns:
        A scalar, 0 or more.
    """
    return (real - generated).square().mean()


def mean_distance(real: Tensor, generated: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Squared distance of the class means of log-probabilities or features, estimated without bias (a U-statistic).

    For every class, products of *different* rows only: with a_i real and b_i generated, n of each, the mean over i != j of
    a_i a_j + b_i b_j - 2 a_i b_j. Its expectation is |E a - E b|^2 whatever the spread, so nothing is gained by collapsing; a_i
    and b_i, which share an augmentation draw and so are correlated, never meet. Classes are weighted by their images.

    Args:
        real, generated: float (B, F) log-probabilities or features.
        labels: int64 (B,) in [0, classes), the class of both images of a row.
        classes: of the data; F may be smaller or larger.

    Returns:
        A scalar, averaged over the F outputs like `paired_distance`. A single estimate may be negative. Classes with fewer
        than two images in the batch have no such estimate and count as 0.
    """
    outputs = real.shape[1]
    # Columns of classes that do not exist add 0. They keep the order of summation that seeded runs have had.
    members = F.one_hot(labels, max(classes, outputs)).to(real.dtype)  # (B, classes)
    count = members.sum(0)
    pairs = (count * (count - 1)).clamp(min=1)  # with one image of a class, the sum below is 0
    # With d = a - b: the mean over i != j of d_i d_j.
    difference = real - generated
    total = (members.T @ difference).square().sum(1) - members.T @ difference.square().sum(1)
    return (total / pairs * count).sum() / (len(real) * outputs)


class PoolMatching:
    """Makes what members of a pool say of generated images agree with what they say of real images of the same classes.

    Both sides get one augmentation draw. Departures from the published code: images are normalised alike everywhere (it
    normalised [-1, 1] images with [0, 1] statistics), and the default distance does not pull towards collapse.
    """

    def __init__(self, pool: ModelPool, config: MatchingConfig, spec: DataSpec, *, seed: int, rank: int = 0) -> None:
        self.pool, self.config = pool, config
        self._augment, self._seed, self._rank = Augment(config.augment, spec), seed, rank
        self._classes = spec.num_classes

    def _outputs(self, images: Tensor, step: int) -> Tensor:
        """What the members that serve a step say, (members, B, F)."""
        outputs = self.pool.outputs(images, step, self.config.outputs)
        return outputs if self.config.outputs == "features" else F.log_softmax(outputs, dim=2)

    def _distance(self, real: Tensor, generated: Tensor, labels: Tensor, step: int) -> Tensor:
        kind = self.config.distance
        if kind == "pairs":
            return paired_distance(real, generated)
        if kind == "means":
            return mean_distance(real, generated, labels, self._classes)
        real, generated = standardised(real, generated)
        if kind == "characteristic":
            source = rng.generator(self._seed, "matching-frequencies", step, device=real.device)
            return class_distance(waves(real.shape[1], source), real, generated, labels)
        return class_distance({"moments": moments, "kernel": gaussians}[kind], real, generated, labels)

    def accumulate(self, images: Tensor, targets: Tensor, *, real: Tensor, step: int) -> dict[str, Tensor]:
        """See `dim.objectives.Objective`. The loss is returned before its weight."""
        source = rng.generator(self._seed, "matching-augment", step, self._rank, device=images.device)
        draw = self._augment.draw(len(images), source)
        with torch.autocast(images.device.type, enabled=False):
            with torch.no_grad():
                wanted = self._outputs(self._augment.apply(real, draw), step)
            given = self._outputs(self._augment.apply(images, draw), step)
            pairs = zip(wanted, given, strict=True)
            loss = torch.stack([self._distance(ours, theirs, targets, step) for ours, theirs in pairs]).mean()
        add_gradient(images, torch.autograd.grad(self.config.weight * loss, images)[0])
        return {"matching": loss.detach()}
