"""Names are text: whatever they hold, each target shows it and obeys none of it."""

import ast
import codecs
import html.parser
import io
import re
import sys
import unicodedata
import warnings
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt  # which rich brings
from rich.console import Console

import dim
from dim.score.page import figure_png, html_page, html_table
from dim.score.report import print_table
from dim.text import LINE, for_html, for_markdown, for_plot, for_terminal, in_ascii, one_line, printable, say

ROOT = Path(dim.__file__).parent
NASTY = [
    "x[/red]y",
    "a[b]c",
    "[bold]x",
    ":smile:",
    "$x^{$",
    "$a$b$",
    "\\$x$",
    "_hidden",
    "\x1b[31mred\x1b[0m",
    "a\nb\r\tc",
    "\x00\x07\x7f\x9b31m",
    "\u202egnp.exe",
    "\udcff",
    "<script>alert(1)</script>",
    '" onload="x',
    "![x](javascript:y)",
    "a | b",
    "---\nlicense: mit\n---",
    "# title",
    "1. first",
    "- item",
    "&amp;",
    "    code",
    "```",
    "猫",
    "{title}",
    "100%",
]
# Text of all kinds, with what is special somewhere much more often than chance has it.
names = st.one_of(
    st.sampled_from(NASTY),
    st.text(st.characters(), max_size=30),
    st.text(st.sampled_from("\\`*_{}[]<>()#+-.!|~&$@:\"'=/ \n\t\x1b\x7f\u2028aB7é"), max_size=20),
)


def nasty(test):
    """The property, with every nasty name among its examples."""
    for name in NASTY:
        test = example(name)(test)
    return given(names)(test)


# --- terminal -------------------------------------------------------------------------------------------------------------------


@nasty
def test_a_terminal_gets_one_line_of_printed_characters(name):
    shown = for_terminal(name)
    assert not [c for c in shown if unicodedata.category(c)[0] == "C" or c in "\u2028\u2029"]
    if not any(unicodedata.category(c)[0] in "CZ" for c in name):
        assert shown == name
    output = io.StringIO()
    say(name, output)
    assert output.getvalue() == shown + "\n"
    assert printable("a\nb\x1b", "\n") == "a\nb\\x1b"


@nasty
def test_a_message_is_one_line_of_limited_length(name):
    for text in (
        name,
        f"value is {name * 40!r}: expected a number from 0 to 1; try --other-option",
        " ".join([name or "x"] * 400),
    ):
        line = one_line(text)
        assert len(line) <= LINE
        assert line.isprintable()
        if text.isprintable() and len(text) <= LINE and text == " ".join(text.split()):
            assert line == text


def test_a_long_value_loses_its_middle_and_the_remedy_stays():
    line = one_line(f"--students is {'a' + 'x' * 500 + 'z'!r}: expected 'convnet' or {'b' * 400!r}; see 'dim evaluate --help'")
    assert len(line) == LINE
    assert line.startswith("--students is 'axxx")
    assert "xxxz': expected 'convnet' or 'bbb" in line
    assert line.endswith("; see 'dim evaluate --help'")
    assert one_line("word " * 100) == one_line("word " * 100)
    assert "..." in one_line("word " * 100)
    assert one_line("it's an owner's 'value'") == "it's an owner's 'value'"


@nasty
def test_an_ascii_terminal_gets_ascii(name):
    codecs.register_error("test.plain", in_ascii)
    assert f"93.1 ± 0.4 {name}".encode("ascii", "test.plain").isascii()
    assert "93.1 ± 0.4 × 3 …猫".encode("ascii", "test.plain") == b"93.1 +- 0.4 x 3 ...\\u732b"


# --- tables, plots, pages, cards ------------------------------------------------------------------------------------------------


@nasty
def test_a_table_shows_names_as_they_are(name):
    output = io.StringIO()
    # Wide enough for escapes of every character.
    print_table(
        f"title {name}", ["source", name], [[name, "1"]], ("source",), Console(file=output, width=2000, color_system=None)
    )
    shown = for_terminal(name).strip()
    assert output.getvalue().count(shown) >= 3  # without spaces around it, which a table may drop
    assert "\x1b" not in output.getvalue()


@pytest.mark.parametrize("name", NASTY)
def test_a_plot_shows_names_as_they_are(name):
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    figure = Figure(figsize=(2, 1))
    axes = figure.add_subplot()
    text = axes.set_title(for_plot(name))
    figure.legend(axes.plot([0, 1]), [for_plot(name)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a letter that the font lacks is a box, and not a warning in the middle of a table
        assert figure_png(figure).startswith(b"\x89PNG")
    assert isinstance(text, Text)


@nasty
def test_a_plot_has_no_formulas(name):
    from matplotlib.text import Text

    shown, formula = Text(0, 0, for_plot(name))._preprocess_math(for_plot(name))
    assert not formula
    assert shown == for_terminal(name)


class _Elements(html.parser.HTMLParser):
    """Elements with their attributes, and the text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.attributes, self.text = [], {}, ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes |= attrs

    def handle_data(self, data):
        self.text += data


@nasty
def test_html_has_no_elements_from_names(name):
    page = _Elements(f'<p title="{for_html(name)}">{for_html(name)}</p>')
    assert page.tags == ["p"]
    assert page.attributes == {"title": printable(name, "\n\t")}
    assert page.text == printable(name, "\n\t")
    plain, named = (_Elements(html_page(text, html_table([text], [[text]]))) for text in ("x", name))
    assert named.tags == plain.tags
    html_page(name, html_table([name], [[name]])).encode()


MARKDOWN = MarkdownIt("commonmark").enable("table")


@nasty
def test_markdown_shows_names_as_they_are(name):
    """In a heading, in a paragraph and in a cell of a table: no element more than without the name, and the same text."""

    def document(text: str) -> str:
        return f"# A {for_markdown(text)}\n\n{for_markdown(text)}\n\n| | |\n|---|---|\n| data | {for_markdown(text)}, more |\n"

    page, plain = (_Elements(MARKDOWN.render(document(text))) for text in (name, "x"))
    shown = " ".join(for_terminal(name).split())
    if shown:
        assert page.tags == plain.tags, document(name)
    text = " ".join(page.text.split())
    assert text == " ".join(f"A {shown} {shown} data {shown}, more".split()), document(name)


# --- used at every place --------------------------------------------------------------------------------------------------------


def test_each_target_is_escaped_in_one_place():
    """What would escape in another way, or print without: no file but the one of texts."""
    for path in sorted(ROOT.rglob("*.py")):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call) or path.name == "text.py":
                continue
            function, where = ast.unparse(node.func), f"{path}:{node.lineno}"
            assert function != "html.escape", where
            if function == "print":  # help and TOML, which hold no names or escape them in their own way
                assert path.name in ("cli.py", "making.py", "parsing.py"), where
            if function in ("Table", "table.add_row", "table.add_column"):
                assert "for_rich" in ast.unparse(node), where
            if re.search(r"\.(set_title|suptitle|legend|annotate)$", function) and (node.args or node.keywords):
                assert "for_plot" in ast.unparse(node), where


def test_standard_output_is_the_default(capsys):
    say("x\x1b[31m")
    assert capsys.readouterr().out == "x\\x1b[31m\n"
    assert sys.stdout is not None
