"""What long runs share: stopping on signals, progress without a terminal."""

import signal
import threading
import types

import pytest
import torch

from dim import loop
from dim.config import FitConfig, TrainConfig
from dim.continuation import continues
from dim.errors import InputError
from dim.io import load_tensors, write_document
from dim.loop import Interrupted, Loop, NonFiniteError, Progress, stop_signals
from dim.processes import Processes
from dim.run_folder import inexact, read_metrics, read_run, run_description

# --- signals -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_noted_and_handlers_are_given_back(number):
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    with stop_signals() as asked:
        assert asked == []
        signal.raise_signal(number)
        assert asked == [number]
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before


def test_only_another_ctrl_c_stops_at_once():
    """Launchers send more than one signal, and the state is still to be saved."""
    before = signal.getsignal(signal.SIGINT)
    with stop_signals() as asked:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert asked == [signal.SIGINT, signal.SIGTERM, signal.SIGTERM]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == before


def test_a_signal_between_two_loops_is_known_to_the_second():
    before = signal.getsignal(signal.SIGTERM)
    with stop_signals() as outer:
        with stop_signals() as first:
            assert first == []
        signal.raise_signal(signal.SIGTERM)
        with stop_signals() as second:
            assert second == [signal.SIGTERM]
        assert outer == [signal.SIGTERM]
    assert signal.getsignal(signal.SIGTERM) == before
    with stop_signals() as later:
        assert later == []


def test_signals_are_left_alone_outside_the_main_thread():
    seen = []

    def work():
        with stop_signals() as asked:
            seen.append((asked, signal.getsignal(signal.SIGINT)))

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [([], before)]


# --- progress ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch):
    """A clock that is set by hand."""
    now = [100.0]
    monkeypatch.setattr(loop.time, "monotonic", lambda: now[0])
    return now


def test_without_a_terminal_a_line_is_printed_every_twenty_seconds(clock, capsys):
    with Progress("train", 100, 10, unit="iteration") as progress:
        for _ in range(30):
            progress.advance()
            clock[0] += 1
            progress.show({"loss": 0.12345, "step_size": 2e-5}, note="stage one")
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["iteration 30/100  stage one  loss 0.123  step_size 2e-05  1.00 iterations/s  70 s left"]


def test_progress_says_nothing_when_asked_to(clock, capsys):
    with Progress("train", 100, show=False) as progress:
        for _ in range(10):
            progress.advance(3)
            clock[0] += 30
            progress.show({"loss": 1.0})
    assert capsys.readouterr().err == ""


def test_progress_that_does_not_advance_names_no_time_left(clock, capsys):
    with Progress("train", 100) as progress:
        clock[0] += 30
        progress.show({})
    assert capsys.readouterr().err == "step 0/100  0.00 steps/s\n"


def test_on_a_terminal_there_is_a_bar_and_no_lines(clock, monkeypatch):
    class Terminal:
        text = ""

        def write(self, text):
            self.text += text

        def flush(self):
            pass

        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(loop.sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "120")
    with Progress("train", 5) as progress:
        for _ in range(5):
            progress.advance()
            clock[0] += 30
            progress.show({"loss": 0.5})
    assert "train" in terminal.text
    assert "5/5" in terminal.text
    assert "loss=0.5" in terminal.text
    assert "steps/s" not in terminal.text
    assert "\n" not in terminal.text.rstrip("\n")


# --- names -------------------------------------------------------------------------------------------------------------------


# --- the shell of a run -------------------------------------------------------------------------------------------------------


class Toy:
    """A run that notes what the loop asks of it."""

    remedy, departs = "Try less", ""

    def __init__(self, out):
        self.out, self.asked, self.weights = out, [], torch.ones(2)

    def check(self):
        self.asked.append("check")

    def state(self):
        return {"weights": self.weights}, {"step": self.loop.step}

    def result(self):
        assert (self.out / "checkpoint.safetensors").is_file(), "the checkpoint comes first"
        self.asked.append(f"result {self.loop.step}")

    def picture(self):
        self.asked.append(f"picture {self.loop.step}")


@pytest.fixture
def toy_run(tmp_path, spec):
    def make(total=6, kind="run", **every):
        run = Toy(tmp_path / "run")
        settings = types.SimpleNamespace(
            **{"log_steps": 2, "sample_steps": 0, "checkpoint_steps": 0, "checkpoint_minutes": 0, **every}
        )
        description = run_description(TrainConfig(), spec(1, 8), "cpu", kind)
        going_on = continues(run.out, TrainConfig(), spec(1, 8), resume=False)
        common = {"name": "toy", "total": total, "description": description, "settings": settings, "continuation": going_on}
        run.loop = Loop(run, run.out, device=torch.device("cpu"), **common)
        return run

    return make


def steps(run, count, each=lambda step: None):
    with run.loop as loop:
        for _ in range(count):
            loop.advance()
            each(loop.step)
            if loop.logs():
                loop.log({"loss": 1.0})
            loop.between()


