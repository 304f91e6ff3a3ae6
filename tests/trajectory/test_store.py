"""Expert stores: what is written is what is read, also after a kill, and what does not fit is refused in one line."""

import dataclasses
import errno
import json
import os

import pytest
import torch

from dim.config import RecordConfig, to_dict
from dim.errors import InputError
from dim.io import read_document, write_document
from dim.trajectory.store import ExpertRecord, ExpertStore, Layout, to_waypoints, waypoint_moments

LAYOUT = Layout(experts=2, moments=(0, 1, 2, 3, 4), every=0.5, tensors=(("conv.weight", 6), ("conv.bias", 2), ("head.weight", 3)))
LAST, SIZE = 4, 11


def _record(expert: int = 0, last: int = LAST) -> ExpertRecord:
    return ExpertRecord(
        lengths=tuple((0.1 + moment, 0.25, 1e-7 * (expert + 1)) for moment in range(last)),
        accuracies=tuple(10.0 * moment + expert for moment in range(last + 1)),
        test_accuracy=60.5 + expert,
    )


def _weights(expert: int, moment: int) -> torch.Tensor:
    return torch.randn(SIZE, generator=torch.Generator().manual_seed(100 * expert + moment))


def _filled(folder, layout: Layout = LAYOUT, finish: int = 2) -> ExpertStore:
    store = ExpertStore.create(folder, layout)
    for expert in range(layout.experts):
        for position, moment in enumerate(layout.moments):
            store.write(expert, position, _weights(expert, moment))
    for expert in range(finish):
        store.finish(expert, _record(expert))
    write_document(folder / "run.json", {"kind": "experts", "config": to_dict(RecordConfig()), "spec": {}})
    return store


def _edit(folder, change) -> None:
    """Change the parsed experts.json in place, with a checksum that fits."""
    values = read_document(folder / "experts.json")
    change(values)
    write_document(folder / "experts.json", values)


def _known(store: ExpertStore) -> dict[int, ExpertRecord]:
    """Records without the digests of the weights."""
    return {expert: dataclasses.replace(record, digests=()) for expert, record in store.records.items()}


def test_a_layout_knows_its_size():
    assert (LAYOUT.parameters, LAYOUT.last, LAYOUT.full) == (SIZE, LAST, True)
    assert LAYOUT.bytes == 2 * 5 * SIZE * 4
    few = dataclasses.replace(LAYOUT, moments=(0, 2, 4), dtype="bfloat16")
    assert (few.last, few.full, few.bytes) == (LAST, False, 2 * 3 * SIZE * 2)


def test_checkpoints_have_memory_of_their_own(tmp_path):
    """Slices of a file lie at any address, and kernels of some processors round by alignment."""
    store = _filled(tmp_path)
    assert [store.weights(expert, 1).data_ptr() % 64 for expert in range(2)] == [0, 0]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("moments", [(0, 1, 2, 3, 4), (0, 2, 4)])
def test_round_trip(tmp_path, dtype, moments):
    layout = dataclasses.replace(LAYOUT, dtype=dtype, moments=moments)
    written = _filled(tmp_path / "store", layout)
    store = ExpertStore.open(tmp_path / "store")
    assert store.layout == layout
    assert store.records == written.records
    assert _known(store) == {0: _record(0), 1: _record(1)}
    assert all(len(record.digests) == len(moments) for record in store.records.values())
    assert all(type(record.lengths[0]) is tuple for record in store.records.values())
    stored = torch.float32 if dtype == "float32" else torch.bfloat16
    for expert in range(2):
        for position, moment in enumerate(moments):
            theta = store.weights(expert, position)
            assert theta.dtype == torch.float32
            assert torch.equal(theta, _weights(expert, moment).to(stored).float())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_stored_weights_are_copies(tmp_path, dtype):
    """Neither the live weights after writing nor the read ones afterwards are tied to the store."""
    store = ExpertStore.create(tmp_path / "store", dataclasses.replace(LAYOUT, dtype=dtype))
    live = _weights(0, 0).requires_grad_()
    expected = live.detach().clone().to(getattr(torch, dtype)).float()
    store.write(0, 3, live)
    with torch.no_grad():
        live.mul_(7)
    assert torch.equal(store.weights(0, 3), expected)
    store.weights(0, 3).zero_()
    assert torch.equal(store.weights(0, 3), expected)
    read = store.weights(0, 3)
    store.write(0, 3, torch.zeros(SIZE))
    assert torch.equal(read, expected)


