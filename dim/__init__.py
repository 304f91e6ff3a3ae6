"""DiM distillation: distill an image data set into a generator, and emit training sets of any size from it.

The main objects, all importable from here: `load_generator`, `sample_set`, `load_set`, `SyntheticSet`,
`GeneratedDataset`, `GeneratedLoader`, `evaluate`, `coverage`, `fit`, `load_data`, `load_recipe`; for trajectory matching
`record`, `distill` and `dim.trajectory.hypergradient`.
"""

import importlib
import sys
import types
from typing import Any

__version__ = "0.1.0"

# Loaded on first use, so that `dim --help` does not wait for PyTorch.
_HOMES = {
    "Coverage": "dim.coverage",
    "CoverageScore": "dim.coverage",
    "DataSpec": "dim.spec",
    "Evaluator": "dim.evaluate",
    "ExpertStore": "dim.trajectory.store",
    "GeneratedDataset": "dim.data.loader",
    "GeneratedLoader": "dim.data.loader",
    "Generator": "dim.nets.generators",
    "InputError": "dim.errors",
    "Score": "dim.evaluate",
    "SyntheticSet": "dim.data.synthetic",
    "Teacher": "dim.teacher",
    "TrainConfig": "dim.config",
    "TrajectoryRecipe": "dim.config",
    "anchored": "dim.sampler",
    "coverage": "dim.coverage",
    "distill": "dim.distill",
    "evaluate": "dim.evaluate",
    "fit": "dim.fit",
    "from_dataset": "dim.data.real",
    "load_data": "dim.data.real",
    "load_generator": "dim.hub",
    "load_recipe": "dim.config",
    "load_set": "dim.data.synthetic",
    "load_teacher": "dim.teacher",
    "push_to_hub": "dim.hub",
    "record": "dim.trajectory.record",
    "sample_set": "dim.sampler",
    "save_pretrained": "dim.hub",
    "with_soft_labels": "dim.teacher",
}

__all__ = ["__version__", *sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'dim' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__


class _Package(types.ModuleType):
    """`dim.fit`, `dim.evaluate` and `dim.coverage` are functions; importing the modules of these names would set them."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, types.ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
