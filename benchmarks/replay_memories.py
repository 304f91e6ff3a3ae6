"""What `replay.py` puts into a memory: random, chosen and generated images of a task, and those of a client."""

import functools
from dataclasses import dataclass
from pathlib import Path

import torch
from common import Sources, changed, note_sources, train
from replay_scale import Scale, lengths, order_of, restricted

from dim import rng
from dim.config import PolicyConfig
from dim.data.real import RealData
from dim.data.synthetic import SyntheticSet
from dim.emit.policy import Policy
from dim.features.coreset import Selector
from dim.features.spaces import trained_features
from dim.hub import load_generator, save_pretrained
from dim.nets.generator import Generator
from dim.recipes.load import load_recipe
from dim.runs.accelerator import make_accelerator
from dim.runs.beside import FOLDER
from dim.sampler import anchored
from dim.spec import to_uint8

RECIPES = {"fashion": "fashion-gan-small", "cifar10": "cifar10-gan-cpu", "digits": "fashion-gan-small"}

Source = SyntheticSet | Generator


@dataclass(frozen=True)
class Workshop:
    """What all rows of a call share.

    Args:
        out: folder of generators.
        sources: the code.
        device: where to work.
        root: where the data lies.
        scale: how large everything is.
    """

    out: Path
    sources: Sources
    device: torch.device
    root: str | None
    scale: Scale

    @functools.cached_property
    def data(self) -> RealData:
        """The real data."""
        return self.scale.real(self.root, self.device)

    def tasks(self, order: int) -> list[list[int]]:
        """Classes of every task."""
        return order_of(self.data, self.scale.per_task, order)

    def run(self, name: str, data: RealData, *, matched: bool) -> Path:
        """A generator of these data, with small experts beside it and matching if they are of a task; of a client without."""
        recipe = load_recipe(RECIPES[self.scale.data])
        changes = lengths(recipe, self.scale, data)
        fit = {"experts": 1 if self.scale.name == "tiny" else 3} if matched else {}
        changes["fit"] = {"trackers": (), "checkpoint_minutes": 2.0, **changes.get("fit", {}), **fit}
        changes["data"] = {"dataset": self.scale.source().dataset}
        if not matched:
            changes["matching"] = {"weight": 0.0}
        config = changed(recipe, changes)
        return train(config, data, self.out / name, make_accelerator(config, self.out / name), self.sources)


def real(data: RealData, most: int, seed: int) -> SyntheticSet:
    """Random images of every class, in a random order."""
    order = torch.randperm(len(data.train), generator=rng.generator(seed, "replay-random"))
    labels = data.train.labels[order]
    first = torch.cat([(labels == label).nonzero().squeeze(1)[:most] for label in range(data.spec.num_classes)])
    return _real_set(data, order[first.sort().values])


def herded(shop: Workshop, data: RealData) -> SyntheticSet:
    """Images of every class by herding (iCaRL), in their order."""
    most = min(shop.scale.most, int(torch.bincount(data.train.labels, minlength=data.spec.num_classes).min()))
    return _real_set(data, Selector(data, features=trained_features(data, shop.scale.features)).select(most, "herding"))


def _real_set(data: RealData, indices: torch.Tensor) -> SyntheticSet:
    images, labels = data.train.batch(indices)
    return SyntheticSet(to_uint8(images.cpu()), labels.cpu(), data.spec, info={"method": "real"})


def refined(shop: Workshop, run: Path, data: RealData) -> Path:
    """A generator that makes chosen and refined images first, and others around them after these. It is kept beside the run."""
    out, scale = run.with_name(f"{run.name}-refined"), shop.scale
    if not out.exists():
        note_sources(out, shop.sources)
        config = PolicyConfig(steps=("matched", "refined"), candidates=scale.candidates)
        given = {"features": trained_features(data, scale.features), "experts": str(run / FOLDER), "refinement": scale.refinement}
        generator, count = load_generator(run, shop.device), scale.refinement.blocks[-1]
        ranking = Policy(config, data=data, **given).rank(generator, ipc=count)
        save_pretrained(anchored(generator, ranking, ipc=count, spread=scale.spread), out)
    return out


def of_task(shop: Workshop, kind: str, order: int, task: int) -> tuple[Source, dict[str, Path]]:
    """What a memory of a kind is given after a task, and the runs that it is made from."""
    data = restricted(shop.data, shop.tasks(order)[task])
    if kind in ("random", "reservoir"):
        return real(data, shop.scale.most if kind == "random" else len(data.train), order), {}
    if kind == "herding":
        return herded(shop, data), {}
    name = f"order-{order}/task-{task}"
    run = shop.run(name, data, matched=True)
    if kind == "refined":
        run = refined(shop, run, data)
    return load_generator(run, shop.device), {run.relative_to(shop.out).as_posix(): run}


def of_client(shop: Workshop, kind: str, division: int, number: int, data: RealData) -> tuple[Source | None, list[int] | None]:
    """What a client sends, and of which classes; nothing, if a generator of its images is asked for none."""
    if kind == "random":
        return real(data, shop.scale.most, division), None
    counts = torch.bincount(data.train.labels, minlength=data.spec.num_classes)
    classes = (counts >= shop.scale.fewest).nonzero().squeeze(1).tolist()
    if not classes:
        return None, None
    return load_generator(shop.run(f"division-{division}/client-{number}", data, matched=False), shop.device), classes
