"""How much of the real data a generator or a set covers, and whether it copies.

Real and generated images are compared as clouds of points in a feature space (`dim.features.spaces`), with equally many on both
sides, class by class: FID (Heusel et al. 2017), improved precision and recall (Kynkäänniemi et al. 2019), density and
coverage (Naeem et al. 2020). Beside them stands a control: real images that were never trained on, measured alike.
"""

import dataclasses
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from dim import rng
from dim.data.origin import real_data_of
from dim.data.real import RealData
from dim.data.synthetic import SyntheticSet
from dim.errors import InputError
from dim.features.distances import (
    K_LARGEST,
    METRICS,
    distances,
    double,
    expected_coverage,
    frechet_distance,
    neighbour_metrics,
)
from dim.features.spaces import Features, load_features
from dim.nets.generator import Generator
from dim.pictures import grid
from dim.provenance import hardware, versions
from dim.sampler import sample_set
from dim.spec import as_unit_range, require_same_data

SAMPLES = 5000


@dataclass(frozen=True, kw_only=True)
class CoverageScore:
    """One row: one source of images against the real training part."""

    name: str
    """What was measured: a set, a generator, or the control."""
    images: int
    """Images on each side."""
    seed: int
    """Of the choice of real images, and of the generated ones."""
    features: dict[str, Any]
    """Name, digest, and accuracy of the feature extractor."""
    metrics: dict[str, float]
    """FID (0 is best), precision, recall and coverage in [0, 1], density (0 or more; 1 if the distributions agree)."""
    expected: dict[str, float]
    """Density and coverage in expectation if both sides come from one distribution (Naeem et al. 2020)."""
    sampler: dict[str, Any] = field(default_factory=dict)
    """Options of a few-step generator's sampler."""
    per_class: tuple[dict[str, Any], ...]
    """Per class its name, images on each side, and the metrics within it; None for those that so few images do not allow."""
    seconds: float
    """Wall time, without that of training the features."""
    data: dict[str, Any] = field(default_factory=dict)
    """Name and fingerprint of the real data."""
    hardware: dict[str, Any] = field(default_factory=dict)
    """What `dim.provenance.hardware` says of the machine."""
    versions: dict[str, str] = field(default_factory=dict)
    """Versions of Python and of the libraries that compute."""

    def to_dict(self) -> dict[str, Any]:
        """All fields, as plain values for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "CoverageScore":
        """Inverse of `to_dict`: `values` are parsed JSON."""
        return cls(**{**values, "per_class": tuple(values["per_class"])})


# --- subjects --------------------------------------------------------------------------------------------------------------


class Coverage:
    """Measures sets and generators of one data set against its training part.

    Every class has as many images on both sides: its share of `samples`, or what the smallest of the training part, the
    held-out part and the measured set has. Real images are drawn by seed, a smaller draw being part of a larger one.

    Args:
        data: the real data.
        samples: images on each side.
        seed: of the draws, and of the generated images.
        features: `auto` (trained on the data, once), a path as `dim.features.spaces.inception_features` takes it, or `Features`.

    Raises:
        InputError: for fewer samples than classes, a class without held-out images, fewer than six images in all, or an
            unusable file of features.
    """

    def __init__(self, data: RealData, *, samples: int = SAMPLES, seed: int = 0, features: str | Features = "auto") -> None:
        spec = data.spec
        fewest = max(spec.num_classes, K_LARGEST + 1)
        if samples < fewest:
            raise InputError(f"samples is {samples}: expected at least {fewest}, an image of every class among them")
        self.data, self.seed = data, seed
        self._held_out_labels = torch.cat((data.val.labels, data.test.labels))
        parts = [torch.bincount(labels, minlength=spec.num_classes) for labels in (data.train.labels, self._held_out_labels)]
        self._counts = torch.minimum(*parts).clamp(max=samples // spec.num_classes)
        if not bool(self._counts.all()):
            missing = spec.class_names[int(self._counts.argmin())]
            raise InputError(f"class {missing!r} has no held-out image: raise data.val_fraction, or give it test images")
        if int(self._counts.sum()) < K_LARGEST + 1:
            found = f"{int(self._counts.sum())} balanced images of {spec.num_classes} classes"
            raise InputError(f"{found}: expected at least {K_LARGEST + 1}; raise samples, or give more held-out images")
        self.features = features if isinstance(features, Features) else load_features(features, data)
        self._embedded: dict[tuple[Any, ...], tuple[Tensor, Tensor]] = {}

    def draw(self, subject: SyntheticSet | Generator) -> SyntheticSet:
        """The images of a set or a generator, `subject`, that are measured: uint8 (M, C, H, W), with their labels.

        Raises:
            InputError: if the subject was made for other data, or a set lacks a class.
        """
        spec = self.data.spec
        require_same_data(subject.spec, spec)
        if isinstance(subject, Generator):
            return sample_set(subject, counts=dict(enumerate(self._counts.tolist())), seed=self.seed)
        counts = torch.minimum(self._counts, torch.bincount(subject.labels, minlength=spec.num_classes))
        if not bool(counts.all()):
            missing = spec.class_names[int(counts.argmin())]
            raise InputError(f"the set has no image of class {missing!r}: coverage needs every class; draw one without --classes")
        chosen = _choose(subject.labels, counts, self.seed, "coverage-set")
        return SyntheticSet(subject.images[chosen], subject.labels[chosen], spec, info=subject.info)

    def score(self, subject: SyntheticSet | Generator, name: str = "generator") -> CoverageScore:
        """Measure a generator, or a set.

        Args:
            subject: what is measured.
            name: of the row.

        Raises:
            InputError: see `draw`; or if there are fewer than six images.
        """
        began = time.perf_counter()
        drawn = self.draw(subject)
        row = self._row(name, self.features(drawn.images), drawn.labels, began)
        return dataclasses.replace(row, sampler=drawn.info.get("sampler", {}))

    def held_out(self, like: CoverageScore | None = None, name: str = "real, held out") -> CoverageScore:
        """Control: real images of the validation and test parts, as many of every class as in the row `like`, or
        as would be measured of a generator. `name` is that of the row."""
        began = time.perf_counter()
        counts = self._counts if like is None else torch.tensor([values["images"] for values in like.per_class])
        return self._row(name, *self._real("held out", counts), began)

    def nearest(self, subject: SyntheticSet | Generator) -> "Nearest":
        """See `nearest_real`: for the images of `subject` that `score` measures."""
        return nearest_real(self.draw(subject), self.data, self.features, seed=self.seed)

    def _row(self, name: str, generated: Tensor, labels: Tensor, began: float) -> CoverageScore:
        spec = self.data.spec
        real, real_labels = self._real("train", torch.bincount(labels, minlength=spec.num_classes))
        metrics = {"fid": frechet_distance(real, generated), **neighbour_metrics(real, generated)}
        per_class = []
        for label, class_name in enumerate(spec.class_names):
            ours, theirs = real[real_labels == label], generated[labels == label]
            values: dict[str, Any] = {"class": class_name, "images": len(ours), **dict.fromkeys(METRICS)}
            if len(ours) > ours.shape[1]:  # with fewer images than features the covariance says little
                values["fid"] = frechet_distance(ours, theirs)
            if len(ours) > K_LARGEST:
                values |= neighbour_metrics(ours, theirs)
            per_class.append(values)
        return CoverageScore(
            name=name,
            images=len(labels),
            seed=self.seed,
            features=self.features.to_dict(),
            metrics=metrics,
            expected={"density": 1.0, "coverage": expected_coverage(len(real), len(generated))},
            per_class=tuple(per_class),
            seconds=round(time.perf_counter() - began, 2),
            data=self.data.about(),
            hardware=hardware(self.features.device),
            versions=versions(),
        )

    def _real(self, part: str, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Features and labels of real images, `counts` by class; kept for the next row."""
        key = (part, *counts.tolist())
        if key not in self._embedded:
            labels = self.data.train.labels if part == "train" else self._held_out_labels
            chosen = _choose(labels, counts, self.seed, f"coverage-{part}")
            points = self.features.of(self.data.train, chosen) if part == "train" else _held_out(self.data, self.features, chosen)
            self._embedded[key] = points, labels[chosen]
        return self._embedded[key]


