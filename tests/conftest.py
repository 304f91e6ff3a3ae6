"""Fixtures that more than one test file uses."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

# Before PyTorch is loaded: networks this small are several times slower on more threads. Child processes inherit it.
os.environ["OMP_NUM_THREADS"] = "1"

import matplotlib
import pytest

from dim.config import DataConfig
from dim.data.real import RealData, load_data
from dim.spec import DataSpec


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory) -> Iterator[Path]:
    """The user's cache folder is not touched; what is cached there is made once for all tests."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MPLCONFIGDIR", os.environ.get("MPLCONFIGDIR", matplotlib.get_cachedir()))
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


@pytest.fixture(scope="session")
def spec() -> Callable[..., DataSpec]:
    """A factory of data specifications: `spec(channels, size, classes)`; `size` is a side or (height, width)."""

    def make(channels: int = 3, size: int | tuple[int, int] = 8, classes: int = 4) -> DataSpec:
        height, width = (size, size) if isinstance(size, int) else size
        return DataSpec(
            name="toy",
            channels=channels,
            height=height,
            width=width,
            class_names=tuple(f"class {k}" for k in range(classes)),
            mean=tuple(0.4 + 0.1 * c for c in range(channels)),
            std=tuple(0.2 + 0.05 * c for c in range(channels)),
            fingerprint="0123456789abcdef",
        )

    return make


@pytest.fixture(scope="session")
def digits() -> RealData:
    """Scikit-learn's digits with the default splits."""
    return load_data(DataConfig())
