"""`dim data`, which looks at real data; and which data a folder holds."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dim.commands.arguments import DataArguments
from dim.commands.parsing import parse, values_of
from dim.config import DataConfig, from_dict
from dim.config.data import located, needs_size
from dim.errors import InputError
from dim.text import say

_KINDS = ("folder", "webdataset", "listed")
_SHOWN = 64  # pixels of a picture whose images have no size of their own


def data(arguments: Sequence[str]) -> None:
    """`dim data`."""
    parsed = parse(DataArguments, arguments, "data")
    if parsed.folder is None and not values_of(arguments, "--dataset"):
        raise InputError("no data: name a folder, or a data set with --dataset (and --data-root)")

    from dim.data.look import look
    from dim.data.real import load_data
    from dim.io import write_document
    from dim.outputs import require_writable

    for option in ("picture", "json"):
        if getattr(parsed, option) is not None:
            require_writable(getattr(parsed, option), option)
    config = located(own_data(parsed.folder, parsed.data, arguments))
    found = look(config)
    for line in found.lines():
        say(line)
    if config.resolution is None and needs_size(config.dataset):
        config = replace(config, resolution=min(_SHOWN, found.median))
    real = load_data(replace(config, channels=config.channels or (1 if found.grey else 3)))
    for part in ("val", "test"):
        real.digest(part)  # all are read, so that a damaged one is met here
    if parsed.json is not None:
        write_document(parsed.json, {"kind": "data", **found.to_dict(), "about": real.about()})
    if parsed.picture is not None:
        from dim.pictures import save_png
        from dim.score.report import real_grid

        save_png(parsed.picture, real_grid(real))
        say(f"picture: {parsed.picture}, ten random training images in each row, a class")
    place = f" --data-root {config.root}" if config.root else ""
    say(f"all images can be read; next: dim train {parsed.folder or f'--dataset {config.dataset}{place}'} --minutes 30")


def own_data(folder: str | None, config: DataConfig, arguments: Sequence[str]) -> DataConfig:
    """The data of a command that names a folder: class folders; or shards, or labels in a file, where there are such.

    Raises:
        InputError: if another root or a data set that is no folder is named as well.
    """
    if folder is None:
        return config
    if values_of(arguments, "--data-root") or values_of(arguments, "--data.root"):
        raise InputError(f"a folder, {folder!r}, and --data-root {config.root!r}: expected one of them")
    if values_of(arguments, "--dataset") or values_of(arguments, "--data.dataset"):
        if config.dataset not in _KINDS:
            raise InputError(
                f"a folder, {folder!r}, and --dataset {config.dataset}: expected {' or '.join(_KINDS)}; or leave it out"
            )
        return replace(config, root=folder)
    return replace(from_dict(DataConfig, {"dataset": _kind(Path(folder))}, config), root=folder)


def _kind(folder: Path) -> str:
    """How the images in a folder are labelled. A dataset.json is always meant for that; shards and the other files lie beside
    class folders, too, and are meant where these are fewer than two."""
    from dim.data.files import EXTENSIONS, subfolders
    from dim.data.labels import label_file, labels_within_folders
    from dim.data.parts import are_parts

    if any(path.suffix.lower() == ".tar" for path in folder.glob("*")) and len(subfolders(folder)) < 2:
        return "webdataset"
    if folder.is_dir() and (file := label_file(folder)):
        names = subfolders(folder)
        flat_parts = are_parts(names) and not any(subfolders(folder / name) for name in names)
        if len(names) < 2 or flat_parts or labels_within_folders(file):
            return "listed"
    for place in (folder, *(path for path in sorted(folder.glob("*")) if path.name.lower() in ("train", "training"))):
        file = label_file(place)
        beside = file and any(path.suffix.lower() in EXTENSIONS for path in place.iterdir())
        if file and (beside or file.suffix == ".json" or len(subfolders(place)) < 2):
            return "listed"
    return "folder"
