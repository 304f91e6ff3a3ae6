"""Refined latents: the latents of a set are moved until its images serve their purpose better, while the generator stays.

Images are refined in blocks. A block's images move together, with all earlier ones standing still beside them, so every set
whose size is a block's end has been refined as a whole, and all sets are nested. What moves them is a purpose: an objective that
knows nothing of latents, one file each in `dim.emit.purposes`.
"""

import contextlib
import copy
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from dim.config import PURPOSES, RefineConfig
from dim.data.real import RealData
from dim.errors import InputError
from dim.io import load_tensors, reading, save_tensors
from dim.loop import Progress
from dim.nets.generator import Generator
from dim.objectives import Objective

T = TypeVar("T")

_KEEP_SECONDS = 60.0


class Kept:
    """The state of a refinement in a file, from which a killed one goes on, bit by bit (on the CPU).

    Args:
        path: of the file.
        identity: digest of all that the refinement depends on; the state of another one is not used.

    Attributes:
        block: the number of the block that is being moved; those before are in `result`.
        seconds: wall time that went into the state that was found.
    """

    def __init__(self, path: Path | str, identity: str) -> None:
        self._path, self._identity, self._tensors, self._step = Path(path), identity, {}, 0
        self._began = self._saved = time.monotonic()
        self.block, self.seconds = 0, 0.0
        with contextlib.suppress(InputError), reading(path):  # none is there, or it is damaged: begin
            tensors, metadata = load_tensors(path)
            place = {name: int(metadata[name]) for name in ("block", "step")}
            if metadata.get("identity") == identity and {"result", "moving", "step", "exp_avg", "exp_avg_sq"} == tensors.keys():
                self._tensors, self._step, self.block = tensors, place["step"], place["block"]
                self.seconds = float(metadata["seconds"])

    def result(self, result: Tensor) -> Tensor:
        """All latents, as they were found, in place of those that no block has moved yet."""
        return self._tensors["result"].to(result) if self._tensors else result

    def restore(self, block: int, moving: Tensor, optimizer: torch.optim.Optimizer) -> int:
        """Put the moved latents and the state of their optimiser in place; the steps of this block that are done."""
        if not self._tensors or block != self.block:
            return 0
        with torch.no_grad():
            moving.copy_(self._tensors["moving"])
        names = [name for name in self._tensors if name not in ("result", "moving")]
        optimizer.state[moving] = {name: self._tensors[name].to(moving.device if name != "step" else "cpu") for name in names}
        return self._step

    def save(self, block: int, step: int, result: Tensor, moving: Tensor, optimizer: torch.optim.Optimizer) -> None:
        """Write the state after a step, if that was last done a minute ago."""
        if time.monotonic() - self._saved < _KEEP_SECONDS:
            return
        seconds = round(self.seconds + time.monotonic() - self._began, 2)
        about = {"kind": "refinement", "identity": self._identity, "block": block, "step": step, "seconds": seconds}
        with contextlib.suppress(OSError):  # a place where nothing can be kept is no reason to stop
            save_tensors(self._path, {"result": result, "moving": moving, **optimizer.state[moving]}, about)
        self._saved = time.monotonic()


def build_objectives(config: RefineConfig, folder: str, data: RealData, *, seed: int, device: torch.device) -> list[Objective]:
    """What a configuration's purpose asks of images: one objective for every block, as far as blocks differ.

    Args:
        config: the settings, with the options of the purpose.
        folder: made by `dim experts`.
        data: the real data, natural images.
        seed: of every draw.
        device: where to work.

    Raises:
        InputError: if the store is missing, damaged, unfinished, or of other data, or shorter than a stretch.
    """
    return PURPOSES.load(config.by)(config, folder, data, seed=seed, device=device)


def of_block(values: Sequence[T], number: int) -> T:
    """What a block has of a list that gives one value per block, the last for all later ones."""
    return values[min(number, len(values) - 1)]


