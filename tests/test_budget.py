"""What a file of so many bytes holds: how many images fit, what is left out unscored, and how the best is chosen."""

import dataclasses

import pytest
import torch

from dim import budget
from dim.budget import Candidate, Judge
from dim.coding import container
from dim.coding.pictures import Codec
from dim.config import DataConfig, ProtocolConfig
from dim.data.real import RealData, load_data
from dim.data.synthetic import SyntheticSet, load_set
from dim.errors import InputError
from dim.spec import to_uint8

PROTOCOL = ProtocolConfig(students=("convnet:width=4,depth=2",), epochs=4, batch_size=20, augment="")


@pytest.mark.parametrize(("text", "size"), [("3k", 3000), ("30000", 30000), ("0.5M", 500_000), ("1M", 10**6), ("1000M", 10**9)])
def test_bytes_have_units_of_a_thousand(text, size):
    assert budget.parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "k", "1K", "3 k", "-3k", "1e3", "nan", "199", "1001M", "1..2k", "３k", "3kB", "inf"])
def test_other_sizes_are_refused(text):
    with pytest.raises(InputError, match="expected a size from 200 to 1000M"):
        budget.parse_bytes(text)


@pytest.fixture(scope="module")
def real(digits) -> SyntheticSet:
    """Real digits as a set, 60 of each class."""
    rows = [(digits.train.labels == label).nonzero()[:60, 0] for label in range(10)]
    images, labels = digits.train.batch(torch.stack(rows, dim=1).flatten())
    return SyntheticSet(to_uint8(images), labels, digits.spec, info={"method": "real data"})


def protocol_for(images: int) -> ProtocolConfig:
    return dataclasses.replace(PROTOCOL, epochs=images)


def found_of(real, size: int, **given) -> list[Candidate]:
    return budget.image_candidates(lambda ipc: budget.first(real, ipc), size, protocol=protocol_for, **{"most": 60, **given})


def test_as_many_images_are_stored_as_fit(real, tmp_path):
    size = 2500
    filled = [candidate for candidate in found_of(real, size) if candidate.content]
    assert len({candidate.ipc for candidate in filled}) > 1
    for candidate in filled:
        assert len(candidate.content) == candidate.bytes <= size
        container.write(tmp_path / "s.dimz", candidate.content)
        subject = load_set(tmp_path / "s.dimz")
        assert subject.ipc == candidate.ipc
        assert subject.info["protocol"]["epochs"] == 10 * candidate.ipc
        pixels = (subject.images.float() - budget.first(real, candidate.ipc).images.float()).square().mean().sqrt()
        assert float(pixels) == pytest.approx(candidate.error, rel=0.4)  # which the first images foretell
        if candidate.ipc < 60 and candidate.bytes < 0.97 * size:
            codec = next(one for one in budget.CODECS if f"images, {one}, " in candidate.what)
            more = budget.first(real, candidate.ipc + 1)
            assert len(budget.code_set(more.content(), more.spec, {**more.info, "protocol": {}}, codec)) > size - 60


def test_what_another_codec_does_better_is_not_scored(real):
    for size in (1500, 100_000):
        candidates = found_of(real, size)
        for left_out in (one for one in candidates if one.note.startswith("not scored")):
            better = next(one for one in candidates if f"not scored: {one.what} stores" in left_out.note)
            assert better.error < left_out.error
            assert better.ipc >= left_out.ipc
    best = [one for one in candidates if one.content]
    assert [(one.ipc, one.error) for one in best] == [(60, 0.0)], "where all fit, one codec is left: the one that loses nothing"


def test_where_not_one_image_fits_it_is_said(real):
    candidates = found_of(real, 200)
    assert {one.content for one in candidates} == {b""}
    assert any(one.note.startswith("does not fit") for one in candidates)
    with pytest.raises(InputError, match=r"bytes is 200 and nothing fits: the smallest candidate takes \d+"):
        budget.choose(candidates, None, 200)


