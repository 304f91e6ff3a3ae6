"""A set as one coded file: a sheet of images, labels, and what is known of the set's making."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dim.coding import container, labels, pictures
from dim.coding.pictures import Codec
from dim.errors import InputError
from dim.io import digest, reading
from dim.launch import say_once
from dim.spec import DataSpec, to_uint8

# What a file says of the set's making; digests and settings of how it was chosen stay with the folder it was made from.
_INFO = (
    *(
        "method",
        "policy",
        "seed",
        "sampler",
        "data",
        "protocol",
        "seconds",
        "policy_seconds",
        "policy_teacher",
        "teacher",
        "top_k",
    ),
    "step_size",
)
_DIGITS = 12  # of the digest of the images that a file decodes to


def code_set(content: Mapping[str, Tensor], spec: DataSpec, info: Mapping[str, Any], codec: Codec) -> bytes:
    """The content of a coded file.

    Args:
        content: `images` uint8 (N, C, H, W), or float32 in [-1, 1], of which 8 bits are kept and values outside are clipped;
            `labels` int64 (N,); for soft labels `soft` float32 (N, classes).
        spec: the data set that the images stand for.
        info: JSON about the set's making, of which the method, the data and the protocol are kept.
        codec: how images are stored.

    Raises:
        InputError: if no sheet holds so many images.
    """
    images = content["images"] if content["images"].dtype == torch.uint8 else to_uint8(content["images"])
    count = len(images)
    if count > pictures.most_images(spec):
        raise InputError(f"{count:,} images: a coded file holds at most {pictures.most_images(spec):,} of this size")
    coded = pictures.encode(images, codec)
    how, classes = labels.encode_classes(content["labels"], spec.num_classes)
    kept = {name: info[name] for name in _INFO if info.get(name) is not None}
    if seconds := info.get("generator", {}).get("seconds"):
        kept["generator"] = {"seconds": seconds}
    header = {
        "kind": "set",
        "count": count,
        "codec": [codec.name, codec.level, codec.half],
        "labels": how,
        "pixels": _mark(pictures.decode(coded, count, spec, codec)),
        "spec": spec.to_dict(),
        "info": kept,
    }
    soft = labels.encode_soft(content["soft"]) if "soft" in content else b""
    return container.pack(header, {"images": coded, "labels": classes, "soft": soft})


def read_coded_set(path: Path | str) -> tuple[dict[str, Tensor], DataSpec, dict[str, Any]]:
    """Tensors, data specification and making of a coded set; see `dim.data.stored.read_folder`.

    Raises:
        InputError: if the file is missing, damaged, holds something else, or Pillow cannot read its pictures.
    """
    header, parts = container.read(path)
    if header["kind"] != "set":
        raise InputError(f"{path} holds a coded {header['kind']}: expected a set; dim.load_generator reads generators")
    with reading(path):
        container.require(header, count=int, codec=list, labels=str, pixels=str, spec=dict, info=dict)
        spec, count, codec = DataSpec.from_dict(header["spec"]), header["count"], Codec(*header["codec"])
        images = pictures.decode(parts["images"], count, spec, codec)
        content = {
            "images": images,
            "labels": labels.decode_classes(header["labels"], parts.get("labels", b""), count, spec.num_classes),
        }
        if "soft" in parts:
            content["soft"] = labels.decode_soft(parts["soft"], count, spec.num_classes)
    if _mark(images) != header["pixels"]:
        say_once(f"dim: {path} decodes to other pixels than where it was made (another {codec.name} decoder): scores may differ")
    return content, spec, {**header["info"], "storage": str(codec)}


def _mark(images: Tensor) -> str:
    return digest({"images": images})[:_DIGITS]
