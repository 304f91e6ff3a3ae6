"""Generators as programs of other tools: the same images for any number of them, what a file says, and what is refused."""

import base64
import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from plugging import EXAMPLES, example
from torch import nn

import dim
from dim.config import DataConfig, GeneratorConfig, ProtocolConfig
from dim.errors import InputError
from dim.nets.generator import Generator, build_generator
from dim.nets.generator_file import FILE_NAME, load_generator_file, save_generator_file
from dim.program import MOST_DIFFERENCE, Program, export_generator, program_of
from dim.programs.onnx import ONNX
from dim.programs.pt2 import PT2
from dim.sampler import sample_set

FORMATS = ("onnx", "pt2")


def read(path: Path):
    """A program as its users run it, and what it says of itself."""
    if path.suffix == ".pt2":
        about = {"about.json": ""}
        program = torch.export.load(path, extra_files=about).module()
        return program, json.loads(about["about.json"])
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    about = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
    return lambda z, y: torch.from_numpy(session.run(None, {"latents": z.numpy(), "labels": y.numpy()})[0]), about


def check_images(generator: Generator, program, count: int, most: float) -> None:
    """That the program gives the generator's images for `count` latents that were not tried when it was written."""
    labels = torch.arange(count) % generator.spec.num_classes
    latents = generator.latents(labels, torch.arange(count), seed=7)
    with torch.no_grad():
        expected, images = generator(latents, labels), program(latents, labels)
    assert images.dtype == torch.float32
    assert images.shape == (count, *generator.spec.image_shape)
    assert expected.std() > 0.01, "images of one value would not show a difference"
    torch.testing.assert_close(images, expected, rtol=0, atol=most)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    "config",
    [
        GeneratorConfig(name="dim2023", width=4, latent_dim=3),
        GeneratorConfig(name="gan", width=4, latent_dim=6),
        GeneratorConfig(name="diffusion", width=4),
    ],
    ids=lambda config: config.name,
)
def test_a_program_gives_the_images_of_its_generator(spec, tmp_path, config, format):
    generator = _shown(build_generator(config, spec(), seed=0))
    path = tmp_path / f"program.{format}"
    assert export_generator(generator, path, format) <= 1e-4
    program, about = read(path)
    for count in (1, 2, 70):  # diffusers branches at 64
        check_images(generator, program, count, 1e-4)
    assert about["generator"]["name"] == type(generator).__name__


def _shown(generator: Generator) -> Generator:
    """The same with weights, and running statistics, from which images come that differ from one another."""
    source = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter += torch.randn(parameter.shape, generator=source) * 0.2
    return generator.eval()


@pytest.mark.parametrize(
    "sampler", [{"steps": 2, "guidance": 2.0}, {"steps": 2, "scheduler": "euler"}, {"steps": 2, "scheduler": "heun"}], ids=str
)
def test_steps_of_a_sampler_are_unrolled(spec, tmp_path, sampler):
    generator = build_generator(GeneratorConfig(name="diffusion", width=4, **sampler), spec(), seed=0).eval()
    assert export_generator(generator, tmp_path / "flow.pt2", "pt2") <= 1e-4
    program, about = read(tmp_path / "flow.pt2")
    check_images(generator, program, 3, 1e-4)
    assert sampler.items() <= about["generator"].items()


@pytest.mark.parametrize(("kind", "format"), [("transformer", "onnx"), ("unet", "pt2")])
def test_a_pretrained_pipeline_is_exported_with_its_autoencoder(spec, pretrained, tmp_path, kind, format):
    """And with the resizing to the data's size."""
    guidance = {"guidance": 2.0} if kind == "transformer" else {}
    config = GeneratorConfig(name="pipeline", pretrained=str(pretrained(tmp_path / "net", kind=kind)), steps=2, **guidance)
    generator = build_generator(config, spec(1, 12, 3), seed=0).eval()
    path = tmp_path / f"program.{format}"
    assert export_generator(generator, path, format) <= 1e-4
    program, _ = read(path)
    check_images(generator, program, 3, 1e-4)


