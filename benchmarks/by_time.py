"""What do students reach in so many seconds: on real images, on sets, and on the streams of generators?

    python benchmarks/by_time.py --result by-time-fashion-mnist --subjects refined=runs/refined drawn=runs/fashion --data-root DIR
    python benchmarks/by_time.py --render

The rows are those of `dim evaluate --student-seconds`: the settings of each are chosen on the validation part, and fresh students
with them are scored on the test part. Leave the machine to it, on one thread. Rows are kept in --out and found again; with
--render, results are written as tables into docs/time.md.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import tyro
from cifar10_page import table
from common import RESULTS, ROOT, KeepRows, Rows, Sources, save

from dim.commands.arguments import SamplerArguments
from dim.commands.malloc import keep_freed_memory
from dim.commands.subjects import load_subjects
from dim.config import ProtocolConfig, from_dict, to_dict
from dim.config.timed import TimedConfig
from dim.data.origin import real_data_of
from dim.io import read_json, write_bytes
from dim.sampler import identity
from dim.timed.score import TimedEvaluator, TimedScore
from dim.timed.table import COLUMNS, cells, real_rows, verdicts

PAGE = ROOT / "docs" / "time.md"
_MARKED = re.compile(r"(<!-- rendered: (by-time-[a-z0-9-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Arguments(KeepRows):
    """Score subjects by time."""

    subjects: tuple[str, ...] = ()
    """Sets and generators, as NAME=PLACE."""
    result: str = "by-time-fashion-mnist"
    """Its name."""
    data_root: str | None = None
    """Where the real data lies. Default: the environment variable DIM_DATA_ROOT."""
    out: str = "runs/by-time"
    """Where rows are kept."""
    seconds: tuple[float, ...] = (2.0, 10.0, 50.0)
    """Of training."""
    seeds: int = 5
    """Students per row."""
    student: str = "convnet:width=32"
    """Architecture."""
    timed: TimedConfig = field(default_factory=TimedConfig)
    """What is tried."""
    render: bool = False
    """Write the page instead."""


def measure(arguments: Arguments) -> Path:
    """All rows, and the result."""
    places = dict(subject.split("=", 1) for subject in arguments.subjects)
    loaded = load_subjects(list(places.values()), torch.device("cpu"), SamplerArguments())
    subjects = {name: loaded[place] for name, place in places.items()}
    info = next(iter(subjects.values())).info
    data, protocol = real_data_of(info, arguments.data_root, "cpu"), from_dict(ProtocolConfig, info["protocol"])
    protocol = from_dict(ProtocolConfig, {"students": [arguments.student]}, protocol)
    plan = {"budgets": arguments.seconds, "seeds": range(arguments.seeds)}
    evaluator = TimedEvaluator(data, protocol, arguments.timed, **plan, note=lambda line: print(line, flush=True))
    asked = {"protocol": to_dict(protocol), "timed": to_dict(arguments.timed), "seeds": arguments.seeds}
    asked |= {"data": data.spec.fingerprint, "seconds": arguments.seconds}
    rows = Rows(Sources.of(__file__), "cpu", asked, folder=Path(arguments.out), keep=arguments.keep_rows)
    every = [None, *subjects]
    names = [(name, seconds) for name in every for seconds in arguments.seconds]
    for (name, seconds), row in zip(names, evaluator.rows(subjects), strict=True):
        facts = {} if name is None else {"subject": identity(subjects[name])}
        from_folder = {} if name is None else {"made_from": {"subject": Path(places[name])}}
        rows.add(f"{name or 'real data'}, {seconds:g} s", lambda row=row: {"timed": row().to_dict()}, **from_folder, **facts)
    about = {"student": arguments.student, "seeds": arguments.seeds, "timed": to_dict(arguments.timed)}
    return save(arguments.result, {"about": about, "rows": rows.made})


def tables(content: dict[str, Any]) -> str:
    """A result as text."""
    rows = [TimedScore.from_dict(row["timed"]) for row in content["rows"]]
    real = real_rows(rows)
    columns = [name for name in COLUMNS if name not in ("student", "labels")]
    lines = [[cell for name, cell in zip(COLUMNS, cells(row, real), strict=True) if name in columns] for row in rows]
    said = "".join(f"- {line}\n" for line in verdicts(rows))
    return f"{table(columns, lines)}\n{said}"


def rendered(text: str) -> str:
    """A page with the tables of results in place of what stands between their marks."""

    def stored(found: re.Match) -> str:
        path = RESULTS / f"{found[2]}.json"
        return f"{found[1]}{tables(read_json(path)) if path.is_file() else 'Not run.' + chr(10)}{found[3]}"

    return _MARKED.sub(stored, text)


def main(arguments: Arguments) -> None:
    if arguments.render:
        write_bytes(PAGE, rendered(PAGE.read_text()).encode())
        return
    print(measure(arguments))


if __name__ == "__main__":
    keep_freed_memory()
    main(tyro.cli(Arguments))
