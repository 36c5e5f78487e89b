"""What a run knows of the earlier generations of its journal, which a divergence has ended."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from celery_durable.codec.refusal import understood
from celery_durable.errors import JournalUnavailable, PayloadError
from celery_durable.journal.entries import Recorded, fold
from celery_durable.journal.packing import unpacked
from celery_durable.journal.standing import Standing
from celery_durable.store.journal import Journal
from celery_durable.store.records import EntryKind, Journaled, Opened, StoredPayload

from .earlier_steps import Place, Prior, Seen

__all__ = ["EarlierGenerations"]


class EarlierGenerations:
    """The part of a run that looks back; nothing is read before it is asked for."""

    opened: Opened
    generation: int
    standing: Standing
    decode: Callable[[StoredPayload | None, str], Any]
    unreadable: Callable[[PayloadError], BaseException]
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
            raise self.standing.bar(error) from None

    def _entries(self, place: Place) -> Sequence[Journaled]:
        """The entries at a place of an earlier generation."""
        try:
            return self._journal.group(self.opened.fence.pk, *place)
        except JournalUnavailable as error:
            raise self.standing.bar(error) from None

    def _known(self, seen: Seen) -> tuple[int, Recorded, Journaled]:
        entries = self._entries(seen.place)
        first = entries[0] if seen.first == seen.place else self._entries(seen.first)[0]
        return seen.place.generation, fold(entries), first

    def earlier(self, key: bytes, name: str, fingerprint: bytes) -> tuple[int, Recorded, Journaled] | None:
        """The guarded step of an earlier generation that is the same as this one, if there is one (G6)."""
        prior = self.prior
        if prior is None:
            return None
        with self._lock:
            seen = prior.claim(key, name, fingerprint)
        return None if seen is None else self._known(seen)

    def conflicting(self, name: str, *, named: bool) -> tuple[int, Recorded, Journaled] | None:
        """An earlier guarded step of this name with other arguments, which the step that is called may repeat.

        :param named: the application has given the step that is called a ``key=``.
        """
        prior = self.prior
        if prior is None:
            return None
        with self._lock:
            others = prior.unclaimed(name)
        for seen in others:
            # Different keys from the application mean different operations.
            if not (named and self._was_named(self._entries(seen.first)[0])):
                return self._known(seen)
        return None

    def _was_named(self, first: Journaled) -> bool:
        if first.kind != EntryKind.INTENT or first.codec is None or first.payload is None:
            return False
        where = f"the intent of step {first.name!r}"
        with self.reading(where):
            return bool(self.decode(StoredPayload(first.codec, first.payload), where)["named"])

    @contextlib.contextmanager
    def reading(self, where: str) -> Iterator[None]:
        """Around reading the library's own entries: see :func:`understood`."""
        try:
            with understood(where):
                yield
        except PayloadError as error:
            raise self.unreadable(error) from error

    def done_before(self) -> Sequence[Journaled]:
        """The outcomes of steps of earlier generations, in the order of the journal, including those in packs; and the
        open intents of steps that may be repeated.
        """
        first, last = self.opened.base_generation, self.generation - 1
        if first > last:
            return ()
        try:
            return list(unpacked(self._journal.outcomes(self.opened.fence.pk, first, last)))
        except JournalUnavailable as error:
            raise self.standing.bar(error) from None

    def earlier_promises(self) -> dict[str, dict[str, Any]]:
        """What earlier generations journaled about their promises, by row id: others may have been given these
        promises' tokens.
        """
        if self._promised is None:
            where = "the token of an earlier promise"
            with self.reading(where):
                self._promised = {one.get("row", one["id"]): one for one in self._kept(EntryKind.PROMISE, where)}
        return self._promised

    def earlier_children(self) -> dict[tuple[str, str, int], dict[str, Any]]:
        """What earlier generations journaled about the child tasks that they started, by what tells these apart: not by
        id, because the secret that ids are made with may have changed since.
        """
        where = "what is kept of earlier child tasks"
        with self.reading(where):
            return {tuple(one["of"]): one for several in self._kept(EntryKind.CALL, where) for one in several}

    def _kept(self, kind: EntryKind, where: str) -> list[Any]:
        """The payloads of all entries of a kind."""
        first, last = self.opened.base_generation, self.generation - 1
        if first > last:
            return []
        try:
            rows = self._journal.of_kind(kind, self.opened.fence.pk, first, last)
        except JournalUnavailable as error:
            raise self.standing.bar(error) from None
        return [self.decode(StoredPayload(r.codec, r.payload), where) for r in rows if r.codec and r.payload]
