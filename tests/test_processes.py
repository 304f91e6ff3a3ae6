"""Processes that work together: whose work is what, what they exchange, and what becomes of the others when one ends."""

import os
import signal
import time

import pytest
import torch
from launching import launch, results, run_command
from torch import nn

from dim import launch as launch_module
from dim.errors import InputError
from dim.launch import launched
from dim.processes import ALONE, Agreement, Processes, join, running_statistics

# --- shares ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [1, 2, 3])
def test_shares_are_disjoint_and_make_up_the_whole(world):
    whole = torch.arange(12)
    shares = [Processes(rank, world).part(whole) for rank in range(world)]
    assert torch.cat(shares).sort().values.tolist() == whole.tolist()
    assert len({len(share) for share in shares}) == 1
    for stretch in range(12):  # images below any number are spread evenly, too
        counts = [int((share < stretch).sum()) for share in shares]
        assert max(counts) - min(counts) <= 1
    assert Processes(1, 2).part(("a", "b", "c", "d")) == ("b", "d")


def test_the_share_of_two_halves_is_two_shares():
    """Of real images and as many generated ones behind them, a process has its share of either."""
    first, second = torch.arange(8), torch.arange(8) + 100
    process = Processes(1, 4)
    assert torch.equal(process.part(torch.cat((first, second))), torch.cat((process.part(first), process.part(second))))


def test_what_cannot_be_shared_evenly_is_refused():
    Processes(0, 3).require_even(9, "batch_size")
    with pytest.raises(InputError, match=r"^batch_size is 10 and there are 3 processes: expected a multiple of that number"):
        Processes(0, 3).require_even(10, "batch_size")


def test_one_process_exchanges_nothing():
    value = torch.rand(3, requires_grad=True)
    assert ALONE.main
    assert ALONE.part(value) is ALONE.mean(value) is ALONE.whole(value) is value
    assert ALONE.gather(5) == [5]
    assert ALONE.once(lambda: 6) == ALONE.in_turn(lambda: 6) == 6
    assert Agreement(ALONE)(0, 7) == (0, 7)
    assert join(cpu=True) is ALONE, "nobody has launched this"


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, (0, 1, 0)),
        ({"WORLD_SIZE": "1", "RANK": "0"}, (0, 1, 0)),
        ({"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1"}, (3, 4, 1)),
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"}, (1, 2, 1)),
        ({"WORLD_SIZE": "many"}, (0, 1, 0)),
    ],
)
def test_what_a_launcher_says(monkeypatch, environment, expected):
    for name in [name for name in os.environ if name.endswith(("RANK", "SIZE"))]:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert launched() == expected


def test_running_statistics_are_those_of_batch_norms():
    net = nn.Sequential(nn.BatchNorm2d(2), nn.GroupNorm(1, 2), nn.BatchNorm2d(2, track_running_stats=False))
    found = running_statistics(net)
    assert [value is other for value, other in zip(found, (net[0].running_mean, net[0].running_var), strict=True)] == [True] * 2


# --- exchanges ---------------------------------------------------------------------------------------------------------------


def _exchange(file: str) -> dict:
    def add_a_line() -> list[str]:
        """What others have written, and then a line."""
        with open(file, "a+") as lines:
            lines.seek(0)
            found = lines.read().split()
            lines.write(f"{rank}\n")
        return found

    processes = join(cpu=True)
    rank = processes.rank
    gradients = [torch.full((2, 3), float(rank)), None, torch.tensor(4.0 * rank)]
    processes.average(gradients)
    own = processes.part(torch.arange(24.0).view(2, 4, 3).movedim(1, 0)).movedim(0, 1).contiguous().requires_grad_()
    whole = processes.whole(own, dim=1)
    (whole**2 * whole[:, :1]).mean().backward()
    refusals = []
    for share in (processes.once, processes.in_turn):
        try:
            share(_refuse)
        except InputError as error:
            refusals.append(str(error))
    agreed = Agreement(processes)
    said = [agreed(*numbers) for numbers in [(0, rank), (rank, 0), (0, 0), (0, 0), (1, 3), (0, 0), (0, 0)]]
    return {
        "processes": (rank, processes.world, processes.main),
        "mean": processes.mean(torch.tensor([rank, 10.0])),
        "average": gradients,
        "whole": whole.detach(),
        "gradient": own.grad,
        "once": processes.once(lambda: f"of {rank}"),
        "gather": processes.gather(f"of {rank}"),
        "in turn": processes.in_turn(add_a_line),
        "refusals": refusals,
        "agreed": said,
    }


