"""The rules of a step as a table: what the journal says, under each policy, and all that happens then, in order.

Small words are actions (``flush``: everything so far is committed under the lease), capital ones entries.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from celery_durable import (
    DID_NOT_HAPPEN,
    UNKNOWN,
    AmbiguousEffect,
    GuardConflict,
    Happened,
    Intent,
    OnAmbiguous,
    ResultLost,
    Retry,
    StepDescriptor,
)
from celery_durable.codec import Codec
from celery_durable.effects import Verdict
from celery_durable.steps.actions import Ask, Claim, Decision, Flush, Operate, Outcome, Pause
from celery_durable.steps.call import StepCall
from celery_durable.steps.protocol import perform
from celery_durable.store.records import EffectCode, Entry, EntryKind, Journaled, StoredPayload

CODEC = Codec()
PRINT, KEY = b"f" * 32, b"k" * 32


def ask(*_: Any) -> Verdict:
    raise AssertionError("the rules do not call it themselves")


#: Policy -> the step, and what its reconcile callable will say.
POLICIES: dict[str, tuple[Any, Any]] = {
    "RERUN": (OnAmbiguous.RERUN, None),
    "SKIP": (OnAmbiguous.SKIP, None),
    "FAIL": (OnAmbiguous.FAIL, None),
    "happened": (ask, Happened("told")),
    "did not": (ask, DID_NOT_HAPPEN),
    "unknown": (ask, UNKNOWN),
    "raises": (ask, ConnectionError("away")),
    "nonsense": (ask, "yes"),
}


def descriptor(policy: str, **options: Any) -> StepDescriptor:
    if policy == "plain":
        return StepDescriptor("charge", retry=options.get("retry"))
    if policy == "undoable":
        return StepDescriptor("charge", retry=options.get("retry"), compensate=print)
    chosen = POLICIES[policy][0]
    assumed = {"assumed": "assumed"} if policy == "SKIP" else {}
    return StepDescriptor.guarded("charge", Intent.MONEY_MOVING, on_ambiguous=chosen, **assumed, **options)


#: What each action is called in the log.
WORDS = {Ask: "ask", Claim: "claim", Flush: "flush", Operate: "call", Pause: "pause"}


class Stage:
    """What surrounds a step, and a driver that notes everything.

    :param answers: values and exceptions of the operation's calls, in turn.
    :param says: what the reconcile callable returns or raises.
    """

    execution_id = "one"
    previews = True

    def __init__(self, answers: list[Any], says: Any = None, *, is_undone: bool = False) -> None:
        self.answers = answers
        self.is_undone = is_undone
        self.says = says
        self.log: list[str] = []
        #: Try numbers that the operation saw.
        self.tries: list[int] = []
        self.doubts: list[str | None] = []
        self.decisions: list[str] = []
        self.entries: list[Entry] = []

    # -- what the rules need ------------------------------------------------------------------------------------

    def append(self, entry: Entry, *, finishes: bool = False) -> None:
        self.entries.append(entry)
        self.log.append(entry.kind.name)

    def encode(self, value: Any, where: str) -> StoredPayload:
        return StoredPayload(*CODEC.encode(value, where))

    def encode_tree(self, tree: dict[str, Any]) -> StoredPayload:
        return StoredPayload(*CODEC.encode_tree(tree))

    def roundtrip(self, value: Any, where: str) -> tuple[StoredPayload, Any]:
        payload = self.encode(value, where)
        return payload, self.decode(payload, where)

    def roundtrip_error(self, error: BaseException, where: str) -> tuple[StoredPayload, Exception]:
        payload = StoredPayload(*CODEC.encode_error(error, where))
        return payload, self.decode_error(payload, where)

    def decode(self, payload: StoredPayload | None, where: str) -> Any:
        assert payload is not None
        return CODEC.decode(*payload, where)

    def decode_error(self, payload: StoredPayload | None, where: str) -> Exception:
        assert payload is not None
        error = CODEC.decode_error(*payload, where)
        assert isinstance(error, Exception)
        return error

    def note_error(self, entry: Entry, doubt: str | None = None) -> None:
        self.doubts.append(doubt)

    def cannot_tell(self, entry: Entry, doubt: str) -> None:
        self.doubts.append(doubt)

    def decided(self, call: StepCall, decision: Decision) -> None:
        self.decisions.append(decision.decision)

    def earlier(self, key: bytes, name: str, fingerprint: bytes) -> None:
        return None

    def conflicting(self, name: str, *, named: bool) -> None:
        return None

    def must_park(self, error: GuardConflict) -> None:
        raise error

    # -- the driver ---------------------------------------------------------------------------------------------

    def play(self, step: StepDescriptor, history: list[Journaled], named: bytes | None = None) -> Outcome:
        call = StepCall(step, print, (5,), {}, "one", "", "", 3, PRINT, 0, named)
        rules = perform(call, history or None, self)
        answer: Any = None
        try:
            while True:
                action = rules.send(answer)
                self.log.append(WORDS[type(action)])
                answer = None
                if isinstance(action, Operate):
                    assert action.leased is step._announced
                    self.tries.append(action.handle.attempt)
                    result = self.answers.pop(0)
                    answer = (None, result) if isinstance(result, Exception) else (result, None)
                elif isinstance(action, Ask):
                    answer = (None, self.says) if isinstance(self.says, Exception) else (self.says, None)
                else:
                    assert isinstance(action, Flush | Pause | Claim)
        except StopIteration as stop:
            outcome: Outcome = stop.value
            return outcome


def history(*kinds: str, guarded: bool = True) -> list[Journaled]:
    """What the journal has at the step's position; each entry holds what entries of its kind do."""
    payloads = {
        "RESULT": CODEC.encode("stored", ""),
        "SKIPPED": CODEC.encode("stored", ""),
        "LOST": CODEC.encode("too large", ""),
        "ERROR": CODEC.encode_error(ValueError("stored"), ""),
    }
    effect = EffectCode.EXACTLY_ONCE_GUARDED if guarded else EffectCode.IDEMPOTENT
    rows = []
    for number, kind in enumerate(kinds):
        codec, payload = payloads.get(kind, (None, None))
        key = KEY if guarded else None
        attempt = kinds[: number + 1].count("INTENT") or 1
        rows.append(
            Journaled(
                1, "", 3, number, EntryKind[kind], effect, "charge", PRINT, key, 1, attempt, 0, None, codec, payload
            )
        )
    return rows


