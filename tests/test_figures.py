"""Every measured number in README.md and docs/ is in a file of benchmarks/results/, in the row that the page names.

A comment before a table or a paragraph says where its numbers come from; readers do not see it:

    <!-- figures: policies-fashion.json
    n: 3
    row herding, real images: herding real
    column IPC 1, hard labels: fixed & IPC 1 & hard
    -->

`row` and `column` give the terms of a line and of a column of the table. A line without `row` has its own first cell as its term.
For a paragraph, `text` gives the terms of its numbers, one line for each, in their order. `n` is the number of accuracies behind
every mean; the section has to say it to the reader, too.

A term is one part of the address of a number, with `*` for anything; `!` before it means that no part may match. `records` makes
the addresses: the file, what identifies the row (its name, and for a score also track, `IPC 10`, `hard` or `soft`, and student),
the kind of thing the number stands in (`score`, `coverage`, `class`, `row` or `file`), and its keys in there, as `bytes.images`.

`a ± b` has to be the mean and the standard deviation of one row, and the terms have to leave that row only. Other numbers of a
cell have to be all that the terms leave, each correctly rounded. MB, kB, minutes and % after a number are converted. Numbers in
code are not checked. In a table with figures every number outside the first column is checked; in a paragraph, those with a
decimal point or ±. A table says `<!-- no figures -->` if it has none.
"""

import dataclasses
import functools
import itertools
import json
import re
import statistics
from collections.abc import Iterator
from decimal import Decimal
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

NUMBER = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:e-?\d+)?"
FIGURE = re.compile(rf"(?<![\w.,])({NUMBER})(?: ± ({NUMBER}))?(?![\w]|\.\d)(?: ?(MB|kB|minutes|%)(?!\w))?")
# Tables that a program renders are compared with what it renders (tests/test_cifar10.py).
RENDERED = re.compile(r"<!-- rendered: .*?<!-- end -->", re.DOTALL)
# Not seen by the checker: code, addresses of links, HTML.
HIDDEN = re.compile(r"`[^`]*`|\]\([^)]*\)|<[^>]*>")
# Numbers with a point that nobody measured.
VERSIONS = re.compile(r"(?:Python|PyTorch|Apache) \d+(?:\.\d+)+(?: and \d+(?:\.\d+)+)?|licence 2\.0")
UNITS = {"MB": 1e-6, "kB": 1e-3, "minutes": 1 / 60, "%": 100.0, None: 1.0}


# --- what the files hold -----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Record:
    """A number of a file, or the mean and the standard deviation of several."""

    address: tuple[str, ...]
    value: float
    std: float | None = None
    n: int = 1


@functools.cache
def records(path: Path) -> tuple[Record, ...]:
    """All that a file of results holds."""
    return tuple(_walk(json.loads(path.read_text()), (path.name,), "file", ()))


def _walk(node: object, names: tuple[str, ...], kind: str, keys: tuple[str, ...]) -> Iterator[Record]:
    if isinstance(node, dict):
        found = _identity(node)
        if found is not None:
            kind, names, keys = found[0], names + found[1], ()
        if "accuracies" in node:
            mean, std = statistics.fmean(node["accuracies"]), statistics.stdev(node["accuracies"])
            assert (node["mean"], node["std"], node["n"]) == pytest.approx((mean, std, len(node["accuracies"])))
            yield Record((*names, kind), mean, std, len(node["accuracies"]))
        for key, value in node.items():
            yield from _walk(value, names, kind, (*keys, key))
    elif isinstance(node, list):
        if keys[-1:] in {("seconds",), ("fixed",), ("stream",)} and len(node) > 1:  # one value per run
            yield Record((*names, kind, ".".join(keys)), statistics.fmean(node), statistics.stdev(node), len(node))
        if keys[-1:] and keys[-1].endswith("_by_epoch"):
            for epoch, value in enumerate(node):
                yield from _walk(value, names, kind, (*keys, str(epoch)))
        for value in node:
            if isinstance(value, dict):
                yield from _walk(value, names, kind, keys)
    elif isinstance(node, int | float) and not isinstance(node, bool):
        yield Record((*names, kind, ".".join(keys)), float(node))


