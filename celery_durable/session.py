"""From a Celery message to an execution and back: opens the lease, runs the body, ends the execution.

How a body ends decides what is committed and what Celery is told:

====================  ==========================================  =====================================
the body              the execution                               Celery
====================  ==========================================  =====================================
returns               completed, outcome committed                the value
raises                failed, outcome committed                   the exception
retries               suspended until the retry is due            ``Retry``; the message is sent after
is suspended          suspended                                   ``Ignore``: acknowledged, no result
is in doubt           parked as ambiguous                         ``Ignore``, state ``AMBIGUOUS``
diverges              next generation, at once                    nothing
loses its lease       somebody else's                             ``Ignore``
is interrupted        given back                                  the interruption
raises SystemExit     given back, counted as a take-over          ``Ignore``
====================  ==========================================  =====================================
"""

from __future__ import annotations

import dataclasses
import inspect
import logging
from typing import TYPE_CHECKING, Any

from celery.exceptions import Ignore

from . import envelope as envelopes
from .children import Children
from .context import DurableContext
from .control import Leave, Park, Undoing
from .coroutines import run_to_end
from .current import active, operation
from .divergence import endless
from .ending import Ending
from .errors import (
    AmbiguousEffect,
    ChildFailed,
    ConfigurationError,
    DurableError,
    JournalUnavailable,
    LeaseLost,
    PayloadError,
    PromiseRejected,
    PromiseTimeout,
    ReplayDivergence,
    ResultLost,
    SchemaError,
)
from .faults import reached
from .following import announce, celery_knows, name_callbacks
from .interruption import is_hard_limit, is_interruption
from .outcome import pack_value, pruned, restore
from .plain import PlainContext, run_plainly
from .postpone import postpone
from .publish import Stash, stashing
from .run import Run
from .runtime import Runtime
from .store.records import Batch, Closed, Opened, OpenRequest, Refusal, Refused, State, StoredPayload
from .undoing import undo

if TYPE_CHECKING:
    from celery import Task

__all__ = ["Session", "current_session"]

logger = logging.getLogger(__name__)