def word(outcome: Outcome) -> str:
    """The outcome in one word or two."""
    source = "replayed " if outcome.replayed else ""
    if outcome.error is not None:
        return f"{source}{type(outcome.error).__name__}"
    return f"{source}{'skipped ' if outcome.skipped else ''}{outcome.value}"


def play(policy: str, *kinds: str, answers: list[Any] | None = None, **options: Any) -> tuple[str, str, Stage]:
    stage = Stage(["live"] if answers is None else answers, POLICIES.get(policy, (None, None))[1])
    outcome = stage.play(descriptor(policy, **options), history(*kinds, guarded=policy in POLICIES))
    return " ".join(stage.log), word(outcome), stage


GUARDED = "INTENT flush call RESULT flush"


# -- what the journal settles -----------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(
    ("kinds", "outcome"),
    [
        ("INTENT RESULT", "replayed stored"),
        ("INTENT ATTEMPT INTENT RESULT", "replayed stored"),
        ("INTENT AUDIT RESULT", "replayed stored"),
        ("RESULT", "replayed stored"),  # taken over from an earlier generation, or from another step of its key
        ("INTENT AUDIT SKIPPED", "replayed skipped stored"),
        ("INTENT ATTEMPT ERROR", "replayed ValueError"),
        ("INTENT AUDIT ERROR", "replayed ValueError"),
        ("INTENT LOST", "replayed ResultLost"),
    ],
)
def test_what_has_an_end_is_answered_and_nothing_else_happens(policy: str, kinds: str, outcome: str) -> None:
    assert play(policy, *kinds.split())[:2] == ("", outcome)


@pytest.mark.parametrize(("kinds", "outcome"), [("RESULT", "replayed stored"), ("ERROR", "replayed ValueError")])
def test_so_is_a_plain_step(kinds: str, outcome: str) -> None:
    assert play("plain", *kinds.split())[:2] == ("", outcome)


@pytest.mark.parametrize(
    ("kinds", "outcome"),
    [
        ("INTENT RESULT", "replayed stored"),
        ("INTENT ATTEMPT INTENT RESULT", "replayed stored"),
        ("RESULT", "replayed stored"),  # of a body that could not undo it
        ("INTENT ATTEMPT ERROR", "replayed ValueError"),
        ("INTENT LOST", "replayed ResultLost"),
    ],
)
def test_so_is_a_step_that_can_be_undone(kinds: str, outcome: str) -> None:
    assert play("undoable", *kinds.split())[:2] == ("", outcome)