def _identity(node: dict) -> tuple[str, tuple[str, ...]] | None:
    """The kind of a dictionary and the parts of an address that identify it; None if it belongs to what it lies in."""
    if "accuracies" in node:
        labels = node["labels"].partition(" ")[0]
        return "score", (node["name"], node["track"], f"IPC {node['ipc']}", labels, node["student"])
    if "metrics" in node and "features" in node:
        return "coverage", (node["name"],)
    if "class" in node:
        return "class", (node["class"],)
    if "score" in node:
        return "row", (node["score"]["name"],)
    if "peak_mb" in node or {"cosine", "steps"} <= node.keys():
        return "row", (node["name"], f"N = {node['steps']}")
    if "published_upkeep" in node:
        return "row", (f"precision {node['precision']}",)
    if "losses" in node:
        return "row", (node["recipe"],)
    if "peak_mib" in node and "images" in node:
        return "row", (node["name"], f"{node['images']} images")
    measured = {"scores", "coverage", "fixed", "of_unroll", "seconds", "seconds_per_image", "gflops", "images_per_second"}
    measured |= {"ratio", "standard_error", "trials", "mean_accuracy_by_epoch"}
    if measured & node.keys() and "name" in node:
        return "row", (node["name"],)
    return None


def chosen(results: Path, files: tuple[str, ...], terms: tuple[str, ...]) -> list[Record]:
    """Records of some files whose addresses satisfy all terms."""
    return [record for file in files for record in _chosen(results / file, terms)]


@functools.cache
def _chosen(path: Path, terms: tuple[str, ...]) -> tuple[Record, ...]:
    return tuple(record for record in records(path) if all(_satisfies(record.address, term) for term in terms))


def _satisfies(address: tuple[str, ...], term: str) -> bool:
    wanted = not term.startswith("!")
    return any(fnmatchcase(part, term.removeprefix("!")) for part in address) == wanted


# --- what a page says --------------------------------------------------------------------------------------------------------


class Mistake(Exception):
    """A number that is not in the files, or a comment that does not fit."""


@dataclasses.dataclass
class Block:
    """A table or a paragraph, with the comment before it and the visible text of its section up to its end."""

    page: str
    line: int
    lines: list[str]
    comment: str
    section: str

    @property
    def is_table(self) -> bool:
        return self.lines[0].lstrip().startswith("|")

    def fail(self, message: str) -> None:
        raise Mistake(f"{self.page}:{self.line}: {message}")


def written(path: Path) -> str:
    """A page without what a program renders; lines keep their numbers."""
    return RENDERED.sub(lambda found: "\n" * found.group().count("\n"), path.read_text())


def blocks(text: str, page: str = "page") -> list[Block]:
    """The tables and paragraphs of a page, without headings and code."""
    found: list[Block] = []
    comment, section, current, code, pending = "", "", [], False, None
    for number, line in enumerate([*text.splitlines(), ""], start=1):
        starts = line.lstrip()
        if pending is not None:
            pending.append(line)
            if "-->" in line:
                comment, pending = "\n".join(pending), None
            continue
        ends = not starts or starts.startswith(("<!--", "```", "#")) or (current and (starts[0] == "|") != current[-1][1])
        if ends and current and not code:
            lines = [line for line, _ in current]
            section += "\n" + "\n".join(lines)
            found.append(Block(page, number - len(lines), lines, comment, section))
            comment, current = "", []
        if starts.startswith("```"):
            code = not code
        elif code or not starts or (line.startswith("    ") and not current):
            continue
        elif starts.startswith("<!--"):
            if "-->" in line:
                comment = line
            else:
                pending = [line]
        elif starts.startswith("#"):
            section = ""
        else:
            current.append((line, starts[0] == "|"))
    return found


def visible(line: str) -> str:
    """A line with what readers or the checker do not take as numbers blanked, in its own length."""
    for pattern in (HIDDEN, VERSIONS):
        line = pattern.sub(lambda match: " " * len(match.group()), line)
    return line


