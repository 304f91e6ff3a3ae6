"""DiM distillation: distill an image data set into a generator, and emit training sets of any size from it.

The main objects, all importable from here: `load_generator`, `sample_set`, `load_set`, `SyntheticSet`,
`GeneratedDataset`, `GeneratedLoader`, `evaluate`, `coverage`, `fit`, `load_data`, `load_recipe`; for trajectory matching
`record`, `distill` and `dim.trajectory.hypergradient`.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

# Loaded on first use, so that `dim --help` does not wait for PyTorch.
_HOMES = {
    "Coverage": "dim.score.coverage",
    "CoverageScore": "dim.score.coverage",
    "DataSpec": "dim.spec",
    "Evaluator": "dim.score.evaluate",
    "ExpertStore": "dim.trajectory.store",
    "GeneratedDataset": "dim.data.loader",
    "GeneratedLoader": "dim.data.loader",
    "Generator": "dim.nets.generator",
    "InputError": "dim.errors",
    "Score": "dim.score.record",
    "SyntheticSet": "dim.data.synthetic",
    "Teacher": "dim.teacher",
    "TrainConfig": "dim.config",
    "TrajectoryRecipe": "dim.config",
    "anchored": "dim.sampler",
    "coverage": "dim.score.coverage",
    "distill": "dim.runs.distill",
    "evaluate": "dim.score.evaluate",
    "fit": "dim.runs.train",
    "from_dataset": "dim.data.real",
    "load_data": "dim.data.real",
    "load_generator": "dim.hub",
    "load_recipe": "dim.recipes.load",
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
