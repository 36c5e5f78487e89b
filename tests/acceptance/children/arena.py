"""The arena of the crash tests, with tasks that have children."""

from __future__ import annotations

from celery_durable.identity import child_id, child_of
from tests.acceptance.crash.arena import LEASE
from tests.acceptance.outside import OutsideArena

__all__ = ["APP", "LEASE", "Arena"]

APP = "tests.acceptance.children.app"


class Arena(OutsideArena):
    """Parents and children."""

    app = APP
    namespace = "children"

    def promise(self, parent: str, task: str, number: int = 0) -> str:
        """The promise that a child of a body keeps."""
        return child_id(self.namespace, parent, "", f"{self.app}.{task}", number)

    def child(self, parent: str, task: str, number: int = 0) -> str:
        """The id of a child of a body."""
        return child_of(self.promise(parent, task, number))
