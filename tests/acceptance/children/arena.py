"""The arena of the crash tests, with tasks that have children."""

from __future__ import annotations

from typing import Any

from celery import Celery

from celery_durable.identity import child_id, child_of
from celery_durable.runtime import Runtime
from tests.acceptance.crash.arena import LEASE
from tests.acceptance.crash.arena import Arena as CrashArena

__all__ = ["APP", "LEASE", "Arena"]

APP = "tests.acceptance.children.app"


class Arena(CrashArena):
    """Parents and children."""

    app = APP
    namespace = "children"

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.outside = Celery("children", set_as_current=False)
        self.outside.conf.update({**self.broker.conf, **self.database.conf})

    def close(self) -> None:
        if (runtime := Runtime.known(self.outside)) is not None:
            runtime.close()
        self.outside.close()
        super().close()

    def promise(self, parent: str, task: str, number: int = 0) -> str:
        """The promise that a child of a body keeps."""
        return child_id(self.namespace, parent, "", f"{self.app}.{task}", number)

    def child(self, parent: str, task: str, number: int = 0) -> str:
        """The id of a child of a body."""
        return child_of(self.promise(parent, task, number))
