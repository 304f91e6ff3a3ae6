"""An expert's path as a function of time: as it was recorded, or convexified from a few waypoints (MCT)."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from dim.errors import InputError
from dim.trajectory.store import ExpertStore, needed, smoothed, waypoint_moments


class ExpertPath(Protocol):
    """Weights as a function of time, in recorded moments (epochs, unless the store says otherwise)."""

    last: float
    """The end; the beginning is 0."""

    def theta(self, t: float) -> Tensor:
        """Weights at 0 <= t <= last, float32 (P,)."""
        ...


def paths_of(store: ExpertStore) -> list[ExpertPath]:
    """The path of every expert, by what the store holds: its checkpoints, or convex between its waypoints."""
    make = RecordedPath if store.layout.full else ConvexPath.of
    return [make(store, expert) for expert in range(store.layout.experts)]


def _require_inside(t: float, last: float) -> None:
    if not 0 <= t <= last:
        raise InputError(f"time {t} is outside the recorded path: expected 0 to {last}")


class RecordedPath:
    """The recorded checkpoints; between two of them, a straight line."""

    def __init__(self, store: ExpertStore, expert: int) -> None:
        if not store.layout.full:
            raise InputError(f"{store.folder} holds waypoints only: use --trajectory.path convex, or record every checkpoint")
        self._store, self._expert = store, expert
        self.last = float(store.layout.last)

    def theta(self, t: float) -> Tensor:
        """See `ExpertPath`."""
        _require_inside(t, self.last)
        before = int(t)
        theta = self._store.weights(self._expert, before)
        return theta if t == before else torch.lerp(theta, self._store.weights(self._expert, before + 1), t - before)


class ConvexPath:
    """Convex combinations of neighbouring waypoints (MCT, Zhong et al. 2025):

        theta(t) = (1 - beta_t) theta_a + beta_t theta_b

    for waypoints at moments a <= t <= b. beta is per parameter tensor: the length of the recorded path from a to t over its
    length from a to b. Between recorded moments beta is interpolated, so t is continuous, and t = last is valid.

    Args:
        waypoints: float32 (W, P).
        moments: their moments, ascending from 0.
        lengths: float (last, tensors): length of the recorded path between moment i and i + 1, per tensor.
        sizes: size of each tensor.
    """

    def __init__(self, waypoints: Tensor, moments: Sequence[int], lengths: Tensor, sizes: Sequence[int]) -> None:
        self._waypoints, self._moments = waypoints, list(moments)
        self._walked = torch.cat((torch.zeros(1, lengths.shape[1]), lengths.float().cumsum(0)))
        self._sizes = torch.tensor(list(sizes))
        self.last = float(moments[-1])

    @classmethod
    def of(cls, store: ExpertStore, expert: int, *, waypoints: int = 4, smooth: bool = False) -> "ConvexPath":
        """From a store: its own waypoints, or `waypoints` of the checkpoints of a full one, `smooth`ed as published."""
        layout = store.layout
        if layout.full and layout.last > 1:
            moments = waypoint_moments(layout.last, waypoints)
            points = []
            for moment in moments:
                around = {near: store.weights(expert, near) for near in needed(moment, layout.last, smooth)}
                points.append(smoothed(around, moment, layout.last) if smooth else around[moment])
        else:
            moments = layout.moments
            points = [store.weights(expert, position) for position in range(len(moments))]
        lengths = torch.tensor(store.records[expert].lengths)
        return cls(torch.stack(points), moments, lengths, [size for _, size in layout.tensors])

    def theta(self, t: float) -> Tensor:
        """See `ExpertPath`."""
        _require_inside(t, self.last)
        segment = max(index for index, moment in enumerate(self._moments[:-1]) if moment <= t)
        start, stop = self._moments[segment], self._moments[segment + 1]
        before = min(int(t), stop - 1)
        walked = torch.lerp(self._walked[before], self._walked[before + 1], t - before) - self._walked[start]
        whole = self._walked[stop] - self._walked[start]
        beta = torch.where(whole > 0, walked / whole.clamp(min=torch.finfo().tiny), torch.zeros(()))
        return torch.lerp(self._waypoints[segment], self._waypoints[segment + 1], beta.repeat_interleave(self._sizes))
