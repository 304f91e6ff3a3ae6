"""Makes the pages of docs/, which are written to be read in the repository, fit for the site. A hook of mkdocs.

- A link to a file outside docs/ leads to the repository if mkdocs.yml has a `repo_url`. Without one, the path is shown as code.
- A picture outside docs/ is copied into the site.
- CONTRIBUTING.md and the notebooks of docs/ become pages.
"""

import json
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
CONTRIBUTING = "contributing.md"
PICTURES = "pictures-of-results"  # folder of the site
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s#:]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add pages and pictures that are not Markdown files of docs/."""
    files.append(File.generated(config, CONTRIBUTING, content=(ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")))
    for file in [file for file in files if file.src_uri.endswith(".ipynb")]:
        page = file.src_uri.removesuffix("ipynb") + "md"
        files.append(File.generated(config, page, content=notebook_page(json.loads(file.content_string), file.name)))
    for file in list(files.documentation_pages()):
        for _, _, target, _ in LINK.findall(file.content_string):
            path = in_repository(file.src_uri, target)
            if path.endswith(".png") and not path.startswith("docs/") and files.get_file_from_path(copied(path)) is None:
                files.append(File.generated(config, copied(path), abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite links to what exists in the repository and is no page or file of the site."""
    here = page.file.src_uri

    def rewritten(link: re.Match) -> str:
        mark, text, target, anchor = link.groups("")
        path = in_repository(here, target)
        if path.endswith(".ipynb") and path != f"docs/{here.removesuffix('md')}ipynb":  # its page
            path = path.removesuffix("ipynb") + "md"
        inside = path.removeprefix("docs/")
        known = inside if path.startswith("docs/") else CONTRIBUTING if path == "CONTRIBUTING.md" else copied(path)
        if files.get_file_from_path(known) is not None:
            return f"{mark}[{text}]({posixpath.relpath(known, posixpath.dirname(here) or '.')}{anchor})"
        if not (ROOT / path).exists():
            return link.group()  # for mkdocs to complain about
        if config.repo_url:
            return f"[{text}]({config.repo_url.rstrip('/')}/blob/HEAD/{path}{anchor})"
        return f"`{path}`" if text.strip("`") in (path, posixpath.basename(path)) else f"{text} (`{path}`)"

    return LINK.sub(rewritten, markdown)


def in_repository(page: str, target: str) -> str:
    """Where a link of a page leads, as a path from the root of the repository."""
    folder = "" if page == CONTRIBUTING else posixpath.dirname(f"docs/{page}")
    return posixpath.normpath(posixpath.join(folder, target))


def copied(path: str) -> str:
    """Where a picture of the repository stands in the site."""
    return f"{PICTURES}/{posixpath.basename(path)}"


def notebook_page(notebook: dict, name: str) -> str:
    """A notebook without outputs, as Markdown."""
    cells = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        cells.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
    return "\n\n".join([*cells, f"[This page as a notebook]({name}.ipynb)"]) + "\n"
