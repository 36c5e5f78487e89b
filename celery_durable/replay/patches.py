"""Which changes of a body its executions have taken: ``patched()``."""

from __future__ import annotations

import threading
from collections.abc import Callable

from celery_durable.common.arguments import check_name
from celery_durable.store.records import META, Entry, EntryKind, Journaled

__all__ = ["Patches"]


class Patches:
    """Of one run of a body."""

    def __init__(self) -> None:
        self._taken: dict[str, bool] = {}
        #: The last number under which one is journaled. A body asks for other patches after each deploy, so that their
        #: count says nothing about which numbers are free.
        self._last = 0
        #: Guards both: branches may ask at the same time.
        self._lock = threading.Lock()

    def load(self, row: Journaled) -> None:
        """One that is journaled: it was taken."""
        self._taken[row.name] = True
        self._last = max(self._last, row.position)

    def take(self, change_id: str, new: bool, append: Callable[[Entry], None]) -> bool:
        """Whether a change is taken; a decision stays.

        :param new: it was not decided yet, and the body is beyond everything that is journaled.
        :raises ConfigurationError: for what cannot be the name of a change.
        """
        decided = self._taken.get(change_id)
        if decided is not None:
            return decided
        check_name(change_id, "what names a change")
        with self._lock:
            if change_id not in self._taken:
                if new:
                    append(Entry(META, self._last + 1, 0, EntryKind.PATCH, None, change_id))
                    self._last += 1
                self._taken[change_id] = new
            return self._taken[change_id]
