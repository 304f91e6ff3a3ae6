"""What HTML pages of runs and comparisons are made of: tables, pictures, curves, and the page around them."""

import base64
import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dim.text import for_html, for_plot


def html_table(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """A table; what is in the cells is escaped."""
    head = "".join(f"<th>{for_html(column)}</th>" for column in columns)
    lines = ["".join(f"<td>{for_html(cell)}</td>" for cell in row) for row in cells]
    body = "\n".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="wide"><table><tr>{head}</tr>\n{body}</table></div>'


def html_list(lines: Sequence[str]) -> str:
    """Sentences, one below the other; they are escaped."""
    items = "".join(f"<li>{for_html(line)}</li>" for line in lines)
    return f'<ul class="findings">{items}</ul>' if lines else ""


def html_details(title: str, content: str) -> str:
    """What is seen when it is asked for; the title is escaped, the content is not."""
    return f"<details><summary>{for_html(title)}</summary>{content}</details>"


def distance_curves(nearest: dict[str, Any]) -> bytes:
    """A PNG with the distributions of distances to the nearest training image."""
    from matplotlib.figure import Figure  # no global state, no display

    figure = Figure(figsize=(4.8, 3.2), layout="constrained")
    axes = figure.add_subplot()
    for key, label in (("generated", "synthetic"), ("held_out", "real, held out")):
        axes.plot(nearest[key], range(101), label=label)
    axes.set_xlabel("distance to the nearest training image")
    axes.set_ylabel("% of images below")
    axes.legend()
    return figure_png(figure)


def curves(metrics: list[dict[str, Any]], names: Sequence[str]) -> bytes:
    """A PNG with one small plot per recorded value."""
    from matplotlib.figure import Figure  # no global state, no display

    columns = min(4, len(names))
    lines = -(-len(names) // columns)
    figure = Figure(figsize=(3.2 * columns, 2.2 * lines), layout="constrained")
    for position, name in enumerate(names):
        axes = figure.add_subplot(lines, columns, position + 1)
        points = [(record["step"], record[name]) for record in metrics if name in record]
        axes.plot(*zip(*points, strict=True), linewidth=1)
        axes.set_title(for_plot(name), fontsize=9)
        axes.set_xlabel("step", fontsize=8)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.3)
    return figure_png(figure)


def figure_png(figure: Any) -> bytes:
    """A matplotlib figure as PNG. Letters that its font lacks are boxes."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph .* missing from font", UserWarning)
        figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _data_url(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode()


def html_image(content: bytes, text: str, kind: str = "") -> str:
    """A PNG inside the page, with the text that stands for it."""
    mark = f' class="{kind}"' if kind else ""
    return f'<img{mark} src="{_data_url(content)}" alt="{for_html(text)}">'


def picture(path: Path, caption: str, rows: Sequence[str] = ()) -> str:
    """A PNG of small images from a file, enlarged without blurring them, with the names of its rows beside it."""
    image = html_image(path.read_bytes(), caption, "pixels")
    if rows:
        names = "".join(f"<li>{for_html(name)}</li>" for name in rows)
        image = f'<div class="rows"><ol>{names}</ol>{image}</div>'
    return captioned(image, caption)


def captioned(content: str, caption: str) -> str:
    """A picture, which is HTML, with a line of text below it."""
    return f"<figure>{content}<figcaption>{for_html(caption)}</figcaption></figure>"


def html_page(title: str, body: str) -> str:
    """A page that needs no other file: the title, which is escaped, and the body, which is not."""
    return _PAGE.format(title=for_html(title), body=body)


_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><title>{title}</title>
<style>
:root {{ color-scheme: light dark; --text: #1c1e21; --back: #fff; --quiet: #5b6169; --line: #dfe2e6; --panel: #f5f6f8; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --text: #e4e6e9; --back: #15171a; --quiet: #9aa1aa; --line: #33373d; --panel: #1e2126; }}
}}
* {{ box-sizing: border-box; }}
body {{ font: 16px/1.55 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; color: var(--text);
  background: var(--back); }}
h1 {{ font-size: 1.6rem; line-height: 1.25; }} h2 {{ font-size: 1.2rem; margin-top: 2.5rem; }}
.quiet, figcaption {{ color: var(--quiet); font-size: .9rem; }}
.findings {{ background: var(--panel); border-radius: .5rem; padding: .8rem 1rem .8rem 2rem; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: .9rem; }}
th, td {{ padding: .3rem .6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }}
td:first-child, th:first-child {{ text-align: left; }}
.pair {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(24rem, 100%), 1fr)); gap: 1.5rem; }}
figure {{ margin: 0; }} img {{ max-width: 100%; border-radius: .25rem; }}
img.pixels {{ width: 100%; image-rendering: pixelated; }}
.rows {{ display: grid; grid-template-columns: max-content 1fr; gap: .5rem; }}
.rows ol {{ list-style: none; margin: 0; padding: 0; display: flex; flex-direction: column; font-size: .8rem; max-width: 8rem; }}
.rows li {{ flex: 1; display: flex; align-items: center; justify-content: end; min-height: 0; line-height: 1; overflow: hidden; }}
pre {{ background: var(--panel); padding: 1rem; overflow: auto; max-height: 30rem; border-radius: .5rem; font-size: .85rem; }}
</style>
<h1>{title}</h1>
{body}
</html>
"""
