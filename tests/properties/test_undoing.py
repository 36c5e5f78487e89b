"""Random programs that can be undone, killed and cancelled at random points, and run anew from a random step.

The rule: what is done and not undone is nothing, or the body has completed. It may be parked on the way there, for an
operator; whose part the test plays, until the execution has ended.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

import celery_durable
from celery_durable import ExecutionCancelled, UnknownExecution, UnknownStep, WrongState
from celery_durable.store.records import FINAL_STATES, State

from .machine import THE_EXECUTION, Death, Life, Machine, machine
from .programs import Place, Refused, World, registers, sagas

#: The rerun of an execution.
AGAIN = "again"


@dataclass(frozen=True)
class Cancel:
    """Somebody's change of mind."""

    #: In which life, and where in it.
    life: int
    at: int
    #: By an application's handle, in another thread of the very process; or by somebody outside.
    within: bool


#: A fault point, of however many a program passes.
_points = st.integers(0, 299)
_lives = st.lists(_points, max_size=5)
_cancels = st.lists(st.builds(Cancel, st.integers(0, 2), _points, st.booleans()), max_size=2)


class Story:
    """What becomes of an execution of a program in a machine."""

    def __init__(self, machine: Machine, program: tuple[Any, ...], world: World) -> None:
        self.machine, self.program, self.world = machine, program, world
        #: Cancellations that somebody was promised.
        self.cancelled: Counter[str] = Counter()
        self.parked = 0
        #: Fault points of an undisturbed life.
        self.points = 1
        self.passed = 0
        self._wrong: list[BaseException] = []

    def tell(self, execution: str, lives: list[int] = [], cancels: list[Cancel] = []) -> None:  # noqa: B006
        """Until the execution has ended."""
        number = 0
        while True:
            meanwhile = {one.at % self.points: self._cancel(execution, one) for one in cancels if one.life == number}
            points = lives[number] % self.points if number < len(lives) else None
            number += 1
            try:
                self.machine.live(self.program, self.world, Life(points, meanwhile), execution)
            except (Death, Refused):
                pass
            self.passed = max(self.passed, self.machine.points)
            if self._wrong:
                raise self._wrong[0]
            if self._is_over(execution):
                return
            assert number < 100, "it does not end"

    def _is_over(self, execution: str) -> bool:
        try:
            state = self.machine.state(execution)
        except UnknownExecution:
            return False  # it died before it was born
        if state is State.AMBIGUOUS:
            self.machine.settle(self.world, execution)
            self.parked += 1
        elif state is State.QUARANTINED:
            reason = celery_durable.get(execution, self.machine.app).status().reason or ""
            assert "a compensation failed with Wrong" in reason, f"it is parked without a true reason: {reason}"
            self.machine.operations.resume(execution)
            self.parked += 1
        return state in FINAL_STATES

    def _cancel(self, execution: str, how: Cancel) -> Callable[[], None]:
        def cancel() -> None:
            try:
                if how.within:
                    celery_durable.get(execution, self.machine.app).cancel("not wanted")
                else:
                    self.machine.operations.cancel(execution, "not wanted")
                self.cancelled[execution] += 1
            except (WrongState, UnknownExecution):
                pass  # it has ended, is being undone or cancelled, is in doubt, or has not begun
            except BaseException as error:
                self._wrong.append(error)

        def elsewhere() -> None:
            thread = threading.Thread(target=cancel)
            thread.start()
            thread.join()

        return elsewhere if how.within else cancel

    def outcome(self) -> Any:
        """What the body returned or raised, as anybody may ask for it."""
        try:
            return celery_durable.get(THE_EXECUTION, self.machine.app).result(timeout=0)
        except (Refused, ExecutionCancelled) as error:
            return str(error)

    # -- judging ------------------------------------------------------------------------------------------------

    def complaints(self, execution: str) -> Iterator[str]:
        """What is wrong with how it has ended."""
        state = self.machine.state(execution)
        done, undone = self.world.done[execution], self.world.undone[execution]
        places = _first_times(undone)
        if places != sorted(places, reverse=True):
            yield f"it was not undone backwards: {places}"
        on_failure = registers(self.program)
        known = set(done) | self.world.assumed[execution] | on_failure
        if foreign := set(places) - known:
            yield f"undone, and it has never done that: {foreign}"
        yield from self._twice(undone)
        if state is State.COMPLETED:
            if places:
                yield f"it has completed, and undone {places}"
            return
        if left := set(done) - set(places):
            yield f"it is {state}; done, and not undone: {sorted(left)}"
        # Whoever tells what there is to undo has come by all that was registered before it.
        passed = {one for one in on_failure for place in places if _lies_before(one, place)}
        if left := passed - set(places) - self.shared(execution):
            yield f"it is {state}; registered, and not called: {sorted(left)}"

    def _twice(self, undone: list[tuple[Place, bytes]]) -> Iterator[str]:
        keys = {place: {key for one, key in undone if one == place} for place, _ in undone}
        for place, found in keys.items():
            if len(found) > 1:
                yield f"undone under several keys: {place}"
        for (place, key), times in Counter(undone).items():
            once = key in self.world.guarded - self.world.deduplicated
            if times > (1 if once else 1 + self.machine.deaths):
                yield f"undone {times} times: {place}"

    def shared(self, execution: str) -> set[Place]:
        """What may belong to the execution of which this is a rerun."""
        return registers(self.program) if execution == AGAIN else set()


