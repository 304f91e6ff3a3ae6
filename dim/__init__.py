"""DiM distillation: distill an image data set into a generator, and emit training sets of any size from it.

The main objects, all importable from here: `load_generator`, `sample_set`, `load_set`, `SyntheticSet`,
`GeneratedDataset`, `GeneratedLoader`, `evaluate`, `verify`, `coverage`, `fit`, `load_data`, `load_recipe`; for trajectory
matching `record`, `distill` and `dim.trajectory.hypergradient`.
"""

import importlib
from typing import TYPE_CHECKING, Any

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
    "ReplayMemory": "dim.replay.memory",
    "Score": "dim.score.record",
    "SyntheticSet": "dim.data.synthetic",
    "Teacher": "dim.teacher",
    "TrainConfig": "dim.config",
    "TrajectoryRecipe": "dim.config",
    "Verdict": "dim.score.verify",
    "anchored": "dim.sampler",
    "claim": "dim.score.claims",
    "coverage": "dim.score.coverage",
    "distill": "dim.runs.distill",
    "evaluate": "dim.score.evaluate",
    "export_generator": "dim.program",
    "fit": "dim.runs.train",
    "from_dataset": "dim.data.real",
    "import_set": "dim.data.published",
    "load_data": "dim.data.real",
    "load_generator": "dim.hub",
    "load_recipe": "dim.recipes.load",
    "load_set": "dim.data.synthetic",
    "load_teacher": "dim.teacher",
    "push_to_hub": "dim.hub",
    "record": "dim.trajectory.record",
    "sample_set": "dim.sampler",
    "save_pretrained": "dim.hub",
    "verify": "dim.score.verify",
    "with_soft_labels": "dim.teacher",
}

__all__ = ["__version__", *sorted(_HOMES)]

if TYPE_CHECKING:  # the same for type checkers and editors, which read no table
    from dim.config import TrainConfig as TrainConfig
    from dim.config import TrajectoryRecipe as TrajectoryRecipe
    from dim.data.loader import GeneratedDataset as GeneratedDataset
    from dim.data.loader import GeneratedLoader as GeneratedLoader
    from dim.data.published import import_set as import_set
    from dim.data.real import from_dataset as from_dataset
    from dim.data.real import load_data as load_data
    from dim.data.synthetic import SyntheticSet as SyntheticSet
    from dim.data.synthetic import load_set as load_set
    from dim.errors import InputError as InputError
    from dim.hub import load_generator as load_generator
    from dim.hub import push_to_hub as push_to_hub
    from dim.hub import save_pretrained as save_pretrained
    from dim.nets.generator import Generator as Generator
    from dim.program import export_generator as export_generator
    from dim.recipes.load import load_recipe as load_recipe
    from dim.replay.memory import ReplayMemory as ReplayMemory
    from dim.runs.distill import distill as distill
    from dim.runs.train import fit as fit
    from dim.sampler import anchored as anchored
    from dim.sampler import sample_set as sample_set
    from dim.score.claims import claim as claim
    from dim.score.coverage import Coverage as Coverage
    from dim.score.coverage import CoverageScore as CoverageScore
    from dim.score.coverage import coverage as coverage
    from dim.score.evaluate import Evaluator as Evaluator
    from dim.score.evaluate import evaluate as evaluate
    from dim.score.record import Score as Score
    from dim.score.verify import Verdict as Verdict
    from dim.score.verify import verify as verify
    from dim.spec import DataSpec as DataSpec
    from dim.teacher import Teacher as Teacher
    from dim.teacher import load_teacher as load_teacher
    from dim.teacher import with_soft_labels as with_soft_labels
    from dim.trajectory.record import record as record
    from dim.trajectory.store import ExpertStore as ExpertStore
else:

    def __getattr__(name: str) -> Any:
        if name in _HOMES:
            return getattr(importlib.import_module(_HOMES[name]), name)
        raise AttributeError(f"module 'dim' has no attribute {name!r}")

    def __dir__() -> list[str]:
        return __all__
