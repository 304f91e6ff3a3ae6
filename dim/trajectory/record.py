"""Recording experts: ordinary training on real data, with the weights kept along the way.

Weights are flat vectors, so that several experts train at once as the rows of one matrix, and plain SGD and GSAM are a few
lines each. Everything is a function of (seed, expert, step): a recording that was killed continues bit by bit (on the CPU), and
processes that share the experts record those of one process.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.func import grad_and_value, vmap

from dim import rng
from dim.augment import Augment
from dim.chunks import FORWARD, JUDGED
from dim.compiling import compiled, worth_compiling
from dim.config import ExpertsConfig, RecordConfig
from dim.continuation import continues
from dim.data.origin import with_origin
from dim.data.real import EpochBatches, RealData
from dim.data.splits import Split, in_chunks
from dim.data.whiten import Whitening
from dim.errors import InputError
from dim.loop import Interrupted, Loop, stop_signals
from dim.nets.student import judged_parts
from dim.outputs import sole_writer
from dim.processes import ALONE, Processes
from dim.run_folder import MAY_CHANGE, open_run, read_metrics, run_description
from dim.trajectory.flat import FlatNetwork
from dim.trajectory.parts import collect, collect_all, part_folder, parts, set_apart
from dim.trajectory.store import LAYOUT, STATE, ExpertRecord, ExpertStore, Layout, needed, smoothed, waypoint_moments

_SHARED = "while the processes were recording experts"  # where a run is interrupted, for all of them
_JUDGED = 2000  # images that the accuracy along the way is measured on
_MAY_CHANGE = (*MAY_CHANGE, "experts.checkpoint_minutes", "experts.device")


def record(
    config: RecordConfig,
    data: RealData,
    out: Path | str,
    *,
    resume: bool = False,
    device: torch.device | str = "cpu",
    processes: Processes = ALONE,
) -> ExpertStore:
    """Train experts and leave a store.

    Args:
        config: architecture, data and how experts are trained.
        data: the real data, natural images.
        out: the store's folder.
        resume: continue the recording that lies there.
        device: where to train.
        processes: those that share the experts: expert k is recorded by process k mod their number (with `experts.together`, the
            k-th group of experts). All see the folder `out`.

    Returns:
        The finished store.

    Raises:
        InputError: if `out` holds something else, or a recording with other settings or another data set.
        NonFiniteError: if an expert's loss is not finite.
        Interrupted: after Ctrl-C or SIGTERM, when the state has been saved.
    """
    config = with_origin(config, data)
    return _Recorder(config, data, Path(out), resume=resume, device=torch.device(device), processes=processes).run()


class _Recorder:
    """One recording: groups of experts, one after another."""

    def __init__(
        self, config: RecordConfig, data: RealData, out: Path, *, resume: bool, device: torch.device, processes: Processes
    ) -> None:
        # Of a recipe that says more, what a recording depends on.
        config = RecordConfig(**{field.name: getattr(config, field.name) for field in dataclasses.fields(RecordConfig)})
        self.config, self.settings, self.out, self.device, self.processes = config, config.experts, out, device, processes
        self.natural_spec = data.spec
        rules = {"kind": "experts", "may_change": _MAY_CHANGE, "holds": LAYOUT, "processes": processes}
        self._continuation = continues(out, config, data.spec, resume=resume, **rules)
        resume = self._continuation.resumes
        self.data = Whitening.fit(data.train, data.spec, device=device).data(data) if config.zca else data
        last = round(self.settings.epochs / self.settings.every)
        self.per_moment = max(1, round(self.settings.every * len(data.train) / self.settings.batch_size))
        self.total = last * self.per_moment
        groups = -(-self.settings.count // self.settings.together)
        compile = worth_compiling(self.settings.compile, device, groups * self.total)
        options = {"compiled": compile, "norms": False, "precision": self.settings.precision}
        self.network = FlatNetwork(config.student, self.data.spec, device, **options)
        self.layout = _layout(self.settings, self.network, last)
        self.augment = Augment(self.settings.augment, self.data.spec)
        self._judged = self.data.val if len(self.data.val) else self.data.train
        self.store = ExpertStore.open(out) if resume else None
        self._folder, self._first = out, 0  # where the store lies that is written, and its first expert
        self._going = self._continuation  # and how that goes on
        gradient = grad_and_value(self.network.loss)
        self._gradient_of = gradient if self.settings.together == 1 else vmap(gradient)
        self._update = compiled(self._updated) if compile else self._updated

    def run(self) -> ExpertStore:
        """Record what is missing."""
        if self.processes.world > 1 or not self._one_after_another():
            return self._share()
        self._record(self.settings.count)
        return self.store

    def _one_after_another(self) -> bool:
        """Whether the finished experts are the first ones, and none has been begun by several processes."""
        return self.store is None or (not parts(self.out) and sorted(self.store.records) == [*range(len(self.store.records))])

    def _share(self) -> ExpertStore:
        """Record with other processes: every group of experts in a folder of its own, from which the main process takes what is
        finished into the store, which nobody else writes."""
        processes = self.processes
        with contextlib.ExitStack() as stack:
            whole = processes.once(lambda: self._prepare(stack))  # its records change in the main process only
            if not all(processes.gather((self.out / LAYOUT).is_file())):
                raise InputError(f"not all processes see {self.out}: expected --out on a file system that all machines share")
            missing = [group for group in self._groups() if not set(group) <= whole.records.keys()]
            with stop_signals() as asked:  # of a signal between two groups, the next one's first step knows
                for group in processes.part(missing):
                    self._folder, self._first = part_folder(self.out, group[0]), group[0]
                    self._going = self._continuation.elsewhere(self._folder)
                    self.store = ExpertStore.open(self._folder) if self._going.resumes else None
                    self._record(group[-1] + 1)
                    if processes.main:
                        collect(whole)
            if asked:
                raise Interrupted(f"interrupted {_SHARED}; continue with: dim experts --out {self.out} --resume", asked[0])
            processes.wait()
            return processes.once(lambda: collect_all(whole))

    def _groups(self) -> list[list[int]]:
        """Experts that are trained side by side."""
        together, count = self.settings.together, self.settings.count
        return [list(range(start, min(count, start + together))) for start in range(0, count, together)]

    def _prepare(self, stack: contextlib.ExitStack) -> ExpertStore:
        """The store with all that is finished, locked until the stack is closed. A group that one process had begun in it gets a
        folder of its own."""
        every = len(self._groups()) * self.total
        stack.enter_context(sole_writer(self.out))
        self._continuation.require_unchanged()
        # All metrics are kept: those of the finished experts.
        open_run(self.out, self._continuation.opening(self._description(), every), every)
        whole = ExpertStore.create(self.out, self.layout) if self.store is None else self.store
        set_apart(whole)
        collect(whole)
        return whole

    def _description(self) -> dict[str, Any]:
        return run_description(
            self.config, self.natural_spec, self.device, "experts", processes=self.processes, images=self.data.sizes
        )

    def _record(self, stop: int) -> None:
        """Record the experts of the present store that are missing, up to expert `stop`, one group after another."""
        together = self.settings.together
        first = self._first + (0 if self.store is None else len(self.store.records) // together * together)
        if self.store is not None and self.store.complete:
            first = -(-stop // together) * together  # the last group may be smaller
        state = self._load_state(first) if self.store is not None else None
        step = 0 if state is None else state[0]
        self.loop = Loop(
            self,
            self._folder,
            name="experts",
            total=len(self._groups()) * self.total,
            step=first // together * self.total + step,
            seconds=max((entry.get("seconds", 0.0) for entry in read_metrics(self._folder)), default=0.0),
            description=self._description(),
            continuation=self._going,
            settings=self.settings,
            device=self.device,
            file=STATE,
            shown=self.processes.main,
            called=self.out,
        )
        with self.loop:
            if self.store is None:
                layout = dataclasses.replace(self.layout, experts=stop - self._first)
                self.store = ExpertStore.create(self._folder, layout)
            for start in range(first, stop, together):
                self._group(list(range(start, min(stop, start + together))), state)
                state = None
            (self._folder / STATE).unlink(missing_ok=True)

    def _group(self, members: list[int], state: tuple[int, dict[str, Tensor]] | None) -> None:
        """Train some experts side by side."""
        settings, train, loop = self.settings, self.data.train, self.loop
        batches = [
            EpochBatches(train, settings.batch_size, seed=rng.fold(settings.seed, "expert-batches", member), purpose="expert")
            for member in members
        ]
        step, tensors = self._begin(members) if state is None else state
        while step < self.total:
            loss = self._step(members, batches, step, tensors)
            step += 1
            self._now = members, step, tensors
            loop.advance()
            if step % self.per_moment == 0:
                self._end_moment(members, step, loss, tensors)
            if step < self.total:
                loop.between(f"in expert {members[0]}, step {step} of {self.total}" if self.processes.world == 1 else _SHARED)
        tests = self._accuracies(tensors["theta"], self.data.test, judged_parts(self.network.net, len(self.data.test)))
        for row, member in enumerate(members):
            lengths = tuple(tuple(float(f"{value:.7g}") for value in moment) for moment in tensors["lengths"][row].tolist())
            accuracies = tuple(round(value, 3) for value in tensors["accuracies"][row].tolist())
            record = ExpertRecord(lengths=lengths, accuracies=accuracies, test_accuracy=round(float(tests[row]), 3))
            self.store.finish(member - self._first, record)
        (self._folder / STATE).unlink(missing_ok=True)
        if members[-1] + 1 < settings.count:
            done = f"after {members[-1] + 1} of {settings.count} experts"
            loop.stop_if_asked(done if self.processes.world == 1 else _SHARED)

    def _begin(self, members: list[int]) -> tuple[int, dict[str, Tensor]]:
        """The state of experts that have not begun."""
        theta = torch.stack([self.network.initial(rng.fold(self.settings.seed, "expert", member)) for member in members])
        tensors = {
            "theta": theta,
            "momentum": torch.zeros_like(theta),
            "previous": theta.clone(),  # weights at the last moment
            "before": theta.clone(),  # and at the one before
            "lengths": torch.zeros(len(members), self.layout.last, len(self.layout.tensors)),
            "accuracies": torch.zeros(len(members), self.layout.last + 1),
        }
        tensors["accuracies"][:, 0] = self._along(theta)
        self._keep(members, 0, tensors)
        return 0, tensors

    def _end_moment(self, members: list[int], step: int, loss: Tensor, tensors: dict[str, Tensor]) -> None:
        """Record what a moment leaves: path lengths, accuracy, checkpoint, metrics."""
        moment, theta = step // self.per_moment, tensors["theta"]
        if not bool(theta.isfinite().all() & loss.isfinite().all()):
            self.loop.fail(f"expert {members[0]}: the weights are not finite at moment {moment}")
        tensors["lengths"][:, moment - 1] = self.network.tensor_norms(theta - tensors["previous"]).cpu()
        accuracies = tensors["accuracies"][:, moment] = self._along(theta)
        self._keep(members, moment, tensors)
        tensors["before"], tensors["previous"] = tensors["previous"], theta.clone()
        values = {"loss": float(loss.mean()), "accuracy": float(accuracies.mean())}
        self.loop.log({"expert": members[0], "moment": moment, **values}, shown=values, note=f"expert {members[0]}")

    def _keep(self, members: list[int], moment: int, tensors: dict[str, Tensor]) -> None:
        """Store the checkpoints that a moment completes."""
        moments, last, smooth = self.layout.moments, self.layout.last, self.settings.smooth
        around = {moment - 2: tensors["before"], moment - 1: tensors["previous"], moment: tensors["theta"]}
        for waypoint in (moment - 1, moment):
            # A waypoint is complete when the last moment that it is made of has come.
            if waypoint in moments and max(needed(waypoint, last, smooth)) == moment:
                theta = smoothed(around, waypoint, last) if smooth and waypoint > 0 else around[waypoint]
                for row, member in enumerate(members):
                    self.store.write(member - self._first, moments.index(waypoint), theta[row])

    # --- training ------------------------------------------------------------------------------------------------------------

    def _gradients(self, theta: Tensor, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient (E, P) and loss (E,)."""
        if self.settings.together > 1:
            return self._gradient_of(theta, images, labels)
        gradient, loss = self._gradient_of(theta[0], images[0], labels[0])
        return gradient[None], loss[None]

    @torch.no_grad()
    def _step(self, members: list[int], batches: list[EpochBatches], step: int, tensors: dict[str, Tensor]) -> Tensor:
        """One optimiser step of every expert, in place; returns the losses (E,)."""
        images, labels = self._batch(members, batches, step)
        theta, momentum, loss = self._update(tensors["theta"], tensors["momentum"], images, labels)
        tensors["theta"].copy_(theta)
        tensors["momentum"].copy_(momentum)
        return loss

    def _updated(self, theta: Tensor, momentum: Tensor, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Weights and momentum (E, P) after a step, and the losses (E,). Complete, so that it can be compiled."""
        settings = self.settings
        gradient, loss = self._gradients(theta, images, labels)
        if settings.optimizer == "gsam":
            gradient = gsam_gradient(
                theta,
                gradient,
                lambda moved: self._gradients(moved, images, labels)[0],
                rho=settings.rho,
                alpha=settings.alpha,
                adaptive=settings.adaptive,
            )
        if settings.weight_decay:
            gradient = gradient + settings.weight_decay * theta
        if settings.momentum:
            gradient = momentum = settings.momentum * momentum + gradient
        return torch.sub(theta, gradient, alpha=settings.lr), momentum, loss

    def _batch(self, members: list[int], batches: list[EpochBatches], step: int) -> tuple[Tensor, Tensor]:
        """One augmented batch for every expert: (E, B, C, H, W) and (E, B)."""
        images, labels = [], []
        for member, own in zip(members, batches, strict=True):
            x, y = own.at(step)
            source = rng.generator(self.settings.seed, "expert-augment", member, step, device=self.device)
            images.append(self.augment(x.to(self.device), source))
            labels.append(y.to(self.device))
        return torch.stack(images), torch.stack(labels)

    def _along(self, theta: Tensor) -> Tensor:
        """Accuracy along the way: on the validation part, or on some training images if nothing is held out."""
        count = min(_JUDGED, len(self._judged))
        order = torch.randperm(len(self._judged), generator=rng.generator(self.settings.seed, "expert-judge"))
        return self._accuracies(theta, self._judged, [order[:count]])

    @torch.no_grad()
    def _accuracies(self, theta: Tensor, split: Split, several: Sequence[Tensor]) -> Tensor:
        """Accuracy of every expert on images of a split, by their indices in parts (`judged_parts`), in percent, on the CPU."""
        correct = torch.zeros(len(theta), device=self.device)
        for part in several:
            for _, images, labels in in_chunks(split, part, largest=JUDGED, budget=FORWARD):
                images, labels = images.to(self.device), labels.to(self.device)
                for row, weights in enumerate(theta):
                    correct[row] += (self.network.logits(weights, images).argmax(1) == labels).sum()
        return 100 * correct.cpu() / sum(map(len, several))

    # --- state ---------------------------------------------------------------------------------------------------------------

    remedy = "All experts are trained alike: record them in a new folder with a lower learning rate (--experts.lr)"
    departs = ""

    def check(self) -> None:
        """See `dim.loop.Run`: weights are checked at every moment."""

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """See `dim.loop.Run`: of the experts that are being trained."""
        members, step, tensors = self._now
        return tensors, {"kind": "recording", "first": members[0], "step": step}

    def result(self) -> None:
        """See `dim.loop.Run`: finished experts have been written."""

    def picture(self) -> None:
        """See `dim.loop.Run`: there is none."""

    def _load_state(self, first: int) -> tuple[int, dict[str, Tensor]] | None:
        """The state of the group that begins with expert `first`, if it was saved."""
        if not (self._folder / STATE).is_file():
            return None
        tensors, metadata = self._going.load(file=STATE)
        if metadata.get("first") != first:
            return None  # a kill left it behind after its group was finished
        rows = min(self.settings.together, self.settings.count - first)
        if not {"theta", "lengths", "accuracies"} <= tensors.keys() or tensors["theta"].shape != (rows, self.layout.parameters):
            raise InputError(
                f"{self._folder / STATE} is damaged: it does not hold {rows} experts; remove it, and they begin again"
            )
        on_host = ("lengths", "accuracies")
        return metadata["step"], {k: v if k in on_host else v.to(self.device) for k, v in tensors.items()}


def gsam_gradient(
    theta: Tensor, gradient: Tensor, gradient_at: Callable[[Tensor], Tensor], *, rho: float, alpha: float, adaptive: bool
) -> Tensor:
    """Surrogate-gap sharpness-aware gradient (GSAM, Zhuang et al. 2022, algorithm 1), for rows of weights.

    With e = rho * T^2 g / |T g| (T = |theta| if `adaptive`, else 1), the gradient at theta + e, less `alpha` times the part of
    g that is orthogonal to it.

    Args:
        theta: (E, P) weights.
        gradient: (E, P), g.
        gradient_at: the gradient at other weights, on the same batch.
        rho: radius of the perturbation.
        alpha: weight of the orthogonal part. 0: sharpness-aware minimisation (Foret et al. 2021).
        adaptive: scale the perturbation by the weights (Kwon et al. 2021).

    Returns:
        (E, P), to descend along.
    """
    tiny = 1e-12
    scale = theta.abs() if adaptive else torch.ones_like(theta)
    length = (scale * gradient).norm(dim=1, keepdim=True) + tiny
    sharp = gradient_at(theta + rho * scale.square() * gradient / length)
    direction = sharp / (sharp.norm(dim=1, keepdim=True) + tiny)
    orthogonal = gradient - (gradient * direction).sum(1, keepdim=True) * direction
    return sharp - alpha * orthogonal


def _layout(settings: ExpertsConfig, network: FlatNetwork, last: int) -> Layout:
    moments = tuple(range(last + 1))
    if settings.waypoints:
        moments = waypoint_moments(last, settings.waypoints, smooth=settings.smooth)
    return Layout(
        experts=settings.count,
        moments=moments,
        every=settings.every,
        tensors=tuple(zip(network.names, network.sizes, strict=True)),
        dtype=settings.storage,
    )
