"""Whether Celery can pass on what a body has returned: known before the execution counts as completed.

The journal stores more than Celery's serializers do (models, dataclasses). A value that they refuse would be failed for
Celery and completed for the journal, for ever.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from kombu import serialization

from celery_durable.codec.refusal import key_segment, path_text, type_name
from celery_durable.errors import PayloadError

if TYPE_CHECKING:
    from celery import Celery, Task

__all__ = ["check_acceptable"]

#: What they all carry: plain JSON.
_CARRY_JSON: Final = frozenset({"json", "yaml", "msgpack", "pickle"})
_DEEPEST: Final = 50


class _Form(NamedTuple):
    """A form in which Celery will want the value."""

    #: The setting that says so, and its value.
    setting: str
    serializer: str
    dump: Callable[[Any], object]


def check_acceptable(task: Task[Any, Any], request: Any, value: Any, *, plain: bool) -> None:
    """Refuse a return value that Celery could not store, or not pass on to a callback or the next task of a chain.

    :param plain: it is known to be plain JSON.
    :raises PayloadError: names the path, and the setting of Celery.
    """
    for form in _forms(task, request):
        if plain and form.serializer in _CARRY_JSON:
            continue
        error = _problem(form, value)
        if error is not None:
            raise _refusal(task, form, value, error)


def _forms(task: Task[Any, Any], request: Any) -> Iterator[_Form]:
    app: Celery = task.app
    if request.is_eager:
        stored = app.conf.task_store_eager_result
    else:
        stored = not (request.ignore_result or task.ignore_result)
        for signature in [*(request.callbacks or ()), *(request.chain or ())[-1:]]:
            if not signature.get("immutable"):
                serializer = _serializer_of(app, signature)
                yield _Form("task_serializer", serializer, lambda part, name=serializer: _dump(part, name))  # type: ignore[misc]
    backend: Any = task.backend
    if stored and not backend.as_uri().startswith("disabled"):
        yield _Form("result_serializer", backend.serializer, lambda part: backend.encode(backend.prepare_value(part)))


def _serializer_of(app: Celery, signature: Mapping[str, Any]) -> str:
    given = (signature.get("options") or {}).get("serializer")
    known = app.tasks.get(signature.get("task", ""))
    return str(given or getattr(known, "serializer", None) or app.conf.task_serializer)


def _dump(value: Any, serializer: str) -> object:
    return serialization.dumps(value, serializer=serializer)


def _problem(form: _Form, value: Any) -> Exception | None:
    try:
        form.dump(value)
    except Exception as error:
        return error
    return None


def _refusal(task: Task[Any, Any], form: _Form, value: Any, error: Exception) -> PayloadError:
    path: list[str] = []
    part = _culprit(form, value, path)
    where = f"the return value of task {task.name!r}"
    return PayloadError(
        f"{where} cannot be handed on by Celery: {path_text(path[::-1])} is a {type_name(type(part))!r}, which "
        f"{form.setting} = {form.serializer!r} refuses ({type(error).__name__}: {error}). Return plain data (of a "
        f"model its model_dump()), or set another {form.setting}; a result that nobody reads needs ignore_result=True.",
        where=where,
        path=path_text(path[::-1]),
        kind=type_name(type(part)),
    )


def _culprit(form: _Form, value: Any, path: list[str]) -> Any:
    """The innermost part that is refused by itself; ``path`` gets the way to it."""
    while len(path) < _DEEPEST:
        for segment, part in _parts(value):
            if _problem(form, part) is not None:
                path.append(segment)
                value = part
                break
        else:
            return value
    return value


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield key_segment(key), part
    elif isinstance(value, (list, tuple, set, frozenset)):
        for number, part in enumerate(value):
            yield f"[{number}]", part
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        # It may be accepted by a serializer that takes dataclasses apart.
        for field in dataclasses.fields(value):
            yield key_segment(field.name), getattr(value, field.name, None)
