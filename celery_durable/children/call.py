"""The rules of child tasks: how many run at once, when enough have ended, and what the body gets.

A call is a wait whose promises are settled by the ends of the children. Its entries name the children, and are
committed together with the messages that start them, so that each is started once. A replay takes the ids from there,
because ``durable_secret`` may have changed. The verdict is journaled: a replay decides the same without asking anybody.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from celery_durable.codec.outcomes import value_of
from celery_durable.common.faults import reached
from celery_durable.errors import ChildCancelled, ChildFailed, ChildTimeout, GuardConflict
from celery_durable.identity import child_id, child_of, short, wait_print
from celery_durable.replay.leaving import Park
from celery_durable.replay.run import Run
from celery_durable.store.promises.promises import Look
from celery_durable.store.promises.rows import PromiseRow
from celery_durable.store.records import EntryKind, Journaled, NewPromise, PromiseState, StoredPayload
from celery_durable.store.rows import reason_text
from celery_durable.waits.wait import Came, Station, Wait

from .here import Ended, call_here
from .members import Member
from .starting import Children

__all__ = ["ChildCall"]

#: Children started in one transaction.
_WAVE: Final = 200
_NOT_NEEDED: Final = "was not needed any more"


class _Judged(NamedTuple):
    """The outcomes of children that have ended."""

    #: True: it is decided well; False: as a failure; None: not yet.
    well: bool | None
    #: When, which one, and how; in their order.
    ended: list[tuple[int, int, PromiseRow]]
    #: This many of them decide it.
    deciding: int
    #: Of those, the ones that failed.
    failed: list[int]


class ChildCall(Wait):
    """One child, or several.

    :param until: how many must succeed; None: all end.
    :param tolerate: how many may fail.
    :param concurrency: how many are under way at once; None: all.
    :param single: the body gets the one child's value, not a list.
    :param starter: starts them; None where there is no journal.
    """

    kind = EntryKind.CALL

    def __init__(
        self,
        members: Sequence[Member],
        *,
        until: int | None = None,
        tolerate: int = 0,
        concurrency: int | None = None,
        single: bool = False,
        starter: Children | None = None,
    ) -> None:
        self._starter = starter
        self._members = list(members)
        self._until = until
        self._tolerate = tolerate
        self._concurrency = concurrency or max(len(self._members), 1)
        self._single = single
        self.word = "call" if single else "gather"
        name = ", ".join(dict.fromkeys(member.name for member in members)) or "gather"
        if single:
            [member] = self._members
            print_ = member.fingerprint
        else:
            print_ = wait_print(self.word, *(member.fingerprint.hex() for member in members))
        super().__init__(name, print_)
        #: How many have been started, from the first on.
        self._started = 0
        #: The tasks of each that was started.
        self._tasks: dict[str, list[str]] = {}
        #: Pending ones that nobody needs, once it is decided.
        self._left: list[str] = []
        #: Ended, in eager mode.
        self._inline: list[Ended] = []
        self._enough = max(1, min(self._concurrency, len(self._members)) // 4)

    # -- starting -------------------------------------------------------------------------------------------

    def begin(self, station: Station) -> None:
        # In eager mode all are known before the first one runs: whoever comes after a crash finds them by their ids.
        self._start(station, len(self._members) if station.run.inline else min(self._concurrency, len(self._members)))

    def resume(self, rows: Sequence[Journaled], run: Run) -> None:
        for row in rows:
            if row.kind == EntryKind.CALL and row.codec is not None and row.payload is not None:
                where = f"the call {self.name!r}"
                with run.reading(where):
                    for child in run.decode(StoredPayload(row.codec, row.payload), where):
                        self._know(child, run)

    def _know(self, child: dict[str, Any], run: Run) -> None:
        """The next one is in the journal."""
        known = child["id"]
        child_of(known)  # what is damaged is found here
        self._members[self._started] = self._members[self._started]._replace(id=known)
        self._tasks[known] = child["tasks"]
        self._started += 1
        if not run.inline:
            self.promises = (*self.promises, known)

    def _start(self, station: Station, count: int) -> None:
        """Record the next ones, and send them."""
        run = station.run
        earlier = run.earlier_children()
        fresh = self._members[self._started : self._started + count]
        for start in range(0, len(fresh) or 1, _WAVE):
            if start and self._is_decided(run):
                return
            self._start_wave(station, fresh[start : start + _WAVE], earlier)

    def _is_decided(self, run: Run) -> bool:
        """Whether those that were started decide it: the first ones may have ended before the last ones begin."""
        return self._judge(self.look(run)).well is not None

    def _start_wave(
        self, station: Station, members: Sequence[Member], earlier: dict[tuple[str, str, int], dict[str, Any]]
    ) -> None:
        run = station.run
        starter = self._starter
        assert starter is not None
        for member in members:
            before = earlier.get(member.of)
            if before is not None and before["print"] != member.fingerprint.hex():
                raise run.standing.bar(Park(self._conflict(member, before, station).message))
        unknown = [member for member in members if member.of not in earlier]
        launch = starter.prepare(unknown)
        tasks = iter(launch.tasks)
        kept: list[dict[str, Any]] = [
            # The body as it was before has started it; after a divergence it is the same child.
            earlier.get(member.of)
            or {
                "id": member.id,
                "print": member.fingerprint.hex(),
                "tasks": next(tasks),
                # What its id is made of besides the execution's: a rerun makes another one of it.
                "of": list(member.of),
            }
            for member in members
        ]
        reached("child.before_record", run.execution_id, self.name)
        payload = run.encode(kept, f"the children of call {self.name!r} (position {station.place})")
        station.append(self.kind, payload, launch.offspring if launch.offspring.children else None)
        run.flush()
        for child in kept:
            self._know(child, run)
        reached("child.after_record", run.execution_id, self.name)
        if not run.standing.degraded:
            starter.send(launch)

    @staticmethod
    def _conflict(member: Member, before: dict[str, Any], station: Station) -> GuardConflict:
        return GuardConflict(
            f"call {member.name!r} (position {station.place}) of execution {station.run.execution_id}: an earlier run "
            f"of the body has started this child with other arguments (fingerprint {before['print'][:12]} there, "
            f"{short(member.fingerprint)} here). Nothing was started. Wrap the value that varies in a step, or give "
            f"the new child another name=, and then: celery durable resume {station.run.execution_id}"
        )

    def proceed(self, look: Look | None, station: Station) -> bool:
        left = len(self._members) - self._started
        if station.run.inline or station.run.stopping or not left or station.run.standing.degraded:
            return False
        under_way = sum(row.pending for row in look.rows.values()) if look is not None else 0
        free = self._concurrency - under_way
        if under_way and free < self._enough:
            return False
        self._start(station, min(free, left))
        return True

    # -- deciding -------------------------------------------------------------------------------------------

    def look(self, run: Run) -> Look | None:
        return run.look(self.promises, values=False) if self.promises else None

    def lost(self, ids: Any) -> list[NewPromise]:
        gone = set(ids)
        return [NewPromise(m.id, m.name, timeout_ms=m.timeout_ms) for m in self._members if m.id in gone]

    def decide(self, look: Look | None, run: Run) -> Came | None:
        if run.inline:
            return self._decide_inline(run)
        judged = self._judge(look)
        last, ended, failed = judged.well, judged.ended, judged.failed
        if last is None:
            self._await(len(ended), len(ended) - len(failed), look)
            return None
        seen = {number for _, number, _ in ended[: judged.deciding]}
        self._left = [
            task
            for number, member in enumerate(self._members[: self._started])
            if number not in seen and (look is None or self._under_way(look.rows.get(member.id)))
            for task in self._tasks[member.id]
        ]
        late = [self._members[number].id for number in failed if ended_late(look, self._members[number])]
        self._left += [task for child in late for task in self._tasks[child]]
        wanted = [failed[-1]] if not last else sorted(seen)
        found = run.look([self._members[number].id for number in wanted]).rows if wanted else {}
        results = {number: self._outcome(number, found[self._members[number].id], run) for number in wanted}
        return self._verdict(last, failed, results, run)

    def _judge(self, look: Look | None) -> _Judged:
        """What has ended decides, in the order in which it did."""
        ended: list[tuple[int, int, PromiseRow]] = []
        if look is not None:
            for number, member in enumerate(self._members[: self._started]):
                row = look.rows.get(member.id)
                if row is not None and row.settled_at is not None:
                    ended.append((row.settled_at, number, row))
        ended.sort(key=lambda one: one[:2])
        failed: list[int] = []
        well = self._verdict_at(0, 0, 0)
        count = 0
        for _, number, row in ended:
            if well is not None:
                break
            count += 1
            if row.state is not PromiseState.RESOLVED:
                failed.append(number)
            well = self._verdict_at(count, count - len(failed), len(failed))
        return _Judged(well, ended, count, failed)

    @staticmethod
    def _under_way(row: PromiseRow | None) -> bool:
        return row is None or row.pending

    def _verdict_at(self, ended: int, succeeded: int, failed: int) -> bool | None:
        """Whether it is decided: True for well, False for a failure, None for not yet."""
        if failed > self._tolerate:
            return False
        total = len(self._members)
        if self._until is None:
            return True if ended == total else None
        if succeeded >= self._until:
            return True
        return False if succeeded + total - ended < self._until else None

    def _await(self, ended: int, succeeded: int, look: Look | None) -> None:
        """How many settlements there must be for the next look. What fails is looked at at once."""
        unstarted = len(self._members) - self._started
        wanted = len(self._members) - ended if self._until is None else self._until - succeeded
        if unstarted:
            wanted = min(wanted, self._enough)
        self.needed = ended + max(1, min(wanted, self._started - ended))

    def run_plainly(self) -> Any:
        """Without a journal: call the children one after the other, and give what the body gets."""
        came = self._one_by_one(call_here)
        if came.error is not None:
            raise came.error
        return came.value

    def _decide_inline(self, run: Run) -> Came:
        assert self._starter is not None
        return self._one_by_one(self._starter.run, run)

    def _one_by_one(self, do: Callable[[Member], Ended], run: Run | None = None) -> Came:
        succeeded, failed = 0, []
        results: dict[int, Came] = {}
        last = self._verdict_at(0, 0, 0)
        for number, member in enumerate(self._members):
            if last is not None:
                break
            ended = do(member)
            if ended.cancelled:
                results[number] = Came(error=self._cancelled(number, "it was revoked"))
            elif ended.error is not None:
                results[number] = Came(error=self._failed(number, ended.error))
            else:
                results[number] = Came(ended.value)
            if results[number].error is None:
                succeeded += 1
            else:
                failed.append(number)
            last = self._verdict_at(number + 1, succeeded, len(failed))
        if run is None and last and not self._single:
            missing = [Came(error=self._cancelled(number, _NOT_NEEDED)) for number in range(len(self._members))]
            every = [results.get(number, one) for number, one in enumerate(missing)]
            return Came([one.value if one.error is None else one.error for one in every])
        return self._verdict(bool(last), failed, results, run)

    def _verdict(self, well: bool, failed: list[int], results: dict[int, Came], run: Run | None) -> Came:
        if not well:
            return results[failed[-1]]
        if self._single:
            return results[0]
        kept: list[Any] = []
        for number, member in enumerate(self._members):
            came = results.get(number)
            if came is None:
                assert run is not None
                kept.append(None if member.id == self._guessable(member, run) else {"id": member.id})
            elif came.error is None:
                kept.append({"value": came.value})
            else:
                assert run is not None
                kept.append({"error": list(run.codec.encode_error(came.error, f"the error of child {member.name!r}"))})
        return Came(kept)

    def read(self, stored: Any, run: Run) -> Any:
        if self._single:
            return stored
        with run.reading(f"the result of {self.word} {self.name!r}"):
            return [self._result(number, one, run) for number, one in enumerate(stored)]

    def _result(self, number: int, one: dict[str, Any] | None, run: Run) -> Any:
        member = self._members[number]
        if one is None or "id" in one:
            known = self._guessable(member, run) if one is None else one["id"]
            self._members[number] = member._replace(id=known)
            return self._cancelled(number, _NOT_NEEDED)
        if "value" in one:
            return one["value"]
        return run.decode_error(StoredPayload(*one["error"]), f"the error of child {number}")

    @staticmethod
    def _guessable(member: Member, run: Run) -> str:
        """The id that it has without ``durable_secret``."""
        return child_id(run.namespace, run.execution_id, *member.of)

    def conclude(self, run: Run) -> None:
        if self._left and self._starter is not None:
            # Before the verdict is on disk: whoever comes after a crash here decides the same, and cancels again.
            reached("child.before_cancel", run.execution_id, self.name)
            self._starter.cancel(self._left, f"it {_NOT_NEEDED} by its parent {run.execution_id}")

    # -- outcomes -------------------------------------------------------------------------------------------

    def _outcome(self, number: int, row: PromiseRow, run: Run) -> Came:
        where = f"what child {row.name!r} of execution {run.execution_id} came to"
        if row.state is PromiseState.RESOLVED:
            with run.reading(where):
                return Came(value_of(run.codec, run.decode(row.payload, where), where))
        if row.state is PromiseState.EXPIRED:
            about = self._about(number, "its time was over")
            message = f"{self._child(number)} had not ended in time; it was cancelled."
            return Came(error=ChildTimeout(message, **about, error=None))
        if row.state is PromiseState.CANCELLED:
            return Came(error=self._cancelled(number, reason_text(row.payload) if row.payload is not None else ""))
        return Came(error=self._failed(number, run.decode_error(row.payload, where)))

    def _failed(self, number: int, error: BaseException) -> ChildFailed:
        reason = f"{type(error).__name__}: {error}"
        failed = ChildFailed(f"{self._child(number)} has failed: {reason}", **self._about(number, reason), error=error)
        failed.__cause__ = error
        return failed

    def _cancelled(self, number: int, reason: str) -> ChildCancelled:
        text = reason if reason == _NOT_NEEDED else f"was cancelled: {reason}"
        return ChildCancelled(f"{self._child(number)} {text}", **self._about(number, reason), error=None)

    def _about(self, number: int, reason: str) -> dict[str, Any]:
        member = self._members[number]
        return {"child": member.name, "child_id": member.task_id, "reason": reason}

    def _child(self, number: int) -> str:
        member = self._members[number]
        return f"child {member.name!r} ({member.task_id})"


def ended_late(look: Look | None, member: Member) -> bool:
    """Whether its promise has expired, so that it is still under way perhaps."""
    row = look.rows.get(member.id) if look is not None else None
    return row is not None and row.state is PromiseState.EXPIRED
