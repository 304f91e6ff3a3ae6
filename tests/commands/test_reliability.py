"""Commands that are killed, that race, and that measure what is no number."""

import contextlib
import dataclasses
import json
import signal
import subprocess
import sys
import time

import pytest
import torch

import dim
from dim.commands.cli import main
from dim.io import load_tensors, read_document, save_tensors, write_document
from dim.run_folder import read_metrics
from dim.score.evaluate import Evaluator
from dim.score.record import read_scores


@pytest.fixture(scope="module")
def tiny(tiny):
    """Twice as long, with checkpoints on the way."""
    stages = {name: dataclasses.replace(getattr(tiny, name), epochs=0.04) for name in ("stage_one", "stage_two")}
    return dataclasses.replace(tiny, **stages, fit=dataclasses.replace(tiny.fit, checkpoint_steps=2))


@pytest.fixture(scope="module", autouse=True)
def surroundings():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture
def small_set(run, tmp_path):
    assert main(["sample", str(run), "--ipc", "2", "--out", str(tmp_path / "set"), "--format", "safetensors"]) == 0
    return tmp_path / "set"


def start(*arguments) -> subprocess.Popen:
    command = [sys.executable, "-m", "dim.commands.cli", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen) -> tuple[int, str]:
    """Exit status, and the last line on standard error."""
    errors = process.communicate(timeout=120)[1].splitlines()
    return process.returncode, errors[-1] if errors else ""


def said(capfd) -> str:
    return capfd.readouterr().err.splitlines()[-1]


# --- one writer --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("resume", [False, True])
def test_of_two_that_train_at_once_one_is_refused(recipe, run, tmp_path, resume):
    """The run ends as if the other had never been there."""
    out, more = tmp_path / "run", ()
    if resume:
        first = start("train", "--recipe", recipe, "--out", out)
        while not (out / "checkpoint.safetensors").exists() and first.poll() is None:
            time.sleep(0.005)
        first.kill()
        first.communicate()
        more = ("--resume",)
    both = [start("train", "--recipe", recipe, "--out", out, *more) for _ in range(2)]
    results = sorted(map(ended, both))
    assert results[0][0] == 0, results
    # The second may also come when the first has ended: then there is nothing left to do, or a run that is in the way.
    refusals = ("another process", "already holds a run")
    assert results[1][0] == 0 or (results[1][0] == 2 and any(text in results[1][1] for text in refusals)), results
    assert [record["step"] for record in read_metrics(out)] == [record["step"] for record in read_metrics(run)]
    own, whole = (load_tensors(folder / "generator.safetensors")[0] for folder in (out, run))
    assert all(torch.equal(own[name], whole[name]) for name in whole)


def test_a_live_run_is_left_alone(recipe, tmp_path, capfd):
    from dim.outputs import sole_writer

    with sole_writer(tmp_path / "run"):
        for more in ([], ["--resume"]):
            assert main(["train", "--recipe", recipe, "--out", str(tmp_path / "run"), *more]) == 2
            expected = "wait until it ends, or stop it, or name another folder"
            assert said(capfd) == f"dim: another process is writing {tmp_path / 'run'}: {expected}"


# --- what is not a number ----------------------------------------------------------------------------------------------------


def test_a_student_that_diverges_has_no_score(small_set, tmp_path, capfd):
    path = tmp_path / "scores.json"
    assert (
        main(
            ["evaluate", str(small_set), "--seeds", "2", "--protocol.lr", "1e30", "--protocol.epochs", "20", "--json", str(path)]
        )
        == 0
    )
    output = capfd.readouterr().out
    assert "2 of 2 diverged (step " in output
    (score,) = read_scores(path)
    assert score.accuracies == (None, None)
    assert (score.mean, score.std) == (None, None)
    assert all(0 < step <= score.steps for step in score.diverged)
    assert main(["compare", str(path), "--picture", str(tmp_path / "a.png"), "--html", str(tmp_path / "a.html")]) == 0
    assert "2 of 2 diverged" in capfd.readouterr().out


def test_labels_images_and_weights_that_are_not_finite_are_refused(run, tmp_path, capfd):
    arguments = ["--ipc", "1", "--out", str(tmp_path / "set")]
    assert main(["sample", str(run), *arguments, "--teacher.folder", str(run), "--teacher.temperature", "1e-300"]) == 2
    assert "not finite" in said(capfd)
    assert not (tmp_path / "set").exists()
    tensors, metadata = load_tensors(run / "generator.safetensors")
    broken = {
        name: torch.full_like(value, float("nan")) if value.is_floating_point() else value for name, value in tensors.items()
    }
    save_tensors(tmp_path / "nan.safetensors", broken, metadata)
    for command in (["sample", *arguments], ["coverage"], ["evaluate", "--ipc", "1"]):
        assert main([command[0], str(tmp_path / "nan.safetensors"), *command[1:]]) == 2
        assert "weights that are not finite" in said(capfd)


