"""Fixtures that more than one test file uses."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

# Before PyTorch is loaded: networks this small are several times slower on more threads. Set it to run the tests with more. Child
# processes inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import matplotlib
import pytest
import torch
from hypothesis import HealthCheck, settings

from dim import rng
from dim.config import (
    DataConfig,
    DiscriminatorConfig,
    ExpertsConfig,
    FitConfig,
    GeneratorConfig,
    RecordConfig,
    StageConfig,
    TrainConfig,
)
from dim.data.real import RealData, load_data
from dim.io import read_document, write_document
from dim.nets.generator import Generator, build_generator
from dim.spec import DataSpec
from dim.trajectory.record import record

# The same examples at every run, whatever the machine's load; nothing is kept on the disk.
settings.register_profile(
    "dim", derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
settings.load_profile("dim")


def pytest_configure() -> None:
    # A shell that starts the tests in the background, or `nohup`, lets them ignore signals which some of them send.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_DFL)


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory) -> Iterator[Path]:
    """The user's cache folder is not touched; what is cached there is made once for all tests."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MPLCONFIGDIR", os.environ.get("MPLCONFIGDIR", matplotlib.get_cachedir()))
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


@pytest.fixture(scope="session")
def spec() -> Callable[..., DataSpec]:
    """A factory of data specifications: `spec(channels, size, classes)`; `size` is a side or (height, width)."""

    def make(channels: int = 3, size: int | tuple[int, int] = 8, classes: int = 4) -> DataSpec:
        height, width = (size, size) if isinstance(size, int) else size
        return DataSpec(
            name="toy",
            channels=channels,
            height=height,
            width=width,
            class_names=tuple(f"class {k}" for k in range(classes)),
            mean=tuple(0.4 + 0.1 * c for c in range(channels)),
            std=tuple(0.2 + 0.05 * c for c in range(channels)),
            fingerprint="0123456789abcdef",
        )

    return make


@pytest.fixture(scope="session")
def digits() -> RealData:
    """Scikit-learn's digits with the default splits."""
    return load_data(DataConfig())


@pytest.fixture(scope="session")
def record_digits(digits) -> Callable[..., Path]:
    """A factory of stores: `record_digits(folder, zca=True)` records two experts of the digits for three epochs."""

    def make(folder: Path, **changes) -> Path:
        experts = ExpertsConfig(count=2, epochs=3, batch_size=128, lr=0.1, augment="", compile="off", checkpoint_minutes=0.0)
        config = RecordConfig(student="convnet:width=4,depth=2", experts=experts, **changes)
        record(config, digits, folder, device="cpu")
        return folder

    return make


@pytest.fixture(scope="session")
def digits_experts(record_digits, tmp_path_factory) -> Path:
    """One such store."""
    return record_digits(tmp_path_factory.mktemp("digits") / "experts")


@pytest.fixture
def other_experts(record_digits, tmp_path) -> Path:
    """A store like it, of experts that are not the same."""
    folder = record_digits(tmp_path / "others")
    layout = read_document(folder / "experts.json")
    layout["records"]["0"]["test_accuracy"] = 1.0
    write_document(folder / "experts.json", layout)
    return folder


@pytest.fixture(scope="session")
def digits_gan(digits) -> Generator:
    """A small generator of the digits, untrained, whose images differ from one another."""
    net = build_generator(GeneratorConfig(name="gan", width=4, latent_dim=6), digits.spec, seed=0).eval()
    source = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += torch.randn(parameter.shape, generator=source) * 0.3
    return net


@pytest.fixture(scope="session")
def six_steps(digits) -> Callable[..., TrainConfig]:
    """A factory of runs on the digits, with two steps of stage one and four of stage two: `six_steps(matching=...)`."""

    def make(fit: dict[str, int] | None = None, **sections) -> TrainConfig:
        per_step = 16 / len(digits.train)
        loop = {"trackers": (), "device": "cpu", "log_steps": 1, "sample_steps": 0, "checkpoint_minutes": 0.0}
        return TrainConfig(
            generator=GeneratorConfig(width=4, latent_dim=6),
            discriminator=DiscriminatorConfig(width=4),
            stage_one=StageConfig(epochs=2 * per_step, batch_size=16),
            stage_two=StageConfig(epochs=4 * per_step, batch_size=16),
            fit=FitConfig(**loop, **(fit or {})),
            **sections,
        )

    return make


@pytest.fixture(scope="session")
def pretrained() -> Callable[..., Path]:
    """A factory of tiny untrained diffusers pipelines: `pretrained(folder)` writes one there, from 4x4 latents to 8x8 pixels.

    `net` changes the denoiser, `grey` makes the autoencoder one of grey images, `scheduler` is the pipeline's.
    """
    return make_pretrained


def make_pretrained(folder: Path, *, kind: str = "transformer", grey: bool = False, scheduler=None, **net) -> Path:
    from diffusers import AutoencoderKL, DDIMScheduler, DiffusionPipeline, DiTPipeline, DiTTransformer2DModel, UNet2DModel

    class ClassConditional(DiffusionPipeline):
        """diffusers has no class for a class-conditional U-Net of latents; a pipeline like this is what its users write."""

        def __init__(self, unet, vae, scheduler):
            super().__init__()
            self.register_modules(unet=unet, vae=vae, scheduler=scheduler)

    transformer = {
        **{"num_attention_heads": 2, "attention_head_dim": 4, "num_layers": 1, "patch_size": 2, "num_embeds_ada_norm": 3},
        **{"in_channels": 4, "out_channels": 8, "sample_size": 4},
    }
    unet = {
        **{"block_out_channels": (8, 8), "layers_per_block": 1, "norm_num_groups": 4, "attention_head_dim": 4},
        **{"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")},
        **{"in_channels": 4, "out_channels": 4, "sample_size": 4, "num_class_embeds": 3},
    }
    with rng.initialisation(0, "test-pipeline"):
        vae = AutoencoderKL(
            **{"in_channels": 1 if grey else 3, "out_channels": 1 if grey else 3, "latent_channels": net.pop("latents", 4)},
            **{"block_out_channels": (8, 8), "norm_num_groups": 4, "sample_size": 8, "scaling_factor": 0.5},
            **{"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2},
        )
        if kind == "transformer":
            pipeline, denoiser = DiTPipeline, DiTTransformer2DModel(**{**transformer, **net})
        else:
            pipeline, denoiser = ClassConditional, UNet2DModel(**{**unet, **net})
    pipeline(denoiser, vae, scheduler or DDIMScheduler(clip_sample=False)).save_pretrained(folder)
    return folder
