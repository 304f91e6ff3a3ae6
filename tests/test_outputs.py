"""Where results go: links, devices, mounts and places that cannot be written; one writer; what killed processes leave."""

import errno
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from dim import outputs
from dim.errors import InputError
from dim.outputs import atomic_folder, remove_leftovers, require_free, require_writable, sole_writer, write_bytes


def names(folder) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def refused(call, *arguments) -> str:
    with pytest.raises(InputError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- files -------------------------------------------------------------------------------------------------------------------


def test_a_link_to_a_file_is_followed(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "real.json").write_text("old")
    (tmp_path / "link.json").symlink_to(tmp_path / "there" / "real.json")
    (tmp_path / "dangling.json").symlink_to(tmp_path / "there" / "new.json")
    for name in ("link.json", "dangling.json"):
        require_writable(tmp_path / name)
        write_bytes(tmp_path / name, b"new")
        assert (tmp_path / name).is_symlink()
    assert names(tmp_path / "there") == ["new.json", "real.json"]
    assert {file.read_bytes() for file in (tmp_path / "there").iterdir()} == {b"new"}


def test_a_circle_of_links_is_refused(tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    for call in (require_writable, require_free):
        assert "is no usable path" in refused(call, tmp_path / "a")


def test_a_device_is_written_and_stays_a_device(tmp_path):
    """As root, renaming a file onto /dev/null replaces it for everybody; a stand-in is tried here."""
    os.mkfifo(tmp_path / "pipe")
    before = os.stat(tmp_path / "pipe").st_ino
    reader = subprocess.Popen([sys.executable, "-c", "import sys; print(open(sys.argv[1]).read())", tmp_path / "pipe"], stdout=-1)
    require_writable(tmp_path / "pipe")
    write_bytes(tmp_path / "pipe", b"content")
    assert reader.communicate(timeout=30)[0] == b"content\n"
    assert os.stat(tmp_path / "pipe").st_ino == before
    assert names(tmp_path) == ["pipe"]
    write_bytes("/dev/null", b"content")
    assert not os.path.isfile("/dev/null")


def test_a_file_that_is_mounted_is_written_in_place(tmp_path, monkeypatch):
    """Nothing can be renamed onto a file that a container mounts."""

    def busy(*_):
        raise OSError(errno.EBUSY, "Device or resource busy")

    (tmp_path / "scores.json").write_text("old and longer")
    before = os.stat(tmp_path / "scores.json").st_ino
    monkeypatch.setattr(outputs.os, "replace", busy)
    write_bytes(tmp_path / "scores.json", b"new")
    assert (tmp_path / "scores.json").read_bytes() == b"new"
    assert os.stat(tmp_path / "scores.json").st_ino == before
    assert names(tmp_path) == ["scores.json"]
    with pytest.raises(OSError, match="busy"):
        write_bytes(tmp_path / "other.json", b"new")
    assert names(tmp_path) == ["scores.json"]


def test_places_that_cannot_be_written_are_found_before_any_work(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    assert "panel is" in refused(require_writable, tmp_path / "folder", "panel")
    assert "is no folder" in refused(require_writable, tmp_path / "file" / "scores.json")
    assert "is no folder" in refused(require_free, tmp_path / "file" / "set")
    assert "no usable path" in refused(require_writable, tmp_path / ("x" * 300) / "y")
    assert "no usable path" in refused(require_writable, "a\0b")
    require_writable(tmp_path / "deep" / "er" / "scores.json")
    assert names(tmp_path) == ["file", "folder"]
    monkeypatch.setattr(outputs, "_may_create", lambda folder: False)  # as on a read-only file system, also for root
    assert "nothing can be created in" in refused(require_writable, tmp_path / "new.json")
    assert "nothing can be created in" in refused(require_free, tmp_path / "new")
    assert "nothing can be created in" in refused(lambda: sole_writer(tmp_path / "run").__enter__())
    require_writable(tmp_path / "file")  # itself can be written, as a mounted file


# --- folders -----------------------------------------------------------------------------------------------------------------


def put(folder, *files, overwrite=False):
    with atomic_folder(folder, overwrite=overwrite) as temporary:
        for name in files:
            (temporary / name).write_text(name)


def test_a_link_to_a_folder_is_followed(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "set").symlink_to(tmp_path / "disk")
    put(tmp_path / "set", "a")
    put(tmp_path / "set", "b", overwrite=True)
    assert (tmp_path / "set").is_symlink()
    assert names(tmp_path) == ["disk", "set"]
    assert names(tmp_path / "disk") == ["b"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_that_is_mounted_is_filled_in_place(tmp_path, monkeypatch, overwrite):
    (tmp_path / "out").mkdir()
    if overwrite:
        (tmp_path / "out" / "old").mkdir()
    before = os.stat(tmp_path / "out").st_ino
    monkeypatch.setattr(outputs.os.path, "ismount", lambda path: path.name == "out")
    put(tmp_path / "out", "set.json", "data", overwrite=overwrite)
    assert os.stat(tmp_path / "out").st_ino == before
    assert names(tmp_path / "out") == ["data", "set.json"]
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("exchange", [True, False])
def test_overwriting_never_leaves_the_place_empty(tmp_path, monkeypatch, exchange):
    if not exchange:
        monkeypatch.setattr(outputs, "_exchange", lambda first, second: False)
    elif sys.platform == "linux":
        monkeypatch.setattr(outputs.os, "replace", None)  # one step, and not two renames
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "old").touch()
    put(tmp_path / "set", "new", overwrite=True)
    assert names(tmp_path / "set") == ["new"]
    assert names(tmp_path) == ["set"]


def test_a_folder_that_another_process_filled_meanwhile_is_refused(tmp_path):
    folder = atomic_folder(tmp_path / "set")
    (folder.__enter__() / "mine").touch()
    put(tmp_path / "set", "theirs")
    assert "not empty" in refused(folder.__exit__, None, None, None)
    assert names(tmp_path / "set") == ["theirs"]
    assert names(tmp_path) == ["set"]


def test_a_run_that_is_being_written_is_not_overwritten(tmp_path):
    with sole_writer(tmp_path / "run"):
        assert "another process is writing" in refused(lambda: require_free(tmp_path / "run", overwrite=True))
    require_free(tmp_path / "run", overwrite=True)


# --- one writer --------------------------------------------------------------------------------------------------------------

_HOLD = """
import sys, time
from dim.outputs import sole_writer
with sole_writer(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_one_process_writes_and_a_kill_lets_the_next(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", _HOLD, tmp_path / "run"], stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(InputError, match="another process is writing"), sole_writer(tmp_path / "run"):
        pytest.fail("two writers")
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    with sole_writer(tmp_path / "run"), pytest.raises(InputError), sole_writer(tmp_path / "run"):
        pytest.fail("two writers")


# --- what killed processes leave ---------------------------------------------------------------------------------------------


def test_leftovers_of_processes_that_are_gone_are_removed_and_others_kept(tmp_path, monkeypatch):
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True)
    here, there = outputs._HOST, "00000000"
    pid = gone.stdout.strip()
    old = [f".a.json.{here}-{pid}-0a1b2c3d.tmp", f".set.{here}-{pid}-0a1b2c3d.old", ".b.png.0a1b2c3d.tmp"]
    kept = [f".a.json.{here}-{os.getpid()}-0a1b2c3d.tmp", f".a.json.{there}-{pid}-0a1b2c3d.tmp", ".mine.tmp", "a.tmp", ".lock"]
    for folder in (tmp_path, tmp_path / "samples"):
        folder.mkdir(exist_ok=True)
        for name in old + kept:
            (folder / name).touch()
    remove_leftovers(tmp_path)
    assert names(tmp_path / "samples") == sorted(kept)
    assert names(tmp_path) == sorted([*kept, "samples"])
    monkeypatch.setattr(outputs.time, "time", lambda: time.time_ns() / 1e9 + 2 * 24 * 3600)
    remove_leftovers(tmp_path)
    assert f".a.json.{there}-{pid}-0a1b2c3d.tmp" not in names(tmp_path)


_DIE = """
import os, signal, sys
from dim.outputs import atomic_folder
with atomic_folder(sys.argv[1]) as temporary:
    (temporary / "half").write_bytes(bytes(1000))
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_next_set_of_a_name_removes_what_a_killed_one_left(tmp_path):
    for name in ("set", "other", "s[e]t*"):
        done = subprocess.run([sys.executable, "-c", _DIE, tmp_path / name])
        assert done.returncode == -signal.SIGKILL
    assert len(names(tmp_path)) == 3
    put(tmp_path / "set", "a")
    assert len(names(tmp_path)) == 3, "the other's stays"
    put(tmp_path / "s[e]t*", "a")
    assert [name for name in names(tmp_path) if not name.startswith(".other.")] == ["s[e]t*", "set"]


def test_machines_are_told_apart():
    assert len(outputs._HOST) == 8
    assert socket.gethostname() not in outputs._HOST