def test_sets_are_checked_when_they_are_made(small_set):
    own = dim.load_set(small_set)
    images, labels, spec = own.images.float(), own.labels, own.spec
    soft = torch.full((len(own), 10), 0.1)
    with pytest.raises(dim.InputError, match=r"float images reach from \d+ to \d+"):
        dim.SyntheticSet(images, labels, spec)
    with pytest.raises(dim.InputError, match="images of 1 of 20 images hold values that are not finite"):
        dim.SyntheticSet(torch.cat((torch.full_like(images[:1], float("nan")), images[1:] / 255)), labels, spec)
    for bad in (soft * float("nan"), soft * 2, soft - 0.2):
        with pytest.raises(dim.InputError, match="soft labels"):
            dim.SyntheticSet(own.images, labels, spec, soft=bad)
    dim.SyntheticSet(own.images, labels, spec, soft=soft)


# --- rows are kept -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def interrupted(monkeypatch):
    """Lets the measurement of some number be interrupted once; gives the names of all that are begun."""

    def at(number: int) -> list[str]:
        measured, original = [], Evaluator._score

        def score(self, source):
            measured.append(source.name)
            if len(measured) == number:
                raise KeyboardInterrupt
            return original(self, source)

        monkeypatch.setattr(Evaluator, "_score", score)
        return measured

    return at


def test_rows_of_a_killed_command_are_taken_over(small_set, run, tmp_path, interrupted):
    arguments = [str(small_set), str(run), "--ipc", "1", "--seeds", "1", "--controls", "random", "oracle"]
    assert main(["evaluate", *arguments, "--json", str(tmp_path / "whole.json")]) == 0
    measured = interrupted(3)
    path = tmp_path / "scores.json"
    assert main(["evaluate", *arguments, "--json", str(path)]) == 130
    assert not path.exists()
    assert (tmp_path / ".scores.json.unfinished").is_file()
    assert main(["evaluate", *arguments, "--json", str(path)]) == 0
    assert len(measured) == 3 + len(read_scores(tmp_path / "whole.json")) - 2
    facts = [
        [(row.name, row.track, row.ipc, row.accuracies) for row in read_scores(file)] for file in (path, tmp_path / "whole.json")
    ]
    assert facts[0] == facts[1]
    assert not (tmp_path / ".scores.json.unfinished").exists()
    # What another command had measured is of no use, and neither is a damaged file.
    (tmp_path / ".scores.json.unfinished").write_text("{")
    del measured[:]
    assert main(["evaluate", *arguments[:1], "--seeds", "1", "--json", str(path)]) == 0
    assert measured == [str(small_set)]


def test_rows_of_other_test_images_are_measured_again(small_set, run, tmp_path, monkeypatch, interrupted):
    """The training images may be the same, and the accuracies of others."""
    from dim.data.real import RealData

    arguments = ["evaluate", str(small_set), str(run), "--ipc", "1", "--seeds", "1", "--json", str(tmp_path / "scores.json")]
    measured = interrupted(2)
    assert main(arguments) == 130
    monkeypatch.setattr(RealData, "digest", lambda self, part: f"other {part} images")
    assert main(arguments) == 0
    assert measured == [str(small_set), str(run)] * 2


# --- signals -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_command_without_checkpoints_ends_in_one_line_and_leaves_nothing(run, tmp_path, name):
    process = start("sample", run, "--ipc", "100000", "--out", tmp_path / "set")
    while (
        not any(entry.name.startswith(".set") for entry in tmp_path.iterdir()) and process.poll() is None and not asleep(process)
    ):
        time.sleep(0.02)
    process.send_signal(getattr(signal, name))
    assert ended(process) == (128 + getattr(signal, name), f"dim: stopped by {name}")
    assert list(tmp_path.iterdir()) == []


def asleep(process) -> bool:
    """Whether the process has come so far that it handles signals: it has loaded the libraries."""
    with open(f"/proc/{process.pid}/maps") as handle:
        return "libtorch_cpu" in handle.read()


_STUBBORN = """
import os, signal, time
from dim.commands import cli

def stubborn(arguments):
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)
    except BaseException:
        pass
    time.sleep(60)

cli.COMMANDS["recipes"] = (stubborn, cli.COMMANDS["recipes"][1])
cli.run(["recipes"])
"""


