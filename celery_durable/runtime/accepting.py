"""Which of Kombu's serializers an application lets be read: its ``accept_content``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from kombu import serialization

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["of_messages", "of_outcomes"]


def of_messages(app: Celery) -> frozenset[str]:
    """Content types of messages that the application takes."""
    return _content_types(app.conf.accept_content)


def of_outcomes(app: Celery) -> frozenset[str]:
    """Content types of results that the application takes, as Celery's result backends take them."""
    conf = app.conf
    accept = conf.accept_content if conf.result_accept_content is None else conf.result_accept_content
    return _content_types(accept)


def _content_types(names: Iterable[str] | None) -> frozenset[str]:
    """What names of serializers, and content types, stand for; one that is not registered here cannot be decoded."""
    known: dict[str, str] = serialization.registry.name_to_type  # type: ignore[attr-defined]
    return frozenset(name if "/" in name else known[name] for name in names or () if "/" in name or name in known)
