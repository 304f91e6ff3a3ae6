"""Generators from runs, folders, files and the Hub; sets to and from the Hub."""

import dataclasses
import fnmatch
import json
import re
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from markdown_it import MarkdownIt

import dim
from dim.config import DataConfig, GeneratorConfig, ProtocolConfig
from dim.data.synthetic import SyntheticSet
from dim.errors import InputError
from dim.hub import model_card
from dim.io import load_tensors, save_tensors
from dim.nets.generator import build_generator
from dim.nets.generator_file import save_generator_file
from dim.spec import DataSpec

SPEC = DataSpec(
    name="toy", channels=3, height=8, width=8, class_names=tuple("abc"), mean=(0.5,) * 3, std=(0.2,) * 3, fingerprint="f"
)
CONFIG = GeneratorConfig(width=4, latent_dim=6)
LABELS = torch.tensor([0, 1, 2, 2, 0])


@pytest.fixture
def original():
    return build_generator(CONFIG, SPEC, seed=3).eval()


@pytest.fixture
def run(original, tmp_path):
    """A folder as a run leaves it."""
    data = DataConfig(dataset="folder", root="/home/somebody/photos", resolution=8, channels=3)
    save_generator_file(
        tmp_path / "run" / "generator.safetensors",
        original,
        config=CONFIG,
        data=data,
        protocol=ProtocolConfig(epochs=7),
        about={"title": "a toy", "step": 5, "total_steps": 9},
    )
    (tmp_path / "run" / "run.json").write_text("{}")
    return tmp_path / "run"


def test_a_run_a_folder_and_a_file_give_the_same_generator(run, original, tmp_path):
    generators = [dim.load_generator(run), dim.load_generator(str(run)), dim.load_generator(run / "generator.safetensors")]
    generators.append(dim.load_generator(dim.save_pretrained(generators[0], tmp_path / "export")))
    for generator in generators:
        assert generator.spec == SPEC
        assert not generator.training
        assert not any(parameter.requires_grad for parameter in generator.parameters())
        own, expected = generator.state_dict(), original.state_dict()
        assert own.keys() == expected.keys()
        assert all(torch.equal(own[name], expected[name]) for name in own)
        assert torch.equal(generator.sample(LABELS, seed=1), generators[0].sample(LABELS, seed=1))


def test_a_generator_says_how_it_was_made(run):
    info = dim.load_generator(run).info
    assert info["about"] == {"title": "a toy", "step": 5, "total_steps": 9}
    assert info["protocol"]["epochs"] == 7
    assert info["data"]["dataset"] == "folder"
    assert "torch" in info["versions"]


def test_where_the_data_lay_is_kept_private(run):
    assert b"somebody" not in (run / "generator.safetensors").read_bytes()


def test_an_export_has_a_card_and_a_picture_and_keeps_what_is_known(run, tmp_path):
    generator = dim.load_generator(run)
    folder = dim.save_pretrained(generator, tmp_path / "export")
    assert sorted(file.name for file in folder.iterdir()) == ["README.md", "generator.safetensors", "samples.png"]
    card = (folder / "README.md").read_text()
    assert card.startswith("---\n")
    for text in ("toy", "3 classes", "8x8x3", "a toy", "5 of 9", f"{sum(p.numel() for p in generator.parameters()):,}"):
        assert text in card
    again = dim.load_generator(folder).info
    assert {**again, "versions": 0} == {**generator.info, "versions": 0}


@pytest.mark.parametrize(
    "name",
    ["<script>x</script>", "![x](y)", "a | b | c", "---\nlicense: mit\n---", "# x\n\n- y", "\x1b[31m", "`x` *y* $z$", "\udcff"],
)
def test_a_model_card_shows_names_as_text(original, tmp_path, name):
    """No heading, link, element or metadata from a title, a name or a policy of somebody else's."""
    original.spec = dataclasses.replace(SPEC, name=name)
    original.anchor(torch.zeros(3, 2, 6), 0.1)
    info = {"about": {"title": name, "policy": name}, "generator": {"name": name}, "versions": {name: name}}
    card = model_card(original, info)
    named, plain = (
        MarkdownIt("commonmark").enable("table").render(text.partition("---\n# ")[2])
        for text in (card, model_card(original, json.loads(json.dumps(info).replace(json.dumps(name), '"x"'))))
    )
    tags = [re.findall(r"<[^>]*>", page.replace('class="language-python"', "")) for page in (named, plain)]
    assert tags[0] == tags[1]
    assert card.startswith("---\nlibrary_name: dim-distill\ntags: [dataset-distillation, image-generation]\n---\n# A generator")
    assert card.encode()
    assert "\x1b" not in card


