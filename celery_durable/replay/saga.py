"""What to undo when a body fails or is cancelled, and how far that has come.

Undoing goes through the journal like everything else: the decision is committed before the first undo, with every
result that came before it; each undo is a guarded step in a scope of its own. After a crash the body replays up to
where its journal ends, which shows once more what there is to undo, and is left there.
"""

from __future__ import annotations

import threading
from collections import Counter
from typing import Final

from celery_durable.store.records import META, TOLD, Entry, EntryKind, Journaled, StoredPayload

from .shared_prefix import SharedPrefix

__all__ = ["ANY", "Saga"]

#: Stands for all names, where there are too many.
ANY: Final = "*"
#: The most that are journaled. They follow the mark, the decision and what is shared, at the same position.
_MOST_NAMES: Final = 200
_NAMES: Final = 3

_MARK: Final = Entry(META, 0, 0, EntryKind.SAGA, None, "saga")


class Saga:
    """The saga of one run of a body."""

    def __init__(self) -> None:
        #: The prefix shared with another execution, which alone may undo its steps.
        self.shared: SharedPrefix | None = None
        #: How many undos in it would have been registered if it belonged to this execution.
        self.left_alone = 0
        #: The journal says that this execution has something to undo, so a cancellation does not simply end it.
        self.marked = False
        #: Names of the steps that can be undone, and of the functions that undo, as far as they are journaled.
        self.named: set[str] = set()
        #: (name, fingerprint) -> how many steps of this run can be undone if need be; for functions: (name, None).
        self.registered: Counter[tuple[str, bytes | None]] = Counter()
        #: The body has failed, or was cancelled: nothing new is begun, and finished steps are undone.
        self.undoing = False
        #: Why, as it is journaled: the error of the body; None for a cancellation.
        self.cause: StoredPayload | None = None
        #: The decision is journaled (decided), by an earlier run (recorded), whose journaled cause counts.
        self.decided = self.recorded = False
        #: Celery was already notified how the execution ends.
        self.told = False
        #: Held while the mark is being journaled.
        self.marking = threading.Lock()

    def load(self, row: Journaled) -> None:
        """Take over what an earlier run has journaled."""
        if row.kind == EntryKind.SAGA:
            self.marked = True
            if row.entry >= _NAMES:
                self.named.add(row.name)
        elif row.kind == EntryKind.UNDOING:
            self.marked = self.undoing = self.decided = self.recorded = True
            self.told = row.name == TOLD
            if row.codec is not None and row.payload is not None:
                self.cause = StoredPayload(row.codec, row.payload)

    def is_shared(self, scope: str, position: int, *, before: bool = False) -> bool:
        """Whether an undo registered here belongs to the execution of which this is a rerun."""
        if self.shared is None:
            return False
        # An undo registered right before the first step that is done again belongs to the original too: most likely it
        # is about the step before it.
        at = position - 1 if before and position else position
        return self.shared.holds(scope or str(at))

    def marks(self, name: str) -> list[Entry]:
        """The entries that say that there will be something to undo, as far as they are not journaled yet.

        :param name: of the step, or of the function that undoes; journaled because a changed body may not call it.
        """
        entries = [] if self.marked else [_MARK]
        name = self._listed(name)
        if name not in self.named:
            entries.append(Entry(META, 0, _NAMES + len(self.named), EntryKind.SAGA, None, name))
        return entries

    def mark(self, name: str) -> None:
        """Note that the entries of :meth:`marks` are being journaled."""
        self.marked = True
        self.named.add(self._listed(name))

    def _listed(self, name: str) -> str:
        return name if name in self.named or len(self.named) < _MOST_NAMES else ANY

    def inherit(self, earlier: Saga) -> None:
        """Take over the marks of an earlier generation."""
        self.marked, self.named = earlier.marked, set(earlier.named)

    def entries(self) -> list[Entry]:
        """The marks as entries, for another generation."""
        if not self.marked:
            return []
        return [_MARK, *(Entry(META, 0, _NAMES + n, EntryKind.SAGA, None, name) for n, name in enumerate(self.named))]

    def can_undo(self, name: str) -> bool:
        """Whether steps of this name could be undone by the body that did them."""
        # Journals of earlier versions hold no names.
        return self.marked and (name in self.named or ANY in self.named or not self.named)

    def decide(self, cause: StoredPayload | None) -> Entry:
        """The entry that says that the body is undone from now on."""
        self.undoing = self.decided = True
        self.cause = cause
        return Entry(META, 0, 1, EntryKind.UNDOING, None, "undoing", payload=cause)
