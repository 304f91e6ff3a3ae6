"""The exceptions that stand for a user's mistake, and for what a test refuses."""

import difflib
from collections.abc import Iterable

from dim.text import one_line

_MOST_NAMES = 12


class InputError(ValueError):
    """A value, file or folder from outside that cannot be used.

    The `message` is one line of at most 300 printable characters: the value received, what was expected, and the remedy. The
    command line prints it without a traceback and exits with status 2.
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class RefusedError(Exception):
    """Something was tested and is refused. The command line prints the `message` as one line and exits with status 3."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of Python, PyTorch or the operating system means that memory is short, on the host or on a device."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # of torch, which is not imported for this
        return True
    short = ("can't allocate memory", "out of memory", "Cannot allocate memory", "not enough memory")
    return isinstance(error, RuntimeError | OSError) and any(text in str(error) for text in short)


def nearest(name: str, known: Iterable[str]) -> str:
    """A remedy for an unknown name: `` Did you mean 'x'?`` or what is known, the first dozen."""
    known = sorted(known)
    match = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if match:
        return f"Did you mean {match[0]!r}?"
    shown = known[:_MOST_NAMES]
    return f"Known: {', '.join(shown)}{f' and {len(known) - len(shown)} more' if len(known) > len(shown) else ''}."
