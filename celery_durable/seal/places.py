"""Where a sealed payload stands, in bytes. They are authenticated with it, so that it opens nowhere else.

Texts and hashes are length-delimited, numbers end with a comma, and what is absent has a form of its own: no two places
have the same bytes. **The bytes are a contract with every sealed row ever written.**
"""

from __future__ import annotations

from typing import Final

__all__ = ["entry_place", "message_place", "payload_place", "promise_place"]

_ABSENT: Final = b"-"


def _hash(value: bytes | None) -> bytes:
    return _ABSENT if value is None else b"%d:%b" % (len(value), value)


def _number(value: int | None) -> bytes:
    return _ABSENT if value is None else b"%d" % value


def entry_place(
    namespace: bytes,
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
    path, called = scope.encode(), name.encode()
    return b"journal,%d:%b%d,%d,%d:%b%d,%d,%d,%b,%d:%b%b,%b,%d,%d," % (
        len(namespace),
        namespace,
        pk,
        generation,
        len(path),
        path,
        position,
        entry,
        kind,
        _number(effect),
        len(called),
        called,
        _hash(fingerprint),
        _hash(key),
        attempt,
        codec,
    )


def payload_place(namespace: bytes, pk: int, *, kind: int, codec: int) -> bytes:
    """The place of what belongs to an execution as a whole: its message, its outcome, why it is parked."""
    return b"payload,%d:%b%d,%d,%d," % (len(namespace), namespace, pk, kind, codec)


def promise_place(namespace: bytes, pk: int, *, promise: str, state: int, codec: int) -> bytes:
    """The place of the value or the error of a promise."""
    name = promise.encode()
    return b"promise,%d:%b%d,%d:%b%d,%d," % (len(namespace), namespace, pk, len(name), name, state, codec)


def message_place(namespace: bytes, pk: int, *, message: str, task: str, codec: int) -> bytes:
    """The place of a message in the outbox."""
    one, called = message.encode(), task.encode()
    return b"outbox,%d:%b%d,%d:%b%d:%b%d," % (
        len(namespace),
        namespace,
        pk,
        len(one),
        one,
        len(called),
        called,
        codec,
    )
