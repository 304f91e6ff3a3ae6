"""Configuration: frozen dataclasses, read from TOML recipes, overridden on the command line, stored as JSON.

Every field has a default and a docstring; `dim train --help` shows both. A recipe sets only what differs. Unknown keys
and values of a wrong type or outside their range are refused with the nearest known name or the range.
"""

import dataclasses
import itertools
import json
import math
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro

from dim.errors import InputError, nearest

T = TypeVar("T")


def _require(condition: bool, name: str, value: Any, expected: str) -> None:
    if not condition:
        raise InputError(f"{name} is {value!r}: expected {expected}")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which real data to use."""

    dataset: Annotated[str, tyro.conf.arg(aliases=["--dataset"])] = "digits"
    """digits, mnist, fashion-mnist, cifar10, cifar100, svhn, tiny-imagenet, or folder (a folder of class folders)."""
    root: Annotated[str | None, tyro.conf.arg(aliases=["--data-root"])] = None
    """Where the data lies (torchvision's root, or the folder itself). `digits` needs none."""
    download: bool = False
    """Let torchvision download a data set that is absent from the root."""
    resolution: Annotated[int | None, tyro.conf.arg(aliases=["--resolution"])] = None
    """Height and width in pixels; images are resized and centre-cropped. Required for `folder`; default: the data's own."""
    channels: Literal[1, 3] | None = None
    """Force grey (1) or RGB (3) images. Default: the data's own; RGB for `folder`."""
    val_fraction: float = 0.1
    """Part of every class of the training data that is held out for choices, in [0, 0.5]. Never trained on."""
    test_fraction: float = 0.2
    """For data without a test part of its own (digits; a folder without train/ and test/): held out per class."""
    split_seed: int = 0
    """Seed of both splits."""
    memory_gib: float = 8.0
    """Decoded images up to this size are held on the device; a larger data set is read batch by batch."""

    def __post_init__(self) -> None:
        _require(0 <= self.val_fraction <= 0.5, "data.val_fraction", self.val_fraction, "a number in [0, 0.5]")
        _require(0 < self.test_fraction <= 0.5, "data.test_fraction", self.test_fraction, "a number in (0, 0.5]")
        _require(self.resolution is None or self.resolution >= 4, "data.resolution", self.resolution, "at least 4 pixels")
        _require(self.memory_gib >= 0, "data.memory_gib", self.memory_gib, "0 or more")


@dataclass(frozen=True, kw_only=True)
class GeneratorConfig:
    """The conditional generator, which is the product."""

    name: Literal["dim2023", "gan", "diffusion", "pipeline"] = "gan"
    """Architecture. `dim2023`: the published one (DiM, Wang et al. 2023). `gan`: residual, without normalisation, modulated by
    latent and class (in the line of R3GAN and StyleGAN2). `diffusion`: diffusers' U-Net, a flow in a few steps. `pipeline`: a
    pretrained, class-conditional latent diffusion pipeline of diffusers."""
    latent_dim: int = 64
    """dim2023, gan: Gaussian inputs beside the label. Published for DiM: 90, after the one-hot label of 10."""
    label_scale: float = 1.0
    """dim2023: value of the one-hot label's entry. Published: 1, which is little beside 90 Gaussian inputs: the class is
    learned late."""
    width: int = 64
    """dim2023: channels of every hidden layer (published: 196). gan, diffusion: channels at full resolution, doubled at the next
    two halvings."""
    blocks: int = 1
    """gan, diffusion: residual blocks per resolution."""
    steps: int = 1
    """diffusion, pipeline: steps of the sampler."""
    guidance: float = 1.0
    """diffusion, pipeline: weight of the class against no class; 1: no guidance, which takes half the time."""
    scheduler: Literal["mean", "euler", "heun"] = "mean"
    """diffusion: `mean` jumps by learned mean velocities, for few steps. `euler`, `heun`: diffusers' solvers of the flow."""
    pretrained: str | None = None
    """pipeline: what to start from, a local folder or a Hub id (owner/name), such as a DiTPipeline, in .safetensors files."""
    pretrained_classes: tuple[int, ...] = ()
    """pipeline: the class of the pipeline that each class of the data starts from. Default: the same, if there are as many."""

    def __post_init__(self) -> None:
        _require(self.label_scale > 0, "generator.label_scale", self.label_scale, "a positive number")
        for name in ("latent_dim", "width", "blocks", "steps"):
            _require(getattr(self, name) >= 1, f"generator.{name}", getattr(self, name), "at least 1")
        even = self.name != "diffusion" or self.width % 2 == 0
        _require(even, "generator.width", self.width, "an even number of channels for the generator 'diffusion'")
        _require(self.guidance >= 0, "generator.guidance", self.guidance, "0 or more")
        for name, owners in _GENERATOR_OPTIONS.items():
            changed = getattr(self, name) != type(self).__dataclass_fields__[name].default
            expected = f"an option of the generator {self.name!r} (this one belongs to {' and '.join(owners)})"
            _require(self.name in owners or not changed, f"generator.{name}", getattr(self, name), expected)


_GENERATOR_OPTIONS = {
    "width": ("dim2023", "gan", "diffusion"),
    "latent_dim": ("dim2023", "gan"),
    "label_scale": ("dim2023",),
    "blocks": ("gan", "diffusion"),
    "steps": ("diffusion", "pipeline"),
    "guidance": ("diffusion", "pipeline"),
    "scheduler": ("diffusion",),
    "pretrained": ("pipeline",),
    "pretrained_classes": ("pipeline",),
}


@dataclass(frozen=True, kw_only=True)
class DiscriminatorConfig:
    """The discriminator; which one follows from `adversarial.loss`."""

    width: int = 64
    """acgan-wgangp: channels of every hidden layer (published: 196). relativistic: channels at full resolution, doubled at the
    next two halvings."""
    blocks: int = 1
    """relativistic: residual blocks per resolution."""

    def __post_init__(self) -> None:
        for name in ("width", "blocks"):
            _require(getattr(self, name) >= 1, f"discriminator.{name}", getattr(self, name), "at least 1")


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """Length and optimiser of one training stage. Adam for the generator and the discriminator."""

    epochs: float = 1.0
    """Passes over the training data; fractions are allowed, 0 skips the stage."""
    batch_size: int = 64
    """Real images, and generated images, per step, over all processes."""
    lr: float = 2e-4
    """Adam learning rate of generator and discriminator."""
    lr_end: float | None = None
    """Learning rate that a cosine reaches at the end of the stage. Default: constant."""
    betas: tuple[float, float] = (0.0, 0.9)
    """Adam betas."""
    beta2_end: float | None = None
    """Second beta that a cosine reaches at the end of the stage. Default: constant."""

    def __post_init__(self) -> None:
        _require(self.epochs >= 0, "epochs", self.epochs, "0 or more")
        _require(self.batch_size >= 2, "batch_size", self.batch_size, "at least 2")
        _require(self.lr > 0, "lr", self.lr, "a positive number")
        _require(self.lr_end is None or self.lr_end >= 0, "lr_end", self.lr_end, "0 or more")
        _require(all(0 <= beta < 1 for beta in self.betas), "betas", self.betas, "two numbers in [0, 1)")
        _require(self.beta2_end is None or 0 <= self.beta2_end < 1, "beta2_end", self.beta2_end, "a number in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class AdversarialConfig:
    """The two-player loss, present in both stages."""

    loss: Literal["acgan-wgangp", "relativistic"] = "relativistic"
    """`acgan-wgangp`: published; a critic with a classifier, and a gradient penalty. `relativistic`: real and generated images of
    a class are judged in pairs by a projection discriminator, with R1 and R2 (R3GAN, Huang et al. 2024)."""
    gradient_penalty: float = 10.0
    """acgan-wgangp: weight of the gradient penalty (Gulrajani et al. 2017, eq. 3)."""
    class_weight: float = 1.0
    """acgan-wgangp: weight of the classification loss of both networks (Odena et al. 2017)."""
    class_weight_generated: float = 1.0
    """acgan-wgangp: the discriminator's classification loss on generated images, beside 1 for real ones. Published: 1. At 0 it
    learns classes from real images only, so that early images, which do not show their class yet, cannot unteach it."""
    gamma: float = 0.05
    """relativistic: weight of R1 + R2, halved: the squared norms of the discriminator's gradient at real and generated images."""
    gamma_end: float | None = None
    """relativistic: gamma that a cosine reaches at the end of stage one. Default: constant."""
    penalty_every: int = 1
    """relativistic: take R1 + R2 at every so many steps, times that number (lazy regularisation, Karras et al. 2020)."""
    augment: str = ""
    """Differentiable augmentation of real and generated images alike before the discriminator (Zhao et al. 2020), e.g.
    `color_crop_cutout`. Published: none."""
    augment_target: float | None = None
    """relativistic: augment each image with a probability that adapts (Karras et al. 2020, ADA): it rises while the discriminator
    ranks more than this share of pairs rightly, counted as right minus wrong, in (0, 1). Default: augment all."""
    augment_images: int = 500_000
    """relativistic: images in which the probability can go from 0 to 1."""

    def __post_init__(self) -> None:
        for name in ("gradient_penalty", "class_weight", "class_weight_generated", "gamma"):
            _require(getattr(self, name) >= 0, f"adversarial.{name}", getattr(self, name), "0 or more")
        _require(self.gamma_end is None or self.gamma_end >= 0, "adversarial.gamma_end", self.gamma_end, "0 or more")
        for name in ("penalty_every", "augment_images"):
            _require(getattr(self, name) >= 1, f"adversarial.{name}", getattr(self, name), "at least 1")
        target = self.augment_target
        _require(target is None or 0 < target < 1, "adversarial.augment_target", target, "a number in (0, 1)")
        usable = target is None or (self.loss == "relativistic" and self.augment != "")
        _require(usable, "adversarial.augment_target", target, "loss 'relativistic' and an augmentation")


@dataclass(frozen=True, kw_only=True)
class FlowConfig:
    """What the generator `diffusion` learns from real images, in both stages."""

    mean_from: float = 0.5
    """Part of stage one after which mean velocities, which make few steps possible, are learned too; in [0, 1]."""
    mean_share: float = 0.5
    """Part of a batch that learns them from then on; in [0, 1]."""
    label_dropout: float = 0.1
    """Part of the images that are shown without their class, which guidance needs. Also of the generator `pipeline`."""
    time_mean: float = -0.4
    """Times are sigmoids of Gaussians with this mean."""
    time_std: float = 1.0
    """And this standard deviation."""

    def __post_init__(self) -> None:
        for name in ("mean_from", "mean_share", "label_dropout"):
            _require(0 <= getattr(self, name) <= 1, f"flow.{name}", getattr(self, name), "a number in [0, 1]")
        _require(self.time_std > 0, "flow.time_std", self.time_std, "a positive number")


@dataclass(frozen=True, kw_only=True)
class MatchingConfig:
    """Matching what a pool of models says of real and of generated images (stage two)."""

    weight: float = 20.0
    """Weight beside the adversarial loss. Published: 0.01, which hardly acts. 0 turns the pool off."""
    distance: Literal["pairs", "means", "moments", "kernel", "characteristic"] = "kernel"
    """`pairs`: one real image against one generated image of its class (published; its optimum is the class mean, a pull
    towards collapse). Without that pull, within classes: `means`: squared distance of the means; `moments`: of means and second
    moments; `kernel`: of the distributions, by Gaussian kernels; `characteristic`: by characteristic functions. They pull with
    different force at one weight: that of `means` of logits is about ten times that of `kernel` of features."""
    outputs: Literal["logits", "features"] = "features"
    """What is compared: log-probabilities (published), or the features before a model's last layer."""
    augment: str = "color_crop_cutout"
    """Augmentation of both sides, one draw for both."""

    def __post_init__(self) -> None:
        _require(self.weight >= 0, "matching.weight", self.weight, "0 or more")


@dataclass(frozen=True, kw_only=True)
class PoolConfig:
    """The pool of models whose logits are matched, and how it is kept up."""

    source: Literal["persistent", "fresh", "experts"] = "persistent"
    """`persistent`: members of many ages live through the stage and take turns. `fresh`: published; one new model per epoch,
    thrown away at its end. `experts`: checkpoints along recorded trajectories, of the experts' own architecture, no upkeep."""
    experts: str | None = None
    """experts: folder made by `dim experts`."""
    ages: tuple[float, float] = (0.0, 1.0)
    """experts: youngest and oldest checkpoint, as parts of the recorded path."""
    oldest_at_first: float = 0.4
    """experts: the oldest one when the stage begins; it grows to `ages` while the stage lasts, as DATM's window does."""
    together: int = 1
    """experts: members per step, which judge the same images in one batched computation."""
    images: Literal["real", "generated"] = "generated"
    """persistent, fresh: what members are trained on. `real`: published. `generated`: what the generator makes at the time, so
    that members judge real images as models do that are trained on the result, and see what they lack."""
    students: tuple[str, ...] = (
        "convnet",
        "resnet10:width=32,norm=batchstats",
        "resnet18:width=32,norm=batchstats",
        "resnetap10:width=32,norm=batchstats",
        "resnetap18:width=32,norm=batchstats",
    )
    """Architectures, as `dim evaluate --students` names them. Default: the published five, at the published sizes and norms."""
    members: int = 10
    """Persistent: number of models alive; architectures are dealt out in turn."""
    upkeep_steps: int = 1
    """SGD steps per upkeep. Published: 16."""
    upkeep_every: int = 2
    """Generator steps between two upkeeps of the drawn member. Published: 1."""
    max_age: int = 1000
    """Persistent: a member is started afresh after this many SGD steps."""
    lr: float = 0.01
    """SGD learning rate."""
    momentum: float = 0.9
    """SGD momentum."""
    weight_decay: float = 5e-4
    """SGD weight decay."""
    augment: str = "color_crop"
    """Augmentation during upkeep."""

    def __post_init__(self) -> None:
        _require(len(self.students) > 0, "pool.students", self.students, "at least one architecture")
        for name in ("members", "upkeep_steps", "upkeep_every", "max_age", "together"):
            _require(getattr(self, name) >= 1, f"pool.{name}", getattr(self, name), "at least 1")
        _require(self.lr > 0, "pool.lr", self.lr, "a positive number")
        _require(0 <= self.momentum < 1, "pool.momentum", self.momentum, "a number in [0, 1)")
        _require(self.weight_decay >= 0, "pool.weight_decay", self.weight_decay, "0 or more")
        low, high = self.ages
        _require(0 <= low <= high <= 1, "pool.ages", self.ages, "two numbers in [0, 1], the smaller first")
        oldest = self.oldest_at_first
        _require(low <= oldest <= high, "pool.oldest_at_first", oldest, f"a number in [{low}, {high}]")


@dataclass(frozen=True, kw_only=True)
class PathMatchingConfig:
    """Trajectory matching of the generator (stage two): a student that is trained on a generated batch, from a point of a
    recorded expert's path, should end where the expert went, or go that way (`distance`)."""

    weight: float = 0.0
    """Weight beside the other losses. 0 turns it off."""
    experts: str | None = None
    """Folder made by `dim experts`."""
    every: int = 1
    """Generator steps between two such gradients."""
    steps: int = 10
    """Steps of the student (N)."""
    epochs: float = 0.1
    """Recorded moments from start to target (M)."""
    starts: tuple[float, float] = (0.0, 1.0)
    """Start points are drawn from this range of recorded moments, uniformly."""
    batch_size: int = 0
    """Generated images per student step; 0: all of the batch."""
    step_size: float = 0.01
    """The student's learning rate."""
    distance: Literal["endpoint", "direction"] = "endpoint"
    """What is compared between student and expert: where they end, or only the direction in which they went. The gradient of the
    second grows as the student's way shrinks, so that the weight is another one."""
    augment: str = "color|crop|cutout|flip|scale|rotate"
    """Augmentation of the images, one draw per student step."""

    def __post_init__(self) -> None:
        _require(self.weight >= 0, "path_matching.weight", self.weight, "0 or more")
        for name in ("every", "steps"):
            _require(getattr(self, name) >= 1, f"path_matching.{name}", getattr(self, name), "at least 1")
        for name in ("epochs", "step_size"):
            _require(getattr(self, name) > 0, f"path_matching.{name}", getattr(self, name), "a positive number")
        _require(self.batch_size >= 0, "path_matching.batch_size", self.batch_size, "0 (all) or more")
        low, high = self.starts
        _require(0 <= low < high, "path_matching.starts", self.starts, "two numbers of 0 or more, the smaller first")


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """The training loop: everything that is not the method."""

    seed: Annotated[int, tyro.conf.arg(aliases=["--seed"])] = 0
    """Seed of the whole run."""
    ema: float = 0.999
    """Decay per step of the exponential moving average of the generator's weights, which is then the result; it is warmed
    up as (1 + t) / (10 + t). 0: no average (published)."""
    clip_norm: float = 0.0
    """Largest norm of the generator's and the discriminator's gradient; 0 leaves it alone."""
    precision: Literal["no", "bf16"] = "no"
    """Mixed precision of accelerate. fp16 is not offered: the gradient penalty overflows it."""
    channels_last: bool = True
    """Keep convolutions in the channels-last memory format."""
    tf32: bool = True
    """Allow TF32 matrix products on GPUs that have them."""
    device: Annotated[str | None, tyro.conf.arg(aliases=["--device"])] = None
    """cpu, cuda, mps ... Default: what accelerate finds."""
    checkpoint_minutes: float = 5.0
    """Wall time between two checkpoints; 0: only by steps."""
    checkpoint_steps: int = 0
    """Steps between two checkpoints; 0: only by time."""
    sample_steps: int = 500
    """Steps between two sample grids; 0: only at the end."""
    log_steps: int = 20
    """Steps between two metric records; losses are checked for non-finite values then and before every checkpoint."""
    coverage_steps: int = 0
    """Steps between two measures of how much of the real data the generator covers (FID, precision, recall, density, coverage);
    0: never. They change nothing in the run, and their time is not counted as training time."""
    coverage_samples: int = 2000
    """Real and generated images that such a measure compares."""
    trackers: tuple[str, ...] = ("tensorboard",)
    """Trackers of accelerate, beside metrics.jsonl; pass none with `--fit.trackers` and no value."""

    def __post_init__(self) -> None:
        _require(0 <= self.ema < 1, "fit.ema", self.ema, "a number in [0, 1)")
        _require(self.clip_norm >= 0, "fit.clip_norm", self.clip_norm, "0 or more")
        _require(self.log_steps >= 1, "fit.log_steps", self.log_steps, "at least 1")
        for name in ("checkpoint_minutes", "checkpoint_steps", "sample_steps", "coverage_steps"):
            _require(getattr(self, name) >= 0, f"fit.{name}", getattr(self, name), "0 or more")
        _require(self.coverage_samples >= 6, "fit.coverage_samples", self.coverage_samples, "at least 6")


@dataclass(frozen=True, kw_only=True)
class FeatureConfig:
    """How the classifier is trained whose features coverage is measured in. Figures of other settings are not comparable."""

    student: str = "resnet10:width=16"
    """Architecture; the input of its last layer are the features (128 of them for this one)."""
    epochs: int = 20
    """Passes over the training part, unless that is more than `max_steps`."""
    max_steps: int = 1000
    """Largest number of SGD steps."""
    batch_size: int = 128
    """Images per step."""
    lr: float = 0.05
    """SGD learning rate, with momentum 0.9 and a cosine schedule."""
    weight_decay: float = 5e-4
    """SGD weight decay."""
    augment: str = "crop"
    """Differentiable augmentation; `crop` moves images by up to an eighth."""
    seed: int = 0
    """Of the weights, the order of the images and the augmentation."""

    def __post_init__(self) -> None:
        for name in ("epochs", "max_steps", "batch_size"):
            _require(getattr(self, name) >= 1, f"features.{name}", getattr(self, name), "at least 1")
        _require(self.lr > 0, "features.lr", self.lr, "a positive number")
        _require(self.weight_decay >= 0, "features.weight_decay", self.weight_decay, "0 or more")


@dataclass(frozen=True, kw_only=True)
class ScoringConfig:
    """How small classifiers are trained on the training part to score its images for a coreset (`dim.coreset`)."""

    student: str = "convnet:width=16"
    """Architecture."""
    epochs: int = 20
    """Passes over the training part."""
    min_steps: int = 500
    """Smallest number of SGD steps: a small training part is passed more often."""
    runs: int = 1
    """Classifiers, with other weights and orders; scores are their mean."""
    batch_size: int = 64
    """Images per step."""
    lr: float = 0.05
    """SGD learning rate, with momentum 0.9."""
    schedule: Literal["step", "cosine", "constant"] = "cosine"
    """Of the learning rate, over the epochs."""
    weight_decay: float = 5e-4
    """SGD weight decay."""
    augment: str = "crop"
    """Differentiable augmentation while training; `crop` moves images by up to an eighth."""
    seed: int = 0
    """Of the weights, the order of the images and the augmentation."""

    def __post_init__(self) -> None:
        for name in ("epochs", "runs", "batch_size"):
            _require(getattr(self, name) >= 1, f"scoring.{name}", getattr(self, name), "at least 1")
        _require(self.min_steps >= 0, "scoring.min_steps", self.min_steps, "0 or more")
        _require(self.lr > 0, "scoring.lr", self.lr, "a positive number")
        _require(self.weight_decay >= 0, "scoring.weight_decay", self.weight_decay, "0 or more")


@dataclass(frozen=True, kw_only=True)
class ProtocolConfig:
    """How students are trained on a set or a stream. It travels with the run, so that its scores are comparable.

    The step budget of n images per class is `epochs * ceil(n * classes / batch_size)`, on both tracks, and every batch is full.
    A stored set is shuffled anew for every pass, and batches run on from one pass into the next. A set of a multiple of
    `batch_size`, and one of less than a batch, which is then fed whole, is thus passed over exactly `epochs` times. Another set
    is seen more often, each of its images as often as the others or once more: 100 images in batches of 64 take 2 steps per
    epoch, and these see 1.28 passes. (Published code ends every pass with a smaller batch, at the same number of steps.) A stream
    gives `batch_size` fresh images at every step, also where its budget stands for a smaller set.
    """

    students: Annotated[tuple[str, ...], tyro.conf.arg(aliases=["--students"])] = ("convnet",)
    """Architectures: convnet, resnet10, resnet18, resnetap10, resnetap18, vgg11, alexnet, timm:NAME; options after the name as
    in `convnet:width=64,depth=3`."""
    epochs: int = 1000
    """Passes over a set of n images per class that its step budget stands for; more of them where the set does not divide into
    batches. Published: 1000."""
    full_epochs: int = 0
    """Passes over the full real data for the control row; 0: the largest step budget in the table."""
    batch_size: int = 64
    """Images per step."""
    lr: float = 0.01
    """SGD learning rate."""
    momentum: float = 0.9
    """SGD momentum."""
    weight_decay: float = 5e-4
    """SGD weight decay."""
    schedule: Literal["step", "cosine", "constant"] = "step"
    """`step`: a tenth of the learning rate in the second half (published)."""
    augment: str = "color|crop|cutout|flip|scale|rotate"
    """Differentiable augmentation (DSA, Zhao & Bilen 2021): `|` picks one family per batch, `_` applies all."""
    learned_lr: bool = True
    """Train on a set that carries a learned step size at that learning rate; everything else at `lr`."""
    zca: bool = False
    """Students see ZCA-whitened images, as MTT and its followers have it for CIFAR."""

    def __post_init__(self) -> None:
        _require(len(self.students) > 0, "protocol.students", self.students, "at least one architecture")
        for name in ("epochs", "batch_size"):
            _require(getattr(self, name) >= 1, f"protocol.{name}", getattr(self, name), "at least 1")
        _require(self.full_epochs >= 0, "protocol.full_epochs", self.full_epochs, "0 or more")
        _require(self.lr > 0, "protocol.lr", self.lr, "a positive number")
        _require(0 <= self.momentum < 1, "protocol.momentum", self.momentum, "a number in [0, 1)")
        _require(self.weight_decay >= 0, "protocol.weight_decay", self.weight_decay, "0 or more")

    def steps(self, images: int) -> int:
        """Step budget of a set of this many images: `epochs` times the batches that hold it, the last one perhaps not full."""
        return self.epochs * -(-images // self.batch_size)


@dataclass(frozen=True, kw_only=True)
class PolicyConfig:
    """Which of a generator's images a set takes. Sets stay nested: policies rank a fixed number of candidates of every class."""

    steps: tuple[Literal["filtered", "graded", "matched", "refined"], ...] = ()
    """One after another. `filtered`: leave the candidates in which the teacher sees their class most surely; `graded`: easy ones
    first, hard ones later; `matched`: groups whose feature statistics are those of the real class; `refined`, the last: move
    the latents of what was taken (--refine)."""
    candidates: int = 200
    """Images of every class that are ranked."""
    keep: float = 0.8
    """filtered: the share that is left."""
    half: int = 50
    """graded: the place that a candidate of median difficulty has."""

    def __post_init__(self) -> None:
        for name in ("candidates", "half"):
            _require(getattr(self, name) >= 1, f"policy.{name}", getattr(self, name), "at least 1")
        _require(0 < self.keep <= 1, "policy.keep", self.keep, "a number in (0, 1]")
        _require(len(set(self.steps)) == len(self.steps), "policy.steps", self.steps, "each policy once")
        _require("refined" not in self.steps[:-1], "policy.steps", self.steps, "'refined' as the last")


@dataclass(frozen=True, kw_only=True)
class RefineConfig:
    """The policy `refined`: latents are moved until their images serve better, by recorded experts (--teacher.folder)."""

    by: Literal["trajectory", "moments"] = "trajectory"
    """`trajectory`: students trained on the set should go where experts went. `moments`: the mean features of every class's
    images should be those of its real images, in experts of many ages."""
    blocks: tuple[int, ...] = (1, 10, 50)
    """Images per class at which a block ends. A block's images move together, beside the earlier ones, which stay."""
    steps: int = 150
    """Updates of a block."""
    lr: float = 0.1
    """Adam's learning rate, which falls to 0."""
    class_vectors: bool = True
    """Give every image its own copy of the vector of its class, and move it too, where the generator has one (gan, dim2023)."""
    ages: tuple[float, ...] = (0.0, 0.3, 0.3, 0.5)
    """The youngest, and for each block the oldest; the last is that of all later blocks. moments: experts that are asked, as
    parts of the recorded path. trajectory: start points, as parts of what is left of the path before the last target."""
    real: int = 32
    """moments: real images of every class per update."""
    student_steps: int = 20
    """trajectory: steps of the student (N)."""
    student_batch: int = 100
    """trajectory: images per student step, at most; the whole set while it is not larger."""
    span: tuple[float, ...] = (1.0, 3.0)
    """trajectory: recorded moments from start to target (M), for each block; the last is that of all later blocks."""
    distance: tuple[Literal["endpoint", "direction"], ...] = ("endpoint", "direction")
    """trajectory: for each block, whether students should end where experts went, or only go in that direction, however far; the
    last is that of all later blocks."""
    step_size: float = 0.03
    """trajectory: the student's learning rate."""
    augment: str = "color|crop|cutout|flip|scale|rotate"
    """trajectory: augmentation of the images, one draw per student step."""
    compile: Literal["auto", "on", "off"] = "auto"
    """trajectory: compile the derivatives; `auto` does it for as many student steps in a block as make it worth it."""

    def __post_init__(self) -> None:
        rising = all(low < high for low, high in itertools.pairwise((0, *self.blocks)))
        _require(bool(self.blocks) and rising, "refine.blocks", self.blocks, "rising numbers of images per class")
        for name in ("steps", "real", "student_steps", "student_batch"):
            _require(getattr(self, name) >= 1, f"refine.{name}", getattr(self, name), "at least 1")
        for name in ("lr", "step_size"):
            _require(getattr(self, name) > 0, f"refine.{name}", getattr(self, name), "a positive number")
        _require(bool(self.span) and min(self.span) > 0, "refine.span", self.span, "positive numbers")
        _require(bool(self.distance), "refine.distance", self.distance, "endpoint or direction, for one block or more")
        low, high = self.ages[0] if self.ages else 0.0, self.ages[1:]
        inside = len(high) > 0 and all(0 <= low <= age <= 1 for age in high)
        _require(inside, "refine.ages", self.ages, "two or more numbers in [0, 1], the smallest first")
        moving = self.by == "moments" or low < min(high)
        _require(moving, "refine.ages", self.ages, "the first below all others, as start points are drawn between them")


@dataclass(frozen=True, kw_only=True)
class AboutConfig:
    """What a recipe is for. It changes nothing in a run."""

    title: str = ""
    """One line."""
    source: str = ""
    """Paper and code that the settings come from, and where they depart."""
    expect: str = ""
    """Accuracy and time to expect, with the machine and the file under benchmarks/results/ that measured them."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One generator run: data, networks, two stages, pool, loop, and the protocol its sets are scored by."""

    about: AboutConfig = field(default_factory=AboutConfig)
    data: DataConfig = field(default_factory=DataConfig)
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    adversarial: AdversarialConfig = field(default_factory=AdversarialConfig)
    flow: FlowConfig = field(default_factory=FlowConfig)
    stage_one: StageConfig = field(default_factory=lambda: StageConfig(epochs=150, batch_size=128))
    """Adversarial training alone."""
    stage_two: StageConfig = field(default_factory=lambda: StageConfig(epochs=30, batch_size=128, lr=5e-5))
    """Adversarial training and logit matching, from stage one's weights and optimiser states."""
    matching: MatchingConfig = field(default_factory=MatchingConfig)
    pool: PoolConfig = field(default_factory=PoolConfig)
    path_matching: PathMatchingConfig = field(default_factory=PathMatchingConfig)
    fit: FitConfig = field(default_factory=FitConfig)
    protocol: ProtocolConfig = field(default_factory=ProtocolConfig)


@dataclass(frozen=True, kw_only=True)
class ExpertsConfig:
    """Recording experts: ordinary training on real data, with the weights kept along the way."""

    count: int = 100
    """Number of experts."""
    epochs: float = 50
    """Passes over the training data."""
    every: float = 1.0
    """Epochs between two recorded moments. The window of a distillation is counted in moments. Published: 1."""
    batch_size: int = 256
    """Images per step."""
    optimizer: Literal["sgd", "gsam"] = "sgd"
    """`sgd`, or sharpness-aware `gsam` (Zhuang et al. 2022), whose flat minima DATM matches."""
    lr: float = 0.01
    """Learning rate."""
    momentum: float = 0.0
    """Momentum. Published: 0."""
    weight_decay: float = 0.0
    """Weight decay. Published: 0."""
    rho: float = 0.01
    """gsam: radius of the perturbation."""
    alpha: float = 0.3
    """gsam: weight of the gradient's part that is orthogonal to the sharpness-aware one."""
    adaptive: bool = True
    """gsam: scale the perturbation by the weights."""
    augment: str = "color|crop|cutout|flip|scale|rotate"
    """Augmentation of real images."""
    storage: Literal["float32", "bfloat16"] = "float32"
    """How a weight is stored."""
    waypoints: int = 0
    """Keep so many checkpoints per expert, from which a convex path is made (MCT: 4). 0: keep every moment."""
    smooth: bool = False
    """Waypoints are means of their neighbours, as in MCT's published code."""
    together: int = 1
    """Experts that train side by side in one batched computation; on a GPU, where one alone leaves it idle."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the training step. It takes half a minute; `auto` does it for long recordings where a compiler is found."""
    seed: int = 0
    """Seed of all experts."""
    checkpoint_minutes: float = 5.0
    """Wall time between two saves of an unfinished expert's state; 0: none. Finished experts are always kept."""
    device: str | None = None
    """cpu, cuda, mps. Default: a GPU if there is one."""

    def __post_init__(self) -> None:
        for name in ("count", "batch_size", "together"):
            _require(getattr(self, name) >= 1, f"experts.{name}", getattr(self, name), "at least 1")
        for name in ("epochs", "every", "lr"):
            _require(getattr(self, name) > 0, f"experts.{name}", getattr(self, name), "a positive number")
        _require(self.epochs >= self.every, "experts.epochs", self.epochs, f"at least experts.every ({self.every:g})")
        _require(0 <= self.momentum < 1, "experts.momentum", self.momentum, "a number in [0, 1)")
        for name in ("weight_decay", "rho", "alpha", "checkpoint_minutes"):
            _require(getattr(self, name) >= 0, f"experts.{name}", getattr(self, name), "0 or more")
        _require(self.waypoints == 0 or self.waypoints >= 2, "experts.waypoints", self.waypoints, "0, or 2 or more")
        _require(self.waypoints or not self.smooth, "experts.smooth", self.smooth, "false where every moment is kept")


@dataclass(frozen=True, kw_only=True)
class TrajectoryConfig:
    """Matching a stretch of an expert's path: a student starts on it and should end where the expert went, or go that way."""

    steps: int = 50
    """Student steps per iteration (N)."""
    epochs: float = 2
    """Recorded moments from start to target (M); one is an epoch, unless `experts.every` says otherwise."""
    min_start: float = 0
    """First start point."""
    max_start: float = 20
    """Start points lie below this."""
    max_start_at_first: float | None = None
    """DATM: the bound at iteration 0, which grows linearly to `max_start`. Default: it does not grow."""
    grows_for: int = 0
    """DATM: iterations until the bound has grown."""
    continuous: bool = False
    """MCT: start anywhere between moments; targets stop at the path's end."""
    path: Literal["recorded", "convex"] = "recorded"
    """`recorded`: the checkpoints. `convex`: convex combinations of waypoints (MCT)."""
    waypoints: int = 4
    """convex, from a store that has every checkpoint: how many of them to use."""
    smooth: bool = False
    """convex, from a store that has every checkpoint: smooth the waypoints as MCT's published code does."""
    batch_size: int = 0
    """Synthetic images per student step; 0: all of them."""
    gradient: Literal["adjoint", "unroll", "frozen"] = "adjoint"
    """`adjoint`: exact, constant activation memory. `unroll`: exact, one graph over all steps (MTT and DATM as published).
    `frozen`: TESLA's formula, which leaves out how a step changes the next ones."""
    distance: Literal["endpoint", "direction"] = "endpoint"
    """`endpoint`: squared distance of where the student ends to where the expert went. `direction`: the same at the best length
    of the student's displacement, so that only its direction counts. Its gradient grows as the student's way shrinks, so that
    the learning rate is another one; the step size cannot be learned by it."""
    order: Literal["auto", "reverse-over-forward", "reverse-over-reverse", "forward-over-reverse"] = "auto"
    """How the second derivative is taken; all three are exact, and `auto` takes the fastest."""
    augment: str = "color|crop|cutout|flip|scale|rotate"
    """Augmentation of synthetic images, one draw per student step."""
    experts: int = 1
    """Experts matched per iteration, whose gradients are averaged."""
    together: bool = False
    """Match the experts of an iteration in one batched computation, on the same batches. On a GPU."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the derivatives. It takes about a minute; `auto` does it for long runs where a compiler is found."""
    offload: bool = False
    """Keep the student's N weight vectors in host memory."""

    def __post_init__(self) -> None:
        for name in ("steps", "experts"):
            _require(getattr(self, name) >= 1, f"trajectory.{name}", getattr(self, name), "at least 1")
        _require(self.batch_size >= 0, "trajectory.batch_size", self.batch_size, "0 (all) or more")
        _require(self.waypoints >= 2, "trajectory.waypoints", self.waypoints, "2 or more")
        _require(self.grows_for >= 0, "trajectory.grows_for", self.grows_for, "0 or more")
        grows = self.max_start_at_first is not None
        _require(grows == (self.grows_for > 0), "trajectory.grows_for", self.grows_for, "set together with max_start_at_first")
        batched = self.gradient == "unroll" and (self.compile == "on" or self.offload)
        _require(not batched, "trajectory.gradient", self.gradient, "adjoint or frozen, to compile or to offload")


@dataclass(frozen=True, kw_only=True)
class ImagesConfig:
    """The synthetic images."""

    ipc: int = 1
    """Images per class."""
    space: Literal["pixels", "latents"] = "pixels"
    """What is optimised. `pixels`: in normalised coordinates (whitened ones where students see whitened images). `latents`: a
    latent per image of a trained generator, whose weights stay as they are (GLaD, Cazenavette et al. 2023); images begin as its
    first ones of every class."""
    init: Literal["real", "confident", "noise"] = "real"
    """pixels: `real`: random real images; `confident`: ones that an expert classifies correctly (DATM); `noise`: Gaussian."""
    optimizer: Literal["sgd", "adam"] = "sgd"
    """`sgd` with momentum, as published for pixels; `adam`, whose steps do not depend on the size of the gradient."""
    lr: float = 100.0
    """Learning rate."""
    momentum: float = 0.5
    """SGD's momentum, or Adam's first beta."""

    def __post_init__(self) -> None:
        _require(self.ipc >= 1, "images.ipc", self.ipc, "1 or more images per class")
        _require(self.lr >= 0, "images.lr", self.lr, "0 or more")
        _require(0 <= self.momentum < 1, "images.momentum", self.momentum, "a number in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class LabelsConfig:
    """The synthetic images' labels."""

    kind: Literal["hard", "teacher", "learned"] = "hard"
    """`hard`: the class. `teacher`: probabilities that the matched expert gives at the target, refreshed every iteration
    (TESLA). `learned`: logits that begin as experts' and are then learned (DATM)."""
    init: Literal["right", "one"] = "right"
    """learned: logits begin as `right`, the mean over the experts that classify the image correctly; or as those of `one`
    expert, drawn from the store, also where it is wrong (published for CIFAR-100 at IPC 50)."""
    lr: float = 2.0
    """learned: SGD learning rate."""
    momentum: float = 0.9
    """learned: SGD momentum."""

    def __post_init__(self) -> None:
        logits = self.kind == "learned" or self.init == "right"
        expected = f"'right' where labels.kind is {self.kind!r}, as only 'learned' labels begin as logits"
        _require(logits, "labels.init", self.init, expected)
        _require(self.lr >= 0, "labels.lr", self.lr, "0 or more")
        _require(0 <= self.momentum < 1, "labels.momentum", self.momentum, "a number in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class StepSizeConfig:
    """The student's learned step size. It stays positive: updates are multiplicative, and equal to SGD's while they are small."""

    initial: float = 0.01
    """Where it begins."""
    lr: float = 1e-5
    """SGD learning rate."""
    momentum: float = 0.5
    """SGD momentum."""

    def __post_init__(self) -> None:
        _require(self.initial > 0, "step_size.initial", self.initial, "a positive number")
        _require(self.lr >= 0, "step_size.lr", self.lr, "0 or more")
        _require(0 <= self.momentum < 1, "step_size.momentum", self.momentum, "a number in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """The distillation loop: everything that is not the method."""

    iterations: int = 5000
    """Updates of the synthetic set; 0 leaves the initial one, a control."""
    skip_above: float = 0.0
    """An update whose loss is above this is skipped (DATM: 1.0); 0: only updates that are not finite are."""
    seed: Annotated[int, tyro.conf.arg(aliases=["--seed"])] = 0
    """Seed of the whole run."""
    tf32: bool = True
    """Allow TF32 matrix products on GPUs that have them."""
    device: Annotated[str | None, tyro.conf.arg(aliases=["--device"])] = None
    """cpu, cuda, mps. Default: a GPU if there is one."""
    checkpoint_minutes: float = 5.0
    """Wall time between two checkpoints; 0: only by iterations."""
    checkpoint_steps: int = 0
    """Iterations between two checkpoints; 0: only by time."""
    sample_steps: int = 500
    """Iterations between two pictures of the set; 0: only at the end."""
    log_steps: int = 10
    """Iterations between two metric records."""

    def __post_init__(self) -> None:
        _require(self.log_steps >= 1, "distill.log_steps", self.log_steps, "at least 1")
        for name in ("iterations", "skip_above", "checkpoint_minutes", "checkpoint_steps", "sample_steps"):
            _require(getattr(self, name) >= 0, f"distill.{name}", getattr(self, name), "0 or more")


@dataclass(frozen=True, kw_only=True)
class RecordConfig:
    """One recording of experts."""

    about: AboutConfig = field(default_factory=AboutConfig)
    student: str = "convnet"
    """Architecture of experts and students, as `dim evaluate --students` names it."""
    zca: bool = False
    """Experts and students see ZCA-whitened images."""
    data: DataConfig = field(default_factory=DataConfig)
    experts: ExpertsConfig = field(default_factory=ExpertsConfig)


@dataclass(frozen=True, kw_only=True)
class TrajectoryRecipe(RecordConfig):
    """One trajectory-matching setting: experts, what is matched, what is learned, and the protocol of its score."""

    trajectory: TrajectoryConfig = field(default_factory=TrajectoryConfig)
    images: ImagesConfig = field(default_factory=ImagesConfig)
    labels: LabelsConfig = field(default_factory=LabelsConfig)
    step_size: StepSizeConfig = field(default_factory=StepSizeConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    protocol: ProtocolConfig = field(default_factory=lambda: ProtocolConfig(batch_size=256))

    def __post_init__(self) -> None:
        if self.trajectory.distance == "direction":
            unlearned = "0 with trajectory.distance 'direction', by which a step size cannot be learned"
            _require(self.step_size.lr == 0, "step_size.lr", self.step_size.lr, unlearned)
            reachable = "below 1 with trajectory.distance 'direction', whose loss is at most 1 (0: skip nothing)"
            _require(self.distill.skip_above < 1, "distill.skip_above", self.distill.skip_above, reachable)


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as plain dictionaries, for JSON; without the options of other generators than its own, whose defaults may
    have changed when it is read again."""
    values = dataclasses.asdict(config)
    if isinstance(config, GeneratorConfig):
        return {key: value for key, value in values.items() if config.name in _GENERATOR_OPTIONS.get(key, (config.name,))}
    if isinstance(generator := getattr(config, "generator", None), GeneratorConfig):
        values["generator"] = to_dict(generator)
    return values


def to_toml(config: Any) -> str:
    """A configuration as TOML: a recipe that gives the same configuration again. Fields that are None are left out."""
    plain, tables = [], []
    for name, value in to_dict(config).items():
        if isinstance(value, dict):
            lines = [f"{key} = {_toml_value(item)}" for key, item in value.items() if item is not None]
            tables.append("\n".join([f"[{name}]", *lines]))
        elif value is not None:
            plain.append(f"{name} = {_toml_value(value)}")
    return "\n\n".join(["\n".join(plain)] * bool(plain) + tables) + "\n"


def _toml_value(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_toml_value, value)) + "]"
    return json.dumps(value, ensure_ascii=False)  # strings, numbers and booleans are written alike in JSON and TOML


def from_dict(cls: type[T], values: Mapping[str, Any], base: T | None = None, where: str = "") -> T:
    """Build a configuration from nested dictionaries, over the defaults of `base`.

    Raises:
        InputError: for an unknown key or a value of the wrong type, naming `where` it stands.
    """
    base = cls() if base is None else base
    hints = typing.get_type_hints(cls)
    changes = {}
    for key, value in values.items():
        name = f"{where}{key}"
        if key not in hints:
            raise InputError(f"unknown key {name!r} in {where.rstrip('.') or 'configuration'}. {nearest(key, hints)}")
        if dataclasses.is_dataclass(hints[key]):
            if not isinstance(value, Mapping):
                raise InputError(f"{name} is {value!r}: expected a table of settings")
            changes[key] = from_dict(hints[key], value, getattr(base, key), f"{name}.")
        else:
            changes[key] = _convert(value, hints[key], name)
    return dataclasses.replace(base, **changes)


def _convert(value: Any, hint: Any, name: str) -> Any:
    """Check a parsed value against a field's annotation; lists become tuples and integers become floats."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if any(type(value) is type(known) and value == known for known in arguments):
            return value
        raise InputError(f"{name} is {value!r}: expected one of {', '.join(map(repr, arguments))}")
    if origin in (types.UnionType, typing.Union):  # Python 3.11 gives the second for `Literal[...] | None`
        if value is None and types.NoneType in arguments:
            return None
        return _convert(value, next(a for a in arguments if a is not types.NoneType), name)
    if origin is tuple:
        if not isinstance(value, (list, tuple)) or (arguments[-1] is not ... and len(value) != len(arguments)):
            raise InputError(f"{name} is {value!r}: expected a list")
        return tuple(_convert(item, arguments[0], name) for item in value)
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise InputError(f"{name} is {value!r}: expected a finite number")
        return float(value)
    if isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    raise InputError(f"{name} is {value!r}: expected {hint.__name__}")


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    folder = resources.files("dim.recipes")
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


Recipe = TrainConfig | TrajectoryRecipe


def load_recipe(name: str) -> Recipe:
    """A recipe that comes with the package, by name, or a TOML file of the same form, by path.

    Returns:
        A `TrajectoryRecipe` if it has a table `[trajectory]` or `[experts]`, else a `TrainConfig`.

    Raises:
        InputError: if there is no such recipe or file, or it does not parse.
    """
    if name.endswith(".toml"):
        path = Path(name)
        if not path.is_file():
            raise InputError(f"no recipe file {name}: expected a path to a TOML file")
        text = path.read_text()
    elif name in recipe_names():
        text = (resources.files("dim.recipes") / f"{name}.toml").read_text()
    else:
        raise InputError(f"unknown recipe {name!r}. {nearest(name, recipe_names())} A path must end in .toml.")
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"recipe {name} is not valid TOML: {error}") from None
    return from_dict(TrajectoryRecipe if {"trajectory", "experts"} & values.keys() else TrainConfig, values)


def load_recipe_for(command: str, name: str) -> Any:
    """A recipe for one command: `train` takes a `TrainConfig`, `experts` and `distill` a `TrajectoryRecipe`.

    Raises:
        InputError: if it is one for another command.
    """
    recipe = load_recipe(name)
    if command == "train" and not isinstance(recipe, TrainConfig):
        raise InputError(f"recipe {name!r} is for 'dim experts' and 'dim distill': it trains no generator")
    if command != "train" and not isinstance(recipe, TrajectoryRecipe):
        raise InputError(f"recipe {name!r} is for 'dim train': expected one with a table [trajectory] (see 'dim recipes')")
    return recipe
