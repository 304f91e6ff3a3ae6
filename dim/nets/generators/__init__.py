"""Generators by name."""

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
    return {"dim2023": DiM2023, "gan": GAN}[name]


def build_generator(config: GeneratorConfig, spec: DataSpec, *, seed: int) -> Generator:
    """Build a generator with weights initialised from `seed`, on the CPU.

    Raises:
        InputError: if the architecture cannot make images of this size.
    """
    with rng.initialisation(seed, "generator"):
        return _architecture(config.name)(spec, config)
