"""What distillation asks of recorded experts before it begins: their paths, labels of images, images that they know (DATM)."""

from pathlib import Path

import torch
from torch import Tensor

from dim import rng
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


def confident_images(store: ExpertStore, network: FlatNetwork, data: RealData, ipc: int, seed: int) -> tuple[Tensor, Tensor]:
    """DATM's initial set: random real images of every class that an expert classifies correctly, and their label logits.

    The expert is drawn from the store. Images come class by class within each round, like all sets here.

    Raises:
        InputError: if an expert gets fewer than `ipc` training images of a class right.
    """
    weights = _last_weights(store, network)
    judge = weights[rng.fold(seed, "init-expert") % len(weights)]
    chosen = []
    for label in range(data.spec.num_classes):
        members = (data.train.labels == label).nonzero().squeeze(1)
        members = members[torch.randperm(len(members), generator=rng.generator(seed, "init-confident", label))]
        found = torch.empty(0, dtype=torch.int64)
        for part in members.split(max(256, 2 * ipc)):
            images = data.train.batch(part)[0]
            right = network.predict(judge, images).argmax(1).cpu() == label
            found = torch.cat((found, part[right]))[:ipc]
            if len(found) == ipc:
                break
        if len(found) < ipc:
            raise InputError(
                f"an expert gets {len(found)} training images of class {label} right: {ipc} were asked for; "
                "train experts longer, or use --images.init real"
            )
        chosen.append(found)
    images, labels = data.train.batch(torch.stack(chosen, dim=1).flatten())
    images, labels = images.to(network.device), labels.to(network.device)
    return images, ensemble_logits(store, network, images, labels)
