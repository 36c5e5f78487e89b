"""What the README and the manual show, runs; what they list, is what there is.

Each page runs from top to bottom, with tasks called eagerly and a journal in memory.
"""

from __future__ import annotations

import dataclasses
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery, _state
from celery.app import defaults

import celery_durable
from celery_durable import errors
from celery_durable.replay import divergence
from celery_durable.runtime import runtime
from celery_durable.settings import PREFIX, Settings
from celery_durable.store.records import State

from .pages import ROOT, all_pages, blocks, run

#: Pages that may do without Python.
WITHOUT = {"architecture.md", "index.md", "cli.md", "comparison.md"}


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Tasks run where they are called; every journal is in memory, whatever URL a page shows."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(defaults.DEFAULTS, "task_always_eager", True)
    load = runtime.load

    def load_in_memory(app: Celery) -> Settings:
        return dataclasses.replace(load(app), database_url="sqlite://")

    monkeypatch.setattr(runtime, "load", load_in_memory)
    before = _state.default_app, getattr(_state._tls, "current_app", None)
    yield
    _state.default_app, _state._tls.current_app = before


@pytest.mark.parametrize("page", all_pages(), ids=lambda page: page.name)
def test_the_examples_of_the_page_run(page: Path, eager: None) -> None:
    assert run(page) > 0 or page.name in WITHOUT or page.name.startswith("api")


def test_the_readme_s_example_runs_as_it_stands(eager: None) -> None:
    page = ROOT / "README.md"
    lines = page.read_text(encoding="utf-8").splitlines()
    [shown] = [block.code for block in blocks(page) if lines[block.line - 2].startswith("```")]
    module = sys.modules["readme"] = types.ModuleType("readme")
    try:
        exec(compile(shown, str(page), "exec", dont_inherit=True), module.__dict__)
        assert str(module.fulfil.delay(7).get()).startswith("receipt-")
    finally:
        del sys.modules["readme"]


def test_an_example_that_fails_is_reported_with_the_line_of_its_page(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Title\n\n```python\nx = 1\n```\n\n<!-- python\nassert x == 2\n-->\n")
    with pytest.raises(AssertionError) as caught:
        run(page)
    assert caught.traceback[-1].lineno == 7  # counted from 0


@pytest.mark.parametrize(
    "text", ["- item\n\n  ```python\n  1 / 0\n  ```\n", "```python\n1 / 0\n", "<!-- python 1 / 0 -->\n"]
)
def test_an_example_that_would_be_overlooked_is_an_error(tmp_path: Path, text: str) -> None:
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(ValueError, match=r"page\.md:"):
        blocks(page)


# -- reference pages hold what there is ---------------------------------------------------------------------------


def table(page: str) -> dict[str, list[str]]:
    """The rows of a page's tables whose first cell is code: its name → the other cells."""
    rows = {}
    for line in (ROOT / "docs" / page).read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if cells and (match := re.fullmatch(r"`([^`]+)`", cells[0])):
            assert match[1] not in rows, f"{page} lists {match[1]} twice"
            rows[match[1]] = cells[1:]
    return rows


def test_every_setting_is_listed_with_its_default() -> None:
    listed = {name: cells for name, cells in table("configuration.md").items() if name.startswith(PREFIX)}
    assert {name: cells[1] for name, cells in listed.items()} == {
        f"{PREFIX}{field.name}": _default(field.name, field.default) for field in dataclasses.fields(Settings)
    }


def _default(name: str, value: Any) -> str:
    special = {"namespace": "the app's name", "outbox": "`None`"}
    return special.get(name) or f"`{value!r}`".replace("'", '"')


def test_every_error_is_listed_with_its_code() -> None:
    expected = {
        name: f"`{error.code}`"
        for name in errors.__all__
        if name not in ("DurableError", "ReplayDivergence") and (error := getattr(celery_durable, name))
    }
    listed = {name: cells[0] for name, cells in table("errors.md").items() if name[0].isupper()}
    assert listed == {**expected, "ReplayDivergence": "`CD101` to `CD107`"}


def test_every_way_to_diverge_is_listed() -> None:
    codes = {value for value in vars(divergence).values() if isinstance(value, str) and re.fullmatch(r"CD1\d\d", value)}
    assert {name for name in table("changing-code.md") if name.startswith("CD")} == codes


def test_every_state_is_listed() -> None:
    assert {state.value for state in State} <= set(table("concepts.md"))


def test_every_public_name_is_somewhere_in_the_manual() -> None:
    # The reference names them all, and is no explanation.
    manual = [page for page in all_pages() if not page.name.startswith("api")]
    text = "\n".join(page.read_text(encoding="utf-8") for page in manual)
    assert [name for name in celery_durable.__all__ if not re.search(rf"\b{name}\b", text)] == []


def test_the_readme_leads_to_every_page_by_absolute_links() -> None:
    # It is read on the package index too, where a path in the source tree leads nowhere.
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    linked = set(re.findall(rf"{re.escape(errors.MANUAL)}/([\w-]+)\.html", text))
    pages = {page.stem for page in (ROOT / "docs").glob("*.md")}
    assert linked <= pages
    assert {page for page in pages - linked if page != "index" and not page.startswith("api-")} == set()
    assert "](docs/" not in text
