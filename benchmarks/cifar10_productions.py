"""What `cifar10.py` trains: generators, experts, distilled sets, refined generators. Each lies in a folder of its own name below
`--out`, and goes on where it stopped.
"""

import dataclasses
import functools
import math
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from cifar10_shop import GAN, Workshop, run_for, step_seconds
from common import changed, epochs, note_sources, train

from dim.config import PolicyConfig, RecordConfig, TrainConfig, TrajectoryRecipe, to_dict
from dim.data.stored import DESCRIPTION
from dim.data.synthetic import load_set
from dim.emit.policy import Policy
from dim.errors import InputError
from dim.features.spaces import trained_features
from dim.hub import load_generator, save_pretrained
from dim.io import read_json, write_json
from dim.nets.generator_file import FILE_NAME
from dim.run_folder import CHECKPOINT, RUN, load_run_config, read_metrics
from dim.runs.accelerator import make_accelerator
from dim.runs.distill import distill
from dim.runs.stages import plan
from dim.sampler import anchored
from dim.trajectory.record import record
from dim.trajectory.store import LAYOUT, ExpertStore

PUBLISHED = "cifar10-dim2023-cpu"


@dataclass(frozen=True, kw_only=True)
class Production:
    """Something that is trained before rows can be scored."""

    name: str
    """And that of its folder."""
    hours: float
    """Of one core, estimated."""
    needs: tuple[str, ...] = ()
    """Productions that it is made from."""
    resumes: ClassVar[bool] = True
    """Whether it can be stopped and goes on later; otherwise it is begun only where there is time for the whole."""

    def open_needs(self, shop: Workshop) -> tuple[str, ...]:
        """Those that it is made from, as long as it has not begun."""
        return () if shop.folder(self.name).exists() else self.needs

    def part_done(self, shop: Workshop) -> float:
        """From 0 to 1, by what lies on disk."""
        raise NotImplementedError

    def done(self, shop: Workshop) -> bool:
        """Whether it lies there finished."""
        return self.part_done(shop) >= 1

    def seconds(self, shop: Workshop) -> float | None:
        """Seconds that it took, by its own clock."""
        raise NotImplementedError

    def make(self, shop: Workshop, seconds: float) -> bool:
        """Make it, or go on with it, for so many seconds; returns whether it is finished."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Run(Production):
    """A generator, trained by a recipe. What lies in its folder is continued with its own settings, or used as it is."""

    recipe: str = GAN
    seed: int = 0

    def planned(self, shop: Workshop) -> TrainConfig:
        """Its configuration if nothing lies there."""
        return changed(shop.recipe(self.recipe), {"fit": {"seed": self.seed}})

    def config(self, shop: Workshop) -> TrainConfig:
        """That of the run that lies there, or the planned one."""
        folder = shop.folder(self.name)
        if not (folder / RUN).is_file():
            return self.planned(shop)
        return changed(shop.located(load_run_config(folder)), {"fit": {"trackers": ()}})

    def about(self, shop: Workshop) -> dict[str, Any]:
        """Step, total_steps and seconds of its last checkpoint."""
        folder = shop.folder(self.name)
        if not (folder / FILE_NAME).is_file():
            return {"step": 0, "total_steps": math.inf, "seconds": 0.0}
        return load_generator(folder).info["about"]

    def part_done(self, shop: Workshop) -> float:
        about = self.about(shop)
        return about["step"] / about["total_steps"]

    def seconds(self, shop: Workshop) -> float | None:
        return self.about(shop)["seconds"]

    def first(self, shop: Workshop) -> Path | None:
        """A run at whose end this one begins."""
        return None

    def make(self, shop: Workshop, seconds: float) -> bool:
        config, out = self.config(shop), shop.folder(self.name)
        self._clear(shop, config)
        accelerator = make_accelerator(config, out)
        return run_for(seconds, lambda: train(config, shop.data, out, accelerator, shop.sources, self.first(shop)))

    def _clear(self, shop: Workshop, config: TrainConfig) -> None:
        """Make place where what lies there cannot be continued with this configuration, although it is the beginning of it."""


def stage_one_steps(config: TrainConfig, shop: Workshop) -> int:
    """Steps of a run's first stage."""
    return plan(config, len(shop.data.train))[0].stop


