"""Names by which folders and files say which part of a data set they hold."""

import re

_PARTS = {
    "train": ("train", "training", "trainset"),
    "val": ("val", "valid", "validation", "dev", "valset"),
    "test": ("test", "testing", "testset"),
}
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")


def part_of(name: str, *, alone: bool = True) -> str | None:
    """The part that a name says: `train`, `val` or `test`; None for other names. With `alone` false, one word among others does,
    too, as in `training_set`, `seg_train` and `val2017`."""
    words = [name.lower()] if alone else [word.lower() for word in _WORD.findall(name)]
    found = {part for part, names in _PARTS.items() if not set(words).isdisjoint(names)}
    return found.pop() if len(found) == 1 else None