def test_a_library_that_catches_everything_does_not_keep_a_command_from_ending():
    done = subprocess.run([sys.executable, "-c", _STUBBORN], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (128 + signal.SIGTERM, "dim: stopped by SIGTERM\n")


def test_signals_after_the_first_change_nothing(recipe, tmp_path):
    """A run that is on its way out says how it goes on, however often a launcher asks it to end."""
    out = tmp_path / "run"
    process = start("train", "--recipe", recipe, "--out", out, "--stage-two.epochs", "50")
    while not (out / "checkpoint.safetensors").exists() and process.poll() is None:
        time.sleep(0.02)
    while process.poll() is None:
        process.send_signal(signal.SIGTERM)
        time.sleep(0.001)
    status, line = ended(process)
    assert status == 128 + signal.SIGTERM
    assert line.startswith("dim: interrupted at step ")
    assert line.endswith(f"continue with: dim train --out {out} --resume")


def test_nohup_is_respected(recipe, tmp_path):
    command = [sys.executable, "-m", "dim.commands.cli", "train", "--recipe", recipe, "--out", str(tmp_path / "run")]
    process = subprocess.Popen(["nohup", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "run" / "run.json").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGHUP)
    assert ended(process)[0] == 0


# --- files that were changed -------------------------------------------------------------------------------------------------


def test_settings_that_were_edited_are_refused(recipe, run, tmp_path, capfd):
    import shutil

    shutil.copytree(run, tmp_path / "run")
    path = tmp_path / "run" / "run.json"
    edited = json.loads(path.read_text())
    edited["config"]["stage_one"]["lr"] = 0.005
    path.write_text(json.dumps(edited))
    assert main(["train", "--out", str(tmp_path / "run"), "--resume"]) == 2
    assert "was damaged or edited" in said(capfd)
    write_document(path, {key: value for key, value in edited.items() if key != "checksum"})
    assert main(["train", "--out", str(tmp_path / "run"), "--resume"]) == 2
    assert "stage_one.lr 0.001, and" in said(capfd)


def test_metrics_are_never_needed(recipe, run, tmp_path):
    import shutil

    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "metrics.jsonl").write_bytes(b"\xff\x00" * 100 + b"\n{\n[1]\n" + b"[" * 100_000)
    assert main(["train", "--out", str(tmp_path / "run"), "--resume"]) == 0
    assert read_metrics(tmp_path / "run") == []


def test_every_flipped_bit_of_every_document_is_noticed_or_changes_nothing(run, small_set, digits_experts, tmp_path):
    """`run.json`, `set.json`, `experts.json`, scores: a checksum covers the whole thing."""
    assert main(["evaluate", str(small_set), "--seeds", "1", "--json", str(tmp_path / "scores.json")]) == 0
    for path in (run / "run.json", small_set / "set.json", digits_experts / "experts.json", tmp_path / "scores.json"):
        content, good = path.read_bytes(), read_document(path)
        copy = tmp_path / "flipped.json"
        for position in range(0, len(content), max(1, len(content) // 400)):
            flipped = bytearray(content)
            flipped[position] ^= 1 << position % 8
            copy.write_bytes(flipped)
            with contextlib.suppress(dim.InputError):
                assert read_document(copy) == good


def test_flipped_bits_of_metrics_leave_only_true_lines(run, tmp_path):
    good = read_metrics(run)
    content = (run / "metrics.jsonl").read_bytes()
    for position in range(0, len(content), max(1, len(content) // 300)):
        flipped = bytearray(content)
        flipped[position] ^= 1 << position % 8
        (tmp_path / "metrics.jsonl").write_bytes(flipped)
        left = read_metrics(tmp_path)
        assert len(good) - 2 <= len(left) <= len(good)
        assert all(record in good for record in left)


def test_rows_of_a_killed_coverage_are_taken_over(small_set, run, tmp_path, monkeypatch):
    from dim.score.coverage import Coverage

    arguments, path = ["coverage", str(small_set), str(run), "--samples", "20"], tmp_path / "coverage.json"
    assert main([*arguments, "--json", str(tmp_path / "whole.json")]) == 0
    measured, original = [], Coverage.score

    def score(self, subject, name="set"):
        measured.append(name)
        if len(measured) == 2:
            raise KeyboardInterrupt
        return original(self, subject, name)

    monkeypatch.setattr(Coverage, "score", score)
    assert main([*arguments, "--json", str(path)]) == 130
    assert main([*arguments, "--json", str(path)]) == 0
    assert measured == [str(small_set), str(run), str(run)]
    documents = [read_document(file)["scores"] for file in (path, tmp_path / "whole.json")]
    own, whole = ([(row["name"], row["metrics"]) for row in rows] for rows in documents)
    assert own == whole
    assert not (tmp_path / ".coverage.json.unfinished").exists()


def test_a_distilled_set_says_how_far_its_images_reach(tmp_path, digits_experts, capfd):
    recipe = ["--recipe", "digits-mtt-ipc1", "--student", "convnet:width=4,depth=2", "--distill.iterations", "2"]
    trajectory = ["--trajectory.steps", "2", "--trajectory.epochs", "1", "--trajectory.max-start", "2", "--images.lr", "1e5"]
    more = [
        "--experts",
        str(digits_experts),
        "--out",
        str(tmp_path / "set"),
        "--trajectory.compile",
        "off",
        "--distill.sample-steps",
        "0",
    ]
    assert main(["distill", *recipe, *trajectory, *more]) == 0
    low, high = read_document(tmp_path / "set" / "set.json")["info"]["range"]
    images = dim.load_set(tmp_path / "set").images
    assert (low, high) == pytest.approx((float(images.min()), float(images.max())), abs=1e-3)
    assert f"values from {low:.2f} to {high:.2f} (natural images: -1 to 1)" in capfd.readouterr().out
