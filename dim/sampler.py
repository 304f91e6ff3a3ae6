"""From a generator to sets and streams: which images of which classes, in which order.

Image i of class k is the same image wherever it appears (see `dim.nets.generator`); this module only decides
which (class, index) pairs are wanted.
"""

import copy
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from einops import rearrange
from torch import Tensor

from dim.chunks import require_memory
from dim.classes import whole_number
from dim.data.synthetic import SyntheticSet
from dim.errors import InputError, nearest
from dim.io import digest
from dim.nets.generator import Generator, require_generator
from dim.pictures import grid
from dim.processes import ALONE, Processes
from dim.spec import DataSpec, as_unit_range

_BESIDE_IMAGE = 64  # bytes: labels, indices, and their sorting


class Ranked(Protocol):
    """A choice among the images of every class, as `dim.emit.policy.Ranking` makes it."""

    about: dict[str, Any]

    def require(self, ipc: int) -> None:
        """Raise InputError if a class has fewer images."""
        ...

    def numbers_of(self, labels: Tensor, places: Tensor) -> Tensor:
        """int64 (B,) classes and (B,) places in their rankings -> int64 (B,) numbers of the generator's images."""
        ...

    def latents_of(self, labels: Tensor, places: Tensor) -> Tensor | None:
        """The same -> float32 (B, Z or Z + E) latents, if they are not those of the images' numbers."""
        ...


def request(
    spec: DataSpec,
    *,
    ipc: int | None = None,
    counts: Mapping[int | str, int] | None = None,
    classes: Sequence[int | str] | None = None,
) -> tuple[Tensor, Tensor]:
    """Labels and indices of a set, ordered by index and then by class, so that smaller sets are a beginning of larger ones.

    Args:
        spec: the data.
        ipc: images per class, 1 or more; or
        counts: images by class, which are numbers or names.
        classes: only these classes (with `ipc`). Default: all.

    Returns:
        int64 (N,) labels and int64 (N,) indices.

    Raises:
        InputError: for a count below 1, an unknown class, or if not exactly one of `ipc` and `counts` is given.
    """
    if (ipc is None) == (counts is None):
        raise InputError("give either a number of images per class (ipc) or counts by class, and not both")
    if counts is None:
        one = isinstance(classes, str) or not hasattr(classes, "__iter__") or getattr(classes, "ndim", 1) == 0
        own = range(spec.num_classes) if classes is None else [classes] if one else classes
        wanted = [(label, ipc) for label in own]
        if whole_number(ipc, "ipc") < 1:
            raise InputError(f"ipc is {ipc}: expected 1 or more images per class")
    elif classes is not None:
        raise InputError("give either counts by class or a list of classes, and not both")
    elif not hasattr(counts, "items"):
        raise InputError(f"counts is {str(counts)[:60]}: expected a number of images by class, as {{0: 10, 3: 5}}")
    else:
        wanted = list(counts.items())
    if not wanted:
        raise InputError("no class was asked for: name at least one")
    counts = {}
    for given, number in wanted:
        label, count = _class_of(given, spec), whole_number(number, f"the count of class {given!r}")
        if label in counts:
            raise InputError(f"class {given!r} is there twice: expected each class once")
        if count < 1:
            raise InputError(f"class {given} has count {count}: expected 1 or more images")
        counts[label] = count
    total = sum(counts.values())
    require_memory(total * (spec.image_bytes + _BESIDE_IMAGE), f"{total:,} images", "ask for fewer (--ipc, --counts)")
    labels = torch.cat([torch.full((count,), label) for label, count in counts.items()])
    indices = torch.cat([torch.arange(count) for count in counts.values()])
    order = torch.argsort(indices * spec.num_classes + labels)
    return labels[order], indices[order]


def _class_of(given: int | str, spec: DataSpec) -> int:
    """The number of a class that is given by number or by name."""
    if isinstance(given, str):
        if given not in spec.class_names:
            raise InputError(f"unknown class {given!r}: expected a number or a name. {nearest(given, spec.class_names)}")
        return spec.class_names.index(given)
    label = whole_number(given, "a class")
    if not 0 <= label < spec.num_classes:
        raise InputError(f"class {label} is unknown: {spec.name} has classes 0 to {spec.num_classes - 1}")
    return label


