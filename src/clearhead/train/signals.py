"""Stopping politely: Ctrl-C and SIGTERM end a run at the next step, after it is saved."""

import signal
import threading
from collections.abc import Sequence
from types import FrameType
from typing import Any, Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Turns the first signal of some into a request; a second one acts as it did before.

    Signals can be caught in the main thread only; elsewhere nothing is ever requested.
    """

    def __init__(self, signals: Sequence[signal.Signals] = _SIGNALS) -> None:
        self.requested = False
        self._signals = signals
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {
                number: signal.signal(number, self._request) for number in self._signals
            }
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _request(self, _number: int, _frame: FrameType | None) -> None:
        self.requested = True
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
