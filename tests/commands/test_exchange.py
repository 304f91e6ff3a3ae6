"""`dim import` and `dim export`: what is asked, what is said, and what is refused."""

import pytest
import torch

from dim.commands.cli import main
from dim.data.synthetic import load_set
from dim.data.torch_files import write_torch

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


def test_import_says_what_it_clipped_and_evaluate_takes_the_set(files, tmp_path, capsys):
    words = ["--dataset", "digits", "--normalised-by", "none", "--out", tmp_path / "set", *STUDENT]
    output = said(capsys, "import", *files, *words)
    assert "1 of 640 values (0.2%) lay outside [-1, 1]: clipped" in output
    assert f"10 images of 10 classes in {tmp_path / 'set'}" in output
    made = load_set(tmp_path / "set")
    assert made.info["data"]["val_fraction"] == 0
    assert float(made.images.max()) == 1
    assert "fixed" in said(capsys, "evaluate", tmp_path / "set", "--seeds", "1", "--controls", "random")
    assert "kept as they are" in said(capsys, "import", *files, *words, "--no-clip", "--overwrite")
    assert float(load_set(tmp_path / "set").images.max()) == 3


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