def test_a_model_card_says_where_a_run_departed_from_its_settings(original):
    stated = [{"step": 40, "changes": {"fit.clip_norm": [0.0, 1.0]}}, {"step": 60, "changes": {"stage_one.lr": [0.1, 0.01]}}]
    card = model_card(original, {"about": {"departures": stated}, "generator": {"name": "gan"}, "versions": {}})
    row = "| departures | fit.clip_norm from 0.0 to 1.0 after step 40; stage_one.lr from 0.1 to 0.01 after step 60 |"
    assert row in card.replace("\\", "")


def test_a_description_that_makes_no_card_is_refused_in_one_line(run, tmp_path):
    generator = dim.load_generator(run)
    generator.info["about"]["departures"] = [1]
    with pytest.raises(InputError, match="is damaged"):
        dim.save_pretrained(generator, tmp_path / "exports" / "first")
    assert not list((tmp_path / "exports").iterdir())


def test_an_export_does_not_overwrite_unasked(run, tmp_path):
    generator = dim.load_generator(run)
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        dim.save_pretrained(generator, tmp_path)
    folder = dim.save_pretrained(generator, tmp_path / "export")
    (folder / "old.txt").write_text("old")
    dim.save_pretrained(generator, folder, overwrite=True)
    assert not (folder / "old.txt").exists()


def test_a_generator_without_a_history_cannot_be_exported(original, tmp_path):
    with pytest.raises(InputError, match="load_generator"):
        dim.save_pretrained(original, tmp_path / "export")
    assert list(tmp_path.iterdir()) == []


# --- the Hub -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(run, monkeypatch, tmp_path):
    """A Hub that has the generator, seen from an empty folder: what it was asked for."""
    asked = []

    def answer(url, *, timeout):
        assert timeout <= 5
        asked.append(url.removeprefix("https://huggingface.co/"))

    def download(repository, file_name, **_):
        asked.append((repository, file_name))
        return str(run / "generator.safetensors")

    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", answer)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return asked


@pytest.mark.parametrize("name", ["hub:somebody/toy-generator", "somebody/toy-generator"])
def test_a_repository_is_downloaded(run, hub, name, capsys):
    generator = dim.load_generator(name)
    file = "generator.safetensors"
    assert hub == [f"somebody/toy-generator/resolve/main/{file}", ("somebody/toy-generator", file)]
    assert torch.equal(generator.sample(LABELS), dim.load_generator(run).sample(LABELS))
    note = capsys.readouterr().err
    if name.startswith("hub:"):
        assert note == ""
    else:
        assert note == f"no folder {name!r} here: asking the Hugging Face Hub (write hub:{name} to say so)\n"


def test_a_folder_comes_before_the_hub(run, hub, monkeypatch):
    monkeypatch.chdir(run.parent.parent)
    assert dim.load_generator(f"{run.parent.name}/run").spec == SPEC
    assert hub == []


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("sets/digts-10", "Did you mean 'sets/digits-10'?"),
        ("set/digits-10", "Did you mean 'sets/digits-10'?"),
        ("sest/digts-10", "Did you mean 'sets/digits-10'?"),
        ("sets/something", "A repository of the Hub is hub:owner/name."),
        ("runs/nothing", "A repository of the Hub is hub:owner/name."),
        ("notes.txt/x", "A repository of the Hub is hub:owner/name."),
        ("./somebody/toy", "A repository of the Hub is hub:owner/name."),
        ("a/b/c", "A repository of the Hub is hub:owner/name."),
        ("somebody", "A repository of the Hub is hub:owner/name."),
        ("somebody/", "A repository of the Hub is hub:owner/name."),
        ("somebody/to y", "A repository of the Hub is hub:owner/name."),
        ("hub:sets", "is no repository of the Hub: expected hub:owner/name"),
        ("hub:../x", "is no repository of the Hub: expected hub:owner/name"),
        ("hub:", "is no repository of the Hub: expected hub:owner/name"),
    ],
)
def test_what_looks_like_something_here_is_not_sent_to_the_hub(hub, name, said, capsys):
    Path("sets/digits-10").mkdir(parents=True)
    Path("notes.txt").write_text("")
    message = refused(name)
    assert said in message
    assert hub == []
    assert capsys.readouterr().err == ""


