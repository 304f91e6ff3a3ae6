"""Sets that other projects published: what their files hold, and natural images of what a student sees."""

import numpy as np
import pytest
import torch

from dim.config import DataConfig, ProtocolConfig
from dim.data.normalise import Normalisation, known_to, published
from dim.data.published import import_set, read_published
from dim.data.real import load_data
from dim.data.synthetic import load_set
from dim.data.torch_files import write_torch
from dim.data.whiten import Whitening
from dim.errors import InputError
from dim.score.evaluate import Evaluator

ALL = DataConfig(val_fraction=0.0)
TEN = torch.arange(10)
BY = Normalisation((0.3,), (0.25,))


@pytest.fixture(scope="module")
def data():
    return load_data(ALL)


@pytest.fixture(scope="module")
def images(data):
    """Two real images of each class, class by class, in [-1, 1]."""
    chosen = [(data.train.labels == label).nonzero()[:2, 0] for label in range(10)]
    return data.train.batch(torch.cat(chosen))[0]


@pytest.fixture
def files(tmp_path, images):
    """As MTT writes them."""
    write_torch(tmp_path / "images_best.pt", BY.apply(images))
    write_torch(tmp_path / "labels_best.pt", TEN.repeat_interleave(2))
    return [tmp_path / "images_best.pt", tmp_path / "labels_best.pt"]


def refused(files, **settings) -> str:
    with pytest.raises(InputError) as caught:
        import_set(files, ALL, **{"normalised_by": BY, **settings})
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- what files hold ---------------------------------------------------------------------------------------------------------


def test_files_are_told_apart_by_what_is_in_them(files, tmp_path):
    write_torch(tmp_path / "any name.pt", torch.tensor(0.025))
    found = read_published([tmp_path / "any name.pt", *reversed(files)])
    assert found.images.shape == (20, 1, 8, 8)
    assert found.labels.tolist() == TEN.repeat_interleave(2).tolist()
    assert found.step_size == pytest.approx(0.025)
    write_torch(tmp_path / "plain.pt", 0.5)
    assert read_published([*files, tmp_path / "plain.pt"]).step_size == 0.5


def test_one_of_the_experiments_of_dc_is_chosen(tmp_path):
    sets = [[torch.full((10, 1, 8, 8), float(number)), TEN] for number in range(3)]
    torch.save({"data": sets, "accs_all_exps": {"ConvNet": [np.float64(0.5)]}}, tmp_path / "res_DC_x_ConvNet_1ipc.pt")
    path = tmp_path / "res_DC_x_ConvNet_1ipc.pt"
    assert float(read_published([path], 1).images.mean()) == 1
    assert "--experiment, from 0 to 2" in refused([path])
    assert "expected 0 to 2" in refused([path], experiment=3)
    torch.save({"data": sets[:1]}, path)
    assert float(read_published([path]).images.mean()) == 0
    torch.save({"data": []}, path)
    assert "has no sets" in refused([path])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"images": torch.zeros(2)}, "holds a dict"),
        (torch.zeros(2, 3, 4), r"a tensor (2, 3, 4) of torch.float32"),
        (torch.zeros(10, 1, 8, 8, dtype=torch.int64), "of torch.int64"),
        (torch.zeros(10, 10, dtype=torch.int64), "of torch.int64"),
        (torch.zeros(1).expand(10**9, 1, 8, 8), "without its values"),
        ("text", "holds a str"),
    ],
)
def test_other_content_is_refused(files, tmp_path, content, said):
    write_torch(tmp_path / "x.pt", content)
    assert said in refused([tmp_path / "x.pt", files[1]])


def test_files_that_are_missing_or_there_twice_are_refused(files):
    assert "hold no labels" in refused(files[:1])
    assert "hold no images" in refused(files[1:])
    assert "holds labels, and there are some already" in refused([*files, files[1]])
    assert "no file holds several sets" in refused(files, experiment=0)
    assert "no file" in refused([files[0], "absent.pt"])


