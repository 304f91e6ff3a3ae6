"""Coded files: generators and sets come back bit for bit, also in another process; damage and lies are refused in one line."""

import shutil
import subprocess
import sys

import pytest
import torch

import dim
from dim.coding import container
from dim.coding.generators import code_generator, load_coded_generator, with_calibration
from dim.coding.pictures import Codec
from dim.coding.sets import code_set, read_coded_set
from dim.config import DataConfig, GeneratorConfig, ProtocolConfig
from dim.data.loader import GeneratedLoader
from dim.data.synthetic import SyntheticSet, load_set
from dim.errors import InputError
from dim.io import digest
from dim.nets.generator import build_generator
from dim.nets.generator_file import load_generator_file, save_generator_file
from dim.sampler import sample_set, stored_bytes

ABOUT = {"recipe": "toy", "seconds": 12.5, "losses": [1.0] * 100}


def loaded(path, net, config):
    own = {"config": config, "data": DataConfig(), "protocol": ProtocolConfig(epochs=3), "about": ABOUT}
    save_generator_file(path, net, **own)
    return load_generator_file(path)


@pytest.fixture(scope="module")
def generator(digits_gan, tmp_path_factory):
    return loaded(
        tmp_path_factory.mktemp("coded") / "g.safetensors", digits_gan, GeneratorConfig(name="gan", width=4, latent_dim=6)
    )


@pytest.fixture
def file(generator, tmp_path):
    """A coded generator around anchors."""
    subject = loaded(tmp_path / "copy.safetensors", generator, GeneratorConfig(name="gan", width=4, latent_dim=6))
    subject.anchor(subject.latents(torch.arange(10), torch.zeros(10, dtype=torch.int64), seed=3)[:, None].repeat(1, 2, 1), 0.2)
    container.write(tmp_path / "g.dimz", code_generator(subject, 4))
    return tmp_path / "g.dimz"


def refused(path, read=dim.load_set) -> str:
    with pytest.raises(InputError) as caught:
        read(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


# --- generators --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config", [GeneratorConfig(name="gan", width=4), GeneratorConfig(width=4), GeneratorConfig(name="diffusion", width=4)]
)
def test_every_kind_of_generator_comes_back(digits, tmp_path, config):
    net = build_generator(config, digits.spec, seed=0).eval()
    subject = loaded(tmp_path / "g.safetensors", net, config)
    container.write(tmp_path / "g.dimz", code_generator(subject, 8))
    found = dim.load_generator(tmp_path / "g.dimz")
    assert found.spec == subject.spec
    assert {name: found.info[name] for name in ("data", "protocol")} == {
        name: subject.info[name] for name in ("data", "protocol")
    }
    assert found.info["about"] == {"recipe": "toy", "seconds": 12.5}
    again = code_generator(found, 8)
    assert len(again) < (tmp_path / "g.safetensors").stat().st_size / 2
    images = [sample_set(one, ipc=2).images.float() for one in (subject, found)]
    assert float((images[0] - images[1]).abs().mean()) < 6
    assert stored_bytes(found) == (tmp_path / "g.dimz").stat().st_size


def test_a_pipeline_comes_back_without_its_files(spec, pretrained, tmp_path):
    config = GeneratorConfig(name="pipeline", steps=4, pretrained=str(pretrained(tmp_path / "pipeline")))
    subject = loaded(tmp_path / "g.safetensors", build_generator(config, spec(3, 8, 3), seed=0).eval(), config)
    container.write(tmp_path / "g.dimz", code_generator(subject, 8))
    shutil.rmtree(tmp_path / "pipeline")
    images = [sample_set(one, ipc=1).images.float() for one in (subject, dim.load_generator(tmp_path / "g.dimz"))]
    assert float((images[0] - images[1]).abs().mean()) < 6