def refine(
    generator: Generator,
    latents: Tensor,
    objectives: Sequence[Objective],
    config: RefineConfig,
    ipc: int,
    *,
    done: int = 0,
    kept: Kept | None = None,
) -> Tensor:
    """Move the latents of the first images of every class.

    Args:
        generator: makes images of latents; left as it is.
        latents: float (classes, n, Z) or (classes, n, Z + E), where the images start.
        objectives: what moves them, block by block; the last of these moves all later blocks.
        config: blocks, steps and learning rate.
        ipc: images per class that are wanted; the block that holds the last of them is the last that is refined.
        done: images per class, the end of a block, whose latents were refined before; they stay as they are.
        kept: where the state is kept every minute; what a killed process kept there is gone on from.

    Returns:
        float32 (classes, n, Z + E): moved in the refined blocks, and as it was, with E zeros if it had no others, in the rest.
        Without `config.class_vectors` it is as wide as it was, and only the first Z values move.

    Raises:
        InputError: for latents of another width, or if values stop being finite.
    """
    classes, count, width = latents.shape
    generator.require_width(width)
    device = generator.device
    result = latents.to(device, torch.float32, copy=True)
    if config.class_vectors:
        result = F.pad(result, (0, generator.latent_dim + generator.class_dim - width))
    generator = copy.deepcopy(generator).requires_grad_(False).eval()
    images = torch.empty(0, *generator.spec.image_shape, device=device)
    targets = torch.empty(0, dtype=torch.int64, device=device)
    result = result if kept is None else kept.result(result)
    ends = [min(end, count) for end in config.blocks]
    ends = [end for begin, end in zip([0, *ends], ends, strict=False) if begin < min(ipc, count)]
    with Progress("refine", config.steps * sum(end > done for end in ends)) as progress:
        for number, (begin, end) in enumerate(zip([0, *ends], ends, strict=False)):
            labels = torch.arange(classes, device=device).repeat(end - begin)
            block = rearrange(result[:, begin:end], "k n z -> (n k) z")  # class by class in each round, as labels are
            if end > done and (kept is None or number >= kept.block):
                objective, keeping = of_block(objectives, number), (kept, result, progress)
                block = _moved(generator, block, labels, (images, targets), objective, config, number, keeping)
            elif end > done:
                progress.advance(config.steps)
            with torch.no_grad():
                if not bool(block.isfinite().all()):
                    where = f"images {begin + 1} to {end} of every class"
                    raise InputError(
                        f"refining {where} led to values that are not finite: lower --refine.lr or --refine.step-size"
                    )
                result[:, begin:end] = rearrange(block, "(n k) z -> k n z", k=classes)
                images, targets = torch.cat((images, generator(block, labels).float())), torch.cat((targets, labels))
    return result


def _moved(
    generator: Generator,
    block: Tensor,
    labels: Tensor,
    earlier: tuple[Tensor, Tensor],
    objective: Objective,
    config: RefineConfig,
    number: int,
    keeping: tuple[Kept | None, Tensor, Progress],
) -> Tensor:
    """The latents of block `number`, float32 (b, Z + E), after its steps.

    The objective sees the block's images behind those of earlier blocks, which are given with their labels.
    """
    kept, result, progress = keeping
    still_images, still_labels = earlier
    moves = block.shape[1] if config.class_vectors else generator.latent_dim
    moving, still = block[:, :moves].clone().requires_grad_(), block[:, moves:]
    optimizer = torch.optim.Adam([moving], lr=config.lr)
    done = 0 if kept is None else kept.restore(number, moving, optimizer)
    progress.advance(done)
    for step in range(done, config.steps):
        optimizer.param_groups[0]["lr"] = config.lr * (1 - step / config.steps)
        made = generator(torch.cat((moving, still), dim=1), labels).float()
        cut = torch.cat((still_images, made.detach())).requires_grad_()
        objective.accumulate(cut, torch.cat((still_labels, labels)), real=None, step=number * config.steps + step)
        made.backward(cut.grad[len(still_images) :])
        optimizer.step()
        optimizer.zero_grad()
        if kept is not None:
            kept.save(number, step + 1, result, moving, optimizer)
        progress.advance()
        progress.show({"block": number + 1})
    return torch.cat((moving.detach(), still), dim=1)