@dataclasses.dataclass(frozen=True)
class Figure:
    """A number of a page: where it is, its digits, those after ±, and its unit."""

    line: int
    start: int
    match: re.Match

    @property
    def text(self) -> str:
        return self.match.group()

    @property
    def is_pair(self) -> bool:
        return self.match.group(2) is not None

    def fits(self, record: Record) -> bool:
        """Whether it is this record, rounded."""
        scale = UNITS[self.match.group(3)]
        shown = [(self.match.group(1), record.value * scale)]
        if self.is_pair:
            shown.append((self.match.group(2), record.std * scale))
        return all(_rounds_to(value, digits) for digits, value in shown)


def _rounds_to(value: float, digits: str) -> bool:
    number = Decimal(digits.replace(",", ""))
    return abs(value - float(number)) <= 0.5 * 10.0 ** number.as_tuple().exponent * (1 + 1e-9)


def figures(line: str, number: int, start: int, end: int | None = None) -> list[Figure]:
    """The numbers in a part of a line."""
    end = len(line) if end is None else end
    return [Figure(number, match.start(), match) for match in FIGURE.finditer(visible(line), start, end)]


def cells(line: str) -> list[tuple[int, int]]:
    """Where the cells of a line of a table begin and end."""
    bars = [place for place, letter in enumerate(visible(line)) if letter == "|"]
    return [(low + 1, high) for low, high in itertools.pairwise(bars)]


@dataclasses.dataclass
class Comment:
    """A parsed comment."""

    files: tuple[str, ...]
    n: int | None = None
    rows: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    columns: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    texts: list[tuple[str, ...]] = dataclasses.field(default_factory=list)


def parsed(block: Block, results: Path) -> Comment | None:
    """The comment of a block; None if it says that there are no figures, or nothing."""
    body = re.sub(r"^\s*<!--|-->\s*$", "", block.comment).strip()
    if body in ("", "no figures"):
        return None
    first, *rest = [line.strip() for line in body.splitlines()]
    if not first.startswith("figures: "):
        block.fail(f"unknown comment {first!r}")
    comment = Comment(tuple(first.removeprefix("figures: ").split()))
    for file in comment.files:
        if not (results / file).is_file():
            block.fail(f"no file {file} in {results}")
    for line in rest:
        word, _, given = line.partition(" ")
        if word == "n:":
            comment.n = int(given)
        elif word == "text:":
            comment.texts.append(_terms(given))
        elif word in ("row", "column") and ": " in given:
            label, _, terms = given.rpartition(": ")
            (comment.rows if word == "row" else comment.columns)[label] = _terms(terms)
        else:
            block.fail(f"unknown line {line!r} in a comment")
    return comment


def _terms(text: str) -> tuple[str, ...]:
    return tuple(term.strip() for term in text.split(" & "))


def check(block: Block, results: Path = RESULTS) -> list[Figure]:
    """Raise Mistake unless all numbers of a block are in the files; returns those that were looked up."""
    comment = parsed(block, results)
    if comment is None:
        if block.is_table and not block.comment:
            block.fail("a table needs a comment: <!-- figures: FILE ... --> or <!-- no figures -->")
        loose = [figure.text for number, line in enumerate(block.lines) for figure in figures(line, number, 0) if _counts(figure)]
        if loose:
            block.fail(f"{', '.join(loose)} without a comment that names the file")
        return []
    looked_up = _check_table(block, comment, results) if block.is_table else _check_text(block, comment, results)
    if not looked_up:
        block.fail("a comment names a file, and there is no figure")
    if any(figure.is_pair for figure in looked_up) and not re.search(rf"\bn = {comment.n}\b", " ".join(block.section.split())):
        block.fail(f"the section does not say n = {comment.n}")
    return looked_up


def _counts(figure: Figure) -> bool:
    return figure.is_pair or "." in figure.text


def _check_text(block: Block, comment: Comment, results: Path) -> list[Figure]:
    found = [figure for number, line in enumerate(block.lines) for figure in figures(line, number, 0) if _counts(figure)]
    if len(found) != len(comment.texts):
        block.fail(f"{len(found)} figures ({', '.join(figure.text for figure in found)}) and {len(comment.texts)} lines `text:`")
    for figure, terms in zip(found, comment.texts, strict=True):
        _compare(block, [figure], comment, terms, results)
    return found


