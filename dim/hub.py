"""Generators to and from folders and the Hugging Face Hub."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from dim.config import GENERATORS
from dim.errors import InputError
from dim.io import reading
from dim.nets.generator import Generator
from dim.nets.generator_file import FILE_NAME, load_generator_file, save_again
from dim.outputs import atomic_folder
from dim.pictures import save_png
from dim.repository import repository_of, require_answer
from dim.sampler import sample_grid
from dim.text import for_markdown


def load_generator(name: Path | str, device: torch.device | str = "cpu", *, code: Collection[type[Generator]] = ()) -> Generator:
    """Load a generator in evaluation mode.

    Args:
        name: a run folder, an exported folder, a generator file, or `hub:owner/name`, a repository of the Hub. A bare
            `owner/name` is one, too, where nothing here looks like it; a note on standard error then says that the Hub is asked.
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
        return load_generator_file(path, device)
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


def save_pretrained(generator: Generator, folder: Path | str, *, overwrite: bool = False) -> Path:
    """Export a loaded generator as a folder: its file, a model card, and a sample grid.

    Args:
        generator: from `load_generator`.
        folder: one that does not exist or is empty.
        overwrite: replace what the folder holds.

    Returns:
        The folder.

    Raises:
        InputError: if the folder holds something, or the generator was not loaded by `load_generator`.
    """
    with atomic_folder(folder, overwrite=overwrite) as temporary:
        save_again(temporary / FILE_NAME, generator)
        with reading(FILE_NAME):
            card = model_card(generator, generator.info)
        (temporary / "README.md").write_text(card, encoding="utf-8")
        save_png(temporary / "samples.png", sample_grid(generator))
    return Path(folder)


def push_to_hub(generator: Generator, repository: str, *, private: bool = False, token: str | None = None) -> str:
    """Export a loaded generator and upload it to the Hugging Face Hub.

    Args:
        generator: from `load_generator`.
        repository: `owner/name`; it is made if it does not exist.
        private: of a repository that is made.
        token: of the Hub. Default: the one that is stored on this machine.

    Returns:
        The address of the repository.

    Raises:
        InputError: if the generator was not loaded by `load_generator`.
    """
    import tempfile

    from huggingface_hub import HfApi

    api = HfApi(token=token)
    api.create_repo(repository, private=private, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = save_pretrained(generator, Path(scratch) / "export")
        api.upload_folder(repo_id=repository, folder_path=folder)
    return f"{api.endpoint}/{repository}"


def model_card(generator: Generator, info: dict[str, Any]) -> str:
    """A model card that says what the generator is, what it was trained on, and how to use it."""
    spec, about = generator.spec, info["about"]
    around = "of all latents"
    if generator.anchors is not None:
        policy = f"{about.get('policy', 'chosen')}, spread {generator.spread:g}"
        around = f"around {generator.anchors.shape[1]} images per class ({policy})"
    facts = {
        "data": f"{spec.name}, {spec.num_classes} classes, {spec.height}x{spec.width}x{spec.channels}",
        "architecture": f"{info['generator']['name']}, {sum(value.numel() for value in generator.parameters()):,} parameters",
        "images": around,
        "steps": f"{about.get('step')} of {about.get('total_steps')}",
        **({"departures": _departures(about["departures"])} if about.get("departures") else {}),
        "versions": ", ".join(f"{name} {version}" for name, version in info["versions"].items()),
    }
    table = "\n".join(f"| {name} | {for_markdown(text)} |" for name, text in facts.items())
    return f"""---
library_name: dim-distill
tags: [dataset-distillation, image-generation]
---
# A generator that stands for {for_markdown(spec.name)}

{for_markdown(about.get("title", ""))}

| | |
|---|---|
{table}

![samples](samples.png)

```python
import dim

generator = dim.load_generator("hub:OWNER/NAME")  # or this folder
dim.sample_set(generator, ipc=10, seed=0).save("set-10")
```
"""


def _departures(stated: Sequence[Mapping[str, Any]]) -> str:
    """Where a run went on with other settings than it began with, see `dim.continuation.continues`."""
    changes = [(each["step"], name, *pair) for each in stated for name, pair in each["changes"].items()]
    return "; ".join(f"{name} from {before} to {after} after step {step}" for step, name, before, after in changes)
