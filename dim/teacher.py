"""Teachers: ensembles of recorded experts, or of a run's pool, that give images soft labels and say how sure they are."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dim import rng
from dim.chunks import FORWARD, chunk_size
from dim.config import PoolConfig, TrainConfig
from dim.data.real import RealData
from dim.data.synthetic import SyntheticSet
from dim.errors import InputError
from dim.io import digest, load_tensors, reading
from dim.nets.generator_file import FILE_NAME, load_generator_file
from dim.nets.student import Student, batch_statistics, fix_statistics
from dim.pool import build_pool
from dim.run_folder import CHECKPOINT, RUN, read_run, stored_config, unprefixed
from dim.spec import DataSpec, as_unit_range
from dim.trajectory.experts import Experts
from dim.trajectory.store import LAYOUT

_BLOCK = 100
_REFERENCE = 500  # images

Member = Callable[[Tensor], Tensor]


class Teacher:
    """An ensemble: the mean of its members' probabilities.

    A label depends on the image and on its place in blocks of a hundred (of large images, fewer) only, so a smaller set's labels
    are, bit by bit, the beginning of a larger one's (on one machine, with one number of threads).

    Args:
        name: what the members are.
        members: float32 (B, C, H, W) images in [-1, 1] -> (B, K) logits.
        spec: the data that they classify.
        bytes: of the members' weights, which a stream of soft labels needs.
        device: where they are evaluated.
        temperature: logits are divided by it.
        top_k: keep so many of the largest probabilities of an image, which then sum to 1; 0: all.

    Raises:
        InputError: for no member, a temperature that is not positive, or `top_k` outside 0 to K.
    """

    def __init__(
        self,
        name: str,
        members: Sequence[Member],
        spec: DataSpec,
        *,
        bytes: int = 0,
        device: torch.device | str = "cpu",
        temperature: float = 1.0,
        top_k: int = 0,
    ) -> None:
        if not members:
            raise InputError(f"{name} has no member to ask: expected at least one")
        if not temperature > 0:
            raise InputError(f"temperature is {temperature}: expected a positive number")
        if not 0 <= top_k <= spec.num_classes:
            raise InputError(f"top_k is {top_k}: expected 0 (all) to {spec.num_classes} classes")
        self._name, self.members, self.spec, self.device = name, list(members), spec, torch.device(device)
        self.temperature, self.top_k, self.bytes = temperature, top_k, bytes

    @property
    def name(self) -> str:
        """What labels come from, as scores say it."""
        top = f", top {self.top_k}" if self.top_k else ""
        return f"{self._name}, temperature {self.temperature:g}{top}"

    @property
    def label_bytes(self) -> int:
        """Stored bytes of an image's label: four per probability, and the class of each where only some are kept."""
        return self.spec.soft_label_bytes(self.top_k)

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """What every member says: (N, C, H, W) `images`, float in [-1, 1] or uint8, on any device -> float32 (members, N, K), on
        the teacher's."""
        parts, size = [], chunk_size(4 * self.spec.image_bytes, _BLOCK, FORWARD)
        for block in images.split(size):
            block = as_unit_range(block)
            padded = torch.cat((block, block.new_zeros(size - len(block), *block.shape[1:]))).to(self.device)
            parts.append(torch.stack([member(padded).float()[: len(block)] for member in self.members]))
        return torch.cat(parts, dim=1)

    def labels(self, images: Tensor) -> Tensor:
        """Soft labels: (N, C, H, W) `images`, float in [-1, 1] or uint8 -> float32 (N, K) probabilities, on its device."""
        return self.soften(self.logits(images))

    def soften(self, logits: Tensor) -> Tensor:
        """`logits` (members, N, K) -> probabilities (N, K), with the temperature, averaged, and cut to the largest."""
        probabilities = (logits / self.temperature).softmax(2).mean(0)
        if self.top_k:
            largest = probabilities.topk(self.top_k, dim=1)
            kept = torch.zeros_like(probabilities).scatter(1, largest.indices, largest.values)
            probabilities = kept / kept.sum(1, keepdim=True)
        return probabilities

    def confidence(self, images: Tensor, labels: Tensor) -> Tensor:
        """Mean probability of the class, without temperature: (N, C, H, W) `images`, int64 (N,) `labels` -> float32 (N,) in
        [0, 1]."""
        probabilities = F.softmax(self.logits(images), dim=2).mean(0)
        return probabilities.gather(1, labels.to(probabilities.device)[:, None]).squeeze(1)


