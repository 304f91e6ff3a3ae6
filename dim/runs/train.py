"""The training loop: two stages over one step, whatever the data, the networks and the objectives.

Every draw is a function of (seed, step), so a checkpoint holds weights, optimiser states, the pool and a step number, and
a resumed run continues bit by bit (on the CPU).
"""

import contextlib
import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from dim import rng
from dim.compiling import work_repays
from dim.config import ADVERSARIES, OBJECTIVES, TrainConfig, to_dict
from dim.continuation import continues
from dim.data.origin import with_origin
from dim.data.real import EpochBatches, RealData
from dim.io import reading
from dim.launch import say_once
from dim.loop import Loop
from dim.nets.discriminators import build_discriminator, training_flops
from dim.nets.generator import Generator, build_generator
from dim.nets.generator_file import FILE_NAME, claims_kept, save_generator_file
from dim.nets.student import check_protocol
from dim.objectives import Objective
from dim.objectives.denoising import Denoising
from dim.objectives.flow import FlowMatching
from dim.objectives.logit import PoolMatching
from dim.objectives.path_matching import PathMatching
from dim.pictures import save_png
from dim.pool import build_pool
from dim.processes import Processes, running_statistics
from dim.run_folder import CHECKPOINT, prefixed, run_description, unprefixed
from dim.runs.accelerator import make_accelerator
from dim.runs.average import update_average
from dim.runs.beside import record_beside, require_same_number
from dim.runs.losses import Losses
from dim.runs.optimizer_state import load_optimizer, optimizer_state
from dim.runs.stages import MAY_CHANGE, MAY_DEPART, Stage, few_steps, plan
from dim.sampler import sample_grid
from dim.score.coverage import Coverage


def fit(
    config: TrainConfig,
    data: RealData,
    out: Path | str,
    *,
    resume: bool = False,
    depart: bool = False,
    accelerator: Accelerator | None = None,
) -> Path:
    """Train a generator and leave a run folder.

    Args:
        config: everything about the run.
        data: the real data; images on the accelerator's device.
        out: the run folder: generator.safetensors (the result), checkpoint.safetensors, run.json, metrics.jsonl, samples/; and
            with `config.fit.experts` a folder experts/.
        resume: continue the run that lies there.
        depart: with `resume`: other learning rates, weights of losses, clipping and precision are allowed; run.json states them.
        accelerator: from `make_accelerator`; made here if absent.

    Returns:
        The run folder.

    Raises:
        InputError: if `out` holds something else, another process is writing it, or the run there has other settings or another
            data set.
        NonFiniteError: if a loss is not finite.
        Interrupted: after Ctrl-C or SIGTERM, when the state has been saved.
    """
    out, named, config = Path(out), config.data.dataset, with_origin(config, data)
    accelerator = accelerator or make_accelerator(config, out)
    require_same_number(config, out)
    trainer = Trainer(config, data, out, accelerator, resume=resume, depart=depart)
    if named != data.spec.name and not resume:
        about = {"settings": "these settings", "made_for": f"were made for {named}", "option": "stage_one.epochs"}
        steps, epochs = trainer.stages[-1].stop, config.stage_one.epochs
        if warning := few_steps(steps, images=len(data.train), epochs=epochs, **about):
            say_once(warning)
    trainer.run()
    if config.fit.experts:
        record_beside(config, data, out, steps=trainer.stages[0].stop, device=accelerator.device, processes=trainer.processes)
    return out


