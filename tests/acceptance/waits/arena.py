"""The arena of the crash tests, with somebody outside who keeps promises."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import celery_durable
from celery_durable.common.faults import FAULT_VARIABLE
from tests.acceptance.crash.arena import LEASE
from tests.acceptance.outside import OutsideArena
from tests.support.conf import conf_env
from tests.support.wait import eventually
from tests.support.worker import ROOT

__all__ = ["APP", "LEASE", "Arena"]

APP = "tests.acceptance.waits.app"


class Arena(OutsideArena):
    """Waits, and promises to be kept."""

    app = APP
    namespace = "waits"

    def asked(self, execution: str) -> tuple[str, str]:
        """Id and token of the promise that an execution has given away, once it has."""
        [first, *more] = eventually(lambda: self.ledger.entries("asked", execution=execution), 120)
        key = (first["promise"], first["token"])
        assert all((entry["promise"], entry["token"]) == key for entry in more), "a replay gave another token away"
        return key

    def await_asked(self, execution: str) -> None:
        """Wait until an execution is suspended for its promise: kept earlier, it would not suspend at all."""
        self.asked(execution)
        eventually(
            lambda: self.row(execution).state is celery_durable.State.SUSPENDED, 120, "not suspended", interval=0.05
        )

    def keep(self, execution: str, value: Any = None) -> None:
        """Keep the promise of an execution."""
        celery_durable.resolve(*self.asked(execution), value, app=self.outside)

    def keep_and_die(self, execution: str, value: str, point: str) -> None:
        """The same, by a process that is killed at this point."""
        promise_id, token = self.asked(execution)
        call = f"celery_durable.resolve({promise_id!r}, {token!r}, {value!r}, app=a.app)"
        code = f"import celery_durable, {APP} as a; {call}"
        env = {**os.environ, **conf_env(self.broker.conf, self.database.conf), FAULT_VARIABLE: f"{point}=kill"}
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, timeout=60, check=False)
        assert done.returncode == -9

    def await_suspended(self, count: int, timeout: float = 120.0) -> None:
        """Wait until that many executions are suspended."""
        eventually(
            lambda: len(self.operations.find(states=[celery_durable.State.SUSPENDED], limit=5000)) >= count,
            timeout,
            "not all suspended",
            interval=0.1,
        )

    def until(self, seconds: float) -> Callable[[], float]:
        """The rest of a time that runs from now."""
        end = time.monotonic() + seconds
        return lambda: max(end - time.monotonic(), 0.01)
