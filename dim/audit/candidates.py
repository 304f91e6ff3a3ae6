"""The real images that an attack asks about, and which of them a subject was made with.

What a subject was made with is a function of its data settings: the part `data.fraction` of the training part, by
`data.fraction_seed`, or all of it. The others are the rest of the training part, and the validation part, on which nothing is
trained. The test part is no candidate: it may be of another distribution, which an attack would find in place of membership.
"""

import dataclasses
from typing import Any

import torch
from torch import Tensor

from dim import rng
from dim.config import DataConfig, from_dict, to_dict
from dim.config.data import located, reads_files
from dim.data.real import RealData, canary_indices, load_data, part_of_classes, stratified, with_training_part
from dim.data.splits import JoinedSplit
from dim.errors import InputError

# Settings in which the data of subjects of one kind may differ: where they lie, and which part of them is used.
_MAY_DIFFER = ("root", "download", "memory_gib", "fraction_seed")


class Candidates:
    """Real images, of which some are members.

    Args:
        whole: the data, with the whole training part.
        member: bool (N,), whether an image of the training or the validation part, one after the other, is a member.
        canary: bool (N,), whether its label is wrong by intent.

    Attributes:
        images: the candidates, as a split (`dim.data.splits`).
        member, canary: as given.

    Raises:
        InputError: if all are members, or none.
    """

    def __init__(self, whole: RealData, member: Tensor, canary: Tensor) -> None:
        self.whole, self.member, self.canary = whole, member, canary
        self.images = JoinedSplit((whole.train, whole.val))
        if not bool(member.any()) or bool(member.all()):
            expected = "expected some of each; make it with --data.fraction 0.5, or --data.val-fraction above 0"
            raise InputError(f"{int(member.sum())} of {len(member)} images are members: {expected}")

    def __len__(self) -> int:
        return len(self.member)

    def part(self, mask: Tensor) -> RealData:
        """The data with these candidates, by bool (N,), as training part."""
        return with_training_part(self.whole, JoinedSplit((self.whole.train, self.whole.val), mask.nonzero().squeeze(1)))

    def half(self, number: int) -> Tensor:
        """A random half of every class of the candidates, which does not depend on who is a member: bool (N,). Every second one
        is what the one before it leaves out, so that each image is in exactly half of an even number of halves."""
        inside = torch.zeros(len(self), dtype=torch.bool)
        inside[stratified(self.images.labels, 0.5, rng.fold(number // 2, "audit-half"))[0]] = True
        return inside if number % 2 == 0 else ~inside

    def members_of(self, info: dict[str, Any], fingerprint: str, name: str) -> Tensor:
        """Which candidates another subject of the same kind was made with: bool (N,).

        Args:
            info: what it says of its making.
            fingerprint: of its training part.
            name: for messages.

        Raises:
            InputError: if that is not known, or it was made of other data.
        """
        mask = _members(self.whole, data_settings(info, name))
        _require_same(self.part(mask), fingerprint, name)
        return mask


def candidates_of(info: dict[str, Any], fingerprint: str, root: str | None, device: torch.device | str) -> Candidates:
    """The candidates for a set or a generator.

    Args:
        info: what it says of its making.
        fingerprint: of its training part.
        root: where the real data lies. Default: DIM_DATA_ROOT.
        device: where images are held.

    Raises:
        InputError: if it does not say what it was made from, or that is not there, or leaves no image out.
    """
    config = data_settings(info, "this set or generator")
    if root and reads_files(config.dataset):
        config = dataclasses.replace(config, root=root)
    whole = load_data(located(dataclasses.replace(config, fraction=1.0)), device)
    member, canary = _members(whole, config), torch.zeros(len(whole.train) + len(whole.val), dtype=torch.bool)
    canary[canary_indices(len(whole.train), config)] = True
    found = Candidates(whole, member, canary)
    _require_same(found.part(member), fingerprint, "this set or generator")
    return found


def data_settings(info: dict[str, Any], name: str) -> DataConfig:
    """The data settings that a subject says it was made with.

    Raises:
        InputError: if it says nothing.
    """
    if not info.get("data"):
        remedy = "so its members are not known; make it again with 'dim'"
        raise InputError(f"{name} does not say which data it was made from, {remedy}")
    return from_dict(DataConfig, info["data"])


def require_like(config: DataConfig, other: DataConfig, name: str) -> None:
    """Refuse a reference, `name`, whose data settings differ from the subject's in more than which part of the data they use.

    Raises:
        InputError: naming the first difference, or if the part is the same.
    """
    mine, theirs = to_dict(config), to_dict(other)
    for key in mine:
        if key not in _MAY_DIFFER and mine[key] != theirs.get(key):
            raise InputError(f"reference {name} has data.{key} {theirs.get(key)!r}: expected {mine[key]!r}, as of the subject")
    if config.fraction == 1:
        remedy = "make both with --data.fraction 0.5 and another --data.fraction-seed"
        raise InputError(f"reference {name} was made of the same images as the subject: {remedy}")
    if config.fraction_seed == other.fraction_seed:
        remedy = "expected another --data.fraction-seed, as references must be made without regard to the members"
        raise InputError(f"reference {name} has data.fraction_seed {other.fraction_seed}, as the subject: {remedy}")


def _members(whole: RealData, config: DataConfig) -> Tensor:
    mask = torch.zeros(len(whole.train) + len(whole.val), dtype=torch.bool)
    mask[part_of_classes(whole.train.labels, config.fraction, config.fraction_seed)] = True
    return mask


def _require_same(data: RealData, fingerprint: str, name: str) -> None:
    if data.spec.fingerprint != fingerprint:
        remedy = "so its members are not known; give the data that it was made from (--data-root)"
        raise InputError(f"{name} was made from other images than {data.spec.name} has now, {remedy}")
