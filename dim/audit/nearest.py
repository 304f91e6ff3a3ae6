"""Distances between real images and those of a set: what the set itself reveals, without a student.

An image that a set was made with may lie nearer to an image of the set than one that it was not made with (GAN-Leaks, Chen et al.
2020, arXiv 1909.03935, full black-box). Distances are taken within a class, as the attacker knows the label.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dim import rng
from dim.audit.candidates import Candidates
from dim.audit.rates import proportion
from dim.chunks import FORWARD
from dim.data.splits import Split, in_chunks
from dim.data.synthetic import SyntheticSet
from dim.errors import InputError
from dim.features.distances import distances, double
from dim.features.spaces import Features
from dim.score.privacy import CopyRow
from dim.spec import DataSpec, as_unit_range

_COMPARED = 200  # others per class whose own distances say what to expect


@dataclass(frozen=True)
class Space:
    """Where distances are taken."""

    name: str
    """For the table."""
    embed: Callable[[Tensor], Tensor]
    """Images float32 (B, C, H, W) in [-1, 1] -> (B, F)."""


def pixels(spec: DataSpec, device: torch.device) -> Space:
    """Pixels, normalised per channel."""
    mean, std = spec.mean_std(torch.zeros(1, device=device))
    return Space("pixels", lambda images: ((images.to(device) - mean) / std).flatten(1))


def learned(features: Features) -> Space:
    """Features of a network that was not trained with regard to the members, or it would be what leaks."""
    return Space(f"features ({features.name})", features)


def nearest_distances(split: Split, sets: Sequence[SyntheticSet], space: Space) -> Tensor:
    """Distance of every image of a split to the nearest image of its class in each of several sets.

    Args:
        split: N real images.
        sets: M sets.
        space: where.

    Returns:
        float64 (M, N), on the CPU; NaN for an image whose class a set lacks.
    """
    found = torch.full((len(sets), len(split)), torch.nan, dtype=torch.float64)
    for label in split.labels.unique().tolist():
        indices = (split.labels == label).nonzero().squeeze(1)
        points = [_points(subject, label, space) for subject in sets]
        for chosen, images, _ in in_chunks(split, indices, budget=FORWARD):
            queries = double(space.embed(images))
            for row, own in enumerate(points):
                if len(own):
                    found[row, chosen] = _least(queries, own).cpu()
    return found


def copies(candidates: Candidates, subject: SyntheticSet, space: Space, *, seed: int = 0) -> CopyRow:
    """Whether the images of a set are copies: of the real images that are nearest to one of its images, how many are members.

    If it was made without regard to single images, that is as many as among all real images. A real image that is nearest to
    several of its images counts once, or a set of images that are all alike would seem to be many observations. And how many of
    its images are nearer to a member than all but 1 % of the other real images are.

    Args:
        candidates: the real images.
        subject: the set.
        space: where distances are taken.
        seed: of the choice of other images, at most 200 of a class.

    Raises:
        InputError: if no class has members and others.
    """
    split, member = candidates.images, candidates.member
    won, total, expected, own_distances, other_distances = 0, 0, 0.0, [], []
    for label in subject.labels.unique().tolist():
        indices = (split.labels == label).nonzero().squeeze(1)
        inside = member[indices]
        if not bool(inside.any()) or bool(inside.all()):
            continue
        chunks = in_chunks(split, indices, budget=FORWARD)
        real, points = torch.cat([double(space.embed(images)) for _, images, _ in chunks]), _points(subject, label, space)
        winners = torch.cat([table.argmin(1) for _, table in distances(points, real)]).unique().cpu()
        won += int(inside[winners].sum())
        total += len(winners)
        expected += len(winners) * float(inside.double().mean())
        order = torch.randperm(int((~inside).sum()), generator=rng.generator(seed, "audit-copies", label))[:_COMPARED]
        own_distances.append(_least(points, real[inside]))
        other_distances.append(_least(real[~inside][order], real[inside]))
    if not total:
        raise InputError("no class of the set has members and others among the real images: expected both in one class")
    bound = torch.cat(other_distances).quantile(0.01)
    nearer = float((torch.cat(own_distances) < bound).double().mean())
    part, images = proportion(won, total), len(torch.cat(own_distances))
    found = {"images": images, "neighbours": total, "members": part, "expected": expected / total, "nearer": nearer}
    return CopyRow(space=space.name, **found)


def _points(subject: SyntheticSet, label: int, space: Space) -> Tensor:
    """The set's images of a class, embedded: float64 (M, F)."""
    parts = as_unit_range(subject.images[subject.labels == label]).split(1024)
    embedded = [double(space.embed(part)) for part in parts if len(part)]
    return torch.cat(embedded) if embedded else torch.empty(0, 0, dtype=torch.float64)


def _least(queries: Tensor, points: Tensor) -> Tensor:
    """Distances of float64 (N, F) queries to the nearest of (M, F) points: float64 (N,)."""
    return torch.cat([table.amin(1) for _, table in distances(queries, points)])
