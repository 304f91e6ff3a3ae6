"""Several processes in a test, as a launcher starts them: forked from a process that has imported everything once."""

import multiprocessing
import os
import pickle
import socket
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    ["dim.commands.cli", "dim.runs.train", "dim.runs.distill", "dim.score.measure", "dim.score.report", "accelerate"]
)


@dataclass
class Ended:
    """How a process ended."""

    status: int | None
    """None: it had to be killed, because it took too long."""
    out: str
    error: str
    result: Any = None


def launch(folder: Path, function: Callable[..., Any], *arguments: Any, world: int = 2, seconds: float = 120) -> list[Ended]:
    """Call a function of a module in several processes with a launcher's environment.

    Args:
        folder: for what they print.
        function: what it returns must be picklable.
        arguments: of the function.
        world: how many processes.
        seconds: after which they are killed.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    folder.mkdir(parents=True, exist_ok=True)
    started = []
    for rank in range(world):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
        environment = {**os.environ, **place, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        receiver, sender = _CONTEXT.Pipe(duplex=False)
        files = [folder / f"{rank}.{name}" for name in ("out", "error")]
        process = _CONTEXT.Process(target=_child, args=(function, arguments, environment, files, sender))
        process.start()
        sender.close()
        started.append((process, receiver, files))
    ended = []
    for process, receiver, files in started:
        try:
            result = pickle.loads(receiver.recv_bytes()) if receiver.poll(seconds) else None
        except EOFError:  # it was killed, or left without an answer
            result = None
        process.join(seconds)
        status = process.exitcode
        if status is None:
            process.kill()
            process.join()
        ended.append(Ended(status, *(file.read_text() for file in files), result))
    return ended


def run_command(*arguments: str) -> None:
    """The console script `dim`, for `launch`."""
    from dim.commands.cli import run

    run(list(map(str, arguments)))


def results(ended: list[Ended]) -> list[Any]:
    """What the processes returned; fails if one of them did not."""
    for process in ended:
        assert process.status == 0, process.error
    return [process.result for process in ended]


def _child(function: Callable, arguments: tuple, environment: dict[str, str], files: list[Path], answer: Any) -> None:
    os.environ.clear()
    os.environ.update(environment)
    for number, file in zip((1, 2), files, strict=True):
        handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, number)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False, buffering=1)  # noqa: SIM115
    status = 0
    try:
        answer.send_bytes(pickle.dumps(function(*arguments)))  # by value: shared memory would end with this process
    except SystemExit as stop:
        status = int(stop.code or 0)
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
