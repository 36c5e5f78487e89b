"""The durable context of a body that is called directly: everything is what it is without durability."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

from .context import DurableContext
from .current import StepHandle, operation
from .identity import idempotency_key
from .logger import DurableLogger
from .parallel import Parallel
from .replay import ReplayCursor
from .scope import ScopeState
from .step import StepDescriptor, StepRecord

__all__ = ["PlainContext"]


def _nothing(position: int, rows: int) -> tuple[()]:
    return ()


class PlainContext(DurableContext):
    """Steps are plain calls. ``current_step()`` works in them, with a key that nobody will see again."""

    def __init__(self) -> None:
        self._id = str(uuid.uuid4())
        self._body = self._scope("", "")
        self.logger = DurableLogger("celery_durable.body")

    @property
    def execution_id(self) -> str:
        """A random id: there is no execution."""
        return self._id

    @property
    def attempt(self) -> int:
        """Always 0."""
        return 0

    @property
    def replaying(self) -> bool:
        """Always False."""
        return False

    def patched(self, change_id: str) -> bool:
        """Always True: there is no old execution."""
        return True

    def parallel(self, *, max_workers: int | None = None) -> Parallel:
        """Branches run at the same time here too."""
        scope = self._here()
        return _PlainParallel(self, scope, scope.take_position(), None, lane=scope.take_lane(), max_workers=max_workers)

    def _scope(self, path: str, lane: str, end: int | None = None) -> ScopeState:
        return ScopeState(path, lane, ReplayCursor(_nothing, expand=lambda row: (), empty=True))

    def _call(
        self,
        scope: ScopeState,
        descriptor: StepDescriptor,
        op: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        is_async: bool,
        recorded: bool = False,
    ) -> Any:
        place = scope.place(scope.take_position())
        key = idempotency_key(self._id, descriptor.name, b"", 0, place)
        handle = StepHandle(self._id, place, descriptor.name, 1, key)

        def record(value: Any) -> Any:
            return StepRecord(place, descriptor.name, key, value, False, False, 1) if recorded else value

        async def later() -> Any:
            token = operation.set(handle)
            try:
                return record(await op(*args, **kwargs))
            finally:
                operation.reset(token)

        if is_async:
            return later()
        token = operation.set(handle)
        try:
            return record(op(*args, **kwargs))
        finally:
            operation.reset(token)

    def _check_left(self, scope: ScopeState, what: str) -> None:
        """There is no journal that could hold more."""


class _PlainParallel(Parallel):
    def _end(self) -> None:
        """There is no journal to write to."""