def test_soft_labels_take_bytes(real):
    soft = torch.rand(600, 10, generator=torch.Generator().manual_seed(0)).softmax(1)
    labelled = SyntheticSet(real.images, real.labels, real.spec, soft=soft, info=real.info)
    hard, heavy = (
        max(one.ipc or 0 for one in found_of(subject, 2000) if one.what.startswith("images, 8 bits"))
        for subject in (real, labelled)
    )
    assert heavy < hard


def test_the_first_images_of_a_set_in_turns(real):
    shuffled = torch.randperm(600, generator=torch.Generator().manual_seed(0))
    mixed = SyntheticSet(real.images[shuffled], real.labels[shuffled], real.spec)
    part = budget.first(mixed, 2)
    assert part.labels.tolist() == list(range(10)) * 2
    for label in range(10):
        assert torch.equal(part.images[label::10], mixed.images[mixed.labels == label][:2])
    with pytest.raises(InputError, match="61 images per class were asked for, and a class of the set has 60"):
        budget.first(mixed, 61)


def test_sets_are_drawn_once(real):
    asked = []
    draw = budget.nested(lambda ipc: asked.append(ipc) or budget.first(real, ipc))
    sizes = [len(draw(ipc)) for ipc in (3, 2, 3, 5, 4)]
    assert (sizes, asked) == ([30, 20, 30, 50, 40], [3, 5])


# --- scores ------------------------------------------------------------------------------------------------------------------


def test_candidates_get_about_the_same_steps(digits):
    judge = Judge(digits, PROTOCOL, budget_ipc=10)
    assert judge.steps == 20  # 4 epochs of 5 batches
    for images, epochs in ((10, 20), (20, 20), (100, 4), (1000, 1)):
        assert judge.protocol_for(images).epochs == epochs


def test_the_validation_part_chooses_and_the_test_part_is_not_read(digits, real):
    hidden = RealData(digits.spec, digits.train, digits.val, None)
    candidates = found_of(real, 30_000)
    noise = SyntheticSet(torch.randint(0, 256, (100, 1, 8, 8), dtype=torch.uint8), torch.arange(100) % 10, real.spec)
    content = budget.code_set(noise.content(), noise.spec, {}, Codec("values", 8))
    candidates.append(Candidate("noise", "set", len(content), content=content))
    judge = Judge(hidden, dataclasses.replace(PROTOCOL, epochs=60))
    chosen = budget.choose(candidates, judge, 30_000)
    assert chosen.what.startswith("images")
    assert chosen.accuracy > candidates[-1].accuracy + 20
    lines = budget.table(candidates, chosen)
    assert lines[1].startswith(f"* {chosen.what}")
    assert [line for line in lines if line.startswith("* ")] == lines[1:2]
    assert all(one.accuracy is None for one in candidates if not one.content)
    assert set(candidates[0].to_dict()) == {"what", "kind", "bytes", "ipc", "error", "accuracy", "note"}


def test_of_equals_the_smaller_is_taken_and_diverged_ones_are_not():
    class Fixed:
        accuracy = staticmethod(lambda candidate: {"a": 50.0, "b": 50.0, "c": None}[candidate.what])

    three = [Candidate(what, "set", size, content=b"x") for what, size in (("c", 1), ("a", 9), ("b", 5))]
    assert budget.choose(three, Fixed(), 10).what == "b"
    with pytest.raises(InputError, match="diverged"):
        budget.choose(three[:1], Fixed(), 10)


def test_without_a_validation_part_training_images_choose(real):
    data = load_data(DataConfig(val_fraction=0.0))
    judge = Judge(RealData(data.spec, data.train, data.val, None), dataclasses.replace(PROTOCOL, epochs=60))
    assert 0.08 * len(data.train) < len(judge.data.val) < 0.12 * len(data.train)
    candidates = [candidate for candidate in found_of(real, 30_000) if candidate.content]
    assert judge.accuracy(candidates[0]) > 30


def test_no_more_images_are_tried_than_a_coded_file_holds(real, monkeypatch):
    monkeypatch.setattr(budget.pictures, "most_images", lambda spec: 20)
    assert {candidate.ipc for candidate in found_of(real, 30_000) if candidate.content} == {2}
    monkeypatch.setattr(budget.pictures, "most_images", lambda spec: 9)
    assert found_of(real, 30_000) == [], "not even one of each class"