def _check_table(block: Block, comment: Comment, results: Path) -> list[Figure]:
    head, rule, *rows = block.lines
    if set(rule) - set("|-: "):
        block.fail("a table without a head")
    titles = [head[low:high].strip() for low, high in cells(head)]
    looked_up, used_rows, used_columns = [], set(), set()
    for number, line in enumerate(rows, start=2):
        places = cells(line)
        if len(places) != len(titles):
            block.fail(f"{line!r} has {len(places)} cells, and the head {len(titles)}")
        label = line[slice(*places[0])].strip()
        for title, (low, high) in list(zip(titles, places, strict=True))[1:]:
            found = figures(line, number, low, high)
            if not found:
                continue
            if title not in comment.columns:
                block.fail(f"column {title!r} has figures and no line in the comment")
            terms = comment.rows.get(label, (label.replace("`", ""),)) + comment.columns[title]
            used_rows.add(label)
            used_columns.add(title)
            _compare(block, found, comment, terms, results)
            looked_up += found
    if unused := (comment.rows.keys() - used_rows) | (comment.columns.keys() - used_columns):
        block.fail(f"lines of the comment that nothing uses: {', '.join(sorted(unused))}")
    return looked_up


def _compare(block: Block, found: list[Figure], comment: Comment, terms: tuple[str, ...], results: Path) -> None:
    """The numbers of a cell, or one of a text, against what the terms leave."""
    pairs = found[0].is_pair
    if any(figure.is_pair != pairs for figure in found):
        block.fail(f"{', '.join(figure.text for figure in found)}: some with ± and some without")
    if pairs and comment.n is None:
        block.fail("± without a line `n:` in the comment")
    left = [record for record in chosen(results, comment.files, terms) if (record.std is not None) == pairs]
    shown, wanted = ", ".join(figure.text for figure in found), " & ".join(terms)
    if not left:
        block.fail(f"{shown}: nothing in {', '.join(comment.files)} is {wanted}")
    for figure in found:
        if not any(figure.fits(record) for record in left):
            there = ", ".join(sorted({f"{record.value:.6g}" + (f" ± {record.std:.3g}" if pairs else "") for record in left}))
            block.fail(f"{figure.text}: {wanted} is {there}")
    for record in left:
        if not any(figure.fits(record) for figure in found):
            block.fail(f"{shown}: {wanted} is also {record.value:.6g} ({' / '.join(record.address)})")
        if pairs and record.n != comment.n:
            block.fail(f"{shown}: n is {record.n}, and the comment says {comment.n}")


def check_page(text: str, page: str = "page", results: Path = RESULTS) -> list[Figure]:
    """All blocks of a page."""
    return [figure for block in blocks(text, page) for figure in check(block, results)]


# --- the pages ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_figures_are_in_the_results(path):
    check_page(written(path), path.name)


def test_no_figure_is_passed_over():
    """So that nothing above passes because no figure was found, or because one was hidden in code."""
    found = {path.name: check_page(written(path), path.name) for path in PAGES}
    assert len(found["README.md"]) >= 10
    assert len(found["figures.md"]) >= 350
    for path in PAGES:
        pairs = [figure for figure in found[path.name] if figure.is_pair]
        assert len(pairs) == len(re.findall(r"\d ± \d", written(path))), path.name


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_changed_digit_is_noticed(path):
    """Each number that is looked up, changed by three units of its last digit, and the same after ±."""
    for block in blocks(written(path), path.name):
        for figure in check(block):
            for group in (1, 2) if figure.is_pair else (1,):
                changed = _changed(block, figure, group)
                with pytest.raises(Mistake):
                    check(changed)


def _changed(block: Block, figure: Figure, group: int) -> Block:
    line, (low, high) = block.lines[figure.line], figure.match.span(group)
    number = Decimal(line[low:high].replace(",", ""))
    moved = number + 3 * Decimal(1).scaleb(number.as_tuple().exponent)
    lines = [*block.lines]
    lines[figure.line] = f"{line[:low]}{moved}{line[high:]}"
    return dataclasses.replace(block, lines=lines)