# --- images ------------------------------------------------------------------------------------------------------------------


def test_normalised_images_come_back(files, images, data):
    made = import_set(files, ALL, normalised_by=BY)
    torch.testing.assert_close(made.images, images, atol=1e-6, rtol=0)
    assert made.labels.tolist() == TEN.repeat_interleave(2).tolist()
    assert made.spec == data.spec
    assert made.ipc == 2
    imported = made.info["imported"]
    assert (imported["outside"], imported["values"], imported["clipped"]) == (0, 20 * 64, False)
    assert imported["normalised_by"] == {"mean": (0.3,), "std": (0.25,)}
    assert "step_size" not in made.info


def test_whitened_images_come_back_and_are_seen_whitened_again(files, images, data):
    """Whitened as kornia does it for MTT: X W with W = U (S + 0.1)^(-1/2) U^T, here in float64 over the whole training part."""
    real = (data.train.batch(torch.arange(len(data.train)))[0].flatten(1).double() + 1) / 2
    values, vectors = torch.linalg.eigh(torch.cov(real.T))
    matrix = vectors @ torch.diag((values + 0.1).rsqrt()) @ vectors.T
    seen = (((images.flatten(1).double() + 1) / 2 - real.mean(0)) @ matrix).float().view_as(images)
    write_torch(files[0], seen)
    made = import_set(files, ALL, normalised_by="zca")
    torch.testing.assert_close(made.images, images, atol=1e-4, rtol=0)
    assert made.info["protocol"]["zca"] is True
    torch.testing.assert_close(Whitening.fit(data.train, data.spec).whiten(made.images), seen, atol=1e-4, rtol=0)


def test_images_in_zero_to_one_and_of_eight_bits_are_taken_as_they_are(files, images):
    write_torch(files[0], (images + 1) / 2)
    torch.testing.assert_close(import_set(files, ALL, normalised_by="none").images, images, atol=1e-6, rtol=0)
    pixels = torch.randint(0, 256, (20, 1, 8, 8), dtype=torch.uint8)
    write_torch(files[0], pixels)
    assert torch.equal(import_set(files, ALL, normalised_by="none").images, pixels)
    assert "use --normalised-by none" in refused(files)
    write_torch(files[0], pixels.float())
    assert "expected [0, 1]" in refused(files, normalised_by="none")


def test_values_outside_are_clipped_and_counted(files, images):
    seen = BY.apply(images)
    seen[0, 0, 0, :3] = torch.tensor([5.0, -5.0, float(BY.apply(torch.ones(1, 1, 1, 1) + 1e-5))])
    write_torch(files[0], seen)
    clipped, kept = (import_set(files, ALL, normalised_by=BY, clip=clip) for clip in (True, False))
    assert clipped.info["imported"]["outside"] == kept.info["imported"]["outside"] == 2
    assert clipped.images[0, 0, 0, :2].tolist() == [1, -1]
    assert float(kept.images[0, 0, 0, 0]) == pytest.approx((5 * 0.25 + 0.3) * 2 - 1)
    assert torch.equal(clipped.images, kept.images.clamp(-1, 1))


def test_images_that_do_not_fit_are_refused(files, images):
    assert "expected 1 of each" in refused(files, normalised_by=Normalisation((0.3,) * 3, (0.2,) * 3))
    assert "std above 0" in refused(files, normalised_by=Normalisation((0.3,), (0.0,)))
    assert "mtt has no constants for 'digits'" in refused(files, normalised_by="mtt")
    write_torch(files[0], torch.zeros(20, 3, 32, 32))
    assert "expected (N, 1, 8, 8)" in refused(files)
    write_torch(files[0], torch.full((20, 1, 8, 8), torch.nan))
    assert "not finite" in refused(files)


