"""Experts that several processes record: each group of them in a folder of its own beside the store, until it is finished.

Such a folder is a small store of its own, with its state and its metrics. Which process goes on with it does not matter, and so
a recording may be resumed with another number of processes.
"""

import dataclasses
import os
import shutil
import time
from pathlib import Path

from dim.errors import InputError
from dim.io import load_tensors
from dim.run_folder import add_metrics
from dim.trajectory.store import LAYOUT, STATE, ExpertStore

_PREFIX = "recording-"
_SECONDS = 90  # in which a file system lets other machines see a new file


def part_folder(out: Path, first: int) -> Path:
    """The folder of the group that begins with expert `first`."""
    return out / f"{_PREFIX}{first}"


def parts(out: Path) -> dict[int, Path]:
    """The folders of groups beside a store, by the first expert of each."""
    found = {path.name.removeprefix(_PREFIX): path for path in out.glob(f"{_PREFIX}*")}
    return {int(first): path for first, path in sorted(found.items()) if first.isdigit()}


def collect(store: ExpertStore) -> None:
    """Take the finished experts of all groups into a store, and remove their folders. A kill at any point loses nothing."""
    for first, folder in parts(store.folder).items():
        if not (folder / LAYOUT).is_file():
            if first in store.records:  # taken already, and not quite removed
                shutil.rmtree(folder)
            continue
        part = ExpertStore.open(folder)
        if not part.complete:
            continue
        for expert in part.records:
            _copy(part, expert, store, first + expert)
        add_metrics(store.folder, folder)
        for expert, record in part.records.items():
            store.finish(first + expert, record)
        (folder / LAYOUT).unlink()
        shutil.rmtree(folder)


def collect_all(store: ExpertStore) -> ExpertStore:
    """Take what is left once every process is done; a file system that machines share may be slow to show it.

    Raises:
        InputError: if experts are still missing after a while.
    """
    for _ in range(_SECONDS):
        collect(store)
        if store.complete:
            return store
        time.sleep(1)
    raise InputError(f"the experts of other processes are not in {store.folder}: expected a folder that all machines share")


def set_apart(store: ExpertStore) -> None:
    """Give a folder of its own to the group that one process had begun in the store itself, if there is one."""
    state = store.folder / STATE
    if not state.is_file():
        return
    tensors, metadata = load_tensors(state)
    first = metadata["first"]
    if first in store.records:  # a kill left it behind after its group was finished
        state.unlink()
        return
    folder = part_folder(store.folder, first)
    part = ExpertStore.create(folder, dataclasses.replace(store.layout, experts=len(tensors["theta"])))
    for expert in range(part.layout.experts):
        _copy(store, first + expert, part, expert)
    os.replace(state, folder / STATE)


def _copy(source: ExpertStore, expert: int, target: ExpertStore, place: int) -> None:
    for position in range(len(source.layout.moments)):
        target.write(place, position, source.weights(expert, position))
