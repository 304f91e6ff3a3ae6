"""Generators by name."""

from dim import rng
from dim.config import GeneratorConfig
from dim.nets.generators.base import Generator
from dim.nets.generators.dim2023 import DiM2023
from dim.spec import DataSpec

GENERATORS = {"dim2023": DiM2023}

__all__ = ["GENERATORS", "DiM2023", "Generator", "build_generator"]


def build_generator(config: GeneratorConfig, spec: DataSpec, *, seed: int) -> Generator:
    """Build a generator with weights initialised from `seed`, on the CPU."""
    with rng.initialisation(seed, "generator"):
        return GENERATORS[config.name](spec, config)
