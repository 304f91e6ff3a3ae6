"""Refined latents: the latents of a set are moved until its images serve their purpose better, while the generator stays.

Images are refined in blocks. A block's images move together, with all earlier ones standing still beside them, so every set
whose size is a block's end has been refined as a whole, and all sets are nested. What moves them is a purpose: an objective that
knows nothing of latents, one file each in `dim.emit.purposes`.
"""

import copy
from collections.abc import Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from dim.config import PURPOSES, RefineConfig
from dim.data.real import RealData
from dim.errors import InputError
from dim.nets.generator import Generator
from dim.objectives import Objective

T = TypeVar("T")


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
) -> Tensor:
    """Move the latents of the first images of every class.

    Args:
        generator: makes images of latents; left as it is.
        latents: float (classes, n, Z) or (classes, n, Z + E), where the images start.
        objectives: what moves them, block by block; the last of these moves all later blocks.
        config: blocks, steps and learning rate.
        ipc: images per class that are wanted; the block that holds the last of them is the last that is refined.
        done: images per class, the end of a block, whose latents were refined before; they stay as they are.

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
    begin = 0
    for number, end in enumerate(config.blocks):
        if begin >= min(ipc, count):
            break
        end = min(end, count)
        labels = torch.arange(classes, device=device).repeat(end - begin)
        block = rearrange(result[:, begin:end], "k n z -> (n k) z")  # class by class in each round, as labels are
        if end > done:
            objective, first = of_block(objectives, number), number * config.steps
            block = _moved(generator, block, labels, (images, targets), objective, config, first)
        with torch.no_grad():
            if not bool(block.isfinite().all()):
                where = f"images {begin + 1} to {end} of every class"
                raise InputError(f"refining {where} led to values that are not finite: lower --refine.lr or --refine.step-size")
            result[:, begin:end] = rearrange(block, "(n k) z -> k n z", k=classes)
            images, targets = torch.cat((images, generator(block, labels).float())), torch.cat((targets, labels))
        begin = end
    return result


def _moved(
    generator: Generator,
    block: Tensor,
    labels: Tensor,
    earlier: tuple[Tensor, Tensor],
    objective: Objective,
    config: RefineConfig,
    first: int,
) -> Tensor:
    """The latents of a block, float32 (b, Z + E), after its steps, which have the numbers `first` and following.

    The objective sees the block's images behind those of earlier blocks, which are given with their labels.
    """
    still_images, still_labels = earlier
    moves = block.shape[1] if config.class_vectors else generator.latent_dim
    moving, still = block[:, :moves].clone().requires_grad_(), block[:, moves:]
    optimizer = torch.optim.Adam([moving], lr=config.lr)
    for step in range(config.steps):
        optimizer.param_groups[0]["lr"] = config.lr * (1 - step / config.steps)
        made = generator(torch.cat((moving, still), dim=1), labels).float()
        cut = torch.cat((still_images, made.detach())).requires_grad_()
        objective.accumulate(cut, torch.cat((still_labels, labels)), real=None, step=first + step)
        made.backward(cut.grad[len(still_images) :])
        optimizer.step()
        optimizer.zero_grad()
    return torch.cat((moving.detach(), still), dim=1)
