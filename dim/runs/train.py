"""The training loop: two stages over one step, whatever the data, the networks and the objectives.

Every draw is a function of (seed, step), so a checkpoint holds weights, optimiser states, the pool and a step number, and
a resumed run continues bit by bit (on the CPU).
"""

import copy
import math
import os
import signal
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from dim import rng
from dim.config import ADVERSARIES, StageConfig, TrainConfig, to_dict
from dim.data.real import EpochBatches, RealData
from dim.errors import InputError
from dim.io import load_tensors, save_tensors
from dim.loop import Interrupted, NonFiniteError, Progress, stop_signals
from dim.nets.discriminators import build_discriminator
from dim.nets.generator import Generator, build_generator
from dim.nets.generator_file import FILE_NAME, save_generator_file
from dim.nets.student import check_protocol
from dim.objectives import Objective
from dim.objectives.denoising import Denoising
from dim.objectives.flow import FlowMatching
from dim.objectives.logit import PoolMatching
from dim.objectives.path_matching import PathMatching
from dim.pictures import grid, save_png
from dim.pool import build_pool
from dim.run_folder import (
    CHECKPOINT,
    FAILED,
    MAY_CHANGE,
    append_metrics,
    check_same_run,
    open_run,
    prefixed,
    require_free_run,
    run_description,
    unprefixed,
)
from dim.score.coverage import Coverage

# What may change when a run is resumed: nothing that the weights depend on.
_MAY_CHANGE = (
    *MAY_CHANGE,
    "fit.checkpoint_minutes",
    "fit.checkpoint_steps",
    "fit.sample_steps",
    "fit.coverage_steps",
    "fit.coverage_samples",
    "fit.log_steps",
    "fit.trackers",
    "pool.experts",
    "path_matching.experts",
)


@dataclass(frozen=True)
class _Stage:
    """A span of steps with its settings."""

    name: str
    config: StageConfig
    start: int
    stop: int
    matching: bool

    def scheduled(self, step: int, first: float, last: float | None) -> float:
        """A value at a step: constant, or a half cosine from the stage's first step to its end, where it stays."""
        if last is None:
            return first
        progress = min(1.0, (step - self.start) / max(1, self.stop - self.start))
        return last + (first - last) * (1 + math.cos(math.pi * progress)) / 2

    def lr(self, step: int) -> float:
        """Learning rate at a step."""
        return self.scheduled(step, self.config.lr, self.config.lr_end)

    def settings(self, step: int) -> dict[str, Any]:
        """What the optimisers' settings are at a step."""
        beta1, beta2 = self.config.betas
        return {"lr": self.lr(step), "betas": (beta1, self.scheduled(step, beta2, self.config.beta2_end))}


def make_accelerator(config: TrainConfig, out: Path) -> Accelerator:
    """The accelerator that a configuration asks for.

    Raises:
        InputError: if the device is not there.
    """
    device = config.fit.device
    if device not in (None, "cpu", "cuda", "mps"):
        raise InputError(f"fit.device is {device!r}: expected cpu, cuda or mps (for one of several GPUs: accelerate launch)")
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("fit.device is 'cuda': no CUDA device is available; leave the option out")
    if device == "mps" and not torch.backends.mps.is_available():
        raise InputError("fit.device is 'mps': no MPS device is available; leave the option out")
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        # accelerate keeps one state per process; a second run in this process may differ in device and precision.
        AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(
        cpu=device == "cpu" or not torch.accelerator.is_available(),
        mixed_precision=config.fit.precision,
        log_with=list(config.fit.trackers) or None,
        project_dir=str(out),
    )


def fit(
    config: TrainConfig, data: RealData, out: Path | str, *, resume: bool = False, accelerator: Accelerator | None = None
) -> Path:
    """Train a generator and leave a run folder.

    Args:
        config: everything about the run.
        data: the real data; images on the accelerator's device.
        out: the run folder: generator.safetensors (the result), checkpoint.safetensors, run.json, metrics.jsonl, samples/.
        resume: continue the run that lies there.
        accelerator: from `make_accelerator`; made here if absent.

    Returns:
        The run folder.

    Raises:
        InputError: if `out` holds something else, or the run there has other settings or another data set.
        NonFiniteError: if a loss is not finite.
        Interrupted: after Ctrl-C or SIGTERM, when the state has been saved.
    """
    out = Path(out)
    accelerator = accelerator or make_accelerator(config, out)
    return Trainer(config, data, out, accelerator, resume=resume).run()


