"""What survives kills, full disks, two writers, damaged files and nonsense on the command line?

    python benchmarks/faults.py [--parts artefacts commands kills disks races] [--scale 1.0] [--seed 0]

Everything is made of the digits, small, in a temporary folder. A trial is a *fault* if it ends in a traceback, takes two seconds
or a GiB more than usual, is refused in more than one line of 300 characters, accepts content that is not what was written, or,
after a kill, ends in other bytes or rows than a run that was never killed. Every fault is printed. A recipe, an image and a file
whose checksum was made to fit again are somebody's own words: they may mean something else, and only must not do harm.
"""

import contextlib
import io
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import tyro
from common import RESULTS, Rows, Sources, save
from faults_artefacts import Artefact, artefacts, commands, forged, make_all, mutated

from dim.commands.cli import main as dim_main
from dim.config import Choices
from dim.errors import InputError
from dim.io import load_tensors, read_json
from dim.run_folder import read_metrics
from dim.score.record import read_scores

_SLOW_SECONDS, _MOST_WAITING, _MOST_BYTES, _LONGEST = 2.0, 60.0, 2**30, 300
_FULL = {"artefacts": 10_000, "commands": 2_000, "kills": 100, "disks": 30, "races": 50}


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """What to try, and how often."""

    parts: tuple[str, ...] = tuple(_FULL)
    """Which of artefacts, commands, kills, disks and races."""
    scale: float = 1.0
    """Trials as a part of the full number, which is 10,000 artefacts, 2,000 command lines, 100 kills, 30 disks and 50 races."""
    seed: int = 0
    """Of every draw."""


@dataclass
class Tally:
    """How trials ended."""

    ends: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def add(self, end: str, what: str = "") -> None:
        """Count an end; one with a text is a fault."""
        self.ends[end] += 1
        if what:
            self.faults.append(f"{end}: {what}")
            print(f"FAULT {end}: {what}", flush=True)

    def merge(self, other: "Tally") -> None:
        """Add another's."""
        self.ends += other.ends
        self.faults += other.faults


def judged(tally: Tally, what: str, call: Callable[[], Any], accept: Callable[[Any], bool] | None, usual: float) -> None:
    """Call a reader and say how it ended. `accept` judges what was read; None: anything may be. `usual`
    are the seconds that it takes with a good file."""
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, (time.monotonic(), time.process_time())
    end, fault = "read", ""
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            found = call()
        if accept is not None and not accept(found):
            end, fault = "accepted with changed content", what
    except InputError as error:
        end, fault = "refused", "" if _is_good(str(error)) else f"{what}: {str(error)[:400]!r}"
    except OSError as error:
        end, fault = "refused", "" if error.filename is not None else f"{what}: {traceback.format_exc()}"
    except Exception:
        end, fault = "traceback", f"{what}\n{traceback.format_exc()}"
    waited, worked = time.monotonic() - began[0], time.process_time() - began[1]
    if worked > _SLOW_SECONDS + 3 * usual or waited - worked > _MOST_WAITING:  # on a busy machine, everybody waits
        end, fault = "slow", f"{what}: {worked:.1f} s of work, {waited:.1f} s in all"
    if 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) > _MOST_BYTES:
        end, fault = "memory", what
    tally.add(end, fault)


def _is_good(message: str) -> bool:
    return len(message) <= _LONGEST and message.isprintable()


# --- damaged files --------------------------------------------------------------------------------------------------------------


