"""Comes last: the latents of what was taken are moved by recorded experts (--refine), block by block, so that sets stay
nested."""

import json
from collections.abc import Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from dim.config import PolicyConfig, RefineConfig, to_dict
from dim.emit.policy import Given, Ranking, Step
from dim.emit.refine import Kept, build_objectives, refine
from dim.io import digest
from dim.nets.generator import Generator
from dim.sampler import identity
from dim.trajectory.store import open_experts_of

__all__ = ["Refined"]


class Refined(Step):
    """See `dim.emit.policy.Step`: it leaves the order as it is and moves latents."""

    needs = ("data", "experts")
    moves = True

    def __init__(self, config: PolicyConfig, given: Given) -> None:
        self._config, self._experts, self._data = given.refinement or RefineConfig(), given.experts, given.data
        self._state = given.state
        self._mark = open_experts_of(self._experts, self._data.spec)[0].digest()

    def about(self) -> dict[str, Any]:
        return {"refinement": to_dict(self._config), "refinement_experts": self._mark}

    def move(
        self, generator: Generator, numbers: Sequence[Tensor], seed: int, ipc: int | None, earlier: Ranking | None
    ) -> tuple[Tensor, int | None]:
        blocks, count = self._config.blocks, min(map(len, numbers))
        wanted = min(blocks[-1], count) if ipc is None else ipc
        Ranking(tuple(numbers), {}).require(wanted)
        places = torch.stack([chosen[:count] for chosen in numbers])
        labels = torch.arange(len(numbers))[:, None].expand_as(places)
        latents, done = generator.latents(labels.flatten(), places.flatten(), seed=seed), 0
        latents = rearrange(latents, "(k n) z -> k n z", n=count)
        if earlier is not None:
            latents, done = earlier.latents, earlier.refined or count
        purposes = build_objectives(self._config, self._experts, self._data, seed=seed, device=generator.device)
        kept = None
        if self._state is not None:
            asked = {**self.about(), "generator": identity(generator), "seed": seed, "ipc": wanted, "done": done}
            kept = Kept(self._state, digest({"latents": latents}, json.dumps(asked, sort_keys=True)))
            self.seconds_before = kept.seconds
        moved = refine(generator, latents, purposes, self._config, wanted, done=done, kept=kept).cpu()
        # The last block is the last that is ever refined, so what lies beyond it is final as well.
        return moved, next((end for end in blocks[:-1] if end >= wanted), None)
