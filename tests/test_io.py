"""Files: whole or absent, and never believed when damaged."""

import os
import subprocess
import sys

import pytest
import safetensors.torch
import torch

from dim import io, outputs
from dim.errors import InputError


@pytest.fixture
def tensors():
    generator = torch.Generator().manual_seed(0)
    return {
        "weight": torch.randn(2, 3, generator=generator),
        "step": torch.tensor(7),
        "half": torch.randn(3, generator=generator).to(torch.bfloat16),
        "mask": torch.tensor([True, False]),
        "nothing": torch.empty(0, 4),
    }


def _names(folder):
    return sorted(os.listdir(folder))


def _fail_inside(context, error):
    """Write part of a file or folder and fail."""
    with context as temporary:
        (temporary / "new.txt" if temporary.is_dir() else temporary).write_bytes(b"half of the n")
        raise error


def test_tensors_and_metadata_round_trip(tmp_path, tensors):
    metadata = {"kind": "test", "nested": {"list": [1, 2.5, None, True]}, "text": 'é "quoted"\n'}
    io.save_tensors(tmp_path / "new" / "a.safetensors", tensors, metadata)
    loaded, found = io.load_tensors(tmp_path / "new" / "a.safetensors")
    assert found == metadata
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor), name
    assert _names(tmp_path / "new") == ["a.safetensors"]


def test_views_gradients_and_memory_formats_are_stored_by_value(tmp_path):
    base = torch.arange(48.0).view(1, 3, 4, 4)
    stored = {
        "last": base.to(memory_format=torch.channels_last),
        "transposed": base.transpose(2, 3),
        "parameter": torch.nn.Parameter(base),
    }
    io.save_tensors(tmp_path / "a", stored, {})
    loaded, _ = io.load_tensors(tmp_path / "a")
    assert all(torch.equal(loaded[name], value) for name, value in stored.items())


_BASE = torch.arange(12.0)
_TIED = torch.nn.Parameter(torch.arange(6.0).view(2, 3))


@pytest.mark.parametrize(
    "stored",
    [
        {"a": _BASE, "b": _BASE},
        {"a": _BASE, "b": _BASE, "c": _BASE},
        {"whole": _BASE, "part": _BASE[3:7]},
        {"part": _BASE[3:7], "whole": _BASE},
        {"first": _BASE[:6], "second": _BASE[6:]},
        {"overlap": _BASE[:8], "more": _BASE[4:]},
        {"flat": _BASE, "table": _BASE.view(3, 4), "bits": _BASE.view(torch.int32)},
        {"weight": _TIED, "tied": _TIED, "detached": _TIED.detach()},
        {"row": _BASE[:1].expand(5), "column": _BASE[::2], "whole": _BASE},
        {"empty": _BASE[:0], "nothing": torch.empty(0), "whole": _BASE},
    ],
    ids=lambda stored: "-".join(stored),
)
def test_tensors_that_share_memory_are_stored_each_on_its_own(tmp_path, stored):
    """Tied weights, and slices and views of one tensor: the format refuses those that share. What was given stays as it was."""
    before = {name: (tensor.data_ptr(), tensor.detach().clone()) for name, tensor in stored.items()}
    io.save_tensors(tmp_path / "a", stored, {})
    loaded, _ = io.load_tensors(tmp_path / "a")
    assert loaded.keys() == stored.keys()
    for name, (pointer, value) in before.items():
        assert loaded[name].dtype == value.dtype
        assert torch.equal(loaded[name], value)
        assert stored[name].data_ptr() == pointer
        assert torch.equal(stored[name].detach(), value)


def test_tensors_that_shared_memory_are_apart_when_read(tmp_path):
    """Writing into one that was loaded leaves the other alone."""
    io.save_tensors(tmp_path / "a", {"a": _BASE, "b": _BASE}, {})
    loaded, _ = io.load_tensors(tmp_path / "a")
    loaded["a"].zero_()
    assert torch.equal(loaded["b"], torch.arange(12.0))


