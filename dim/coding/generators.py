"""A generator as one coded file: what `generator.safetensors` says, with weights and anchors of few bits."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dim.coding import container, weights
from dim.coding.calibration import calibrated
from dim.config import GENERATORS, GeneratorConfig, from_dict
from dim.errors import InputError
from dim.io import reading
from dim.nets.generator import Generator, build_generator
from dim.nets.generator_file import from_description
from dim.nets.student import unallocated
from dim.spec import DataSpec

# What a file says of the generator's making; the rest stays with the run.
_ABOUT = (
    *("recipe", "steps", "step", "total_steps", "seconds", "anchors", "spread", "policy", "policy_seed", "policy_seconds"),
    "policy_teacher",
)


def code_generator(
    generator: Generator, bits: int, state: Mapping[str, Tensor] | None = None, scales: Mapping[str, Tensor] | None = None
) -> bytes:
    """The content of a coded file.

    Args:
        generator: from `dim.load_generator`.
        bits: of matrices and kernels, 2 to 8.
        state, scales: weights that `dim.coding.calibration.calibrated` made of the generator's. Default: these, rounded.

    Raises:
        InputError: if the generator does not say how it was made, or has a weight that is too large.
    """
    info = getattr(generator, "info", None)
    if info is None:
        raise InputError("this generator does not say how it was made: load it with dim.load_generator before coding it")
    if generator.device.type == "meta" or not 2 <= bits <= 8:
        raise InputError(f"bits is {bits}: expected 2 to 8")
    own = dict(generator.state_dict() if state is None else state)
    header = {
        "kind": "generator",
        "bits": bits,
        "anchors": list(generator.anchors.shape[1:]) if generator.anchors is not None else [],
        "spec": generator.spec.to_dict(),
        "generator": {**info["generator"], **generator.sampler},
        "architecture": generator.architecture(),
        "data": info["data"],
        "protocol": info["protocol"],
        "about": {name: info["about"][name] for name in _ABOUT if name in info["about"]},
    }
    shapes = weights.shapes_of(own, [name for name, _ in generator.named_parameters()])
    return container.pack(header, weights.code(own, shapes, bits, scales))


def load_coded_generator(path: Path | str, device: torch.device | str = "cpu") -> Generator:
    """Read a coded generator; see `dim.nets.generator_file.load_generator_file`. Its `file_bytes` are those of the file.

    Raises:
        InputError: if the file is missing, damaged, or holds something else.
    """
    header, parts = container.read(path)
    if header["kind"] != "generator":
        raise InputError(f"{path} holds a coded {header['kind']}: expected a generator")
    with reading(path):
        container.require(header, bits=int, anchors=list, generator=dict, data=dict, protocol=dict, about=dict, architecture=dict)
        tensors = weights.decode(parts, _shapes(header), header["bits"])
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                raise ValueError(f"{name} holds values that are not finite")
        described = {key: value for key, value in header.items() if key not in ("bits", "anchors")}
        generator = from_description(path, tensors, {**described, "format": 1, "versions": {}})
    generator = generator.to(device, memory_format=torch.channels_last).requires_grad_(False).eval()
    generator.file_bytes = Path(path).stat().st_size
    return generator


def _shapes(header: dict[str, Any]) -> dict[str, weights.Shape]:
    """Shapes of the tensors of a generator that a header describes; a network of this package is built without memory."""
    config = from_dict(GeneratorConfig, header["generator"])
    spec, architecture = DataSpec.from_dict(header["spec"]), header["architecture"]
    if not 2 <= header["bits"] <= 8:
        raise ValueError(f"bits is {header['bits']}")
    GENERATORS.require(config.name)
    with unallocated(config.name in GENERATORS.names(), "the generator"):
        net = build_generator(config, spec, seed=0, architecture=architecture)
    shapes = weights.shapes_of(net.state_dict(), [name for name, _ in net.named_parameters()])
    if header["anchors"]:
        count, width = header["anchors"]
        if isinstance(count, bool) or not isinstance(count, int) or not 0 < count <= 10**6:
            raise ValueError(f"anchors are {str(header['anchors'])[:40]}")
        net.require_width(width)
        shapes[weights.ANCHORS] = weights.Shape((spec.num_classes, count, width), torch.float32, False)
        shapes["spread"] = weights.Shape((), torch.float32, False)
    return shapes


def with_calibration(generator: Generator, bits: int, **settings: Any) -> tuple[bytes, tuple[float, float]]:
    """The content of a coded file with calibrated weights, and what `dim.coding.calibration.calibrated` says of their error."""
    state, scales, errors = calibrated(generator, bits, **settings)
    return code_generator(generator, bits, state, scales), errors
