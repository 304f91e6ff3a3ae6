"""Reading the parts of a pretrained diffusers pipeline, from a folder or the Hub. Nothing is unpickled."""

import contextlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import diffusers
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiffusionPipeline, DiTTransformer2DModel, SchedulerMixin, UNet2DModel
from safetensors import SafetensorError
from torch import nn

from dim.errors import InputError
from dim.repository import repository_of, require_answer

DENOISERS = {"transformer": DiTTransformer2DModel, "unet": UNet2DModel}
"""Networks that can denoise, by the name of the component. They take (latents, times, classes)."""
# The second is what DiTTransformer2DModel was called when DiT's own pipelines were stored.
_STORED_AS = {"transformer": ("DiTTransformer2DModel", "Transformer2DModel"), "unet": ("UNet2DModel",)}
_EXPECTED = "a diffusers pipeline with weights in .safetensors files; save it again with save_pretrained"
_SCHEDULERS = "one of diffusers' for noise of kept variance; save the pipeline with a DDIMScheduler or DDPMScheduler"


class Parts(NamedTuple):
    """What is used of a pipeline; `kind` is the name of the component that denoises."""

    kind: str
    denoiser: nn.Module
    vae: AutoencoderKL
    scheduler: DDIMScheduler


@contextlib.contextmanager
def _readable(name: str, part: str, expected: str = _EXPECTED) -> Iterator[None]:
    """Whatever a folder or the Hub may have wrong becomes one line."""
    try:
        yield
    except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(f"the {part} of pipeline {name!r} cannot be used ({reason}): expected {expected}") from None


def open_pipeline(name: str | None) -> Parts:
    """Read the parts of a pipeline, in float32 on the CPU.

    Args:
        name: a local folder, or `hub:owner/name`, see `dim.repository`.

    Raises:
        InputError: if there is no such pipeline, it is of another kind, or a part is damaged or stored as a pickle.
    """
    if name is None:
        raise InputError("generator.pretrained is None: name the folder of a diffusers pipeline, or hub:owner/name")
    if not Path(name).is_dir():
        name = repository_of(name, "a folder of a diffusers pipeline (generator.pretrained)")
        require_answer(name, "model_index.json", "pipeline")
    with _readable(name, "model_index.json"):
        index = DiffusionPipeline.load_config(name)
    listed = {part: value[1] for part, value in index.items() if isinstance(value, (list, tuple)) and part[0] != "_"}
    parts = {part: stored for part, stored in listed.items() if stored}
    kind = next((part for part, stored in _STORED_AS.items() if parts.get(part) in stored), "")
    if set(parts) != {kind, "vae", "scheduler"} or parts["vae"] != "AutoencoderKL":
        found = ", ".join(f"{part} {value}" for part, value in parts.items())
        wanted = "a transformer (DiTTransformer2DModel) or a unet (UNet2DModel), a vae (AutoencoderKL) and a scheduler"
        raise InputError(f"pipeline {name!r} has {found or 'no components'}: expected a class-conditional one of {wanted}")
    models = []
    for part, cls in ((kind, DENOISERS[kind]), ("vae", AutoencoderKL)):
        with _readable(name, part):
            options = {"use_safetensors": True, "torch_dtype": torch.float32, "output_loading_info": True}
            model, report = cls.from_pretrained(name, subfolder=part, **options)
            if report["missing_keys"]:  # diffusers would leave them as they were initialised
                raise ValueError(f"it lacks the weights {', '.join(sorted(report['missing_keys'])[:3])}")
        models.append(own_memory(model))
    with _readable(name, "scheduler", _SCHEDULERS):
        cls = getattr(diffusers, parts["scheduler"], None)
        if not (inspect.isclass(cls) and issubclass(cls, SchedulerMixin)):
            raise ValueError(f"diffusers has no scheduler {parts['scheduler']}")
        scheduler = to_ddim(cls.from_pretrained(name, subfolder="scheduler"))
    return Parts(kind, *models, scheduler)


@torch.no_grad()
def own_memory(model: nn.Module) -> nn.Module:
    """Give weights and buffers memory of their own, in place.

    Weights that are read from a file are slices of it, at any address, and kernels of some processors round differently at
    other alignments. From memory of its own, which PyTorch aligns, the same network gives the same bits wherever it was read.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone()
    return model


def to_ddim(scheduler: SchedulerMixin) -> DDIMScheduler:
    """The DDIM scheduler of the same noise levels: `DDIMScheduler.from_config`, except that a scheduler that cannot clip does not
    begin to (DDIM's default, made for pixels, would clip latents).

    Raises:
        ValueError: if it has no such noise levels (flow matching, exploding variance).
    """
    own = scheduler.config
    if "beta_schedule" not in own or own.get("prediction_type") not in ("epsilon", "v_prediction", "sample"):
        raise ValueError(f"{type(scheduler).__name__}, which predicts {own.get('prediction_type')!r}, has no DDIM form")
    known = inspect.signature(DDIMScheduler.__init__).parameters
    return DDIMScheduler(**{"clip_sample": False} | {name: value for name, value in own.items() if name in known})
