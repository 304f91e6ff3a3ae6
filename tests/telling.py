"""A page that tells what to do: its commands and its Python, found and run. It needs nothing but the installed package.

    python tests/telling.py docs/tutorial.md

runs a page in the working directory, with the `dim` and the Python of the environment that this is run in.
"""

import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

# What is put behind a command of the tutorial, by how it begins; the rest of it is run as it stands.
SHORTER = {
    "train": "--stage-one.epochs 0.5 --stage-two.epochs 0.3",
    "evaluate": "--protocol.epochs 4",
}


def steps(page: str) -> list[tuple[str, str]]:
    """The indented commands and the Python of a page, in order: `dim` with a command's arguments, `other`, `python`."""
    found = []
    for match in re.finditer(r"^```python\n((?:.*\n)*?)```$|^ {4}(\S.*)$", re.sub(r"\\\n\s*", "", page), flags=re.M):
        if match[1] is not None:
            found.append(("python", match[1]))
        else:
            word, _, rest = match[2].partition(" ")
            found.append(("dim", rest) if word == "dim" else ("other", match[2]))
    return found


def shorter(command: str) -> list[str]:
    """The arguments of a command, with the options that make it short."""
    more = max((begin for begin in SHORTER if command.startswith(begin)), key=len, default=None)
    return shlex.split(command) + shlex.split(SHORTER.get(more, ""))


def tell(page: Path, dim: Callable[[list[str]], int], names: dict[str, Any]) -> None:
    """Run a page: its commands by `dim`, which gives their exit status, and its Python with these names."""
    for number, (kind, text) in enumerate(steps(page.read_text())):
        if kind == "dim":
            assert dim(shorter(text)) == 0, text
        elif kind == "python":
            exec(compile(text, f"{page.name}, part {number}", "exec"), names)


if __name__ == "__main__":
    program = Path(sys.executable).with_name("dim")
    tell(Path(sys.argv[1]), lambda arguments: subprocess.run([program, *arguments]).returncode, {})
