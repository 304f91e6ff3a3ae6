"""Signals by which a process is asked to end."""

import signal
from collections.abc import Callable, Iterable
from typing import Any

ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
"""Those of a system, a scheduler or a closed terminal. Windows lacks one."""
heeded: list[int] = []
"""Those that this process has got and acts upon. It ends, and another one like them changes nothing: launchers send several."""


def handle(numbers: Iterable[int], handler: Callable[[int, Any], None] | int) -> dict[int, Any]:
    """Handle signals, but for those that are ignored, as `nohup` has it. Returns the handlers that they had.

    Raises:
        ValueError: outside the main thread, which alone may do so.
    """
    wanted = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in wanted}