@pytest.mark.parametrize("path", [*PAGES, ROOT / "benchmarks" / "README.md"], ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(path):
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    assert links
    for link in links:
        if link.startswith("https://"):
            continue
        target, _, anchor = link.partition("#")
        file = (path.parent / target).resolve() if target else path
        assert file.exists(), f"{path.name}: {link}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(), flags=re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}, link


def test_the_readme_is_short_and_names_the_two_commands():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 150
    assert any("make demo" in line for line in lines)
    assert any("make test" in line for line in lines)


# --- the checker -------------------------------------------------------------------------------------------------------------


def score(name: str, track: str, ipc: int, labels: str, accuracies: list[float]) -> dict:
    mean, std = statistics.fmean(accuracies), statistics.stdev(accuracies)
    facts = {"name": name, "track": track, "ipc": ipc, "labels": labels, "student": "convnet", "accuracies": accuracies}
    return {**facts, "mean": mean, "std": std, "n": len(accuracies), "bytes": {"images": 4_729_968}, "seconds": 12.5}


@pytest.fixture
def results(tmp_path):
    """Three rows: one at 50.0 ± 1.0, one at 60.0 ± 2.0, and one at 70.0 ± 1.0 with two accuracies."""
    rows = [
        {"name": "plain, IPC 1", "policy_seconds": 31.4, "scores": [score("plain", "fixed", 1, "hard", [49.0, 50.0, 51.0])]},
        {"name": "plain, IPC 10", "policy_seconds": 61.7, "scores": [score("plain", "fixed", 10, "hard", [58.0, 60.0, 62.0])]},
        {"name": "other", "scores": [score("other", "fixed", 1, "soft (teacher)", [69.29, 70.71])]},
    ]
    (tmp_path / "a.json").write_text(json.dumps({"rows": rows}))
    return tmp_path


COMMENT = """<!-- figures: a.json
n: 3
row the generator: plain*
column IPC 1: fixed & IPC 1
column IPC 10: fixed & IPC 10
column seconds: row & policy_seconds
-->
"""
HEAD = "n = 3 students.\n\n"
TABLE = "| | IPC 1 | IPC 10 | seconds |\n|---|---|---|---|\n| the generator | 50.0 ± 1.0 | 60.0 ± 2.0 | 31, 62 |\n"


def test_a_right_table_passes(results):
    found = check_page(HEAD + COMMENT + TABLE, results=results)
    assert [figure.text for figure in found] == ["50.0 ± 1.0", "60.0 ± 2.0", "31", "62"]
    assert len(check_page(HEAD.replace("n = 3", "n =\n3") + COMMENT + TABLE, results=results)) == len(found)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("50.0 ± 1.0", "50.3 ± 1.0", "50.3 ± 1.0: plain* & fixed & IPC 1 is 50 ± 1"),
        ("50.0 ± 1.0", "50.0 ± 1.2", "50.0 ± 1.2: plain* & fixed & IPC 1 is 50 ± 1"),
        ("50.0 ± 1.0 | 60.0 ± 2.0", "60.0 ± 2.0 | 50.0 ± 1.0", "60.0 ± 2.0: plain* & fixed & IPC 1 is 50 ± 1"),
        ("60.0 ± 2.0", "60.0 ± 1.0", "60.0 ± 1.0: plain*"),
        ("31, 62", "31", "is also 61.7"),
        ("31, 62", "31, 63", "63: plain* & row & policy_seconds is 31.4, 61.7"),
        ("31, 62", "31, 62, 62.5", "62.5: plain* & row"),
        ("50.0 ± 1.0", "50.0", "50.0: plain* & fixed & IPC 1 is also 1 "),
        ("50.0 ± 1.0", "50.0 ± 1.0 (31)", "some with ± and some without"),
        ("| the generator", "| a generator", "nothing in a.json is a generator"),
        ("row the generator", "row the generators", "nothing in a.json is the generator"),
        ("IPC 1 | IPC 10 |", "IPC 1 | IPC 50 |", "column 'IPC 50' has figures and no line"),
        ("column IPC 1: fixed & IPC 1\n", "column IPC 1: fixed\n", "is also 60"),
        ("column IPC 1: fixed & IPC 1\n", "column IPC 1: stream & IPC 1\n", "nothing in a.json"),
        ("row the generator: plain*", "row the generator: other", "is 70 ± 1"),
        ("a.json", "b.json", "no file b.json"),
        ("n: 3\n", "", "without a line `n:`"),
        ("n: 3", "n: 2", "n is 3, and the comment says 2"),
        ("n = 3 students", "three students", "does not say n = 3"),
        ("seconds: row", "second: row", "column 'seconds' has figures and no line"),
        ("n: 3", "n: 3\ncolumn IPC 50: IPC 50", "nothing uses: IPC 50"),
        ("n: 3", "n: 3\nlines: 4", "unknown line 'lines: 4'"),
        ("<!-- figures: a.json", "<!-- figure: a.json", "unknown comment"),
        (COMMENT, "", "a table needs a comment"),
        (COMMENT, "<!-- no figures -->\n", "without a comment that names the file"),
    ],
)
def test_a_wrong_table_fails(results, old, new, message):
    page = HEAD + COMMENT + TABLE
    assert old in page
    with pytest.raises(Mistake, match=re.escape(message)):
        check_page(page.replace(old, new), results=results)


