"""What a durable body can ask for."""

from __future__ import annotations

import asyncio
import weakref

from celery_durable.children.starting import Children
from celery_durable.replay.checkpoint import FOLD_AT
from celery_durable.replay.run import Run
from celery_durable.steps.compensation import Undos
from celery_durable.steps.current import Active
from celery_durable.waits.tokens import Tokens

from .branching import BranchingContext
from .calling import CallingContext
from .logger import DurableLogger
from .transacting import TransactingContext
from .waiting import WaitingContext

__all__ = ["DurableContext"]


class DurableContext(BranchingContext, WaitingContext, CallingContext, TransactingContext):
    """The durable side of a running body: ``self.durable`` in a bound task.

    Safe to share between threads. It ends with the body: used later, it raises :class:`ContextClosed`.
    """

    def __init__(
        self, run: Run, *, children: Children | None, tokens: Tokens, logger_name: str = "celery_durable.body"
    ) -> None:
        self._run = run
        self._children = children
        self._tokens = tokens
        self._undos = Undos(run.saga)
        self._closed = False
        self._folded = False
        self._fold_at = FOLD_AT * run.limits.max_steps
        self._unawaited, self._unbegun = {}, {}
        self._held = weakref.WeakKeyDictionary()
        self._known = []
        self._body = self._scope("", "")
        #: A logger that is silent while the body replays.
        self.logger = DurableLogger(logger_name, self)

    def patched(self, change_id: str) -> bool:
        """Whether this execution takes the new path of a change to the body.

        True for executions that reach this point for the first time, and on all their later replays. False for those
        whose journal already continues beyond this point on the old path.

        :param change_id: names the change; do not use it again for another change.
        :raises ConfigurationError: unless it is a text of 1 to 200 characters.
        :raises ContextClosed, NestedStep: as :meth:`step`.
        """
        self._check()
        return self._run.patches.take(change_id, not self.replaying, self._run.append)

    # -- the ends of a body ---------------------------------------------------------------------------------

    def _enter(self) -> Active:
        try:
            self._outer_loop = asyncio.get_running_loop()
        except RuntimeError:
            self._outer_loop = None
        return Active(self, self._body)

    def _close(self) -> None:
        self._closed = True
