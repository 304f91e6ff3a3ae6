"""Libraries that an extra of this package brings."""

import importlib
from types import ModuleType

from dim.errors import InputError


def library(module: str, user: str, extra: str) -> ModuleType:
    """Import a module that need not be installed.

    Args:
        module: its full name.
        user: what needs it, for the message.
        extra: of this package, which brings it.

    Raises:
        InputError: if it is not installed, naming the extra.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        raise InputError(f"{user} needs the library {module!r}: pip install 'dim-distill[{extra}]'") from None
