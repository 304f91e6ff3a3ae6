"""Names that may be repositories of the Hugging Face Hub: when it is asked, and what is said in its place."""

import difflib
import itertools
import re
from pathlib import Path

from dim.errors import InputError
from dim.text import say_note

HUB = "hub:"
"""What stands before the name of a repository, as in `hub:owner/name`."""
_ID = re.compile(r"(?=.{3,96}$)[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_HERE = ("runs", "sets", "experts")
"""Folders of the documentation's commands: what is said to lie there is never asked for on the Hub without `hub:`."""
_MOST_ENTRIES = 10_000
_SECONDS = 5.0


def is_repository(name: str) -> bool:
    """Whether a name has the form of a repository, and is no folder or file here."""
    return name.startswith(HUB) or (_ID.fullmatch(name) is not None and not Path(name).exists())


def repository_of(name: str, expected: str) -> str:
    """The repository, as the Hub calls it, that a name stands for which is no folder or file here.

    `hub:owner/name` always stands for one. `owner/name` does where nothing here looks like it: then a note on standard error says
    that the Hub is asked.

    Args:
        name: what was given.
        expected: what it should have been, for the message.

    Raises:
        InputError: if it stands for none; with the nearest name that there is here.
    """
    if name.startswith(HUB):
        repository = name.removeprefix(HUB)
        if not _ID.fullmatch(repository):
            raise InputError(f"{name!r} is no repository of the Hub: expected hub:owner/name")
        return repository
    near = _nearest_here(name)
    owner = name.partition("/")[0]
    if near is None and _ID.fullmatch(name) and owner not in _HERE and not Path(owner).exists():
        say_note(f"no folder {name!r} here: asking the Hugging Face Hub (write {HUB}{name} to say so)")
        return name
    hint = f"Did you mean {near!r}?" if near else f"A repository of the Hub is {HUB}owner/name."
    raise InputError(f"no run, folder or file {name!r}: expected {expected}. {hint}")


def _nearest_here(name: str) -> str | None:
    """What there is with nearly this name: beside it, or in a folder with nearly the name of its folder."""
    parts = Path(name).parts
    found = Path(parts[0]) if parts and Path(name).is_absolute() else Path()
    changed = False
    for part in parts[1:] if Path(name).is_absolute() else parts:
        if (found / part).exists():
            found = found / part
            continue
        match = difflib.get_close_matches(part, _entries(found), n=1, cutoff=0.7)
        if not match:
            return None
        found, changed = found / match[0], True
    return str(found) if changed else None


def _entries(folder: Path) -> list[str]:
    try:
        return [entry.name for entry in itertools.islice(folder.iterdir(), _MOST_ENTRIES)]
    except OSError:  # no folder, or not to be read
        return []


def require_answer(repository: str, file: str, what: str, kind: str | None = None) -> None:
    """Ask the Hub, once and for five seconds, whether a repository has a file; if the Hub is out of reach, look what was kept.

    Args:
        repository: its name.
        file: a file that it must have.
        what: it is, for messages.
        kind: `dataset`; None: a model.

    Raises:
        InputError: if it has none, if the Hub does not answer and the file was not fetched before.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError

    try:
        get_hf_file_metadata(hf_hub_url(repository, file, repo_type=kind), timeout=_SECONDS)
    except HfHubHTTPError as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(f"the Hub has no {what} {repository!r} ({reason}): expected a public one with {file}") from None
    except Exception as error:  # of another library for each release of huggingface_hub: OSError, requests', httpx'
        if isinstance(try_to_load_from_cache(repository, file, repo_type=kind), str):
            return
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        remedy = "check the connection, or name a folder"
        raise InputError(f"the Hub does not answer for {what} {repository!r} ({reason}): {remedy}") from None
