"""Threads that look at something again and again while the demo runs."""

from __future__ import annotations

import threading


class Watch(threading.Thread):
    """Looks every :attr:`INTERVAL` seconds until it is stopped, or something goes wrong."""

    INTERVAL: float

    def __init__(self, name: str) -> None:
        super().__init__(name=name, daemon=True)
        #: What went wrong in this thread; the director raises it.
        self.error: Exception | None = None
        self._halt = threading.Event()

    def run(self) -> None:
        """Look, until told to stop."""
        while not self._halt.wait(self.INTERVAL):
            try:
                self._look()
            except Exception as error:
                self.error = error
                return

    def stop(self) -> None:
        """Stop looking; also where it has never begun."""
        self._halt.set()
        if self.is_alive():
            self.join(timeout=60)

    def _look(self) -> None:
        raise NotImplementedError
