"""A body that asks for an approval and waits for it, and whoever gives it."""

from __future__ import annotations

from typing import Any

import celery_durable
from celery_durable import DurableContext, Promise
from celery_durable.store.promises.rows import PromiseRow
from tests.support.lab import Lab

__all__ = ["DAY", "Asking"]

DAY = 86_400


class Asking:
    """A body that asks for an approval and waits for it."""

    def __init__(self, lab: Lab, **options: Any) -> None:
        self.lab = lab
        self.options = options
        self.made: list[Promise] = []

    def __call__(self, ctx: DurableContext) -> Any:
        promise = ctx.promise("approval", **self.options)
        self.made.append(promise)
        ctx.step("ask", self.lab.operation("ask"), promise.token)
        return ctx.wait(promise)

    @property
    def key(self) -> tuple[str, str]:
        return self.made[-1].id, self.made[-1].token

    def resolve(self, value: Any = None) -> None:
        celery_durable.resolve(*self.key, value, app=self.lab.app)

    def reject(self, error: Exception | str) -> None:
        celery_durable.reject(*self.key, error, app=self.lab.app)

    def beat(self) -> None:
        celery_durable.heartbeat(*self.key, app=self.lab.app)

    @property
    def row(self) -> PromiseRow:
        [row] = self.lab.runtime.promises.of([self.lab.execution().pk])
        return row
