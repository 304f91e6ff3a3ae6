"""For DD-Ranking: `images.pt`, `labels.pt` and perhaps `lr.pt`, as its evaluators take them; and `data.safetensors`, the set."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from dim.data.formats.safetensors import Safetensors
from dim.data.normalise import published
from dim.data.torch_files import write_torch
from dim.data.whiten import Whitening
from dim.errors import InputError
from dim.spec import DataSpec, as_unit_range

__all__ = ["DDRanking"]

_LEAST = 1e-12  # of a probability whose logarithm is written


class DDRanking(Safetensors):
    """See `dim.data.format.Format`. Its evaluators take images without labels, as many of each class, class by class, as students
    see them. Labels are classes, or for soft labels logits, whose softmax its losses take."""

    datasets: ClassVar = {"cifar10": "CIFAR10", "cifar100": "CIFAR100", "tiny-imagenet": "TinyImageNet"}
    whitens = True

    def beside(
        self, folder: Path, content: Mapping[str, Tensor], spec: DataSpec, info: Mapping[str, Any], whitening: Whitening | None
    ) -> None:
        order = content["labels"].argsort(stable=True)
        images = as_unit_range(content["images"][order])
        if info.get("protocol", {}).get("zca"):
            if whitening is None:
                raise InputError("this set's students see whitened images (protocol.zca): use 'dim export --to ddranking'")
            seen = torch.cat([whitening.whiten(part) for part in images.split(1024)])
        else:
            seen = published("mtt", spec.name).apply(images)
        labels = content["labels"][order] if "soft" not in content else content["soft"][order].clamp(min=_LEAST).log()
        write_torch(folder / "images.pt", seen)
        write_torch(folder / "labels.pt", labels)
        if info.get("step_size") is not None:
            write_torch(folder / "lr.pt", torch.tensor(float(info["step_size"])))
