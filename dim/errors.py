"""The one exception that stands for a user's mistake."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """A value, file or folder from outside that cannot be used.

    The message is one line of at most 300 printable characters: the value received, what was expected, and the remedy. The
    command line prints it without a traceback and exits with status 2.
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


def one_line(text: str, longest: int = 300) -> str:
    """A text in one line, without characters that a terminal would obey, its middle left out where it is too long."""
    text = "".join(character if character.isprintable() else " " for character in text)
    text = " ".join(text.split())
    if len(text) <= longest:
        return text
    half = (longest - 5) // 2
    return f"{text[:half]} ... {text[-half:]}"


def nearest(name: str, known: Iterable[str]) -> str:
    """A remedy for an unknown name: `` Did you mean 'x'?`` or the list of what is known."""
    known = sorted(known)
    match = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"Did you mean {match[0]!r}?" if match else f"Known: {', '.join(known)}."
