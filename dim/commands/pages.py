"""The page of a run, `report.html`, as commands write it."""

import sys
from typing import Any

from dim.text import say


def write_page(run: Any, data: Any, *measured: Any, **more: Any) -> str:
    """Write a run's page, see `dim.score.report.write_report`; what was made or measured is no worse where that is impossible.

    Returns:
        `report: PATH`, or nothing after saying why there is none.
    """
    from dim.score.report import write_report

    try:
        return f"report: {write_report(run, data, *measured, **more)}"
    except OSError as error:
        say(f"dim: no report: {error.filename or run}: {error.strerror or error}", sys.stderr)
        return ""