class Session:
    """One delivery of a message of a durable task."""

    def __init__(self, task: Task[Any, Any], request: Any) -> None:
        self.task = task
        self.request = request
        self.eager = bool(request.is_eager)
        self.runtime = Runtime.of(task.app)
        self.run: Run | None = None
        #: The message that the body sent under its own id: its retry, or what replaces it.
        self.stash: Stash | None = None
        #: The body is a coroutine, and is under way.
        self.driving = False
        self.owner = self.runtime.new_owner()
        self.ending = Ending(self)
        headers = request.headers
        if headers and headers.pop(envelopes.RAW_KEY, None) is not None and not headers:
            # Celery takes what it does not know for headers of the user, and sends those on with every retry.
            request.headers = None

    # -- opening --------------------------------------------------------------------------------------------

    def execute(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the task's body durably, or answer its message without running it."""
        name = f"{self.task.name}[{self.request.id}]"
        reached("task.before_open", str(self.request.id))
        try:
            answer = self.runtime.ownership.open(self._open_request())
        except JournalUnavailable as error:
            return self._without_journal(error, args, kwargs)
        except SchemaError as error:
            # A deploy that is ahead of its migration must not fail what it receives meanwhile.
            if self.eager:
                raise
            postpone(self, error)
            raise Ignore from error
        reached("task.after_open", str(self.request.id))
        if isinstance(answer, Refused):
            raise self._refuse(answer, name)
        if isinstance(answer, Closed):
            return self._return_again(answer, name)
        if answer.taken_over:
            logger.warning("%s is taken over from an owner that died (take-over %d)", name, answer.attempts)
        return self._run(answer, args, kwargs)

    def _open_request(self) -> OpenRequest:
        pk = self.request.__dict__.get(envelopes.PK_HEADER)
        if self.request.id is None:
            raise ConfigurationError(f"a message of task {self.task.name!r} has no id; a durable execution needs one.")
        return OpenRequest(
            id=str(self.request.id),
            task=self.task.name,
            owner=self.owner,
            retries=int(self.request.retries or 0),
            replacements=int(self.request.replaced_task_nesting or 0),
            envelope=self._envelope,
            pk=int(pk) if pk is not None else None,
            recoverable=not self.eager,
            postponed=envelopes.WAITS_HEADER in self.request.__dict__,
            fresh=self._is_fresh(),
        )

    def _is_fresh(self) -> bool:
        """Whether the broker delivers this message for the first time, and would deliver it again if we died."""
        request = self.request
        known = request.__dict__
        return (
            self.runtime.trusts_broker
            and not self.eager
            and not request.retries
            and not request.replaced_task_nesting
            and not (request.delivery_info or {}).get("redelivered", True)
            and envelopes.PK_HEADER not in known
            and envelopes.WAITS_HEADER not in known
            # The body may change its arguments before they are stored, but not this.
            and envelopes.RAW_KEY in known
        )

    def _envelope(self) -> StoredPayload:
        message = envelopes.from_request(self.task, self.request)
        return envelopes.pack(message, self.runtime.envelope_codec)

    def _refuse(self, answer: Refused, name: str) -> Exception:
        if answer.why is Refusal.QUARANTINED:
            self.ending.show(answer.state.value.upper(), {"reason": answer.reason})
            self.ending.tell_parked(answer.state, answer.reason)
        elif answer.why is Refusal.PRUNED and self.eager:
            return pruned(name, answer.state)
        else:
            logger.info(
                "a message of %s is dropped: %s (state %s)", name, _WHY.get(answer.why, "it has ended"), answer.state
            )
        return Ignore()

    def _return_again(self, answer: Closed, name: str) -> Any:
        if not self.eager and celery_knows(self.task, self.request, answer.state):
            logger.info("a message of %s is dropped: it has ended, and Celery knows", name)
            self.runtime.keeper.dispatched(answer.pk)
            raise Ignore
        if answer.state is State.CANCELLED and not self.eager:
            self.ending.tell_cancelled(answer.pk)
            raise Ignore
        logger.info("%s had ended (%s); its outcome is returned again", name, answer.state)
        name_callbacks(self.request)
        if not self.eager:
            announce(self.runtime, self.request, answer.pk)
        return restore(self.runtime, answer, name)

    def _without_journal(self, error: JournalUnavailable, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._degrade(error):
            plain = PlainContext(str(self.request.id), self.runtime.settings.namespace)
            return run_plainly(self._drive, plain, (args, kwargs), {})
        if self.eager:
            raise error
        postpone(self, error)
        raise Ignore

    def before_retry(self, error: BaseException | None) -> None:
        """The body asks for a retry.

        :param error: because of this.
        :raises AmbiguousEffect, ResultLost, PromiseRejected, PromiseTimeout, ChildFailed: the error itself, where it
            is journaled: every try would end with it.
        :raises Park: a guarded effect is in doubt; trying again could repeat it.
        :raises JournalUnavailable: the journal cannot be reached; the message comes back without counting as a retry.
        """
        run = self.run
        if run is None:
            return
        run.check()
        doubts = run.doubts()
        if doubts:
            raise Park("\n".join(item.doubt or "" for item in doubts))
        if isinstance(error, (AmbiguousEffect, ResultLost, PromiseRejected, PromiseTimeout, ChildFailed)):
            raise error

    def _degrade(self, error: JournalUnavailable) -> bool:
        if self.runtime.settings.on_unavailable != "degrade":
            return False
        self.runtime.degraded_runs += 1
        logger.warning(
            "%s[%s] goes on WITHOUT durability (durable_on_unavailable = 'degrade'; run %d of this process): %s",
            self.task.name,
            self.request.id,
            self.runtime.degraded_runs,
            error,
        )
        return True

    # -- running --------------------------------------------------------------------------------------------

    def _run(self, opened: Opened, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        while True:
            self.run = run = self._new_run(opened)
            context = DurableContext(run, logger_name=self.task.name)
            self.runtime.keeper.hold(run.buffer)
            if run.buffer.birth is not None:
                self.runtime.writer.announce(run.buffer)
            try:
                return self._attempt(context, run, args, kwargs)
            except ReplayDivergence as error:
                opened = self._diverged(run, error)
            finally:
                context._close()
                self.runtime.keeper.drop(run.buffer)
                if run.counters.replayed:
                    logger.info(
                        "%s[%s] replayed %d steps, %d guarded ones skipped, %d called",
                        self.task.name,
                        self.request.id,
                        run.counters.replayed,
                        run.counters.guarded_skipped,
                        run.counters.called,
                    )

    def _new_run(self, opened: Opened) -> Run:
        runtime = self.runtime
        return Run(
            str(self.request.id),
            opened,
            namespace=runtime.settings.namespace,
            journal=runtime.journal,
            writer=runtime.writer,
            promises=runtime.promises,
            tokens=runtime.tokens,
            codec=runtime.codec,
            limits=runtime.limits,
            inline=self.eager,
            transactions=runtime.transactions,
            children=Children(self.task.app, runtime, self.request),
            degrade=self._degrade,
        )

    def _attempt(self, context: DurableContext, run: Run, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One pass through the body; every way out of it ends here."""
        token = active.set(context._enter())
        # An eager run inside another body, perhaps inside one of its steps, is an execution of its own.
        outer, step = stashing.set(self), operation.set(None)
        try:
            context._load_patches()
            name_callbacks(self.request)
            reached("task.before_body", run.execution_id)
            value = self._drive(args, kwargs)
            context._ended()
            if run.saga.undoing:
                raise Undoing
        except BaseException as error:
            # What took the body's right to go on outweighs whatever it raised after that.
            error = undo(self, context, run, run.sticky or error)
            self._left(run, error)
            verdict = self._verdict(error)
            raise verdict from (None if verdict is error else error)
        else:
            return self._complete(run, value)
        finally:
            operation.reset(step)
            stashing.reset(outer)
            active.reset(token)

    def _drive(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        value = self.task.run(*args, **kwargs)
        return run_to_end(value) if inspect.iscoroutine(value) else value

    # -- ways out -------------------------------------------------------------------------------------------

    def _complete(self, run: Run, value: Any) -> Any:
        try:
            outcome = pack_value(self.runtime, self.task, value)
            if not run.buffer.degraded:
                self.ending.finish(run, State.COMPLETED, outcome)
        except (JournalUnavailable, LeaseLost, PayloadError) as error:
            if not (isinstance(error, JournalUnavailable) and self._degrade(error)):
                self._left(run, error)
                verdict = self._verdict(error)
                raise verdict from (None if verdict is error else error)
            run.buffer.degraded = True
        if run.buffer.degraded:
            self.ending.catch_up(run, State.COMPLETED, outcome)
        return value

    def _left(self, run: Run, error: BaseException) -> None:
        """The body was left by ``error``: bring the execution into the state that belongs to it.

        :raises ReplayDivergence: for the loop around it to start the next generation.
        """
        if isinstance(error, ReplayDivergence):
            raise error
        if run.buffer.degraded:
            self.ending.left_degraded(run, error)
            return
        try:
            self.ending.settle(run, error)
        except LeaseLost as lost:
            run.stuck(lost)
            logger.warning("%s[%s]: %s", self.task.name, self.request.id, lost)
            self._begin_again_if_vanished(run)
        except JournalUnavailable as unavailable:
            run.stuck(unavailable)
            self.ending.abandon(run)
            if not isinstance(error, Exception):
                return
            if not self.eager:
                postpone(self, unavailable)

    def _begin_again_if_vanished(self, run: Run) -> None:
        """A crash of the database undid the execution, of which nothing was on disk: its message still stands."""
        if self.eager or run.buffer.committed:
            return
        try:
            if not self.runtime.ownership.vanished(run.execution_id):
                return
            error = JournalUnavailable("the database has forgotten the execution, of which nothing was on disk yet.")
        except JournalUnavailable as unavailable:
            error = unavailable
        postpone(self, error)

    def _verdict(self, error: BaseException) -> BaseException:
        """What Celery is told."""
        run = self.run
        assert run is not None
        if not isinstance(error, (Exception, DurableError, Leave)):
            # What ends the process must reach it. What only pretends to would take the pool's process with it.
            real = self.eager or is_interruption(error) or is_hard_limit(error)
            return error if real else Ignore()
        sticky = run.sticky
        if isinstance(sticky, JournalUnavailable) and self.eager:
            return sticky
        if sticky is not None or isinstance(error, (Leave, LeaseLost)) or run.saga.told:
            return Ignore()
        if isinstance(error, Exception) and (run.doubts() or is_interruption(error)):
            return Ignore()
        return error

    # -- divergence -----------------------------------------------------------------------------------------

    def _diverged(self, run: Run, error: ReplayDivergence) -> Opened:
        """Start the next generation, or park.

        :raises Ignore: when the message is done with.
        """
        try:
            if self.runtime.settings.on_divergence == "park":
                # The generation is not aborted: a resumed execution goes on in it.
                raise self._quarantined(run, str(error))
            logger.warning("%s\n  The body starts anew in generation %d.", error, run.generation + 1)
            batch = self.runtime.writer.drain(run.buffer)
            # What was buffered after the last agreed step belongs to no generation.
            kept = Batch(batch.fence, batch.generation, ())
            generation = self.runtime.ownership.restart(kept, run.abort_entry(str(error)))
            reason = endless(generation - run.opened.base_generation, error)
            if reason is not None:
                raise self._quarantined(run, reason)
        except LeaseLost as lost:
            logger.warning("%s[%s]: %s", self.task.name, self.request.id, lost)
            raise Ignore from lost
        except JournalUnavailable as unavailable:
            run.stuck(unavailable)
            self.ending.abandon(run)
            if self.eager:
                raise
            postpone(self, unavailable)
            raise Ignore from unavailable
        return dataclasses.replace(run.opened, generation=generation, resumed=False)

    def _quarantined(self, run: Run, reason: str) -> Ignore:
        run.sticky = None
        self.ending.park(run, State.QUARANTINED, reason)
        return Ignore()


_WHY = {
    Refusal.LIVE: "another owner runs it",
    Refusal.STALE: "it belongs to an earlier attempt",
    Refusal.PARKED: "it waits for an operator",
}


def current_session() -> Session | None:
    """The delivery whose body runs here."""
    return stashing.get()
