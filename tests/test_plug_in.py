"""The examples of docs/plug-in.md: sets and streams in the training loops of other libraries."""

import re
import shutil
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accelerate.state import AcceleratorState, GradientState
from launching import launch, results
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from plugging import EXAMPLES, example, mean_generator, parts, run_as_program
from torch import Tensor, nn
from torchvision.transforms import v2

import dim
from dim.data.real import per_class_indices
from dim.nets.student import Student, build_student
from dim.spec import to_uint8

PAGE = EXAMPLES.parent / "plug-in.md"
QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


def losses(text: str) -> list[float]:
    return [float(loss) for loss in re.findall(r"loss (\d+\.\d+)", text)]


@pytest.fixture(scope="module")
def run(digits, tmp_path_factory) -> str:
    """See `mean_generator`."""
    return mean_generator(digits, tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def real_set(digits) -> dim.SyntheticSet:
    """A set of 40 real digits of every class, in the order of a set that was drawn: classes take turns."""
    chosen = per_class_indices(digits.train.labels, 40, 10, seed=0).view(10, 40).T.flatten()
    images, labels = digits.train.batch(chosen)
    return dim.SyntheticSet(to_uint8(images), labels, digits.spec)


@pytest.fixture(scope="module")
def folder(real_set, tmp_path_factory) -> str:
    return str(real_set.save(tmp_path_factory.mktemp("set") / "set"))


@pytest.fixture
def _accelerate_forgets() -> Iterator[None]:
    """It keeps what it found of devices and processes for the whole process."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def accuracy(model: nn.Module, digits, prepare=lambda images: images) -> float:
    """On the real test part, of which a tenth would be right by chance."""
    images, labels = digits.test.batch(torch.arange(len(digits.test)))
    with torch.no_grad():
        outputs = model.eval()(prepare(images))
    return float((getattr(outputs, "logits", outputs).argmax(1) == labels).float().mean())


def distinct(images: Tensor) -> set[bytes]:
    return {bytes(image.contiguous().numpy()) for image in images}


# --- stored sets ---------------------------------------------------------------------------------------------------------------


def test_a_plain_loop_learns_from_a_set(folder, digits):
    assert accuracy(run_as_program("with_set", folder, 10), digits) > 0.5


@pytest.mark.filterwarnings("ignore:unclosed file <_io.BufferedReader name=.*png:ResourceWarning")  # timm leaves them open
def test_timm_reads_a_set_with_its_classes_and_learns_from_it(folder, real_set, digits, capsys):
    from timm.data import create_dataset

    data = create_dataset("", folder, split="", is_training=True, input_img_mode="L")
    assert len(data) == len(real_set)
    known = {bytes(image.numpy()): int(label) for image, label in zip(real_set.images, real_set.labels, strict=True)}
    for picture, label in data:
        assert known[picture.tobytes()] == label
    model = run_as_program("with_timm", folder, "test_resnet", 6)
    assert len(losses(capsys.readouterr().out)) == 6
    mean, std = (torch.tensor(values)[:, None, None] for values in (digits.spec.mean, digits.spec.std))
    assert accuracy(model, digits, lambda images: (images / 2 + 0.5 - mean) / std) > 0.2


# It pins memory, which needs a GPU, without asking whether there is one.
@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true:UserWarning")
@pytest.mark.parametrize("storage", ["imagefolder", "parquet"])
@pytest.mark.usefixtures("_accelerate_forgets")
def test_the_trainer_of_transformers_learns_from_a_set(storage, real_set, digits, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    real_set.save(tmp_path / "set", storage)
    rows = example("with_trainer")["read"](str(tmp_path / "set"))
    known = {bytes(image.numpy()): int(label) for image, label in zip(real_set.images, real_set.labels, strict=True)}
    assert [known[row["image"].tobytes()] for row in rows] == rows["label"]
    trainer = run_as_program("with_trainer", tmp_path / "set", tmp_path / "out", 8)
    means = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert means[-1] < 0.9 * means[0]
    assert accuracy(trainer.model, digits, lambda images: images.expand(-1, 3, -1, -1)) > 0.2
    for number, name in trainer.model.config.id2label.items():
        assert digits.spec.class_names[number] == name.partition("_")[2 if storage == "imagefolder" else 0]


# --- Lightning -----------------------------------------------------------------------------------------------------------------

# It uses what this release of PyTorch has replaced; it advises workers, which these few images do not need.
LIGHTNING = [
    pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated"),
    pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]


def lightning(test):
    for mark in LIGHTNING:
        test = mark(test)
    return test


class Seen(Callback):
    """Keeps the batches that a model is trained on: by epoch, images and labels."""

    def __init__(self) -> None:
        self.batches: dict[int, list[tuple[Tensor, Tensor]]] = {}

    def on_train_batch_start(self, trainer, module, batch, number) -> None:
        self.batches.setdefault(trainer.current_epoch, []).append(tuple(part.clone() for part in batch))

    def epoch(self, number: int) -> Tensor:
        return torch.cat([images for images, _ in self.batches[number]])


@lightning
@pytest.mark.parametrize("workers", [0, 1])
def test_lightning_gets_new_images_in_every_epoch(run, workers, digits, monkeypatch):
    seen = Seen()
    monkeypatch.setattr("lightning.Trainer", lambda **settings: Trainer(**settings, **QUIET, callbacks=[seen]))
    model = run_as_program("with_lightning", run, workers)
    assert sorted(seen.batches) == [0, 1, 2]
    assert {len(batches) for batches in seen.batches.values()} == {20}
    assert len(set.union(*(distinct(seen.epoch(number)) for number in range(3)))) == 3000
    for batches in seen.batches.values():
        assert torch.bincount(torch.cat([labels for _, labels in batches])).tolist() == [100] * 10
    assert accuracy(model.net, digits) > 0.4


@lightning
@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")  # as it is after any restart
@pytest.mark.parametrize("workers", [0, 1])
def test_lightning_goes_on_after_a_restart(run, workers, tmp_path):
    """After an epoch; with a GeneratedLoader, whose state Lightning keeps, after any step."""
    module, generator = example("with_lightning"), dim.load_generator(run)

    def fit(checkpoint: Path | None = None) -> list[tuple[Tensor, Tensor]]:
        seen = Seen()
        kept = [ModelCheckpoint(tmp_path, "epoch-{step}", save_top_k=-1)]
        kept += [ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=1)]
        settings = {**QUIET, "enable_checkpointing": True, "callbacks": [seen, *kept]}
        trainer = Trainer(max_epochs=2, reload_dataloaders_every_n_epochs=1, **settings)
        trainer.fit(module["Classifier"](generator.spec), module["Stream"](generator, workers), ckpt_path=checkpoint)
        return [batch for batches in seen.batches.values() for batch in batches]

    straight = fit()
    places = {"epoch-step=20": 20} if workers else {"epoch-step=20": 20, "step=7": 7, "step=20": 20, "step=27": 27}
    for name, given in places.items():
        for own, other in zip(fit(tmp_path / f"{name}.ckpt"), straight[given:], strict=True):
            assert all(map(torch.equal, own, other)), name


# --- accelerate ----------------------------------------------------------------------------------------------------------------


def test_accelerate_gives_each_process_its_own_part(run, digits, tmp_path):
    ended = launch(tmp_path, parts, run)
    (first, weights), (second, others) = results(ended)
    for shares in zip(first, second, strict=True):  # of a GeneratedLoader, and of a DataLoader
        seen = [distinct(images) for epochs in shares for images, _ in epochs]
        assert [len(part) for part in seen] == [1000] * 4
        assert len(set.union(*seen)) == 4000, "no image twice, in any process or epoch"
        for own, other in zip(*shares, strict=True):
            assert torch.bincount(torch.cat((own[1], other[1]))).tolist() == [200] * 10
    assert all(map(torch.equal, weights, others)), "they train one model"
    assert len(losses(ended[0].out)) == 3
    assert losses(ended[1].out) == []
    model = build_student("convnet:width=32", digits.spec, seed=0)
    for parameter, value in zip(model.parameters(), weights, strict=True):
        parameter.data = value
    assert accuracy(model, digits) > 0.4


# --- transforms, real data, restarts --------------------------------------------------------------------------------------------


def spied(monkeypatch, owner: Any, name: str) -> list[tuple]:
    """The arguments of all calls of a function from now on."""
    calls, function = [], getattr(owner, name)

    def call(*arguments, **options):
        calls.append(arguments)
        return function(*arguments, **options)

    monkeypatch.setattr(owner, name, call)
    return calls


@pytest.mark.parametrize("soft", [False, True])
def test_transforms_and_mixing_work_on_both_loaders(run, soft, digits_experts, digits, capsys, monkeypatch):
    teacher = [str(digits_experts)] if soft else []
    relabel = dim.load_teacher(digits_experts, digits.spec).labels if soft else None
    plain = dim.GeneratedLoader(dim.load_generator(run), batch_size=50, steps=20, shuffle=False, relabel=relabel)
    wanted_images, wanted = next(iter(plain))
    crops = spied(monkeypatch, v2.RandomCrop, "make_params")
    for number, loader in enumerate(example("with_transforms")["loaders"](run, *teacher)):
        crops.clear()
        images, targets = next(iter(loader))
        assert len(crops) == 50, "each image is changed in a way of its own"
        assert images.min() >= -1
        assert images.max() <= 1
        if number == 0:  # its batch is that of the unshuffled stream
            assert not torch.equal(images, wanted_images)
            assert torch.equal(targets, wanted)
        assert targets.shape == ((50, 10) if soft else (50,))
    calls = spied(monkeypatch, F, "cross_entropy")
    model = run_as_program("with_transforms", run, *teacher)
    assert len(losses(capsys.readouterr().out)) == 2
    assert len(calls) == 40
    for _, targets in calls:
        assert targets.shape == (50, 10)
        assert torch.allclose(targets.sum(1), torch.ones(50), atol=1e-5)
    untrained = build_student("convnet:width=32", digits.spec, seed=0).eval()
    with torch.no_grad():
        before, after = (float(F.cross_entropy(net(wanted_images), wanted)) for net in (untrained, model))
    assert after < before - 0.02
    assert soft or accuracy(model, digits) > 0.15


@pytest.fixture(scope="module")
def photos(digits, tmp_path_factory) -> Path:
    """Real digits in folders with the names of the classes, in RGB."""
    folder = tmp_path_factory.mktemp("photos")
    chosen = per_class_indices(digits.train.labels, 40, 10, seed=1)
    for number, (image, label) in enumerate(zip(*digits.train.batch(chosen), strict=True)):
        (folder / digits.spec.class_names[label]).mkdir(exist_ok=True)
        picture = Image.fromarray(to_uint8(image)[0].numpy()).convert("RGB")
        picture.save(folder / digits.spec.class_names[label] / f"{number}.png")
    return folder


def test_real_and_generated_images_are_mixed_in_proportion(run, photos, digits, monkeypatch):
    module = example("with_real_data")
    real = module["photos"](str(photos), digits.spec)
    wanted = digits.train.batch(per_class_indices(digits.train.labels, 40, 10, seed=1))
    known = {(bytes(image.numpy()), int(label)) for image, label in zip(to_uint8(wanted[0]), wanted[1], strict=True)}
    assert {(bytes(to_uint8(image).numpy()), label) for image, label in real} == known
    calls = spied(monkeypatch, Student, "forward")
    model = run_as_program("with_real_data", run, photos, 0.4)
    batches = [images for _, images in calls]
    assert len(batches) == 3 * (400 // 20)
    pictures = {image for image, _ in known}
    for images in batches:
        assert [bytes(image.numpy()) in pictures for image in to_uint8(images)] == [True] * 20 + [False] * 30
    assert len(distinct(torch.cat([images[20:] for images in batches]))) == 1800, "generated images are new in every epoch"
    assert accuracy(model, digits) > 0.4


def test_real_images_of_other_classes_are_refused(photos, digits, tmp_path):
    shutil.copytree(photos, tmp_path / "photos")
    (tmp_path / "photos" / "0").rename(tmp_path / "photos" / "nil")
    with pytest.raises(SystemExit, match="expected those of the generator"):
        example("with_real_data")["photos"](str(tmp_path / "photos"), digits.spec)


# A call of its own that this release of PyTorch no longer wants.
@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")
@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("name", ["with_restarts", "with_torchdata"])
def test_a_loop_goes_on_after_a_restart(run, name, shuffle, digits, tmp_path, monkeypatch):
    """Within an epoch, and at the end of one: with the weights of a loop that was never stopped."""
    main = example(name)["main"]
    torch.manual_seed(0)
    straight = main(run, str(tmp_path / "straight.pt"), 2, shuffle).state_dict()
    torch.manual_seed(0)
    save = torch.save
    for saves in (2, 2, 1):  # of five steps each; there are 20 in an epoch
        left = iter(range(saves - 1))

        def stopped(state, file, left=left):
            save(state, file)
            if next(left, None) is None:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(torch, "save", stopped)
            with pytest.raises(KeyboardInterrupt):
                main(run, str(tmp_path / "state.pt"), 2, shuffle)
    resumed = run_as_program(name, run, tmp_path / "state.pt", 2) if shuffle else main(run, str(tmp_path / "state.pt"), 2, False)
    for key, value in resumed.state_dict().items():
        assert torch.equal(value, straight[key]), key


# --- the page ------------------------------------------------------------------------------------------------------------------

SECTIONS = re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.M | re.S)


@pytest.mark.parametrize(("title", "text"), SECTIONS, ids=[title for title, _ in SECTIONS])
def test_lines_of_the_page_stand_in_the_file_that_it_links(title, text):
    files = [PAGE.parent / link for link in re.findall(r"\]\(([\w/.]+\.py)\)", text)]
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    assert files, "an example"
    assert blocks, "the lines that matter"
    lines = [file.read_text().splitlines() for file in files]
    for block in blocks:
        size = len(block.splitlines())
        windows = (textwrap.dedent("\n".join(part[first : first + size])) for part in lines for first in range(len(part)))
        assert block.rstrip("\n") in windows, f"{title}: these lines are in none of {[file.name for file in files]}\n{block}"


def test_the_page_shows_every_example():
    linked = set(re.findall(r"examples/(with_\w+\.py)", PAGE.read_text()))
    assert linked == {file.name for file in EXAMPLES.glob("with_*.py")}
