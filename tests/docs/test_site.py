"""What the built manual holds: every public name, an anchor for every code, and each page as Markdown too."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import celery_durable
from celery_durable import errors

from .pages import ROOT

pytestmark = pytest.mark.slow

#: Of classes that nobody raises as they are: their members have codes of their own.
_NEVER_RAISED = {"CD000", "CD100"}
#: Called by Celery, or another name of its.
_FOR_CELERY = {("DurableTask", "bind"), ("DurableTask", "on_bound"), ("DurableTask", "subtask")}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("sphinx", reason="the manual is built with the packages of the group 'docs'")
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-n", "-W", "--keep-going", "-q", "-b", "html", "docs", str(out)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return out


def pages() -> set[str]:
    return {page.stem for page in (ROOT / "docs").glob("*.md")}


def test_every_public_name_is_in_the_reference_and_its_index(site: Path) -> None:
    from sphinx.util.inventory import InventoryFile

    with (site / "objects.inv").open("rb") as file:
        inventory = InventoryFile.load(file, "", lambda _, name: name)
    described = {name for kind in ("class", "exception", "function", "data") for name in inventory[f"py:{kind}"]}
    public = {f"celery_durable.{name}" for name in celery_durable.__all__}
    assert public - described == set()
    index = (site / "genindex.html").read_text(encoding="utf-8")
    assert [name for name in public if f"#{name}" not in index] == []


def test_every_public_method_is_in_the_reference(site: Path) -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in site.glob("api-*.html"))
    absent = [name for name in methods() if f'id="celery_durable.{name}"' not in text]
    assert absent == []


def methods() -> Iterator[str]:
    """Methods and properties of public classes, but for what is Celery's, Python's or an exception's."""
    for public in celery_durable.__all__:
        owner = getattr(celery_durable, public)
        if not inspect.isclass(owner) or issubclass(owner, BaseException):
            continue
        for name, value in inspect.getmembers(owner):
            function = value.fget if isinstance(value, property) else inspect.unwrap(getattr(value, "__func__", value))
            ours = inspect.isfunction(function) and function.__module__.startswith("celery_durable")
            if ours and not name.startswith("_") and (public, name) not in _FOR_CELERY:
                yield f"{public}.{name}"


def codes() -> set[str]:
    """Every code that the package says, as a text of its own."""
    modules = (ROOT / "celery_durable").rglob("*.py")
    return {code for one in modules for code in re.findall(r'"(CD\d{3})"', one.read_text(encoding="utf-8"))}


def test_every_code_has_the_place_that_its_error_names(site: Path) -> None:
    anchors = {
        (page, anchor)
        for page in ("errors.html", "doctor.html")
        for anchor in re.findall(r'id="(cd\d{3})"', (site / page).read_text(encoding="utf-8"))
    }
    named = {tuple(errors.docs_url(code).rpartition("/")[2].split("#")) for code in codes() - _NEVER_RAISED}
    assert anchors == named


def test_an_error_names_where_to_read() -> None:
    assert errors.JournalUnavailable("gone").docs_url == f"{errors.MANUAL}/errors.html#cd501"
    assert errors.ReplayDivergence("other", code="CD103").docs_url == f"{errors.MANUAL}/errors.html#cd103"
    assert errors.docs_url("CD903") == f"{errors.MANUAL}/doctor.html#cd903"


def test_every_page_is_there_as_markdown_and_llms_txt_lists_it(site: Path) -> None:
    listed = re.findall(rf"\]\({re.escape(errors.MANUAL)}/([\w-]+)\.md\)", (site / "llms.txt").read_text("utf-8"))
    assert sorted(listed) == sorted(pages() - {"index"})
    assert {page.stem for page in site.glob("*.md")} == pages()


def test_markdown_has_what_readers_see_and_nothing_else(site: Path) -> None:
    for page in site.glob("*.md"):
        text = page.read_text(encoding="utf-8")
        assert "<!--" not in text, page.name
        assert "```{" not in text, page.name
        for target in re.findall(r"\]\(([\w-]+\.md)", text):
            assert site.joinpath(target).exists(), f"{page.name} names {target}"
    example = (site / "example.md").read_text(encoding="utf-8")
    assert "def fulfil(self: DurableTask, order_id: int) -> str:" in example
    assert "def charge(order: Order) -> Receipt:" in example
    steps = (site / "api-steps.md").read_text(encoding="utf-8")
    assert "the operation’s value, as read back from the journal" in steps
