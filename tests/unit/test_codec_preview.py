"""Previews are short, of one line, and never fail."""

from __future__ import annotations

from typing import Any

import pytest

from celery_durable.codec import preview


class Broken:
    def __repr__(self) -> str:
        raise RuntimeError("no")


class Lines:
    def __repr__(self) -> str:
        return "a\nb\x1b[31mc\ud800"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1, "1"),
        ("a", "'a'"),
        ({"a": [1, (2,)]}, "{'a': [1, (2,)]}"),
        ("é", "'é'"),
        (Lines(), r"a b\x1b[31mc\ud800"),
        ("x\ny", r"'x\ny'"),
    ],
)
def test_text(value: Any, text: str) -> None:
    assert preview(value) == text


def test_broken_repr() -> None:
    assert "Broken" in preview(Broken())
    assert "Broken" in preview([Broken()])


LARGE = ["x" * 10**7, [[1] * 10**6] * 100, 10**6000, dict.fromkeys(range(99), "x" * 999), b"x" * 999]


@pytest.mark.parametrize("value", LARGE, ids=["str", "list", "int", "dict", "bytes"])
def test_length(value: Any) -> None:
    assert len(preview(value)) <= 200
    assert len(preview(value, 50)) <= 50
    assert "..." in preview(value, 50)


def test_cycle() -> None:
    value: list[Any] = []
    value.append(value)
    assert preview(value)
