"""Guarded steps of earlier generations: their results survive a divergence (G6)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from .replay import Past, Recorded, fold, only_audits
from .store.records import Journaled

__all__ = ["Prior"]

#: What is known of the effect; everything else is as if the step had never been asked for.
_KNOWN = (Past.OPEN, Past.UNDECIDED, Past.DONE, Past.SKIPPED, Past.LOST, Past.ERROR)


class Prior:
    """Guarded steps of earlier generations that no step of the present one has claimed yet.

    :param rows: the entries of all guarded steps of the generations in question, in journal order.
    :param generation: the present generation; its steps have claimed their keys already.
    """

    def __init__(self, rows: Sequence[Journaled], generation: int) -> None:
        self._by_key: dict[bytes, tuple[int, Recorded, Journaled]] = {}
        claimed: set[bytes] = set()
        for (number, _, _), group in groupby(rows, key=lambda r: (r.generation, r.scope, r.position)):
            entries = list(group)
            recorded = fold(entries)
            if recorded.key is None or only_audits(entries):
                continue
            if number == generation:
                claimed.add(recorded.key)
            elif recorded.past in _KNOWN:
                # A later generation knows more than an earlier one; the intent says what the arguments were.
                known = self._by_key.get(recorded.key)
                self._by_key[recorded.key] = (number, recorded, known[2] if known else entries[0])
        for key in claimed:
            self._by_key.pop(key, None)

    def __bool__(self) -> bool:
        return bool(self._by_key)

    def claim(self, key: bytes, name: str, fingerprint: bytes) -> tuple[int, Recorded, Journaled] | None:
        """The earlier step that this one is, if there is one; it cannot be claimed twice.

        The key decides; where it differs only because the step moved to another branch or place among its equals,
        name and fingerprint do.
        """
        found = self._by_key.pop(key, None)
        if found is not None:
            return found
        for other, (_, recorded, _) in self._by_key.items():
            if recorded.name == name and recorded.fingerprint == fingerprint:
                return self._by_key.pop(other)
        return None

    def unclaimed(self, name: str) -> list[tuple[int, Recorded, Journaled]]:
        """Steps of this name that no step of this generation has claimed: they have other arguments."""
        return [found for found in self._by_key.values() if found[1].name == name and found[1].past is not Past.ERROR]
