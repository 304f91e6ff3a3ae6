"""docs/tutorial.md and the notebook do what they say: their commands and their Python run, in order, with shorter trainings."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from telling import SHORTER, shorter, steps, tell

from dim.commands.cli import main

ROOT = Path(__file__).parent.parent
TUTORIAL = ROOT / "docs" / "tutorial.md"
NOTEBOOK = ROOT / "docs" / "folder-to-student.ipynb"

# What stands in the place of the notebook's lengths.
NOTEBOOK_LENGTHS = {"STAGE_ONE, STAGE_TWO = 100, 10": "STAGE_ONE, STAGE_TWO = 0.3, 0.2", "EPOCHS = 150": "EPOCHS = 4"}


def test_the_commands_of_a_page_are_found():
    page = "Text.\n\n    dim train a \\\n        --b c\n    dim data d\n\n```python\nx = 1\n```\n\n    pip install .\n"
    assert steps(page) == [("dim", "train a --b c"), ("dim", "data d"), ("python", "x = 1\n"), ("other", "pip install .")]
    assert shorter("train --out a") == ["train", "--out", "a", *SHORTER["train"].split()]
    assert shorter("report a") == ["report", "a"]


@pytest.fixture(scope="module")
def told(tmp_path_factory) -> tuple[Path, dict, list[str]]:
    """The tutorial, run to its end: its folder, the names of its Python, and what its blocks printed."""
    folder, names, printed = tmp_path_factory.mktemp("tutorial"), {}, []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        names["print"] = lambda *values: printed.append(" ".join(map(str, values)))
        tell(TUTORIAL, main, names)
    return folder, names, printed


def test_the_tutorial_runs(told):
    folder, _, printed = told
    kinds = [kind for kind, _ in steps(TUTORIAL.read_text())]
    assert (kinds.count("dim"), kinds.count("python"), kinds.count("other")) == (6, 5, 1)
    assert printed[0].startswith("torch.Size([4, 1, 8, 8])")
    assert printed[1] == "10 100 True True"
    assert [line.partition(":")[0] for line in printed[2:]] == ["trained on a stream", "trained on 100 images"]
    for file in (
        "runs/digits/report.html",
        "runs/digits/samples",
        "runs/digits/experts/weights.bin",
        "sets/digits-10/3_3/00000.png",
    ):
        assert (folder / file).exists(), file


def test_what_the_tutorial_says_of_its_images_is_so(told):
    _, names, _ = told
    images = names["generator"].sample([0, 1, 2, 2], seed=0)
    assert torch.equal(images, names["generator"].sample([0, 1, 2, 2], seed=0))
    assert not torch.equal(images[2], images[3])
    assert not torch.equal(images, names["generator"].sample([0, 1, 2, 2], seed=1))
    plain, refined = names["ten"], names["refined"]
    assert torch.equal(plain.labels, refined.labels)
    assert not torch.equal(plain.images, refined.images)
    assert refined.soft is None
    assert refined[0][0].dtype == torch.float32


def test_the_notebook_is_stored_without_outputs():
    notebook = json.loads(NOTEBOOK.read_text())
    assert (notebook["nbformat"], notebook["metadata"]["kernelspec"]["language"]) == (4, "python")
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert len(code) >= 6
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


def test_the_notebook_runs(tmp_path):
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    program = "\n\n".join("".join(cell["source"]) for cell in cells)
    for shown, short in NOTEBOOK_LENGTHS.items():
        assert program.count(shown) == 1, shown
        program = program.replace(shown, short)
    (tmp_path / "cells.py").write_text(program)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-W", "error::DeprecationWarning:dim", "cells.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^own model: \d+ % of 359 test images", done.stdout, re.M), done.stdout
    assert re.search(r"^set: \d+\.\d, random real: \d+\.\d", done.stdout, re.M), done.stdout
