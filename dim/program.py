"""A generator as a program that other tools run without this package: one file, in a format of `dim.programs`.

A program takes latents, float32 (N, Z), and labels, int64 (N,), for any N of 1 or more, and gives images, float32 (N, C, H, W) in
[-1, 1]: those that the generator gives, in float32 on the CPU. Every file is read back and compared with the generator before it
is put in its place. What a file says of itself is the JSON of `describe`.
"""

import base64
import contextlib
import copy
import io
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

from dim.config import PROGRAMS
from dim.errors import InputError, is_out_of_memory
from dim.io import digest
from dim.libraries import library
from dim.nets.generator import Generator
from dim.outputs import atomic_file, require_new_file
from dim.provenance import versions

MOST_DIFFERENCE = 1e-3
"""Between an image of the program and one of the generator: an eighth of the step from one 8-bit value to the next."""
INPUTS, OUTPUT, COUNT = ("latents", "labels"), "images", "N"
_CHECKED = (1, 5)  # numbers of images
_FORMAT = 1
_OPERATORS = ("aten", "prims", "higher_order")  # of every PyTorch


class Program:
    """One way to store a generator as a program. A subclass writes a file and reads it back.

    Args:
        name: by which the format was chosen, for messages.
    """

    needs: ClassVar[tuple[str, ...]] = ()
    """Modules from the extra `onnx` that this needs; `library` imports these and no others."""
    suffix: ClassVar[str] = ""
    """What names of such files end in; empty: anything."""
    most_bytes: ClassVar[int | None] = None
    """Of weights in one file. None: no limit."""

    def __init__(self, name: str) -> None:
        self.name = name

    def write(self, path: Path, traced: torch.export.ExportedProgram, about: Mapping[str, Any]) -> None:
        """Write a program, with JSON `about` inside, to the file `path`, whose name does not end in the suffix yet."""
        raise NotImplementedError

    def read(self, path: Path) -> Callable[[Tensor, Tensor], Tensor]:
        """A function that runs the program which `write` wrote: float32 (N, Z), int64 (N,) -> float32 (N, C, H, W)."""
        raise NotImplementedError

    def library(self, module: str) -> ModuleType:
        """Import one of the modules that the format `needs`.

        Raises:
            InputError: if it is not installed, naming the extra that brings it.
        """
        assert module in self.needs, f"{type(self).__name__}.needs says {self.needs}, and not {module!r}"
        return library(module, f"program format {self.name!r}", "onnx")

    def require(self, path: Path | str, *, overwrite: bool = False) -> None:
        """Raise InputError if a library is missing, or if the file cannot be written or has a name of another format."""
        for module in self.needs:
            self.library(module)
        if not str(path).endswith(self.suffix):
            raise InputError(f"output is {str(path)!r}: expected a name that ends in {self.suffix}, as {self.name!r} is written")
        require_new_file(path, overwrite=overwrite)


def program_of(choice: str | type[Program]) -> Program:
    """The program format of a name, or of a class of the caller's own.

    Raises:
        InputError: if there is no such format, naming the nearest.
    """
    name = choice if isinstance(choice, str) else PROGRAMS.admit(choice)
    return PROGRAMS.load(name)(name)


def export_generator(
    generator: Generator, path: Path | str, format: str | type[Program] = "onnx", *, overwrite: bool = False
) -> float:
    """Write a generator as a program that other tools run without this package.

    The program takes latents, float32 (N, Z), and labels, int64 (N,), for any N of 1 or more, and gives images, float32
    (N, C, H, W) in [-1, 1]. Around anchors with class vectors, latents are (N, Z + E). The steps of a sampler are unrolled, so
    they and the guidance are fixed. The file says as JSON how latents are drawn, what the classes are, and how it was made.

    Args:
        generator: with the options that its sampler has now. It is not changed; a copy in float32 on the CPU is exported.
        path: of the file, which appears whole or not at all.
        format: `onnx` (onnxruntime and others), `pt2` (`torch.export.load`), or a subclass of `dim.program.Program`.
        overwrite: replace a file.

    Returns:
        The largest absolute difference between images of the program, as it is in the file, and of the generator.

    Raises:
        InputError: if a file is there, a library is missing, the networks cannot be traced, or the difference exceeds 1e-3.
    """
    kind = program_of(format)
    kind.require(path, overwrite=overwrite)
    plain = copy.deepcopy(generator).to("cpu", torch.float32, memory_format=torch.contiguous_format)
    plain.requires_grad_(False).eval()
    size = sum(value.numel() * value.element_size() for value in plain.state_dict().values())
    if kind.most_bytes is not None and size > kind.most_bytes:
        raise InputError(f"weights of {size:,} bytes: {kind.name!r} holds at most {kind.most_bytes:,} in one file; use 'pt2'")
    about = describe(plain)
    with torch.no_grad():
        # Before the trace, which must not see how a sampler works out its schedule: the first call does that.
        cases = [(*given, plain(*given)) for given in (_inputs(plain, count) for count in _CHECKED)]
        if not all(bool(images.isfinite().all()) for *_, images in cases):
            raise InputError("the generator makes images with values that are not finite: its weights are damaged, make it again")
        with _quiet_torch():
            traced = _trace(plain)
            with atomic_file(path) as temporary:
                with _converting(f"this generator cannot be written as {kind.name!r}"):
                    kind.write(temporary, traced, about)
                    program = kind.read(temporary)
                    difference = max(float((program(z, y) - images).abs().max()) for z, y, images in cases)
                if not difference <= MOST_DIFFERENCE:
                    found = f"images of the program differ by up to {difference:.1e} from the generator's"
                    raise InputError(f"{found}: expected at most {MOST_DIFFERENCE:.0e}; nothing was written, try another format")
    return difference


