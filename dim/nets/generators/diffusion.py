"""diffusers' U-Net as a flow from noise to images in a few steps: it learns the velocity, and its average over an interval.

Convention of flow matching (Lipman et al. 2023; Liu et al. 2023): x_t = (1 - t) image + t noise, velocity v = noise - image. The
network is u(x_t, r, t), the mean of the velocity over [r, t] (MeanFlow, Geng et al. 2025); u(x_t, t, t) is the velocity itself.
One step of any length along the flow is then exact for an exact network: x_r = x_t - (t - r) u(x_t, r, t).
"""

import copy
import functools
import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler, UNet2DModel
from diffusers.models.attention_processor import Attention, AttnProcessor
from diffusers.models.embeddings import TimestepEmbedding
from torch import Tensor, nn

from dim.config import GeneratorConfig, require
from dim.config.settings import MOST_BLOCKS
from dim.nets.generator import Generator
from dim.nets.generators.gan import channels_at, halvings
from dim.spec import DataSpec

__all__ = ["Diffusion"]


@dataclass(frozen=True, kw_only=True)
class DiffusionOptions:
    """Of the generator `diffusion`."""

    width: int = 64
    """Channels at full resolution, an even number, doubled at the next two halvings."""
    blocks: int = 1
    """Residual blocks per resolution."""
    steps: int = 1
    """Steps of the sampler."""
    guidance: float = 1.0
    """Weight of the class against no class. 1: no guidance, which takes half the time."""
    scheduler: Literal["mean", "euler", "heun"] = "mean"
    """`mean`: jumps by learned mean velocities, for few steps. `euler`, `heun`: diffusers' solvers of the flow."""

    def __post_init__(self) -> None:
        for name in ("width", "steps"):
            require(getattr(self, name) >= 1, f"generator.{name}", getattr(self, name), "at least 1")
        require(1 <= self.blocks <= MOST_BLOCKS, "generator.blocks", self.blocks, f"1 to {MOST_BLOCKS}")
        even = "an even number of channels for the generator 'diffusion'"
        require(self.width % 2 == 0, "generator.width", self.width, even)
        require(self.guidance >= 0, "generator.guidance", self.guidance, "0 or more")


TIME_SCALE = 16.0
"""Times in [0, 1] are multiplied by this before the sinusoidal embedding. At diffusers' 1,000 the derivative with respect to
time, which average velocities are learned from, would be that of the fastest sine."""


class Diffusion(Generator):
    """A class-conditional flow with a sampler of few steps.

    Latents are the noise images, flattened. Sampler (see `configure`): `steps`; `guidance` w, which mixes
    u(null) + w (u(class) - u(null)) (Ho & Salimans 2022); `scheduler`: `mean` jumps by average velocities; `euler` and `heun` are
    diffusers' solvers and use the velocity itself.

    Raises:
        InputError: if a side of the image is not a multiple of 4.
    """

    Options: ClassVar = DiffusionOptions
    learns_by = "flow"
    settings = ("flow",)
    sampler_options = ("steps", "guidance", "scheduler")

    def __init__(self, spec: DataSpec, config: GeneratorConfig) -> None:
        super().__init__(spec, math.prod(spec.image_shape))
        self.config = config
        sizes = halvings(spec)
        channels = tuple(channels_at(level, config.width) for level in range(len(sizes)))
        self.unet = UNet2DModel(
            sample_size=(spec.height, spec.width),
            in_channels=spec.channels,
            out_channels=spec.channels,
            block_out_channels=channels,
            layers_per_block=config.blocks,
            down_block_types=("DownBlock2D",) * len(sizes),
            up_block_types=("UpBlock2D",) * len(sizes),
            norm_num_groups=math.gcd(config.width, 32),
            attention_head_dim=math.gcd(channels[-1], 64),
            resnet_time_scale_shift="scale_shift",
            class_embed_type="identity",
        )
        for module in self.unet.modules():
            if isinstance(module, Attention):
                module.set_processor(AttnProcessor())  # the fused kernel has no forward-mode derivative
                module.upcast_softmax = False  # it would lower float64 to float32; autocast raises bfloat16 by itself
            if isinstance(module, nn.GroupNorm) and torch.__version__ < "2.14":
                module.register_forward_pre_hook(_contiguous)
        self.unet.time_proj = _Waves(channels[0])
        width = 4 * channels[0]
        self.classes = nn.Embedding(spec.num_classes + 1, width)  # the last one is no class
        self.waves = _Waves(channels[0])
        self.interval = TimestepEmbedding(channels[0], width)
        nn.init.normal_(self.classes.weight, std=0.1)

    @property
    def null(self) -> int:
        """The label that stands for no class."""
        return self.spec.num_classes

    def average_velocity(self, x: Tensor, r: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """u(x_t, r, t): (B, C, H, W) and times (B,) with 0 <= r <= t <= 1, (B,) labels -> (B, C, H, W)."""
        condition = self.classes(y).to(x.dtype) + self.interval(self.waves(t - r).to(x.dtype))
        return self.unet(x, t, class_labels=condition).sample

    def guided(self, x: Tensor, r: float, t: float, y: Tensor) -> Tensor:
        """The average velocity with guidance; one evaluation of the network where guidance is 1."""
        r, t = (x.new_full((x.shape[0],), value) for value in (r, t))
        if self.config.guidance == 1:
            return self.average_velocity(x, r, t, y)
        twice = (torch.cat((value, value)) for value in (x, r, t))
        both = self.average_velocity(*twice, torch.cat((y, torch.full_like(y, self.null))))
        own, free = both.unflatten(0, (2, -1))
        return free + self.config.guidance * (own - free)

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        x = z.view(-1, *self.spec.image_shape)
        if self.config.scheduler == "mean":
            for step in range(self.config.steps, 0, -1):
                t, r = step / self.config.steps, (step - 1) / self.config.steps
                x = x - (t - r) * self.guided(x, r, t, y).to(x.dtype)
            return x.clamp(-1, 1)
        scheduler = copy.copy(_solver(self.config.scheduler, self.config.steps))  # it counts its steps: one per call
        for time in scheduler.timesteps:
            t = time / scheduler.config.num_train_timesteps
            x = scheduler.step(self.guided(x, t, t, y).to(x.dtype), time, x).prev_sample
        return x.clamp(-1, 1)


def _contiguous(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """In PyTorch 2.9 to 2.12 (2.13 was not tried) the forward-mode derivative of group norm refuses channels-last maps."""
    return tuple(value.contiguous() for value in inputs)


class _Waves(nn.Module):
    """Sines and cosines of times in [0, 1], in the precision of the times; diffusers' own always give float32."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, times: Tensor) -> Tensor:
        half = self.width // 2
        rates = TIME_SCALE * torch.exp(torch.arange(half, device=times.device, dtype=times.dtype) * (-math.log(1e4) / half))
        angles = times[:, None] * rates
        return torch.cat((angles.cos(), angles.sin()), dim=1)


_SOLVERS = {"euler": FlowMatchEulerDiscreteScheduler, "heun": FlowMatchHeunDiscreteScheduler}


@functools.cache
def _solver(name: str, steps: int) -> FlowMatchEulerDiscreteScheduler | FlowMatchHeunDiscreteScheduler:
    """A scheduler before its first step; its times and noise levels are plain numbers, so that a tracer can follow the steps."""
    scheduler = _SOLVERS[name]()
    scheduler.set_timesteps(steps)
    scheduler.set_begin_index(0)
    scheduler.timesteps, scheduler.sigmas = scheduler.timesteps.tolist(), scheduler.sigmas.tolist()
    return scheduler
