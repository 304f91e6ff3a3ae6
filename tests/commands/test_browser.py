"""Pages in a real browser, where one is installed: no error on its console, nothing wider than the window or from outside."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from dim.commands.cli import main

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium is installed")

# What the page is measured to be, once all is loaded; it becomes its title, which the printed document holds.
MEASURE = """<script>addEventListener("load", () => {
  const pictures = [...document.images];
  document.title = JSON.stringify({
    width: document.documentElement.scrollWidth, window: innerWidth,
    broken: pictures.filter(p => !p.complete || !p.naturalWidth).length, pictures: pictures.length,
    tiny: pictures.filter(p => p.getBoundingClientRect().width < 100).length,
    requests: performance.getEntriesByType("resource").filter(e => !e.name.startsWith("data:")).length,
  });
});</script>"""


def browse(page: Path, *options: str) -> subprocess.CompletedProcess:
    profile = page.parent / "profile"
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", f"--user-data-dir={profile}"]
    return subprocess.run([*command, *options, page.as_uri()], capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def pages(run, tmp_path_factory) -> dict[str, Path]:
    """The page of a run with scores, and a comparison."""
    folder = tmp_path_factory.mktemp("pages")
    shutil.copytree(run, folder / "run")
    quick = ["--seeds", "1", "--students", "convnet:width=4,depth=2", "--protocol.epochs", "2", "--controls", "random"]
    assert main(["evaluate", str(folder / "run"), "--track", "fixed", "--ipc", "1", "2", *quick]) == 0
    comparison = folder / "comparison.html"
    assert main(["compare", str(folder / "run"), "--track", "fixed", "--ipc", "1", "2", *quick, "--html", str(comparison)]) == 0
    return {"report": folder / "run" / "report.html", "comparison": comparison}


@pytest.mark.parametrize("name", ["report", "comparison"])
@pytest.mark.parametrize("width", [500, 1280])  # the narrowest window that a headless browser opens, and a desktop's
def test_a_page_fits_the_window_and_loads_nothing(pages, name, width):
    page = pages[name].with_name(f"{name}-measured.html")
    page.write_text(pages[name].read_text() + MEASURE)
    done = browse(page, f"--window-size={width},900", "--virtual-time-budget=5000", "--dump-dom")
    title = re.search(r"<title>(\{.*?\})</title>", done.stdout)
    assert title, done.stdout[:500]
    found = json.loads(title[1])
    assert found["width"] <= found["window"]
    assert found["pictures"] > 0
    assert (found["broken"], found["tiny"], found["requests"]) == (0, 0, 0)
    assert "CONSOLE" not in done.stderr


@pytest.mark.parametrize("name", ["report", "comparison"])
def test_a_page_has_a_dark_face(pages, name):
    def background(*options: str) -> int:
        picture = pages[name].with_name(f"{name}.png")
        browse(pages[name], "--window-size=900,900", f"--screenshot={picture}", *options)
        with Image.open(picture) as image:
            return image.convert("L").getpixel((3, 3))

    assert background() > 200
    assert background("--force-dark-mode", "--blink-settings=preferredColorScheme=0") < 60