def test_rounded_weights_are_coded_without_further_loss(generator, tmp_path):
    content, (plain, moved) = with_calibration(generator, 4, steps=20)
    assert moved <= plain
    container.write(tmp_path / "g.dimz", content)
    first = load_coded_generator(tmp_path / "g.dimz")
    assert digest(first.state_dict()) == digest(load_coded_generator(tmp_path / "g.dimz").state_dict())
    assert all(len(row.unique()) <= 15 for row in first.state_dict()["mapping.weight"])


def test_anchors_come_back_and_count(file, generator):
    found = dim.load_generator(file)
    assert found.anchors.shape == (10, 2, 6)
    assert float(found.spread) == pytest.approx(0.2)
    assert found.file_bytes == file.stat().st_size
    assert found.anchor(found.anchors, 0.0).file_bytes is None, "it is another generator than the file's"
    plain = sample_set(generator, ipc=1, seed=3).images.float()
    assert float((sample_set(found, ipc=1).images.float() - plain).abs().mean()) < float(plain.std()) / 2


def test_another_process_makes_the_same_images(file):
    code = "import sys, dim; from dim.io import digest; s = dim.sample_set(dim.load_generator(sys.argv[1]), ipc=3, seed=1); "
    code += "print(digest(s.content()))"
    done = subprocess.run([sys.executable, "-c", code, file], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == digest(sample_set(dim.load_generator(file), ipc=3, seed=1).content())


def test_a_coded_generator_feeds_training(file):
    batches = list(GeneratedLoader(dim.load_generator(file), batch_size=20, steps=2))
    assert [images.shape for images, _ in batches] == [(20, 1, 8, 8)] * 2
    assert torch.cat([labels for _, labels in batches]).bincount().tolist() == [4] * 10


def test_a_generator_that_does_not_say_how_it_was_made_is_refused(digits_gan, generator):
    with pytest.raises(InputError, match="does not say how it was made"):
        code_generator(digits_gan, 4)
    with pytest.raises(InputError, match="bits is 9: expected 2 to 8"):
        code_generator(generator, 9)


# --- sets --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", [Codec("webp", 50), Codec("values", 3), Codec("values", 4, half=True)], ids=str)
@pytest.mark.parametrize("soft", [False, True])
def test_a_set_comes_back_and_again_the_same(generator, tmp_path, codec, soft):
    drawn = sample_set(generator, ipc=3)
    probabilities = torch.rand(30, 10, generator=torch.Generator().manual_seed(0)).softmax(1) if soft else None
    subject = SyntheticSet(drawn.images, drawn.labels, drawn.spec, soft=probabilities, info={**drawn.info, "teacher": "toy"})
    path = tmp_path / "s.dimz"
    container.write(path, code_set(subject.content(), subject.spec, subject.info, codec))
    found = load_set(path)
    assert (found.spec, found.ipc, found.info["storage"]) == (subject.spec, 3, str(codec))
    assert torch.equal(found.labels, subject.labels)
    assert (found.soft is None) == (not soft)
    assert found.bytes_stored() == {"file": path.stat().st_size}
    assert found.info["protocol"] == subject.info["protocol"]
    assert found.info["generator"] == {"seconds": 12.5}
    assert digest(found.content()) == digest(load_set(path).content())
    found.save(tmp_path / "folder")
    assert load_set(tmp_path / "folder").bytes_stored() == {"images": 30 * 64, "labels": 30 if not soft else 1200}


def test_float_images_are_stored_in_eight_bits(spec, tmp_path):
    images = torch.linspace(-1.5, 1.5, 4 * 64).view(4, 1, 8, 8)
    path = tmp_path / "s.dimz"
    container.write(path, code_set({"images": images, "labels": torch.arange(4).flip(0)}, spec(1, 8), {}, Codec("values", 8)))
    content, _, _ = read_coded_set(path)
    wanted = ((images + 1) * 127.5).round().clamp(0, 255)
    assert torch.equal(content["images"].float(), wanted)
    assert content["labels"].tolist() == [3, 2, 1, 0]


def test_other_pixels_than_were_made_are_told(generator, tmp_path, monkeypatch, capsys):
    drawn, path = sample_set(generator, ipc=1), tmp_path / "s.dimz"
    container.write(path, code_set(drawn.content(), drawn.spec, {}, Codec("webp", 50)))
    load_set(path)
    assert capsys.readouterr().err == ""
    whole = dim.coding.sets.pictures.decode
    monkeypatch.setattr("dim.coding.sets.pictures.decode", lambda *given: whole(*given) // 2)
    load_set(path)
    assert "decodes to other pixels" in capsys.readouterr().err


def test_more_images_than_a_sheet_holds_are_refused(spec):
    own = spec(1, 4096)
    with pytest.raises(InputError, match="holds at most 4 of this size"):
        code_set({"images": torch.zeros(5, 1, 1, 1, dtype=torch.uint8), "labels": torch.zeros(5)}, own, {}, Codec("webp", 1))


# --- files -------------------------------------------------------------------------------------------------------------------


def test_one_kind_is_not_taken_for_another(file, generator, tmp_path):
    assert "holds a coded generator" in refused(file)
    drawn, path = sample_set(generator, ipc=1), tmp_path / "s.dimz"
    container.write(path, code_set(drawn.content(), drawn.spec, {}, Codec("webp", 50)))
    assert "holds a coded set" in refused(path, dim.load_generator)
    (tmp_path / "x").write_bytes(b"DIMZ")
    assert "no coded file" in refused(tmp_path / "x")
    assert not container.is_coded(tmp_path / "no such file")
    assert not container.is_coded(tmp_path)


def test_a_header_is_small(generator):
    drawn = sample_set(generator, ipc=1)
    whole = code_set(drawn.content(), drawn.spec, drawn.info, Codec("values", 4))
    assert len(whole) - sum(size for _, size in _lengths(whole)) < 300


def _lengths(whole: bytes):
    import json
    import zlib

    (length,) = container._LENGTH.unpack_from(whole, container._START.size)
    place = container._START.size + container._LENGTH.size
    opener = zlib.decompressobj(-15, container._USUAL)
    return json.loads(opener.decompress(whole[place : place + length]))["parts"]


@pytest.mark.parametrize("flip", range(0, 60, 7))
def test_damage_is_found(file, flip):
    content = bytearray(file.read_bytes())
    content[flip] ^= 1
    file.write_bytes(content)
    assert refused(file, load_coded_generator)
    file.write_bytes(bytes(content[: len(content) // 2]))
    assert refused(file, load_coded_generator)


def test_a_later_format_is_named(file, monkeypatch):
    header, parts = container.read(file)
    monkeypatch.setattr(container, "FORMAT", 2)
    container.write(file, container.pack(header, parts))
    monkeypatch.undo()
    assert "has format 2: this version reads 1" in refused(file, load_coded_generator)


@pytest.mark.parametrize(
    "change",
    [
        {"bits": 9},
        {"bits": True},
        {"bits": None},
        {"anchors": [10**9, 6]},
        {"anchors": [2, 5]},
        {"anchors": [2]},
        {"generator": {"name": "gan", "width": 10**6}},
        {"generator": {"name": "no such generator"}},
        {"generator": {"name": "os:system"}},
        {"spec": {}},
        {"data": None},
        {"about": 3},
        {"architecture": {"x": 1}},
        {"kind": "student"},
    ],
)
def test_a_header_that_lies_is_refused(file, change):
    """Under a checksum that fits, and before there is memory for what it claims."""
    header, parts = container.read(file)
    container.write(file, container.pack({**header, **change}, parts))
    with pytest.raises(InputError) as caught:
        load_coded_generator(file)
    assert len(str(caught.value)) <= 300


def test_values_that_are_not_finite_are_refused(generator, tmp_path):
    scales = {"mapping.weight": torch.full((6, 1), torch.nan, dtype=torch.float16)}
    container.write(tmp_path / "g.dimz", code_generator(generator, 4, scales=scales))
    assert "not finite" in refused(tmp_path / "g.dimz", load_coded_generator)
