"""The command line: the table of commands, and one clear line on error."""

import codecs
import contextlib
import io
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Any, TextIO

from dim.commands.arguments import (
    CompletionArguments,
    DataArguments,
    DistillArguments,
    ExpertsArguments,
    RecipesArguments,
    ReportArguments,
    SampleArguments,
    TrainArguments,
)
from dim.commands.auditing import AuditArguments, audit
from dim.commands.exchange import ExportArguments, ImportArguments, export, import_
from dim.commands.helping import completion
from dim.commands.looking import data
from dim.commands.making import distill, experts, recipes, sample, train
from dim.commands.malloc import keep_freed_memory
from dim.commands.parsing import parse
from dim.commands.scoring import compare, coverage, evaluate, report
from dim.commands.scoring_arguments import CompareArguments, CoverageArguments, EvaluateArguments
from dim.commands.verifying import VerifyArguments, verify
from dim.errors import InputError, RefusedError, is_out_of_memory, nearest
from dim.launch import end, launched, leave, lost, tell, without_repeats
from dim.signals import ENDING, handle, heeded
from dim.text import in_ascii, one_line, set_verbosity, verbosity


def _complete(arguments: Sequence[str]) -> None:
    """`dim completion`."""
    completion(parse(CompletionArguments, arguments, "completion").shell, {name: kind for name, (_, kind) in COMMANDS.items()})


COMMANDS: dict[str, tuple[Callable[[Sequence[str]], None], type]] = {
    "data": (data, DataArguments),
    "train": (train, TrainArguments),
    "sample": (sample, SampleArguments),
    "evaluate": (evaluate, EvaluateArguments),
    "compare": (compare, CompareArguments),
    "coverage": (coverage, CoverageArguments),
    "audit": (audit, AuditArguments),
    "report": (report, ReportArguments),
    "verify": (verify, VerifyArguments),
    "experts": (experts, ExpertsArguments),
    "distill": (distill, DistillArguments),
    "import": (import_, ImportArguments),
    "export": (export, ExportArguments),
    "recipes": (recipes, RecipesArguments),
    "completion": (_complete, CompletionArguments),
}
_LOUDER = {"-v": 1, "--verbose": 1, "-q": -1, "--quiet": -1}

_PATIENCE = 3.0  # seconds in which a command that was asked to end has to come to its end before it is asked again
# Commands that a launch of several processes shares; of the others, only the main process does anything.
SHARED = ("train", "sample", "evaluate", "experts", "distill")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status is 0, or non-zero after one line on standard error that says what to do.

    Of several processes, the main one says what was done.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    levels = [_LOUDER[word] for word in arguments if word in _LOUDER]
    arguments = [word for word in arguments if word not in _LOUDER]
    before = verbosity()
    set_verbosity(levels[-1] if levels else before)
    try:
        return _of_rank(arguments)
    finally:
        set_verbosity(before)


def _of_rank(arguments: list[str]) -> int:
    """`main`, of which of several processes only the first is heard."""
    rank, _, _ = launched()
    if rank > 0 and arguments[:1] and arguments[0] in COMMANDS and arguments[0] not in SHARED:
        return 0
    with contextlib.redirect_stdout(io.StringIO()) if rank > 0 else contextlib.nullcontext():
        return _run(arguments)


def _run(arguments: list[str]) -> int:
    try:
        with without_repeats():
            _dispatch(arguments)
        leave()
    except InputError as error:
        if verbosity() > 0:
            traceback.print_exc()
        return _fail(str(error), 2)
    except RefusedError as error:
        return _fail(str(error), 3)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except _Ended as ended:
        return _leave_early(ended)
    except (OSError, RuntimeError, MemoryError) as error:
        return _fail_late(error)
    return 0


class _Ended(BaseException):
    """A signal that asks the process to end, where no loop waits for it: what is half-written is removed on the way out."""

    def __init__(self, number: int) -> None:
        self.number = number


def _leave_early(ended: _Ended) -> int:
    heeded.append(ended.number)
    return _fail(f"stopped by {signal.Signals(ended.number).name}", 128 + ended.number)


