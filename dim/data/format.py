"""A format of stored sets: what one has to say of itself and to do; one file each in `dim.data.formats`."""

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

from torch import Tensor

from dim.data.whiten import Whitening
from dim.libraries import library
from dim.nets.generator import Generator
from dim.spec import DataSpec

MOST_PACKED = 1100
"""Bytes of images in a byte of a file: what deflate can do at best, and a little."""


class Format:
    """One way to store a set in a folder. A subclass writes and reads the data; `dim.data.stored` does the same for `set.json`.

    Args:
        name: by which the format was chosen, for messages.
    """

    needs: ClassVar[tuple[str, ...]] = ()
    """Modules from the extra `export` that writing a set needs; `library` imports these and no others."""
    eight_bits: ClassVar[bool] = False
    """Whether images have 8 bits per channel here: sets of float32 images are then refused."""
    by_folder: ClassVar[bool] = False
    """Whether other readers number the class folders that they find, so that sets which lack a class are refused."""
    latents: ClassVar[bool] = False
    """Whether a latent for each image and the generator that makes images of latents are stored, in place of images."""
    datasets: ClassVar[Mapping[str, str]] = {}
    """For formats of one other program: what it calls the data sets that it knows, by our names. Sets of others are refused, and
    sets with more images of one class than of another."""
    whitens: ClassVar[bool] = False
    """Whether that program sees whitened images where the set's students do."""

    def __init__(self, name: str) -> None:
        self.name = name

    def write(self, folder: Path, content: Mapping[str, Tensor], spec: DataSpec, *, generator: Generator | None = None) -> None:
        """Write the data of a set.

        Args:
            folder: an empty folder.
            content: on the CPU: `images` uint8 or float32 (N, C, H, W) (with `latents`, `latents` float32 (N, Z or Z + E)),
                `labels` int64 (N,), and for soft labels `soft` float32 (N, classes).
            spec: the data set that it stands for.
            generator: with `latents`, the one that the set was drawn from.

        Raises:
            InputError: if a library is missing.
        """
        raise NotImplementedError

    def read(self, folder: Path, spec: DataSpec, description: Mapping[str, Any]) -> dict[str, Tensor]:
        """Read the data of a set. Whether it is what was written need not be checked: its digest is compared afterwards.

        Args:
            folder: which `write` filled.
            spec: as it was written.
            description: what `set.json` says.

        Returns:
            The content, in the order, with the types and bit by bit as it was written.

        Raises:
            InputError: if a file is missing or damaged, naming it, or if a library is missing.
        """
        raise NotImplementedError

    def beside(
        self, folder: Path, content: Mapping[str, Tensor], spec: DataSpec, info: Mapping[str, Any], whitening: Whitening | None
    ) -> None:
        """Write what another program reads, beside the data. Default: nothing.

        Args:
            folder: which `write` filled.
            content: as for `write`.
            spec: the data set that it stands for, one of `datasets`.
            info: what is known of the set's making: its protocol, a learned step size.
            whitening: of the data, if the set's students see whitened images and it was given.

        Raises:
            InputError: if that program cannot take such a set.
        """

    def library(self, module: str) -> ModuleType:
        """Import one of the modules that the format `needs`.

        Raises:
            InputError: if it is not installed, naming the extra that brings it.
        """
        assert module in self.needs, f"{type(self).__name__}.needs says {self.needs}, and not {module!r}"
        return library(module, f"format {self.name!r}", "export")
