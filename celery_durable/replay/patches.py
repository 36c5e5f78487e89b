"""Which changes of its body an execution has taken: ``patched()``."""

from __future__ import annotations

import threading
from collections.abc import Callable

from celery_durable.common.arguments import check_name
from celery_durable.store.records import META, Entry, EntryKind, Journaled

__all__ = ["Patches"]


class Patches:
    """The patches of one run of a body."""

    def __init__(self) -> None:
        self._taken: dict[str, bool] = {}
        #: The last number under which a patch is journaled. A body may ask for other patches after each deploy, so
        #: their count does not tell which numbers are free.
        self._last = 0
        #: Guards both: branches may ask at the same time.
        self._lock = threading.Lock()

    def load(self, row: Journaled) -> None:
        """Load a journaled patch: it was taken."""
        self._taken[row.name] = True
        self._last = max(self._last, row.position)

    def take(self, change_id: str, new: bool, append: Callable[[Entry], None]) -> bool:
        """Whether a change is taken; once decided, it stays so.

        :param new: it was not decided yet, and the body has passed the end of its journal.
        :raises ConfigurationError: if this cannot be the name of a change.
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