def test_what_happens_between_steps_loses_nothing_to_a_kill(toy_run):
    """Metrics, then the picture, then the checkpoint, then the result; nothing at the end, which `finish` writes."""
    run = toy_run(sample_steps=2, checkpoint_steps=2)
    steps(run, 6)
    assert run.asked == ["picture 2", "check", "result 2", "picture 4", "check", "result 4"]
    assert [record["step"] for record in read_metrics(run.out)] == [2, 4, 6]
    run.loop.finish()
    assert run.asked[-3:] == ["check", "result 6", "picture 6"]
    assert load_tensors(run.out / "checkpoint.safetensors")[1]["step"] == 6


def test_checkpoints_by_time(toy_run, clock):
    run = toy_run(checkpoint_minutes=1.0)

    def pass_time(step):
        clock[0] += 25.0

    steps(run, 6, pass_time)
    assert run.asked == ["check", "result 3"], "after 75 seconds, and 75 seconds later the run ends"


@pytest.mark.parametrize(("kind", "command"), [("run", "train"), ("experts", "experts"), ("distillation", "distill")])
def test_a_stop_is_saved_and_says_how_to_continue(toy_run, kind, command):
    run = toy_run(kind=kind)
    with pytest.raises(
        Interrupted, match=rf"^interrupted at step 3 of 6; continue with: dim {command} --out .*run --resume$"
    ) as caught:
        steps(run, 6, lambda step: signal.raise_signal(signal.SIGTERM) if step == 3 else None)
    assert caught.value.signal_number == signal.SIGTERM
    assert run.asked == ["check", "result 3"]


def test_a_stop_in_the_last_step_is_none(toy_run):
    run = toy_run()
    steps(run, 6, lambda step: signal.raise_signal(signal.SIGTERM) if step == 6 else None)
    assert run.asked == []


@pytest.mark.parametrize("kind", ["run", "experts", "distillation"])
def test_a_second_interrupt_stops_every_kind_of_run_cleanly(toy_run, kind):
    run = toy_run(kind=kind)

    def twice(step):
        if step == 3:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted, match=r"^stopped at once in step 4 of 6, without saving; continue with: dim"):
        steps(run, 6, twice)
    assert run.asked == []


def test_values_that_are_not_finite_stop_the_run_and_keep_both_states(toy_run):
    run = toy_run(checkpoint_steps=2)

    def spoil(step):
        if step == 3:
            run.weights[1] = float("nan")

    with pytest.raises(NonFiniteError, match=r"^step 4: the weights are not finite\. .*failed.*last good state is .*Try less$"):
        steps(run, 6, spoil)
    assert load_tensors(run.out / "checkpoint.safetensors")[1]["step"] == 2
    assert load_tensors(run.out / "failed.safetensors")[1] == {"step": 4}
    with pytest.raises(NonFiniteError, match="loss 'critic' is inf"):
        run.loop.require_finite({"class": 1.0, "critic": float("inf")})


def test_time_off_the_clock_is_not_the_runs(toy_run, clock):
    run = toy_run()
    clock[0] += 5.0
    with run.loop.off_the_clock():
        clock[0] += 100.0
    assert run.loop.elapsed() == 5.0


def test_a_run_goes_on_only_where_it_is_asked_to_and_has_begun(toy_run, spec, tmp_path):
    config, data = TrainConfig(), spec(1, 8)
    assert not continues(tmp_path / "run", config, data, resume=True).resumes, "nothing there"
    run = toy_run()
    with pytest.raises(InputError, match="another process is writing"):
        continues(run.out, config, data, resume=True)
    with run.loop:
        pass
    assert not continues(run.out, config, data, resume=True).resumes, "killed before its first checkpoint"
    run.loop.save()
    assert continues(run.out, config, data, resume=True).resumes
    with pytest.raises(InputError, match="already holds a run"):
        continues(run.out, config, data, resume=False)
    with pytest.raises(InputError, match=r"fit\.seed is 1"):
        continues(run.out, TrainConfig(fit=FitConfig(seed=1)), data, resume=True)


# --- going on with other settings ----------------------------------------------------------------------------------------------

MAY_DEPART = ("stage_one.lr", "fit.clip_norm")


def leave(run):
    """Save a run, and end."""
    with run.loop:
        run.loop.save()


def depart(run, data, config, **changes):
    return continues(run.out, config, data, resume=True, may_depart=MAY_DEPART, **{"depart": True, **changes})


def test_a_departure_is_refused_unless_asked_for_and_possible(toy_run, spec):
    run, data = toy_run(), spec(1, 8)
    leave(run)
    clipped = TrainConfig(fit=FitConfig(clip_norm=1.0))
    with pytest.raises(InputError, match=r"^fit\.clip_norm is 1\.0: .*has 0\.0; .*--depart$"):
        depart(run, data, clipped, depart=False)
    with pytest.raises(InputError, match=r"^fit\.seed is 1: .*same settings$"):
        depart(run, data, TrainConfig(fit=FitConfig(seed=1)))
    with pytest.raises(InputError, match="together with --resume"):
        continues(run.out, clipped, data, resume=False, depart=True)
    assert depart(run, data, clipped).stated(0) == {"departures": [{"step": 0, "changes": {"fit.clip_norm": [0.0, 1.0]}}]}