class Trainer:
    """One run: its networks, its optimisers, and the loop over steps."""

    def __init__(self, config: TrainConfig, data: RealData, out: Path, accelerator: Accelerator, *, resume: bool) -> None:
        self.config, self.data, self.out, self.accelerator = config, data, out, accelerator
        self.step = 0
        self.seconds = 0.0
        self._coverage: Coverage | None = None
        # A run that was killed before its first checkpoint is resumed from the beginning.
        resume = resume and check_same_run(out, config, data.spec, may_change=_MAY_CHANGE) and (out / CHECKPOINT).is_file()
        if not resume and accelerator.is_main_process:
            require_free_run(out)
        accelerator.wait_for_everyone()
        spec, device, seed = data.spec, accelerator.device, config.fit.seed
        self.format = torch.channels_last if config.fit.channels_last else torch.contiguous_format
        held = load_tensors(out / CHECKPOINT, device) if resume else None
        architecture = held[1].get("architecture") if held else None
        generator = build_generator(config.generator, spec, seed=seed, architecture=architecture)
        self.generator = generator.to(device, memory_format=self.format)
        self.average: Generator | None = None
        if config.fit.ema > 0:
            self.average = copy.deepcopy(self.generator).requires_grad_(False)
        self.stages = self._plan()
        self.optimizers = {"generator": self._optimizer(self.generator)}
        self.adversary: Any = None
        self.flow: FlowMatching | Denoising | None = None
        if self.generator.learns_by == "adversary":
            self.adversary = self._build_adversary()
        else:
            regression = {"flow": FlowMatching, "denoising": Denoising}[self.generator.learns_by]
            steps = self.stages[0].stop
            self.flow = regression.of_run(config.flow, steps=steps, seed=seed, rank=accelerator.process_index)
        # Made here although stage two may be hours away, so that an impossible setting is found now.
        self.pool = build_pool(
            config.pool,
            data,
            steps=self.stages[1].stop - self.stages[1].start,
            steps_per_epoch=max(1, len(data.train) // config.stage_two.batch_size),
            first_step=self.stages[1].start,
            seed=seed,
            device=device,
            channels_last=config.fit.channels_last,
            rank=accelerator.process_index,
            average=self._average_gradients,
        )
        self.matching = PoolMatching(self.pool, config.matching, spec, seed=seed, rank=accelerator.process_index)
        self.path_matching: PathMatching | None = None
        if config.path_matching.weight > 0:
            first = self.stages[1].start
            place = {"device": device, "rank": accelerator.process_index}
            self.path_matching = PathMatching(config.path_matching, data, first_step=first, seed=seed, **place)
        check_protocol(config.protocol, spec)
        if held:
            self._load(*held)

    def _optimizer(self, network: nn.Module) -> torch.optim.Optimizer:
        trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
        first = self.config.stage_one
        return torch.optim.Adam(trained, lr=first.lr, betas=first.betas, fused=True)

    def _build_adversary(self) -> Any:
        """The discriminator with its optimiser and its loss."""
        config, seed, spec = self.config, self.config.fit.seed, self.data.spec
        kind = ADVERSARIES.load(config.adversarial.loss)
        network = build_discriminator(kind.network, config.discriminator, spec, seed=seed)
        self.discriminator = network.to(self.accelerator.device, memory_format=self.format)
        self.optimizers["discriminator"] = self._optimizer(self.discriminator)
        common = (self.discriminator, self.optimizers["discriminator"], config.adversarial, spec)
        shared = {"seed": seed, "finish": self._finish_gradients, "rank": self.accelerator.process_index}
        mean = lambda value: self.accelerator.reduce(value, reduction="mean")  # noqa: E731
        return kind.of_run(*common, **shared, scheduled=self.stages[0].scheduled, mean=mean)

    def _plan(self) -> list[_Stage]:
        stages, start = [], 0
        for name, settings, matching in (("one", self.config.stage_one, False), ("two", self.config.stage_two, True)):
            steps = round(settings.epochs * len(self.data.train) / settings.batch_size)
            stages.append(_Stage(name, settings, start, start + steps, matching and self.config.matching.weight > 0))
            start += steps
        if start == 0:
            raise InputError("stage_one.epochs and stage_two.epochs are both 0: nothing to train")
        return stages

    @property
    def total_steps(self) -> int:
        """Steps of both stages."""
        return self.stages[-1].stop

    @property
    def result(self) -> Generator:
        """The generator that is the product: the average if there is one."""
        return self.generator if self.average is None else self.average

    def run(self) -> Path:
        """Train from the current step to the end and write the result."""
        config, accelerator = self.config, self.accelerator
        if accelerator.device.type == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = config.fit.tf32
        if accelerator.is_main_process:
            open_run(self.out, run_description(config, self.data.spec, accelerator.device), self.step)
        if config.fit.trackers:
            kwargs = {"tensorboard": {"purge_step": self.step}} if "tensorboard" in config.fit.trackers else {}
            accelerator.init_trackers("tensorboard", init_kwargs=kwargs)
        if config.fit.coverage_steps and self._main:
            self._coverage = Coverage(self.data, samples=config.fit.coverage_samples)
        self._saved_at = time.monotonic()
        self._started = self._saved_at - self.seconds
        progress = Progress("train", self.total_steps, self.step, show=self._main)
        with stop_signals() as asked, progress:
            try:
                for stage in self.stages:
                    if self.step < stage.stop:
                        self._run_stage(stage, progress, asked)
            except KeyboardInterrupt:
                # The step may be half done, so the last checkpoint stands.
                done = f"stopped at once in step {self.step + 1} of {self.total_steps}, without saving"
                raise Interrupted(f"{done}; continue with: dim train --out {self.out} --resume", signal.SIGINT) from None
        self._save(final=True)
        accelerator.wait_for_everyone()
        accelerator.end_training()
        return self.out

    @property
    def _main(self) -> bool:
        return self.accelerator.is_main_process

    def _run_stage(self, stage: _Stage, progress: Progress, asked: list[int]) -> None:
        config, accelerator = self.config, self.accelerator
        world, rank, seed = accelerator.num_processes, accelerator.process_index, config.fit.seed
        share = {"rank": rank, "world": world}
        batches = EpochBatches(self.data.train, stage.config.batch_size, seed=seed, purpose=f"stage-{stage.name}", **share)
        objectives: list[Objective] = [self.adversary] if self.adversary else []
        upkeep: EpochBatches | None = None
        if stage.matching:
            upkeep = EpochBatches(self.data.train, stage.config.batch_size, seed=seed, purpose="pool", **share)
            objectives.append(self.matching)
        if stage.name == "two" and self.path_matching is not None:
            objectives.append(self.path_matching)
        self.generator.train()
        sums: dict[str, Tensor] = {}
        counts: Counter[str] = Counter()
        while self.step < stage.stop:
            for optimizer in self.optimizers.values():
                optimizer.param_groups[0].update(stage.settings(self.step))
            losses = self.train_step(stage, batches, upkeep, objectives)
            self.step += 1
            counts.update(losses.keys())
            for name, value in losses.items():
                sums[name] = sums[name] + value if name in sums else value
            progress.advance()
            if self.step % config.fit.log_steps == 0 or self.step == stage.stop:
                self._log(stage, sums, counts, progress)
                sums, counts = {}, Counter()
            self._periodic(sums, stage)
            self._stop_if_asked(asked)

    def train_step(
        self, stage: _Stage, batches: EpochBatches, upkeep: EpochBatches | None, objectives: Iterable[Objective]
    ) -> dict[str, Tensor]:
        """One step: upkeep of the pool, one step of the discriminator, one of the generator. Detached losses by name."""
        config, accelerator, step = self.config, self.accelerator, self.step
        losses: dict[str, Tensor] = {}
        real, labels = batches.at(step - stage.start)
        real = real.contiguous(memory_format=self.format)
        with accelerator.autocast():
            if upkeep is not None:
                for part, number in enumerate(self.pool.due(step)):
                    images, classes = upkeep.at(number)
                    if self.pool.learns_from_generated:
                        with torch.no_grad():
                            images = self._generate(classes, "pool-latent", step, part).float()
                        torch.clear_autocast_cache()  # its casts of the weights have no gradient
                    losses["pool"] = self.pool.advance(images, classes, step, part)
            if self.flow is not None:
                losses |= self.flow.regress(self.generator, real, labels, step=step)
            if objectives:
                generated = self._generate(labels, "train-latent", step)
                images = generated.detach().float().requires_grad_()
                if self.adversary is not None:
                    losses |= self.adversary.advance(images, labels, real=real, step=step)
                for objective in objectives:
                    losses |= objective.accumulate(images, labels, real=real, step=step)
        if objectives:
            generated.backward(images.grad.to(generated.dtype))
        norm = self._finish_gradients(self.generator.parameters())
        self.optimizers["generator"].step()
        self.optimizers["generator"].zero_grad()
        if self.average is not None:
            update_average(self.average, self.generator, step, config.fit.ema)
        if norm is not None:
            losses["gradient_norm"] = norm.detach()
        return losses

    def _generate(self, labels: Tensor, purpose: str, *place: int) -> Tensor:
        """Images of these classes from latents of this purpose and place, with a graph."""
        place = (*place, self.accelerator.process_index)
        source = rng.generator(self.config.fit.seed, purpose, *place, device=labels.device)
        z = torch.randn(len(labels), self.generator.latent_dim, generator=source, device=labels.device)
        return self.generator(z, labels)

    # --- gradients -----------------------------------------------------------------------------------------------------

    def _average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Average gradients over processes in one transfer. Networks here run several times per step, with gradients of
        gradients, which a DistributedDataParallel wrapper does not allow."""
        if self.accelerator.num_processes == 1:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        flat = self.accelerator.reduce(flat, reduction="mean")
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def _finish_gradients(self, parameters: Iterable[nn.Parameter]) -> Tensor | None:
        parameters = list(parameters)
        self._average_gradients(parameters)
        if self.config.fit.clip_norm > 0:
            return torch.nn.utils.clip_grad_norm_(parameters, self.config.fit.clip_norm)
        return None

    # --- what happens between steps ------------------------------------------------------------------------------------

    def _log(self, stage: _Stage, sums: dict[str, Tensor], counts: Counter[str], progress: Progress) -> None:
        values = {name: total / counts[name] for name, total in self._read(sums).items()}
        self._require_finite(values)
        if not self._main:
            return
        values["lr"] = stage.lr(self.step - 1)
        self.accelerator.log(values, step=self.step)
        append_metrics(self.out, {"step": self.step, "stage": stage.name, "seconds": round(self._elapsed(), 2), **values})
        wanted = ("critic", "class", "flow", "mean_flow", "denoising", "matching", "trajectory", "pool")
        shown = {name: values[name] for name in wanted if name in values}
        progress.show(shown, note=f"stage {stage.name}")

    @staticmethod
    def _read(sums: dict[str, Tensor]) -> dict[str, float]:
        """Accumulated losses; the one place of the loop where the host waits for the device."""
        if not sums:
            return {}
        return dict(zip(sums, torch.stack([value.float() for value in sums.values()]).tolist(), strict=True))

    def _require_finite(self, values: dict[str, float]) -> None:
        bad = {name: value for name, value in values.items() if not math.isfinite(value)}
        if not bad:
            return
        if self._main:
            save_tensors(self.out / FAILED, self._tensors(), self._metadata())
        name, value = next(iter(bad.items()))
        kept = self.out / CHECKPOINT
        remedy = f"the last good state is {kept}" if kept.exists() else "no checkpoint had been written yet"
        raise NonFiniteError(
            f"step {self.step}: loss {name!r} is {value}. The state is saved in {self.out / FAILED}; {remedy}. "
            "Try a lower learning rate, or gradient clipping (--fit.clip-norm 1)"
        )

    def _periodic(self, sums: dict[str, Tensor], stage: _Stage) -> None:
        """Measure, checkpoint and sample grid when they are due."""
        fit_config = self.config.fit
        if self._coverage and (self.step % fit_config.coverage_steps == 0 or self.step == self.total_steps):
            self._measure(stage, self._coverage)  # first, so that a resumed run has the record of its checkpoint's step
        if self.step == self.total_steps:
            return  # the end writes both
        due = fit_config.checkpoint_steps > 0 and self.step % fit_config.checkpoint_steps == 0
        if fit_config.checkpoint_minutes > 0:
            due |= time.monotonic() - self._saved_at >= 60 * fit_config.checkpoint_minutes
        if due:
            self._require_finite(self._read(sums))
            self._save()
        if fit_config.sample_steps > 0 and self.step % fit_config.sample_steps == 0:
            self._save_grid()

    def _measure(self, stage: _Stage, coverage: Coverage) -> None:
        """Record how much of the real data the result covers, off the clock. Other processes wait at their next exchange."""
        began = time.monotonic()
        values = coverage.score(self.result).metrics
        self._started += time.monotonic() - began
        self.accelerator.log(values, step=self.step)
        append_metrics(self.out, {"step": self.step, "stage": stage.name, "seconds": round(self._elapsed(), 2), **values})

    def _stop_if_asked(self, asked: list[int]) -> None:
        if asked and self.step < self.total_steps:
            self._save()
            done = f"interrupted at step {self.step} of {self.total_steps}"
            raise Interrupted(f"{done}; continue with: dim train --out {self.out} --resume", asked[0])

    def _elapsed(self) -> float:
        return time.monotonic() - self._started

    def _save_grid(self) -> None:
        if self._main:
            save_png(self.out / "samples" / f"step-{self.step:07d}.png", sample_grid(self.result))

    # --- the run folder --------------------------------------------------------------------------------------------------

    def _metadata(self) -> dict[str, Any]:
        return {
            "format": 1,
            "kind": "checkpoint",
            "step": self.step,
            "seconds": self._elapsed(),
            "fingerprint": self.data.spec.fingerprint,
            "config": to_dict(self.config),
            "architecture": self.generator.architecture(),
        }

    def _tensors(self) -> dict[str, Tensor]:
        tensors = prefixed("generator", self.generator.state_dict())
        if self.adversary is not None:
            tensors |= prefixed("discriminator", self.discriminator.state_dict())
            tensors |= prefixed("adversary", self.adversary.state())
        if self.average is not None:
            tensors |= prefixed("average", self.average.state_dict())
        for name, optimizer in self.optimizers.items():
            for index, entries in optimizer.state_dict()["state"].items():
                tensors |= prefixed(f"optimizer.{name}.{index}", entries)
        tensors |= prefixed("pool", self.pool.state())
        if self.path_matching is not None:
            tensors |= prefixed("path_matching", self.path_matching.state())
        return tensors

    def _save(self, final: bool = False) -> None:
        """Write the checkpoint and the generator; with `final`, also the last grid."""
        tensors = self._tensors()
        finite = [value.isfinite().all() for value in tensors.values() if value.is_floating_point()]
        if not bool(torch.stack(finite).all()):
            self._require_finite({"weights": math.nan})
        if self._main:
            save_tensors(self.out / CHECKPOINT, tensors, self._metadata())
            save_generator_file(
                self.out / FILE_NAME,
                self.result,
                config=self.config.generator,
                data=self.config.data,
                protocol=self.config.protocol,
                about={
                    **to_dict(self.config.about),
                    "step": self.step,
                    "total_steps": self.total_steps,
                    "seconds": round(self._elapsed(), 1),
                    "seed": self.config.fit.seed,
                },
            )
            if final:
                self._save_grid()
        self._saved_at = time.monotonic()

    def _load(self, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
        self.step, self.seconds = metadata["step"], metadata["seconds"]
        self.generator.load_state_dict(unprefixed("generator", tensors))
        if self.adversary is not None:
            self.discriminator.load_state_dict(unprefixed("discriminator", tensors))
            self.adversary.load(unprefixed("adversary", tensors))
        if self.average is not None:
            self.average.load_state_dict(unprefixed("average", tensors))
        for name, optimizer in self.optimizers.items():
            entries: dict[int, dict[str, Tensor]] = {}
            for key, value in unprefixed(f"optimizer.{name}", tensors).items():
                index, _, entry = key.partition(".")
                entries.setdefault(int(index), {})[entry] = value
            for index, parameter in enumerate(optimizer.param_groups[0]["params"]):
                for entry, value in entries.get(index, {}).items():
                    if value.shape == parameter.shape:  # the fused step wants the memory format of the parameter
                        entries[index][entry] = torch.empty_like(parameter).copy_(value)
            optimizer.load_state_dict({"state": entries, "param_groups": optimizer.state_dict()["param_groups"]})
        self.pool.load(unprefixed("pool", tensors))
        if self.path_matching is not None:
            self.path_matching.load(unprefixed("path_matching", tensors))


@torch.no_grad()
def update_average(average: nn.Module, source: nn.Module, step: int, decay: float) -> None:
    """Exponential moving average of weights and statistics: average <- d * average + (1 - d) * source.

    d = min(decay, (1 + step) / (10 + step)), so that early weights are forgotten quickly. Integer buffers are copied.
    """
    decay = min(decay, (1 + step) / (10 + step))
    targets, sources = list(average.state_dict().values()), list(source.state_dict().values())
    pairs = list(zip(targets, sources, strict=True))
    floating = [pair for pair in pairs if pair[0].is_floating_point()]
    torch._foreach_lerp_([pair[0] for pair in floating], [pair[1] for pair in floating], 1 - decay)
    for target, value in pairs:
        if not target.is_floating_point():
            target.copy_(value)


def sample_grid(generator: Generator, *, per_class: int = 10, max_classes: int = 20, seed: int = 0):
    """The first images of every class (of the first classes, if there are many), one row per class, as a picture."""
    classes = min(generator.spec.num_classes, max_classes)
    labels = torch.arange(classes).repeat_interleave(per_class)
    images = generator.sample(labels, seed=seed)
    return grid(images.view(classes, per_class, *generator.spec.image_shape))
