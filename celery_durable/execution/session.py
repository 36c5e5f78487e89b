"""From a Celery message to an execution and back: opens the lease, runs the body, ends the execution.

How a body ends decides what is committed and what is passed on to Celery:

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

import inspect
import logging
from collections.abc import Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any

from celery.exceptions import Ignore

from celery_durable.children.starting import Children
from celery_durable.common.coroutines import run_to_end
from celery_durable.common.faults import reached
from celery_durable.context.durable import DurableContext
from celery_durable.context.end_of_body import to_its_end
from celery_durable.context.plain import PlainContext, run_plainly
from celery_durable.errors import (
    AmbiguousEffect,
    ChildFailed,
    ConfigurationError,
    DurableError,
    JournalCorrupted,
    JournalUnavailable,
    LeaseLost,
    PromiseRejected,
    PromiseTimeout,
    ReplayDivergence,
    ResultLost,
    SchemaError,
)
from celery_durable.messaging import envelope as envelopes
from celery_durable.messaging.delivery import Delivery, stashing
from celery_durable.messaging.durable_id import check_id
from celery_durable.replay.forgotten import not_asked_again
from celery_durable.replay.leaving import Leave, Park, Undoing
from celery_durable.replay.run import Run
from celery_durable.steps.auditing import announce as announce_decision
from celery_durable.steps.bodies import runs_here
from celery_durable.steps.current import active, operation
from celery_durable.steps.interruption import is_hard_limit, is_interruption
from celery_durable.store.records import Closed, Opened, OpenRequest, Refused, State, StoredPayload

from .arrival import is_certainly_first, is_fresh
from .cancelling import cancel_all
from .dispatch import name_callbacks
from .duplicates import refused, returned_again
from .ending import Ending
from .forks import end_fork
from .outcome import pack_value
from .postponing import postpone
from .restarting import begin_anew
from .undoing import undo

if TYPE_CHECKING:
    from celery import Task

__all__ = ["Session", "current_session"]

logger = logging.getLogger(__name__)


class Session(Delivery):
    """Runs the body that a delivery asks for, or answers it without."""

    def __init__(self, task: Task[Any, Any], request: Any) -> None:
        super().__init__(task, request)
        self.run: Run | None = None
        self._context: DurableContext | None = None
        #: The body is a coroutine, and is under way.
        self.driving = False
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
            raise refused(self, self.ending, answer, name)
        if isinstance(answer, Closed):
            return returned_again(self, self.ending, answer, name)
        if answer.taken_over:
            logger.warning("%s is taken over from an owner that died (take-over %d)", name, answer.attempts)
        return self._run(answer, args, kwargs)

    def _open_request(self) -> OpenRequest:
        pk = self.request.__dict__.get(envelopes.PK_HEADER)
        if self.request.id is None:
            raise ConfigurationError(f"a message of task {self.task.name!r} has no id; a durable execution needs one.")
        return OpenRequest(
            id=check_id(str(self.request.id), "the message's task id"),
            task=self.task.name,
            owner=self.owner,
            retries=int(self.request.retries or 0),
            replacements=int(self.request.replaced_task_nesting or 0),
            envelope=self._envelope,
            pk=int(pk) if pk is not None else None,
            recoverable=not self.eager,
            postponed=envelopes.WAITS_HEADER in self.request.__dict__,
            fresh=is_fresh(self.runtime, self.request),
        )

    def _envelope(self) -> StoredPayload:
        message = envelopes.from_request(self.task, self.request)
        return envelopes.pack(message, self.runtime.envelope_codec)

    def _without_journal(self, error: JournalUnavailable, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not is_certainly_first(self.runtime, self.request):
            # What may have run before may have a journal, and nothing of it is repeated without reading that.
            if self.runtime.settings.on_unavailable == "degrade":
                logger.warning(
                    "%s[%s] may have run before, and is not run without its journal (durable_on_unavailable = "
                    "'degrade' is for first deliveries)",
                    self.task.name,
                    self.request.id,
                )
        elif self._degrade(error):
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
            "%s[%s] continues WITHOUT durability (durable_on_unavailable = 'degrade'; run %d of this process): %s",
            self.task.name,
            self.request.id,
            self.runtime.degraded_runs,
            error,
        )
        return True

    # -- running --------------------------------------------------------------------------------------------

    def _run(self, opened: Opened, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        while True:
            earlier = self.run
            self.run = run = self._new_run(opened)
            if earlier is not None:
                run.saga.inherit(earlier.saga)
            children = Children(self.task.app, self.runtime, self.request, cancel=cancel_all)
            context = DurableContext(run, children=children, tokens=self.runtime.tokens, logger_name=self.task.name)
            self._context = context
            if self.runtime.test_alias is None or not self.eager:
                self.runtime.keeper.hold(run.buffer)
            if run.buffer.birth is not None:
                self.runtime.writer.announce(run.buffer)
            try:
                return self._attempt(context, run, args, kwargs)
            except ReplayDivergence as error:
                opened = begin_anew(self, self.ending, context, run, error)
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
            codec=runtime.codec,
            limits=runtime.limits,
            inline=self.eager,
            transactions=runtime.transactions,
            degrade=self._degrade,
            decided=partial(announce_decision, self.task),
        )

    def _attempt(self, context: DurableContext, run: Run, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One pass through the body; every way out of it ends here."""
        token = active.set(context._enter())
        # An eager run inside another body, perhaps inside one of its steps, is an execution of its own.
        outer, step = stashing.set(self), operation.set(None)
        try:
            context._load_meta()
            name_callbacks(self.request)
            reached("task.before_body", run.execution_id)
            value = self._drive(args, kwargs)
            context._ended()
            if run.saga.undoing:
                raise Undoing
            forgotten = not_asked_again(self.task.name, run)
            if forgotten is not None:
                raise run.standing.bar(Park(forgotten, True))
            outcome = pack_value(self.runtime, self.task, self.request, value)
        except BaseException as error:
            end_fork(self.runtime.pid, error)
            if isinstance(error, JournalCorrupted):
                run.unreadable(error)  # from where no rule of a step has seen it
            # What took the body's right to continue outweighs whatever it raised after that.
            error = undo(self, context, run, run.standing.barred or error)
            self._left(run, error)
            verdict = self._verdict(error)
            raise verdict from (None if verdict is error else error)
        else:
            end_fork(self.runtime.pid, None)
            return self._complete(run, value, outcome)
        finally:
            operation.reset(step)
            stashing.reset(outer)
            active.reset(token)

    def _drive(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with runs_here(str(self.request.id), eager=self.eager):
            value = self.task.run(*args, **kwargs)
            return self.drive(value) if inspect.iscoroutine(value) else value

    def drive(self, body: Coroutine[Any, Any, Any]) -> Any:
        """The value of a coroutine body."""
        context = self._context
        return run_to_end(body if context is None else to_its_end(context, body))

    # -- ways out -------------------------------------------------------------------------------------------

    def _complete(self, run: Run, value: Any, outcome: StoredPayload) -> Any:
        try:
            if not run.standing.degraded:
                self.ending.finish(run, State.COMPLETED, outcome)
        except (JournalUnavailable, LeaseLost) as error:
            if not (isinstance(error, JournalUnavailable) and self._degrade(error)):
                self._left(run, error)
                verdict = self._verdict(error)
                raise verdict from (None if verdict is error else error)
            run.standing.degrade()
        if run.standing.degraded:
            self.ending.catch_up(run, State.COMPLETED, outcome)
        return value

    def _left(self, run: Run, error: BaseException) -> None:
        """The body was left by ``error``: bring the execution into the state that belongs to it.

        :raises ReplayDivergence: for the loop around it to start the next generation.
        """
        if isinstance(error, ReplayDivergence):
            raise error
        if run.standing.degraded:
            self.ending.left_degraded(run, error)
            return
        try:
            self.ending.settle(run, error)
        except LeaseLost as lost:
            run.standing.bar(lost)
            logger.warning("%s[%s]: %s", self.task.name, self.request.id, lost)
            self.ending.visible.take_back(run)
            self._begin_again_if_vanished(run)
        except JournalUnavailable as unavailable:
            run.standing.bar(unavailable)
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
        """What is passed on to Celery."""
        run = self.run
        assert run is not None
        if not isinstance(error, (Exception, DurableError, Leave)):
            # What ends the process must reach it. What only pretends to would take the pool's process with it.
            real = self.eager or is_interruption(error) or is_hard_limit(error)
            return error if real else Ignore()
        barred = run.standing.barred
        if isinstance(barred, JournalUnavailable) and self.eager:
            return barred
        if barred is not None or isinstance(error, (Leave, LeaseLost)) or run.saga.told:
            return Ignore()
        if isinstance(error, Exception) and (run.doubts() or is_interruption(error)):
            return Ignore()
        return error


def current_session() -> Session | None:
    """The session whose body runs here."""
    here = stashing.get()
    return here if isinstance(here, Session) else None
