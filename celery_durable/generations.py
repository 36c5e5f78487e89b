"""What a run knows of the generations of the journal before its own, which a divergence has ended."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from .errors import JournalUnavailable
from .prior import Prior
from .store.records import EntryKind, Journaled, StoredPayload

if TYPE_CHECKING:
    from .actions import StepCall
    from .replay import Recorded
    from .store.journal import Journal
    from .store.records import Opened

__all__ = ["EarlierGenerations"]


class EarlierGenerations:
    """The part of a run that looks back; nothing is read before it is asked for."""

    opened: Opened
    generation: int
    stuck: Callable[[BaseException], BaseException]
    decode: Callable[[StoredPayload | None, str], Any]
    _journal: Journal
    _lock: threading.Lock
    _prior: Prior | None = None
    _promised: dict[str, dict[str, Any]] | None = None

    @property
    def prior(self) -> Prior | None:
        """What earlier generations did, read once; None where there are none."""
        if self.generation == self.opened.base_generation:
            return None
        with self._lock:
            if self._prior is None:
                self._prior = Prior(self._guarded(), self.generation)
            return self._prior

    def _guarded(self) -> Sequence[Journaled]:
        try:
            return self._journal.guarded(self.opened.fence.pk, self.opened.base_generation, self.generation)
        except JournalUnavailable as error:
            raise self.stuck(error) from None

    def earlier(self, call: StepCall) -> tuple[int, Recorded, Journaled] | None:
        """The guarded step of an earlier generation that this one is, if there is one (G6)."""
        prior = self.prior
        return None if prior is None else prior.claim(call.key, call.descriptor.name, call.fingerprint)

    def conflicting(self, call: StepCall) -> tuple[int, Recorded, Journaled] | None:
        """A guarded step of the same name and other arguments, of which this one may be the repetition."""
        prior = self.prior
        if prior is None:
            return None
        for generation, recorded, first in prior.unclaimed(call.descriptor.name):
            # Two operations that the application has named differently are two.
            if not (call.named is not None and self._was_named(first)):
                return generation, recorded, first
        return None

    def _was_named(self, first: Journaled) -> bool:
        if first.kind != EntryKind.INTENT or first.codec is None or first.payload is None:
            return False
        intent = self.decode(StoredPayload(first.codec, first.payload), f"the intent of step {first.name!r}")
        return bool(intent["named"])

    def earlier_promises(self) -> dict[str, dict[str, Any]]:
        """What earlier generations keep of the promises that they made, by the ids of their rows: those may have been
        given away.
        """
        if self._promised is None:
            kept = self._kept(EntryKind.PROMISE, "the token of an earlier promise")
            self._promised = {one.get("row", one["id"]): one for one in kept}
        return self._promised

    def earlier_children(self) -> dict[str, dict[str, Any]]:
        """What earlier generations keep of the child tasks that they started, by their ids."""
        kept = self._kept(EntryKind.CALL, "what is kept of earlier child tasks")
        return {one["id"]: one for several in kept for one in several}

    def _kept(self, kind: EntryKind, where: str) -> list[Any]:
        """The payloads of all entries of a kind."""
        first, last = self.opened.base_generation, self.generation - 1
        if first > last:
            return []
        try:
            rows = self._journal.of_kind(kind, self.opened.fence.pk, first, last)
        except JournalUnavailable as error:
            raise self.stuck(error) from None
        return [self.decode(StoredPayload(r.codec, r.payload), where) for r in rows if r.codec and r.payload]
