"""Training, validation and test part of data that lie in a folder, or in files, of their own for each."""

from collections.abc import Callable, Iterable
from pathlib import Path

from dim.data.files import loose_images, subfolders
from dim.data.items import Items
from dim.data.labels import label_file
from dim.data.names import part_of
from dim.errors import InputError
from dim.launch import say_once


def read_parts(root: Path, read: Callable[..., Items], *, listed: bool = False) -> tuple[Items, Items | None, Items | None]:
    """The training, the test and the validation part below a root; None for one that is to be taken from the training part.

    Args:
        root: of the data.
        read: reads the images in a folder; for other parts than the training part it is given the names of its classes, too.
        listed: a file of labels at the root says the classes, and not the folders there.

    Raises:
        InputError: if there are parts and none to train on, or one of them twice; or as `read` does.
    """
    parts = _parts(root)
    if not parts:
        if not listed or label_file(root) is None:
            _require_classes(root)
        return read(root), None, None
    if "train" not in parts:
        found = ", ".join(f"{path.name}/" for path in parts.values())
        raise InputError(f"{root} has {found} with folders in it and no train/: name the training part train, or remove it")
    rest = sorted(set(subfolders(root)) - {path.name for path in parts.values()})
    if count := loose_images(root):
        rest.append(f"{count} image{'s' if count > 1 else ''}")
    say_left_out(root, f"{parts['train'].name}/", rest)
    train = read(parts["train"])
    val, test = (read(parts[part], train.names) if part in parts else None for part in ("val", "test"))
    return train, *tested(root, f"{parts['val'].name}/" if "val" in parts else "", test, val)


def tested(root: Path, name: str, test: Items | None, val: Items | None) -> tuple[Items | None, Items | None]:
    """The test and the validation part: without the former, the latter, which has this `name`, is it, and that is said."""
    if test is not None or val is None:
        return test, val
    say_once(f"dim: {root}: {name} is taken as the test part, as there is no other")
    return val, None


def say_left_out(root: Path, beside: str, names: Iterable[str]) -> None:
    """Say which files or folders lie beside the parts, if any do."""
    names = list(names)
    if names:
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        say_once(f"dim: {root}: left out, as they are beside {beside}: {', '.join(names[:5])}{more}")


def _parts(root: Path) -> dict[str, Path]:
    """The folders that are parts of the data: those of such a name with folders, or a file of labels, in them. A class may have
    that name, too."""
    names = subfolders(root)
    filled = [name for name in names if part_of(name, alone=False) and (subfolders(root / name) or label_file(root / name))]
    said = [name for name in filled if part_of(name)]
    if not said and len(filled) == len(names) and are_parts(names):
        say_once(f"dim: {root}: {', '.join(f'{name}/' for name in names)} are taken as its parts")
        said = names
    found: dict[str, Path] = {}
    for name in said:
        part = part_of(name, alone=False)
        if part in found:
            raise InputError(f"{root} has {found[part].name}/ and {name}/: expected one {part} part; rename or remove the other")
        if twin := next((path for path in found.values() if path.samefile(root / name)), None):
            raise InputError(f"{root} has {twin.name}/ and {name}/, which are one folder by a link: give each its own images")
        found[part] = root / name
    return found


def are_parts(names: list[str], *, alone: bool = False) -> bool:
    """Whether none of these is a class: all are parts, different ones, and one is to train on. (`steam_train` alone is none.)"""
    parts = [part_of(name, alone=alone) for name in names]
    return len(parts) > 1 and "train" in parts and None not in parts and len(set(parts)) == len(parts)


def _require_classes(root: Path) -> None:
    """Refuse folders that are parts in truth, without class folders or within these; and say where they may be."""
    names = subfolders(root)
    if len(names) < 2:
        return
    if are_parts(names):
        layout = f"expected class folders in each, as {names[-1]}/cat/1.png, or a file of labels (--dataset listed)"
        raise InputError(f"{root} has {' and '.join(f'{name}/' for name in names)}, which are parts and no classes: {layout}")
    within = subfolders(root / names[0])
    if len(within) < 2 or any(subfolders(root / name) != within for name in names[1:]):
        return
    inner = ", ".join(within[:5])
    if are_parts(within, alone=True):
        expected = f"expected parts around the classes, as {within[-1]}/{names[0]}/1.png"
        raise InputError(f"{root} has {names[0]} and other class folders, each with {inner} in it: {expected}")
    say_once(f"dim: {root}: {names[0]}, {names[1]} ... are taken as classes; if {inner} are, name the others train and test")
