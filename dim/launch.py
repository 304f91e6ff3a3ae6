"""A launch of several processes by `torchrun` or `accelerate launch`: what the launcher says, and what the others do when one of
them ends. Nothing here imports PyTorch before there are others.
"""

import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from dim.text import say

_BEAT_SECONDS = 2.0  # between two questions whether all processes are there
_GRACE_SECONDS = 15.0  # in which the main thread may come to an end of its own, saving what it has, when one has ended
_NEWS_SECONDS = 10.0  # in which the news of that arrives
_FROZEN = timedelta(minutes=5)  # without an answer, a process counts as lost; one that has ended is noticed at once
PATIENCE = timedelta(days=7)
"""How long processes wait for one that works alone; if that has ended, they are ended by the watch."""


def launched() -> tuple[int, int, int]:
    """What the launcher says of this process: its rank, the number of processes, and its rank on this machine. (0, 1, 0) without
    one."""

    def number(names: str, default: int) -> int:
        return next((int(os.environ[name]) for name in names.split() if os.environ.get(name, "").isdigit()), default)

    rank = number("RANK PMI_RANK OMPI_COMM_WORLD_RANK MV2_COMM_WORLD_RANK", 0)
    world = number("WORLD_SIZE PMI_SIZE OMPI_COMM_WORLD_SIZE MV2_COMM_WORLD_SIZE", 1)
    local = number("LOCAL_RANK MPI_LOCALRANKID OMPI_COMM_WORLD_LOCAL_RANK MV2_COMM_WORLD_LOCAL_RANK", rank)
    return (rank, world, local) if world > 1 else (0, 1, 0)


_said: set[str] | None = None


def say_once(text: str) -> None:
    """A line on standard error; of several processes only the first speaks. See `without_repeats`, too."""
    if launched()[0] == 0 and (_said is None or text not in _said):
        say(text, sys.stderr)
    if _said is not None:
        _said.add(text)


@contextlib.contextmanager
def without_repeats() -> Iterator[None]:
    """Within the block, what `say_once` has said is not said again, as a command looks at the same data more than once."""
    global _said
    before = _said
    _said = set() if before is None else before
    try:
        yield
    finally:
        _said = before


def watch() -> None:
    """From now on, end this process when another one has ended before its time, and let errors be told once.

    It is for programs: a process that only waits for the others, or that works alone for hours, ends too.
    """
    global _watch
    if _watch is None and launched()[1] > 1:
        import torch.distributed as dist

        if dist.is_initialized():
            _watch = _Watch()
            _watch.start()


def leave() -> None:
    """Wait until all processes have come here, and take down what connects them, which must not be left to the exit.

    Raises:
        RuntimeError: if another process has ended before its time; `lost` says what there is to say.
    """
    global _watch
    if _watch is None:
        return
    import torch.distributed as dist

    _watch.say("leaving")
    _watch.settled.wait()
    if _watch.over is not None:
        raise RuntimeError("another process has ended")
    _watch = None
    _connections.clear()
    dist.destroy_process_group()


def tell(text: str) -> str | None:
    """Tell the other processes with which error this one ends. Returns what it should print; None where another one says it."""
    rank, world, local = launched()
    if _watch is None:  # not joined yet: what is wrong now is wrong in every process of the machine
        return text if world == 1 or local == 0 else None
    _watch.ending.set()
    _watch.say("failed", text)
    _watch.settled.wait(_NEWS_SECONDS)
    failures = _watch.failures
    if rank == 0:
        return text
    return None if text in failures.values() and failures.get(0, text) == text else f"process {rank}: {text}"


def lost() -> str | None:
    """What to print where this process cannot go on because another one has ended, which may be nothing; None: all are there."""
    if _watch is None:
        return None
    _watch.settled.wait(_NEWS_SECONDS)
    _watch.ending.set()
    return _watch.over


def end(status: int) -> None:
    """End this process with an exit status. Where it has not left the others, at once: its thread may wait for them."""
    if _watch is None:
        sys.exit(status)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


class _Watch(threading.Thread):
    """Lets all processes ask each other every two seconds how they are, beside whatever they do.

    Attributes:
        failures: texts of errors with which processes ended, by rank.
        over: None while all is well; then what this process is to print, which is nothing if another one says it.
        settled: set when there is nothing more to ask, because all have left or one has ended.
        ending: set when the main thread ends this process.
    """

    def __init__(self) -> None:
        super().__init__(name="dim-watch", daemon=True)
        self._beats = connection("watch", _FROZEN)
        self._status = ("working", "")
        self._changed = threading.Event()
        self.settled, self.ending = threading.Event(), threading.Event()
        self.failures: dict[int, str] = {}
        self.over: str | None = None

    def say(self, status: str, text: str = "") -> None:
        """What the others hear at the next beat."""
        self._status = (status, text)
        self._changed.set()

    def run(self) -> None:
        """Ask until all have left or one has ended."""
        import torch.distributed as dist

        rank, world, _ = launched()
        said: list[Any] = [("working", "")] * world
        try:
            while not (self.failures or all(status == "leaving" for status, _ in said)):
                self._changed.wait(0.1 if self._status[0] == "leaving" else _BEAT_SECONDS)
                self._changed.clear()
                dist.all_gather_object(said, self._status, group=self._beats)
                self.failures = {number: text for number, (status, text) in enumerate(said) if status == "failed"}
        except RuntimeError:  # the connection is closed, or a process is frozen
            who = "the other process" if world == 2 else f"one of the other {world - 1} processes"
            self.over = f"{who} has ended without a word (killed, or out of memory): start all again, a run with --resume"
        if self.failures:
            number, text = min(self.failures.items())
            self.over = f"process {number}: {text}" if rank == 0 else ""
        self.settled.set()
        if self.over is not None and not self.ending.wait(_GRACE_SECONDS):
            if self.over:
                say(f"dim: {self.over}", sys.stderr)
            end(1)


_watch: _Watch | None = None
_connections: dict[str, Any] = {}


def connection(purpose: str, timeout: timedelta = PATIENCE) -> Any:
    """The process group on CPUs that serves one purpose. All processes make it when they first need it, once they have joined."""
    import torch.distributed as dist

    if purpose not in _connections:
        _connections[purpose] = dist.new_group(backend="gloo", timeout=timeout)
    return _connections[purpose]