def _refuse():
    raise InputError(f"no, says {os.environ['RANK']}")


def test_what_two_processes_exchange(tmp_path):
    both = results(launch(tmp_path, _exchange, str(tmp_path / "lines")))
    assert [found["processes"] for found in both] == [(0, 2, True), (1, 2, False)]
    whole = torch.arange(24.0).view(2, 4, 3).requires_grad_()
    (whole**2 * whole[:, :1]).mean().backward()
    for rank, found in enumerate(both):
        assert found["mean"].tolist() == [0.5, 10.0]
        assert found["average"][0].tolist() == [[0.5] * 3] * 2
        assert found["average"][1] is None
        assert float(found["average"][2]) == 2.0
        assert torch.equal(found["whole"], whole)
        torch.testing.assert_close(found["gradient"], 2 * whole.grad[:, rank::2])  # the mean over both is the gradient
        assert found["once"] == "of 0"
        assert found["gather"] == ["of 0", "of 1"]
        assert found["refusals"] == ["no, says 0"] * 2, "raised in all, without a wait"
        assert found["in turn"] == ["0"] * rank, "the first process of the machine is first"
        # Of the step before; after a yes, what was said before it is forgotten.
        assert found["agreed"] == [(0, 0), (0, 1), (0, 0), (0, 0), (0, 0), (1, 3), (0, 0)]


# --- the end of a process ----------------------------------------------------------------------------------------------------


def _work(what: str, command: str) -> None:
    """A command of `dim` that one process ends in some way while the other works, or waits for it."""
    import dim.commands.cli as cli

    launch_module._GRACE_SECONDS = 1.0

    def act(arguments):
        processes = join(cpu=True)
        launch_module.watch()
        if processes.rank == 1:
            time.sleep(1)
            if what == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if what == "refused":
                raise InputError("there is no such thing: name another")
            if what == "broken":
                raise KeyError("oh")
            if what == "both refuse":
                time.sleep(1)
        if what == "both refuse":
            raise InputError("both say the same")
        if command == "waits":
            processes.wait()
        elif command == "computes":
            while True:
                time.sleep(0.1)

    cli.COMMANDS["train"] = (act, None)
    run_command("train")


@pytest.mark.parametrize("command", ["waits", "computes"])
def test_a_killed_process_ends_the_others_with_one_line(tmp_path, command):
    """Whether it waits for the killed one or works on its own; within 30 s, with a grace in which a run may save its state."""
    assert launch_module._BEAT_SECONDS + launch_module._GRACE_SECONDS < 20
    first, second = launch(tmp_path, _work, "killed", command, seconds=30)
    assert second.status == -signal.SIGKILL
    assert first.status == 1
    line = "dim: the other process has ended without a word (killed, or out of memory): start all again, a run with --resume"
    assert first.error.splitlines() == [line]


def test_the_error_of_one_process_is_told_by_the_main_one(tmp_path):
    first, second = launch(tmp_path, _work, "refused", "waits")
    assert (first.status, second.status) == (1, 2)
    assert first.error.splitlines() == ["dim: process 1: there is no such thing: name another"]
    assert second.error == ""


def test_an_error_of_all_processes_is_told_once(tmp_path):
    first, second = launch(tmp_path, _work, "both refuse", "waits")
    assert (first.status, second.status) == (2, 2)
    assert first.error.splitlines() == ["dim: both say the same"]
    assert second.error == ""


def test_a_fault_of_one_process_is_shown_and_ends_the_others(tmp_path):
    first, second = launch(tmp_path, _work, "broken", "waits")
    assert (first.status, second.status) == (1, 1)
    assert second.error.splitlines()[-1] == "KeyError: 'oh'"
    assert [line[:50] for line in first.error.splitlines()] == ["dim: the other process has ended without a word (k"]


def test_before_processes_have_joined_an_error_is_told_once_per_machine(tmp_path):
    first, second = launch(tmp_path, run_command, "train", "--fit.seeed", "1")
    assert (first.status, second.status) == (2, 2)
    assert first.error.count("\n") == 1
    assert "unknown option '--fit.seeed'" in first.error
    assert second.error == ""


def test_what_cannot_be_shared_is_done_by_the_main_process(tmp_path):
    first, second = launch(tmp_path, run_command, "recipes")
    assert (first.status, second.status) == (0, 0)
    assert "digits-dim" in first.out
    assert second.out == second.error == ""
