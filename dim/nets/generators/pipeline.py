"""A pretrained pipeline of diffusers to start from: class-conditional latent diffusion (Rombach et al. 2022; DiT, Peebles & Xie
2023), sampled in a few deterministic steps (DDIM, Song et al. 2021, eq. 12 with eta 0)."""

import copy
import math
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler
from torch import Tensor

from dim.config import GeneratorConfig, require
from dim.errors import InputError
from dim.nets.generator import Generator
from dim.nets.pretrained import DENOISERS, Parts, open_pipeline
from dim.processes import ALONE, Processes
from dim.spec import DataSpec

__all__ = ["Pipeline"]


@dataclass(frozen=True, kw_only=True)
class PipelineOptions:
    """Of the generator `pipeline`."""

    pretrained: str | None = None
    """What to start from: a local folder, or hub:owner/name, such as a DiTPipeline, in .safetensors files."""
    pretrained_classes: tuple[int, ...] = ()
    """The pipeline's class that each class of the data starts from. Default: the same numbers, if there are as many classes."""
    steps: int = 1
    """Steps of the sampler."""
    guidance: float = 1.0
    """Weight of the class against no class. 1: no guidance, which takes half the time."""

    def __post_init__(self) -> None:
        require(self.steps >= 1, "generator.steps", self.steps, "at least 1")
        require(self.guidance >= 0, "generator.guidance", self.guidance, "0 or more")


_LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, as Pillow makes real images grey


