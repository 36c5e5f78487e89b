"""What ``celery_durable`` exports: every name is explained where it is written, and its errors travel."""

from __future__ import annotations

import ast
import inspect
import pickle
from pathlib import Path
from typing import Any

import pytest
from celery.utils.dispatch import Signal

import celery_durable
from celery_durable import DurableError, ReplayDivergence
from celery_durable.effects import DidNotHappen, Unknown

ROOT = Path(__file__).parents[2]
EXPORTED = {name: getattr(celery_durable, name) for name in celery_durable.__all__}
#: Values, which have no docstring of their own: their comment tells.
VALUES = (DidNotHappen, Unknown, Signal, type(celery_durable.Verdict))
ERRORS = [value for value in EXPORTED.values() if inspect.isclass(value) and issubclass(value, DurableError)]
BY_NAME = {kind.__name__: kind for kind in ERRORS}


def _explained() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in EXPORTED.items():
        if isinstance(value, VALUES):
            continue
        found[name] = value
        if inspect.isclass(value):
            members = {key: member for key, member in vars(value).items() if not key.startswith("_")}
            found.update({f"{name}.{key}": m for key, m in members.items() if callable(m) or isinstance(m, property)})
            found.update({f"{name}.{key}": m for key, m in members.items() if isinstance(m, classmethod)})
    return found


@pytest.mark.parametrize("name", _explained())
def test_it_has_a_docstring_of_its_own(name: str) -> None:
    value = _explained()[name]
    assert (value.__func__ if isinstance(value, classmethod) else value).__doc__


@pytest.mark.parametrize(
    "function", [celery_durable.step, celery_durable.guarded, celery_durable.get_logger], ids=lambda f: f.__name__
)
def test_the_parameters_of_functions_are_explained(function: Any) -> None:
    parameters = [name for name in inspect.signature(function).parameters if name != "function"]
    assert [name for name in parameters if f":param {name}:" not in function.__doc__] == []


@pytest.mark.parametrize("kind", ERRORS)
@pytest.mark.parametrize("protocol", [2, pickle.HIGHEST_PROTOCOL])
def test_an_error_survives_pickle_with_its_attributes(kind: type[DurableError], protocol: int) -> None:
    """Celery sends them between processes."""
    error = kind("what is wrong.", execution_id="one", key=b"k")
    again = pickle.loads(pickle.dumps(error, protocol))
    assert type(again) is kind
    assert (again.message, again.execution_id, again.key) == ("what is wrong.", "one", b"k")
    assert str(again) == f"[{kind.code}] what is wrong."


def test_the_code_of_a_divergence_survives_it_too() -> None:
    again = pickle.loads(pickle.dumps(ReplayDivergence("what differs.", code="CD104")))
    assert (again.code, str(again)) == ("CD104", "[CD104] what differs.")


@pytest.mark.parametrize("kind", ERRORS)
def test_what_an_error_does_not_say_is_none(kind: type[DurableError]) -> None:
    """An attribute that not every one of its kind has can be read of each, and is no state of its own."""
    error = kind("what is wrong.")
    optional = [name for name, type_ in _attributes(kind).items() if type_ == "str | None"]
    assert [getattr(error, name) for name in optional] == [None] * len(optional)
    assert vars(error).keys() <= {"code"}


def test_the_attributes_of_errors_are_declared_where_they_are_set() -> None:
    """Every fact that the package gives to an error is known to type checkers."""
    undeclared = set()
    for module in (ROOT / "celery_durable").rglob("*.py"):
        for call in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name):
                kind = BY_NAME.get(call.func.id)
                given = {keyword.arg for keyword in call.keywords if keyword.arg and keyword.arg != "code"}
                if kind is not None:
                    undeclared |= {f"{call.func.id}.{name}" for name in given - _attributes(kind).keys()}
    assert undeclared == set()


def _attributes(kind: type[DurableError]) -> dict[str, str]:
    return {name: text for base in kind.__mro__ for name, text in vars(base).get("__annotations__", {}).items()}


def test_every_error_has_a_code_of_its_own() -> None:
    codes = [kind.code for kind in ERRORS]
    assert len(codes) == len(set(codes)) > 15
