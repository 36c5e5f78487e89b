"""Random programs, killed at random points and resumed until done, come out as if nothing had happened."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from celery_durable.store.records import State

from .machine import Death, Life, machine
from .programs import World, programs


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(program=programs, lives=st.lists(st.integers(0, 40), max_size=6))
def test_a_killed_program_ends_as_one_that_was_not(
    monkeypatch: pytest.MonkeyPatch, program: tuple[object, ...], lives: list[int]
) -> None:
    with machine(monkeypatch) as calm:
        world = World()
        expected = calm.live(program, world)
        wanted = calm.journal()
        effects, skippable = set(world.fired), world.skippable

    with machine(monkeypatch) as harsh:
        world = World()
        points = iter(lives)
        while True:
            try:
                result = harsh.live(program, world, Life(next(points, None)))
            except Death:
                continue
            if harsh.state() is not State.AMBIGUOUS:
                break
            harsh.settle(world)
        event(f"deaths: {harsh.deaths}")
        event(f"packs: {harsh.packs() > 0}")
        assert harsh.state() is State.COMPLETED
        assert harsh.journal() == wanted
        assert result == expected

    # SKIP promises at most once, and no more.
    assert set(world.fired) <= effects
    assert effects - set(world.fired) <= skippable
    twice = {key for key, count in world.fired.items() if count > 1}
    assert not twice & (world.guarded - world.deduplicated), "a guarded effect fired twice under one key"
