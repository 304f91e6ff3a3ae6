"""What distillation asks of recorded experts before it begins: their paths, labels of images, images that they know (DATM)."""

from pathlib import Path

import torch
from torch import Tensor

from dim import rng
from dim.chunks import chunk_size
from dim.config import TrajectoryRecipe
from dim.data.real import RealData
from dim.errors import InputError
from dim.trajectory.flat import FlatNetwork
from dim.trajectory.path import ConvexPath, ExpertPath, RecordedPath
from dim.trajectory.store import ExpertStore, open_experts_of


def open_experts(folder: Path | str, config: TrajectoryRecipe, data: RealData) -> ExpertStore:
    """Open a finished store and refuse it if it does not fit a recipe.

    Raises:
        InputError: naming what differs.
    """
    store, recorded = open_experts_of(folder, data.spec)
    for name in ("student", "zca"):
        there, here = getattr(recorded, name), getattr(config, name)
        if there != here:
            raise InputError(f"{folder} holds experts with {name} {there!r}: expected {here!r}; record experts with this recipe")
    if config.trajectory.path == "convex" and recorded.experts.waypoints:  # else they are made of checkpoints as is asked for
        for name in ("waypoints", "smooth"):
            there, here = getattr(recorded.experts, name), getattr(config.trajectory, name)
            if there != here:
                what = f"{folder} holds waypoints that were recorded with {name} {there}"
                raise InputError(f"{what}, and trajectory.{name} is {here}: expected the same, or a store of every checkpoint")
    return store


def paths(store: ExpertStore, config: TrajectoryRecipe) -> list[ExpertPath]:
    """The paths of all experts, as a recipe wants them."""
    settings = config.trajectory
    if settings.path == "recorded":
        return [RecordedPath(store, expert) for expert in range(store.layout.experts)]
    return [
        ConvexPath.of(store, expert, waypoints=settings.waypoints, smooth=settings.smooth)
        for expert in range(store.layout.experts)
    ]


def _last_weights(store: ExpertStore, network: FlatNetwork) -> list[Tensor]:
    last = len(store.layout.moments) - 1
    return [store.weights(expert, last).to(network.device) for expert in range(store.layout.experts)]


def drawn_expert(store: ExpertStore, seed: int) -> int:
    """The expert that initial images and labels come from, where it is one."""
    return rng.fold(seed, "init-expert") % store.layout.experts


def ensemble_logits(store: ExpertStore, network: FlatNetwork, images: Tensor, labels: Tensor) -> Tensor:
    """Label logits of images: the mean over the trained experts that classify each correctly; over all if none does (DATM).

    Args:
        images: float (N, C, H, W) as the experts see them.
        labels: int64 (N,).

    Returns:
        float32 (N, classes).
    """
    every = torch.stack([network.predict(theta, images) for theta in _last_weights(store, network)])  # (E, N, K)
    right = (every.argmax(2) == labels).float()
    weight = torch.where(right.sum(0) > 0, right, torch.ones_like(right))
    return (every * weight[:, :, None]).sum(0) / weight.sum(0)[:, None]


def confident_images(store: ExpertStore, network: FlatNetwork, data: RealData, ipc: int, seed: int) -> Tensor:
    """DATM's initial images: random real ones of every class that an expert classifies correctly.

    The expert is drawn from the store. Where it gets too few images of a class right, the next ones are asked about the others,
    as in the published code. Images come class by class within each round, like all sets here.

    Returns:
        float32 (classes * ipc, C, H, W) as the experts see them, on the network's device.

    Raises:
        InputError: if all experts together get fewer than `ipc` training images of a class right.
    """
    weights = _last_weights(store, network)
    first = drawn_expert(store, seed)
    chosen = []
    for label in range(data.spec.num_classes):
        members = (data.train.labels == label).nonzero().squeeze(1)
        members = members[torch.randperm(len(members), generator=rng.generator(seed, "init-confident", label))]
        found = torch.empty(0, dtype=torch.int64)
        for judge in weights[first:] + weights[:first]:
            for part in members[~torch.isin(members, found)].split(chunk_size(4 * data.spec.image_bytes, max(256, 2 * ipc))):
                if len(found) == ipc or len(part) == 0:
                    break
                right = network.predict(judge, data.train.batch(part)[0]).argmax(1).cpu() == label
                found = torch.cat((found, part[right]))[:ipc]
        if len(found) < ipc:
            raise InputError(
                f"the experts get {len(found)} training images of class {label} right: {ipc} were asked for; "
                "train experts longer, or use --images.init real"
            )
        chosen.append(found)
    return data.train.batch(torch.stack(chosen, dim=1).flatten())[0].to(network.device)
