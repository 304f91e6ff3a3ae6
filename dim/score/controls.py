"""Controls by name: what is scored beside sets and generators to compare them with."""

from collections.abc import Sequence

from dim.config import CORESETS
from dim.errors import InputError, nearest

ORACLE_CONTROL, FULL_CONTROL = "oracle", "full"


def control_names() -> tuple[str, ...]:
    """Coresets at the IPCs of the fixed rows; `oracle`, real data at the step budgets of the stream rows; and `full` data."""
    return (*CORESETS.names(), ORACLE_CONTROL, FULL_CONTROL)


def require_controls(names: Sequence[str]) -> None:
    """Raise InputError if one is unknown, naming the nearest. Coresets of somebody's own are known once they are admitted."""
    for name in names:
        if ":" in name:
            CORESETS.load(name)
        elif name not in control_names():
            raise InputError(f"unknown control {name!r}. {nearest(name, control_names())}")


def is_coreset(method: str | None) -> bool:
    """Whether what made the images of a row is a rule; also one of somebody's own, which this process need not know."""
    return method is not None and (method in CORESETS.names() or ":" in method)
