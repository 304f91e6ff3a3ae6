"""`data.safetensors` with latents, labels and soft labels, and `generator.safetensors`, which makes the images."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from dim.data.formats.safetensors import Safetensors
from dim.nets.generator import Generator
from dim.nets.generator_file import FILE_NAME, save_again
from dim.spec import DataSpec

__all__ = ["Latents"]


class Latents(Safetensors):
    """See `dim.data.format.Format`: what is read has no images; `dim.data.synthetic.load_set` lets the generator make them."""

    latents = True

    def write(self, folder: Path, content: Mapping[str, Tensor], spec: DataSpec, *, generator: Generator | None = None) -> None:
        super().write(folder, content, spec)
        save_again(folder / FILE_NAME, generator)
