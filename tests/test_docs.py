"""The commands of README and docs/ are commands: each parses, and names recipes and options that there are."""

import re
import shlex
from pathlib import Path

import pytest

from dim.commands.cli import COMMANDS, main
from dim.commands.parsing import parse
from dim.recipes.load import recipe_names

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])


# The command of each program; a launcher runs one, or the module of the command line.
PROGRAMS = {
    "train/generator.py": "train",
    "train/experts.py": "experts",
    "train/distill.py": "distill",
    "sample/emit.py": "sample",
}
LAUNCHED = re.compile(
    rf"^ {{4}}(?:torchrun|accelerate launch|srun)\b.* (?:-m dim\.commands\.cli|({'|'.join(PROGRAMS)})) (.*)$", re.M
)


def commands(page: Path) -> list[str]:
    """Lines that begin with `dim` or a launcher in indented blocks and fences, with the lines that they go on in: what follows
    `dim`."""
    text = page.read_text().replace("\\\n", " ")
    alone = [match[1] for match in re.finditer(r"^(?: {4}){0,2}dim ((?:" + "|".join(COMMANDS) + r")\b.*)$", text, flags=re.M)]
    return alone + [f"{PROGRAMS[match[1]]} {match[2]}" if match[1] else match[2] for match in LAUNCHED.finditer(text)]


LINES = [pytest.param(line, id=f"{page.name}: {line[:60]}") for page in PAGES for line in commands(page)]


def test_there_are_commands_to_check():
    assert len(LINES) > 30
    assert len(commands(ROOT / "docs" / "scale.md")) == 10
    assert {line.values[0].split()[0] for line in LINES} == set(COMMANDS)


@pytest.mark.parametrize("line", LINES)
def test_a_command_parses(line, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "examples"))
    monkeypatch.delenv("DIM_DATA_ROOT", raising=False)
    name, *arguments = shlex.split(line, comments=True)
    if "--recipe" in arguments:
        recipe = arguments[arguments.index("--recipe") + 1]
        assert recipe.endswith(".toml") or recipe in recipe_names() or recipe == "R"
        if recipe not in recipe_names():
            return
    if name in ("train", "experts", "distill") and "--recipe" in arguments:
        dry = [] if "--dry-run" in arguments else ["--dry-run"]
        assert main([name, *arguments, *dry]) == 0, capsys.readouterr().err
    elif name == "recipes":
        assert main([name, *(word for word in arguments if word != "NAME")]) == 0
    elif "--resume" not in arguments:
        if ">" in arguments:  # which the shell takes
            arguments = arguments[: arguments.index(">")]
        parse(COMMANDS[name][1], arguments, name)