def _lies_before(one: Place, other: Place) -> bool:
    """Whether a statement comes before another one, in the same sequence or in one around it."""
    *around, number = one
    depth = len(around)
    return len(other) > depth and list(other[:depth]) == around and other[depth] > number


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    program=sagas,
    lives=_lives,
    cancels=_cancels,
    again=st.none() | st.integers(0, 5),
    lives_again=_lives,
    cancels_again=_cancels,
)
def test_what_is_done_and_not_undone_is_nothing(
    monkeypatch: pytest.MonkeyPatch,
    program: tuple[Any, ...],
    lives: list[int],
    cancels: list[Cancel],
    again: int | None,
    lives_again: list[int],
    cancels_again: list[Cancel],
) -> None:
    with machine(monkeypatch) as calm:
        wanted = Story(calm, program, World())
        calm.publish()
        wanted.tell(THE_EXECUTION)
        state, expected, journal = calm.state(), wanted.outcome(), calm.journal()
        assert list(wanted.complaints(THE_EXECUTION)) == []

    with machine(monkeypatch) as harsh:
        story = Story(harsh, program, World())
        story.points = max(wanted.passed, 1)
        harsh.publish()
        story.tell(THE_EXECUTION, lives, cancels)
        event(f"{harsh.state()}, cancelled: {min(story.cancelled[THE_EXECUTION], 1)}")
        assert list(story.complaints(THE_EXECUTION)) == []
        if not story.cancelled[THE_EXECUTION]:
            # As if nothing had happened.
            assert harsh.state() is state
            assert story.outcome() == expected
            assert harsh.journal() == journal
            assert _first_times(story.world.undone[THE_EXECUTION]) == _first_times(wanted.world.undone[THE_EXECUTION])
        before = (dict(story.world.done[THE_EXECUTION]), list(story.world.undone[THE_EXECUTION]))
        if again is not None and run_anew(harsh, again):
            story.tell(AGAIN, lives_again, cancels_again)
            event(f"rerun: {harsh.state(AGAIN)}, cancelled: {min(story.cancelled[AGAIN], 1)}")
            assert list(story.complaints(AGAIN)) == []
            # What it shares is another's to undo, and that one has ended.
            assert (story.world.done[THE_EXECUTION], story.world.undone[THE_EXECUTION]) == before

    event(f"deaths: {harsh.deaths}, parked: {min(story.parked, 1)}")
    twice = {key for key, count in story.world.fired.items() if count > 1}
    assert not twice & (story.world.guarded - story.world.deduplicated), "a guarded effect fired twice under one key"


def run_anew(machine: Machine, position: int) -> bool:
    try:
        celery_durable.get(THE_EXECUTION, machine.app).rerun(position, durable_id=AGAIN)
    except (UnknownStep, WrongState):
        return False  # there is no such position; or it was undone
    return True


def _first_times(undone: list[tuple[Place, bytes]]) -> list[Place]:
    """What was undone, without repetitions."""
    return list(dict.fromkeys(place for place, _ in undone))
