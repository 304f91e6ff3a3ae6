"""The state of an optimiser as tensors by name, for checkpoints, and back."""

from collections.abc import Mapping

import torch
from torch import Tensor

from dim.run_folder import prefixed


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What an optimiser with one group of parameters holds, as `<number of the parameter>.<entry>`."""
    tensors: dict[str, Tensor] = {}
    for index, entries in optimizer.state_dict()["state"].items():
        tensors |= prefixed(str(index), entries)
    return tensors


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Inverse of `optimizer_state`.

    Raises:
        ValueError: if an entry is of no parameter, or of another shape than its parameter and a single number.
    """
    parameters = optimizer.param_groups[0]["params"]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, _, entry = key.partition(".")
        if int(index) >= len(parameters) or value.shape not in (parameters[int(index)].shape, ()):
            raise ValueError(f"the state {key!r} of an optimiser has shape {tuple(value.shape)}")
        if value.ndim:  # the fused step wants the memory format of the parameter
            value = torch.empty_like(parameters[int(index)]).copy_(value)
        state.setdefault(int(index), {})[entry] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
