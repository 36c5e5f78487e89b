"""Counts occurrences, in a few bytes for each: a body may ask for any number of guarded steps."""

from __future__ import annotations

from array import array
from typing import Final

__all__ = ["Occurrences"]

#: Size of the first table: a power of two, like that of all later ones.
_LEAST: Final = 16


class Occurrences:
    """How often each of many hashes was counted.

    It remembers 64 bits of each. Two hashes that share these bits count as one. That is extremely unlikely, and even
    then they get the same numbers in every run of the body, which is all that the numbers are for.
    """

    __slots__ = ("_repeated", "_table", "_used")

    def __init__(self) -> None:
        #: A hash table with open addressing: each word is in its own place or behind it; 0 is a free place.
        self._table: array[int] | None = None
        self._used = 0
        #: Counts of the hashes that were seen more than once.
        self._repeated: dict[int, int] = {}

    def count(self, hashed: bytes) -> int:
        """Count a hash.

        :returns: how often it was counted before.
        """
        word = int.from_bytes(hashed[:8], "little") or 1
        table = self._table
        if table is None or 3 * self._used >= 2 * len(table):
            table = self._grow(table)
        place = _place(table, word)
        if not table[place]:
            table[place] = word
            self._used += 1
            return 0
        times = self._repeated[word] = self._repeated.get(word, 0) + 1
        return times

    def _grow(self, old: array[int] | None) -> array[int]:
        size = _LEAST if old is None else 2 * len(old)
        table = array("Q", bytes(8 * size))
        for word in old or ():
            if word:
                table[_place(table, word)] = word
        self._table = table
        return table


def _place(table: array[int], word: int) -> int:
    """Where a word is, or where it is to be put."""
    last = len(table) - 1
    place = word & last
    while table[place] not in (0, word):
        place = (place + 1) & last
    return place