def test_a_folder_beside_the_one_that_was_meant_is_named(tmp_path, hub):
    (tmp_path / "digits-10").mkdir()
    assert f"Did you mean '{tmp_path / 'digits-10'}'?" in refused(tmp_path / "digts-10")


@pytest.mark.parametrize("error", [LocalEntryNotFoundError("no connection\nat all"), OSError("offline"), RuntimeError("no")])
def test_a_hub_that_does_not_answer_is_one_clear_line(hub, monkeypatch, error):
    def fail(*_, **__):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(huggingface_hub, "get_hf_file_metadata", fail)
        message = refused("somebody/nothing")
        assert "the Hub does not answer for generator 'somebody/nothing'" in message
        assert hub == []
        # What was fetched before is used.
        patch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: "somewhere")
        assert dim.load_generator("hub:somebody/nothing").spec == SPEC
    if not isinstance(error, RuntimeError):
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
        assert "the Hub did not give generator.safetensors of 'somebody/nothing'" in refused("somebody/nothing")


def test_a_hub_that_has_no_such_generator_is_one_clear_line(hub, monkeypatch):
    class NotFoundError(HfHubHTTPError):
        def __init__(self):
            Exception.__init__(self)  # releases want an answer of another library each

        def __str__(self):
            return "404 Client Error\nand much more"

    def fail(*_, **__):
        raise NotFoundError

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", fail)
    assert "the Hub has no generator 'somebody/nothing' (404 Client Error" in refused("somebody/nothing")


@pytest.fixture
def api(monkeypatch):
    """What is asked of the Hub's API."""
    calls, removed = [], []

    class Api:
        endpoint, deletes = "https://hub.example", removed

        def __init__(self, token=None):
            calls.append(("token", token))

        def create_repo(self, repository, *, repo_type, private, exist_ok):
            calls.append((repository, repo_type, private, exist_ok))

        def upload_folder(self, *, repo_id, repo_type, folder_path, delete_patterns=()):
            calls.append((repo_id, repo_type, sorted(file.name for file in Path(folder_path).iterdir())))
            removed.extend(delete_patterns)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    return calls


def test_push_to_hub_uploads_the_export(run, api):
    address = dim.push_to_hub(dim.load_generator(run), "me/toy", private=True, token="secret")
    assert address == "https://hub.example/me/toy"
    assert api == [
        ("token", "secret"),
        ("me/toy", "model", True, True),
        ("me/toy", "model", ["README.md", "generator.safetensors", "samples.png"]),
    ]


# --- sets --------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def subject():
    images = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return SyntheticSet(images, torch.arange(6) % 3, SPEC)


@pytest.fixture
def dataset(hub, subject, monkeypatch, tmp_path):
    """A set on the Hub; what is asked of it goes to `hub`."""
    dim.save_pretrained(subject, tmp_path / "snapshot")

    def download(repository, *, repo_type):
        hub.append((repository, repo_type))
        return str(tmp_path / "snapshot")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return hub


def test_a_set_of_the_hub_is_downloaded(dataset, subject):
    read = dim.load_set("hub:somebody/toy-set")
    assert torch.equal(read.images, subject.images)
    assert dataset == ["datasets/somebody/toy-set/resolve/main/set.json", ("somebody/toy-set", "dataset")]
    with pytest.raises(InputError, match="is no repository of the Hub"):
        dim.load_set("hub:nobody")


