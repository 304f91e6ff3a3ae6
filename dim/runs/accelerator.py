"""The accelerator that a training asks for: device, processes, mixed precision, trackers."""

from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from dim.config import TrainConfig
from dim.errors import InputError
from dim.launch import launched
from dim.processes import join


def make_accelerator(config: TrainConfig, out: Path) -> Accelerator:
    """The accelerator that a configuration asks for, among the other processes of this launch.

    Raises:
        InputError: if the device is not there.
    """
    device = config.fit.device
    if device not in (None, "cpu", "cuda", "mps"):
        raise InputError(f"fit.device is {device!r}: expected cpu, cuda or mps (for one of several GPUs: accelerate launch)")
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
