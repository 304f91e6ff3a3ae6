"""The accelerator that a training asks for: device, processes, mixed precision, trackers."""

from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

from dim.config import TrainConfig
from dim.errors import InputError, nearest
from dim.launch import launched
from dim.processes import join


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
    """The accelerator that a configuration asks for, among the other processes of this launch.

    Raises:
        InputError: if the device is not there, or a tracker is unknown or not installed.
    """
    device = config.fit.device
    require_launchable(config)
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("fit.device is 'cuda': no CUDA device is available; leave the option out")
    if device == "mps" and not torch.backends.mps.is_available():
        raise InputError("fit.device is 'mps': no MPS device is available; leave the option out")
    cpu = device == "cpu" or not torch.accelerator.is_available()
    if launched()[1] == 1:
        # accelerate keeps one state per process; a second run in this process may differ in device and precision.
        AcceleratorState._reset_state(reset_partial_state=True)
    join(cpu)
    return Accelerator(
        cpu=cpu,
        mixed_precision=config.fit.precision,
        log_with=list(config.fit.trackers) or None,
        project_dir=str(out),
    )
