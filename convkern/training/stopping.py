"""Stopping at the next good moment instead of anywhere."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

#: What a terminal, and what a system that ends a job sends.
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """Within ``with``, note Ctrl-C and SIGTERM; a second one interrupts as usual.

    In a thread other than the main one, where Python allows no handlers, signals stay as
    they are.

    Attributes
    ----------
    wanted : bool
        Whether one has come.

    Examples
    --------
    >>> import signal
    >>> from convkern.training.stopping import Stop
    >>> with Stop() as stop:
    ...     signal.raise_signal(signal.SIGINT)
    ...     stop.wanted
    True
    """

    def __init__(self) -> None:
        self.wanted = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            # None is one that C code had set.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        """Note the first signal and let the next one through."""
        self.wanted = True
        self.__exit__()
