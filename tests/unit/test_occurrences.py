"""Counting fingerprints."""

from __future__ import annotations

import random
import tracemalloc
from collections import Counter

from celery_durable.identity import wait_print
from celery_durable.replay import occurrences
from celery_durable.replay.occurrences import Occurrences


def test_it_counts_as_a_counter_does():
    rng = random.Random(7)
    known, counted = Occurrences(), Counter[bytes]()
    for _ in range(20_000):
        print_ = wait_print(str(rng.randrange(3000)))
        assert known.count(print_) == counted[print_]
        counted[print_] += 1


def test_a_hash_of_nothing_but_zeros_counts_as_well():
    known = Occurrences()
    assert [known.count(bytes(32)) for _ in range(3)] == [0, 1, 2]


def test_hashes_that_point_to_one_place_are_told_apart():
    known = Occurrences()
    hashes = [(number << 32 | 5).to_bytes(8, "little") + bytes(24) for number in range(200)]
    assert [known.count(one) for one in hashes] == [0] * 200
    assert [known.count(one) for one in hashes] == [1] * 200


def test_each_takes_a_few_bytes():
    prints = [wait_print(str(number)) for number in range(20_000)]
    tracemalloc.start()
    known = Occurrences()
    for print_ in prints:
        known.count(print_)
    # Other threads of this process may allocate something meanwhile.
    theirs = tracemalloc.Filter(True, occurrences.__file__)
    held = sum(one.size for one in tracemalloc.take_snapshot().filter_traces([theirs]).traces)
    tracemalloc.stop()
    assert 8 < held / len(prints) < 25
