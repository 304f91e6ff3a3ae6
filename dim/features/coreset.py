"""Coresets: which real images to keep, by rule. The controls that a synthetic set must beat.

Every rule ranks the training images of each class, and a set of `ipc` images is the first `ipc` of every class; so smaller
sets are the beginning of larger ones, and classes are balanced. Rules: at random; herding and k-center greedy in a feature
space; forgetting events and EL2N from short training runs.
"""

import time
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from dim import rng
from dim.config import ProtocolConfig, ScoringConfig, to_dict
from dim.data.real import EpochBatches, RealData, per_class_indices
from dim.errors import InputError, nearest
from dim.features.classifier import train_student
from dim.features.spaces import Features, cache_folder, cache_name, device_of, trained_features
from dim.io import load_tensors, save_tensors
from dim.loop import Progress

Method = Literal["random", "herding", "k-center", "forgetting", "el2n"]
End = Literal["easiest", "hardest"]
METHODS = ("random", "herding", "k-center", "forgetting", "el2n")
BY_FEATURES = ("herding", "k-center")
# Published: forgetting over the 200 epochs of a whole training; EL2N at epoch 20 of 200, mean of 10 runs. The defaults are
# shorter, so that every score costs minutes. Forgetting needs the end of training, where the learning rate falls; EL2N is
# taken early, where it does not yet.
BY_SCORES = {
    "forgetting": ScoringConfig(),
    "el2n": ScoringConfig(epochs=5, runs=3, schedule="constant"),
}
_FORMAT = 1
_BATCH = 1000


def select(
    data: RealData,
    ipc: int,
    method: Method,
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
        method: `random`; `herding` and `k-center`, see the functions of these names; `forgetting` and `el2n`, see
            `forgetting_events` and `el2n`.
        seed: of what is random: all of `random`, the first centre of `k-center`, the order among equal numbers of forgetting
            events. Herding and EL2N choose the same images for every seed.
        end: forgetting and EL2N: which images come first. Default: `easiest`. The published end is `hardest`, which is good
            where most of the data is kept; where few images are kept, it is worse than random (Sorscher et al. 2022).
        features: herding and k-center: where distances are taken. Default: `trained_features(data)`.
        scoring: forgetting and EL2N: how classifiers are trained. Default: `BY_SCORES[method]`.
        cache: folder of trained features and scores. Default: the user's, see `dim.features.spaces.cache_folder`.

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
        method: str | None = None,
    ) -> None:
        if features is not None and method is not None and method not in BY_FEATURES:
            raise InputError(f"coreset {method!r} has no features: give them with {' or '.join(BY_FEATURES)}, or leave them out")
        if scoring is not None and method is not None and method not in BY_SCORES:
            raise InputError(f"coreset {method!r} has no scoring: give it with {' or '.join(BY_SCORES)}, or leave it out")
        self.data = data
        self._features, self._scoring = features, scoring
        self._cache = None if cache is None else Path(cache)
        self._members = [(data.train.labels == label).nonzero().squeeze(1) for label in range(data.spec.num_classes)]
        self._prepared: dict[str, tuple[Tensor, dict[str, Any]]] = {}

    def require(self, ipc: int, method: str, end: str | None = None) -> None:
        """Raise InputError if `select` would, before anything is trained."""
        if method not in METHODS:
            raise InputError(f"unknown coreset {method!r}. {nearest(method, METHODS)}")
        if end is not None and method not in BY_SCORES:
            raise InputError(f"coreset {method!r} has no end {end!r}: give it with {' or '.join(BY_SCORES)}, or leave it out")
        if end not in (None, "easiest", "hardest"):
            raise InputError(f"end is {end!r}: expected 'easiest' or 'hardest'")
        per_class_indices(self.data.train.labels, ipc, self.data.spec.num_classes, seed=0)

    def select(self, ipc: int, method: Method, *, seed: int = 0, end: End | None = None) -> Tensor:
        """See the function `select`."""
        self.require(ipc, method, end)
        if method == "random":
            return per_class_indices(self.data.train.labels, ipc, self.data.spec.num_classes, seed=seed)
        values, _ = self._prepare(method)
        chosen = []
        for label, members in enumerate(self._members):
            own = values[members]
            order = torch.randperm(len(members), generator=rng.generator(seed, "coreset", label))
            if method == "herding":
                ranked = herding(own, ipc)
            elif method == "k-center":
                ranked = k_center(own, ipc, first=int(order[0]))
            else:  # in random order first, so that the stable sort leaves equal scores in that
                ranked = order[torch.argsort(own[order], stable=True, descending=end == "hardest")][:ipc]
            chosen.append(members[ranked])
        return torch.stack(chosen, dim=1).flatten()

    def about(self, method: Method, end: End | None = None) -> dict[str, Any]:
        """What a figure must say of the method: its name and end, its features or its scoring, and the `seconds` that these
        took when they were made, None if that is not known."""
        if method == "random":
            return {"method": method, "seconds": 0.0}
        described = {"method": method, **self._prepare(method)[1]}
        return {**described, "end": end or "easiest"} if method in BY_SCORES else described

    def _prepare(self, method: str) -> tuple[Tensor, dict[str, Any]]:
        """What the method ranks by: features float64 (N, F) or scores float64 (N,), on the CPU; and what they are."""
        key = "features" if method in BY_FEATURES else method
        if key not in self._prepared:
            self._prepared[key] = self._embed() if method in BY_FEATURES else self._score(method)
        return self._prepared[key]

    def _embed(self) -> tuple[Tensor, dict[str, Any]]:
        features = self._features or trained_features(self.data, cache=self._cache)
        started = time.perf_counter()
        points = features.of(self.data.train).cpu().double()
        seconds = None if features.seconds is None else round(features.seconds + time.perf_counter() - started, 2)
        return points, {"features": features.to_dict(), "seconds": seconds}

    def _score(self, method: str) -> tuple[Tensor, dict[str, Any]]:
        config = self._scoring or BY_SCORES[method]
        scores, seconds = _kept_scores(self.data, method, config, self._cache)
        return scores, {"scoring": to_dict(config), "seconds": seconds}