def test_not_a_number_is_refused_in_metadata_and_json(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        io.save_tensors(tmp_path / "a", {}, {"loss": float("nan")})
    with pytest.raises(ValueError, match="not JSON compliant"):
        io.write_json(tmp_path / "b", [float("inf")])
    assert _names(tmp_path) == []


def test_json_round_trip(tmp_path):
    value = {"a": [1, 2.5, "é"], "b": None}
    io.write_json(tmp_path / "a.json", value)
    assert io.read_json(tmp_path / "a.json") == value


@pytest.mark.parametrize("content", [None, b"", b'{"a": 1', b"\xff\xfe{}"])
def test_missing_or_damaged_json_is_an_input_error(tmp_path, content):
    if content is not None:
        (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(InputError) as caught:
        io.read_json(tmp_path / "a.json")
    assert "a.json" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failed_file_leaves_the_old_one_and_no_temporary(tmp_path, error):
    target = tmp_path / "a.txt"
    outputs.write_bytes(target, b"old")
    with pytest.raises(error):
        _fail_inside(outputs.atomic_file(target), error)
    assert target.read_bytes() == b"old"
    assert _names(tmp_path) == ["a.txt"]


def test_a_file_is_replaced_only_at_the_end(tmp_path):
    target = tmp_path / "a.txt"
    outputs.write_bytes(target, b"old")
    with outputs.atomic_file(target) as temporary:
        temporary.write_bytes(b"new")
        assert target.read_bytes() == b"old"
    assert target.read_bytes() == b"new"
    assert _names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failed_folder_leaves_the_old_one_and_no_temporary(tmp_path, error):
    target = tmp_path / "set"
    target.mkdir()
    (target / "old.txt").write_text("old")
    with pytest.raises(error):
        _fail_inside(outputs.atomic_folder(target, overwrite=True), error)
    assert _names(tmp_path) == ["set"]
    assert _names(target) == ["old.txt"]


def test_a_failed_new_folder_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError):
        _fail_inside(outputs.atomic_folder(tmp_path / "set"), RuntimeError)
    assert _names(tmp_path) == []


def test_overwriting_a_folder_replaces_all_of_it(tmp_path):
    for name in ("old", "new"):
        with outputs.atomic_folder(tmp_path / "deep" / "set", overwrite=True) as temporary:
            (temporary / name).write_text(name)
    assert _names(tmp_path / "deep") == ["set"]
    assert _names(tmp_path / "deep" / "set") == ["new"]


def test_an_output_that_is_taken_is_refused_before_any_work(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").touch()
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="--overwrite"), outputs.atomic_folder(tmp_path / "full"):
        pytest.fail("the block ran")
    with pytest.raises(InputError, match="is a file"), outputs.atomic_folder(tmp_path / "file", overwrite=True):
        pytest.fail("the block ran")
    with outputs.atomic_folder(tmp_path / "empty") as temporary:
        (temporary / "a").touch()
    assert _names(tmp_path / "empty") == ["a"]


def _refused(path) -> str:
    with pytest.raises(InputError) as caught:
        io.load_tensors(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


@pytest.mark.parametrize("flip", [0x01, 0x20, 0x80])
def test_a_flipped_bit_anywhere_is_noticed(tmp_path, tensors, flip):
    """Length, header, metadata, digest and data: every byte of the file."""
    io.save_tensors(tmp_path / "good", tensors, {"kind": "test"})
    content = (tmp_path / "good").read_bytes()
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= flip
        (tmp_path / "bad").write_bytes(damaged)
        _refused(tmp_path / "bad")


def test_a_truncated_file_is_noticed(tmp_path, tensors):
    io.save_tensors(tmp_path / "good", tensors, {"kind": "test"})
    content = (tmp_path / "good").read_bytes()
    for length in range(0, len(content), 5):
        (tmp_path / "bad").write_bytes(content[:length])
        _refused(tmp_path / "bad")
    (tmp_path / "bad").write_bytes(content + b"x")
    _refused(tmp_path / "bad")


def test_swapped_tensors_are_noticed(tmp_path):
    """Same bytes under other names: only a digest over names sees it."""
    a, b = torch.zeros(3), torch.ones(3)
    io.save_tensors(tmp_path / "good", {"a": a, "b": b}, {})
    with safetensors.safe_open(tmp_path / "good", framework="pt") as handle:
        header = handle.metadata()
    safetensors.torch.save_file({"a": b, "b": a}, tmp_path / "bad", metadata=header)
    assert "checksum" in _refused(tmp_path / "bad")


def test_a_file_of_someone_else_is_refused(tmp_path):
    safetensors.torch.save_file({"a": torch.zeros(2)}, tmp_path / "plain.safetensors")
    assert "written by dim" in _refused(tmp_path / "plain.safetensors")
    safetensors.torch.save_file({"a": torch.zeros(2)}, tmp_path / "other.safetensors", metadata={"format": "pt"})
    assert "written by dim" in _refused(tmp_path / "other.safetensors")
    (tmp_path / "image.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(200))
    _refused(tmp_path / "image.png")


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    assert "no file" in _refused(tmp_path / "absent")
    assert "no file" in _refused(tmp_path)


@pytest.mark.parametrize("change", ["name", "dtype", "shape", "value", "text"])
def test_digest_covers_everything(change):
    tensor = torch.arange(6, dtype=torch.int32)
    changed = {
        "name": ({"b": tensor}, ""),
        "dtype": ({"a": tensor.view(torch.float32)}, ""),
        "shape": ({"a": tensor.view(2, 3)}, ""),
        "value": ({"a": tensor.flip(0)}, ""),
        "text": ({"a": tensor}, "x"),
    }[change]
    assert io.digest(*changed) != io.digest({"a": tensor})
    assert io.digest({"a": tensor.clone()}) == io.digest({"a": tensor})


_FULL_DISK = """
import resource, sys
import torch
from dim.io import save_tensors
from dim.outputs import is_no_space
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
try:
    save_tensors(sys.argv[1], {"a": torch.ones(5000)}, {"version": 2})
except OSError as error:
    sys.exit(7 if is_no_space(error) else 8)
"""


def test_a_write_that_hits_the_file_size_limit_leaves_the_old_file_whole(tmp_path):
    io.save_tensors(tmp_path / "a", {"a": torch.zeros(3)}, {"version": 1})
    done = subprocess.run([sys.executable, "-c", _FULL_DISK, tmp_path / "a"], capture_output=True, text=True, check=False)
    assert done.returncode == 7, done.stderr
    loaded, metadata = io.load_tensors(tmp_path / "a")
    assert metadata == {"version": 1}
    assert torch.equal(loaded["a"], torch.zeros(3))
    assert _names(tmp_path) == ["a"]


def test_other_errors_of_the_system_are_not_a_full_disk():
    assert not outputs.is_no_space(FileNotFoundError(2, "no such file"))


def test_without_a_home_nothing_is_kept(monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    place = io.cache_folder("data") / "it.safetensors"
    io.keep_tensors(place, {"x": torch.zeros(1)}, {})
    assert "not kept, so the next start does this work again" in capsys.readouterr().err
    with pytest.raises(InputError):
        io.load_tensors(place)
