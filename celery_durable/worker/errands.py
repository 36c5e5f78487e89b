"""A thread that writes to the journal for a worker's main process, in pools whose bodies run in that process too.

The main process listens to the broker and answers the worker's remote control. A database that is down must not stop it
from doing so, however many tasks are revoked meanwhile.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from celery_durable.common.threads import Tended
from celery_durable.errors import DurableError, JournalUnavailable, UnknownExecution, WrongState

from .control import DirectControl
from .handlers import handle

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["QueuedControl"]

logger = logging.getLogger(__name__)

#: How often the thread checks whether there is anything to write, in seconds.
_GLANCE: Final = 0.05
#: Pause after a failed attempt to reach the journal, in seconds.
_PAUSE: Final = 1.0


class QueuedControl(DirectControl):
    """Takes errands, and does them one after the other, each until the journal has answered."""

    def __init__(self, app: Celery) -> None:
        super().__init__(app)
        self._waiting: deque[dict[str, Any]] = deque()
        self._stopping = False
        # Under gevent it is a greenlet, because it shares the connections of bodies.
        self._thread = Tended(self._run, "durable-errands", needed=lambda: bool(self._waiting))

    def stop(self) -> None:
        """End the thread; errands that are left are dropped."""
        self._stopping = True
        self._thread.end()

    def _do(self, op: str, **fields: Any) -> None:
        self._waiting.append({"op": op, **fields})
        self._thread.ensure()

    def _run(self, sleep: Callable[[float], None]) -> None:
        while not self._stopping:
            if not self._waiting:
                sleep(_GLANCE)
                continue
            errand = self._waiting[0]
            try:
                handle(self._app, errand)
            except JournalUnavailable as error:
                logger.warning("%s of execution %s is tried again: %s", errand["op"], errand["id"], error)
                sleep(_PAUSE)
                continue
            except (UnknownExecution, WrongState) as error:
                logger.debug("%s: %s", errand["op"], error)
            except DurableError as error:
                logger.error("execution %s could not be ended (%s): %s", errand["id"], errand["op"], error)
            except Exception:
                logger.exception("execution %s could not be ended (%s)", errand["id"], errand["op"])
            self._waiting.popleft()
