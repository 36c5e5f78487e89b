"""How a body is left without having ended. Users never see these; a bare ``except:`` must not swallow them."""

from __future__ import annotations

__all__ = ["Leave", "Park", "Suspend"]


class Leave(BaseException):
    """Base: the body is left here, and its execution goes on another time."""


class Suspend(Leave):
    """Nothing is held meanwhile; the message is sent again after ``delay`` seconds."""

    def __init__(self, delay: float) -> None:
        super().__init__(
            "the durable body is suspended here. This is not an error and must reach the task: do not catch "
            "BaseException around durable steps."
        )
        self.delay = delay


class Park(Leave):
    """An operator has to decide."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
