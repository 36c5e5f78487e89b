"""Where a sealed payload stands, in bytes. They are authenticated with it, so that it opens nowhere else.

Texts and hashes are length-delimited, numbers end with a comma, and what is absent has a form of its own: no two places
have the same bytes. **The bytes are a contract with every sealed row ever written.**
"""

from __future__ import annotations

from typing import Final

from celery_durable.codec.canonical import lengthy

__all__ = ["entry_place", "message_place", "payload_place", "promise_place"]

_ABSENT: Final = b"-"


def _hash(value: bytes | None) -> bytes:
    return _ABSENT if value is None else b"%d:%b" % (len(value), value)


def _number(value: int | None) -> bytes:
    return _ABSENT if value is None else b"%d" % value


def entry_place(
    namespace: str,
    pk: int,
    *,
    generation: int,
    scope: str,
    position: int,
    entry: int,
    kind: int,
    effect: int | None,
    name: str,
    fingerprint: bytes | None,
    key: bytes | None,
    attempt: int,
    codec: int,
) -> bytes:
    """The place of a journal entry: every column of its row that a body or an operator acts on."""
    return b"journal,%b%d,%d,%b%d,%d,%d,%b,%b%b,%b,%d,%d," % (
        lengthy(namespace),
        pk,
        generation,
        lengthy(scope),
        position,
        entry,
        kind,
        _number(effect),
        lengthy(name),
        _hash(fingerprint),
        _hash(key),
        attempt,
        codec,
    )


def payload_place(namespace: str, pk: int, *, kind: int, codec: int) -> bytes:
    """The place of what belongs to an execution as a whole: its message, its outcome, why it is parked."""
    return b"payload,%b%d,%d,%d," % (lengthy(namespace), pk, kind, codec)


def promise_place(namespace: str, pk: int, *, promise: str, state: int, codec: int) -> bytes:
    """The place of the value or the error of a promise."""
    return b"promise,%b%d,%b%d,%d," % (lengthy(namespace), pk, lengthy(promise), state, codec)


def message_place(namespace: str, pk: int, *, message: str, task: str, codec: int) -> bytes:
    """The place of a message in the outbox."""
    return b"outbox,%b%d,%b%b%d," % (lengthy(namespace), pk, lengthy(message), lengthy(task), codec)