def _held_out(data: RealData, features: Features, indices: Tensor) -> Tensor:
    """Features of real images that nothing is trained on: int64 (N,) indices, ascending, into validation and test part."""
    in_val = indices < len(data.val)
    parts = [(data.val, indices[in_val]), (data.test, indices[~in_val] - len(data.val))]
    return torch.cat([features.of(split, chosen) for split, chosen in parts if len(chosen)])


def _choose(labels: Tensor, counts: Tensor, seed: int, purpose: str) -> Tensor:
    """Random indices of `counts[k]` images of class k, ascending."""
    chosen = []
    for label, count in enumerate(counts.tolist()):
        members = (labels == label).nonzero().squeeze(1)
        chosen.append(members[torch.randperm(len(members), generator=rng.generator(seed, purpose, label))[:count]])
    return torch.cat(chosen).sort().values


def coverage(
    subject: SyntheticSet | Generator,
    *,
    data: RealData | None = None,
    root: str | None = None,
    samples: int = SAMPLES,
    seed: int = 0,
    features: str | Features = "auto",
    device: torch.device | str = "cpu",
) -> CoverageScore:
    """Measure how much of the real data a set or a generator covers; `Coverage` also has the control and the neighbours.

    Args:
        subject: a `SyntheticSet` or a generator.
        data: the real data. Default: what the subject says it was made from.
        root: where that lies, where `data` is not given. Default: where it was found before, or DIM_DATA_ROOT.
        samples, seed, features: see `Coverage`.
        device: where to load the data that is not given.

    Raises:
        InputError: if the subject does not say what it was made from and `data` is not given, or for a bad argument.
    """
    info = subject.info if isinstance(subject, SyntheticSet) else getattr(subject, "info", {})
    data = data or real_data_of(info, root, device, subject.spec)
    name = "set" if isinstance(subject, SyntheticSet) else "generator"
    return Coverage(data, samples=samples, seed=seed, features=features).score(subject, name)