# -- what begins ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(
    ("kinds", "attempt"),
    [
        ("", 1),
        ("AUDIT", 1),  # a conflict stood in the way
        ("INTENT ATTEMPT", 2),
        ("INTENT ATTEMPT INTENT ATTEMPT", 3),
        ("INTENT AUDIT RUN_AGAIN", 1),  # lost knowledge uses no try up
    ],
)
def test_a_guarded_operation_runs_behind_a_committed_intent_and_its_result_is_committed(
    policy: str, kinds: str, attempt: int
) -> None:
    log, outcome, stage = play(policy, *kinds.split())
    assert (log, outcome, stage.tries) == (GUARDED, "live", [attempt])
    assert [entry.entry for entry in stage.entries] == [len(kinds.split()), len(kinds.split()) + 1]
    if kinds:
        assert {entry.key for entry in stage.entries} == {KEY}


def test_a_plain_operation_just_runs_and_nobody_waits_for_its_result() -> None:
    assert play("plain")[:2] == ("call RESULT", "live")
    assert play("plain", "ATTEMPT")[2].tries == [2]


#: Nobody waits for the result of what may be repeated.
UNDOABLE = "INTENT flush call RESULT"


@pytest.mark.parametrize(
    ("kinds", "attempt"),
    [("", 1), ("INTENT ATTEMPT", 2), ("INTENT ATTEMPT INTENT ATTEMPT", 3), ("INTENT RUN_AGAIN", 1)],
)
def test_what_can_be_undone_is_announced(kinds: str, attempt: int) -> None:
    log, outcome, stage = play("undoable", *kinds.split())
    assert (log, outcome, stage.tries) == (UNDOABLE, "live", [attempt])
    assert {entry.key for entry in stage.entries} == {None}


@pytest.mark.parametrize(("kinds", "attempt"), [("INTENT", 1), ("INTENT ATTEMPT INTENT", 2), ("INTENT AUDIT", 1)])
@pytest.mark.parametrize("policy", ["undoable", "plain"])
def test_what_was_announced_and_may_be_repeated_is_repeated(policy: str, kinds: str, attempt: int) -> None:
    log, outcome, stage = play(policy, *kinds.split())
    assert (log, outcome, stage.tries, stage.doubts) == ("call RESULT", "live", [attempt], [])


def test_a_guarded_operation_with_a_key_of_the_application_claims_it_with_its_intent() -> None:
    stage = Stage(["live"])
    stage.play(descriptor("FAIL"), [], named=KEY)
    assert stage.log == ["claim", "call", "RESULT", "flush"]


# -- the ambiguous window ---------------------------------------------------------------------------------------

AMBIGUOUS = {
    "RERUN": (f"AUDIT {GUARDED}", "live"),
    "SKIP": ("AUDIT SKIPPED flush", "skipped assumed"),
    "FAIL": ("AUDIT flush", "AmbiguousEffect"),
    "happened": ("ask AUDIT RESULT flush", "told"),
    "did not": (f"ask AUDIT {GUARDED}", "live"),
    "unknown": ("ask AUDIT flush", "AmbiguousEffect"),
    "raises": ("ask AUDIT flush", "AmbiguousEffect"),
    "nonsense": ("ask AUDIT flush", "AmbiguousEffect"),
}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("kinds", ["INTENT", "INTENT ATTEMPT INTENT", "INTENT AUDIT", "INTENT AUDIT INTENT"])
def test_an_intent_without_a_result_is_audited_and_left_to_the_policy(policy: str, kinds: str) -> None:
    log, outcome, stage = play(policy, *kinds.split())
    assert (log, outcome) == AMBIGUOUS[policy]
    assert stage.tries in ([], [kinds.split().count("INTENT")])
    assert {entry.key for entry in stage.entries} == {KEY}
    assert [doubt is not None for doubt in stage.doubts] == [True] * (outcome == "AmbiguousEffect")


@pytest.mark.parametrize(
    ("policy", "tells", "does_not"),
    [
        ("undoable", "call call RESULT", "call call"),
        (
            "RERUN",
            "AUDIT INTENT flush call INTENT flush call RESULT flush",
            "AUDIT INTENT flush call INTENT flush call",
        ),
    ],
)
def test_what_is_run_again_to_tell_whether_there_is_something_to_undo_does_not_tell_it_by_an_error(
    policy: str, tells: str, does_not: str
) -> None:
    step = descriptor(policy, retry=Retry(2, backoff=0))
    step = dataclasses.replace(step, compensate=print)
    found = Stage([OSError("away"), "live"], is_undone=True)
    assert word(found.play(step, history("INTENT", guarded=policy in POLICIES))) == "live"
    assert [what for what in found.log if what != "pause"] == tells.split()
    unknown = Stage([OSError("away"), OSError("away")], is_undone=True)
    assert word(unknown.play(step, history("INTENT", guarded=policy in POLICIES))) == "OSError"
    assert [what for what in unknown.log if what != "pause"] == does_not.split()
    [doubt] = unknown.doubts
    assert doubt is not None
    assert "to find out whether there is something to undo, and raised OSError" in doubt