def sample_set(
    generator: Generator,
    *,
    ipc: int | None = None,
    counts: Mapping[int | str, int] | None = None,
    classes: Sequence[int | str] | None = None,
    seed: int = 0,
    ranking: Ranked | None = None,
    latents: bool = False,
    batch_size: int = 2048,
    rank: int = 0,
    world: int = 1,
) -> SyntheticSet:
    """Draw a fixed set from a `generator`: uint8 (N, C, H, W) images and int64 (N,) labels, by image number and then by class.

    Sets are nested: for one seed, `ipc=10` is the first ten images of every class of `ipc=50`, bit by bit.

    Args:
        ipc, counts, classes: what to draw, see `request`.
        seed: names the set.
        ranking: take images in this order, made for the same generator and seed (`dim.emit.policy`). Default: 0, 1, 2, ...
        latents: hold a latent per image too, so that the set can be stored as those and the generator. Without a ranking that
            moves latents, images then differ from those of the plain set by rounding.
        batch_size: the most images generated at a time, fewer if they are large; it bounds memory and changes nothing else.
        rank, world: draw only every `world`-th image, beginning with number `rank`, for several processes that share the
            work; the images are those that one process would draw.

    Raises:
        InputError: see `request`; or for a batch size below 1, or a ranking with fewer images.
    """
    require_generator(generator)
    require_batch_size(batch_size)
    _require_share(rank, world)
    labels, indices = request(generator.spec, ipc=ipc, counts=counts, classes=classes)
    moved, places = None, indices
    if ranking is not None:
        ranking.require(int(indices.max()) + 1)
        moved = ranking.latents_of(labels, indices)
        indices = ranking.numbers_of(labels, indices)
    if latents and moved is None:
        moved = generator.latents(labels, indices, seed=seed).cpu()
    if moved is not None:
        indices = places  # an image's place in its class is all that is known when latents are read again
    labels, indices = labels[rank::world], indices[rank::world]
    moved = None if moved is None else moved[rank::world]
    started = time.perf_counter()
    images = generator.pixels(labels, indices, seed=seed, latents=moved, batch_size=int(batch_size))
    origin = getattr(generator, "info", {})
    info = {
        "method": "generator",
        "policy": "plain",
        "seed": seed,
        "sampler": generator.sampler,
        "generator": {"digest": digest(generator.state_dict()), "bytes": stored_bytes(generator), **origin.get("about", {})},
        "data": origin.get("data"),
        "protocol": origin.get("protocol"),
        "seconds": round(time.perf_counter() - started, 3),
        **({} if ranking is None else ranking.about),
    }
    return SyntheticSet(images, labels, generator.spec, info=info, latents=moved if latents else None)


def require_batch_size(batch_size: int) -> None:
    """Raise InputError for a number of images that cannot be generated at a time."""
    if whole_number(batch_size, "batch_size") < 1:
        raise InputError(f"batch_size is {batch_size}: expected 1 or more")


def _require_share(rank: int, world: int) -> None:
    """Raise InputError for a process that is not among so many."""
    if not 0 <= whole_number(rank, "rank") < whole_number(world, "world"):
        raise InputError(f"rank is {rank}: expected 0 to {world - 1}, as there are {world} processes")