@dataclass(frozen=True, kw_only=True)
class StageOne(Run):
    """A run that ends with the first stage of another one, `of`. If that one lies there and is not beyond it, what it has is
    taken over: as long as stage one lasts, both are the same, bit by bit. For the same reason, a copy of that one in this
    folder, made before its second stage, is continued to the end of the first."""

    of: Run

    def planned(self, shop: Workshop) -> TrainConfig:
        return self.of.config(shop)

    def config(self, shop: Workshop) -> TrainConfig:
        # Nothing of stage two, so that its settings can be chosen when this has been trained.
        return changed(super().config(shop), {"stage_two": {"epochs": 0.0}, "matching": {"weight": 0.0}})

    def part_done(self, shop: Workshop) -> float:
        if not (shop.folder(self.name) / FILE_NAME).is_file():
            return 0.0
        return self.about(shop)["step"] / stage_one_steps(self.config(shop), shop)

    def done(self, shop: Workshop) -> bool:
        return self.part_done(shop) == 1

    def _copy(self, shop: Workshop) -> Path:
        """Where a copy of the whole run is put before this begins at its end."""
        return shop.out / f"{self.name}.copy"

    def first(self, shop: Workshop) -> Path | None:
        if (self._copy(shop) / CHECKPOINT).is_file():
            return self._copy(shop)
        folder = shop.folder(self.of.name)
        if (folder / CHECKPOINT).is_file() and self.of.about(shop)["step"] <= stage_one_steps(self.of.config(shop), shop):
            return folder
        return None

    def _clear(self, shop: Workshop, config: TrainConfig) -> None:
        out = shop.folder(self.name)
        if (out / RUN).is_file():
            if self.part_done(shop) > 1:
                raise InputError(
                    f"{out} is beyond the end of stage one: expected a run that is not; remove it, or restore an older copy"
                )
            if to_dict(load_run_config(out).stage_two) != to_dict(config.stage_two):  # a copy of the whole run
                out.rename(self._copy(shop))


@dataclass(frozen=True, kw_only=True)
class FromStageOne(Run):
    """A run that begins at the end of a `StageOne`, the first of `needs`."""

    def begun(self, shop: Workshop) -> TrainConfig:
        """The recipe's stage two, after the networks and the stage one that it begins with."""
        recipe, first = shop.recipe(self.recipe), shop.folder(self.needs[0])
        config = shop.located(load_run_config(first)) if (first / RUN).is_file() else recipe
        two = {name: getattr(recipe, name) for name in ("about", "stage_two", "matching", "pool", "path_matching", "protocol")}
        return changed(dataclasses.replace(config, **two), {"fit": {"seed": self.seed, "trackers": ()}})

    def first(self, shop: Workshop) -> Path | None:
        return shop.folder(self.needs[0])


@dataclass(frozen=True, kw_only=True)
class Whole(FromStageOne):
    """The recipe's run of both stages. It may lie there from `dim train`, begun or finished, and then goes on by itself."""

    def planned(self, shop: Workshop) -> TrainConfig:
        return self.begun(shop)

    def open_needs(self, shop: Workshop) -> tuple[str, ...]:
        return () if self.about(shop)["step"] > stage_one_steps(self.config(shop), shop) else self.needs

    def _clear(self, shop: Workshop, config: TrainConfig) -> None:
        out = shop.folder(self.name)
        if (out / RUN).is_file() and self.about(shop)["step"] < stage_one_steps(config, shop):
            shutil.rmtree(out)  # `StageOne` took it over and ended it; this begins at that end


@dataclass(frozen=True, kw_only=True)
class Continued(FromStageOne):
    """Another stage two, for the time that the recipe's stage two takes.

    The time is planned by the seconds of a step of either, measured one after the other when it begins.
    """

    variant: str = "longer"
    """`longer`: adversarial training alone. `matched`: the recipe's matching. `published`: the published distance and pool."""

    def planned(self, shop: Workshop) -> TrainConfig:
        config, note = self.varied(shop), shop.out / f"{self.name}.plan.json"
        if not note.is_file():
            two = plan(self.begun(shop), len(shop.data.train))[1]
            recipe_step = step_seconds(self.begun(shop), shop)[1]
            own_step = recipe_step if self.variant == "matched" else step_seconds(config, shop)[1]
            steps = max(1, round((two.stop - two.start) * recipe_step / own_step))
            write_json(note, {"seconds_per_step": own_step, "seconds_per_step_of_recipe": recipe_step, "steps": steps})
        length = epochs(read_json(note)["steps"], config.stage_two.batch_size, shop.data)
        return changed(config, {"stage_two": {"epochs": length}})

    def varied(self, shop: Workshop) -> TrainConfig:
        """The variant, as many steps as the recipe's."""
        config = self.begun(shop)
        if self.variant == "longer":
            return changed(config, {"matching": {"weight": 0.0}})
        if self.variant == "published":
            published = shop.recipe(PUBLISHED)
            return dataclasses.replace(config, matching=published.matching, pool=published.pool)
        return config