def test_a_hub_that_does_not_give_a_set_is_one_clear_line(dataset, monkeypatch):
    def fail(*_, **__):
        raise OSError("offline\nand more")

    with monkeypatch.context() as patch:
        patch.setattr(huggingface_hub, "snapshot_download", fail)
        with pytest.raises(InputError, match=r"the Hub did not give the set 'somebody/toy-set' \(offline\): try again"):
            dim.load_set("hub:somebody/toy-set")
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", fail)
    with pytest.raises(InputError, match="the Hub does not answer for set 'somebody/toy-set'"):
        dim.load_set("hub:somebody/toy-set")


def test_push_to_hub_uploads_a_set_as_a_dataset(api, subject):
    address = dim.push_to_hub(subject, "me/toy-set", format="npz", scores=())
    assert address == "https://hub.example/datasets/me/toy-set"
    assert api == [
        ("token", None),
        ("me/toy-set", "dataset", False, True),
        ("me/toy-set", "dataset", ["README.md", "data.npz", "samples.png", "set.json"]),
    ]


# --- what is refused ---------------------------------------------------------------------------------------------------------


def refused(name) -> str:
    with pytest.raises(InputError) as caught:
        dim.load_generator(name)
    assert "\n" not in str(caught.value)
    assert str(name).removeprefix("hub:") in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("keep", [0.0, 0.001, 0.3, 0.999])
def test_a_truncated_file_is_refused(run, keep):
    file = run / "generator.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: int(keep * len(content))])
    refused(run)


@pytest.mark.parametrize("place", [0.1, 0.5, 0.9])
def test_a_changed_byte_is_refused(run, place):
    file = run / "generator.safetensors"
    content = bytearray(file.read_bytes())
    content[int(place * len(content))] ^= 0x55
    file.write_bytes(bytes(content))
    refused(run)


def test_files_of_another_kind_are_refused(run, tmp_path):
    file = run / "generator.safetensors"
    tensors, metadata = load_tensors(file)
    save_tensors(file, tensors, {**metadata, "kind": "checkpoint"})
    assert "'checkpoint': expected a generator" in refused(run)
    save_tensors(file, tensors, {**metadata, "format": 99})
    assert "upgrade" in refused(run)
    save_tensors(file, {"a": torch.zeros(3)}, metadata)
    refused(run)
    (tmp_path / "note.txt").write_text(json.dumps({"hello": 1}))
    refused(tmp_path / "note.txt")


def test_folders_that_are_no_run_are_refused(run, tmp_path):
    (tmp_path / "photos").mkdir()
    assert "no run and no exported generator" in refused(tmp_path / "photos")
    (run / "generator.safetensors").unlink()
    assert "has not saved one yet" in refused(run)
    assert "dim train" in refused(tmp_path / "nowhere")


@pytest.mark.parametrize("format", ["imagefolder", "npz", "safetensors", "webdataset", "parquet", "ddranking", "dc-bench"])
def test_files_of_an_earlier_set_are_removed_and_others_are_not(api, subject, format, tmp_path):
    spec = dataclasses.replace(SPEC, name="cifar10", height=32, width=32, class_names=tuple("abcdefghij"))
    earlier = SyntheticSet(torch.zeros(10, 3, 32, 32, dtype=torch.uint8), torch.arange(10), spec)
    place = dim.save_pretrained(earlier, tmp_path / "old", format=format)
    dim.push_to_hub(subject, "me/toy-set")
    patterns = huggingface_hub.HfApi.deletes
    written = {file.relative_to(place).as_posix() for file in place.rglob("*") if file.is_file()}
    left = {name for name in written if not any(fnmatch.fnmatch(name, pattern) for pattern in patterns)}
    assert left <= {"README.md", "samples.png", "set.json"}, "which every set replaces"
    for own in ("LICENSE", "notes/paper.pdf", ".gitattributes", "picture.png", "figures/accuracy.png", "data.md", "data.py"):
        assert not any(fnmatch.fnmatch(own, pattern) for pattern in patterns)