TEXT = """<!-- figures: a.json
n: 3
text: plain & IPC 1
text: plain & IPC 10 & bytes.images
-->
It has 50.0 ± 1.0 (n = 3), 4.7 MB.
"""


def test_a_right_text_passes(results):
    assert [figure.text for figure in check_page(TEXT, results=results)] == ["50.0 ± 1.0", "4.7 MB"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("50.0 ± 1.0", "51.0 ± 1.0", "51.0 ± 1.0: plain & IPC 1 is 50 ± 1"),
        ("4.7 MB", "4.8 MB", "4.8 MB"),
        ("4.7 MB", "4.7 kB", "4.7 kB"),
        ("4.7 MB", "four MB", "1 figures (50.0 ± 1.0) and 2 lines"),
        (", 4.7 MB", ", 4.7 MB and 60.0 ± 2.0", "3 figures"),
        ("text: plain & IPC 1\n", "text: plain\n", "is also 60"),
        (TEXT.partition("-->\n")[0] + "-->\n", "", "50.0 ± 1.0, 4.7 MB without a comment"),
    ],
)
def test_a_wrong_text_fails(results, old, new, message):
    assert old in TEXT
    with pytest.raises(Mistake, match=re.escape(message)):
        check_page(TEXT.replace(old, new), results=results)


def test_a_comment_serves_one_block_only(results):
    with pytest.raises(Mistake, match="without a comment"):
        check_page(TEXT + "\nAnd again 50.0 ± 1.0.\n", results=results)


def test_code_versions_and_whole_numbers_need_no_comment():
    page = "Python 3.11 and PyTorch 2.9.1 and 2.14.1, `lr 0.01`, IPC 10, [v](https://a.b/1.5).\n\n```python\nx = 0.5\n```\n"
    assert check_page(page) == []
    with pytest.raises(Mistake, match=r"0\.5 without"):
        check_page("About 0.5 of them.\n")


def test_rounding():
    assert _rounds_to(85.35, "85.3")
    assert _rounds_to(85.35, "85.4")
    assert not _rounds_to(85.36, "85.3")
    assert _rounds_to(1024.18, "1,024")
    assert not _rounds_to(1024.6, "1,024")
    assert _rounds_to(3.02e-7, "3e-7")
    assert not _rounds_to(3.6e-7, "3e-7")


def test_a_score_whose_mean_is_not_that_of_its_accuracies_is_noticed(tmp_path):
    row = score("plain", "fixed", 1, "hard", [49.0, 50.0, 51.0])
    (tmp_path / "a.json").write_text(json.dumps({"scores": [{**row, "mean": 50.5}]}))
    with pytest.raises(AssertionError):
        records(tmp_path / "a.json")