@pytest.mark.parametrize("code", ["dc", "mtt"])
def test_normalising_and_back_is_the_identity(code):
    images = torch.rand(2, 3, 4, 4, dtype=torch.float64) * 2 - 1
    for dataset in known_to(code):
        by = published(code, dataset)
        own = images[:, : len(by.mean)]
        torch.testing.assert_close(by.invert(by.apply(own)), own)
        flat = by.apply(own)[:, 0] * by.std[0] + by.mean[0]
        torch.testing.assert_close(flat, (own[:, 0] + 1) / 2)
    assert published(code, "digits") is None


def test_mtt_normalises_cifar100_by_the_constants_of_cifar10():
    assert published("mtt", "cifar100") == published("mtt", "cifar10") == published("dc", "cifar10")
    assert published("dc", "cifar100") != published("mtt", "cifar100")


# --- labels and the step size ------------------------------------------------------------------------------------------------


def test_soft_labels_are_logits_or_probabilities_as_is_said(files):
    logits = torch.randn(20, 10) + 5 * torch.eye(10).repeat_interleave(2, 0)
    write_torch(files[1], logits.requires_grad_())
    assert "say with --soft-labels" in refused(files)
    made = import_set(files, ALL, normalised_by=BY, soft_labels="logits")
    torch.testing.assert_close(made.soft, logits.detach().softmax(1))
    assert made.labels.tolist() == TEN.repeat_interleave(2).tolist()
    assert "no probabilities" in refused(files, soft_labels="probabilities")
    write_torch(files[1], made.soft)
    assert torch.equal(import_set(files, ALL, normalised_by=BY, soft_labels="probabilities").soft, made.soft)


def test_soft_labels_that_are_not_class_by_class_are_refused(files, images):
    write_torch(files[1], 9 * torch.eye(10).repeat(2, 1))
    assert "2 of 20 soft labels have their class in front" in refused(files, soft_labels="logits")
    write_torch(files[0], BY.apply(images[:19]))
    write_torch(files[1], torch.eye(10).repeat_interleave(2, 0)[:19])
    assert "expected as many of each class" in refused(files, soft_labels="logits")


def test_labels_that_do_not_fit_are_refused(files):
    write_torch(files[1], TEN)
    assert "expected (20,), or (20, 10)" in refused(files)
    write_torch(files[1], torch.arange(20))
    assert "labels do not fit" in refused(files)
    write_torch(files[1], torch.full((20,), 0.5))
    assert "no whole numbers" in refused(files)
    write_torch(files[1], TEN.repeat_interleave(2).float())
    assert import_set(files, ALL, normalised_by=BY).labels.tolist() == TEN.repeat_interleave(2).tolist()
    assert "leave --soft-labels out" in refused(files, soft_labels="logits")


def test_the_step_size_comes_from_a_file_or_is_given(files, tmp_path):
    assert import_set(files, ALL, normalised_by=BY, step_size=0.5).info["step_size"] == 0.5
    write_torch(tmp_path / "lr_best.pt", torch.tensor([0.02]))
    assert import_set([*files, tmp_path / "lr_best.pt"], ALL, normalised_by=BY).info["step_size"] == pytest.approx(0.02)
    assert "leave one out" in refused([*files, tmp_path / "lr_best.pt"], step_size=0.5)
    write_torch(tmp_path / "lr_best.pt", torch.tensor(-1.0))
    assert "expected a positive number" in refused([*files, tmp_path / "lr_best.pt"])


# --- as a set of ours --------------------------------------------------------------------------------------------------------


def test_an_imported_set_is_stored_and_scored_by_the_protocol_it_carries(files, data, tmp_path):
    protocol = ProtocolConfig(students=("convnet:width=4,depth=2",), epochs=2, batch_size=7)
    import_set(files, ALL, normalised_by=BY, step_size=0.02, protocol=protocol).save(tmp_path / "set", "safetensors")
    read = load_set(tmp_path / "set")
    assert read.info["protocol"]["batch_size"] == 7
    (score,) = Evaluator(data, protocol, seeds=1).fixed(read)
    assert (score.track, score.ipc, score.labels, score.made["method"]) == ("fixed", 2, "hard", "imported")
    assert score.made["step_size"] == 0.02
