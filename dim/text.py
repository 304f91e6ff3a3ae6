"""Text from outside (names of sets, classes and files, titles, values of options) as it is shown: one function per target.

Whatever is in a name, it is shown as text: it moves no cursor, changes no colour, and is no markup, formula or link.
"""

import html
import re
import sys
from typing import Any, TextIO

LINE = 300
"""Characters of a message, at most."""
_VALUE = re.compile(r"""(?<!\w)'[^']*'(?!\w)|"[^"]*"|\S+""")
_SHORTEST = 24  # a value is not cut below this
_verbosity = 0
_PLAIN = {"±": "+-", "×": "x", "–": "-", "—": "-", "−": "-", "…": "...", "≤": "<=", "≥": ">="}


def printable(text: str, keep: str = "") -> str:
    r"""The text with escapes such as `\n`, `\x1b` and `\u202e` in place of all characters that are not printed: controls, line
    breaks, marks that reverse the direction of writing, undecodable bytes. Those in `keep` stay."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode("ascii") for c in text)


def for_terminal(text: Any) -> str:
    """Text inside a line that is printed."""
    return printable(str(text))


def say(text: Any, file: TextIO | None = None) -> None:
    """Print a line (default: on standard output)."""
    print(for_terminal(text), file=file, flush=True)


def verbosity() -> int:
    """How much is said: -1 results, warnings and errors only; 0 notes and progress too; 1 details as well."""
    return _verbosity


def set_verbosity(level: int) -> None:
    """Say less or more from now on; see `verbosity`."""
    global _verbosity
    _verbosity = level


def say_note(text: Any, file: TextIO | None = None) -> None:
    """Print a line that is neither a result nor a warning (default: on standard error), unless only these are wanted."""
    if _verbosity >= 0:
        say(text, sys.stderr if file is None else file)


def for_rich(text: Any) -> Any:
    """Text in a table or a line of rich, as a `rich.text.Text`: brackets are no markup there, colons no emoji."""
    from rich.text import Text

    return Text(for_terminal(text))


def for_plot(text: Any) -> str:
    r"""Text in a plot of matplotlib, where a pair of `$` would be a formula; an escaped one never is."""
    return for_terminal(text).replace("$", r"\$")


def for_markdown(text: Any) -> str:
    """Text in a paragraph, a heading or a cell of a table of Markdown (CommonMark, GitHub's tables)."""
    line = re.sub(r"[\\`*_{}\[\]<>()#!|~&$@:]", r"\\\g<0>", " ".join(for_terminal(text).split()))
    return re.sub(r"^(\d*)([-+.=])", r"\1\\\2", line)  # a list, or a line below a heading


def for_html(text: Any) -> str:
    """Text in HTML, also inside an attribute with quotes. Line breaks and tabs stay."""
    return html.escape(printable(str(text), "\n\t"))


def one_line(text: Any, limit: int = LINE) -> str:
    """A message as one printable line of at most `limit` characters.

    Where it is longer, the middle of its longest values is left out first: of words and of what stands in quotes.
    """
    line = for_terminal(" ".join(str(text).split()))
    while len(line) > limit:
        longest = max(_VALUE.finditer(line), key=lambda value: len(value[0]))
        size = max(_SHORTEST, len(longest[0]) - (len(line) - limit))
        if size >= len(longest[0]):  # many short words
            return _shortened(line, limit)
        line = line[: longest.start()] + _shortened(longest[0], size) + line[longest.end() :]
    return line


def _shortened(text: str, size: int) -> str:
    """The text without its middle, in `size` characters."""
    left = size - 3
    return f"{text[: left - left // 2]}...{text[len(text) - left // 2 :]}"


def in_ascii(error: UnicodeError) -> tuple[str, int]:
    """An error handler for `codecs.register_error`: what cannot be encoded is written in ASCII, as `+-` or as an escape."""
    assert isinstance(error, UnicodeEncodeError)
    shown = [_PLAIN.get(c) or c.encode("unicode_escape").decode("ascii") for c in error.object[error.start : error.end]]
    return "".join(shown), error.end
