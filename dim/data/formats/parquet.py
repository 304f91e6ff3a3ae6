"""`data.parquet` as the `datasets` library writes and reads it; it needs the extra `export`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dim.data.format import MOST_PACKED, Format
from dim.data.png import from_pngs, to_pngs
from dim.errors import InputError
from dim.nets.generator import Generator
from dim.spec import DataSpec

__all__ = ["Parquet"]

_DATASETS, _PARQUET = "datasets", "pyarrow.parquet"
_FILE = "data.parquet"


class Parquet(Format):
    """See `dim.data.format.Format`: the columns `image`, `label` with the names of the classes, and `soft`."""

    needs = (_DATASETS, _PARQUET)
    eight_bits = True

    def write(self, folder: Path, content: Mapping[str, Tensor], spec: DataSpec, *, generator: Generator | None = None) -> None:
        library = self.library(_DATASETS)
        columns = {"image": [{"bytes": file} for file in to_pngs(content["images"])], "label": content["labels"].tolist()}
        features = {"image": library.Image(), "label": library.ClassLabel(names=list(spec.class_names))}
        if "soft" in content:
            columns["soft"] = content["soft"].tolist()
            features["soft"] = library.Sequence(library.Value("float32"), length=spec.num_classes)
        table = library.Dataset.from_dict(columns, features=library.Features(features)).data.table
        # The library's own metadata travels along, so it reads images and class names back as such.
        self.library(_PARQUET).write_table(table, str(folder / _FILE))

    def read(self, folder: Path, spec: DataSpec, description: Mapping[str, Any]) -> dict[str, Tensor]:
        path, parquet = folder / _FILE, self.library(_PARQUET)
        try:
            parts = parquet.ParquetFile(str(path)).metadata
            size = sum(parts.row_group(number).total_byte_size for number in range(parts.num_row_groups))
            if parts.num_rows != description["count"] or size > MOST_PACKED * path.stat().st_size:
                raise ValueError(f"it claims {parts.num_rows} rows of {size:,} bytes")
            columns = parquet.read_table(str(path)).to_pydict()
            content = {
                "images": from_pngs([image["bytes"] for image in columns["image"]], spec),
                "labels": torch.tensor(columns["label"]),
            }
        except (OSError, ValueError, KeyError, SyntaxError) as error:
            raise InputError(f"{path} is missing or damaged ({error}); make the set again") from None
        if "soft" in columns:
            content["soft"] = torch.tensor(columns["soft"])
        return content
