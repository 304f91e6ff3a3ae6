"""The wheel and the source archive in empty environments: what a stranger installs works, and lacks no dependency.

It installs PyTorch anew, which takes minutes, so it runs where DIM_TEST_WHEEL is set, as in CI.
"""

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

pytestmark = [
    pytest.mark.skipif(not os.environ.get("DIM_TEST_WHEEL"), reason="DIM_TEST_WHEEL is not set: it installs PyTorch anew"),
    pytest.mark.timeout(1500),
]


def quietly(*command: object, **settings) -> None:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, **settings)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def test_what_is_installed_passes_the_tutorial(tmp_path):
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    source = tmp_path / "source"
    quietly("git", "clone", "--quiet", ROOT, source)  # what is committed
    quietly(
        sys.executable, "-m", "build", "--no-isolation", "--outdir", tmp_path / "dist", source, env=clean
    )  # the wheel from the sdist
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    assert len(list((tmp_path / "dist").glob("*.tar.gz"))) == 1
    venv.create(tmp_path / "empty", with_pip=True)
    python = tmp_path / "empty" / "bin" / "python"
    quietly(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", wheel, env=clean)
    (tmp_path / "work").mkdir()
    quietly(python, source / "tests" / "telling.py", source / "docs" / "tutorial.md", cwd=tmp_path / "work", env=clean)
    assert (tmp_path / "work" / "sets" / "digits-10-refined").is_dir()