def fit_images(images: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Bring images (B, c, h, w) to (B, C, H, W): luma or repeated grey, antialiased bilinear resizing that ignores the aspect."""
    if images.shape[1] == 3 and shape[0] == 1:
        images = (images * images.new_tensor(_LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)
    if images.shape[2:] != shape[1:]:
        images = F.interpolate(images, shape[1:], mode="bilinear", antialias=True, align_corners=False)
    return images.expand(-1, shape[0], -1, -1)


def _plain(model: Any) -> dict[str, Any]:
    """Arguments of a model's constructor; what diffusers notes beside them holds paths."""
    return {name: value for name, value in model.config.items() if not name.startswith("_")}


class Pipeline(Generator):
    """The transformer or U-Net is trained; the autoencoder, which leads from latents to images, is frozen.

    Latents are the noise of the autoencoder's space, flattened. Sampler (see `configure`): `steps`, which the pipeline's own
    scheduler spaces; `guidance` w, which mixes out(null) + w (out(class) - out(null)) (Ho & Salimans 2022).

    Args:
        spec: the data it is to stand for.
        config: which pipeline, which of its classes, and the sampler.
        architecture: what `architecture` of another one said: the networks are then made untrained and nothing is read.

    Attributes:
        classes: int64 (K,), the pipeline's class for each class of the data.
        null: the pipeline's class that stands for none; None where it has none.
        latent_shape: (c, h, w) of the latents.

    Raises:
        InputError: if the pipeline cannot be read or used, or does not fit the data or the sampler's options.
    """

    classes: Tensor

    Options: ClassVar = PipelineOptions
    learns_by = "denoising"
    settings = ("flow.label_dropout",)
    sampler_options = ("steps", "guidance")

    @staticmethod
    def begins_from_files(config: GeneratorConfig) -> bool:
        """See `Generator`; without a name it cannot begin at all."""
        return config.pretrained is not None

    def __init__(self, spec: DataSpec, config: GeneratorConfig, architecture: dict[str, Any] | None = None) -> None:
        if architecture is None:
            parts = open_pipeline(config.pretrained)
        else:
            kind = next(part for part in DENOISERS if part in architecture)
            makers = {kind: DENOISERS[kind], "vae": AutoencoderKL, "scheduler": DDIMScheduler}
            parts = Parts(kind, *(make(**architecture[part]) for part, make in makers.items()))
        net, vae = parts.denoiser.config, parts.vae.config
        size = (net.sample_size,) * 2 if isinstance(net.sample_size, int) else tuple(net.sample_size or ())
        outputs = net.out_channels or net.in_channels
        if len(size) != 2 or net.in_channels != vae.latent_channels or outputs not in (net.in_channels, 2 * net.in_channels):
            has = f"latents of {vae.latent_channels} channels, and a denoiser from {net.in_channels} to {outputs} of size {size}"
            raise InputError(f"pipeline {config.pretrained!r} has {has}: expected the same number, or twice as many out")
        if {spec.channels, vae.in_channels, vae.out_channels} - {1, 3}:
            given = f"data has {spec.channels} channels, the autoencoder {vae.in_channels} in and {vae.out_channels} out"
            raise InputError(f"pipeline {config.pretrained!r}: {given}; expected grey (1) or RGB (3)")
        super().__init__(spec, net.in_channels * math.prod(size))
        if getattr(vae, "latents_mean", None) is not None or getattr(vae, "latents_std", None) is not None:
            raise InputError(f"pipeline {config.pretrained!r}: its autoencoder has latents_mean or latents_std; expected none")
        self._scale, self._shift = vae.scaling_factor, getattr(vae, "shift_factor", None) or 0.0
        self.latent_shape = (net.in_channels, *size)
        self.kind, self.denoiser, self.vae, self.scheduler = parts
        self._schedules: dict[int, DDIMScheduler] = {}
        self.vae.requires_grad_(False)
        scale = 2 ** (len(vae.block_out_channels) - 1)
        self._encoder_shape = (vae.in_channels, scale * size[0], scale * size[1])
        transformer = self.kind == "transformer"
        count = net.num_embeds_ada_norm if transformer else net.num_class_embeds if net.class_embed_type is None else None
        self.null: int | None = count if transformer else None
        self.register_buffer("classes", torch.tensor(self._chosen(config, count)), persistent=False)
        self.check_sampler(config)
        self.config = config
        self.train()

    def _chosen(self, config: GeneratorConfig, count: int | None) -> tuple[int, ...]:
        """The pipeline's class of each class of the data."""
        chosen, wanted, name = config.pretrained_classes, self.spec.num_classes, config.pretrained
        if not count:
            raise InputError(f"pipeline {name!r} is not class-conditional: its unet has no num_class_embeds; choose another one")
        if not chosen and count == wanted:
            return tuple(range(count))
        if len(set(chosen)) != wanted or len(chosen) != wanted or min(chosen) < 0 or max(chosen) >= count:
            remedy = f"give {wanted} different numbers from 0 to {count - 1}, the class that each class of the data starts from"
            has = f"pipeline {name!r} has {count} classes, {self.spec.name} {wanted}"
            raise InputError(f"generator.pretrained_classes is {list(chosen)}: {has}; {remedy}")
        return chosen

    def check_sampler(self, config: GeneratorConfig) -> None:
        if config.guidance != 1 and self.null is None:
            raise InputError(f"generator.guidance is {config.guidance}: this pipeline has no class for 'none'; expected 1")
        total = self.scheduler.config.num_train_timesteps
        first = self._schedule(config.steps).timesteps[0] if config.steps <= total else total
        if not total // 2 <= first < total:
            spacing = f"the pipeline's spacing {self.scheduler.config.timestep_spacing!r} begins at time {first} of {total}"
            raise InputError(f"generator.steps is {config.steps}: {spacing}, outside the noisier half; expected 2 to {total - 1}")

    def _schedule(self, steps: int) -> DDIMScheduler:
        """The scheduler for so many steps, which leave it as it is; its times are plain numbers, so that a tracer can follow."""
        if steps not in self._schedules:
            schedule = copy.copy(self.scheduler)
            schedule.set_timesteps(steps)
            schedule.timesteps = schedule.timesteps.tolist()
            self._schedules[steps] = schedule
        return self._schedules[steps]

    def architecture(self) -> dict[str, Any]:
        return {self.kind: _plain(self.denoiser), "vae": _plain(self.vae), "scheduler": _plain(self.scheduler)}

    def train(self, mode: bool = True) -> Self:
        """The networks stay in evaluation mode: dropout, DiT's own of labels too, would draw from the global random state."""
        super().train(mode)
        self.denoiser.eval()
        self.vae.eval()
        return self

    def predict(self, x: Tensor, times: Tensor, classes: Tensor) -> Tensor:
        """What the denoiser says at (B, c, h, w) latents, int64 (B,) times and pipeline classes: (B, c, h, w). Learned variances,
        which the second half of the channels may hold, are left out."""
        return self.denoiser(x, timestep=times, class_labels=classes).sample[:, : self.latent_shape[0]]

    def guided(self, x: Tensor, time: int, classes: Tensor) -> Tensor:
        """The prediction with guidance; one evaluation of the network where guidance is 1."""
        times = torch.full_like(classes, time)
        if self.config.guidance == 1:
            return self.predict(x, times, classes).to(x.dtype)
        labels = torch.cat((classes, torch.full_like(classes, self.null)))
        own, free = self.predict(torch.cat((x, x)), torch.cat((times, times)), labels).to(x.dtype).unflatten(0, (2, -1))
        return free + self.config.guidance * (own - free)

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        x, classes = z.view(-1, *self.latent_shape), self.classes[y]
        schedule = self._schedule(self.config.steps)
        for time in schedule.timesteps:
            x = schedule.step(self.guided(x, time, classes), time, x).prev_sample
        images = self.vae.decode(x / self._scale + self._shift).sample.to(x.dtype)
        return fit_images(images, self.spec.image_shape).clamp(-1, 1)

    @torch.no_grad()
    def encode(self, images: Tensor, source: torch.Generator, processes: Processes = ALONE) -> Tensor:
        """Draws of the latents that the autoencoder gives for images: (B, C, H, W) in [-1, 1] -> float32 (B, c, h, w).

        `processes` share a larger batch, for all of which is drawn from `source`.
        """
        given = self.vae.encode(fit_images(images, self._encoder_shape)).latent_dist
        shape = (processes.world * len(images), *given.mean.shape[1:])
        noise = torch.randn(shape, generator=source, device=given.mean.device, dtype=given.mean.dtype)
        return (given.mean + given.std * processes.part(noise) - self._shift).float() * self._scale
