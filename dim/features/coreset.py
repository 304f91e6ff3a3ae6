"""Coresets: which real images to keep, by rule. The controls that a synthetic set must beat.

Every rule ranks the training images of each class, and a set of `ipc` images is the first `ipc` of every class; so smaller
sets are the beginning of larger ones, and classes are balanced. Rules rank at random, by features, or by scores from short
training runs; one file each in `dim.features.coresets`.
"""

import functools
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from dim import rng
from dim.chunks import FORWARD, JUDGED
from dim.config import CORESETS, ProtocolConfig, ScoringConfig, to_dict
from dim.data.real import EpochBatches, RealData, per_class_indices
from dim.data.splits import asked_in_parts
from dim.errors import InputError
from dim.features.classifier import train_student
from dim.features.spaces import Features, cache_name, device_of, trained_features
from dim.io import cache_folder, keep_tensors, load_tensors
from dim.loop import Progress
from dim.nets.student import judged_parts
from dim.nets.student_step import settled

End = Literal["easiest", "hardest"]
_FORMAT = 1


class Rule:
    """One way to rank the images of a class: by chance alone, by features, or by scores (`ScoreRule`)."""

    by_features: ClassVar[bool] = False
    """Whether `values` are features of the images."""
    scoring: ClassVar[ScoringConfig | None] = None
    """For a rule by scores: how classifiers are trained for them by default. None: `values` are no scores."""
    has_end: ClassVar[bool] = False
    """Whether the user may say which end of the ranking comes first."""
    stream: ClassVar[str] = "coreset"
    """The purpose (`dim.rng`) for which `order` is drawn."""

    def rank(self, values: Tensor | None, order: Tensor, count: int, end: End) -> Tensor:
        """Choose images of one class.

        Args:
            values: features float64 (n, F), or scores float64 (n,), or None, on the CPU.
            order: int64 (n,), a random permutation of the class that is another one for every seed.
            count: how many images, 1 to n.
            end: which images come first, if the rule has an end.

        Returns:
            int64 (count,), places in the class, best first; for a smaller count the beginning of that for a larger one.
        """
        raise NotImplementedError


class Training:
    """What the training of one classifier leaves for scores.

    Args:
        net: the classifier, in evaluation mode.
        data: the real data, on whose training part it was trained.
        right: bool (epochs, N), whether an image was classified correctly when it was in the batch; None if nobody watched.
    """

    def __init__(self, net: nn.Module, data: RealData, right: Tensor | None) -> None:
        self.right, self.labels = right, data.train.labels
        self._net, self._data = net, data

    @functools.cached_property
    def logits(self) -> Tensor:
        """float (N, classes) of all training images, on the CPU."""
        train, parts = self._data.train, judged_parts(self._net, len(self._data.train))
        with torch.no_grad():
            return asked_in_parts(lambda images, _: self._net(images), train, parts, largest=JUDGED, budget=FORWARD)


class ScoreRule(Rule):
    """A rule by how hard images are for small classifiers: the easiest first, or the hardest.

    Images of equal scores are in random order. A subclass says how to train (`scoring`) and what the scores are (`score`).
    """

    has_end = True
    watches: ClassVar[bool] = False
    """Whether `score` needs `Training.right`."""

    def rank(self, values: Tensor | None, order: Tensor, count: int, end: End) -> Tensor:
        # In random order first, so that the stable sort leaves equal scores in that.
        return order[torch.argsort(values[order], stable=True, descending=end == "hardest")][:count]

    def score(self, training: Training) -> Tensor:
        """float64 (N,) of all training images, on the CPU: larger for harder ones. The mean over classifiers is taken."""
        raise NotImplementedError


def rule_of(method: str | type[Rule]) -> tuple[str, Rule]:
    """Name and rule of a choice: of a name, or of a class of the caller's own.

    Raises:
        InputError: if there is no such rule, naming the nearest.
    """
    name = method if isinstance(method, str) else CORESETS.admit(method)
    return name, CORESETS.load(name)()


def methods_with(has: Callable[[type[Rule]], Any]) -> str:
    """Names of the rules that have something, for a message: `this or that`."""
    return " or ".join(name for name in CORESETS.names() if has(CORESETS.load(name)))


