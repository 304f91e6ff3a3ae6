"""What commands look up: sets and generators by name, the real data that they were made from, devices, other processes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dim.commands.arguments import SamplerArguments
from dim.errors import InputError


def load_subjects(names: Sequence[str], device: Any, sampler: SamplerArguments) -> dict[str, Any]:
    """Sets and generators by name."""
    from dim.data.synthetic import load_set
    from dim.hub import load_generator

    subjects: dict[str, Any] = {}
    for name in names:
        if is_stored_set(name):
            subjects[name] = load_set(name, device)
        else:
            subjects[name] = load_generator(name, device).configure(**sampler.given())
    return subjects


def is_stored_set(name: Path | str) -> bool:
    """Whether a folder or a coded file holds a set; otherwise it may hold a generator."""
    from dim.coding.container import is_coded, read
    from dim.data.stored import DESCRIPTION

    return (Path(name) / DESCRIPTION).is_file() or (is_coded(name) and read(name)[0]["kind"] == "set")


def data_of_subjects(subjects: dict[str, Any], root: str | None, device: Any) -> Any:
    """The real data that the first subject says it was made from."""
    return real_data(next(iter(subjects.values())), root, tuple(subjects), device)


def real_data(subject: Any, root: str | None, subjects: Sequence[str], device: Any) -> Any:
    """The real data that a set or a generator was made from, under a root that was given, or where it usually lies."""
    from dim.data.origin import real_data_of

    return real_data_of(subject.info, root, device, subject.spec, root_of_runs(subjects))


def root_of_runs(subjects: Sequence[str]) -> str | None:
    """Where the real data lay when the first run among the subjects was made."""
    from dim.run_folder import read_run

    runs = [name for name in subjects if (Path(name) / "run.json").is_file()]
    return read_run(runs[0], None)["config"]["data"].get("root") if runs else None


def work_together(name: str | None) -> tuple[Any, Any]:
    """Join the other processes of this launch, and watch over them.

    Args:
        name: of the device, see `device_of`.

    Returns:
        The processes, see `dim.processes`, and this one's device.

    Raises:
        InputError: if the device cannot be used, or is one GPU for all processes.
    """
    import torch

    from dim.launch import watch
    from dim.processes import join

    device = device_of(name)
    processes = join(device.type == "cpu")
    if processes.world > 1 and device.type != "cpu":
        if device.index is not None and name is not None:
            raise InputError(
                f"device is {name!r}: each of {processes.world} processes takes a GPU of its own; leave the number out"
            )
        device = torch.device(device.type, torch.accelerator.current_device_index())
    watch()
    return processes, device


def device_of(name: str | None) -> Any:
    """A device that can be used: the one that is named, or a GPU if there is one, or the CPU.

    Raises:
        InputError: if it cannot be used.
    """
    import torch

    if name is None:
        return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).cpu()  # of `meta`, which holds nothing, there is no way back
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {name!r} cannot be used ({str(error).splitlines()[0]}): try cpu") from None
    return device