@dataclass(frozen=True, kw_only=True)
class Experts(Production):
    """Recorded experts of a trajectory-matching recipe."""

    recipe: str
    """Whose architecture, whitening and experts they are."""
    changes: dict[str, Any] = field(default_factory=dict)
    """Settings of its section `experts` that are others here."""

    def planned(self, shop: Workshop) -> RecordConfig:
        """Every moment is kept; methods that want waypoints take them from these."""
        recipe: TrajectoryRecipe = shop.recipe(self.recipe)
        experts = dataclasses.replace(recipe.experts, waypoints=0, smooth=False, **shop.scale.experts(self.changes))
        return RecordConfig(about=recipe.about, student=recipe.student, zca=recipe.zca, data=recipe.data, experts=experts)

    def part_done(self, shop: Workshop) -> float:
        folder = shop.folder(self.name)
        if not (folder / LAYOUT).is_file():
            return 0.0
        store = ExpertStore.open(folder)
        return len(store.records) / store.layout.experts

    def seconds(self, shop: Workshop) -> float | None:
        return max((entry["seconds"] for entry in read_metrics(shop.folder(self.name))), default=None)

    def make(self, shop: Workshop, seconds: float) -> bool:
        folder = shop.folder(self.name)
        begun = (folder / RUN).is_file()
        config = shop.located(load_run_config(folder, RecordConfig, "experts")) if begun else self.planned(shop)
        note_sources(folder, shop.sources)
        return run_for(seconds, lambda: record(config, shop.data, folder, resume=folder.exists(), device=shop.device))


@dataclass(frozen=True, kw_only=True)
class Distilled(Production):
    """A set, distilled by a trajectory-matching recipe from recorded experts (`needs`)."""

    recipe: str
    changes: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Settings of its sections that are others here."""
    most_hours: float = math.inf
    """It ends when its clock shows this, if its iterations are not done before."""

    def planned(self, shop: Workshop) -> TrajectoryRecipe:
        """The recipe with its changes; what students see follows from the experts."""
        recipe: TrajectoryRecipe = shop.recipe(self.recipe)
        for section, values in shop.scale.distillation(self.changes).items():
            recipe = changed(recipe, {section: values})
        recorded = load_run_config(shop.folder(self.needs[0]), RecordConfig, "experts")
        return dataclasses.replace(recipe, zca=recorded.zca, student=recorded.student)

    def _info(self, shop: Workshop) -> dict[str, Any] | None:
        folder = shop.folder(self.name)
        return load_set(folder).info if (folder / DESCRIPTION).is_file() else None

    def part_done(self, shop: Workshop) -> float:
        info = self._info(shop)
        if info is None:
            return 0.0
        wanted = max(1, info["config"]["distill"]["iterations"])
        return max(info["iterations"] / wanted, info["seconds"] / (3600 * self.most_hours))

    def seconds(self, shop: Workshop) -> float | None:
        info = self._info(shop)
        return None if info is None else info["seconds"]

    def make(self, shop: Workshop, seconds: float) -> bool:
        folder, experts = shop.folder(self.name), shop.folder(self.needs[0])
        begun = (folder / RUN).is_file()
        stored = functools.partial(load_run_config, folder, TrajectoryRecipe, "distillation")
        config = shop.located(stored()) if begun else self.planned(shop)
        left = 3600 * self.most_hours - (self.seconds(shop) or 0.0)
        note_sources(folder, shop.sources)
        run_for(
            min(left, seconds),
            lambda: distill(config, shop.data, experts, folder, resume=folder.exists(), device=shop.device),
        )
        return self.done(shop)


@dataclass(frozen=True, kw_only=True)
class Refined(Production):
    """A generator around refined images of another one. `needs`: that one, and the experts that refine."""

    resumes: ClassVar[bool] = False

    def part_done(self, shop: Workshop) -> float:
        return float((shop.folder(self.name) / FILE_NAME).is_file())

    def seconds(self, shop: Workshop) -> float | None:
        return load_generator(shop.folder(self.name)).info["about"]["policy_seconds"]

    def make(self, shop: Workshop, seconds: float) -> bool:
        generator, experts = load_generator(shop.folder(self.needs[0]), shop.device), shop.folder(self.needs[1])
        folder, refinement, ipc = shop.folder(self.name), shop.scale.refinement, shop.scale.anchors
        state = folder.with_name(f"{folder.name}.refinement.safetensors")  # from which a killed one goes on
        policy = Policy(
            PolicyConfig(steps=("matched", "refined"), candidates=shop.scale.candidates),
            data=shop.data,
            features=trained_features(shop.data, shop.scale.features),
            experts=str(experts),
            refinement=refinement,
            state=state,
        )
        note_sources(folder, shop.sources)
        ranking = policy.rank(generator, ipc=ipc)
        save_pretrained(anchored(generator, ranking, ipc=ipc, spread=SPREAD), folder)
        state.unlink(missing_ok=True)
        return True


SPREAD = 0.3
"""Standard deviation of what a generator draws around refined latents."""
