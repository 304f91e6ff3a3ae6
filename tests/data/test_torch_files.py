"""Files of torch.save: what tensors they hold is read, and nothing else happens."""

import os
import zipfile

import numpy as np
import pytest
import torch

from dim.data.torch_files import read_torch, require_dense, write_torch
from dim.errors import InputError


class Evil:
    """Unpickling it makes a folder."""

    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return os.mkdir, (self.place,)


def refused(path) -> str:
    with pytest.raises(InputError) as caught:
        read_torch(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


def rewritten(path, change, compression=zipfile.ZIP_STORED):
    """The same archive with other parts."""
    with zipfile.ZipFile(path) as archive:
        parts = {member.filename: archive.read(member) for member in archive.infolist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in change(parts).items():
            archive.writestr(name, content)


def test_tensors_in_lists_and_dicts_are_read(tmp_path):
    content = {"data": [[torch.rand(4, 3, 8, 8), torch.arange(4)]], "lr": torch.tensor(0.1), "name": "x", "n": [1, None, 2.5]}
    write_torch(tmp_path / "a.pt", content)
    read = read_torch(tmp_path / "a.pt")
    assert torch.equal(read["data"][0][0], content["data"][0][0])
    assert torch.equal(read["data"][0][1], torch.arange(4))
    assert (read["lr"], read["name"], read["n"]) == (content["lr"], "x", [1, None, 2.5])


def test_numbers_of_numpy_beside_tensors_are_passed_over(tmp_path):
    """As DC, DSA and DM have them: accuracies, which are numpy.float64."""
    content = {"data": [torch.ones(2)], "accs_all_exps": {"ConvNet": [np.float64(0.4)] * 3, "all": np.ones(3)}}
    torch.save(content, tmp_path / "res.pt")
    read = read_torch(tmp_path / "res.pt")
    assert torch.equal(read["data"][0], torch.ones(2))
    assert not isinstance(read["accs_all_exps"]["ConvNet"][0], float)


def test_nothing_in_a_file_is_run(tmp_path):
    torch.save([torch.ones(2), Evil(str(tmp_path / "made"))], tmp_path / "evil.pt")
    assert "more than tensors" in refused(tmp_path / "evil.pt")
    assert not (tmp_path / "made").exists()


def test_files_of_other_kinds_are_refused(tmp_path):
    assert "no file" in refused(tmp_path / "absent.pt")
    (tmp_path / "text.pt").write_text("images")
    assert "since PyTorch 1.6" in refused(tmp_path / "text.pt")
    torch.save(torch.ones(2), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert "save its tensors again" in refused(tmp_path / "old.pt")
    with zipfile.ZipFile(tmp_path / "other.pt", "w") as archive:
        archive.writestr("a.txt", "b")
    assert "data.pkl" in refused(tmp_path / "other.pt")


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.99])
def test_a_truncated_file_is_refused(tmp_path, keep):
    write_torch(tmp_path / "a.pt", torch.rand(100))
    content = (tmp_path / "a.pt").read_bytes()
    (tmp_path / "a.pt").write_bytes(content[: int(keep * len(content))])
    refused(tmp_path / "a.pt")


def test_a_changed_value_is_refused(tmp_path):
    write_torch(tmp_path / "a.pt", torch.full((100,), 7.0))
    content = bytearray((tmp_path / "a.pt").read_bytes())
    content[content.index(torch.full((2,), 7.0).numpy().tobytes()) + 40] ^= 1
    (tmp_path / "a.pt").write_bytes(bytes(content))
    assert "does not match its checksum" in refused(tmp_path / "a.pt")


def test_a_packed_file_is_refused(tmp_path):
    """A small file of zeros could be packed images of any size."""
    write_torch(tmp_path / "a.pt", torch.zeros(10**6))
    rewritten(tmp_path / "a.pt", lambda parts: parts, zipfile.ZIP_DEFLATED)
    assert (tmp_path / "a.pt").stat().st_size < 10**5
    assert "compressed" in refused(tmp_path / "a.pt")


def test_a_structure_beyond_measure_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("dim.data.torch_files._MOST_STRUCTURE", 1000)
    write_torch(tmp_path / "a.pt", list(range(2000)))
    assert "at most 1,000 bytes" in refused(tmp_path / "a.pt")


def test_a_tensor_cannot_reach_beyond_its_bytes(tmp_path):
    """The pickle says how many values there are: a larger number would read what lies behind them in memory."""
    write_torch(tmp_path / "a.pt", torch.zeros(300))  # 300 is \x2c\x01 in the pickle: as the storage's size and the tensor's

    def larger(parts):
        name = next(name for name in parts if name.endswith("data.pkl"))
        assert parts[name].count(b"M\x2c\x01") == 2
        return {**parts, name: parts[name].replace(b"M\x2c\x01", b"M\xff\xff")}

    rewritten(tmp_path / "a.pt", larger)
    refused(tmp_path / "a.pt")


def test_a_tensor_without_its_values_is_refused(tmp_path):
    write_torch(tmp_path / "a.pt", [torch.zeros(1).expand(10**12), torch.eye(3).to_sparse(), torch.ones(3)[::2]])
    repeated, sparse, strided = read_torch(tmp_path / "a.pt")
    for tensor in (repeated, sparse):
        with pytest.raises(InputError, match="without its values"):
            require_dense(tensor, "a.pt")
    assert torch.equal(require_dense(strided, "a.pt"), torch.ones(2))


def test_a_file_that_may_not_be_read_is_the_systems_error(tmp_path, monkeypatch):
    write_torch(tmp_path / "a.pt", torch.ones(2))

    def denied(*_, **__):
        raise PermissionError(13, "Permission denied", "a.pt")

    monkeypatch.setattr(torch, "load", denied)
    with pytest.raises(PermissionError):
        read_torch(tmp_path / "a.pt")
