"""What `cifar10.py` trains students on: real images, streams and sets of generators, distilled and coded sets."""

import copy
import dataclasses
import functools
import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from cifar10_shop import GAN, Workshop
from PIL import Image
from torch import Tensor

from dim.config import PolicyConfig, ProtocolConfig, from_dict, to_dict
from dim.data.real import per_class_indices
from dim.data.synthetic import SyntheticSet, load_set
from dim.emit.policy import Policy
from dim.features.coreset import Selector
from dim.features.spaces import trained_features
from dim.hub import load_generator
from dim.nets.generator import Generator
from dim.recipes.load import load_recipe
from dim.sampler import sample_set
from dim.score.coverage import Coverage
from dim.score.evaluate import Evaluator
from dim.score.record import Score
from dim.spec import as_unit_range, to_uint8
from dim.teacher import Teacher, load_teacher, with_soft_labels

TEACHER = "experts"
"""The production that gives soft labels, and that refines."""
LONGEST = 5 * 8000
"""Steps of a long row, by which all students of the table are computed alike."""


# --- what all cells share ----------------------------------------------------------------------------------------------------


class Bench:
    """Evaluators, teacher and subjects of one call; each is made when it is first asked for.

    Args:
        shop: where productions lie.
        results: folder of finished rows.
        split: part of the data to score on.
    """

    def __init__(self, shop: Workshop, results: Path, split: str = "test") -> None:
        self.shop, self.results, self.split = shop, results, split
        self._evaluators: dict[str, Evaluator] = {}
        self._generators: dict[tuple[str, str], Generator] = {}

    def protocol(self) -> ProtocolConfig:
        """How students are trained, unless a set brings a protocol of its own."""
        return load_recipe(GAN).protocol

    def evaluator(self, student: str, seed: int, protocol: ProtocolConfig | None = None) -> Evaluator:
        """For one student of one seed."""
        protocol = self.shop.scale.protocol(protocol or self.protocol())
        protocol = dataclasses.replace(protocol, students=(self.shop.scale.students[student],))
        key = str(to_dict(protocol))
        if key not in self._evaluators:
            evaluator = Evaluator(self.shop.data, protocol, device=self.shop.device, split=self.split, selector=self.selector)
            evaluator.expect(0 if self.shop.scale.tiny else LONGEST)
            self._evaluators[key] = evaluator
        one = copy.copy(self._evaluators[key])  # what all seeds share, such as whitened data, is not made again
        one.seeds = (seed,)
        return one

    @functools.cached_property
    def selector(self) -> Selector:
        """Chooses real images."""
        data, own = self.shop.data, self.shop.scale.features
        return Selector(data, features=None if own is None else trained_features(data, own))  # by default, when they are needed

    @functools.cached_property
    def coverage(self) -> Coverage:
        """Measures generators."""
        data = self.shop.data
        return Coverage(data, samples=self.shop.scale.samples, features=trained_features(data, self.shop.scale.features))

    @functools.cached_property
    def teacher(self) -> Teacher:
        """Gives soft labels."""
        return load_teacher(self.shop.folder(TEACHER), self.shop.data, device=self.shop.device)

    def generator(self, production: str, sampler: dict[str, Any] | None = None) -> Generator:
        """One that lies there."""
        key = (production, str(sampler))
        if key not in self._generators:
            loaded = load_generator(self.shop.folder(production), self.shop.device)
            self._generators[key] = loaded.configure(**sampler) if sampler else loaded
        return self._generators[key]


# --- subjects ----------------------------------------------------------------------------------------------------------------


class Wanted(Protocol):
    """What a subject must know of a cell."""

    ipc: int
    student: str

    def teacher(self, bench: Bench) -> Teacher | None:
        """Who labels the images."""
        ...


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What students are trained on."""

    key: str
    """In names of cells."""
    needs: tuple[str, ...] = ()
    """Productions."""
    draw_seconds: float = 0.0
    """Estimated seconds to draw an image."""
    over: str = "students"
    """What another seed makes another: `students`; or `sets`, of which each has a student."""

    def score(self, bench: Bench, cell: "Wanted", seed: int) -> Score:
        """Accuracy of the student of one seed."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Oracle(Subject):
    """All real data, at the steps of the stream."""

    def score(self, bench: Bench, cell: "Wanted", seed: int) -> Score:
        return bench.evaluator(cell.student, seed).oracle(cell.ipc, self.key, teacher=cell.teacher(bench))[0]


@dataclass(frozen=True, kw_only=True)
class Coreset(Subject):
    """Real images, chosen by a rule; by one that draws at random, other ones for every seed."""

    method: str

    def score(self, bench: Bench, cell: "Wanted", seed: int) -> Score:
        return bench.evaluator(cell.student, seed).coreset(cell.ipc, self.method, self.key, teacher=cell.teacher(bench))[0]


@dataclass(frozen=True, kw_only=True)
class AtProtocol(Subject):
    """Random real images, other ones for every seed, at the protocol by which a distilled set is scored."""

    recipe: str

    def score(self, bench: Bench, cell: "Wanted", seed: int) -> Score:
        recipe = load_recipe(self.recipe)
        protocol = dataclasses.replace(recipe.protocol, zca=recipe.zca)
        return bench.evaluator(cell.student, seed, protocol).random_real(cell.ipc, self.key)[0]


