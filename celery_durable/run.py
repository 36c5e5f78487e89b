"""One run of a body by this owner: its buffer, its codec, its sticky errors. Knows no SQL and no Celery."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from .codec import Codec
from .control import Cancelled, Park
from .errors import DurableError, GuardConflict, JournalUnavailable, LeaseLost, StepLimitExceeded
from .generations import EarlierGenerations
from .saga import Saga
from .store.journal import Journal
from .store.records import Batch, Entry, EntryKind, Fence, GuardHolder, Journaled, NewPromise, Opened, StoredPayload
from .writer import ExecutionBuffer, JournalWriter

if TYPE_CHECKING:
    from .actions import StepCall
    from .children import Children
    from .step import StepDescriptor
    from .store.promises import Look, Promises
    from .store.transactions import Transactions
    from .tokens import Tokens

__all__ = ["Counters", "Limits", "PendingError", "Run"]

#: For how long a reading of the database's clock is good, in seconds.
_CLOCK_KEEPS: Final = 1.0
#: A member of an enumeration is slow to get at.
_RESULT: Final = int(EntryKind.RESULT)


@dataclass(frozen=True)
class Limits:
    """What a run may use up."""

    max_steps: int = 10_000
    #: Seconds.
    lease_timeout: float = 30.0


@dataclass
class Counters:
    """What happened in one run, for the log and the tests of users."""

    #: Steps answered from the journal.
    replayed: int = 0
    #: Operations called.
    called: int = 0
    #: Guarded steps answered from the journal, an earlier generation, or by SKIP.
    guarded_skipped: int = 0
    #: Commits that were given up because the journal was unavailable (``durable_on_unavailable = "degrade"``).
    degraded: int = 0


class PendingError(NamedTuple):
    """A step's exception that the body may or may not handle."""

    scope: str
    position: int
    entry: Entry
    #: Why nobody knows whether the effect happened; None where that is known.
    doubt: str | None


