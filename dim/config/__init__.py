"""Settings: frozen dataclasses by subject, read from TOML recipes, overridden on the command line, stored as JSON.

Every field has a default and a description; `dim train --help` shows both. Unknown keys and values of a wrong type or outside
their range are refused with the nearest known name or the range. `settings` and `values` hold the mechanics.
"""

from dim.config.choices import Choices
from dim.config.data import DATASETS, DataConfig
from dim.config.emit import FORMATS, POLICIES, PROGRAMS, PURPOSES, PolicyConfig, RefineConfig
from dim.config.protocol import CORESETS, STUDENTS, FeatureConfig, ProtocolConfig, ScoringConfig
from dim.config.settings import Section, Settings, field_docs, require
from dim.config.train import (
    ADVERSARIES,
    DISTANCES,
    GENERATORS,
    OBJECTIVES,
    POOLS,
    AboutConfig,
    AdversarialConfig,
    DiscriminatorConfig,
    FitConfig,
    FlowConfig,
    GeneratorConfig,
    MatchingConfig,
    PathMatchingConfig,
    PoolConfig,
    StageConfig,
    TrainConfig,
)
from dim.config.trajectory import (
    DistillConfig,
    ExpertsConfig,
    ImagesConfig,
    LabelsConfig,
    RecordConfig,
    StepSizeConfig,
    TrajectoryConfig,
    TrajectoryRecipe,
)
from dim.config.values import flat, from_dict, to_dict, to_toml

__all__ = [
    "ADVERSARIES",
    "CORESETS",
    "DATASETS",
    "DISTANCES",
    "FORMATS",
    "GENERATORS",
    "OBJECTIVES",
    "POLICIES",
    "POOLS",
    "PROGRAMS",
    "PURPOSES",
    "STUDENTS",
    "AboutConfig",
    "AdversarialConfig",
    "Choices",
    "DataConfig",
    "DiscriminatorConfig",
    "DistillConfig",
    "ExpertsConfig",
    "FeatureConfig",
    "FitConfig",
    "FlowConfig",
    "GeneratorConfig",
    "ImagesConfig",
    "LabelsConfig",
    "MatchingConfig",
    "PathMatchingConfig",
    "PolicyConfig",
    "PoolConfig",
    "ProtocolConfig",
    "RecordConfig",
    "RefineConfig",
    "ScoringConfig",
    "Section",
    "Settings",
    "StageConfig",
    "StepSizeConfig",
    "TrainConfig",
    "TrajectoryConfig",
    "TrajectoryRecipe",
    "field_docs",
    "flat",
    "from_dict",
    "require",
    "to_dict",
    "to_toml",
]