def row_name(method: str, end: str | None = None) -> str:
    """What a row of such images is called: `random real`, `easiest el2n real`."""
    return " ".join([*([end or "easiest"] if method in BY_SCORES else []), method, "real"])


# --- rules -------------------------------------------------------------------------------------------------------------------


def herding(points: Tensor, count: int, *, mean: Tensor | None = None) -> Tensor:
    """Herding (Welling 2009): the next point is the one that brings the mean of the chosen ones nearest to the mean of all.

    In the form without repetition of Rebuffi et al. 2017 (iCaRL, equation 4). The points are taken as they are, not scaled to
    length one, so that the mean is the one of the class.

    Args:
        points: float (N, F) of one class.
        count: how many to choose, 1 to N.
        mean: float (F,), what the mean of the chosen ones should be near. Default: the mean of all points.

    Returns:
        int64 (count,), in the order of choice.
    """
    points = points.double()
    mean, total = points.mean(0) if mean is None else mean, torch.zeros_like(points[0])
    free = torch.ones(len(points), dtype=torch.bool, device=points.device)
    chosen = []
    for number in range(1, count + 1):
        # |mean - (total + x) / number| is least for the x nearest to this:
        wanted = number * mean - total
        distance = (points - wanted).square().sum(1).masked_fill(~free, torch.inf)
        chosen.append(int(distance.argmin()))
        free[chosen[-1]] = False
        total += points[chosen[-1]]
    return torch.tensor(chosen)


def k_center(points: Tensor, count: int, *, first: int) -> Tensor:
    """K-center greedy (Gonzalez 1985; Sener & Savarese 2018, algorithm 1): the next centre is the point farthest from all so far.

    The largest distance of a point to its centre is at most twice the smallest possible one.

    Args:
        points: float (N, F) of one class.
        count: how many to choose, 1 to N.
        first: the centre to begin with.

    Returns:
        int64 (count,), in the order of choice.
    """
    points = points.double()
    chosen = [first]
    distance = torch.full_like(points[:, 0], torch.inf)
    while len(chosen) < count:
        distance = torch.minimum(distance, (points - points[chosen[-1]]).square().sum(1))
        distance[chosen[-1]] = -1  # not again, also where points coincide
        chosen.append(int(distance.argmax()))
    return torch.tensor(chosen)


def forgetting_events(right: Tensor) -> Tensor:
    """Forgetting events (Toneva et al. 2019, algorithm 1): how often an image was right in one epoch and wrong in the next.

    Args:
        right: bool (epochs, N): whether an image was classified correctly when it was in the batch.

    Returns:
        float64 (N,): events; for images that were never right, which Toneva et al. rank hardest, the number of epochs.
    """
    events = (right[:-1] & ~right[1:]).sum(0).double()
    return torch.where(right.any(0), events, float(len(right)))


def el2n(logits: Tensor, labels: Tensor) -> Tensor:
    """EL2N (Paul et al. 2021, definition 3.1): the distance of the predicted probabilities from the one-hot label.

    Args:
        logits: float (N, classes).
        labels: int64 (N,).

    Returns:
        float64 (N,) in [0, sqrt(2)].
    """
    errors = logits.double().softmax(1)
    errors[torch.arange(len(labels), device=labels.device), labels] -= 1
    return errors.norm(dim=1)


# --- scores ------------------------------------------------------------------------------------------------------------------


def _kept_scores(data: RealData, method: str, config: ScoringConfig, cache: Path | None) -> tuple[Tensor, float]:
    """Scores of all training images, float64 (N,), and the seconds they took; from the cache folder if they are there."""
    spec = data.spec
    settings = f"{_FORMAT} {method} {spec.fingerprint} {spec.image_shape} {sorted(to_dict(config).items())}"
    path = (cache_folder("coresets") if cache is None else cache) / f"{method}-{cache_name(spec, settings)}"
    try:
        tensors, about = load_tensors(path)
    except InputError:  # absent, or damaged: made again
        started = time.perf_counter()
        tensors = {"scores": _scores(data, method, config)}
        seconds = round(time.perf_counter() - started, 2)
        about = {"format": _FORMAT, "kind": method, "config": to_dict(config), "spec": spec.to_dict(), "seconds": seconds}
        save_tensors(path, tensors, about)
    return tensors["scores"], about["seconds"]


def _scores(data: RealData, method: str, config: ScoringConfig) -> Tensor:
    """The mean over runs."""
    size, device = len(data.train), device_of(data)
    batch = min(config.batch_size, size)
    epochs = max(config.epochs, -(-config.min_steps * batch // size))
    steps = -(-epochs * size // batch)
    protocol = ProtocolConfig(
        students=(config.student,),
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

            observe = {"observe": note} if method == "forgetting" else {}
            net = train_student(config.student, feed, steps, protocol, data, seed, device, **observe)
            if method == "forgetting":
                total += forgetting_events(right[:-1].cpu())
            else:
                with torch.no_grad():
                    logits = torch.cat([net(data.train.batch(part)[0]).cpu() for part in torch.arange(size).split(_BATCH)])
                total += el2n(logits, data.train.labels)
    return total / config.runs
