"""What long runs share: stopping on signals, progress without a terminal."""

import signal
import threading

import pytest

from dim import loop
from dim.loop import Progress, stop_signals

# --- signals -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_noted_and_handlers_are_given_back(number):
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    with stop_signals() as asked:
        assert asked == []
        signal.raise_signal(number)
        assert asked == [number]
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_second_signal_stops_at_once():
    before = signal.getsignal(signal.SIGINT)
    with stop_signals() as asked:
        signal.raise_signal(signal.SIGTERM)
        assert asked == [signal.SIGTERM]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == before


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
