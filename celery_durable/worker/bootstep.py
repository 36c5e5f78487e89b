"""The bootstep that runs a recovery service next to a worker's pool."""

from __future__ import annotations

import logging
import os
import signal
import socket
import time
from typing import TYPE_CHECKING, Any

from billiard.context import Process
from celery import bootsteps
from celery.platforms import set_pdeathsig, set_process_title  # type: ignore[attr-defined]

from celery_durable.codec.classes import import_modules
from celery_durable.common.threads import Tended
from celery_durable.doctor import warn_at_start
from celery_durable.runtime.lifeline import address_of, listen
from celery_durable.settings import load

from .control import SocketControl, set_control
from .errands import QueuedControl
from .request import adopt
from .service import Service

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["DurableStep", "serve"]

logger = logging.getLogger(__name__)

#: How often the service process is checked, in seconds.
_CHECK_INTERVAL = 1.0
#: How often the pool looks for processes that died, in seconds.
_POOL_INTERVAL = 0.25
#: How long the service may take to stop cleanly, in seconds.
_STOP_PATIENCE = 3


class DurableStep(bootsteps.StartStopStep):
    """Starts, supervises and stops the recovery service of a worker."""

    requires = ("celery.worker.components:Timer",)

    def __init__(self, worker: Any, **options: Any) -> None:
        super().__init__(worker, **options)
        self._process: Process | None = None
        self._service: Service | None = None
        self._control: SocketControl | None = None
        self._errands: QueuedControl | None = None
        self._server: socket.socket | None = None
        self._stopped = False
        self._timers: list[Any] = []
        # A wrong setting stops the worker here, before it takes a message.
        settings = load(worker.app)
        # Here, so that the pool's processes inherit them.
        import_modules(settings.modules)

    def start(self, worker: Any) -> None:
        """Start the service: a process under prefork, a native thread elsewhere."""
        app = worker.app
        adopt(app)
        warn_at_start(app)
        self._stopped = False
        if _forks(worker):
            self._control = SocketControl(address_of(os.getpid()))
            set_control(app, self._control)
            # Open before the first pool process takes a message, and kept when a service process is replaced.
            self._server = listen(address_of(os.getpid()))
            self._spawn(app)
            repeat = worker.timer.call_repeatedly
            self._timers = [repeat(_CHECK_INTERVAL, self._look_after, (app,))]
            if worker.use_eventloop:
                # Without an event loop the pool has its own thread for this, and timers run in another thread. Two
                # threads that replace processes take each other's unstarted ones for dead, and the pool ends.
                self._timers.append(repeat(_POOL_INTERVAL, self._maintain_pool, (worker,)))
        else:
            self._errands = QueuedControl(app)
            set_control(app, self._errands)
            self._service = Service(app)
            thread = Tended(self._service.run, "durable-recovery", native=True)
            thread.ensure()
            self._timers = [worker.timer.call_repeatedly(_CHECK_INTERVAL, thread.ensure)]

    def stop(self, worker: Any) -> None:
        """Stop the service cleanly."""
        self._stopped = True
        for timer in self._timers:
            timer.cancel()
        if self._service is not None:
            self._service.stop()
            # It must still send what it has claimed: perhaps messages that this very worker has just given back.
            deadline = time.monotonic() + _STOP_PATIENCE
            while not self._service.ended and time.monotonic() < deadline:
                time.sleep(0.01)
        process, self._process = self._process, None
        if process is not None and process.pid is not None and process.is_alive():
            process.terminate()
            process.join(_STOP_PATIENCE)
            if process.is_alive():
                os.kill(process.pid, signal.SIGKILL)
                process.join(_STOP_PATIENCE)
        if self._server is not None:
            self._server.close()
            self._server = None
        if self._errands is not None:
            self._errands.stop()
        set_control(worker.app, None)

    def terminate(self, worker: Any) -> None:
        """Test workers and cold stops call this instead of :meth:`stop`."""
        self.stop(worker)

    def _spawn(self, app: Celery) -> None:
        self._process = Process(target=serve, args=(app, os.getpid(), self._server), name="durable-recovery")
        self._process.daemon = True
        self._process.start()

    def _look_after(self, app: Celery) -> None:
        if self._stopped or self._process is None:
            return
        if not self._process.is_alive():
            logger.warning("the recovery process ended (exit code %s) and is restarted", self._process.exitcode)
            self._spawn(app)
        if self._control is not None:
            self._control.repeat()

    def _maintain_pool(self, worker: Any) -> None:
        """Replace processes that died.

        Celery does so when a process closes its files, which is a moment before the process has exited. A pool that
        checks in between has missed the event, and checks again only after 5 seconds.
        """
        maintain = getattr(worker.pool, "maintain_pool", None)
        if maintain is not None and not self._stopped:
            maintain()


def _forks(worker: Any) -> bool:
    """True where bodies run in child processes."""
    cls = worker.pool_cls
    module = getattr(cls, "__module__", str(cls))
    return module.endswith(".prefork") or str(cls).split(":")[0].endswith("prefork")


def serve(app: Celery, parent: int, server: socket.socket) -> None:
    """The main function of the service process.

    :param parent: the worker's main process.
    :param server: where the worker's other processes reach it.
    """
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    # If the kernel does not end it together with the worker, the service notices by itself that it is an orphan.
    set_pdeathsig("SIGKILL")
    app.set_default()
    app.set_current()
    service = Service(app, server, orphaned=lambda: os.getppid() != parent)
    signal.signal(signal.SIGTERM, lambda *_: service.stop())
    set_process_title("celeryd: durable recovery")
    logger.debug("recovery runs in process %d", os.getpid())
    service.run()
