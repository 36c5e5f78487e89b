"""Fingerprints and idempotency keys (BLAKE3).

A *fingerprint* is what makes a step this step: its name, its effect and its arguments. It is compared at every replay,
so it has to be the same for the same call in every process, on every machine and after every deploy: no
``repr``, no ``hash()``, no pickle, no order that depends on the run. An *idempotency key* names one effect in the
world, and is handed to the remote side.

Everything hashed here is length-delimited or of fixed length, and tagged by type, so that no two different inputs
have the same bytes: ``("ab", "c")`` is not ``("a", "bc")``, and ``1``, ``True``, ``1.0`` and ``"1"`` are four things.

**The bytes are a contract with every journal ever written.** A change here makes deployed journals diverge and lets
charges fire twice; the tests pin vectors.
"""

from __future__ import annotations

import functools
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Final

from blake3 import blake3

from .codec.canonical import FORMS, NoCanonicalForm, canonical, form_of, lengthy, refusal, text_form, too_deep
from .codec.refusal import path_text
from .errors import FingerprintError

__all__ = [
    "call_hash",
    "canonical",
    "child_id",
    "child_of",
    "child_print",
    "fingerprint",
    "fingerprint_of",
    "global_key",
    "idempotency_key",
    "promise_id",
    "short",
    "wait_print",
]

#: Domains of the two forms of a fingerprint: over arguments, and over the result of a ``fingerprint=``.
_OVER_ARGUMENTS: Final = b"1a"
_OVER_VALUE: Final = b"1v"
#: Domain of what stands for a wait.
_OVER_WAIT: Final = b"1w"
_IDEMPOTENCY: Final = blake3(derive_key_context="celery_durable v1 idempotency key")
_GLOBAL: Final = blake3(derive_key_context="celery_durable v1 global key")
_CALL: Final = blake3(derive_key_context="celery_durable v1 call")
_CHILD: Final = blake3(derive_key_context="celery_durable v1 child id")
_PROMISE: Final = blake3(derive_key_context="celery_durable v1 promise id")


