"""One run of a body by this owner: its buffer, its codec, its place in the journal. Knows no SQL and no Celery."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from celery_durable.codec import Codec
from celery_durable.common.coroutines import running_task
from celery_durable.errors import (
    DurableError,
    GuardConflict,
    JournalUnavailable,
    LeaseLost,
    PayloadError,
    StepLimitExceeded,
)
from celery_durable.journal.writer import ExecutionBuffer, JournalWriter
from celery_durable.store.journal import Journal
from celery_durable.store.promises.promises import Look, Promises
from celery_durable.store.records import (
    Batch,
    Entry,
    EntryKind,
    Fence,
    GuardHolder,
    Journaled,
    NewPromise,
    Opened,
    StoredPayload,
)
from celery_durable.store.transactions import Transactions

from .generations import EarlierGenerations
from .leaving import Park, Undoing
from .limits import Counters, Limits
from .patches import Patches
from .pending import PendingError, ordinary
from .saga import Saga

__all__ = ["Run"]

#: How long a reading of the database's clock is used, in seconds.
_CLOCK_KEEPS: Final = 1.0
_TAKEN: Final = "another owner took the execution over; the guarded step was not started."
#: Looking up a member of an enumeration is slow.
_RESULT: Final = int(EntryKind.RESULT)


class Run(EarlierGenerations):
    """What the rules of a step need from the execution around it; see :class:`~.steps.actions.Surroundings`."""

    def __init__(
        self,
        execution_id: str,
        opened: Opened,
        *,
        namespace: str,
        journal: Journal,
        writer: JournalWriter,
        promises: Promises,
        codec: Codec,
        limits: Limits,
        inline: bool = False,
        transactions: Transactions | None = None,
        degrade: Callable[[JournalUnavailable], bool] = lambda error: False,
        decided: Callable[[Any, Any], None] = lambda call, decision: None,
    ) -> None:
        self.execution_id = execution_id
        self.namespace = namespace
        self.opened = opened
        self.generation = opened.generation
        self.codec = codec
        self.limits, self.previews = limits, limits.previews
        #: True in eager mode: waits block here, because nothing would send the execution's message again.
        self.inline = inline
        self.counters = Counters()
        self.buffer = ExecutionBuffer(opened.fence, opened.generation, time.monotonic(), opened.birth)
        self.standing = self.buffer.standing
        #: Steps that the body handed back an error for, and that are not journaled yet.
        self.pending: list[PendingError] = []
        self.patches = Patches()
        self.scopes: set[str] = set()
        self._promises = promises
        #: A reading of the database's clock, and ``time.monotonic()`` at that moment.
        self._clock: tuple[int, float] | None = None
        #: What is to be undone if the body fails.
        self.saga = Saga()
        self.saga.undoing = opened.cancelling
        #: The body is being stopped: nothing new is started, and operations under way end first.
        self.stopping = opened.cancelling
        self._journal = journal
        self._writer = writer
        #: None where there is no journal.
        self.transactions = transactions
        self._degrade = degrade
        #: Notifies people of what a policy decided for a step in doubt: ``decided(call, decision)``.
        self.decided = decided
        self._lock = threading.Lock()
        self._steps = 0

    # -- appending and committing ---------------------------------------------------------------------------

    @property
    def fence(self) -> Fence:
        return self.opened.fence

    def append(self, entry: Entry, *, finishes: bool = False) -> None:
        if self.standing.degraded:
            return
        try:
            self._writer.append(self.buffer, entry, finishes=finishes)
        except DurableError as error:
            self._failed(error)

    def flush(self) -> None:
        """Everything appended is committed, or the run is over."""
        if self.standing.degraded:
            return
        try:
            self._writer.flush(self.buffer)
        except DurableError as error:
            self._failed(error)

    def amend(self, entry: Entry) -> None:
        """Append an entry although the run is over: only this process knows it, and without it a step is in doubt."""
        if not self.standing.degraded:
            self._writer.amend(self.buffer, entry)

    def claim(self, intent: Entry, take: GuardHolder | None) -> GuardHolder | None:
        """Commit the intent of a global key, unless somebody other than ``take`` holds the key.

        Everything appended before is committed too.
        """
        if self.standing.degraded:
            return None
        try:
            answer = self._journal.append_global(Batch(self.fence, self.generation, ()), intent, take)
        except JournalUnavailable as error:
            self._unavailable(error)
            return None
        if isinstance(answer, Fence):
            raise self.standing.bar(LeaseLost(_TAKEN))
        self.buffer.verified_at = time.monotonic()
        return answer

    def assure_lease(self) -> None:
        """Right before a guarded operation starts: is the lease still ours?

        The intent's commit said so a moment ago, unless this process was stopped in between (G3).
        """
        if self.standing.degraded or time.monotonic() - self.buffer.verified_at < self.limits.lease_timeout / 2:
            return
        before = time.monotonic()
        try:
            held = self._journal.verify(self.fence)
        except JournalUnavailable as error:
            self._unavailable(error)
            return
        if not held:
            raise self.standing.bar(LeaseLost(_TAKEN))
        self.buffer.verified_at = before

    def _failed(self, error: DurableError) -> None:
        """The journal permanently refuses what the body does."""
        if isinstance(error, JournalUnavailable):
            self._unavailable(error)
        else:
            raise self.standing.bar(error) from None

    def _unavailable(self, error: JournalUnavailable) -> None:
        if not self._degrade(error):
            raise self.standing.bar(error)
        # The rest of this run is not durable. What is buffered is still committed if the database comes back.
        self.standing.degrade()
        self.counters.degraded += 1

    def check(self) -> None:
        """Refuse when the body must not continue."""
        self.standing.check()
        if self.buffer.cancelled:
            self.saga.undoing = self.stopping = True

    def check_start(self) -> None:
        """Refuse to begin an operation that nobody has begun before.

        :raises Undoing: where the body is being stopped.
        """
        self.check()
        if self.stopping:
            raise Undoing

    # -- values ---------------------------------------------------------------------------------------------

    def encode(self, value: Any, where: str) -> StoredPayload:
        return StoredPayload(*self.codec.encode(value, where))

    def encode_tree(self, tree: dict[str, Any]) -> StoredPayload:
        return StoredPayload(*self.codec.encode_tree(tree))

    def roundtrip(self, value: Any, where: str) -> tuple[StoredPayload, Any]:
        payload, again = self.codec.roundtrip(value, where)
        return StoredPayload(*payload), again

    def roundtrip_error(self, error: BaseException, where: str) -> tuple[StoredPayload, Exception]:
        payload, rebuilt = self.codec.roundtrip_error(error, where)
        return StoredPayload(*payload), ordinary(rebuilt)

    def decode(self, payload: StoredPayload | None, where: str) -> Any:
        try:
            return None if payload is None else self.codec.decode(payload.codec, payload.data, where)
        except PayloadError as error:
            raise self.unreadable(error) from error

    def decode_error(self, payload: StoredPayload | None, where: str) -> Exception:
        assert payload is not None
        try:
            return ordinary(self.codec.decode_error(payload.codec, payload.data, where))
        except PayloadError as error:
            raise self.unreadable(error) from error

    def unreadable(self, error: PayloadError) -> BaseException:
        """The present code cannot read a journaled value. The execution is not at fault: it waits until the value can
        be read, and nothing that it did is forgotten.
        """
        return self.standing.bar(
            Park(
                f"{error.message} Nothing was run, and nothing is lost. When it can be read again (the old code "
                f"restored, new code that reads it, or the row restored): celery durable resume {self.execution_id}",
                quarantined=True,
            )
        )

    def plain_result(self, rows: list[Journaled], name: str, effect: int, fingerprint: bytes) -> tuple[Any] | None:
        """The value of a step of which the journal has a result and nothing else; None if it needs a closer look.

        Nearly all replayed steps are such ones, so this method is nearly all that a replay costs.

        :param effect: the code of the step's effect.
        """
        row = rows[0]
        if (
            len(rows) > 1
            or row.kind != _RESULT
            or row.fingerprint != fingerprint
            or row.name != name
            or row.effect != effect
            or row.codec is None
            or row.payload is None
        ):
            return None
        try:
            value = self.codec.decode(row.codec, row.payload)
        except DurableError:
            return None  # the closer look finds which step's value cannot be read
        self.counters.replayed += 1
        return (value,)

    # -- errors that the body may handle --------------------------------------------------------------------

    def note_error(self, entry: Entry, doubt: str | None = None) -> None:
        """The body gets the exception of the step at this place: it is journaled only if the body continues.

        :param doubt: why nobody knows whether the step's effect happened.
        """
        self.note(PendingError(entry.scope, entry.position, entry, doubt, running_task()))

    def note(self, pending: PendingError) -> None:
        """As :meth:`note_error`."""
        with self._lock:
            self.pending.append(pending)

    def hand_up(self, branch: str, scope: str, position: int, *, seen: bool) -> None:
        """Move the errors of a branch to the place where it was opened, or where its result was asked for: they are
        handled once the body continues after that place.

        :param seen: the code there got the branch's exception. Otherwise doubts stay where they are: unhandled.
        """
        if not self.pending:
            return
        with self._lock:
            self.pending = [
                one._replace(scope=scope, position=position, task=None)
                if one.scope == branch and (seen or one.doubt is None)
                else one
                for one in self.pending
            ]

    def settle_errors(self, scope: str | None, before: int = 0) -> None:
        """Journal earlier errors as handled, because the body continues.

        :param scope: where it continues, at position ``before``; None: the body ends or waits.
        """
        if not self.pending:
            return
        with self._lock:
            handled = [one for one in self.pending if one.is_handled(scope, before)]
            self.pending = [one for one in self.pending if one not in handled]
        for item in handled:
            self.append(item.entry, finishes=True)

    def doubts(self) -> list[PendingError]:
        """Unhandled errors of guarded steps whose effect is in doubt.

        Without a journal nothing can wait for an operator: then errors are just errors.
        """
        return [] if self.standing.degraded else [e for e in self.pending if e.doubt is not None]

    @property
    def is_undone(self) -> bool:
        """True if what the body did is to be undone, whether the body knows that yet or not."""
        return self.stopping or self.buffer.cancelled

    def cannot_tell(self, entry: Entry, doubt: str) -> None:
        """A step to be undone is in doubt, and stays so even if the body handles this exception."""
        self.note_error(entry, doubt)
        if self.doubts():
            self.standing.bar(Park(doubt))

    def must_park(self, error: GuardConflict, details: str) -> None:
        self.standing.bar(Park(error.message, details=details))

    # -- reading and limits ---------------------------------------------------------------------------------

    def load(self, scope: str, position: int, rows: int) -> Sequence[Journaled]:
        try:
            return self._journal.segment(self.fence.pk, self.generation, scope, position, rows)
        except JournalUnavailable as error:
            raise self.standing.bar(error) from None

    def load_many(self, scopes: Sequence[str], rows: int) -> Sequence[Journaled]:
        """Up to this many entries of several scopes, scope by scope."""
        try:
            return self._journal.beginnings(self.fence.pk, self.generation, scopes, rows)
        except JournalUnavailable as error:
            raise self.standing.bar(error) from None

    # -- waiting --------------------------------------------------------------------------------------------

    def look(self, ids: Sequence[str], *, values: bool = True) -> Look:
        """Some promises, and the database's clock.

        :param values: False: without their results.
        """
        try:
            before = time.monotonic()
            found = self._promises.look(ids, values=values)
        except JournalUnavailable as error:
            raise self.standing.bar(error) from None
        self._clock = (found.now, before)
        return found

    def clock(self) -> int:
        """The database's clock, in ms since the epoch; this machine's is trusted for a second at most."""
        if self._clock is None or time.monotonic() - self._clock[1] > _CLOCK_KEEPS:
            return self.look(()).now
        now, since = self._clock
        return now + int((time.monotonic() - since) * 1000)

    def restore(self, promises: Sequence[NewPromise]) -> None:
        """Insert rows of promises that are in the journal but are missing in their table."""
        try:
            self._promises.restore(self.fence.pk, promises)
        except JournalUnavailable as error:
            raise self.standing.bar(error) from None

    # -- folding --------------------------------------------------------------------------------------------

    def fold(self, batch: Batch, last: int) -> bool:
        """Replace journaled steps, up to the position ``last``, by a checkpoint; False when the lease is lost."""
        try:
            return self._journal.fold(batch, last)
        except JournalUnavailable as error:
            raise self.standing.bar(error) from None

    def recorded_scopes(self) -> set[str]:
        """Paths of all branches that the journal of this generation knows."""
        try:
            return {path for path in self._journal.scopes(self.fence.pk, self.generation) if not path.startswith("#")}
        except JournalUnavailable as error:
            raise self.standing.bar(error) from None

    def count_step(self, name: str) -> int:
        """Count a request of the body.

        :raises StepLimitExceeded: for more steps than ``durable_max_steps``.
        """
        self._steps += 1
        if self._steps > self.limits.max_steps:
            raise StepLimitExceeded(
                f"execution {self.execution_id} asks for more than {self.limits.max_steps} steps (durable_max_steps), "
                f"the last one is {name!r}. Split the work into several tasks, put more work into one step, or raise "
                "the setting."
            )
        return self._steps
