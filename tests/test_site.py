"""The site is built from docs/ without a warning, every page is in its navigation, and GitHub shows its formulas, too."""

import functools
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
NEEDED = ("mkdocs", "material", "mkdocstrings", "mkdocstrings_handlers.python")
PAGES = sorted(DOCS.rglob("*.md"))


@functools.cache
def missing() -> list[str]:
    """Packages of the extra `docs` that are not installed."""
    return [name for name in NEEDED if importlib.util.find_spec(name.partition(".")[0]) is None]


def listed(nav: object) -> list[str]:
    """The pages of a navigation, in order."""
    if isinstance(nav, str):
        return [nav]
    children = nav.values() if isinstance(nav, dict) else nav
    return [page for child in children for page in listed(child)]


def navigation() -> list[str]:
    """The pages that mkdocs.yml lists."""
    return listed(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])


def test_every_page_is_in_the_navigation_once():
    pages = [path.relative_to(DOCS).as_posix() for path in PAGES]
    pages += [path.relative_to(DOCS).with_suffix(".md").as_posix() for path in DOCS.rglob("*.ipynb")]
    assert sorted(navigation()) == sorted([*pages, "contributing.md"])  # made of CONTRIBUTING.md


def test_the_navigation_has_its_groups():
    groups = [name for entry in yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"] for name in entry]
    wanted = ["Tutorial", "How-tos", "Methods", "Honest evaluation", "Figures", "Reference", "Contributing"]
    assert [name for name in groups if name in wanted] == wanted
    assert listed([{"a": [{"b": "b.md"}, "c.md"]}, {"d": "d.md"}]) == ["b.md", "c.md", "d.md"]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site, built strictly."""
    if missing():
        pytest.skip(f"{', '.join(missing())} not installed: pip install 'dim-distill[docs]'")
    out = tmp_path_factory.mktemp("site")
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", out]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr, done.stderr
    return out


def page(site: Path, name: str) -> str:
    return (site / name / "index.html").read_text()


def test_the_site_has_all_pages(site):
    for name in navigation():
        stem = name.removesuffix(".md").removesuffix("index")
        assert (site / stem / "index.html").is_file(), name


def test_links_to_files_outside_docs_are_no_links_without_a_repository(site):
    text = page(site, "figures")
    assert "<code>tests/test_figures.py</code>" in text
    assert not re.search(r'href="[^"]*(\.\./benchmarks|test_figures\.py)', text)
    pictures = set(re.findall(r'(?:href|src)="\.\./(pictures-of-results/[^"]*\.png)"', text))
    assert len(pictures) >= 5
    assert all((site / picture).is_file() for picture in pictures)
    assert 'href="../layout/"' in page(site, "contributing")


def test_a_notebook_is_a_page_that_offers_itself(site):
    assert 'href="../folder-to-student/"' in page(site, "tutorial")
    text = page(site, "folder-to-student")
    assert 'href="../folder-to-student.ipynb"' in text
    assert "dim.fit" in re.sub(r"<[^>]*>", "", text)
    assert (site / "folder-to-student.ipynb").is_file()


def test_the_reference_is_made_from_docstrings(site):
    text = page(site, "reference")
    assert 'id="dim.sample_set"' in text
    assert "Sets are nested" in text
    assert 'id="dim.trajectory.hypergradient"' in text


def test_formulas_are_marked_for_the_browser(site):
    text = page(site, "methods")
    assert text.count('class="arithmatex"') == len(formulas((DOCS / "methods.md").read_text()))
    assert (site / "site" / "formulas.js").is_file()
    assert not (site / "site" / "pages.py").exists()


# --- formulas that GitHub and the site show alike -----------------------------------------------------------------------------

FORMULA = re.compile(r"\$\$\n(.+?)\n\$\$|(?<![\\$`\w])\$([^$`\n]+)\$(?![\w$])", re.S)


def formulas(text: str) -> list[str]:
    """The formulas of a page, without code."""
    text = re.sub(r"^```.*?^```|^ {4}.*?$|`[^`\n]*`", "", text, flags=re.M | re.S)
    return [block or inline for block, inline in FORMULA.findall(text)]


def fault(formula: str) -> str | None:
    """Why GitHub's Markdown would spoil a formula."""
    if re.search(r"\\[^A-Za-z]", formula):
        return "a backslash before punctuation is taken by Markdown"
    if re.search(r"[^\w]_", formula):
        return "an underscore that does not follow a letter may begin emphasis"
    if "*" in formula:
        return "an asterisk may begin emphasis"
    if re.search(r"^\s*[-+=#>]", formula, re.M):
        return "a line that begins like a list, a heading or a quotation"
    if re.search(r"[<>]", formula):
        return "a bracket that begins HTML: write \\lt or \\gt"
    if formula != formula.strip() or formula.count("{") != formula.count("}"):
        return "spaces at the ends, or braces that do not match"
    return None


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_formulas_are_shown_by_github(path):
    for formula in formulas(path.read_text()):
        assert fault(formula) is None, f"{formula}: {fault(formula)}"


def test_faults_of_formulas_are_noticed():
    assert formulas("a $x_i$, $y$.\n\n$$\n\\frac12\n$$\n\n`$z$`\n\n    $w$\n\n```\n$v$\n```\n") == ["x_i", "y", "\\frac12"]
    for bad in ("a\\,b", "x^{2}_i", "a*b", "a\n+ b", "a < b", "{a", " a"):
        assert fault(bad) is not None, bad
    assert len(formulas((DOCS / "methods.md").read_text())) > 100


# --- what pages name ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_files_that_a_page_names_are_there(path):
    """Files and folders of the repository in code, and links to files."""
    text = path.read_text()
    named = re.findall(r"`((?:dim|tests|benchmarks|train|sample|docs)/[\w./-]*[\w/])`", text)
    linked = [target for target in re.findall(r"\]\(([^)\s#:]+)(?:#[^)\s]*)?\)", text) if "." in target]
    for name in named:
        if "NAME" in name:  # one of many
            continue
        assert (ROOT / name).exists(), name
    for target in linked:
        assert (path.parent / target).exists(), target
