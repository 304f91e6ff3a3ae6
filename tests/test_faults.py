"""The short form of `benchmarks/faults.py`: damaged files, nonsense on the command line, a kill, a full disk and a race."""

import shutil
import sys
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest

_BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def faults() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(_BENCHMARKS))
        patch.setenv("OMP_NUM_THREADS", "1")
        shared = ("common", "faults", "faults_artefacts")
        kept = {name: sys.modules.pop(name) for name in shared if name in sys.modules}
        import faults

        yield faults
        for name in shared:
            sys.modules.pop(name, None)
        sys.modules.update(kept)


@pytest.fixture(scope="module")
def made(faults, tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults")
    sys.modules["faults_artefacts"].make_all(folder)
    return folder


@pytest.mark.parametrize(("part", "count"), [("artefacts", 160), ("commands", 40)])
def test_nothing_ends_in_a_traceback_or_is_believed(faults, made, part, count):
    tally = faults._PARTS[part](made, count, seed=7)
    assert tally.faults == []
    assert sum(tally.ends.values()) >= 40
    assert tally.ends["refused"] + tally.ends["status 2"] > 10, "most of it is nonsense"


def test_no_field_of_another_type_ends_in_a_traceback(faults, made, tmp_path):
    """Every field at the top of what a file says of itself, in the place of a value of every kind, under a checksum that fits."""
    others = (None, -1, 10**18, "x", [1], {"a": {}})
    refused = []
    for kind in sys.modules["faults_artefacts"].artefacts(made):
        if kind.forge is None:
            continue
        place, tally = kind.copied(tmp_path / "it"), faults.Tally()
        content, _, write = kind.opened(place)
        for name in list(content):
            good = content[name]
            for value in others:
                content[name] = value
                write()
                faults.judged(tally, f"{kind.name}, {name}: {value!r}", partial(kind.read, place), None, 5.0)
            content[name] = good
        assert tally.faults == []
        refused.append(tally.ends["refused"])
        shutil.rmtree(place)
    assert sum(count > 10 for count in refused) >= 5, "most fields are needed by most files"


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("part", "count", "only"), [("kills", 2, {"only": ("evaluate", "sample")}), ("disks", 1, {}), ("races", 1, {})]
)
def test_work_is_neither_lost_nor_done_twice(faults, made, part, count, only):
    """A little of it: runs have tests of their own, which kill them at every moment."""
    tally = faults._PARTS[part](made, count, seed=7, **only)
    assert tally.faults == []
    assert sum(tally.ends.values()) >= count


def test_faults_are_found(faults):
    """The judge itself: a traceback, a message of two lines, and content that changed."""

    def refuse(text: str):
        raise faults.InputError(text)

    def fail():
        raise KeyError("x")

    tally = faults.Tally()
    for call, accept in ((fail, None), (lambda: 1, lambda found: found == 2)):
        faults.judged(tally, "a trial", call, accept, 0.0)
    assert [fault.partition(":")[0] for fault in tally.faults] == ["traceback", "accepted with changed content"]
    faults.judged(tally, "a trial", lambda: refuse("one line: expected another"), None, 0.0)
    faults.judged(tally, "a trial", lambda: 2, lambda found: found == 2, 0.0)
    assert (len(tally.faults), tally.ends["refused"], tally.ends["read"]) == (2, 1, 1)
    assert not faults._is_good("two\nlines")
    assert not faults._is_good("x" * 301)
