"""Distilling pixels, or latents of a generator, by trajectory matching: the loop around `dim.objectives.trajectory`, from experts
to a synthetic set.

The images are optimised in the coordinates that students see (normalised, or whitened), as published; what is stored are
natural images, with their labels and the learned step size.
"""

import dataclasses
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dim import rng
from dim.compiling import worth_compiling
from dim.config import ProtocolConfig, TrajectoryRecipe, to_dict
from dim.continuation import continues
from dim.data.origin import with_origin
from dim.data.real import RealData, per_class_indices
from dim.data.stored import claims_kept, write_into
from dim.data.synthetic import SyntheticSet
from dim.data.whiten import Whitening
from dim.errors import InputError
from dim.io import digest, reading
from dim.loop import Loop
from dim.nets.generator import Generator
from dim.nets.student import check_protocol
from dim.objectives.trajectory import TrajectoryMatching
from dim.pictures import save_png
from dim.processes import ALONE, Processes
from dim.provenance import versions
from dim.run_folder import CHECKPOINT, MAY_CHANGE, read_run, run_description, unprefixed
from dim.sampler import set_grid, stored_bytes
from dim.spec import require_same_data
from dim.trajectory.flat import FlatNetwork
from dim.trajectory.initial import confident_images, drawn_expert, ensemble_logits, open_experts, paths

_MAY_CHANGE = (
    *MAY_CHANGE,
    "experts",
    *(f"distill.{name}" for name in ("device", "checkpoint_minutes", "checkpoint_steps", "sample_steps", "log_steps")),
)
# What may change while a set is distilled, if it is stated (--depart).
_MAY_DEPART = ("images.lr", "labels.lr", "step_size.lr", "distill.skip_above", "trajectory.precision")
_MOST_BAD = 100  # iterations in a row that may be skipped


def distill(
    config: TrajectoryRecipe,
    data: RealData,
    experts: Path | str,
    out: Path | str,
    *,
    generator: Generator | None = None,
    resume: bool = False,
    depart: bool = False,
    device: torch.device | str = "cpu",
    processes: Processes = ALONE,
) -> SyntheticSet:
    """Learn a synthetic set whose students follow recorded experts.

    Args:
        config: what is matched and what is learned; its `experts` section is not used.
        data: the real data that the experts were trained on, natural images.
        experts: folder of a finished store.
        out: the folder for the run and the set.
        generator: whose latents are optimised, where `images.space` is `latents`.
        resume: continue the run that lies there.
        depart: with `resume`: other learning rates, limit of the loss and precision are allowed; run.json states them.
        device: where to work.
        processes: those that share the experts of every iteration; the main one writes.

    Returns:
        The set, which is also stored in `out`, in the format that `dim.load_set` reads.

    Raises:
        InputError: if the store was recorded for another architecture, data set or resolution, is unfinished or damaged, or
            the window reaches beyond it; if `out` holds something else, or a run with other settings; or if the processes cannot
            share the experts of an iteration evenly.
        NonFiniteError: if a hundred iterations in a row gave no usable update.
        Interrupted: after Ctrl-C or SIGTERM, when the state has been saved.
    """
    settings = {"generator": generator, "resume": resume, "depart": depart, "processes": processes}
    config = with_origin(config, data)
    return Distiller(config, data, Path(experts), Path(out), device=torch.device(device), **settings).run()


def require_space(config: TrajectoryRecipe, generator: Any) -> None:
    """Raise InputError unless there is a generator just where `images.space` is `latents`."""
    space = config.images.space
    if (space == "latents") != (generator is not None):
        given = "no generator was given" if generator is None else "a generator was given"
        raise InputError(f"images.space is {space!r} and {given}: give --generator together with --images.space latents")


