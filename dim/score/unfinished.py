"""Rows of a table that is not finished, kept beside the place of its JSON, so that a killed command goes on from them."""

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dim.errors import InputError
from dim.io import checksum, read_document, write_document
from dim.outputs import followed
from dim.score.record import Score


class UnfinishedRows:
    """Rows as they are measured, in the file `.NAME.unfinished` beside the JSON that a command is to write.

    Args:
        path: of that JSON; None: nothing is kept.
        asked: everything that the table depends on, as JSON. Rows of another table are not used.

    Attributes:
        rows: that a killed command had measured, of subjects of which no student is missing.
    """

    def __init__(self, path: Path | str | None, asked: Mapping[str, Any], students: int) -> None:
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
                rows = [Score.from_dict(row) for row in content["rows"]]
                self.rows = rows[: len(rows) // students * students]
        self._written = list(self.rows)

    def keeping(self, report: Callable[[Score], None]) -> Callable[[Score], None]:
        """A report of rows that keeps each, and then calls `report`."""

        def keep(score: Score) -> None:
            if self._path is not None:
                self._written.append(score)
                with contextlib.suppress(OSError):  # a place where nothing can be kept is no reason to stop
                    write_document(self._path, {"asked": self._asked, "rows": [row.to_dict() for row in self._written]})
            report(score)

        return keep

    def remove(self) -> None:
        """Remove the file, when the table is written."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)