def test_a_departure_is_stated_and_survives_a_kill_at_any_moment(toy_run, spec):
    run, data = toy_run(checkpoint_steps=2), spec(1, 8)
    steps(run, 3)
    clipped = TrainConfig(fit=FitConfig(clip_norm=1.0))
    first = depart(run, data, clipped)
    assert first.load()[1]["step"] == 2
    description = run_description(clipped, data, "cpu")
    settings = types.SimpleNamespace(log_steps=2, sample_steps=0, checkpoint_steps=0, checkpoint_minutes=0)
    rest = {"name": "toy", "total": 6, "description": description, "settings": settings, "device": torch.device("cpu")}
    run.loop = Loop(run, run.out, step=2, continuation=first, **rest)  # and is killed: the checkpoint is still the old one
    with run.loop:
        pass
    again = continues(run.out, clipped, data, resume=True)
    assert again.load()[1]["step"] == 2
    run.loop = Loop(run, run.out, step=2, continuation=again, **rest)
    leave(run)
    last = continues(run.out, clipped, data, resume=True)
    assert last.load()[1]["step"] == 2
    stated = [{"step": 2, "changes": {"fit.clip_norm": [0.0, 1.0]}}]
    assert read_run(run.out)["departures"] == last.stated(2)["departures"] == stated
    with pytest.raises(InputError, match=r"^fit\.clip_norm is 0\.0"):
        continues(run.out, TrainConfig(), data, resume=True)


def test_the_checkpoint_of_another_run_is_refused(toy_run, spec, tmp_path):
    """As when somebody copies files between folders, or writes other settings into run.json with a checksum that fits."""
    run, data = toy_run(), spec(1, 8)
    leave(run)
    write_document(run.out / "run.json", run_description(TrainConfig(fit=FitConfig(seed=1)), data, "cpu"))
    other = continues(run.out, TrainConfig(fit=FitConfig(seed=1)), data, resume=True)
    with pytest.raises(InputError, match=r"is of a run with fit\.seed 0, and .*run\.json says 1: they do not belong together"):
        other.load()


def test_what_to_try_can_be_done(toy_run):
    run = toy_run(checkpoint_steps=2)
    run.departs = "--fit.clip-norm 1"
    with pytest.raises(NonFiniteError, match=r"no checkpoint had been written yet\. Try less$"):
        run.loop.fail("step 0: loss is nan")
    run.loop.save()
    with pytest.raises(NonFiniteError, match=r"dim train --out .*run --resume --depart --fit\.clip-norm 1$"):
        run.loop.fail("step 0: loss is nan")


# --- going on with other means -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "threads", "world", "expected"),
    [
        ("run", 0, 1, None),
        ("run", 3, 1, "threads {now}, now {more}"),
        ("run", 0, 4, "processes 1, now 4"),
        ("distillation", 3, 4, "threads {now}, now {more}; processes 1, now 4"),
        ("experts", 0, 4, None),
        ("experts", 3, 4, "threads {now}, now {more}"),
    ],
)
def test_other_threads_or_processes_than_at_first_are_told(toy_run, monkeypatch, kind, threads, world, expected):
    """Once for every resume, also for the second one; an expert is the same whatever the number of processes."""
    now = torch.get_num_threads()
    run = toy_run(kind=kind)
    description = read_run(run.out, kind)
    assert description["began"] == {"processes": 1, "threads": now}
    monkeypatch.setattr(torch, "get_num_threads", lambda: now + threads)
    found = inexact(description, Processes(0, world))
    if expected is None:
        assert found is None
    else:
        changed = expected.format(now=now, more=now + threads)
        assert found == f"goes on with other means than it began with ({changed})"
    description["hardware"]["device"] = "cuda"  # whose digits do not depend on threads
    assert "threads" not in (inexact(description, Processes(0, world)) or "")


def test_what_a_run_began_with_is_kept_and_compared_at_every_resume(toy_run, spec, monkeypatch, capsys):
    run, data, now = toy_run(), spec(1, 8), torch.get_num_threads()
    leave(run)
    capsys.readouterr()
    monkeypatch.setattr(torch, "get_num_threads", lambda: now + 1)
    for _ in range(2):
        again = continues(run.out, TrainConfig(), data, resume=True)
        line = f"dim: {run.out} goes on with other means than it began with (threads {now}, now {now + 1})"
        assert capsys.readouterr().err == f"{line}: it does not end the same bit by bit\n"
        settings = types.SimpleNamespace(log_steps=2, checkpoint_minutes=0)
        rest = {"name": "toy", "total": 6, "settings": settings, "device": torch.device("cpu"), "step": 2}
        run.loop = Loop(run, run.out, continuation=again, description=run_description(TrainConfig(), data, "cpu"), **rest)
        with run.loop:
            pass
        assert read_run(run.out)["hardware"]["threads"] == now + 1
        assert read_run(run.out)["began"]["threads"] == now
