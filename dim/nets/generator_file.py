"""One self-describing file per generator: weights, architecture, data specification, and how it was made."""

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dim.config import DataConfig, GeneratorConfig, ProtocolConfig, from_dict, to_dict
from dim.errors import InputError
from dim.io import digest, load_tensors, reading, save_tensors
from dim.nets.generator import Generator, build_generator
from dim.provenance import versions
from dim.repository import is_repository
from dim.spec import DataSpec

FILE_NAME = "generator.safetensors"
_FORMAT = 1


def save_generator_file(
    path: Path | str,
    generator: Generator,
    *,
    config: GeneratorConfig,
    data: DataConfig | None,
    protocol: ProtocolConfig,
    about: dict[str, Any],
    claims: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Write a generator atomically.

    Args:
        path: file to write.
        generator: the network; parameters and buffers are stored.
        config: its architecture; where a pipeline that it started from lay is left out.
        data: the data it was trained on, where that lay is left out; None if only Python has it.
        protocol: how its sets are to be scored.
        about: further JSON: recipe, steps, ...
        claims: what it says of its own scores, see `dim.score.claims`.
    """
    metadata = {
        "format": _FORMAT,
        "kind": "generator",
        "spec": generator.spec.to_dict(),
        "generator": to_dict(_public(config)),
        "architecture": generator.architecture(),
        "data": {} if data is None else to_dict(dataclasses.replace(data, root=None, download=False)),
        "protocol": to_dict(protocol),
        "about": about,
        "versions": versions(),
        **({"claims": list(claims)} if claims else {}),
    }
    save_tensors(path, generator.state_dict(), metadata)


def rewrite_claims(path: Path, claims: Sequence[Mapping[str, Any]]) -> None:
    """Put claims in place of those that a generator's file holds; all else stays as it is."""
    tensors, metadata = load_tensors(path)
    save_tensors(path, tensors, {**metadata, "claims": list(claims)})


def claims_kept(path: Path | str, generator: Generator) -> Sequence[Mapping[str, Any]]:
    """The claims of a file that holds these weights already; none of one with others, or where no sound file is."""
    with contextlib.suppress(InputError):
        tensors, metadata = load_tensors(path)
        if metadata.get("claims") and digest(tensors) == digest(generator.state_dict()):
            return metadata["claims"]
    return ()


def save_again(path: Path | str, generator: Generator) -> None:
    """Write a generator that was loaded from such a file, with the options that its sampler has now.

    Raises:
        InputError: if it was not loaded.
    """
    info = getattr(generator, "info", None)
    if info is None:
        raise InputError("this generator does not say how it was made: load it with dim.load_generator before writing it")
    save_generator_file(
        path,
        generator,
        config=dataclasses.replace(from_dict(GeneratorConfig, info["generator"]), **generator.sampler),
        data=from_dict(DataConfig, info["data"]) if info["data"] else None,
        protocol=from_dict(ProtocolConfig, info["protocol"]),
        about=info["about"],
        claims=info.get("claims", ()),
    )


def _public(config: GeneratorConfig) -> GeneratorConfig:
    """The configuration; of the path that a pretrained pipeline lay at the last name only, unless it is on the Hub."""
    pretrained = getattr(config, "pretrained", None)
    if pretrained is None or is_repository(pretrained):
        return config
    return dataclasses.replace(config, pretrained=Path(pretrained).name)


def load_generator_file(path: Path | str, device: torch.device | str = "cpu") -> Generator:
    """Read a file written by `save_generator_file`: a generator in evaluation mode, channels-last, with `info` (its metadata).

    Raises:
        InputError: if the file is missing, damaged, or holds something else.
    """
    tensors, metadata = load_tensors(path)
    if metadata.get("kind") != "generator":
        raise InputError(f"{path} holds {metadata.get('kind', 'something else')!r}: expected a generator")
    for name, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            raise InputError(f"{path} holds weights that are not finite ({name}): train it again with a lower learning rate")
    with reading(path):
        return (
            from_description(path, tensors, metadata).to(device, memory_format=torch.channels_last).requires_grad_(False).eval()
        )


def _require_plausible(config: GeneratorConfig, tensors: dict[str, Tensor]) -> None:
    """Raise ValueError for sizes that these weights cannot be of, before networks of such sizes are made."""
    largest = max((size for tensor in tensors.values() for size in tensor.shape), default=0)
    for name, most in (("width", largest), ("latent_dim", largest), ("blocks", len(tensors))):
        if getattr(config, name, 0) > most:
            raise ValueError(f"generator.{name} is {getattr(config, name)} and its weights are of at most {most}")


def from_description(path: Path | str, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> Generator:
    """The generator that a file describes, with its weights.

    Args:
        path: of the file, for messages.
        tensors: its state.
        metadata: what `save_generator_file` writes beside it.

    Raises:
        InputError: if they do not fit one another, or are of a later format.
        ValueError, LookupError, TypeError: for metadata that have other fields; see `dim.io.reading`.
    """
    if metadata["format"] > _FORMAT:
        raise InputError(f"{path} has format {metadata['format']}: this version reads up to {_FORMAT}; upgrade dim-distill")
    if any(not isinstance(metadata.get(key), dict) for key in ("data", "protocol", "about", "versions")):
        raise InputError(f"{path} is damaged: it does not say how it was made; restore it or make it again")
    config = from_dict(GeneratorConfig, metadata["generator"])
    _require_plausible(config, tensors)
    generator = build_generator(config, DataSpec.from_dict(metadata["spec"]), seed=0, architecture=metadata.get("architecture"))
    if "anchors" in tensors:
        generator.anchor(tensors["anchors"], float(tensors["spread"]))
    try:
        generator.load_state_dict(tensors)
    except RuntimeError:
        raise InputError(f"{path} does not hold the weights of the generator it describes: restore it or make it again") from None
    generator.info = metadata
    return generator
