"""The beginnings of branches, read for many of them at once: most branches are short, and a read costs a round trip."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Final

from celery_durable.journal.cursor import SEGMENT
from celery_durable.store.records import Journaled

from .run import Run
from .scope import ScopeState

__all__ = ["Ahead"]

#: How many branches are read together, and how many of their entries at most.
_BRANCHES: Final = 100
_ENTRIES: Final = 2 * SEGMENT

#: Reads up to this many entries of these scopes, scope by scope.
LoadMany = Callable[[Sequence[str], int], Sequence[Journaled]]


class Ahead:
    """What the journal has of the branches of one parallel scope. Safe to use from several threads.

    :param load: reads entries of several scopes; None where there are none.
    :param path_of: gives the path of a branch by its number.
    """

    def __init__(self, load: LoadMany | None, path_of: Callable[[int], str]) -> None:
        self._load = load
        self._path_of = path_of
        #: Branches that were read completely, and that nobody has asked for yet.
        self._whole: dict[int, Sequence[Journaled]] = {}
        #: Every branch that a read has included, even if nothing was found or kept.
        self._seen: set[int] = set()
        self._lock = threading.Lock()

    @classmethod
    def of(cls, run: Run, parent: ScopeState, position: int, rows: Sequence[Journaled] | None) -> Ahead | None:
        """Of the scope at a position; None where the execution is new, so that there is nothing to read.

        :param rows: what the journal has at that position.
        """
        if not run.opened.resumed:
            return None
        place = parent.place(position)
        # A scope is journaled before anything in its branches.
        new = rows is None and parent.cursor.exhausted
        return cls(None if new else run.load_many, lambda number: f"{place}.{number}")

    def first(self, number: int) -> Callable[[], Sequence[Journaled] | None]:
        """For the cursor of a branch: all its entries; None if there are too many to be read ahead."""
        return lambda: self._take(number)

    def _take(self, number: int) -> Sequence[Journaled] | None:
        if self._load is None:
            return ()
        with self._lock:
            if number not in self._seen:
                self._read(number, self._load)
            return self._whole.pop(number, None)

    def _read(self, number: int, load: LoadMany) -> None:
        numbers = [one for one in range(number, number + _BRANCHES) if one not in self._seen]
        paths = {self._path_of(one): one for one in numbers}
        found = load(list(paths), _ENTRIES)
        read: dict[int, list[Journaled]] = {} if len(found) == _ENTRIES else {one: [] for one in numbers}
        for row in found:
            read.setdefault(paths[row.scope], []).append(row)
        if len(found) == _ENTRIES:
            # The last branch may have more entries, and others may follow: they are read alone, or next time.
            del read[paths[found[-1].scope]]
        self._whole.update(read)
        self._seen.update(read)
        self._seen.add(number)
