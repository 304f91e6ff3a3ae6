"""`dim import` and `dim export`: what is asked, what is said, and what is refused."""

import json
import re

import pytest
import torch

from dim.commands.cli import main
from dim.config import DataConfig, GeneratorConfig, ProtocolConfig
from dim.data.synthetic import load_set
from dim.data.torch_files import write_torch
from dim.nets.generator import build_generator
from dim.nets.generator_file import FILE_NAME, save_generator_file

STUDENT = ("--protocol.students", "convnet:width=4,depth=2", "--protocol.epochs", "2", "--protocol.batch-size", "5")


def said(capsys, *arguments, status=0) -> str:
    capsys.readouterr()
    assert main([str(word) for word in arguments]) == status
    output, errors = capsys.readouterr()
    if status:
        assert errors.count("\n") == 1
        assert len(errors) <= 307
    return errors if status else output


# --- import ------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path):
    images = torch.rand(10, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    images[0, 0, 0, 0] = 2.0
    write_torch(tmp_path / "images_best.pt", images)
    write_torch(tmp_path / "labels_best.pt", torch.arange(10))
    return [tmp_path / "images_best.pt", tmp_path / "labels_best.pt"]


def test_import_says_what_lay_outside_and_evaluate_takes_the_set(files, tmp_path, capsys):
    words = ["--dataset", "digits", "--normalised-by", "none", "--out", tmp_path / "set", *STUDENT]
    output = said(capsys, "import", *files, *words)
    assert "1 of 640 values (0.2%) lay outside [-1, 1]: kept, as they were published" in output
    assert f"10 images of 10 classes in {tmp_path / 'set'}" in output
    made = load_set(tmp_path / "set")
    assert made.info["data"]["val_fraction"] == 0
    assert float(made.images.max()) == 3
    assert "fixed" in said(capsys, "evaluate", tmp_path / "set", "--seeds", "1", "--controls", "random")
    assert "[-1, 1]: clipped" in said(capsys, "import", *files, *words, "--clip", "--overwrite")
    assert float(load_set(tmp_path / "set").images.max()) == 1


def test_import_takes_constants_in_place_of_a_name(files, tmp_path, capsys):
    words = ["--dataset", "digits", "--mean", "0.5", "--std", "0.25", "--out", tmp_path / "set"]
    said(capsys, "import", *files, *words)
    assert load_set(tmp_path / "set").info["imported"]["normalised_by"] == {"mean": [0.5], "std": [0.25]}
    assert "or --normalised-by" in said(capsys, "import", *files, *words, "--normalised-by", "none", "--overwrite", status=2)
    assert "a number for each channel" in said(capsys, "import", *files, *words[:4], "--out", tmp_path / "b", status=2)


@pytest.mark.parametrize(
    ("left_out", "expected"),
    [
        ("files", "nothing to import"),
        ("--out", "no place for the set"),
        ("--dataset", "no data: name the data set"),
        ("--normalised-by", "how images were normalised is not in the files"),
    ],
)
def test_import_guesses_nothing(files, tmp_path, capsys, left_out, expected):
    words = {"--dataset": "digits", "--normalised-by": "none", "--out": tmp_path / "set"}
    words.pop(left_out, None)
    given = [] if left_out == "files" else files
    assert expected in said(capsys, "import", *given, *(word for pair in words.items() for word in pair), status=2)
    assert not (tmp_path / "set").exists()


def test_import_refuses_formats_that_cannot_hold_such_images(files, tmp_path, capsys):
    words = [*files, "--dataset", "digits", "--normalised-by", "none", "--out", tmp_path / "set", "--format"]
    assert "8 bits per channel" in said(capsys, "import", *words, "imagefolder", status=2)
    assert "one that holds images" in said(capsys, "import", *words, "latents", status=2)
    said(capsys, "import", *words, "npz")
    assert load_set(tmp_path / "set").images.dtype == torch.float32
    assert str(tmp_path / "set") in said(capsys, "import", *words, "npz", status=2)


# --- export --------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def made(files, tmp_path, capsys):
    """A set of float32 images."""
    said(capsys, "import", *files, "--dataset", "digits", "--normalised-by", "none", "--out", tmp_path / "set", *STUDENT)
    return tmp_path / "set"


def test_export_writes_another_format_of_the_same_set(made, tmp_path, capsys):
    assert f"10 images of 10 classes in {tmp_path / 'npz'}" in said(
        capsys, "export", made, "--to", "npz", "--out", tmp_path / "npz"
    )
    assert torch.equal(load_set(tmp_path / "npz").images, load_set(made).images)
    assert load_set(tmp_path / "npz").info == load_set(made).info
    assert not (tmp_path / "npz" / "README.md").exists()


def test_export_with_a_card_shows_the_scores(made, tmp_path, capsys):
    said(capsys, "evaluate", made, "--seeds", "2", "--controls", "random", "--json", tmp_path / "scores.json")
    words = ["export", made, "--to", "safetensors", "--out", tmp_path / "shared"]
    said(capsys, *words, "--card", "--scores", tmp_path / "scores.json")
    card = (tmp_path / "shared" / "README.md").read_text()
    assert "| this set | fixed | 1 |" in card
    assert "| random real | fixed | 1 |" in card
    assert torch.equal(load_set(tmp_path / "shared").images, load_set(made).images)
    assert "expected --card beside it" in said(capsys, *words, "--scores", tmp_path / "scores.json", "--overwrite", status=2)


def test_export_refuses_in_one_line(made, tmp_path, capsys):
    words = ["export", made, "--out", tmp_path / "out", "--to"]
    assert "8 bits per channel" in said(capsys, *words, "imagefolder", status=2)
    assert "DDRanking does not know the data set 'digits'" in said(capsys, *words, "ddranking", status=2)
    assert "dim sample --format latents" in said(capsys, *words, "latents", status=2)
    assert "Did you mean 'npz'" in said(capsys, *words, "npy", status=2)
    assert "no place for the set" in said(capsys, "export", made, "--to", "npz", status=2)
    assert "no synthetic set" in said(capsys, "export", tmp_path, "--to", "npz", "--out", tmp_path / "out", status=2)
    assert not (tmp_path / "out").exists()


def test_export_whitens_as_ddranking_does(made, tmp_path, capsys, monkeypatch):
    """By the whole training part, whatever was held out when the set was made."""
    from dim.data.formats.ddranking import DDRanking
    from dim.data.real import load_data
    from dim.data.whiten import Whitening

    monkeypatch.setattr(DDRanking, "datasets", {"digits": "Digits"})
    subject = load_set(made)
    subject.info["protocol"]["zca"] = True
    subject.info["data"]["val_fraction"] = 0.1
    subject.save(made, "safetensors", overwrite=True)
    said(capsys, "export", made, "--to", "ddranking", "--out", tmp_path / "out")
    data = load_data(DataConfig(val_fraction=0.0))
    expected = Whitening.fit(data.train, data.spec).whiten(subject.images)
    torch.testing.assert_close(torch.load(tmp_path / "out" / "images.pt", weights_only=True), expected)
    del subject.info["data"]
    subject.save(made, "safetensors", overwrite=True)
    assert "which data it was made from" in said(capsys, "export", made, "--to", "ddranking", "--out", tmp_path / "b", status=2)


# --- export of a generator ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def generators(digits, tmp_path_factory):
    """A run with a generator of one pass, and one whose sampler has options."""
    made = tmp_path_factory.mktemp("generators")
    for config in (GeneratorConfig(name="gan", width=4, latent_dim=6), GeneratorConfig(name="diffusion", width=4)):
        net = build_generator(config, digits.spec, seed=0)
        (made / config.name).mkdir()
        about = {"data": DataConfig(), "protocol": ProtocolConfig(), "about": {}}
        save_generator_file(made / config.name / FILE_NAME, net, config=config, **about)
    return made


@pytest.mark.parametrize(("option", "format"), [("--to", "onnx"), ("--format", "pt2")])
def test_export_writes_a_program_and_says_how_far_it_is_from_the_generator(generators, tmp_path, capsys, option, format):
    place = tmp_path / f"digits.{format}"
    output = said(capsys, "export", generators / "gan", option, format, "--out", place)
    assert f"{place}: latents and labels of 10 classes -> images (N, 1, 8, 8)" in output
    (difference,) = re.findall(r"images differ by up to (\S+) from the generator's \(at most 1e-03 is allowed\)", output)
    assert float(difference) < 1e-4
    assert list(tmp_path.iterdir()) == [place]


def test_export_takes_options_of_the_sampler(generators, tmp_path, capsys):
    place = tmp_path / "flow.pt2"
    said(capsys, "export", generators / "diffusion", "--to", "pt2", "--out", place, "--sampler.guidance", "1.5")
    about = {"about.json": ""}
    torch.export.load(place, extra_files=about)
    assert json.loads(about["about.json"])["generator"]["guidance"] == 1.5


def test_export_of_a_generator_refuses_in_one_line(generators, made, tmp_path, capsys):
    gan, out = generators / "gan", tmp_path / "out.pt2"
    words = ["export", gan, "--to", "pt2", "--out", out]
    assert "is a generator, and 'npz' a format of sets: use --to onnx or pt2" in said(
        capsys, "export", gan, "--to", "npz", "--out", tmp_path / "out", status=2
    )
    assert "is a set, and 'onnx' a format of generators" in said(capsys, "export", made, "--to", "onnx", "--out", out, status=2)
    assert "as in --out generator.onnx" in said(capsys, "export", gan, "--to", "onnx", status=2)
    assert "ends in .onnx" in said(capsys, "export", gan, "--to", "onnx", "--out", out, status=2)
    assert "Did you mean 'onnx'" in said(capsys, "export", gan, "--to", "onx", "--out", out, status=2)
    assert "unknown sampler option steps" in said(capsys, *words, "--sampler.steps", "2", status=2)
    assert "device is 'cpu': expected its default with --to pt2" in said(capsys, *words, "--device", "cpu", status=2)
    assert "card is True: expected its default" in said(capsys, *words, "--card", status=2)
    assert "sampler.steps is 2" in said(
        capsys, "export", made, "--to", "npz", "--out", tmp_path / "out", "--sampler.steps", "2", status=2
    )
    assert "no run and no exported generator" in said(capsys, "export", tmp_path, "--to", "pt2", "--out", out, status=2)
    assert "--to and --format are one option" in said(capsys, *words, "--format", "onnx", status=2)
    (tmp_path / "damaged").mkdir()
    content = bytearray((gan / FILE_NAME).read_bytes())
    content[-10] ^= 1
    (tmp_path / "damaged" / FILE_NAME).write_bytes(content)
    assert "is damaged" in said(capsys, "export", tmp_path / "damaged", "--to", "pt2", "--out", out, status=2)
    assert not out.exists()