def anchored(generator: Generator, ranking: Ranked, *, ipc: int, spread: float, seed: int = 0) -> Generator:
    """A generator that makes the images that a policy chose or refined, and after them others around those, without end.

    Its first `ipc` images of every class, whatever the seed, are the policy's; its streams and larger sets go on around their
    latents. So what a policy found serves any number of steps, and any training loop that takes a generator.

    Args:
        generator: left as it is.
        ranking: made for it with the same `seed` and at least this `ipc`.
        ipc: images per class that are taken from the ranking.
        spread: of the others, see `Generator.anchor`.
        seed: of the set that was ranked.

    Returns:
        The generator. If it was loaded (`dim.load_generator`), its `info` says which policy, and in how many seconds.

    Raises:
        InputError: if the ranking has fewer images, or the spread is negative.
    """
    labels, places = request(generator.spec, ipc=ipc)
    ranking.require(ipc)
    latents = ranking.latents_of(labels, places)
    if latents is None:
        latents = generator.latents(labels, ranking.numbers_of(labels, places), seed=seed)
    result = copy.deepcopy(generator).anchor(rearrange(latents, "(n k) z -> k n z", n=ipc), spread)
    info = getattr(generator, "info", None)
    if info is None:  # never written nor loaded: there is nothing to go on from
        return result
    earlier = info["about"]
    kept = {name: value for name, value in earlier.items() if not name.startswith(("policy", "refinement"))}
    about = {**kept, **ranking.about, "anchors": ipc, "spread": spread, "policy_seed": seed}
    about["policy_seconds"] = round(ranking.about.get("policy_seconds", 0.0) + earlier.get("policy_seconds", 0.0), 2)
    result.info = {name: value for name, value in info.items() if name != "claims"} | {"about": about}
    return result


def stored_bytes(generator: Generator) -> int:
    """Bytes of a generator's weights and buffers, or of the coded file that holds them."""
    if generator.file_bytes is not None:
        return generator.file_bytes
    return sum(tensor.numel() * tensor.element_size() for tensor in generator.state_dict().values())


def identity(subject: SyntheticSet | Generator) -> str:
    """A digest of all that a row of a set or a generator depends on beside the protocol."""
    if isinstance(subject, Generator):
        return digest(subject.state_dict(), json.dumps(subject.sampler, sort_keys=True))
    return digest(subject.content(), json.dumps(subject.info.get("step_size")))


def sample_set_together(generator: Generator, processes: Processes = ALONE, **request_and_seed) -> SyntheticSet | None:
    """`sample_set` with the work shared among processes; in a single one, the same.

    Returns:
        The whole set in the main process, None in the others.
    """
    if processes.world == 1:
        return sample_set(generator, **request_and_seed)
    wanted, _ = request(generator.spec, **{name: request_and_seed.get(name) for name in ("ipc", "counts", "classes")})
    world = min(processes.world, len(wanted))  # where there are fewer images, the last processes draw none
    own = None
    if processes.rank < world:
        own = sample_set(generator, **request_and_seed, rank=processes.rank, world=world)
    parts = processes.gather(None if own is None else (own.images, own.labels, own.latents))[:world]
    if not processes.main:
        return None

    def woven(shares: Sequence[Tensor]) -> Tensor:
        whole = shares[0].new_empty(sum(map(len, shares)), *shares[0].shape[1:])
        for rank, share in enumerate(shares):
            whole[rank::world] = share
        return whole

    images, labels, latents = zip(*parts, strict=True)
    moved = None if own.latents is None else woven(latents)
    return SyntheticSet(woven(images), woven(labels), own.spec, info=own.info, latents=moved)


def sample_grid(generator: Generator, *, per_class: int = 10, max_classes: int = 20, seed: int = 0):
    """The first images of every class (of the first classes, if there are many), one row per class, as a picture."""
    classes = min(generator.spec.num_classes, max_classes)
    labels = torch.arange(classes).repeat_interleave(per_class)
    images = generator.sample(labels, seed=seed)
    return grid(rearrange(images, "(k n) c h w -> k n c h w", k=classes))


def set_grid(subject: SyntheticSet, *, per_class: int = 10, max_classes: int = 20):
    """The first images of every class of a set (of the first classes, if there are many), one row per class, as a picture."""
    rows = []
    for label in range(min(subject.spec.num_classes, max_classes)):
        own = as_unit_range(subject.images[(subject.labels == label).nonzero()[:per_class, 0]])
        rows.append(own)
    longest = max(map(len, rows))
    return grid(torch.stack([torch.cat((row, torch.ones(longest - len(row), *subject.spec.image_shape))) for row in rows]))
