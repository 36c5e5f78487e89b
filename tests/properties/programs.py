"""Random durable bodies, and the world outside that they act on."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from hypothesis import strategies as st

from celery_durable import (
    DID_NOT_HAPPEN,
    Effect,
    Happened,
    Intent,
    OnAmbiguous,
    Retry,
    StepDescriptor,
    current_step,
    guarded,
    step,
)
from celery_durable.effects import UNSET

__all__ = ["Place", "Refused", "World", "programs", "registers", "run_program", "sagas"]


class Wrong(Exception):
    """What operations of the random programs raise."""


class Refused(Exception):
    """How the bodies fail."""


# -- programs ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Undo:
    """How something is undone."""

    #: As of a step; ``plain``: by a function that is no step.
    effect: str
    #: How many of its first tries raise.
    failures: int = 0


@dataclass(frozen=True)
class Do:
    """One step."""

    name: str
    effect: str
    argument: int
    #: How many of its first tries raise; all of them where the policy allows no more than that.
    failures: int = 0
    #: How many tries its retry policy allows.
    tries: int = 1
    #: Its compensation.
    undo: Undo | None = None


@dataclass(frozen=True)
class Register:
    """``on_failure``."""

    undo: Undo


@dataclass(frozen=True)
class Refuse:
    """Raises; in reruns only, or always."""

    reruns: bool = False


@dataclass(frozen=True)
class Loop:
    """The same statements several times."""

    times: int
    body: tuple[Any, ...]


@dataclass(frozen=True)
class Branches:
    """Statements in branches of a parallel scope."""

    branches: tuple[tuple[Any, ...], ...]


@dataclass(frozen=True)
class Try:
    """Statements whose refusal is handled."""

    body: tuple[Any, ...]


EFFECTS = ("idempotent", "at_least_once", "skip", "rerun", "fail", "reconcile")

_do = st.builds(
    Do,
    name=st.sampled_from("abc"),
    effect=st.sampled_from(EFFECTS),
    argument=st.integers(0, 2),
    failures=st.integers(0, 2),
    tries=st.integers(1, 3),
    # SKIP takes a step for done that could only have failed; what it then gives is the assumed value.
).map(lambda do: replace(do, failures=0) if do.effect == "skip" else do)
_flat = st.lists(_do, min_size=1, max_size=3).map(tuple)
_statement = st.one_of(
    _do,
    st.builds(Loop, st.integers(1, 3), _flat),
    st.builds(Branches, st.lists(_flat, min_size=1, max_size=3).map(tuple)),
)
#: Of steps that nobody undoes.
programs = st.lists(_statement, min_size=1, max_size=5).map(tuple)

_undo = st.builds(
    Undo,
    effect=st.sampled_from(("plain", "idempotent", "at_least_once", "rerun", "fail", "reconcile")),
    failures=st.sampled_from((0, 0, 0, 1)),
)
_leaf = st.one_of(
    st.builds(replace, _do, undo=_undo),
    st.builds(replace, _do, undo=_undo),
    _do,
    st.builds(Register, _undo),
)


def _scopes(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    few = st.lists(inner, min_size=1, max_size=3).map(tuple)
    branches = st.builds(Branches, st.lists(few, min_size=2, max_size=3).map(tuple))
    refuses = few.map(lambda body: (*body, Refuse()))
    return st.one_of(
        branches, branches, st.builds(Loop, st.integers(1, 2), few), st.builds(Try, st.one_of(few, refuses))
    )


_inner = st.one_of(_leaf, _leaf, _leaf, _scopes(_leaf))
#: Of scopes within scopes, and of steps of which most can be undone. Two thirds fail: always, or as reruns.
sagas = st.builds(
    lambda statements, end: (*statements, *end),
    st.lists(st.one_of(_leaf, _leaf, _scopes(_inner)), min_size=1, max_size=4).map(tuple),
    st.sampled_from(((Refuse(),), (Refuse(reruns=True),), ())),
)


# -- the outside world ------------------------------------------------------------------------------------------

#: Where in a program something stands: the number of the statement, the round or branch of it, the number of the
#: statement in that ... Sorted, places are in the order of the body.
Place = tuple[int, ...]


@dataclass
class World:
    """What happened outside, by idempotency key; it outlives every process."""

    fired: Counter[bytes] = field(default_factory=Counter)
    values: dict[bytes, str | None] = field(default_factory=dict)
    #: Tries of each key that raised, before anything happened.
    refused: Counter[bytes] = field(default_factory=Counter)
    guarded: set[bytes] = field(default_factory=set)
    deduplicated: set[bytes] = field(default_factory=set)
    #: Keys of steps that may be assumed to have happened.
    skippable: set[bytes] = field(default_factory=set)
    #: (execution, position) -> the key of the step there.
    keys: dict[tuple[str, str], bytes] = field(default_factory=dict)
    alive: Callable[[], None] = lambda: None
    #: Execution -> what it did that can be undone, and how often.
    done: defaultdict[str, Counter[Place]] = field(default_factory=lambda: defaultdict(Counter))
    #: Execution -> what it has asked for that may be taken for done though it never happened.
    assumed: defaultdict[str, set[Place]] = field(default_factory=lambda: defaultdict(set))
    #: Execution -> what it has undone, in this order, under which key; once for each time.
    undone: defaultdict[str, list[tuple[Place, bytes]]] = field(default_factory=lambda: defaultdict(list))

    def operate(self, do: Do, argument: int, place: Place) -> str | None:
        """An operation: fires its effect, or raises before it does."""
        self.alive()
        key = current_step().idempotency_key
        self.keys[current_step().execution_id, current_step().step_id] = key
        if self.refused[key] < do.failures or do.failures >= do.tries:
            self.refused[key] += 1
            raise Wrong(f"{do.name} refuses")
        # SKIP has no better value than the assumed one, so an honest program does not need another.
        value = None if do.effect == "skip" else f"{do.name}{argument}"
        self._fire(key, do.effect, value)
        if do.undo is not None:
            self.done[current_step().execution_id][place] += 1
        return value

    def take_back(self, undo: Undo, place: Place) -> None:
        """A compensation."""
        self.alive()
        running = current_step()
        key = running.idempotency_key
        self.keys[running.execution_id, running.step_id] = key
        if self.refused[key] < undo.failures:
            self.refused[key] += 1
            raise Wrong(f"it cannot be undone what was done at {place}")
        self._fire(key, undo.effect, None)
        self.undone[running.execution_id].append((place, key))

    def _fire(self, key: bytes, effect: str, value: str | None) -> None:
        self.fired[key] += 1
        self.values[key] = value
        if effect in ("plain", "skip", "rerun", "fail", "reconcile"):
            self.guarded.add(key)
        if effect in ("plain", "rerun"):
            self.deduplicated.add(key)
        if effect == "skip":
            self.skippable.add(key)

    def reconcile(self, handle: Any, *args: Any) -> Any:
        """What the remote side says."""
        self.alive()
        key = handle.idempotency_key
        return Happened(self.values[key]) if key in self.values else DID_NOT_HAPPEN


def guard(effect: str, world: World) -> Any:
    """The effect of a step."""
    if effect in ("idempotent", "at_least_once"):
        return Effect(effect)
    policy: Any = {
        "skip": OnAmbiguous.SKIP,
        "rerun": OnAmbiguous.RERUN,
        "fail": OnAmbiguous.FAIL,
        "reconcile": world.reconcile,
    }[effect]
    assumed = None if effect == "skip" else UNSET
    return guarded(Intent.CUSTOM, on_ambiguous=policy, assumed=assumed, definite=Wrong)


def compensation(undo: Undo, place: Place, world: World) -> Any:
    """The function that undoes what stands at a place."""

    def take_back(*args: Any) -> None:
        world.take_back(undo, place)

    return take_back if undo.effect == "plain" else step(effect=guard(undo.effect, world))(take_back)


def descriptor(do: Do, place: Place, world: World) -> StepDescriptor:
    """The step of a statement."""
    effect = guard(do.effect, world)
    plain = isinstance(effect, Effect)
    return StepDescriptor(
        f"{do.name}-{do.effect}-{do.failures}-{do.tries}",
        effect if plain else Effect.EXACTLY_ONCE_GUARDED,
        None if plain else effect,
        retry=Retry(do.tries, backoff=0, on=(Wrong,)) if do.tries > 1 else None,
        compensate=None if do.undo is None else compensation(do.undo, place, world),
    )


# -- running them -----------------------------------------------------------------------------------------------


def run_program(context: Any, program: tuple[Any, ...], world: World, at: Place = ()) -> list[Any]:
    """Interpret a program as the body of a task."""
    results: list[Any] = []
    for number, statement in enumerate(program):
        place = (*at, number)
        match statement:
            case Do():
                results.append(_do_step(context, statement, world, place))
            case Register():
                context.on_failure(compensation(statement.undo, place, world))
            case Refuse():
                if not statement.reruns or context.execution_id.startswith("again"):
                    raise Refused(place)
            case Loop():
                results += [
                    run_program(context, statement.body, world, (*place, turn)) for turn in range(statement.times)
                ]
            case Try():
                try:
                    results.append(run_program(context, statement.body, world, (*place, 0)))
                except Refused as refused:
                    results.append(f"handled {refused}")
            case Branches():
                # One worker: the order of crashes is the same each time Hypothesis looks.
                with context.parallel(max_workers=1) as scope:
                    branches = [
                        scope.submit(run_program, context, branch, world, (*place, index))
                        for index, branch in enumerate(statement.branches)
                    ]
                results.append([branch.result() for branch in branches])
    return results


def _do_step(context: Any, do: Do, world: World, place: Place) -> Any:
    if do.undo is not None and do.effect == "skip":
        world.assumed[context.execution_id].add(place)
    try:
        what = descriptor(do, place, world)
        return context.step(what, lambda argument: world.operate(do, argument, place), do.argument)
    except Wrong as error:
        return f"handled {error}"


def registers(program: tuple[Any, ...], at: Place = ()) -> set[Place]:
    """Where a program calls ``on_failure``."""
    found: set[Place] = set()
    for number, statement in enumerate(program):
        place = (*at, number)
        match statement:
            case Register():
                found.add(place)
            case Loop():
                for turn in range(statement.times):
                    found |= registers(statement.body, (*place, turn))
            case Try():
                found |= registers(statement.body, (*place, 0))
            case Branches():
                for index, branch in enumerate(statement.branches):
                    found |= registers(branch, (*place, index))
    return found
