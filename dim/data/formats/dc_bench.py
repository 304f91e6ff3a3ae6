"""For DC-BENCH: `TM/<DATASET>/IPC<n>/images_best.pt` and `labels_best.pt`, as its `--method tm` reads them; and
`data.safetensors`, the set."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from dim.data.formats.safetensors import Safetensors
from dim.data.normalise import published
from dim.data.torch_files import write_torch
from dim.data.whiten import Whitening
from dim.errors import InputError
from dim.spec import DataSpec, as_unit_range

__all__ = ["DCBench"]

_IN_PARTS = ("tiny-imagenet", 50)  # which its reader finds in five files
_PARTS = 5


class DCBench(Safetensors):
    """See `dim.data.format.Format`. Images are normalised by its constants, class by class; it takes neither soft labels nor
    whitened images, and has learning rates of its own."""

    datasets: ClassVar = {"cifar10": "CIFAR10", "cifar100": "CIFAR100", "tiny-imagenet": "tinyimagenet"}

    def beside(
        self, folder: Path, content: Mapping[str, Tensor], spec: DataSpec, info: Mapping[str, Any], whitening: Whitening | None
    ) -> None:
        if "soft" in content:
            raise InputError("DC-BENCH takes a class for each image, and this set has soft labels: use --format ddranking")
        if info.get("protocol", {}).get("zca"):
            raise InputError("DC-BENCH does not whiten images, and this set's students see them whitened: use --format ddranking")
        order = content["labels"].argsort(stable=True)
        images, labels = published("dc", spec.name).apply(as_unit_range(content["images"][order])), content["labels"][order]
        ipc = len(labels) // spec.num_classes
        place = folder / "TM" / self.datasets[spec.name] / f"IPC{ipc}"
        place.mkdir(parents=True)
        if (spec.name, ipc) == _IN_PARTS:
            for number, (some, own) in enumerate(zip(images.chunk(_PARTS), labels.chunk(_PARTS), strict=True)):
                write_torch(place / f"images_best_{number}.pt", some.clone())
                write_torch(place / f"labels_best_{number}.pt", own.clone())
        else:
            write_torch(place / "images_best.pt", images)
            write_torch(place / "labels_best.pt", labels)