def with_soft_labels(subject: SyntheticSet, teacher: Teacher) -> SyntheticSet:
    """The same images with a teacher's labels; the classes stay known.

    Args:
        subject: a set, which is left as it is.
        teacher: of the same data.

    Returns:
        A set of the same images, with float32 (N, K) probabilities in `soft` and the teacher's name in `info`.
    """
    info = {**subject.info, "teacher": teacher.name, "top_k": teacher.top_k}
    info.pop("claims", None)  # which are of the other labels
    soft = teacher.labels(subject.images)
    return SyntheticSet(subject.images, subject.labels, subject.spec, soft=soft, info=info, latents=subject.latents)


def load_teacher(
    folder: Path | str,
    data: RealData | DataSpec,
    *,
    age: float = 1.0,
    temperature: float = 1.0,
    top_k: int = 0,
    device: torch.device | str = "cpu",
) -> Teacher:
    """A teacher from a folder: all experts of a store, or all members of the pool that a run ended with.

    Args:
        folder: made by `dim experts`, or by `dim train` with a pool that was trained.
        data: the real data, natural images; experts of natural images need its specification only.
        age: of experts, as a part of the recorded path in [0, 1].
        temperature, top_k: see `Teacher`.
        device: where to evaluate.

    Raises:
        InputError: if the folder holds neither, or models of other data, or for a value out of range.
    """
    folder = Path(folder)
    spec = data if isinstance(data, DataSpec) else data.spec
    settings: dict[str, Any] = {"device": device, "temperature": temperature, "top_k": top_k}
    if (folder / LAYOUT).is_file():
        if not 0 <= age <= 1:
            raise InputError(f"age is {age}: expected a part of the recorded path in [0, 1]")
        members, size, mark = _experts(folder, data, age, device)
        return Teacher(f"{len(members)} experts ({mark}) at {100 * age:g} % of their path", members, spec, bytes=size, **settings)
    if (folder / RUN).is_file():
        if age != 1:
            raise InputError(f"age is {age} and {folder} is a run, whose pool has the ages that it has: expected 1, or experts")
        members, images = _pool(folder, spec, device)
        mark = digest({f"{place}.{name}": value for place, net in enumerate(members) for name, value in net.state_dict().items()})
        size = sum(value.numel() * value.element_size() for net in members for value in net.state_dict().values())
        name = f"pool of {len(members)} models of {images} images ({mark[:8]})"
        return Teacher(name, members, spec, bytes=size, **settings)
    raise InputError(f"{folder} is no teacher: expected a folder made by 'dim experts', or a run made by 'dim train'")


def _experts(folder: Path, data: RealData | DataSpec, age: float, device: torch.device | str) -> tuple[list[Member], int, str]:
    experts = Experts(folder, data, device)
    network = experts.network

    def member(theta: Tensor) -> Member:
        return lambda images: network.logits(theta, experts.seen(images))

    members = [member(path.theta(age * path.last).to(device)) for path in experts.paths]
    return members, 4 * network.size * len(members), experts.digest[:8]


def _pool(folder: Path, spec: DataSpec, device: torch.device | str) -> tuple[list[Student], str]:
    """The members, and which images they were trained on. Those that normalise by the statistics of a batch get the statistics of
    images that the run's generator draws, so that a label depends on its image alone."""
    run = read_run(folder)
    if run["spec"]["fingerprint"] != spec.fingerprint:
        there, here = run["spec"]["name"], spec.name
        raise InputError(f"{folder} was trained on other data ({there}, now {here}): expected the same data set and split")
    config: PoolConfig = stored_config(TrainConfig, run, folder).pool
    if config.source == "experts":
        raise InputError(f"{folder} had recorded experts as its pool: name their folder ({config.experts}) as the teacher")
    tensors, _ = load_tensors(folder / CHECKPOINT, device)
    pool = build_pool(config, RealData(spec, None, None, None), seed=0, device=device, steps_per_epoch=1)
    with reading(folder / CHECKPOINT):
        pool.load(unprefixed("pool", tensors))
    members = [pool.slots[slot].net for slot in sorted(pool.slots)]
    if any(map(batch_statistics, members)):
        made = load_generator_file(folder / FILE_NAME, device)
        order = torch.randperm(max(_REFERENCE, spec.num_classes), generator=rng.generator(0, "teacher-statistics"))
        drawn = made.images(order % spec.num_classes, order // spec.num_classes, seed=0).to(device)
        for net in members:
            fix_statistics(net, drawn.split(chunk_size(4 * spec.image_bytes, _REFERENCE, FORWARD)))
    return members, config.images