class Trainer:
    """One run: its networks, its optimisers, and the loop over steps."""

    def __init__(
        self, config: TrainConfig, data: RealData, out: Path, accelerator: Accelerator, *, resume: bool, depart: bool = False
    ) -> None:
        self.config, self.data, self.out, self.accelerator = config, data, out, accelerator
        self.processes = processes = Processes(accelerator.process_index, accelerator.num_processes)
        self.loop: Loop | None = None
        self._begun = {"step": 0, "seconds": 0.0}
        self._coverage: Coverage | None = None
        self._losses = Losses(processes)
        rules = {"may_change": MAY_CHANGE, "may_depart": MAY_DEPART, "processes": processes}
        self._continuation = continues(out, config, data.spec, resume=resume, depart=depart, **rules)
        self.stages = plan(config, len(data.train))
        for stage in self.stages:  # now, not when the stage begins
            if stage.start < stage.stop:
                processes.require_even(stage.config.batch_size, f"stage_{stage.name}.batch_size")
        spec, device, seed = data.spec, accelerator.device, config.fit.seed
        self.format = torch.channels_last if config.fit.channels_last else torch.contiguous_format
        held = self._continuation.load(device) if self._continuation.resumes else None
        architecture = held[1].get("architecture") if held else None
        with reading(out / CHECKPOINT) if architecture else contextlib.nullcontext():
            generator = build_generator(config.generator, spec, seed=seed, architecture=architecture)
        self.generator = generator.to(device, memory_format=self.format)
        self.average: Generator | None = None
        if config.fit.ema > 0:
            self.average = copy.deepcopy(self.generator).requires_grad_(False)
        self.optimizers = {"generator": self._optimizer(self.generator)}
        self.adversary: Any = None
        self.flow: FlowMatching | Denoising | None = None
        if self.generator.learns_by == "adversary":
            self.adversary = self._build_adversary()
        else:
            regression = {"flow": FlowMatching, "denoising": Denoising}[self.generator.learns_by]
            steps = self.stages[0].stop
            self.flow = regression.of_run(config.flow, steps=steps, seed=seed, processes=processes)
        # Made here although stage two may be hours away, so that an impossible setting is found now.
        self.pool = build_pool(
            config.pool,
            data,
            steps=self.stages[1].stop - self.stages[1].start,
            batch_size=config.stage_two.batch_size,
            steps_per_epoch=max(1, len(data.train) // config.stage_two.batch_size),
            first_step=self.stages[1].start,
            seed=seed,
            device=device,
            channels_last=config.fit.channels_last,
            processes=processes,
        )
        self.matching = PoolMatching(self.pool, config.matching, spec, seed=seed, processes=processes)
        self.path_matching: PathMatching | None = None
        if config.path_matching.weight > 0:
            first = self.stages[1].start
            place = {"device": device, "processes": processes}
            self.path_matching = PathMatching(config.path_matching, data, first_step=first, seed=seed, **place)
        self.own = [OBJECTIVES.load(name)(data, seed=seed, device=device) for name in config.objectives]
        check_protocol(config.protocol, spec)
        if held:
            with reading(out / CHECKPOINT):
                self._load(*held)

    @property
    def step(self) -> int:
        """Steps that are done."""
        return self._begun["step"] if self.loop is None else self.loop.step

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
        shared = {"seed": seed, "finish": self._finish_gradients, "processes": self.processes}
        if getattr(kind, "compiles", False):  # somebody else's loss may know no such thing
            images = sum(2 * stage.config.batch_size * (stage.stop - stage.start) for stage in self.stages)
            work = images * training_flops(network, spec)
            shared["compile"] = work_repays(config.fit.compile, self.accelerator.device, work, seconds=60)
        return kind.of_run(*common, **shared, scheduled=self.stages[0].scheduled)

    @property
    def total_steps(self) -> int:
        """Steps of both stages."""
        return self.stages[-1].stop

    @property
    def result_network(self) -> Generator:
        """The generator that is the product: the average if there is one."""
        return self.generator if self.average is None else self.average

    def run(self) -> Path:
        """Train from the current step to the end and write the result."""
        config, accelerator = self.config, self.accelerator
        if config.fit.coverage_steps and self.processes.main:  # before the clock starts: its classifier may have to be trained
            self._coverage = Coverage(self.data, samples=config.fit.coverage_samples)
        self.loop = Loop(
            self,
            self.out,
            name="train",
            total=self.total_steps,
            description=run_description(
                config, self.data.spec, accelerator.device, processes=self.processes, images=self.data.sizes
            ),
            continuation=self._continuation,
            settings=config.fit,
            device=accelerator.device,
            tf32=config.fit.tf32,
            processes=self.processes,
            **self._begun,
        )
        if config.fit.trackers:
            kwargs = {"tensorboard": {"purge_step": self.loop.step}} if "tensorboard" in config.fit.trackers else {}
            accelerator.init_trackers("tensorboard" if len(config.fit.trackers) == len(kwargs) else "dim", init_kwargs=kwargs)
        with self.loop:
            for stage in self.stages:
                if self.loop.step < stage.stop:
                    self._run_stage(stage)
            self.loop.finish()
        self.processes.wait()
        for tracker in accelerator.trackers:
            tracker.finish()
        return self.out

    def work(self, stage: Stage) -> tuple[EpochBatches, EpochBatches | None, list[Objective]]:
        """What steps of a stage take beside their number: batches, those of the pool's upkeep, and objectives."""
        config = self.config
        drawing = {"seed": config.fit.seed, "processes": self.processes, "class_power": stage.config.class_power}
        batches = EpochBatches(self.data.train, stage.config.batch_size, purpose=f"stage-{stage.name}", **drawing)
        objectives: list[Objective] = [self.adversary] if self.adversary else []
        upkeep: EpochBatches | None = None
        if stage.matching:
            upkeep = EpochBatches(self.data.train, stage.config.batch_size, purpose="pool", **drawing)
            objectives.append(self.matching)
        if stage.name == "two":
            objectives += self.own if self.path_matching is None else [self.path_matching, *self.own]
        self.generator.train()
        return batches, upkeep, objectives

    def _run_stage(self, stage: Stage) -> None:
        work = self.work(stage)
        while self.loop.step < stage.stop:
            for optimizer in self.optimizers.values():
                optimizer.param_groups[0].update(stage.settings(self.loop.step))
            self._losses.add(self.train_step(self.loop.step, stage, *work))
            self.loop.advance()
            if self.loop.logs(stage.stop):
                self._log(stage)
            self._measure(stage)
            self.loop.between()

    def train_step(
        self, step: int, stage: Stage, batches: EpochBatches, upkeep: EpochBatches | None, objectives: Iterable[Objective]
    ) -> dict[str, Tensor]:
        """One step: upkeep of the pool, one step of the discriminator, one of the generator. Detached losses by name."""
        config, accelerator = self.config, self.accelerator
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
        if objectives and images.grad is not None:  # none of them may be due at this step
            generated.backward(images.grad.to(generated.dtype))
        norm = self._finish_gradients(self.generator.parameters())
        self.processes.average(running_statistics(self.generator))
        self.optimizers["generator"].step()
        self.optimizers["generator"].zero_grad()
        if self.average is not None:
            update_average(self.average, self.generator, step, config.fit.ema)
        if norm is not None:
            losses["gradient_norm"] = norm.detach()
        return losses

    def _generate(self, labels: Tensor, purpose: str, *place: int) -> Tensor:
        """Images of these classes from latents of this purpose and place, with a graph."""
        source = rng.generator(self.config.fit.seed, purpose, *place, 0, device=labels.device)
        batch = self.processes.world * len(labels)
        z = torch.randn(batch, self.generator.latent_dim, generator=source, device=labels.device)
        return self.generator(self.processes.part(z), labels)

    def _finish_gradients(self, parameters: Iterable[nn.Parameter]) -> Tensor | None:
        parameters = list(parameters)
        self.processes.average(parameter.grad for parameter in parameters)
        if self.config.fit.clip_norm > 0:
            return torch.nn.utils.clip_grad_norm_(parameters, self.config.fit.clip_norm)
        return None

    # --- what happens between steps ------------------------------------------------------------------------------------

    def _log(self, stage: Stage) -> None:
        values = self._losses.means()
        self._losses = Losses(self.processes)
        self.loop.require_finite(values)
        values["lr"] = stage.lr(self.loop.step - 1)
        if self.processes.main:
            self.accelerator.log(values, step=self.loop.step)
        wanted = ("critic", "class", "flow", "mean_flow", "denoising", "matching", "trajectory", "pool")
        shown = {name: values[name] for name in wanted if name in values}
        self.loop.log({"stage": stage.name, **values}, shown=shown, note=f"stage {stage.name}")

    def _measure(self, stage: Stage) -> None:
        """Record how much of the real data the result covers where that is due, off the clock. It comes before the checkpoint, so
        that a resumed run has the record of its checkpoint's step. Other processes wait at their next exchange."""
        step, every = self.loop.step, self.config.fit.coverage_steps
        if self._coverage is None or not (step % every == 0 or step == self.total_steps):
            return
        with self.loop.off_the_clock():
            values = self._coverage.score(self.result_network).metrics
        self.accelerator.log(values, step=step)
        self.loop.record({"stage": stage.name, **values})

    # --- the run folder --------------------------------------------------------------------------------------------------

    remedy, departs = "Try a lower learning rate, or gradient clipping (--fit.clip-norm 1)", "--fit.clip-norm 1"

    def check(self) -> None:
        """See `dim.loop.Run`."""
        self.loop.require_finite(self._losses.means())

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """See `dim.loop.Run`."""
        return self._tensors(), {
            "format": 1,
            "kind": "checkpoint",
            "step": self.loop.step,
            "seconds": self.loop.elapsed(),
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
            tensors |= prefixed(f"optimizer.{name}", optimizer_state(optimizer))
        tensors |= prefixed("pool", self.pool.state())
        if self.path_matching is not None:
            tensors |= prefixed("path_matching", self.path_matching.state())
        for number, objective in enumerate(self.own):
            if hasattr(objective, "state"):
                tensors |= prefixed(f"objective.{number}", objective.state())
        return tensors

    def result(self) -> None:
        """See `dim.loop.Run`."""
        path = self.out / FILE_NAME
        save_generator_file(
            path,
            self.result_network,  # which is there already, with its claims, where a run that had ended was resumed
            claims=claims_kept(path, self.result_network) if self.loop.step == self.total_steps else (),
            config=self.config.generator,
            data=self.data.config,
            protocol=self.config.protocol,
            about={
                **to_dict(self.config.about),
                "step": self.loop.step,
                "total_steps": self.total_steps,
                "seconds": round(self.loop.elapsed(), 1),
                "seed": self.config.fit.seed,
                **self._continuation.stated(self._begun["step"]),
            },
        )

    def picture(self) -> None:
        """See `dim.loop.Run`."""
        save_png(self.out / "samples" / f"step-{self.loop.step:07d}.png", sample_grid(self.result_network))

    def _load(self, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
        self._begun = {"step": metadata["step"], "seconds": metadata["seconds"]}
        self.generator.load_state_dict(unprefixed("generator", tensors))
        if self.adversary is not None:
            self.discriminator.load_state_dict(unprefixed("discriminator", tensors))
            self.adversary.load(unprefixed("adversary", tensors))
        if self.average is not None:
            self.average.load_state_dict(unprefixed("average", tensors))
        for name, optimizer in self.optimizers.items():
            load_optimizer(optimizer, unprefixed(f"optimizer.{name}", tensors))
        self.pool.load(unprefixed("pool", tensors))
        if self.path_matching is not None:
            self.path_matching.load(unprefixed("path_matching", tensors))
        for number, objective in enumerate(self.own):
            if hasattr(objective, "load"):
                objective.load(unprefixed(f"objective.{number}", tensors))
