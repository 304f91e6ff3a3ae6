"""The one exception that stands for a user's mistake."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """A value, file or folder from outside that cannot be used.

    The message is one line: the value received, what was expected, and the remedy. The command line prints it
    without a traceback and exits with status 2.
    """


def nearest(name: str, known: Iterable[str]) -> str:
    """A remedy for an unknown name: `` Did you mean 'x'?`` or the list of what is known."""
    known = sorted(known)
    match = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"Did you mean {match[0]!r}?" if match else f"Known: {', '.join(known)}."
