"""Generators by name."""

from typing import Any

from dim import rng
from dim.config import GeneratorConfig
from dim.nets.generators.base import Generator
from dim.nets.generators.dim2023 import DiM2023
from dim.nets.generators.gan import GAN
from dim.spec import DataSpec

__all__ = ["GAN", "DiM2023", "Generator", "build_generator"]


def _architecture(name: str) -> type[Generator]:
    if name == "diffusion":
        from dim.nets.generators.diffusion import Diffusion  # diffusers takes seconds to import

        return Diffusion
    if name == "pipeline":
        from dim.nets.generators.pipeline import Pipeline

        return Pipeline
    return {"dim2023": DiM2023, "gan": GAN}[name]


def build_generator(
    config: GeneratorConfig, spec: DataSpec, *, seed: int, architecture: dict[str, Any] | None = None
) -> Generator:
    """Build a generator on the CPU, with weights initialised from `seed`, or those of the pipeline that it starts from.

    Args:
        config: which generator, and its options.
        spec: the data.
        seed: of the initialisation.
        architecture: what `Generator.architecture` said: the pipeline that it once started from is not read again, and weights
            are to be loaded.

    Raises:
        InputError: if the architecture cannot make images of this size, or the pipeline to start from cannot be used.
    """
    more = {"architecture": architecture} if architecture else {}
    with rng.initialisation(seed, "generator"):
        return _architecture(config.name)(spec, config, **more)