# --- what a file says -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(digits_gan, tmp_path_factory) -> Path:
    """A folder with a generator of the digits, which knows how it was made."""
    folder = tmp_path_factory.mktemp("run")
    config = GeneratorConfig(name="gan", width=4, latent_dim=6)
    about = {"recipe": "tiny", "steps": 9}
    save_generator_file(folder / FILE_NAME, digits_gan, config=config, data=DataConfig(), protocol=ProtocolConfig(), about=about)
    return folder


@pytest.fixture(scope="module")
def programs(folder) -> dict[str, Path]:
    """It, in each format."""
    generator, paths = load_generator_file(folder / FILE_NAME), {name: folder / f"digits.{name}" for name in FORMATS}
    for name, path in paths.items():
        export_generator(generator, path, name)
    return paths


@pytest.mark.parametrize("format", FORMATS)
def test_a_program_says_what_it_makes_and_how_it_was_made(programs, digits_gan, format):
    _, about = read(programs[format])
    spec = digits_gan.spec
    assert about["classes"] == list(spec.class_names)
    assert about["image"]["shape"] == list(spec.image_shape)
    assert about["image"]["range"] == [-1, 1]
    assert about["data"] == "digits"
    assert about["generator"]["latent_dim"] == about["latents"]["width"] == 6
    assert "standard normal" in about["latents"]["distribution"]
    assert about["provenance"]["made"]["about"] == {"recipe": "tiny", "steps": 9}
    assert about["provenance"]["exported_with"]["torch"] == torch.__version__.partition("+")[0]
    first = digits_gan.latents(torch.tensor([0]), torch.tensor([0]), seed=0)[0, :4]
    torch.testing.assert_close(torch.tensor(about["latents"]["first"]["values"]), first)


def test_both_formats_say_the_same_and_nothing_of_this_machine(programs):
    assert read(programs["onnx"])[1] == read(programs["pt2"])[1]
    for path in programs.values():
        content = path.read_bytes()
        assert str(Path(dim.__file__).parent).encode() not in content, "traces of the code's folder"
        assert b"site-packages" not in content


