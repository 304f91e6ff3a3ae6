"""Recorded experts as what uses them sees them: paths through weight space, and the network that those weights are for."""

from pathlib import Path

import torch
from torch import Tensor

from dim.config.settings import FixedPrecision
from dim.data.real import RealData
from dim.data.whiten import Whitening
from dim.errors import InputError
from dim.spec import DataSpec
from dim.trajectory.flat import FlatNetwork
from dim.trajectory.path import paths_of
from dim.trajectory.store import open_experts_of


class Experts:
    """All experts of a finished store.

    Args:
        folder: made by `dim experts`.
        data: the real data, natural images; its specification is enough for experts of natural images.
        device: where their network is evaluated.
        compiled: arrange the network for a compiler.
        precision: in which the network's loss is evaluated, as `FlatNetwork` takes it.

    Attributes:
        paths: one per expert.
        network: their architecture.
        digest: of the store.

    Raises:
        InputError: if the store is missing, damaged, unfinished, or of other data, or if whitening needs the real data.
    """

    def __init__(
        self,
        folder: Path | str,
        data: RealData | DataSpec,
        device: torch.device | str = "cpu",
        *,
        compiled: bool = False,
        precision: FixedPrecision = "fp32",
    ) -> None:
        spec = data if isinstance(data, DataSpec) else data.spec
        store, recorded = open_experts_of(folder, spec)
        self._whitening = None
        if recorded.zca:
            if isinstance(data, DataSpec):
                raise InputError(
                    f"{folder} holds experts of whitened images, and whitening needs the real data: give --data-root"
                )
            self._whitening = Whitening.fit(data.train, spec, device=device)
        self.folder, self.paths, self.digest = folder, paths_of(store), store.digest()
        seen = spec if self._whitening is None else self._whitening.spec
        self.network = FlatNetwork(recorded.student, seen, device, compiled=compiled, precision=precision)

    @property
    def last(self) -> float:
        """Length of the shortest path, in recorded moments."""
        return min(path.last for path in self.paths)

    def seen(self, images: Tensor) -> Tensor:
        """Natural images as the experts see them, differentiable: whitened, if they were trained so."""
        return images if self._whitening is None else self._whitening.whiten(images)

    def require_stretch(self, start: float, span: float, option: str) -> None:
        """Refuse start points from which a target lies beyond the paths.

        Args:
            start: the largest start point, in recorded moments.
            span: from start to target.
            option: what set them, for the message.

        Raises:
            InputError: naming how far it reaches and what was recorded.
        """
        if start + span > self.last:
            reach = f"{option} reaches moment {start + span:g}"
            raise InputError(f"{reach} and {self.folder} was recorded to {self.last:g}: lower it, or record experts for longer")

    def state(self) -> dict[str, Tensor]:
        """Which experts these are, for a checkpoint."""
        return {"experts": torch.frombuffer(bytearray(bytes.fromhex(self.digest)), dtype=torch.uint8)}

    def require_same(self, tensors: dict[str, Tensor]) -> None:
        """Refuse to go on from a `state` of other experts; an empty one, of a run that had none, will do.

        Raises:
            InputError: if they are others.
        """
        if tensors and bytes(tensors["experts"].cpu().tolist()).hex() != self.digest:
            raise InputError(f"{self.folder} holds other experts than the run began with: resume with those")