# --- nearest real images ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Nearest:
    """Generated images and their nearest real training images, in features."""

    generated: SyntheticSet
    data: RealData
    same_class: Tensor
    """int64 (M, k) indices into the training part, nearest first, of the image's own class."""
    any_class: Tensor
    """int64 (M, k), of any class."""
    same_distances: Tensor
    """float64 (M, k)."""
    any_distances: Tensor
    """float64 (M, k)."""
    held_out_distances: Tensor
    """float64 (H,): of real images that were not trained on to their nearest training image; what to expect without copies."""

    def to_dict(self) -> dict[str, Any]:
        """The two distributions as 101 quantiles each, and the part of generated images that are nearer than all but 1 % of
        the held-out ones (0.01 is to be expected, much more are copies, or images of the commonest kind only)."""
        steps = torch.linspace(0, 1, 101, dtype=torch.float64)
        ours, others = self.any_distances[:, 0].cpu(), self.held_out_distances.cpu()
        own, other = ours.quantile(steps), others.quantile(steps)
        nearer = (ours < other[1]).double().mean()
        return {"generated": own.tolist(), "held_out": other.tolist(), "nearer_than_1_percent": float(nearer)}

    def panel(self, max_classes: int = 20) -> Image.Image:
        """Two rows per class, the first image and the one that is nearest to a real image; in each the generated image, its
        nearest real ones of its own class, and those of any class."""
        rows, images = [], self.generated.images
        for label in range(min(max_classes, self.data.spec.num_classes)):
            members = (self.generated.labels == label).nonzero().squeeze(1)
            nearest = members[self.any_distances[members.to(self.any_distances.device), 0].argmin().cpu()]
            for position in (members[0], nearest):
                blank = torch.ones(1, *images.shape[1:])
                found = [self.data.train.batch(table[position].cpu())[0].cpu() for table in (self.same_class, self.any_class)]
                rows.append(torch.cat((as_unit_range(images[position][None]), blank, found[0], blank, found[1])))
        return grid(torch.stack(rows))


def nearest_real(generated: SyntheticSet, data: RealData, features: Features, *, k: int = 3, seed: int = 0) -> Nearest:
    """Find the nearest images of the whole training part, for every generated image and for as many held-out real ones.

    Args:
        generated: the images.
        data: the real data.
        features: where distances are taken.
        k: neighbours per image; less where the smallest class has fewer training images.
        seed: of the choice of held-out images.

    Raises:
        InputError: if `k` is below 1 or a class has no training image.
    """
    smallest = int(torch.bincount(data.train.labels, minlength=data.spec.num_classes).min())
    if k < 1 or smallest < 1:
        raise InputError(f"k is {k} and the smallest class has {smallest} training images: expected 1 or more of both")
    k = min(k, smallest)
    train = double(features.of(data.train))
    centre = train.mean(0)
    train, queries = train - centre, double(features(generated.images)) - centre
    train_labels, labels = data.train.labels.to(train.device), generated.labels.to(train.device)
    found: dict[str, list[Any]] = {"any": [], "same": []}
    for part, table in distances(queries, train):
        found["any"].append(table.topk(k, largest=False))
        table[train_labels != labels[part, None]] = torch.inf
        found["same"].append(table.topk(k, largest=False))
    tables = [torch.cat([part[i] for part in found[kind]]) for i in (1, 0) for kind in ("same", "any")]
    held_labels = torch.cat((data.val.labels, data.test.labels))
    counts = torch.bincount(generated.labels, minlength=data.spec.num_classes)
    chosen = _choose(held_labels, counts, seed, "coverage-held out")
    others = double(_held_out(data, features, chosen)) - centre
    nearest = torch.cat([table.amin(1) for _, table in distances(others, train)])
    return Nearest(generated, data, *tables, nearest)