# -- exceptions -------------------------------------------------------------------------------------------------

RAISED = {
    "plain": ("call", "OSError"),
    "undoable": ("INTENT flush call ATTEMPT", "OSError"),
    "RERUN": ("INTENT flush call ATTEMPT flush", "OSError"),
    "SKIP": ("INTENT flush call ATTEMPT flush", "OSError"),
    "FAIL": ("INTENT flush call", "OSError"),
    "happened": ("INTENT flush call ask AUDIT RESULT flush", "told"),
    "did not": ("INTENT flush call ask AUDIT ATTEMPT flush", "OSError"),
    "unknown": ("INTENT flush call ask AUDIT", "OSError"),
    "raises": ("INTENT flush call ask AUDIT", "OSError"),
    "nonsense": ("INTENT flush call ask AUDIT", "OSError"),
}
IN_DOUBT = {"FAIL", "unknown", "raises", "nonsense"}


@pytest.mark.parametrize("policy", RAISED)
def test_an_exception_closes_the_intent_only_where_it_is_known_what_it_means(policy: str) -> None:
    log, outcome, stage = play(policy, answers=[OSError("away")])
    assert (log, outcome) == RAISED[policy]
    # Noted, in case that the body handles it; a step that has an end has nothing to note.
    assert [doubt is not None for doubt in stage.doubts] == ([] if policy == "happened" else [policy in IN_DOUBT])


@pytest.mark.parametrize("policy", ["FAIL", "happened", "unknown"])
def test_a_definite_exception_is_known(policy: str) -> None:
    log, outcome, stage = play(policy, answers=[OSError("away")], definite=(OSError,))
    assert (log, outcome, stage.doubts) == ("INTENT flush call ATTEMPT flush", "OSError", [None])


TRY = "INTENT flush call ATTEMPT flush pause"


@pytest.mark.parametrize(
    ("policy", "log", "outcome"),
    [
        ("plain", "call ATTEMPT pause call ATTEMPT pause call RESULT", "live"),
        ("undoable", "{0} {0} {1}".format("INTENT flush call ATTEMPT pause", UNDOABLE), "live"),
        ("RERUN", f"{TRY} {TRY} {GUARDED}", "live"),
        ("SKIP", f"{TRY} {TRY} {GUARDED}", "live"),
        ("FAIL", "INTENT flush call", "OSError"),  # a retry policy never answers lost knowledge
        ("happened", "INTENT flush call ask AUDIT RESULT flush", "told"),
        ("did not", "{0} {0} {1}".format(TRY.replace("call", "call ask AUDIT"), GUARDED), "live"),
        ("unknown", "INTENT flush call ask AUDIT", "OSError"),
    ],
)
def test_a_retry_policy_tries_again_only_where_nothing_is_in_doubt(policy: str, log: str, outcome: str) -> None:
    answers: list[Any] = [OSError("1"), OSError("2"), "live"]
    assert play(policy, answers=answers, retry=Retry(3, backoff=0))[:2] == (log, outcome)


# -- results that cannot be stored ------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES)
def test_a_guarded_operation_whose_result_cannot_be_stored_is_done(policy: str) -> None:
    log, outcome, _ = play(policy, answers=[object()])
    assert (log, outcome) == ("INTENT flush call LOST flush", "ResultLost")


def test_so_is_one_that_can_be_undone() -> None:
    assert play("undoable", answers=[object()])[:2] == ("INTENT flush call LOST", "ResultLost")


def test_a_plain_one_leaves_no_trace() -> None:
    assert play("plain", answers=[object()])[:2] == ("call", "PayloadError")


def test_the_errors_say_which_step_and_which_execution() -> None:
    doubtful = Stage([])
    doubt = doubtful.play(descriptor("FAIL"), history("INTENT")).error
    lost = Stage([object()]).play(descriptor("FAIL"), []).error
    assert isinstance(doubt, AmbiguousEffect)
    assert isinstance(lost, ResultLost)
    for error in (doubt, lost):
        assert (error.execution_id, error.step_id, error.step) == ("one", "3", "charge")  # type: ignore[attr-defined]