def describe(generator: Generator) -> dict[str, Any]:
    """What a program says of itself, as JSON values: images, classes, how latents are drawn, and how it was made."""
    spec, info = generator.spec, getattr(generator, "info", {})
    example = generator.latents(torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64), seed=0)
    latents = {
        "width": example.shape[1],
        "distribution": "standard normal, independent values, the same for every class",
        "of_dim_sample": "image i of class k with --seed S: row (k, i) of dim.rng.normal with the key dim.rng.fold(S, 'latent'), "
        "which is Philox4x32-10 and Box-Muller; docs/exchange.md has it in NumPy. Images agree up to rounding.",
        "first": {"seed": 0, "class": 0, "index": 0, "values": example[0, :4].tolist()},
    }
    if generator.anchors is not None:
        count, width = generator.anchors.shape[1:]
        latents["distribution"] = (
            f"around anchors: image i of class k has anchors[k, i % {count}], plus, for i >= {count}, spread times standard "
            f"normal values, own_width of them ({generator.latent_dim}), followed by zeros up to the width ({width})"
        )
        latents["own_width"] = generator.latent_dim
        latents["spread"] = float(generator.spread)
        values = base64.b64encode(generator.anchors.contiguous().numpy().astype("<f4").tobytes()).decode()
        latents["anchors"] = {"shape": list(generator.anchors.shape), "dtype": "float32, little-endian, base64", "values": values}
    return {
        "format": _FORMAT,
        "kind": "generator",
        "data": spec.name,
        "classes": list(spec.class_names),
        "image": {
            "shape": list(spec.image_shape),
            "range": [-1, 1],
            "to_uint8": "clip(round((x + 1) * 127.5), 0, 255)",
            "mean": list(spec.mean),
            "std": list(spec.std),
        },
        "latents": latents,
        "generator": {**info.get("generator", {"name": type(generator).__name__}), **generator.sampler},
        "provenance": {
            "weights": digest(generator.state_dict()),
            "fingerprint_of_data": spec.fingerprint,
            "made": {name: info[name] for name in ("about", "data", "versions") if name in info},
            "exported_with": versions(),
        },
    }


def _inputs(generator: Generator, count: int) -> tuple[Tensor, Tensor]:
    """Latents and labels of the first images of the last classes, as `dim sample` draws them."""
    labels = torch.arange(-1, -1 - count, -1) % generator.spec.num_classes
    return generator.latents(labels, torch.arange(count), seed=0), labels


class _Named(nn.Module):
    """The generator with inputs of the names that the program's have."""

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, latents: Tensor, labels: Tensor) -> Tensor:
        return self.generator(latents, labels)


class _Doubling(nn.Module):
    """diffusers' `Upsample2D`, which branches on the number of images (for their layout in memory), for any number."""

    def __init__(self, layer: Upsample2D) -> None:
        super().__init__()
        self.conv = layer.conv if layer.name == "conv" else layer.Conv2d_0

    @staticmethod
    def fits(layer: nn.Module) -> bool:
        """Whether a layer is one that this replaces."""
        plain = type(layer) is Upsample2D and layer.interpolate and layer.norm is None
        return plain and layer.use_conv and not layer.use_conv_transpose

    def forward(self, x: Tensor, output_size: tuple[int, int] | None = None) -> Tensor:
        scale = {"scale_factor": 2.0} if output_size is None else {"size": output_size}
        return self.conv(F.interpolate(x, **scale, mode="nearest"))


def _straighten(module: nn.Module) -> None:
    """Replace, in place, layers that a tracer cannot follow for any number of images."""
    for name, child in module.named_children():
        if _Doubling.fits(child):
            setattr(module, name, _Doubling(child))
        else:
            _straighten(child)


def _trace(generator: Generator) -> torch.export.ExportedProgram:
    """The generator as a graph of PyTorch's own operators, for any number of images; its layers may be replaced."""
    _straighten(generator)
    count = torch.export.Dim(COUNT, min=1)
    shapes = {name: {0: count} for name in INPUTS}
    with _converting("torch.export cannot follow this generator for any number of images"):
        traced = torch.export.export(_Named(generator), _inputs(generator, 2), dynamic_shapes=shapes)
    for node in traced.graph.nodes:
        node.meta.pop("stack_trace", None)  # where the code lies on this machine is nobody's business
        if node.op == "call_function" and getattr(node.target, "namespace", "aten") not in _OPERATORS:
            own = "a program holds PyTorch's own operators only: write its forward pass with these"
            raise InputError(f"this generator calls {node.target}, and {own}")
    return traced


@contextlib.contextmanager
def _quiet_torch() -> Iterator[None]:
    """Without what tracers log and print: graphs of hundreds of lines. What fails is raised as well."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def _converting(failed: str) -> Iterator[None]:
    """The boundary at which a generator, perhaps of somebody's own, meets converters, which raise errors of many kinds."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError | InputError) or is_out_of_memory(error):
            raise
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise InputError(f"{failed} ({reason}): change its forward pass, or its sampler's options") from error
