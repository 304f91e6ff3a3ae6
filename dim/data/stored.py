"""Synthetic sets on disk: a folder with `set.json` and the data in some format, one file each in `dim.data.formats`."""

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dim.config import DATASETS, FORMATS
from dim.data.format import MOST_PACKED, Format
from dim.data.formats.safetensors import save_data
from dim.data.whiten import Whitening
from dim.errors import InputError
from dim.io import digest, read_document, reading, write_document
from dim.nets.generator import Generator
from dim.outputs import atomic_folder
from dim.spec import DataSpec

DESCRIPTION = "set.json"


def format_of(choice: str | type[Format]) -> Format:
    """The format of a name, or of a class of the caller's own.

    Raises:
        InputError: if there is no such format, naming the nearest.
    """
    name = choice if isinstance(choice, str) else FORMATS.admit(choice)
    return FORMATS.load(name)(name)


def require_libraries(choice: str) -> None:
    """Raise InputError if a library that a format needs is not installed. What is no format, and so no set, needs none."""
    if choice in FORMATS.names():
        kind = format_of(choice)
        for module in kind.needs:
            kind.library(module)


def require_classes(kind: Format | type[Format], labels: Tensor, spec: DataSpec) -> None:
    """Raise InputError if a set lacks a class in whose place other readers of the format would put the next one, or if a format's
    program does not know the data set, or takes as many images of each class."""
    if kind.datasets:
        _require_known(kind, labels, spec)
    present = len(labels.unique())
    if kind.by_folder and present < spec.num_classes:
        others = " or ".join(_any_set(lambda other: not other.by_folder))
        what = f"images of {present} of {spec.num_classes} classes in folders"
        raise InputError(f"{what}: readers number the folders that they find, so labels would be others; use --format {others}")


def _any_set(fits: Callable[[type[Format]], bool]) -> list[str]:
    """Names of formats that take sets of any data, and images."""
    kinds = {name: FORMATS.load(name) for name in FORMATS.names()}
    return [name for name, kind in kinds.items() if not kind.latents and not kind.datasets and fits(kind)]


def _require_known(kind: Format | type[Format], labels: Tensor, spec: DataSpec) -> None:
    """See `require_classes`, for the format of one other program."""
    program = kind.__name__ if isinstance(kind, type) else type(kind).__name__
    known = ", ".join(kind.datasets)
    if spec.name not in kind.datasets:
        raise InputError(f"{program} does not know the data set {spec.name!r}: expected {known}")
    channels, side, classes = DATASETS.load(spec.name).shape
    if (spec.image_shape, spec.num_classes) != ((channels, side, side), classes):
        found = f"{spec.num_classes} classes of {spec.image_shape}"
        raise InputError(f"{program} has {spec.name} with {classes} classes of {(channels, side, side)}: this set has {found}")
    counts = torch.bincount(labels, minlength=spec.num_classes)
    if bool((counts != counts[0]).any()):
        found = f"{int(counts.min())} to {int(counts.max())}"
        raise InputError(f"{program} takes as many images of each class, and this set has {found}: draw it with --ipc")


def write_folder(
    path: Path | str,
    content: Mapping[str, Tensor],
    spec: DataSpec,
    info: Mapping[str, Any],
    kind: Format,
    *,
    overwrite: bool = False,
    generator: Generator | None = None,
    whitening: Whitening | None = None,
) -> Path:
    """Write a set; see `SyntheticSet.save`."""
    if kind.eight_bits and content["images"].dtype != torch.uint8:
        use = " or ".join(_any_set(lambda other: not other.eight_bits))
        raise InputError(f"format {kind.name!r} holds 8 bits per channel and these images are float32: use {use}")
    require_classes(kind, content["labels"], spec)
    description = _describe(content, spec, info, kind.name)
    with atomic_folder(path, overwrite=overwrite) as folder:
        kind.write(folder, content, spec, generator=generator)
        kind.beside(folder, content, spec, info, whitening)
        write_document(folder / DESCRIPTION, description)
    return Path(path)


def write_into(folder: Path, content: Mapping[str, Tensor], spec: DataSpec, info: Mapping[str, Any]) -> None:
    """Put a set into a folder that holds other things too, as safetensors, in place of the set that was there.

    The data file is named by its content and the description changes last, so a reader sees the old set or the new one.
    """
    description = _describe(content, spec, info, "safetensors")
    description["file"] = f"data-{description['digest'][:12]}.safetensors"
    save_data(folder / description["file"], content)
    write_document(folder / DESCRIPTION, description)
    for old in folder.glob("data-*.safetensors"):
        if old.name != description["file"]:
            old.unlink()


def rewrite_claims(path: Path, claims: Sequence[Mapping[str, Any]]) -> None:
    """Put claims in place of those that a set's description holds; the data stay as they are."""
    description = read_document(path)
    write_document(path, {**description, "info": {**description["info"], "claims": list(claims)}})


def claims_kept(folder: Path, content: Mapping[str, Tensor]) -> dict[str, Any]:
    """The claims of a set in a folder, for its `info`, if it has this content already; else nothing."""
    with contextlib.suppress(InputError):
        description = read_document(folder / DESCRIPTION)
        if description.get("digest") == digest(content) and (claims := description["info"].get("claims")):
            return {"claims": claims}
    return {}


def _describe(content: Mapping[str, Tensor], spec: DataSpec, info: Mapping[str, Any], storage: str) -> dict[str, Any]:
    try:
        json.dumps(info, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"info of the set cannot be stored ({error}): expected what JSON can hold, without NaN") from None
    return {
        "kind": "set",
        "storage": storage,
        "digest": digest(content),
        "count": len(content["labels"]),
        "spec": spec.to_dict(),
        "info": dict(info),
    }


def _require_plausible(path: Path, spec: DataSpec, description: Mapping[str, Any]) -> None:
    """Refuse a number of images that the files of a folder cannot hold, before there is memory for them."""
    count, stored = description["count"], sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    if isinstance(count, bool) or not isinstance(count, int) or not 0 < count * spec.image_bytes <= MOST_PACKED * stored:
        claim = f"{str(count)[:20]} images of {spec.image_bytes:,} bytes in files of {stored:,}"
        raise InputError(f"{path / DESCRIPTION} is damaged: it says that there are {claim}; make the set again")


def read_folder(path: Path | str) -> tuple[dict[str, Tensor], DataSpec, dict[str, Any]]:
    """Read a set: its tensors, its data specification, and what is known of its making."""
    path = Path(path)
    if not (path / DESCRIPTION).is_file():
        raise InputError(f"{path} is no synthetic set: expected a folder made by 'dim sample' (it has no {DESCRIPTION})")
    description = read_document(path / DESCRIPTION)
    wanted = {"storage", "digest", "count", "spec", "info"}
    if not wanted <= description.keys() or not isinstance(description["info"], dict):
        raise InputError(f"{path / DESCRIPTION} is damaged: expected {', '.join(sorted(wanted))}; make the set again")
    spec = DataSpec.from_dict(description["spec"])
    _require_plausible(path, spec, description)
    FORMATS.require(str(description["storage"]), f"{path / DESCRIPTION}: storage")
    with reading(path):
        content = format_of(description["storage"]).read(path, spec, description)
    if digest(content) != description["digest"]:
        raise InputError(f"{path} is damaged: its images or labels are not those that were written; make it again")
    return content, spec, description["info"]