def test_any_float_vector_can_be_written(tmp_path):
    store = ExpertStore.create(tmp_path / "store", LAYOUT)
    store.write(0, 1, _weights(0, 1).double())
    assert torch.equal(store.weights(0, 1), _weights(0, 1))
    store.write(1, 4, torch.stack((_weights(0, 2), _weights(0, 3)), dim=1)[:, 1])
    assert torch.equal(store.weights(1, 4), _weights(0, 3))
    assert torch.equal(store.weights(0, 1), _weights(0, 1))
    assert (store.weights(0, 0) == 0).all()


def test_creating_reserves_the_full_size(tmp_path, monkeypatch):
    store = ExpertStore.create(tmp_path / "deep" / "store", LAYOUT)
    assert (store.folder / "weights.bin").stat().st_size == LAYOUT.bytes
    assert not store.complete
    assert ExpertStore.open(store.folder).records == {}
    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    ExpertStore.create(tmp_path / "elsewhere", LAYOUT)
    assert (tmp_path / "elsewhere" / "weights.bin").stat().st_size == LAYOUT.bytes


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="this system reserves nothing")
def test_a_full_disk_is_found_when_creating(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(OSError, match=r"No space left on device.*weights\.bin") as caught:
        ExpertStore.create(tmp_path / "store", LAYOUT)
    assert caught.value.errno == errno.ENOSPC
    with pytest.raises(InputError, match="holds no experts"):
        ExpertStore.open(tmp_path / "store")


@pytest.mark.parametrize("size", [0, 100, LAYOUT.bytes - 1, LAYOUT.bytes + 4, None])
def test_weights_that_were_cut_short_are_refused(tmp_path, size):
    store = _filled(tmp_path / "store")
    if size is None:
        (store.folder / "weights.bin").unlink()
    else:
        os.truncate(store.folder / "weights.bin", size)
    with pytest.raises(InputError, match=rf"weights\.bin has {size or 0} bytes, expected {LAYOUT.bytes}: .*restore it") as caught:
        ExpertStore.open(store.folder)
    assert "\n" not in str(caught.value)


def test_a_folder_without_experts_is_refused(tmp_path):
    with pytest.raises(
        InputError, match=r"holds no experts: expected a folder made by 'dim experts' \(it has no experts\.json\)"
    ):
        ExpertStore.open(tmp_path)
    with pytest.raises(InputError, match="holds no experts"):
        ExpertStore.open(tmp_path / "nowhere")


@pytest.mark.parametrize("text", ["", '{"format": 1, "layout": {"exp', "[]", "{}", '"words"', '{"format": "one"}'])
def test_text_that_describes_no_store_is_refused(tmp_path, text):
    store = _filled(tmp_path / "store")
    (store.folder / "experts.json").write_text(text)
    with pytest.raises(InputError, match=r"experts\.json is damaged.*restore it") as caught:
        ExpertStore.open(store.folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        lambda values: values.pop("layout"),
        lambda values: values.pop("records"),
        lambda values: values["layout"].pop("moments"),
        lambda values: values["layout"].update(extra=1),
        lambda values: values["layout"].update(tensors=[["conv.weight"]]),
        lambda values: values["layout"].update(dtype="float16"),
        lambda values: values["records"]["0"].pop("lengths"),
        lambda values: values["records"]["0"].update(accuracies=3),
        lambda values: values["records"].update(first=values["records"]["0"]),
        lambda values: values["records"]["0"]["lengths"].pop(),
        lambda values: values["records"]["0"]["digests"].pop(),
        lambda values: values["layout"].update(moments=[]),
        lambda values: values["layout"].update(moments=[1, 2, 3, 4]),
        lambda values: values["layout"].update(every=0),
        lambda values: values["layout"].update(experts="2"),
        lambda values: values.update(records=[]),
    ],
)
def test_a_damaged_description_is_refused(tmp_path, change):
    store = _filled(tmp_path / "store", dataclasses.replace(LAYOUT, dtype="bfloat16"))
    _edit(store.folder, change)
    with pytest.raises(InputError, match=r"experts\.json is damaged \(.*restore it or make it again") as caught:
        ExpertStore.open(store.folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_flipped_bit_of_the_weights_is_noticed(tmp_path, dtype):
    store = _filled(tmp_path / "store", dataclasses.replace(LAYOUT, dtype=dtype, moments=(0, 4)))
    path = store.folder / "weights.bin"
    whole = path.read_bytes()
    for byte in range(len(whole)):
        flipped = bytearray(whole)
        flipped[byte] ^= 1 << byte % 8
        path.write_bytes(flipped)
        expert, position = divmod(byte * 4 // len(whole), 2)
        with pytest.raises(InputError, match=rf"expert {expert} at moment {position * 4} is damaged; restore it") as caught:
            ExpertStore.open(store.folder).weights(expert, position)
        assert "\n" not in str(caught.value)
    path.write_bytes(whole)
    assert torch.equal(ExpertStore.open(store.folder).weights(1, 1), store.weights(1, 1))


def test_weights_that_are_not_finite_are_refused_also_where_no_digest_is_known(tmp_path):
    """As in stores of earlier versions, and in those of somebody else."""
    store = _filled(tmp_path / "store", finish=0)
    store.write(0, 1, torch.full((SIZE,), float("nan")))
    store.finish(0, _record(0))
    for change in (lambda values: None, lambda values: values["records"]["0"].pop("digests")):
        _edit(store.folder, change)
        with pytest.raises(InputError, match="expert 0 at moment 1 holds values that are not finite"):
            ExpertStore.open(store.folder).weights(0, 1)
        assert ExpertStore.open(store.folder).weights(0, 2).isfinite().all()


def test_a_newer_format_is_refused(tmp_path):
    store = _filled(tmp_path / "store")
    values = json.loads((store.folder / "experts.json").read_text())
    (store.folder / "experts.json").write_text(json.dumps({**values, "format": 3}))
    with pytest.raises(InputError, match="has format 3: this version reads up to 2; upgrade dim-distill"):
        ExpertStore.open(store.folder)


def test_finished_experts_persist_one_by_one(tmp_path):
    store = _filled(tmp_path / "store", finish=0)
    for count in (0, 1, 2):
        if count:
            store.finish(count - 1, _record(count - 1))
        again = ExpertStore.open(store.folder)
        assert _known(again) == {expert: _record(expert) for expert in range(count)}
        assert again.complete == store.complete == (count == 2)
        if count < 2:
            with pytest.raises(InputError, match=rf"has {count} of 2 experts: finish it with 'dim experts .*--resume'"):
                again.require_complete()
        else:
            again.require_complete()
        assert torch.equal(again.weights(1, 4), _weights(1, 4))
    assert not [file for file in store.folder.iterdir() if file.name.endswith(".tmp")]


def test_a_store_that_was_opened_can_be_continued(tmp_path):
    _filled(tmp_path / "store", finish=1)
    again = ExpertStore.open(tmp_path / "store")
    again.write(1, 2, torch.ones(SIZE))
    again.finish(1, _record(1))
    last = ExpertStore.open(tmp_path / "store")
    assert torch.equal(last.weights(1, 2), torch.ones(SIZE))
    assert torch.equal(last.weights(0, 2), _weights(0, 2))
    assert last.complete


def test_bytes_and_summary(tmp_path):
    store = _filled(tmp_path / "store")
    assert store.bytes() == LAYOUT.bytes == 440
    assert store.summary() == {
        "experts": 2,
        "moments": [0, 1, 2, 3, 4],
        "epochs": 2.0,
        "parameters": SIZE,
        "bytes": 440,
        "accuracy": [0.5, 10.5, 20.5, 30.5, 40.5],
        "test_accuracy": 61.0,
    }
    few = to_waypoints(store, tmp_path / "few", 3, dtype="bfloat16")
    assert few.bytes() == 2 * 3 * SIZE * 2 + 4 * 2 * LAST * 3
    assert few.summary() == {**store.summary(), "moments": [0, 2, 4], "bytes": few.bytes()}


def test_the_summary_of_an_unfinished_store(tmp_path):
    summary = ExpertStore.create(tmp_path / "store", LAYOUT).summary()
    assert (summary["experts"], summary["accuracy"], summary["test_accuracy"]) == (0, [], None)


def test_waypoint_moments_as_published():
    assert waypoint_moments(50, 4) == (0, 17, 34, 50)


@pytest.mark.parametrize("last", [1, 2, 3, 5, 6, 10, 50])
def test_there_are_as_many_waypoints_as_asked_for(last):
    for count in range(2, last + 2):
        moments = waypoint_moments(last, count)
        assert (moments[0], moments[-1]) == (0, last)
        assert list(moments) == sorted(set(moments))
        assert len(moments) == count, f"{count} of {last}"


@pytest.mark.parametrize(("last", "count"), [(50, 1), (50, 0), (50, 52), (1, 3)])
def test_impossible_numbers_of_waypoints_are_refused(last, count):
    with pytest.raises(InputError, match=f"waypoints is {count}: expected 2 to {last + 1}"):
        waypoint_moments(last, count)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("smooth", [False, True])
def test_to_waypoints(tmp_path, dtype, smooth):
    store = _filled(tmp_path / "store")
    made = to_waypoints(store, tmp_path / "few", 3, smooth=smooth, dtype=dtype)
    assert made.folder == tmp_path / "few"
    assert made.layout == dataclasses.replace(LAYOUT, moments=(0, 2, 4), dtype=dtype)
    assert _known(made) == _known(store)
    made.require_complete()
    for expert in range(2):
        whole = [_weights(expert, moment) for moment in range(LAST + 1)]
        expected = [whole[0], (whole[1] + whole[3]) / 2, (whole[3] + whole[4]) / 2] if smooth else whole[::2]
        for position, theta in enumerate(expected):
            torch.testing.assert_close(made.weights(expert, position), theta.to(getattr(torch, dtype)).float())
    before, after = (read_document(folder / "run.json") for folder in (store.folder, made.folder))
    changed = {"waypoints": 3, "smooth": smooth, "storage": dtype}
    assert after["config"]["experts"] == {**before["config"]["experts"], **changed}
    assert {key: value for key, value in after.items() if key != "config"} == {
        key: value for key, value in before.items() if key != "config"
    }
    assert before["config"] == json.loads(json.dumps(to_dict(RecordConfig())))
    assert ExpertStore.open(store.folder).layout == LAYOUT


def test_stores_that_cannot_be_converted_are_refused(tmp_path):
    store = _filled(tmp_path / "store")
    few = to_waypoints(store, tmp_path / "few", 3)
    with pytest.raises(InputError, match="few holds waypoints already: expected a store with every checkpoint"):
        to_waypoints(few, tmp_path / "fewer", 2)
    with pytest.raises(InputError, match="has 1 of 2 experts"):
        to_waypoints(_filled(tmp_path / "part", finish=1), tmp_path / "fewer", 2)
    with pytest.raises(InputError, match="waypoints is 6: expected 2 to 5"):
        to_waypoints(store, tmp_path / "fewer", 6)
    with pytest.raises(InputError, match="few is not empty"):
        to_waypoints(store, tmp_path / "few", 3)
    (store.folder / "run.json").unlink()
    with pytest.raises(InputError, match=r"it has no run\.json"):
        to_waypoints(store, tmp_path / "fewer", 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["few", "part", "store"]