@dataclass(frozen=True, kw_only=True)
class Stream(Subject):
    """Fresh images of a generator, the first of `needs`."""

    sampler: dict[str, Any] = field(default_factory=dict)
    half: bool = False
    """Its weights are stored in bfloat16."""

    def score(self, bench: Bench, cell: "Wanted", seed: int) -> Score:
        generator = bench.generator(self.needs[0], self.sampler)
        evaluator = bench.evaluator(cell.student, seed)
        if not self.half:
            return evaluator.stream(generator, cell.ipc, self.key, teacher=cell.teacher(bench))[0]
        rounded = copy.deepcopy(generator)
        for value in rounded.state_dict().values():
            if value.is_floating_point():
                value.copy_(value.bfloat16())
        score = evaluator.stream(rounded, cell.ipc, self.key)[0]
        return dataclasses.replace(score, bytes={"generator": score.bytes["generator"] // 2})


class Stored(Subject):
    """A set that is drawn or made for every seed, or once."""

    def drawn(self, bench: Bench, ipc: int, seed: int) -> SyntheticSet:
        """The set; its size may be another where its images are smaller."""
        raise NotImplementedError

    def protocol(self, subject: SyntheticSet) -> ProtocolConfig | None:
        """One that the set brings."""
        return None

    def score(self, bench: Bench, cell: "Wanted", seed: int) -> Score:
        subject = self.drawn(bench, cell.ipc, seed if self.over == "sets" else 0)
        teacher = cell.teacher(bench)
        subject = subject if teacher is None else with_soft_labels(subject, teacher)
        return bench.evaluator(cell.student, seed, self.protocol(subject)).fixed(subject, self.key)[0]


@dataclass(frozen=True, kw_only=True)
class OneRandomSet(Stored):
    """One set of random real images."""

    def drawn(self, bench: Bench, ipc: int, seed: int) -> SyntheticSet:
        images, labels = _random_real(bench, ipc, seed)
        return SyntheticSet(to_uint8(images), labels, bench.shop.data.spec, info={"method": "random", "seconds": 0.0})


@dataclass(frozen=True, kw_only=True)
class Drawn(Stored):
    """A set of a generator, the first of `needs`."""

    policy: tuple[str, ...] = ()
    """Which choose its images; none: the first ones."""

    def drawn(self, bench: Bench, ipc: int, seed: int) -> SyntheticSet:
        generator = bench.generator(self.needs[0])
        if not self.policy:
            return sample_set(generator, ipc=ipc, seed=seed)
        shop, key = bench.shop, f"{self.needs[0]} {self.policy} {seed}"
        if key not in shop.rankings:
            features = trained_features(shop.data, shop.scale.features)
            config = PolicyConfig(steps=self.policy, candidates=shop.scale.candidates)
            shop.rankings[key] = Policy(config, data=shop.data, features=features).rank(generator, seed=seed)
        return sample_set(generator, ipc=ipc, seed=seed, ranking=shop.rankings[key])


@dataclass(frozen=True, kw_only=True)
class Learned(Stored):
    """A distilled set, with its protocol and its step size, stored at 8 bits."""

    def drawn(self, bench: Bench, ipc: int, seed: int) -> SyntheticSet:
        learned = load_set(bench.shop.folder(self.needs[0]))
        images = learned.images if learned.images.dtype == torch.uint8 else to_uint8(learned.images)
        return SyntheticSet(images, learned.labels, learned.spec, soft=learned.soft, info=learned.info)

    def protocol(self, subject: SyntheticSet) -> ProtocolConfig | None:
        return from_dict(ProtocolConfig, subject.info["protocol"])


@dataclass(frozen=True, kw_only=True)
class Coded(Stored):
    """As many random real images, in another form, as go into the bytes of `ipc` plain ones: at half the resolution, or as WebP.

    All classes have as many. What is counted are the bytes of the coded images and a label for each.
    """

    webp: int = 0
    """Quality of WebP; 0: half resolution, at 8 bits."""

    def drawn(self, bench: Bench, ipc: int, seed: int) -> SyntheticSet:
        spec, train = bench.shop.data.spec, bench.shop.data.train
        budget = ipc * (spec.image_bytes + spec.label_bytes) * spec.num_classes
        most = min(16 * ipc, int(torch.bincount(train.labels, minlength=spec.num_classes).min()))
        images, labels = _random_real(bench, most, seed)
        coded, size = [], 0
        for turn in to_uint8(images).split(spec.num_classes):  # an image of every class
            made = [self._coded(image) for image in turn]
            own = sum(length + spec.label_bytes for _, length in made)
            if size + own > budget:
                break
            coded, size = coded + [image for image, _ in made], size + own
        labels = labels[: len(coded)]
        return _OfBytes(torch.stack(coded), labels, spec, info={"method": self.key, "seconds": 0.0}, size=size)

    def _coded(self, image: Tensor) -> tuple[Tensor, int]:
        """A uint8 image (C, H, W) as it comes back, and its bytes."""
        if not self.webp:
            small = to_uint8(F.interpolate(as_unit_range(image[None]), scale_factor=0.5, mode="area"))
            large = F.interpolate(as_unit_range(small), scale_factor=2, mode="bicubic").clamp(-1, 1)
            return to_uint8(large)[0], small.numel()
        held = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(held, "WEBP", quality=self.webp, method=6)
        back = torch.frombuffer(bytearray(Image.open(held).convert("RGB").tobytes()), dtype=torch.uint8)
        return back.view(*image.shape[1:], 3).permute(2, 0, 1).contiguous(), held.tell()


class _OfBytes(SyntheticSet):
    """A set that is stored in another form than its images have."""

    def __init__(self, *arguments: Any, size: int, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._size = size

    def bytes_stored(self) -> dict[str, int]:
        return {"coded images and labels": self._size}


def _random_real(bench: Bench, ipc: int, seed: int) -> tuple[Tensor, Tensor]:
    train, spec = bench.shop.data.train, bench.shop.data.spec
    images, labels = train.batch(per_class_indices(train.labels, ipc, spec.num_classes, seed=seed))
    return images.cpu(), labels.cpu()
