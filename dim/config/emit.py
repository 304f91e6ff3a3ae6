"""Which of a generator's images a set takes, and how sets and generators are stored."""

import itertools
from dataclasses import dataclass
from typing import ClassVar

from dim.config.choices import Choices
from dim.config.settings import Section, require

POLICIES = Choices("policy", "dim.emit.policies", base="dim.emit.policy:Step")
PURPOSES = Choices("purpose of refinement", "dim.emit.purposes", takes=(3, ("seed", "device")))
FORMATS = Choices("format", "dim.data.formats", base="dim.data.format:Format")
PROGRAMS = Choices("program format", "dim.programs", base="dim.program:Program")


@dataclass(frozen=True, kw_only=True)
class PolicyConfig(Section):
    """Which of a generator's images a set takes. Sets stay nested, because policies rank a fixed number of candidates per
    class."""

    choices: ClassVar = POLICIES
    selector: ClassVar = "steps"
    prefix: ClassVar = "policy."

    steps: tuple[str, ...] = ()
    """Policies, applied one after another. `refined` comes last."""
    candidates: int = 200
    """Images of every class that are ranked."""

    def __post_init__(self) -> None:
        require(self.candidates >= 1, "policy.candidates", self.candidates, "at least 1")
        require(len(set(self.steps)) == len(self.steps), "policy.steps", self.steps, "each policy once")
        for name in self.steps[:-1]:
            require(not POLICIES.load(name).moves, "policy.steps", self.steps, f"{name!r} as the last")

    @property
    def refines(self) -> bool:
        """Whether a policy moves the latents of images."""
        return any(POLICIES.load(name).moves for name in self.steps)


@dataclass(frozen=True, kw_only=True)
class RefineConfig(Section):
    """The policy `refined`: recorded experts (--teacher.folder) say how latents should move."""

    choices: ClassVar = PURPOSES
    selector: ClassVar = "by"
    prefix: ClassVar = "refine."

    by: str = "trajectory"
    """What the images should become better at."""
    blocks: tuple[int, ...] = (1, 10, 50)
    """Images per class at which a block ends. The images of a block move together, beside those of earlier blocks, which stay."""
    steps: int = 150
    """Updates of a block."""
    lr: float = 0.1
    """Adam's learning rate, which falls to 0."""
    class_vectors: bool = True
    """Give every image its own copy of the vector of its class, and move it too, where the generator has one (gan, dim2023)."""
    ages: tuple[float, ...] = (0.0, 0.3, 0.3, 0.5)
    """Ages of the experts that are asked: the youngest, then for each block the oldest; the last holds for all later blocks.
    moments: parts of the recorded path. trajectory: start points, as parts of what is left of the path before the last target."""

    def __post_init__(self) -> None:
        rising = all(low < high for low, high in itertools.pairwise((0, *self.blocks)))
        require(bool(self.blocks) and rising, "refine.blocks", self.blocks, "rising numbers of images per class")
        require(self.steps >= 1, "refine.steps", self.steps, "at least 1")
        require(self.lr > 0, "refine.lr", self.lr, "a positive number")
        low, high = self.ages[0] if self.ages else 0.0, self.ages[1:]
        inside = len(high) > 0 and all(0 <= low <= age <= 1 for age in high)
        require(inside, "refine.ages", self.ages, "two or more numbers in [0, 1], the smallest first")
