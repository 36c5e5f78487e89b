"""What a step may be called."""

from __future__ import annotations

import re

import pytest

from celery_durable import ConfigurationError, StepDescriptor


@pytest.mark.parametrize("name", ["a", "x" * 200, "größe", "two words", "🙂"])
def test_a_name_is_a_text(name: str) -> None:
    assert StepDescriptor(name).name == name


@pytest.mark.parametrize("name", ["", "x" * 201, "a\0b", "\ud800", None, 7])
def test_what_not_every_database_can_keep_is_no_name(name: str) -> None:
    message = f"[CD001] a step's name is a text of 1 to 200 characters, not {name!r}."
    with pytest.raises(ConfigurationError, match=f"^{re.escape(message)}$"):
        StepDescriptor(name)
