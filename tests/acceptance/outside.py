"""Applications that are no workers: they publish, keep promises, cancel."""

from __future__ import annotations

from typing import Any

from celery import Celery

from celery_durable.runtime import Runtime

from .crash.arena import Arena

__all__ = ["OutsideArena", "let_go"]


class OutsideArena(Arena):
    """The arena of the crash tests, with somebody outside who knows the journal and the broker, and no task."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.outside = Celery(self.namespace, set_as_current=False)
        self.outside.conf.update({**self.broker.conf, **self.database.conf})

    def close(self) -> None:
        let_go(self.outside)
        super().close()


def let_go(app: Celery) -> None:
    """Close what an application has opened."""
    if (runtime := Runtime.known(app)) is not None:
        runtime.end()
    app.close()
