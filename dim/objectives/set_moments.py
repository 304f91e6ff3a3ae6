"""Matching the moments of a set: the mean features of each class's images are those of its real images (distribution matching,
Zhao & Bilen 2023)."""

import torch
from einops import rearrange
from torch import Tensor

from dim import rng
from dim.data.real import RealData
from dim.objectives import add_gradient
from dim.pool import ModelPool


class SetMoments:
    """Squared distance of the mean features of a set's images and of real images, class by class, by the pool's models.

    Args:
        pool: models whose features are compared.
        data: the real images.
        per_class: real images of every class per step.
        seed: of their choice.
    """

    def __init__(self, pool: ModelPool, data: RealData, *, per_class: int, seed: int) -> None:
        self.pool, self._data, self._per_class, self._seed = pool, data, per_class, seed
        labels = data.train.labels.cpu()
        self._members = [(labels == label).nonzero().squeeze(1) for label in range(data.spec.num_classes)]

    def accumulate(self, images: Tensor, targets: Tensor, *, real: Tensor | None, step: int) -> dict[str, Tensor]:
        """See `dim.objectives.Objective`."""
        classes = torch.unique(targets).tolist()
        source = rng.generator(self._seed, "refine-real", step)
        chosen = []
        for label in classes:
            members = self._members[label]
            chosen.append(members[torch.randint(len(members), (self._per_class,), generator=source)])
        shown = self._data.train.batch(torch.cat(chosen))[0].to(images.device)
        with torch.no_grad():
            features = rearrange(self.pool.outputs(shown, step, "features"), "m (k n) f -> m k n f", k=len(classes))
            wanted = features.mean(2)
            scale = rearrange(wanted.std(1, correction=0).mean(1), "m -> m 1 1").clamp(min=1e-12)
        given = self.pool.outputs(images, step, "features")
        means = torch.stack([given[:, targets == label].mean(1) for label in classes], dim=1)
        loss = ((means - wanted) / scale).square().mean()
        add_gradient(images, torch.autograd.grad(loss, images)[0])
        return {"moments": loss.detach()}
