"""The mean features of each class's images are those of its real images, in experts of many ages (distribution matching, Zhao &
Bilen 2023, with trained networks in place of random ones)."""

from dataclasses import dataclass

import torch

from dim.config import PoolConfig, RefineConfig, require
from dim.data.real import RealData
from dim.objectives import Objective
from dim.objectives.set_moments import SetMoments
from dim.pools.experts import ExpertPool
from dim.trajectory.experts import Experts

__all__ = ["matching_moments"]


@dataclass(frozen=True, kw_only=True)
class MomentsOptions:
    """Of the purpose `moments`."""

    real: int = 32
    """Real images of every class per update."""

    def __post_init__(self) -> None:
        require(self.real >= 1, "refine.real", self.real, "at least 1")


def matching_moments(config: RefineConfig, folder: str, data: RealData, *, seed: int, device: torch.device) -> list[Objective]:
    """One objective for every block, as far as blocks differ; see `dim.emit.refine.build_objectives`."""
    youngest, *oldest = config.ages
    experts = Experts(folder, data, device)
    windows = [PoolConfig(source="experts", experts=folder, ages=(youngest, age), oldest_at_first=age) for age in oldest]
    pools = [ExpertPool(one, data, first_step=0, steps=1, seed=seed, device=device, experts=experts) for one in windows]
    return [SetMoments(pool, data, per_class=config.real, seed=seed) for pool in pools]


matching_moments.Options = MomentsOptions