class Distiller:
    """One run: the learned set, its optimisers, and the loop over iterations."""

    def __init__(
        self,
        config: TrajectoryRecipe,
        data: RealData,
        experts: Path,
        out: Path,
        *,
        generator: Generator | None = None,
        resume: bool,
        depart: bool = False,
        device: torch.device,
        processes: Processes = ALONE,
    ) -> None:
        self.config, self.out, self.device, self.natural, self.processes = config, out, device, data, processes
        self.loop: Loop | None = None
        self._begun = {"step": 0, "seconds": 0.0}
        self.skipped, self._bad = 0, 0
        processes.require_even(config.trajectory.experts, "trajectory.experts, which they share in every iteration,")
        self.store = open_experts(experts, config, data)
        check_protocol(config.protocol, data.spec)
        rules = {"kind": "distillation", "may_change": _MAY_CHANGE, "may_depart": _MAY_DEPART, "processes": processes}
        self._continuation = continues(out, config, data.spec, resume=resume, depart=depart, **rules)
        resume = self._continuation.resumes
        self._experts_digest = self.store.digest()
        self.generator = self._checked(generator)
        self._generator_digest = None if self.generator is None else digest(self.generator.state_dict())
        began = read_run(out, "distillation") if resume else {}
        if resume and began.get("experts_digest") != self._experts_digest:
            raise InputError(f"{experts} holds other experts than the run in {out} began with: resume with those")
        if resume and began.get("generator_digest") != self._generator_digest:
            raise InputError(f"the generator is another than the run in {out} began with: resume with that one")
        self.whitening = Whitening.fit(data.train, data.spec, device=device) if config.zca else None
        self.data = data if self.whitening is None else self.whitening.data(data)
        calls = config.distill.iterations * config.trajectory.steps * config.trajectory.experts // processes.world
        compile = config.trajectory.gradient != "unroll" and worth_compiling(config.trajectory.compile, device, calls)
        options = {"compiled": compile, "precision": config.trajectory.precision}
        self.network = FlatNetwork(config.student, self.data.spec, device, **options)
        self._mean, self._std = self.data.spec.mean_std(torch.zeros((), device=device))
        self.step_size = torch.tensor(config.step_size.initial, device=device, requires_grad=True)
        self._step_momentum = torch.zeros((), device=device)
        self.objective = TrajectoryMatching(
            paths(self.store, config),
            self.network,
            config.trajectory,
            config.labels,
            step_size=self.step_size,
            seed=config.distill.seed,
            compile=compile,
            processes=processes,
        )
        self.labels = torch.arange(data.spec.num_classes, device=device).repeat(config.images.ipc)
        if resume:
            with reading(out / CHECKPOINT):
                self._load()
        else:
            values, logits = self._initial()
            self._make_optimizers(values, logits)

    @property
    def step(self) -> int:
        """Steps that are done."""
        return self._begun["step"] if self.loop is None else self.loop.step

    # --- the set -------------------------------------------------------------------------------------------------------------

    def _checked(self, generator: Generator | None) -> Generator | None:
        """The generator, if the images' space asks for one and it makes such images."""
        require_space(self.config, generator)
        if generator is None:
            return None
        require_same_data(generator.spec, self.natural.spec)
        return generator.to(self.device).requires_grad_(False).eval()

    def _initial(self) -> tuple[Tensor, Tensor | None]:
        """What is optimised, pixels or latents, and label logits if they are learned."""
        config, spec, seed = self.config, self.data.spec, self.config.distill.seed
        if self.generator is not None:
            indices = torch.arange(config.images.ipc, device=self.device).repeat_interleave(spec.num_classes)
            latents = self.generator.latents(self.labels, indices, seed=seed)
            return latents, self._initial_logits(self._rendered(latents))
        if config.images.init == "confident":
            images = confident_images(self.store, self.network, self.data, config.images.ipc, seed)
        elif config.images.init == "real":
            chosen = per_class_indices(self.data.train.labels, config.images.ipc, spec.num_classes, seed=rng.fold(seed, "init"))
            images = self.data.train.batch(chosen)[0].to(self.device)
        else:
            source = rng.generator(seed, "init-noise")
            images = torch.randn(len(self.labels), *spec.image_shape, generator=source).to(self.device) * self._std + self._mean
        return (images - self._mean) / self._std, self._initial_logits(images)

    def _initial_logits(self, images: Tensor) -> Tensor | None:
        """Label logits of the initial images, if they are learned."""
        if self.config.labels.kind != "learned":
            return None
        if self.config.labels.init == "one":
            expert = drawn_expert(self.store, self.config.distill.seed)
            theta = self.store.weights(expert, len(self.store.layout.moments) - 1)
            return self.network.predict(theta.to(self.device), images)
        return ensemble_logits(self.store, self.network, images, self.labels)

    def _make_optimizers(self, values: Tensor, logits: Tensor | None) -> None:
        images, labels = self.config.images, self.config.labels
        self.values = values.to(self.device).requires_grad_()
        if images.optimizer == "adam":
            self.optimizers: list[torch.optim.Optimizer] = [
                torch.optim.Adam([self.values], lr=images.lr, betas=(images.momentum, 0.999))
            ]
        else:
            self.optimizers = [torch.optim.SGD([self.values], lr=images.lr, momentum=images.momentum)]
        self.logits = None
        if logits is not None:
            self.logits = logits.to(self.device).requires_grad_()
            self.optimizers.append(torch.optim.SGD([self.logits], lr=labels.lr, momentum=labels.momentum))

    def seen(self) -> Tensor:
        """The images as students see them, before their own normalisation: a function of the pixels or latents."""
        return self.values * self._std + self._mean if self.generator is None else self._rendered(self.values)

    def _rendered(self, latents: Tensor) -> Tensor:
        """The generator's images, as students see them."""
        images = self.generator(latents, self.labels).float()
        return images if self.whitening is None else self.whitening.whiten(images)

    def result_set(self) -> SyntheticSet:
        """The set as it is now."""
        images = self.seen().detach()
        soft, teacher = None, None
        if self.logits is not None:
            soft, teacher = self.logits.detach().softmax(1), "learned"
        elif self.config.labels.kind == "teacher":
            soft, teacher = self._teacher_labels(images), f"mean of {self.store.layout.experts} experts"
        natural = (images if self.whitening is None else self.whitening.natural(images)).float()
        info = {**self._info(teacher), "range": [round(float(natural.min()), 4), round(float(natural.max()), 4)]}
        return SyntheticSet(natural, self.labels, self.natural.spec, soft=soft, info=info)

    def _teacher_labels(self, images: Tensor) -> Tensor:
        """Probabilities by which the set is stored: the mean over experts at the last target."""
        window = self.objective.window
        parts = []
        for path in self.objective.paths:
            moment = min(window.high - (0 if window.continuous else 1) + window.span, path.last)
            parts.append(self.network.predict(path.theta(moment).to(self.device), images).softmax(1))
        return torch.stack(parts).mean(0)

    def _info(self, teacher: str | None) -> dict[str, Any]:
        config = self.config
        protocol: ProtocolConfig = dataclasses.replace(config.protocol, zca=config.zca)
        info = {
            "method": "trajectory matching",
            "config": to_dict(dataclasses.replace(config, data=dataclasses.replace(config.data, root=None))),
            "data": {} if self.natural.config is None else to_dict(dataclasses.replace(self.natural.config, root=None)),
            "protocol": to_dict(protocol),
            "step_size": self.step_size.item(),
            "iterations": self.step,
            "skipped": self.skipped,
            "seconds": round(self.loop.elapsed(), 1),
            **self._continuation.stated(self._begun["step"]),
            "experts": {"count": self.store.layout.experts, "bytes": self.store.bytes()},
            **({} if self.generator is None else {"latents": 4 * self.values.numel(), "generator": stored_bytes(self.generator)}),
            "versions": versions(),
        }
        return info if teacher is None else {**info, "teacher": teacher}

    # --- the loop ------------------------------------------------------------------------------------------------------------

    def run(self) -> SyntheticSet:
        """Iterate to the end and write the set."""
        config = self.config.distill
        place = {"kind": "distillation", "processes": self.processes}
        description = run_description(self.config, self.natural.spec, self.device, images=self.natural.sizes, **place)
        store = {"experts": str(self.store.folder.absolute()), "experts_digest": self._experts_digest}
        store |= {} if self.generator is None else {"generator_digest": self._generator_digest}
        self.loop = Loop(
            self,
            self.out,
            name="distill",
            unit="iteration",
            total=config.iterations,
            description={**description, **store},
            continuation=self._continuation,
            settings=config,
            device=self.device,
            tf32=config.tf32,
            processes=self.processes,
            **self._begun,
        )
        with self.loop as loop:
            losses: list[float] = []
            while loop.step < loop.total:
                losses.append(self.iterate())
                loop.advance()
                if loop.logs():
                    self._log(losses)
                    losses = []
                loop.between()
            loop.finish()
        return self.result_set()

    def iterate(self) -> float:
        """One iteration: gradient, guard, update. Returns the loss."""
        images = self.seen()
        cut = images.detach().requires_grad_()
        targets = self.labels if self.logits is None else self.logits
        losses = self.objective.accumulate(cut, targets, real=None, step=self.step)
        images.backward(cut.grad)
        # The one place where the host waits for the device: hundreds of kernels lie between two of these.
        gradients = [self.values.grad, self.step_size.grad] + ([] if self.logits is None else [self.logits.grad])
        self.processes.average([*gradients, losses["trajectory"]])
        finite = torch.stack([gradient.isfinite().all() for gradient in gradients]).all()
        loss, usable = torch.stack((losses["trajectory"], finite.to(losses["trajectory"].dtype))).tolist()
        limit = self.config.distill.skip_above
        if usable and math.isfinite(loss) and (limit == 0 or loss <= limit):
            self._bad = 0
            for optimizer in self.optimizers:
                optimizer.step()
            self._update_step_size()
        else:
            self.skipped += 1
            self._bad += 1
            if self._bad >= _MOST_BAD:
                self._give_up(loss)
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        self.step_size.grad = None
        return loss

    @torch.no_grad()
    def _update_step_size(self) -> None:
        """SGD with momentum in the step size, as a factor: beta exp(-lr v / beta) is beta - lr v to first order, and positive.

        One update at most halves or doubles it.
        """
        settings = self.config.step_size
        self._step_momentum.mul_(settings.momentum).add_(self.step_size.grad)
        change = -settings.lr * self._step_momentum / self.step_size
        self.step_size.mul_(change.clamp(-math.log(2), math.log(2)).exp())

    def _give_up(self, loss: float) -> None:
        limit = self.config.distill.skip_above
        expected = f"at most {limit:g} (--distill.skip-above)" if limit else "a finite loss and gradient"
        what = f"{_MOST_BAD} iterations in a row gave no usable update, the last with loss {loss:.4g}: expected {expected}"
        self.loop.advance()
        self.loop.fail(what)

    def _log(self, losses: list[float]) -> None:
        finite = [loss for loss in losses if math.isfinite(loss)]
        values = {"step_size": self.step_size.item(), "skipped": float(self.skipped)}
        if finite:
            values = {"trajectory": sum(finite) / len(finite)} | values
        self.loop.log(values)

    # --- the run folder --------------------------------------------------------------------------------------------------------

    remedy = "Try a lower --step-size.initial or --images.lr, or an earlier window"
    departs = "--images.lr LOWER"

    def check(self) -> None:
        """See `dim.loop.Run`: updates that are not finite are skipped."""

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """See `dim.loop.Run`."""
        return self._tensors(), {
            "format": 1,
            "kind": "distillation",
            "step": self.loop.step,
            "seconds": self.loop.elapsed(),
            "skipped": self.skipped,
            "bad": self._bad,
        }

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {"values": self.values, "step_size": self.step_size, "step_momentum": self._step_momentum}
        if self.logits is not None:
            tensors["logits"] = self.logits
        for name, optimizer in zip(("values", "logits"), self.optimizers, strict=False):
            for entry, value in optimizer.state[optimizer.param_groups[0]["params"][0]].items():
                if value is not None:
                    tensors[f"{name}.{entry}"] = value
        return tensors

    def _load(self) -> None:
        tensors, metadata = self._continuation.load(self.device)
        self._begun = {"step": metadata["step"], "seconds": metadata["seconds"]}
        self.skipped, self._bad = metadata["skipped"], metadata["bad"]
        self._make_optimizers(tensors["values"], tensors.get("logits"))
        for name, optimizer in zip(("values", "logits"), self.optimizers, strict=False):
            optimizer.state[optimizer.param_groups[0]["params"][0]].update(unprefixed(name, tensors))
        with torch.no_grad():
            self.step_size.copy_(tensors["step_size"])
            self._step_momentum.copy_(tensors["step_momentum"])

    def result(self) -> None:
        """See `dim.loop.Run`."""
        made = self.result_set()
        kept = claims_kept(self.out, made.content()) if self.loop.step == self.config.distill.iterations else {}
        write_into(self.out, made.content(), made.spec, {**made.info, **kept})

    def picture(self) -> None:
        """See `dim.loop.Run`."""
        save_png(self.out / "samples" / f"step-{self.loop.step:07d}.png", set_grid(self.result_set()))
