"""The type that every generator has, and how it turns (seed, class, index) into images.

Image i of class k depends on (generator, seed, k, i) only. Two things make that hold bit by bit. The latent is drawn by
a counter-based generator keyed with (k, i). And since kernels round differently at different batch sizes, positions
and thread counts, networks always run on blocks of one size, which the size of the images and the kind of device settle, an
image always takes the same row of its block, and on the CPU a block is computed by one thread; several blocks run side by side.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dim import rng
from dim.chunks import DRAWN, chunk_size
from dim.classes import class_numbers, whole_number
from dim.config import GENERATORS, GeneratorConfig, from_dict
from dim.errors import InputError
from dim.spec import DataSpec, to_uint8

# Images of a block, and bytes of them in float32 above which there are fewer: beyond 147 pixels in colour.
_COMPUTED = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
BLOCK_CPU, BLOCK_CPU_BYTES = 16, 4 * 2**20
BLOCK_ACCELERATOR, BLOCK_ACCELERATOR_BYTES = 256, 64 * 2**20


class Generator(nn.Module):
    """A conditional generator: the stored data set.

    Args:
        spec: the data it stands for.
        latent_dim: width Z of the latents.
        class_dim: width E of the vector by which the network knows a class. A latent may carry E more values, which are added to
            that vector for its image alone; without them nothing is added. 0: this network takes none.

    Attributes:
        sampler_options: which fields of its configuration, `config`, are options of its sampler.
        learns_by: how it is trained: against an `adversary`, or by regression of a `flow` or of `denoising`.
        settings: sections of a `TrainConfig`, or single settings, that only such training uses.
        anchors: float32 (classes, n, Z) or (classes, n, Z + E), or None: see `anchor`.
        spread: float32 (), beside them.
        file_bytes: of the coded file that it was read from; None: there is none.
    """

    file_bytes: int | None = None
    sampler_options: tuple[str, ...] = ()
    learns_by: Literal["adversary", "flow", "denoising"] = "adversary"
    settings: tuple[str, ...] = ("adversarial", "discriminator")
    config: GeneratorConfig
    anchors: Tensor | None
    spread: Tensor | None

    def __init__(self, spec: DataSpec, latent_dim: int, class_dim: int = 0) -> None:
        super().__init__()
        self.spec = spec
        self.latent_dim, self.class_dim = latent_dim, class_dim
        self.register_buffer("anchors", None)
        self.register_buffer("spread", None)

    @staticmethod
    def begins_from_files(config: GeneratorConfig) -> bool:
        """Whether a new one, with this `config`, begins from weights that lie in files, and so cannot be made without them."""
        return False

    @property
    def sampler(self) -> dict[str, Any]:
        """Options of the sampler, by name: none where an image is one pass of the network."""
        return {name: getattr(self.config, name) for name in self.sampler_options}

    def configure(self, **options: Any) -> Self:
        """Change `options` of the sampler, in place: those that `sampler_options` names. Returns the generator.

        Raises:
            InputError: if this generator has no such option, or it cannot have that value.
        """
        for name in [name for name in options if name not in self.sampler_options]:
            has = ", ".join(self.sampler_options)
            known = f"it has {has}" if has else "an image is one pass of this network, without options"
            raise InputError(f"unknown sampler option {name} ({options[name]!r}): {known}")
        if options:
            config = from_dict(GeneratorConfig, options, self.config, "generator.")
            self.check_sampler(config)
            self.config = config
        return self

    def check_sampler(self, config: GeneratorConfig) -> None:
        """Raise InputError for options of the sampler in `config` that this network cannot have, though others can."""

    def architecture(self) -> dict[str, Any]:
        """What `build_generator` needs beside the configuration to make these networks again, as JSON values."""
        return {}

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        """(B, Z) or (B, Z + E) float latents `z`, standard normal in Z, and (B,) int64 labels `y` -> (B, C, H, W) float images
        in [-1, 1]."""
        raise NotImplementedError

    def conditioned(self, vectors: Tensor, z: Tensor) -> Tensor:
        """What the network takes in: the vectors of the classes, moved as the latents say, beside the latents' first Z values.
        `vectors` (B, E), `z` (B, Z) or (B, Z + E) -> (B, E + Z)."""
        self.require_width(z.shape[1])
        own = vectors.to(z.dtype)
        if z.shape[1] > self.latent_dim:
            own, z = own + z[:, self.latent_dim :], z[:, : self.latent_dim]
        return torch.cat((own, z), dim=1)

    def anchor(self, anchors: Tensor, spread: float) -> Self:
        """Choose, in place, the latents around which images are made: image i of a class gets number i modulo n of its anchors,
        the first n images exactly so, and later ones with `spread` times a Gaussian latent of their own added.

        Args:
            anchors: float (classes, n, Z) or (classes, n, Z + E).
            spread: 0 or more; at 0 images repeat. Nothing is added to the E values about the class.

        Raises:
            InputError: for another shape, or a negative spread.
        """
        classes = self.spec.num_classes
        if anchors.ndim != 3 or anchors.shape[0] != classes or anchors.shape[1] == 0:
            raise InputError(f"anchors have shape {tuple(anchors.shape)}: expected ({classes}, n, {self.latent_dim})")
        self.require_width(anchors.shape[2])
        require_spread(spread)
        self.anchors = anchors.detach().to(self.device, torch.float32, copy=True)
        self.spread = torch.tensor(spread, dtype=torch.float32, device=self.device)
        self.file_bytes = None
        return self

    def require_width(self, width: int) -> None:
        """Raise InputError if `width`, that of latents, is neither Z nor Z + E."""
        if width not in (self.latent_dim, self.latent_dim + self.class_dim):
            wider = f", or {self.latent_dim + self.class_dim} with class vectors" if self.class_dim else ""
            raise InputError(f"latents are {width} wide: expected {self.latent_dim}{wider}")

    @property
    def device(self) -> torch.device:
        """Where its parameters are."""
        return next(self.parameters()).device

    def arithmetic(self) -> torch.dtype:
        """What its weights are held in, and latents are given in.

        Raises:
            InputError: if nothing can be computed in it.
        """
        kinds = {parameter.dtype for parameter in self.parameters() if parameter.is_floating_point() or parameter.is_complex()}
        if self.device.type == "meta" or len(kinds) > 1 or not kinds <= set(_COMPUTED):
            found = "without values" if self.device.type == "meta" else " and ".join(sorted(map(str, kinds)))
            expected = f"one of {', '.join(map(str, _COMPUTED))} for all; .float() makes them so"
            raise InputError(f"the generator's weights are {found}: expected {expected}")
        return next(self.parameters()).dtype

    def latents(self, labels: Tensor, indices: Tensor, *, seed: int) -> Tensor:
        """Latents of images number `indices` of classes `labels`, in the data set that `seed` names: int64 (B,), (B,) -> float32
        (B, Z), or (B, Z + E) around such anchors."""
        own = rng.normal(rng.fold(seed, "latent"), torch.stack((labels, indices), dim=1), self.latent_dim)
        if self.anchors is None:
            return own
        count = self.anchors.shape[1]
        nearest = self.anchors.to(own.device)[labels, indices % count]
        own = F.pad(own, (0, nearest.shape[1] - own.shape[1]))
        return nearest + torch.where(indices < count, 0.0, self.spread.to(own.device))[:, None] * own

    def sample(self, labels: Tensor, seed: int = 0) -> Tensor:
        """Generate one image per label: the first image of a class is number 0 of that class, the next number 1, ...

        Args:
            labels: (B,) in [0, classes): integers of any kind, class names, or one-hot vectors (B, classes). One label gives one
                image.
            seed: names the data set that the images belong to.

        Returns:
            float32 (B, C, H, W) in [-1, 1], on the generator's device; also of a generator in half precision.

        Raises:
            InputError: if a label is out of range, or something else.
        """
        labels = class_numbers(labels, self.spec.class_names)
        return self.images(labels, occurrence(labels), seed=seed)

    def images(self, labels: Tensor, indices: Tensor, *, seed: int, latents: Tensor | None = None) -> Tensor:
        """Generate images number `indices` of classes `labels`; bitwise independent of what else is asked for.

        Args:
            labels: int64 (B,), in [0, classes), on the CPU.
            indices: int64 (B,), 0 or more, on the CPU.
            seed: names the data set that the images belong to.
            latents: float32 (B, Z) or (B, Z + E) to use in place of those that the seed gives.

        Returns:
            float32 (B, C, H, W) in [-1, 1], on the generator's device.

        Raises:
            InputError: if a label or an index is out of range, or latents have another width.
        """
        seed, dtype = whole_number(seed, "seed"), self.arithmetic()
        if latents is not None:
            self.require_width(latents.shape[1])
        if len(labels) == 0:
            return torch.empty(0, *self.spec.image_shape, device=self.device)
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= self.spec.num_classes:
            wrong = low if low < 0 else high
            raise InputError(f"label {wrong} is out of range: {self.spec.name} has classes 0 to {self.spec.num_classes - 1}")
        if int(indices.min()) < 0:
            raise InputError(f"image index {int(indices.min())}: expected 0 or more")
        block = block_size(self.spec, self.device)
        # An odd multiplier spreads both a single class and a balanced set evenly over the rows of a block.
        rows = (indices * (self.spec.num_classes | 1) + labels) % block
        blocks = occurrence(rows)
        count = int(blocks.max()) + 1
        label_table = torch.zeros(count, block, dtype=torch.int64)
        index_table = torch.zeros(count, block, dtype=torch.int64)
        label_table[blocks, rows] = labels
        index_table[blocks, rows] = indices
        label_table, index_table = label_table.to(self.device), index_table.to(self.device)
        latent_table = None
        if latents is not None:
            latent_table = torch.zeros(count, block, latents.shape[1], device=self.device)
            latent_table[blocks, rows] = latents.to(self.device)

        output = torch.empty(len(labels), *self.spec.image_shape, device=self.device)
        places = torch.argsort(blocks, stable=True).split(torch.bincount(blocks).tolist())  # block by block

        def run(number: int) -> None:
            with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
                y = label_table[number]
                z = self.latents(y, index_table[number], seed=seed) if latent_table is None else latent_table[number]
                own = places[number]
                output[own.to(self.device)] = self(z.to(dtype), y).float()[rows[own].to(self.device)]

        training = self.training
        self.eval()
        try:
            _run_blocks(run, count, self.device)
        finally:
            self.train(training)
        return output

    def pixels(
        self, labels: Tensor, indices: Tensor, *, seed: int, latents: Tensor | None = None, batch_size: int = 2048
    ) -> Tensor:
        """`images`, of any number, with 8 bits per channel: uint8 (B, C, H, W) on the CPU.

        Args:
            labels, indices, seed, latents: see `images`.
            batch_size: the most images generated at a time, fewer if they are large; it bounds memory and changes nothing else.

        Raises:
            InputError: see `images`; or if an image has values that are not finite.
        """
        result = torch.empty(len(labels), *self.spec.image_shape, dtype=torch.uint8)
        # Several blocks at least, as fewer images leave much of them empty.
        size = min(
            batch_size, max(4 * block_size(self.spec, self.device), chunk_size(4 * self.spec.image_bytes, batch_size, DRAWN))
        )
        for some in torch.arange(len(labels)).split(size):
            own = None if latents is None else latents[some]
            part = self.images(labels[some], indices[some], seed=seed, latents=own)
            if not bool(part.isfinite().all()):
                remedy = "its weights or latents are damaged, or were trained to values that this device cannot compute"
                raise InputError(f"the generator makes images with values that are not finite: {remedy}")
            result[int(some[0]) : int(some[-1]) + 1] = to_uint8(part).cpu()
        return result


def require_generator(generator: Any) -> None:
    """Raise InputError for what is no generator, such as the name of one."""
    if not callable(getattr(generator, "images", None)):
        found = repr(generator) if isinstance(generator, str) else f"a {type(generator).__name__}"
        raise InputError(f"generator is {found}: expected a generator, as dim.load_generator gives one")


def block_size(spec: DataSpec, device: torch.device) -> int:
    """Images that a network makes at a time: a power of two, so that odd multipliers spread images over all rows."""
    on_cpu = device.type == "cpu"
    most, budget = (BLOCK_CPU, BLOCK_CPU_BYTES) if on_cpu else (BLOCK_ACCELERATOR, BLOCK_ACCELERATOR_BYTES)
    return 1 << (chunk_size(4 * spec.image_bytes, most, budget).bit_length() - 1)


def _run_blocks(run: Callable[[int], None], count: int, device: torch.device) -> None:
    """Compute every block the same way, whatever the number of threads: one thread a block on the CPU."""
    if device.type != "cpu":
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
            for number in range(count):
                run(number)
            return
    with _one_thread_each() as threads:
        if threads == 1 or count == 1:
            for number in range(count):
                run(number)
            return
        with ThreadPoolExecutor(min(threads, count)) as pool:
            for _ in pool.map(run, range(count)):
                pass


@contextlib.contextmanager
def _one_thread_each() -> Iterator[int]:
    """Within the block a tensor operation uses one thread; yields how many threads there are to share out."""
    threads = torch.get_num_threads()
    if threads > 1:
        torch.set_num_threads(1)
    try:
        yield threads
    finally:
        if threads > 1:
            torch.set_num_threads(threads)


def require_spread(spread: float) -> None:
    """Raise InputError for a spread that `Generator.anchor` cannot have."""
    if not 0 <= spread < math.inf:
        raise InputError(f"spread is {spread}: expected 0 or more")


def occurrence(values: Tensor) -> Tensor:
    """How often each value has stood earlier in the list: [3, 5, 3, 3] -> [0, 0, 1, 2]. int64 (B,) -> int64 (B,)."""
    order = torch.argsort(values, stable=True)
    ordered = values[order]
    first = torch.searchsorted(ordered, ordered)  # where the run of equal values begins
    result = torch.empty_like(values)
    result[order] = torch.arange(len(values)) - first
    return result


def build_generator(
    config: GeneratorConfig, spec: DataSpec, *, seed: int, architecture: dict[str, Any] | None = None
) -> Generator:
    """Build a generator on the CPU, with weights initialised from `seed`, or those of the pipeline that it starts from.

    Args:
        config: which generator, and its options.
        spec: the data.
        seed: of the initialisation.
        architecture: what `Generator.architecture` said: the pipeline that it once started from is not read again, and weights
            are to be loaded.

    Raises:
        InputError: if the architecture cannot make images of this size, or the pipeline to start from cannot be used.
    """
    more = {"architecture": architecture} if architecture else {}
    with rng.initialisation(seed, "generator"):
        return GENERATORS.load(config.name)(spec, config, **more)
