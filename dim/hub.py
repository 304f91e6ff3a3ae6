"""Generators and sets to and from folders and the Hugging Face Hub."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from dim.cards import SAMPLES, model_card, set_card
from dim.coding.container import is_coded
from dim.coding.generators import load_coded_generator
from dim.config import GENERATORS
from dim.data.format import Format
from dim.data.stored import format_of
from dim.data.synthetic import SyntheticSet
from dim.data.whiten import Whitening
from dim.errors import InputError
from dim.io import reading
from dim.nets.generator import Generator
from dim.nets.generator_file import FILE_NAME, load_generator_file, save_again
from dim.outputs import atomic_folder
from dim.pictures import save_png
from dim.repository import repository_of, require_answer
from dim.sampler import sample_grid, set_grid
from dim.score.privacy import read_audit
from dim.score.record import Score

_FILES_OF_SETS = (
    *("[0-9]*/[0-9][0-9][0-9][0-9][0-9]*.png", "images.jsonl"),
    *("data.npz", "data.parquet", "data.safetensors", "data-[0-9]*.tar"),
    *("images.pt", "labels.pt", "lr.pt", "TM/*/IPC*/*_best*.pt"),
)
"""That formats write, beside those that every set has. Nothing else in a repository matches."""


def load_generator(name: Path | str, device: torch.device | str = "cpu", *, code: Collection[type[Generator]] = ()) -> Generator:
    """Load a generator in evaluation mode.

    Args:
        name: a run folder, an exported folder, a generator file, coded or not, or `hub:owner/name`, a repository of the Hub.
            A bare `owner/name` is one, too, where nothing here looks like it; a note on standard error then says so.
        device: where to put it.
        code: classes of your own, of which the file may name one. Code that only a file names is never imported.

    Returns:
        The generator; its `info` holds how it was made.

    Raises:
        InputError: if nothing of that name holds a generator, or its file is damaged.
    """
    for own in code:
        GENERATORS.admit(own)
    path = Path(name)
    if path.is_dir():
        if (path / FILE_NAME).is_file():
            return load_generator_file(path / FILE_NAME, device)
        what = "this run has not saved one yet" if (path / "run.json").is_file() else "it is no run and no exported generator"
        raise InputError(f"{path} has no {FILE_NAME}: {what}")
    if path.is_file():
        return (load_coded_generator if is_coded(path) else load_generator_file)(path, device)
    repository = repository_of(str(name), "a set, or a run made by 'dim train'")
    require_answer(repository, FILE_NAME, "generator")
    return load_generator_file(_download(repository), device)


def _download(repository: str) -> str:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return hf_hub_download(repository, FILE_NAME)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"the Hub did not give {FILE_NAME} of {repository!r} ({reason}): try again") from None


def save_pretrained(
    subject: Generator | SyntheticSet,
    folder: Path | str,
    *,
    overwrite: bool = False,
    format: str | type[Format] | None = None,
    scores: Sequence[Score] = (),
    audit: Path | str | None = None,
    whitening: Whitening | None = None,
) -> Path:
    """Export a loaded generator or a set as a folder with a card and a picture.

    Args:
        subject: a generator from `load_generator`, or a set. A set is read by `dim.load_set`, and by the libraries that read its
            format.
        folder: one that does not exist or is empty.
        overwrite: replace what the folder holds.
        format: of a set, see `SyntheticSet.save`. Default: `imagefolder`, or `safetensors` for float32 images.
        scores: of a set: rows that `dim evaluate` measured, for the card.
        audit: what `dim audit` found of the subject, for the card: its file, or the folder that it was left in.
        whitening: of a set, see `SyntheticSet.save`.

    Returns:
        The folder.

    Raises:
        InputError: if the folder holds something, the generator was not loaded by `load_generator`, no score is of the set, or
            the audit is of something else.
    """
    found = None if audit is None else read_audit(audit)
    if isinstance(subject, Generator):
        with atomic_folder(folder, overwrite=overwrite) as temporary:
            save_again(temporary / FILE_NAME, subject)
            with reading(FILE_NAME):
                card = model_card(subject, subject.info, found)
            _write_card(temporary, card, sample_grid(subject))
        return Path(folder)
    kind = format_of(format or ("imagefolder" if subject.images.dtype == torch.uint8 else "safetensors"))
    card = set_card(subject, kind.name, scores, found)
    with atomic_folder(folder, overwrite=overwrite) as temporary:
        subject.save(temporary, format or kind.name, overwrite=True, whitening=whitening)
        _write_card(temporary, card, None if kind.by_folder else set_grid(subject))
    return Path(folder)


def _write_card(folder: Path, card: str, samples: Image.Image | None) -> None:
    (folder / "README.md").write_text(card, encoding="utf-8")
    if samples is not None:
        save_png(folder / SAMPLES, samples)


def push_to_hub(
    subject: Generator | SyntheticSet, repository: str, *, private: bool = False, token: str | None = None, **export: Any
) -> str:
    """Export a loaded generator or a set and upload it to the Hugging Face Hub, a set as a dataset. Files of a set that was there
    before are removed in the same commit; other files in the repository stay.

    Args:
        subject: a generator from `load_generator`, or a set.
        repository: `owner/name`; it is made if it does not exist.
        private: of a repository that is made.
        token: of the Hub. Default: the one that is stored on this machine.
        export: goes to `save_pretrained`: format and scores of a set.

    Returns:
        The address of the repository.

    Raises:
        InputError: if the generator was not loaded by `load_generator`, or no score is of the set.
    """
    import tempfile

    from huggingface_hub import HfApi

    api = HfApi(token=token)
    kind = "model" if isinstance(subject, Generator) else "dataset"
    with tempfile.TemporaryDirectory() as scratch:
        folder = save_pretrained(subject, Path(scratch) / "export", **export)
        api.create_repo(repository, repo_type=kind, private=private, exist_ok=True)
        earlier = {} if kind == "model" else {"delete_patterns": list(_FILES_OF_SETS)}
        api.upload_folder(repo_id=repository, repo_type=kind, folder_path=folder, **earlier)
    return f"{api.endpoint}/{'' if kind == 'model' else 'datasets/'}{repository}"
