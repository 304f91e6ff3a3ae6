"""Image files whose labels stand in a file beside them: JSON lines, CSV, or StyleGAN's dataset.json."""

from pathlib import Path

from dim.config import DataConfig
from dim.config.data import SplitOptions
from dim.data.files import require_resolution, require_root
from dim.data.items import Items
from dim.data.labels import labelled_items
from dim.data.parts import read_parts

__all__ = ["listed"]


def listed(config: DataConfig) -> tuple[Items, Items | None, Items | None]:
    """Images below the root, named with their labels in its `metadata.jsonl`, `metadata.csv`, `labels.csv` or `dataset.json`; or
    such a file and images in each of `train/`, `test/` and `val/`, under all names that `folder` takes for them."""
    require_resolution(config)

    def read(part: Path, names: tuple[str, ...] | None = None) -> Items:
        return labelled_items(part, config, names)

    return read_parts(require_root(config), read, listed=True)


listed.Options = SplitOptions
listed.shape = (3, None, 2)  # as of `folder`