def run(arguments: Sequence[str] | None = None) -> None:
    """The console script: `main` in a process of its own."""
    codecs.register_error("dim.ascii", in_ascii)
    sys.stdout, output = _lasting(sys.stdout, 1)
    sys.stderr, _ = _lasting(sys.stderr, 2)
    keep_freed_memory()
    warnings.filterwarnings("ignore", "Image size .* decompression bomb")  # of pictures that are then refused in one line

    raised = -_PATIENCE

    def note(number: int, frame: Any) -> None:
        nonlocal raised
        if heeded or time.monotonic() - raised < _PATIENCE:  # on its way out, where half-written files are removed
            return
        raised = time.monotonic()
        if hasattr(signal, "setitimer"):  # a library may have caught it: it is raised until it arrives
            signal.signal(signal.SIGALRM, lambda *_: note(number, None))
            signal.setitimer(signal.ITIMER_REAL, 1.1 * _PATIENCE)
        raise _Ended(number)

    handle(ENDING, note)
    try:
        status = main(arguments)
    except _Ended as ended:
        status = _leave_early(ended)
    except Exception:
        traceback.print_exc()
        status = 1
    handle(ENDING, signal.SIG_IGN)  # the interpreter's own end would forget them, and with them the status
    sys.stdout.flush()
    if output.lost is not None:
        status = _fail(f"standard output could not be written: {output.lost.strerror}", status or 1)
    end(status)


class _Output(io.FileIO):
    """An output that stops no work: what cannot be written, as its reader has left or the disk is full, is dropped.

    Attributes:
        lost: why something could not be written; a reader that left, as `head` does, has had enough.
    """

    lost: OSError | None = None

    def write(self, data: Any) -> int | None:
        """See `io.RawIOBase`."""
        try:
            return super().write(data)
        except BrokenPipeError:
            return len(data)
        except OSError as error:
            self.lost = error
            return len(data)


def _lasting(stream: TextIO | None, number: int) -> tuple[TextIO, _Output]:
    """Standard output or error that lasts: closed, without a reader, on a full disk, or of an encoding that lacks a character."""
    if stream is None:  # closed: without this the next file that is opened would be taken for it
        os.dup2(os.open(os.devnull, os.O_WRONLY), number)
    raw = _Output(number, "wb", closefd=False)
    encoding, lines = getattr(stream, "encoding", None) or "utf-8", number == 2 or raw.isatty()
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding, "dim.ascii", line_buffering=lines, write_through=number == 2), raw


def _dispatch(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview())
    elif arguments[0] == "--version":
        import dim

        print(dim.__version__)
    elif arguments[0] in COMMANDS:
        COMMANDS[arguments[0]][0](arguments[1:])
    else:
        raise InputError(f"unknown command {arguments[0]!r}. {nearest(arguments[0], COMMANDS)}")


def _overview() -> str:
    lines = ["usage: dim COMMAND [options]", "", "Distill an image data set into a generator; draw training sets from it.", ""]
    lines += [f"  {name:<10} {kind.__doc__}" for name, (_, kind) in COMMANDS.items()]
    more = ["dim COMMAND --help explains its options, --help-all those of rare use, too."]
    more += ["With every command: -q, --quiet: only results, warnings, errors. -v, --verbose: where an error arose, too."]
    return "\n".join([*lines, "", *more])


def _fail(message: str, status: int) -> int:
    """Print a message as one line: printable, and not longer than a reader takes in."""
    text = tell(one_line(message))
    if text is not None:
        print(f"dim: {text}", file=sys.stderr)
    return status


def _fail_late(error: Exception) -> int:
    """Errors that arise while working: a full disk, an interrupt, a loss that is not finite, too little memory."""
    from dim.loop import Interrupted, NonFiniteError
    from dim.outputs import is_no_space

    if isinstance(error, Interrupted):
        return _fail(str(error), 128 + error.signal_number)
    if isinstance(error, NonFiniteError):
        return _fail(str(error), 1)
    if isinstance(error, OSError) and is_no_space(error):
        where = f" for {error.filename}" if error.filename else ""
        again = "the same command, with --resume where it makes a run"
        return _fail(f"no space left{where} ({error.strerror}): what was complete is kept; free some space and give {again}", 1)
    if isinstance(error, OSError) and error.filename is not None:
        return _fail(f"{error.filename}: {error.strerror}", 1)
    if is_out_of_memory(error):
        lower = "lower the batch size, the resolution (--resolution) or --data.memory-gib"
        return _fail(f"not enough memory ({_reason(error)}): {lower}", 1)
    news = lost()
    if news is None:
        raise error
    if news:
        print(f"dim: {news}", file=sys.stderr)
    return 1


def _reason(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__


if __name__ == "__main__":
    run()
