"""Signatures: those of durable tasks, which take a ``durable_id``, and empty ones."""

from __future__ import annotations

from typing import Any

from celery.canvas import Signature, _chain
from typing_extensions import Self, TypeVar

from .durable_id import one_id

__all__ = ["DurableSignature", "is_empty_chain"]

R = TypeVar("R", covariant=True, default=Any)


def is_empty_chain(what: Any) -> bool:
    """Whether this is a chain, or chain of chains, with nothing in it: Celery sends nothing, and gives no result."""
    return isinstance(what, _chain) and all(is_empty_chain(link) for link in what.tasks)


class DurableSignature(Signature[R]):
    """A signature whose ``durable_id`` is its task id as well.

    A canvas gives each of its members a task id before anything is sent, and its results use these ids. Copies and
    serialized forms are plain signatures that have both options.
    """

    def set(self, immutable: bool | None = None, **options: Any) -> Self:
        """As Celery's.

        :raises ConfigurationError: for a ``durable_id`` that cannot be one, or beside another ``task_id``.
        """
        if options.get("durable_id") is not None:
            options["task_id"] = one_id(options["durable_id"], options.get("task_id"))
        super().set(immutable, **options)
        return self

    def named(self) -> Self:
        """With the task id that belongs to its ``durable_id``, if it has one."""
        durable_id = self.options.get("durable_id")
        if durable_id is not None:
            self.options["task_id"] = one_id(durable_id, self.options.get("task_id"))
        return self