def select(
    data: RealData,
    ipc: int,
    method: str | type[Rule],
    *,
    seed: int = 0,
    end: End | None = None,
    features: Features | None = None,
    scoring: ScoringConfig | None = None,
    cache: Path | str | None = None,
) -> Tensor:
    """Choose `ipc` training images of every class.

    Args:
        data: the real data; only its training part is looked at.
        ipc: images per class.
        method: a name from `dim.features.coresets`, where a file describes each, or a `Rule` of your own.
        seed: of what is random: all that the rule draws, and the order among equal scores. A rule that draws nothing chooses the
            same images for every seed.
        end: for a rule that has an end: which images come first. Default: `easiest`. The published end is `hardest`, which is
            good where most of the data is kept; where few images are kept, it is worse than random (Sorscher et al. 2022).
        features: for a rule by features: what they are. Default: `trained_features(data)`.
        scoring: for a rule by scores: how classifiers are trained. Default: the rule's own.
        cache: folder of trained features and scores. Default: the user's, see `dim.io.cache_folder`.

    Returns:
        int64 (ipc * classes,) indices into the training part, ordered by rank and then by class: for one seed, a smaller
        selection is the beginning of a larger one.

    Raises:
        InputError: for an unknown method, an `ipc` below 1 or above the smallest class, or an option that the method does
            not have.
    """
    return Selector(data, features=features, scoring=scoring, cache=cache, method=method).select(ipc, method, seed=seed, end=end)


class Selector:
    """Selections from one data set, which train and embed only once. See `select` for the arguments.

    Args:
        data, features, scoring, cache: see `select`.
        method: the only method that will be asked for, if that is known: then options that it does not have are refused.

    Raises:
        InputError: see `select`.
    """

    def __init__(
        self,
        data: RealData,
        *,
        features: Features | None = None,
        scoring: ScoringConfig | None = None,
        cache: Path | str | None = None,
        method: str | type[Rule] | None = None,
    ) -> None:
        if method is not None:
            name, rule = rule_of(method)
            if features is not None and not rule.by_features:
                remedy = f"give them with {methods_with(lambda kind: kind.by_features)}, or leave them out"
                raise InputError(f"coreset {name!r} has no features: {remedy}")
            if scoring is not None and rule.scoring is None:
                remedy = f"give it with {methods_with(lambda kind: kind.scoring)}, or leave it out"
                raise InputError(f"coreset {name!r} has no scoring: {remedy}")
        self.data = data
        self._features, self._scoring = features, scoring
        self._cache = None if cache is None else Path(cache)
        self._members = [(data.train.labels == label).nonzero().squeeze(1) for label in range(data.spec.num_classes)]
        self._prepared: dict[str, tuple[Tensor, dict[str, Any]]] = {}

    def require(self, ipc: int, method: str | type[Rule], end: str | None = None) -> None:
        """Raise InputError if `select` would, before anything is trained."""
        name, rule = rule_of(method)
        if end is not None and not rule.has_end:
            remedy = f"give it with {methods_with(lambda kind: kind.has_end)}, or leave it out"
            raise InputError(f"coreset {name!r} has no end {end!r}: {remedy}")
        if end not in (None, "easiest", "hardest"):
            raise InputError(f"end is {end!r}: expected 'easiest' or 'hardest'")
        per_class_indices(self.data.train.labels, ipc, self.data.spec.num_classes, seed=0)

    def select(self, ipc: int, method: str | type[Rule], *, seed: int = 0, end: End | None = None) -> Tensor:
        """See the function `select`."""
        self.require(ipc, method, end)
        name, rule = rule_of(method)
        values, _ = self._prepare(name)
        chosen = []
        for label, members in enumerate(self._members):
            order = torch.randperm(len(members), generator=rng.generator(seed, rule.stream, label))
            own = None if values is None else values[members]
            chosen.append(members[rule.rank(own, order, ipc, end or "easiest")])
        return torch.stack(chosen, dim=1).flatten()

    def about(self, method: str | type[Rule], end: End | None = None) -> dict[str, Any]:
        """What a figure must say of the method: its name and end, its features or its scoring, and the `seconds` that these
        took when they were made, None if that is not known."""
        name, rule = rule_of(method)
        described = {"method": name, **self._prepare(name)[1]}
        return {**described, "end": end or "easiest"} if rule.has_end else described

    def _prepare(self, name: str) -> tuple[Tensor | None, dict[str, Any]]:
        """What the method ranks by: features float64 (N, F), scores float64 (N,), on the CPU, or None; and what they are."""
        _, rule = rule_of(name)
        if not rule.by_features and rule.scoring is None:
            return None, {"seconds": 0.0}
        key = "features" if rule.by_features else name
        if key not in self._prepared:
            self._prepared[key] = self._embed() if rule.by_features else self._score(name, self._scoring or rule.scoring)
        return self._prepared[key]

    def _embed(self) -> tuple[Tensor, dict[str, Any]]:
        features = self._features or trained_features(self.data, cache=self._cache)
        started = time.perf_counter()
        points = features.of(self.data.train).cpu().double()
        seconds = None if features.seconds is None else round(features.seconds + time.perf_counter() - started, 2)
        return points, {"features": features.to_dict(), "seconds": seconds}

    def _score(self, name: str, config: ScoringConfig) -> tuple[Tensor, dict[str, Any]]:
        _, steps, batch = _length(config, len(self.data.train))
        work = {"steps": steps * config.runs, "batch": batch}
        config = settled(config, config.student, self.data.spec, device_of(self.data), **work)  # scores of either are told apart
        scores, seconds = _kept_scores(self.data, name, config, self._cache)
        return scores, {"scoring": to_dict(config), "seconds": seconds}


