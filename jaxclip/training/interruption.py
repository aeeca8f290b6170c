"""Ctrl-C and SIGTERM, put off until a loop can stop."""

import signal
import threading
from collections.abc import Callable
from typing import Any


class Interruption:
    """Within this context manager the first Ctrl-C or SIGTERM only sets `requested`; the second does what it did before
    (Ctrl-C raises KeyboardInterrupt, at once).

    A signal that is ignored (as Ctrl-C by a script's background jobs) stays so. Only the main thread gets signals:
    in others nothing changes.
    """

    def __init__(self):
        self.requested = False
        self._raises = False
        self._former: dict[int, Any] = {}

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                # None: installed by no Python, and not to be put back by it.
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._former[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *error: Any) -> None:
        self._restore()

    def attempt(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What the function returns, or None where the first signal came, which ends it: for what may be given up at
        any point."""
        self._raises = True
        try:
            if self.requested:
                raise KeyboardInterrupt
            return function(*arguments)
        except KeyboardInterrupt:
            if not self.requested:
                raise
            return None
        finally:
            self._raises = False

    def _request(self, number: int, frame: Any) -> None:
        self._restore()
        self.requested = True
        if self._raises:
            raise KeyboardInterrupt

    def _restore(self) -> None:
        while self._former:
            signal.signal(*self._former.popitem())