class Run(EarlierGenerations):
    """What the rules of a step need from the execution around it; see :class:`~.protocol.Surroundings`."""

    def __init__(
        self,
        execution_id: str,
        opened: Opened,
        *,
        namespace: str,
        journal: Journal,
        writer: JournalWriter,
        promises: Promises,
        tokens: Tokens,
        codec: Codec,
        limits: Limits,
        inline: bool = False,
        transactions: Transactions | None = None,
        children: Children | None = None,
        degrade: Callable[[JournalUnavailable], bool] = lambda error: False,
    ) -> None:
        self.execution_id = execution_id
        self.namespace = namespace
        self.opened = opened
        self.generation = opened.generation
        self.codec = codec
        self.limits = limits
        #: True where waits are sat out in place (eager mode): nobody would bring the execution back.
        self.inline = inline
        self.counters = Counters()
        self.buffer = ExecutionBuffer(opened.fence, opened.generation, time.monotonic(), opened.birth)
        #: What every further request gets: the body has lost its right to go on.
        self.sticky: BaseException | None = None
        #: Steps that the body handed back an error for, and that are not journaled yet.
        self.pending: list[PendingError] = []
        self.patches: dict[str, bool] = {}
        self.scopes: set[str] = set()
        self.tokens = tokens
        self._promises = promises
        #: What the database's clock said, and ``time.monotonic()`` then.
        self._clock: tuple[int, float] | None = None
        #: What is to be undone if the body fails.
        self.saga = Saga()
        self.saga.undoing = opened.cancelling
        self._journal = journal
        self._writer = writer
        #: None where there is no journal.
        self.transactions = transactions
        #: Starts child tasks. None where there is no journal.
        self.children = children
        self._degrade = degrade
        self._lock = threading.Lock()
        self._steps = 0

    # -- appending and committing ---------------------------------------------------------------------------

    @property
    def fence(self) -> Fence:
        return self.opened.fence

    def append(self, entry: Entry, *, finishes: bool = False) -> None:
        if self.buffer.degraded:
            return
        try:
            self._writer.append(self.buffer, entry, finishes=finishes)
        except DurableError as error:
            raise self.stuck(error) from None

    def flush(self) -> None:
        """Everything appended is committed, or the run is over."""
        if self.buffer.degraded:
            return
        try:
            self._writer.flush(self.buffer)
        except JournalUnavailable as error:
            self._unavailable(error)
        except LeaseLost as error:
            raise self.stuck(error) from None

    def amend(self, entry: Entry) -> None:
        """Append an entry though the run is over: what it says is known to nobody else, and spares others a doubt."""
        if not self.buffer.degraded:
            self._writer.amend(self.buffer, entry)

    def claim(self, intent: Entry, take: GuardHolder | None) -> GuardHolder | None:
        """Commit the intent of a global key, unless somebody else than ``take`` holds the key.

        Everything appended before is committed.
        """
        if self.buffer.degraded:
            return None
        try:
            answer = self._journal.append_global(Batch(self.fence, self.generation, ()), intent, take)
        except JournalUnavailable as error:
            self._unavailable(error)
            return None
        if isinstance(answer, Fence):
            raise self.stuck(LeaseLost("another owner took the execution over; the guarded step was not started."))
        self.buffer.verified_at = time.monotonic()
        return answer

    def assure_lease(self) -> None:
        """Right before a guarded operation starts: is the lease still ours?

        The intent's commit said so a moment ago, unless this process was stopped in between (G3).
        """
        if self.buffer.degraded or time.monotonic() - self.buffer.verified_at < self.limits.lease_timeout / 2:
            return
        before = time.monotonic()
        try:
            held = self._journal.verify(self.fence)
        except JournalUnavailable as error:
            self._unavailable(error)
            return
        if not held:
            raise self.stuck(LeaseLost("another owner took the execution over; the guarded step was not started."))
        self.buffer.verified_at = before

    def _unavailable(self, error: JournalUnavailable) -> None:
        if not self._degrade(error):
            raise self.stuck(error)
        # The rest of this run is not durable. What is buffered is still committed if the database comes back.
        self.buffer.degraded = True
        self.buffer.failure = None
        self.counters.degraded += 1

    def stuck(self, error: BaseException) -> BaseException:
        """Remember why the body must not go on: catching it once does not make it go away."""
        if self.sticky is None:
            self.sticky = error
        return self.sticky

    def check(self) -> None:
        """Refuse when the body must not go on."""
        if self.sticky is not None:
            raise self.sticky
        if self.buffer.cancelled and not self.saga.undoing:
            self.saga.undoing = True
            raise self.stuck(Cancelled())

    # -- values ---------------------------------------------------------------------------------------------

    def encode(self, value: Any, where: str) -> StoredPayload:
        return StoredPayload(*self.codec.encode(value, where))

    def encode_tree(self, tree: dict[str, Any]) -> StoredPayload:
        return StoredPayload(*self.codec.encode_tree(tree))

    def roundtrip(self, value: Any, where: str) -> tuple[StoredPayload, Any]:
        payload, again = self.codec.roundtrip(value, where)
        return StoredPayload(*payload), again

    def roundtrip_error(self, error: BaseException, where: str) -> tuple[StoredPayload, Exception]:
        payload = StoredPayload(*self.codec.encode_error(error, where))
        rebuilt = self.decode_error(payload, where)
        rebuilt.__traceback__ = error.__traceback__
        return payload, rebuilt

    def decode(self, payload: StoredPayload | None, where: str) -> Any:
        return None if payload is None else self.codec.decode(payload.codec, payload.data, where)

    def decode_error(self, payload: StoredPayload | None, where: str) -> Exception:
        assert payload is not None
        error = self.codec.decode_error(payload.codec, payload.data, where)
        return error if isinstance(error, Exception) else RuntimeError(repr(error))

    def plain_result(self, rows: list[Journaled], descriptor: StepDescriptor, fingerprint: bytes) -> tuple[Any] | None:
        """The value of a step of which the journal has a result and nothing else; None where it takes a closer look.

        Nearly everything that is replayed is such a step, so this is all that nearly all of a replay costs.
        """
        row = rows[0]
        if (
            len(rows) > 1
            or row.kind != _RESULT
            or row.fingerprint != fingerprint
            or row.name != descriptor.name
            or row.effect != descriptor._code
            or row.codec is None
            or row.payload is None
            or descriptor.guard is not None
        ):
            return None
        try:
            value = self.codec.decode(row.codec, row.payload)
        except DurableError:
            return None  # the closer look tells which step's value cannot be read
        self.counters.replayed += 1
        return (value,)

    # -- errors that the body may handle --------------------------------------------------------------------

    def note_error(self, call: StepCall, entry: Entry, doubt: str | None = None) -> None:
        """The body gets this step's exception: it is journaled only if the body goes on."""
        with self._lock:
            self.pending.append(PendingError(call.scope, call.position, entry, doubt))

    def settle_errors(self, scope: str | None, before: int = 0) -> None:
        """The body has handled what went wrong earlier in ``scope`` (None: anywhere), for it goes on."""
        if not self.pending:
            return
        with self._lock:
            handled = [e for e in self.pending if scope is None or _within(e, scope, before)]
            self.pending = [e for e in self.pending if e not in handled]
        for item in handled:
            self.append(item.entry, finishes=True)

    def doubts(self) -> list[PendingError]:
        """Guarded steps whose effect is in doubt, and that the body has not handled.

        Without a journal there is nothing that could wait for an operator: then errors are just errors.
        """
        return [] if self.buffer.degraded else [e for e in self.pending if e.doubt is not None]

    def must_park(self, error: GuardConflict) -> None:
        self.stuck(Park(error.message))

    # -- reading and limits ---------------------------------------------------------------------------------

    def load(self, scope: str, position: int, rows: int) -> Sequence[Journaled]:
        try:
            return self._journal.segment(self.fence.pk, self.generation, scope, position, rows)
        except JournalUnavailable as error:
            raise self.stuck(error) from None

    # -- waiting --------------------------------------------------------------------------------------------

    def look(self, ids: Sequence[str], *, values: bool = True) -> Look:
        """Some promises, and the database's clock.

        :param values: False: without what they were settled with.
        """
        try:
            before = time.monotonic()
            found = self._promises.look(ids, values=values)
        except JournalUnavailable as error:
            raise self.stuck(error) from None
        self._clock = (found.now, before)
        return found

    def clock(self) -> int:
        """The database's clock, in ms since the epoch; this machine's is only trusted to count a second."""
        if self._clock is None or time.monotonic() - self._clock[1] > _CLOCK_KEEPS:
            return self.look(()).now
        now, since = self._clock
        return now + int((time.monotonic() - since) * 1000)

    def restore(self, promises: Sequence[NewPromise]) -> None:
        """Make the rows of promises that the journal knows and the database does not."""
        try:
            self._promises.restore(self.fence.pk, promises)
        except JournalUnavailable as error:
            raise self.stuck(error) from None

    # -- folding --------------------------------------------------------------------------------------------

    def fold(self, batch: Batch, last: int) -> bool:
        """Replace journaled steps, up to the position ``last``, by a checkpoint; False when the lease is lost."""
        try:
            return self._journal.fold(batch, last)
        except JournalUnavailable as error:
            raise self.stuck(error) from None

    def recorded_scopes(self) -> set[str]:
        """Paths of all branches that the journal of this generation knows."""
        try:
            return {path for path in self._journal.scopes(self.fence.pk, self.generation) if not path.startswith("#")}
        except JournalUnavailable as error:
            raise self.stuck(error) from None

    def count_step(self, name: str) -> int:
        """Count a request of the body.

        :raises StepLimitExceeded: beyond ``durable_max_steps``.
        """
        self._steps += 1
        if self._steps > self.limits.max_steps:
            raise StepLimitExceeded(
                f"execution {self.execution_id} asks for more than {self.limits.max_steps} steps (durable_max_steps), "
                f"the last one is {name!r}. Split the work into several tasks, put more work into one step, or raise "
                "the setting."
            )
        return self._steps

    def abort_entry(self, reason: str) -> Entry:
        """The entry that closes a generation."""
        payload = self.encode(reason, "the reason of the restart")
        return Entry("#aborted", 0, 0, EntryKind.ABORTED, None, "aborted", payload=payload)


def _within(item: PendingError, scope: str, before: int) -> bool:
    """True for an error that lies in ``scope`` before a position, or in a branch that began there."""
    if item.scope == scope:
        return item.position < before
    prefix = f"{scope}/" if scope else ""
    if not item.scope.startswith(prefix):
        return False
    head = item.scope[len(prefix) :].split("/", 1)[0]
    return int(head.split(".", 1)[0]) < before
