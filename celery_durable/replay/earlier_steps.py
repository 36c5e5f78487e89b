"""Guarded steps of earlier generations: their results survive a divergence (G6)."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from typing import NamedTuple

from celery_durable.journal.entries import Past, fold, only_audits
from celery_durable.store.records import Journaled

__all__ = ["Place", "Prior", "Seen"]

#: States that tell something about the effect; in any other, it is as if the step had never been called.
_KNOWN = (Past.OPEN, Past.UNDECIDED, Past.DONE, Past.SKIPPED, Past.LOST, Past.ERROR)


class Place(NamedTuple):
    """Where entries stand."""

    generation: int
    scope: str
    position: int


class Seen(NamedTuple):
    """A step of an earlier generation. Its values stay in the journal, because they may not all fit into memory."""

    key: bytes
    name: str
    fingerprint: bytes | None
    past: Past
    place: Place
    #: Where it was first called: the intent there has the arguments.
    first: Place


class Prior:
    """Guarded steps of earlier generations that no step of the present one has claimed yet.

    :param rows: the entries of all guarded steps of the generations in question, in journal order, without payloads.
    :param generation: the present generation; its steps have claimed their keys already.
    """

    def __init__(self, rows: Iterable[Journaled], generation: int) -> None:
        self._by_key: dict[bytes, Seen] = {}
        #: Keys of the steps of each name, in the order of their first calls.
        self._by_name: dict[str, dict[bytes, None]] = {}
        self._by_print: dict[tuple[str, bytes | None], dict[bytes, None]] = {}
        claimed: set[bytes] = set()
        for where, group in groupby(rows, key=lambda r: (r.generation, r.scope, r.position)):
            entries = list(group)
            place = Place(*where)
            recorded = fold(entries, payloads=False)
            if recorded.key is None or only_audits(entries):
                continue
            if place.generation == generation:
                claimed.add(recorded.key)
            elif recorded.past in _KNOWN:
                # A later generation knows more than an earlier one.
                known = self._pop(recorded.key)
                first = place if known is None else known.first
                self._add(Seen(recorded.key, recorded.name, recorded.fingerprint, recorded.past, place, first))
        for key in claimed:
            self._pop(key)

    def __bool__(self) -> bool:
        return bool(self._by_key)

    def _add(self, seen: Seen) -> None:
        self._by_key[seen.key] = seen
        self._by_name.setdefault(seen.name, {})[seen.key] = None
        self._by_print.setdefault((seen.name, seen.fingerprint), {})[seen.key] = None

    def _pop(self, key: bytes) -> Seen | None:
        seen = self._by_key.pop(key, None)
        if seen is not None:
            del self._by_name[seen.name][key]
            del self._by_print[seen.name, seen.fingerprint][key]
        return seen

    def claim(self, key: bytes, name: str, fingerprint: bytes) -> Seen | None:
        """The earlier step that is the same as this one, if there is one; it cannot be claimed twice.

        The key decides. If it differs only because the step moved to another branch, or to another place among equal
        steps, name and fingerprint decide.
        """
        found = self._pop(key)
        if found is None:
            other = next(iter(self._by_print.get((name, fingerprint), ())), None)
            found = None if other is None else self._pop(other)
        return found

    def unclaimed(self, name: str) -> list[Seen]:
        """Steps of this name that no step of this generation has claimed: their arguments are different."""
        found = (self._by_key[key] for key in self._by_name.get(name, ()))
        return [seen for seen in found if seen.past is not Past.ERROR]

    def in_doubt(self) -> list[Seen]:
        """Steps that no step of this generation has claimed, and whose effect may or may not have happened."""
        return [seen for seen in self._by_key.values() if seen.past in (Past.OPEN, Past.UNDECIDED)]
