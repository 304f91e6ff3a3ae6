"""Where data were found on this machine, so that sets and generators find again what they were made from."""

import contextlib
import os
from pathlib import Path

from dim.errors import InputError
from dim.io import cache_folder, read_document, write_document


def keep_root(fingerprint: str, root: str) -> None:
    """Note, in the user's cache folder, where the data of this fingerprint lie; where that is impossible, nothing is noted."""
    with contextlib.suppress(OSError, InputError):
        place = os.path.abspath(root)
        if known_root(fingerprint) != place:
            write_document(_path(fingerprint), {"kind": "root", "root": place})


def known_root(fingerprint: str) -> str | None:
    """Where data of this fingerprint were found last, if there still is a folder."""
    with contextlib.suppress(InputError):
        root = read_document(_path(fingerprint)).get("root")
        if isinstance(root, str) and os.path.isdir(root):
            return root
    return None


def _path(fingerprint: str) -> Path:
    return cache_folder("data") / f"root-{fingerprint}.json"