def test_an_onnx_file_has_names_and_an_open_number_of_images(programs):
    model = onnx.load(programs["onnx"])
    onnx.checker.check_model(model, full_check=True)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 18)]
    assert model.producer_name == "dim-distill"
    values = [*model.graph.input, *model.graph.output]
    sizes = [[dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in values]
    assert dict(zip([value.name for value in values], sizes, strict=True)) == {
        "latents": ["N", 6],
        "labels": ["N"],
        "images": ["N", 1, 8, 8],
    }


def test_a_generator_around_anchors_says_them_and_takes_their_width(spec, tmp_path):
    """With a vector about the class for each image."""
    generator = _shown(build_generator(GeneratorConfig(name="gan", width=4, latent_dim=6), spec(), seed=0))
    anchors = torch.randn(4, 3, 12, generator=torch.Generator().manual_seed(2))
    generator.anchor(anchors, 0.5)
    assert export_generator(generator, tmp_path / "anchored.onnx") <= 1e-4
    program, about = read(tmp_path / "anchored.onnx")
    stored = np.frombuffer(base64.b64decode(about["latents"]["anchors"]["values"]), "<f4").reshape(4, 3, 12)
    assert np.array_equal(stored, anchors)
    labels, indices = torch.arange(4).repeat_interleave(5), torch.arange(5).repeat(4)
    latents = example("exported")["draw"](about, labels.numpy(), indices.numpy(), 11)
    torch.testing.assert_close(torch.from_numpy(latents), generator.latents(labels, indices, seed=11), rtol=0, atol=1e-6)
    images = program(torch.from_numpy(latents), labels)
    torch.testing.assert_close(images, generator.images(labels, indices, seed=11), rtol=0, atol=1e-4)


def test_a_half_precise_generator_in_training_is_left_as_it_is(digits_gan, tmp_path):
    generator = build_generator(GeneratorConfig(name="gan", width=4, latent_dim=6), digits_gan.spec, seed=0)
    generator.load_state_dict(digits_gan.state_dict())
    generator.to(torch.bfloat16).train()
    before = {name: value.clone() for name, value in generator.state_dict().items()}
    export_generator(generator, tmp_path / "half.pt2", "pt2")
    assert generator.training
    assert all(parameter.requires_grad for parameter in generator.parameters())
    after = generator.state_dict()
    assert all(after[name].dtype == torch.bfloat16 and torch.equal(after[name], value) for name, value in before.items())
    check_images(generator.float().eval(), read(tmp_path / "half.pt2")[0], 3, 1e-4)


# --- the consumer of docs/exchange.md -------------------------------------------------------------------------------------------


def test_numpy_and_onnxruntime_alone_draw_the_set_of_dim_sample(programs, folder, tmp_path):
    """Within a step of 8 bits, and without importing PyTorch or this package."""
    code = (
        "import runpy, sys; del sys.argv[0]; runpy.run_path(sys.argv[0], run_name='__main__'); "
        "assert not {'torch', 'dim'} & sys.modules.keys()"
    )
    words = [EXAMPLES / "exported.py", programs["onnx"], tmp_path / "set.npz", "3", "5"]
    done = subprocess.run([sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    made = np.load(tmp_path / "set.npz")
    expected = sample_set(load_generator_file(folder / FILE_NAME), ipc=3, seed=5)
    order = expected.labels.argsort(stable=True)
    assert np.array_equal(made["labels"], expected.labels[order])
    difference = np.abs(made["images"].astype(int) - expected.images[order].numpy().astype(int))
    assert difference.max() <= 1
    assert difference.mean() < 0.01


def test_lines_of_the_page_stand_in_the_example():
    text = (EXAMPLES.parent / "exchange.md").read_text()
    section = re.search(r"^## Export a generator\n(.*?)(?=^## )", text, re.M | re.S)[1]
    lines = textwrap.dedent((EXAMPLES / "exported.py").read_text())
    (block,) = re.findall(r"```python\n(.*?)```", section, re.S)
    assert textwrap.indent(block, "    ") in lines


# --- what is refused ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("format", "library"), [("onnx", "onnxruntime"), ("onnx", "onnxscript")])
def test_a_library_that_is_absent_is_named_with_its_extra(digits_gan, tmp_path, monkeypatch, format, library):
    monkeypatch.setitem(sys.modules, library, None)
    message = rf"program format '{format}' needs the library '{library}': pip install 'dim-distill\[onnx\]'"
    with pytest.raises(InputError, match=message):
        export_generator(digits_gan, tmp_path / "program.onnx", format)
    assert list(tmp_path.iterdir()) == []
    program_of("pt2").require(tmp_path / "program.pt2")


def test_names_of_another_format_and_files_that_are_there_are_refused(digits_gan, tmp_path):
    with pytest.raises(InputError, match=r"expected a name that ends in \.onnx"):
        export_generator(digits_gan, tmp_path / "program.pt2", "onnx")
    (tmp_path / "program.pt2").write_text("mine")
    with pytest.raises(InputError, match="is there already: name a new file, or pass --overwrite"):
        export_generator(digits_gan, tmp_path / "program.pt2", "pt2")
    assert (tmp_path / "program.pt2").read_text() == "mine"
    export_generator(digits_gan, tmp_path / "program.pt2", "pt2", overwrite=True)
    check_images(digits_gan, read(tmp_path / "program.pt2")[0], 2, 1e-4)
    with pytest.raises(InputError, match=r"unknown program format 'onx'\. Did you mean 'onnx'"):
        export_generator(digits_gan, tmp_path / "program.onx", "onx")


class Other(PT2):
    """A format that makes other images, by less than eyes see."""

    suffix = ""
    by = 2 * MOST_DIFFERENCE

    def read(self, path):
        program = super().read(path)
        return lambda z, y: program(z, y) + self.by


class Torn(Other):
    """A format whose file cannot be read back."""

    def write(self, path, traced, about):
        super().write(path, traced, about)
        path.write_bytes(path.read_bytes()[:-100])


def test_a_program_that_makes_other_images_is_not_written(digits_gan, tmp_path, monkeypatch):
    (tmp_path / "program").write_text("mine")
    with pytest.raises(InputError, match=r"differ by up to 2\.0e-03 from the generator's: expected at most 1e-03"):
        export_generator(digits_gan, tmp_path / "program", Other, overwrite=True)
    monkeypatch.setattr(Other, "by", float("nan"))
    with pytest.raises(InputError, match="differ by up to nan"):
        export_generator(digits_gan, tmp_path / "program", Other, overwrite=True)
    with pytest.raises(InputError, match="this generator cannot be written as"):
        export_generator(digits_gan, tmp_path / "program", Torn, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["program"]
    assert (tmp_path / "program").read_text() == "mine"
    monkeypatch.setattr(Other, "by", 1e-4)
    assert export_generator(digits_gan, tmp_path / "program", Other, overwrite=True) == pytest.approx(1e-4, rel=0.01)


def test_weights_that_exceed_a_file_are_refused_before_any_work(digits_gan, tmp_path, monkeypatch):
    monkeypatch.setattr(ONNX, "most_bytes", 1000)
    with pytest.raises(InputError, match=r"weights of [\d,]+ bytes: 'onnx' holds at most 1,000 in one file; use 'pt2'"):
        export_generator(digits_gan, tmp_path / "program.onnx")


@torch.library.custom_op("dim_tests::own", mutates_args=())
def own(x: torch.Tensor) -> torch.Tensor:
    return x * 2


@own.register_fake
def _(x):
    return torch.empty_like(x)


class Strange(Generator):
    """Images of one value, by a way that `form` names."""

    def __init__(self, spec, form) -> None:
        super().__init__(spec, 2)
        self.form, self.weight = form, nn.Parameter(torch.ones(1))

    def forward(self, z, y):
        images = (z[:, :1, None, None] * self.weight).expand(-1, *self.spec.image_shape)
        if self.form == "branches":
            return images if float(z.detach().sum()) > 0 else -images
        if self.form == "counts":
            return images * len(z)
        return {"calls": own, "endless": lambda x: x / 0, "plain": lambda x: x.tanh()}[self.form](images)


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ("branches", "torch.export cannot follow this generator for any number of images"),
        ("counts", "torch.export cannot follow this generator for any number of images"),
        ("calls", r"this generator calls dim_tests\.own\.default, and a program holds PyTorch's own operators only"),
        ("endless", "images with values that are not finite"),
    ],
)
def test_generators_that_no_program_can_stand_for_are_refused(spec, tmp_path, capfd, form, message):
    with pytest.raises(InputError, match=message):
        export_generator(Strange(spec(), form), tmp_path / "program.pt2", "pt2")
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


class Values(Program):
    """A format of somebody's own."""

    suffix = ".values"

    def write(self, path, traced, about):
        with open(path, "wb") as file:
            torch.export.save(traced, file, extra_files={"note": about["data"]})

    def read(self, path):
        with open(path, "rb") as file:
            return torch.export.load(file).module()


def test_a_generator_and_a_format_of_somebodys_own(spec, tmp_path):
    generator, path = Strange(spec(), "plain"), tmp_path / "program.values"
    assert export_generator(generator, path, Values) == 0
    check_images(generator, Values("values").read(path), 3, 0)
    with pytest.raises(InputError, match=r"ends in \.values"):
        export_generator(generator, tmp_path / "program", Values)