def try_artefacts(folder: Path, count: int, seed: int) -> Tally:
    """Damage every kind of file in many ways, and read each. A child process reads one kind, so that one that dies is noticed."""
    tally, kinds = Tally(), artefacts(folder)
    for table in Choices.tables:  # a message that names every choice loads their libraries, once
        for name in table.names():
            table.load(name)
    for kind in kinds:
        tally.merge(_in_child(_damage, kind, max(1, count // len(kinds)), seed))
    return tally


def _damage(kind: Artefact, count: int, seed: int) -> Tally:
    draw, tally = random.Random(f"{kind.name} {seed}"), Tally()
    with tempfile.TemporaryDirectory() as scratch:
        whole, began = kind.copied(Path(scratch) / "good"), time.process_time()
        good = kind.read(whole)
        usual = time.process_time() - began
        place = kind.copied(Path(scratch) / "bad")
        content = (place / kind.file).read_bytes()
        for number in range(count):
            own = kind.forge is not None and number % 3 == 0
            (place / kind.file).write_bytes(content)
            how = forged(kind, place, draw) if own else mutated(place / kind.file, content, draw)
            free = own or not kind.checked
            accept = None if free else lambda found: kind.same(found, good)
            judged(tally, f"{kind.name}, {how}", partial(kind.read, place), accept, usual)
            shutil.rmtree(place)
            place = kind.copied(place)
    return tally


def _in_child(work: Callable[..., Tally], *arguments: Any) -> Tally:
    """Run a part in a process of its own; a death is a fault."""
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)
    child = context.Process(target=lambda: send.send(work(*arguments)))
    child.start()
    send.close()
    try:
        tally = receive.recv()
    except EOFError:
        tally = Tally()
        tally.add("death", f"{work.__name__} of {getattr(arguments[0], 'name', '')}")
    child.join()
    return tally


# --- command lines --------------------------------------------------------------------------------------------------------------


def try_commands(folder: Path, count: int, seed: int) -> Tally:
    """Give nonsense to every command, as far as its checks before work."""
    return _in_child(_nonsense, folder, count, seed)


def _nonsense(folder: Path, count: int, seed: int) -> Tally:
    tally, place = Tally(), folder / "nonsense"
    place.mkdir()
    os.chdir(place)  # of this process alone: names that are no options may be those of files
    for arguments in commands(folder, count, random.Random(seed)):
        output, errors = io.StringIO(), io.StringIO()
        what, began = f"dim {' '.join(map(repr, arguments))}"[:500], time.process_time()
        try:
            with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
                status = dim_main(arguments)
        except SystemExit as stop:
            status = stop.code or 0
        except Exception:
            tally.add("traceback", f"{what}\n{traceback.format_exc()}")
            continue
        lines = errors.getvalue().splitlines()
        good = status == 0 or (len(lines) >= 1 and _is_good(lines[-1].removeprefix("dim: ")))
        slow = time.process_time() - began > 5 * _SLOW_SECONDS  # some of them do small work
        tally.add("slow" if slow else f"status {status}", what if slow or not good else "")
    return tally


# --- kills, full disks, races ---------------------------------------------------------------------------------------------------


def dim(*arguments: Any, **settings: Any) -> subprocess.Popen:
    """Start a command."""
    command = [sys.executable, "-m", "dim.commands.cli", *map(str, arguments)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, **{**quiet, **settings})


@dataclass(frozen=True)
class Work:
    """A command that works for a while: how it is started, how it goes on, and what it leaves."""

    name: str
    start: tuple[Any, ...]
    resume: tuple[Any, ...]
    result: Callable[[Path], Any]
    """What a run leaves, without times."""


def works(folder: Path) -> Iterator[Work]:
    """Every command that works for long, with `OUT` where its output goes."""

    def tensors(name: str) -> Callable[[Path], Any]:
        def read(out: Path) -> Any:
            (path,) = out.glob(name)
            steps = [record["step"] for record in read_metrics(out)]
            return {key: value.numpy().tobytes() for key, value in load_tensors(path)[0].items()}, steps

        return read

    def rows(out: Path) -> Any:
        return [(row.name, row.track, row.ipc, row.student, row.accuracies) for row in read_scores(out)]

    make = {
        "train": ("train", "--recipe", folder / "long.toml", "--out", "OUT"),
        "experts": ("experts", "--recipe", folder / "long-experts.toml", "--out", "OUT"),
        "distill": ("distill", "--recipe", folder / "long-distill.toml", "--experts", folder / "experts", "--out", "OUT"),
    }
    yield Work("train", make["train"], ("--resume",), tensors("generator.safetensors"))
    yield Work("experts", make["experts"], ("--resume",), lambda out: (out / "weights.bin").read_bytes())
    yield Work("distill", make["distill"], ("--resume",), tensors("data-*.safetensors"))
    measured = (folder / "set-npz", folder / "run", "--ipc", 2, "--seeds", 3, "--protocol.epochs", 20)
    controls = ("--controls", "random", "oracle", "--json", "OUT")
    yield Work("evaluate", ("evaluate", *measured, *controls), (), rows)
    yield Work("compare", ("compare", *measured, *controls), (), rows)
    refined = (
        "--policy.steps",
        "refined",
        "--teacher.folder",
        folder / "experts",
        "--refine.steps",
        60,
        "--refine.blocks",
        1,
        2,
        "--refine.span",
        1,
    )
    sample = ("sample", folder / "run", "--ipc", 2, *refined, "--format", "safetensors", "--out", "OUT")
    yield Work("sample", sample, (), lambda out: load_tensors(out / "data.safetensors")[0]["images"].numpy().tobytes())


def try_kills(folder: Path, count: int, seed: int, only: Collection[str] = ()) -> Tally:
    """Kill every command (or `only` some) again and again at random moments, let it end, and compare with one never killed. One
    that ends before it is killed is compared, too, and begins anew."""
    tally, draw = Tally(), random.Random(seed)
    several = [work for work in works(folder) if not only or work.name in only]
    for work in several:
        whole, killed = folder / f"{work.name}-whole", folder / f"{work.name}-killed"
        began = time.monotonic()
        if _wait(dim(*_at(work.start, whole))):
            tally.add("did not run", work.name)
            continue
        takes, kills = time.monotonic() - began, 0
        while kills < -(-count // len(several)):
            process = dim(*_at(work.start, killed), *(work.resume if killed.exists() else ()))
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=draw.uniform(0.3, 0.9) * takes)
            process.kill()
            process.communicate()
            if process.returncode == -signal.SIGKILL:
                tally.add("killed")
                kills += 1
            elif not _ended_alike(work, killed, whole, tally):
                break
        else:
            _ended_alike(work, killed, whole, tally)
    return tally


def _ended_alike(work: Work, killed: Path, whole: Path, tally: Tally) -> bool:
    """Let work that was killed come to its end, compare it with what was never killed, and remove it."""
    process = dim(*_at(work.start, killed), *(work.resume if killed.exists() else ()))
    errors = process.communicate()[1]
    if process.returncode not in (0, 2) or (process.returncode == 2 and "not empty" not in errors):
        tally.add("was not continued", f"{work.name}: {errors[-500:]}")
        return False
    if work.result(killed) != work.result(whole):
        tally.add("ended otherwise", work.name)
        return False
    tally.add("ended alike")
    shutil.rmtree(killed) if killed.is_dir() else killed.unlink()
    return True


def _at(arguments: tuple[Any, ...], out: Path) -> list[str]:
    return [str(out if word == "OUT" else word) for word in arguments]


def _wait(process: subprocess.Popen) -> int:
    process.communicate()
    return process.returncode


def _runs(folder: Path, count: int, tally: Tally) -> Iterator[tuple[int, Work, Path]]:
    """So many runs of every kind in turn: number, work, and the folder of one that nothing happened to."""
    several = [work for work in works(folder) if work.name in ("train", "experts", "distill")]
    for number in range(count):
        work = several[number % len(several)]
        whole = folder / f"{work.name}-whole"
        if not whole.exists() and _wait(dim(*_at(work.start, whole))):
            tally.add("did not run", work.name)
        else:
            yield number, work, whole


def try_disks(folder: Path, count: int, seed: int) -> Tally:
    """Let writes fail after some bytes, as a full disk does; when there is space again, the work goes on as if nothing was."""
    tally, draw = Tally(), random.Random(seed)
    for number, work, whole in _runs(folder, count, tally):
        out = folder / f"{work.name}-full-{number}"
        largest = max(file.stat().st_size for file in whole.rglob("*") if file.is_file())
        limit = draw.randrange(100, largest)

        def less(limit: int = limit) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

        process = dim(*_at(work.start, out), preexec_fn=less)
        lines = process.communicate()[1].splitlines()
        # A report that cannot be written is no reason to fail.
        said = ("dim: no report",) if process.returncode == 0 else ("dim: no space left",)
        if not lines or not lines[-1].startswith(said) or "Traceback" in "".join(lines):
            tally.add("said otherwise", f"{work.name}, {limit} bytes: {lines[-3:]}")
            continue
        again = work.resume if (out / "run.json").exists() else ()
        process = dim(*_at(work.start, out), *again)
        errors = process.communicate()[1]
        if process.returncode:
            tally.add("was not continued", f"{work.name}, {limit} bytes: {errors[-500:]}")
        elif work.result(out) != work.result(whole):
            tally.add("ended otherwise", f"{work.name}, {limit} bytes")
        else:
            tally.add("ended alike")
    return tally


def try_races(folder: Path, count: int, seed: int) -> Tally:
    """Start the same work twice, a random moment apart: one does it, and the other is refused or finds it done."""
    tally, draw = Tally(), random.Random(seed)
    for number, work, whole in _runs(folder, count, tally):
        out = folder / f"{work.name}-race-{number}"
        first = dim(*_at(work.start, out))
        time.sleep(draw.choice([0, 0.06, draw.uniform(0, 4)]))
        second = dim(*_at(work.start, out), *(work.resume if number % 2 and out.exists() else ()))
        errors = [process.communicate()[1] for process in (first, second)]
        statuses = sorted(process.returncode for process in (first, second))
        if statuses == [0, 0] and not number % 2:
            tally.add("both accepted", f"{work.name} {errors}")
        elif statuses not in ([0, 0], [0, 2]) or any("Traceback" in text for text in errors):
            tally.add("failed", f"{work.name} {statuses} {[text[-300:] for text in errors]}")
        elif work.result(out) != work.result(whole):
            tally.add("ended otherwise", work.name)
        else:
            tally.add("one writer")
        shutil.rmtree(out)
    return tally


_PARTS = {"artefacts": try_artefacts, "commands": try_commands, "kills": try_kills, "disks": try_disks, "races": try_races}


def run(arguments: Arguments, folder: Path, rows: Rows) -> list[dict[str, Any]]:
    """All parts that were asked for, in a folder that is filled here."""
    make_all(folder)
    if unknown := set(arguments.parts) - set(_PARTS):
        raise SystemExit(f"faults: unknown part {min(unknown)!r}: expected {', '.join(_PARTS)}")
    for part in (part for part in _FULL if part in arguments.parts):  # in their order: later ones use what earlier ones made
        count = max(1, round(arguments.scale * _FULL[part]))

        def measure(part: str = part, count: int = count) -> dict[str, Any]:
            tally = _PARTS[part](folder, count, arguments.seed)
            return {"trials": count, "ends": dict(tally.ends), "faults": len(tally.faults), "first_faults": tally.faults[:20]}

        rows.add(part, measure, seed=arguments.seed)
        print(json.dumps({part: rows.made[-1]["ends"], "faults": rows.made[-1]["faults"]}), flush=True)
    return rows.made


def main() -> None:
    """Try everything and write `results/faults.json`."""
    arguments = tyro.cli(Arguments, description=__doc__)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["XDG_CACHE_HOME"] = str(Path(scratch) / "cache")
        made = run(arguments, Path(scratch), Rows(Sources.of(__file__), "cpu", {"scale": arguments.scale}))
    path = RESULTS / "faults.json"
    earlier = read_json(path)["rows"] if path.is_file() else []  # of parts that were not asked for
    earlier = [row for row in earlier if row["name"] not in arguments.parts]
    print(save("faults", {"kind": "faults", "rows": sorted([*earlier, *made], key=lambda row: list(_FULL).index(row["name"]))}))
    raise SystemExit(any(row["faults"] for row in made))


if __name__ == "__main__":
    main()
