"""The accelerator that a training asks for: device, processes, mixed precision, trackers; and what processes share."""

import os
from collections.abc import Iterable
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from torch import nn

from dim.config import TrainConfig
from dim.errors import InputError, nearest


def require_launchable(config: TrainConfig) -> None:
    """Raise InputError for a device that accelerate cannot be given, or a tracker that it does not know or has no library for."""
    device = config.fit.device
    if device not in (None, "cpu", "cuda", "mps"):
        raise InputError(f"fit.device is {device!r}: expected cpu, cuda or mps (for one of several GPUs: accelerate launch)")
    for name in config.fit.trackers:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise InputError(f"fit.trackers is {name!r}: expected a tracker of accelerate. {nearest(name, LOGGER_TYPE_TO_CLASS)}")
        if name not in map(str, get_available_trackers()):
            remedy = f"pip install {name}, or leave it out (--fit.trackers without a value: none)"
            raise InputError(f"fit.trackers is {name!r}, and its library is not installed: {remedy}")


def make_accelerator(config: TrainConfig, out: Path) -> Accelerator:
    """The accelerator that a configuration asks for.

    Raises:
        InputError: if the device is not there, or a tracker is unknown or not installed.
    """
    device = config.fit.device
    require_launchable(config)
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("fit.device is 'cuda': no CUDA device is available; leave the option out")
    if device == "mps" and not torch.backends.mps.is_available():
        raise InputError("fit.device is 'mps': no MPS device is available; leave the option out")
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        # accelerate keeps one state per process; a second run in this process may differ in device and precision.
        AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(
        cpu=device == "cpu" or not torch.accelerator.is_available(),
        mixed_precision=config.fit.precision,
        log_with=list(config.fit.trackers) or None,
        project_dir=str(out),
    )


def average_gradients(accelerator: Accelerator, parameters: Iterable[nn.Parameter]) -> None:
    """Average gradients over processes in one transfer. Networks here run several times per step, with gradients of gradients,
    which a DistributedDataParallel wrapper does not allow."""
    if accelerator.num_processes == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    flat = accelerator.reduce(flat, reduction="mean")
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))
