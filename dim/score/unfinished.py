"""Rows of a table that is not finished, kept beside the place of its JSON, so that a killed command goes on from them."""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

from dim.errors import InputError
from dim.io import checksum, read_document, write_document
from dim.outputs import followed

Row = TypeVar("Row")


class UnfinishedRows(Generic[Row]):
    """Rows as they are measured, in the file `.NAME.unfinished` beside the JSON that a command is to write.

    Args:
        path: of that JSON; None: nothing is kept.
        asked: everything that the table depends on, as JSON. Rows of another table are not used.
        kind: what a row is; it has `to_dict` and `from_dict`.
        together: rows that are measured together, such as the students of one set.

    Attributes:
        rows: that a killed command had measured, of groups that are complete.
    """

    def __init__(self, path: Path | str | None, asked: Mapping[str, Any], kind: type[Row], together: int = 1) -> None:
        self._path, self._asked, self.rows = None, checksum(asked), []
        if path is None:
            return
        place = followed(path).absolute()
        if not place.is_file() and place.exists():  # a device or a pipe
            return
        self._path = place.with_name(f".{place.name}.unfinished")
        with contextlib.suppress(InputError, KeyError, TypeError, ValueError):  # none is there, or it is damaged
            content = read_document(self._path)
            if content["asked"] == self._asked:
                rows = [kind.from_dict(row) for row in content["rows"]]
                self.rows = rows[: len(rows) // together * together]
        self._written = list(self.rows)

    def keep(self, row: Row) -> None:
        """Keep a row that is measured."""
        if self._path is not None:
            self._written.append(row)
            with contextlib.suppress(OSError):  # a place where nothing can be kept is no reason to stop
                write_document(self._path, {"asked": self._asked, "rows": [row.to_dict() for row in self._written]})

    def remove(self) -> None:
        """Remove the file, when the table is written."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)
