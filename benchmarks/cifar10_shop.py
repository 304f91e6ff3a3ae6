"""Where the productions of `cifar10.py` lie, and how long they may work."""

import dataclasses
import functools
import math
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from cifar10_scale import FULL, Scale
from common import Sources, changed, seconds_per_step

from dim.compiling import compiler_found
from dim.config import TrainConfig
from dim.config.data import located
from dim.data.real import RealData, load_data
from dim.loop import Interrupted
from dim.recipes.load import load_recipe

GAN = "cifar10-gan-cpu"
"""The recipe whose data and protocol are those of the table."""


@dataclass
class Workshop:
    """What all productions and rows of one call share.

    Args:
        out: folder of productions and of unfinished rows.
        sources: the code.
        device: where to work.
        data_root: where CIFAR-10 lies.
        scale: how large everything is.
    """

    out: Path
    sources: Sources
    device: torch.device
    data_root: str | None = None
    scale: Scale = FULL
    rankings: dict[str, Any] = field(default_factory=dict)
    """Of policies, by generator and policy."""

    @functools.cached_property
    def data(self) -> RealData:
        """The real data."""
        recipe = load_recipe(GAN)
        return self.scale.images(load_data(located(self.scale.source(recipe.data), self.data_root), self.device))

    def recipe(self, name: str) -> Any:
        """A recipe at this scale, of the data of the table."""
        recipe, data = load_recipe(name), located(self.scale.source(load_recipe(GAN).data), self.data_root)
        recipe = dataclasses.replace(recipe, data=data)
        if isinstance(recipe, TrainConfig):
            return changed(self.scale.generator(recipe, self.data), {"fit": {"trackers": ()}})
        return self.scale.trajectory(recipe)

    def located(self, config: Any) -> Any:
        """A stored configuration, with the data where it lies now."""
        return dataclasses.replace(config, data=located(dataclasses.replace(config.data, root=None), self.data_root))

    def folder(self, name: str) -> Path:
        """Where a production lies."""
        return self.out / name


def run_for(seconds: float, run: Callable[[], Any]) -> bool:
    """Call a long run, and ask it to stop after so many seconds as a signal would: it ends its step and saves its state. Seconds
    count from when it listens to signals; before that there is nothing to save, and its own clock stands still, too.

    Returns:
        Whether it came to its end.

    Raises:
        Interrupted: if somebody else asked it to stop.
    """
    if math.isinf(seconds):
        run()
        return True
    asked: list[int] = []
    began: float | None = None
    before = signal.getsignal(signal.SIGTERM)

    def ask(number: int, frame: Any) -> None:
        nonlocal began
        if signal.getsignal(signal.SIGTERM) == before:
            return
        began = time.monotonic() if began is None else began
        if not asked and time.monotonic() - began >= seconds:
            asked.append(number)
            signal.raise_signal(signal.SIGTERM)

    previous = signal.signal(signal.SIGALRM, ask)
    often = min(1.0, max(seconds / 20, 0.01))
    signal.setitimer(signal.ITIMER_REAL, often, often)
    try:
        run()
    except Interrupted:
        if not asked:
            raise
        return False
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    return True


def step_seconds(config: TrainConfig, shop: Workshop) -> tuple[float, float]:
    """Seconds of a step of either stage, computed as in a long run: the mean over the pool's architectures, one after another."""
    compiles = shop.device.type == "cpu" and compiler_found(shop.device) and not shop.scale.tiny
    fit = {"compile": "on" if compiles and config.fit.compile == "auto" else config.fit.compile}
    pools: list[dict[str, Any]] = [{}]
    if config.matching.weight > 0 and config.pool.source != "experts":
        auto = {"compile": "on"} if compiles and config.pool.compile == "auto" else {}
        pools = [{"students": (student,), **auto} for student in config.pool.students]
    shorts = [changed(config, {"fit": fit, "pool": pool}) for pool in pools]
    found = [seconds_per_step(short, shop.data, **shop.scale.timing) for short in shorts]
    return tuple(sum(seconds) / len(found) for seconds in zip(*found, strict=True))
