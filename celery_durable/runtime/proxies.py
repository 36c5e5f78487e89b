"""Celery hands out proxies of applications; what belongs to one hangs on the application itself."""

from __future__ import annotations

from typing import Any

__all__ = ["behind"]


def behind(app: Any) -> Any:
    """The application that a proxy stands for; anything else as it is."""
    return app._get_current_object() if hasattr(app, "_get_current_object") else app
