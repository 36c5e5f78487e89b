"""Pydantic models whose classes were changed by a deploy: what is read fits the class of today, or is refused."""

from __future__ import annotations

import datetime as dt
import sys
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

from celery_durable.codec import Codec
from celery_durable.errors import PayloadError

HERE = sys.modules[__name__]
CODEC = Codec()


class Part(BaseModel):
    id: int


class Thing(BaseModel):
    """As it was when it was recorded."""

    x: int = 1
    text: str = "12"
    when: dt.datetime = dt.datetime(2026, 1, 1, tzinfo=dt.timezone.utc)
    parts: list[Part] = [Part(id=1)]


def deployed(monkeypatch: pytest.MonkeyPatch, **fields: Any) -> Any:
    """The class of today."""
    base = {"x": int, "text": str, "when": dt.datetime, "parts": list[Part]}
    namespace = {"__annotations__": {**base, **fields}, "__module__": __name__, "__qualname__": "Thing"}
    made = type(BaseModel)("Thing", (BaseModel,), namespace)
    monkeypatch.setattr(HERE, "Thing", made)
    return made


def stored() -> Any:
    return CODEC.encode(Thing())


def test_what_still_fits_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    payload = stored()
    made = deployed(monkeypatch, x=int | None, when=Any)
    value = CODEC.decode(*payload)
    assert type(value) is made
    assert (value.x, value.text, value.when.year, value.parts) == (1, "12", 2026, [Part(id=1)])


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"x": list[int]}, "x"),
        ({"x": str}, "x"),
        ({"x": Annotated[int, Field(ge=5)]}, "x"),
        ({"text": dict[str, int]}, "text"),
        ({"parts": list[int]}, "parts"),
    ],
)
def test_what_does_not_fit_any_more_is_refused(monkeypatch: pytest.MonkeyPatch, fields: Any, name: str) -> None:
    payload = stored()
    deployed(monkeypatch, **fields)
    with pytest.raises(PayloadError, match=f"the field '{name}' of .*Thing no longer accepts the recorded value"):
        CODEC.decode(*payload)


def test_what_pydantic_converts_is_converted(monkeypatch: pytest.MonkeyPatch) -> None:
    payload = stored()
    deployed(monkeypatch, text=int, x=float)
    value = CODEC.decode(*payload)
    assert (value.text, type(value.text)) == (12, int)
    # Strict pydantic takes an int for a float: it is given back as it was.
    assert value.x == 1


class Odd(BaseModel):
    """Its values are not what its fields say: validators made them so, or nobody has asked one."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    path: Annotated[str, AfterValidator(lambda text: Path(text))]
    secret: str
    unset: int = None  # type: ignore[assignment]

    @field_validator("secret")
    @classmethod
    def _hashed(cls, value: str) -> str:
        if value.startswith("#"):
            raise ValueError("hashed already")
        return f"#{value}"


def test_validators_do_not_run_again_and_what_they_made_is_kept() -> None:
    value = Odd(path="/tmp/x", secret="abc")  # type: ignore[arg-type]
    payload, again = CODEC.roundtrip(value)
    assert again == value
    assert (again.path, again.secret, again.unset) == (Path("/tmp/x"), "#abc", None)
    assert CODEC.decode(*payload) == value
    odd = Odd.model_construct(path=7, secret=8, unset="x")
    assert CODEC.roundtrip(odd)[1] == odd