def fingerprint(name: str, effect_tag: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
    """The 32 bytes that identify a call of a step. Secrets do not belong in the arguments of a step: a hash of a
    short secret can be guessed. Leave them out with ``fingerprint=``.

    :param name: the step's name.
    :param effect_tag: the value of its :class:`~celery_durable.effects.Effect`.
    :param args: positional arguments of the operation.
    :param kwargs: keyword arguments; their order does not matter.
    :raises FingerprintError: for an argument without canonical form; it names the step, the argument and the cure.
    """
    parts = [_prefix(_OVER_ARGUMENTS, name, effect_tag), b"1," if len(args) == 1 else b"%d," % len(args)]
    try:
        for value in args:
            # What form_of() does, without the price of a call: each step has one, and each of its replays.
            form = FORMS.get(type(value), form_of)
            parts.append(form(value, 0))
        if kwargs:
            for key in sorted(kwargs):
                parts.append(text_form(key, 0))
                parts.append(form_of(kwargs[key], 0))
    except (NoCanonicalForm, RecursionError) as error:
        raise _argument_error(name, args, kwargs) from error
    return blake3(b"".join(parts)).digest()


def fingerprint_of(name: str, effect_tag: str, value: Any) -> bytes:
    """The 32 bytes that identify a call of a step with ``fingerprint=``.

    :param value: what the ``fingerprint=`` callable made of the arguments; it stands in their place. Never equal to a
        fingerprint over arguments.
    :raises FingerprintError: when that has no canonical form either.
    """
    form = canonical(value, f"the value that fingerprint= of step {name!r} returned")
    return blake3(_prefix(_OVER_VALUE, name, effect_tag) + form).digest()


def idempotency_key(
    namespace: str, execution_id: str, name: str, fingerprint: bytes, occurrence: int, lane: str = ""
) -> bytes:
    """The 32 bytes that name one effect of one execution in the world.

    :param namespace: setting ``durable_namespace``: two applications may have executions of one id, and one gateway.
    :param execution_id: id of the execution.
    :param name: the step's name.
    :param fingerprint: of the step.
    :param occurrence: how many earlier steps of the lane had this name and fingerprint, from 0.
    :param lane: names a parallel branch; empty in the body itself. Branches run in any order, so each counts its own
        occurrences.
    """
    data = b"".join(
        (
            lengthy(namespace),
            lengthy(execution_id),
            lengthy(name),
            lengthy(lane),
            b"%d," % len(fingerprint),
            fingerprint,
            b"%d," % occurrence,
        )
    )
    return _IDEMPOTENCY.copy().update(data).digest()


def global_key(namespace: str, key: str) -> bytes:
    """The 32 bytes that stand for a step's ``key=``: the same in every execution of the application.

    :param namespace: setting ``durable_namespace``.
    :param key: what the user gave.
    """
    return _GLOBAL.copy().update(lengthy(namespace) + lengthy(key)).digest()


def call_hash(task: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bytes:
    """The 32 bytes by which a call of a task is known again (``durable_id``).

    :param task: its name.
    :param args: positional arguments, as the body receives them.
    :param kwargs: keyword arguments; their order does not matter.
    :raises FingerprintError: for an argument without canonical form; it names the task and the argument.
    """
    parts = [lengthy(task), b"%d," % len(args)]
    for number, value in enumerate(args, 1):
        parts.append(_call_form(task, f"argument {number}", value))
    for key in sorted(kwargs):
        parts += text_form(key, 0), _call_form(task, f"argument {key!r}", kwargs[key])
    return _CALL.copy().update(b"".join(parts)).digest()


def _call_form(task: str, label: str, value: Any) -> bytes:
    try:
        return form_of(value, 0)
    except (NoCanonicalForm, RecursionError) as error:
        reason = error if isinstance(error, NoCanonicalForm) else too_deep()
        raise FingerprintError(
            f"{label} of task {task!r} has no canonical form: {path_text(reason.path)} is {reason}. A durable_id names "
            "one call, and a second call is compared with it by its arguments. Pass plain data.",
            task=task,
            argument=label,
        ) from error


def wait_print(kind: str, *words: str) -> bytes:
    """The 32 bytes that identify a wait: what is waited for. How long is not part of it.

    :param kind: ``sleep``, ``promise``, ``wait``, ...
    :param words: such as the names of the promises.
    """
    return blake3(_OVER_WAIT + b"".join(map(lengthy, (kind, *words)))).digest()


def promise_id(namespace: str, execution_id: str, lane: str, name: str, occurrence: int) -> str:
    """The 32 hex digits that name a promise in the world. Generation and position are not in it, so that a promise
    which was given away outlives a divergence.

    :param namespace: setting ``durable_namespace``.
    :param lane: names a parallel branch; empty in the body itself.
    :param occurrence: how many earlier promises of the lane had this name, from 0.
    """
    words = b"".join(map(lengthy, (namespace, execution_id, lane, name)))
    return _PROMISE.copy().update(words + b"%d," % occurrence).hexdigest(16)


def child_id(
    namespace: str, execution_id: str, lane: str, name: str, occurrence: int, *, key: bytes | None = None
) -> str:
    """The 32 hex digits of a child task: the promise that its end keeps has them as its id, and its task id is the
    UUID of them. Neither arguments nor position are in it; parameters as of :func:`promise_id`.

    :param key: 32 bytes, without which nobody can compute the id; None: everybody can.
    """
    words = b"".join(map(lengthy, (namespace, execution_id, lane, name))) + b"%d," % occurrence
    hashed = _CHILD.copy().update(words) if key is None else blake3(words, key=key)
    return hashed.hexdigest(16)


def child_of(promise: str) -> str:
    """The task id of the child that keeps a promise of the library's own."""
    return str(uuid.UUID(hex=promise))


def child_print(name: str, form: Any) -> bytes:
    """The 32 bytes that identify a call of a child task.

    :param name: what the journal calls it.
    :param form: what is called, in plain data.
    :raises FingerprintError: for an argument without a canonical form.
    """
    try:
        shape = form_of(form, 0)
    except (NoCanonicalForm, RecursionError) as error:
        reason = error if isinstance(error, NoCanonicalForm) else too_deep()
        path = path_text(reason.path)
        raise FingerprintError(
            f"the call {name!r} has no canonical form: {path} of [task, arguments, keyword arguments] is {reason}. A "
            "replay recognizes a child by its arguments. Pass plain data, such as the id by which the child finds the "
            "object.",
            where=f"the call {name!r}",
            path=path,
        ) from error
    return blake3(_OVER_WAIT + lengthy("call") + lengthy(name) + shape).digest()


def short(fp: bytes) -> str:
    """The first 12 hex digits, for messages."""
    return fp[:6].hex()


@functools.lru_cache(maxsize=4096)
def _prefix(domain: bytes, name: str, effect_tag: str) -> bytes:
    return domain + lengthy(name) + lengthy(effect_tag)


def _argument_error(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> FingerprintError:
    """Find the argument that was refused; only errors pay for knowing which it was."""
    numbered = [(f"argument {number}", value) for number, value in enumerate(args, 1)]
    named = [(f"argument {key!r}", kwargs[key]) for key in sorted(kwargs)]
    for label, value in numbered + named:
        try:
            canonical(value, f"{label} of step {name!r}")
        except FingerprintError as error:
            error.__dict__.update(step=name, argument=label)
            return error
    return refusal(f"an argument of step {name!r}", too_deep())