def row_name(method: str | type[Rule], end: str | None = None) -> str:
    """What a row of such images is called: the method and, if it has one, the end, as in `easiest METHOD real`."""
    name, rule = rule_of(method)
    return " ".join([*([end or "easiest"] if rule.has_end else []), name, "real"])


# --- scores ------------------------------------------------------------------------------------------------------------------


def _kept_scores(data: RealData, method: str, config: ScoringConfig, cache: Path | None) -> tuple[Tensor, float]:
    """Scores of all training images, float64 (N,), and the seconds they took; from the cache folder if they are there."""
    spec = data.spec
    settings = f"{_FORMAT} {method} {spec.fingerprint} {spec.image_shape} {sorted(to_dict(config).items())}"
    path = (
        cache_folder("coresets") if cache is None else cache
    ) / f"{re.sub(r'[^A-Za-z0-9-]+', '-', method)}-{cache_name(spec, settings)}"
    try:
        tensors, about = load_tensors(path)
        if tensors["scores"].shape != (len(data.train),) or not isinstance(about["seconds"], float):
            raise InputError(f"{path} holds no scores of these images")
    except InputError:  # absent, or damaged: made again
        started = time.perf_counter()
        tensors = {"scores": _scores(data, method, config)}
        seconds = round(time.perf_counter() - started, 2)
        about = {"format": _FORMAT, "kind": method, "config": to_dict(config), "spec": spec.to_dict(), "seconds": seconds}
        keep_tensors(path, tensors, about)
    return tensors["scores"], about["seconds"]


def _length(config: ScoringConfig, size: int) -> tuple[int, int, int]:
    """Epochs and steps of a classifier's training on so many images, and images in each step."""
    batch = min(config.batch_size, size)
    epochs = max(config.epochs, -(-config.min_steps * batch // size))
    return epochs, -(-epochs * size // batch), batch


def _scores(data: RealData, method: str, config: ScoringConfig) -> Tensor:
    """The mean over runs."""
    _, rule = rule_of(method)
    size, device = len(data.train), device_of(data)
    epochs, steps, batch = _length(config, size)
    protocol = ProtocolConfig(
        students=(config.student,),
        precision=config.precision,
        compile=config.compile,
        batch_size=batch,
        lr=config.lr,
        weight_decay=config.weight_decay,
        schedule=config.schedule,
        augment=config.augment,
    )
    total = torch.zeros(size, dtype=torch.float64)
    with Progress(method, steps * config.runs) as progress:
        for run in range(config.runs):
            seed = rng.fold(config.seed, "coreset-scores", run)
            batches = EpochBatches(data.train, batch, seed=seed, purpose="coreset")
            # One epoch more, since the last batch may run into it.
            right = torch.zeros(epochs + 1, size, dtype=torch.bool, device=device)

            def feed(step: int, batches: EpochBatches = batches) -> tuple[Tensor, Tensor]:
                progress.advance()
                progress.show({}, "(once for this data set; kept in the cache folder)")
                return batches.at(step)

            def note(step: int, logits: Tensor, batches: EpochBatches = batches, right: Tensor = right) -> None:
                chosen = batches.indices(step)
                epoch = torch.arange(step * batch, step * batch + batch) // size
                hit = logits.argmax(1) == data.train.labels[chosen].to(device)
                right[epoch.to(device), chosen.to(device)] = hit

            observe = {"observe": note} if rule.watches else {}
            net = train_student(config.student, feed, steps, protocol, data, seed, device, **observe)
            total += rule.score(Training(net, data, right[:-1].cpu() if rule.watches else None))
    return total / config.runs
