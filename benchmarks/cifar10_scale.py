"""How large `cifar10.py` makes everything: as declared, or tiny, so that the whole path can be tried without CIFAR-10."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from common import changed, epochs

from dim.config import (
    GENERATORS,
    DataConfig,
    FeatureConfig,
    ProtocolConfig,
    RefineConfig,
    TrainConfig,
    TrajectoryRecipe,
)
from dim.data.real import RealData, per_class_indices
from dim.data.splits import ArraySplit, Split

STUDENTS = {
    "convnet": "convnet",
    "resnet18": "resnet18",
    "vgg11": "vgg11",
    "alexnet": "alexnet",
    "vit": "timm:vit_tiny_patch16_224:patch_size=4,depth=6",
}
"""What the table calls them, and as `dim evaluate` names them."""


@dataclass(frozen=True)
class Scale:
    """Everything as declared."""

    name: str = "full"
    tiny: bool = False
    students: Mapping[str, str] = field(default_factory=lambda: STUDENTS)
    refinement: RefineConfig = field(default_factory=lambda: RefineConfig(precision="bf16"))
    candidates: int = 200
    """Images of a class that policies rank."""
    anchors: int = 50
    """Refined images per class around which a generator streams."""
    features: FeatureConfig | None = None
    """How the classifier is trained whose features policies, coresets and coverage take. Default: the toolkit's."""
    samples: int = 5000
    """Images on each side of coverage."""
    seeds: int | None = None
    """Students of every cell. Default: as declared."""
    timing: Mapping[str, int] = field(default_factory=lambda: {"one": 8, "two": 16, "skipped": 4})
    """Lengths of the runs that time a step of stage two."""

    def source(self, data: DataConfig) -> DataConfig:
        """Which data."""
        return data

    def images(self, data: RealData) -> RealData:
        """How many of them."""
        return data

    def generator(self, config: TrainConfig, data: RealData) -> TrainConfig:
        """How a generator is trained."""
        return config

    def trajectory(self, recipe: TrajectoryRecipe) -> TrajectoryRecipe:
        """How experts are recorded and sets distilled."""
        return recipe

    def experts(self, changes: dict[str, Any]) -> dict[str, Any]:
        """Changes of a recipe's experts."""
        return changes

    def distillation(self, changes: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """Changes of a recipe's sections."""
        return changes

    def protocol(self, protocol: ProtocolConfig) -> ProtocolConfig:
        """How students are trained."""
        return protocol


FULL = Scale()


class Tiny(Scale):
    """scikit-learn's digits at 16x16x3, few of them; networks of few channels; one step, or a few, of everything."""

    def __init__(self) -> None:
        refinement = RefineConfig(blocks=(1, 2), steps=1, student_steps=1, span=(1.0,), compile="off")
        small = {"convnet": "convnet:width=4", "vit": "timm:vit_tiny_patch16_224:patch_size=4,embed_dim=24,depth=1,num_heads=2"}
        super().__init__(
            name="tiny",
            tiny=True,
            students={name: small.get(name, f"{name}:width=4") for name in STUDENTS},
            refinement=refinement,
            candidates=60,
            anchors=50,
            features=FeatureConfig(student="convnet:width=4", max_steps=2),
            samples=60,
            seeds=2,
            timing={"one": 2, "two": 2, "skipped": 1},
        )

    def source(self, data: DataConfig) -> DataConfig:
        return DataConfig(dataset="digits", resolution=16, channels=3)

    def images(self, data: RealData) -> RealData:
        def few(split: Split, per_class: int) -> Split:
            chosen = per_class_indices(split.labels, per_class, data.spec.num_classes, seed=0)
            return ArraySplit(split.images[chosen], split.labels[chosen], split.images.device)

        return RealData(data.spec, few(data.train, 60), few(data.val, 6), few(data.test, 6))

    def generator(self, config: TrainConfig, data: RealData) -> TrainConfig:
        step = epochs(1, 4, data)
        changes: dict[str, dict[str, Any]] = {
            "generator": {"width": 4},
            "stage_one": {"epochs": 2 * step, "batch_size": 4},
            "stage_two": {"epochs": step, "batch_size": 4},
            "pool": {"students": ("convnet:width=4",), "upkeep_steps": 1},
            "fit": {"sample_steps": 0, "log_steps": 1, "compile": "off", "precision": "no"},
        }
        if "discriminator" in GENERATORS.load(config.generator.name).settings:
            changes["discriminator"] = {"width": 4}
        return changed(config, changes)

    def trajectory(self, recipe: TrajectoryRecipe) -> TrajectoryRecipe:
        changes = {
            "experts": {"count": 1, "batch_size": 600, "compile": "off"},
            "trajectory": {"steps": 2, "compile": "off"},
            "images": {"init": "real"},  # such experts classify nothing correctly
            "distill": {"iterations": 1},
            "protocol": {"epochs": 1},
        }
        return changed(dataclasses.replace(recipe, student="convnet:width=4"), changes)

    def experts(self, changes: dict[str, Any]) -> dict[str, Any]:
        return {**changes, "count": 1, **({"epochs": 4, "every": 1.0} if "every" in changes else {})}

    def distillation(self, changes: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        kept = {section: values for section, values in changes.items() if section != "distill"}
        return {**kept, "trajectory": {**kept.get("trajectory", {}), "steps": 2}}

    def protocol(self, protocol: ProtocolConfig) -> ProtocolConfig:
        return dataclasses.replace(protocol, epochs=1)
