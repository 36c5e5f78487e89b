"""What stands at the root of the repository: links that work on any page, files that are there, one address each."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from celery_durable.errors import MANUAL

from .pages import ROOT, all_pages

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
URLS = PROJECT["project"]["urls"]
#: PyPI shows the README, and GitHub's forms show the others: no link of theirs may lean on the folder.
EVERYWHERE = ["README.md", "SECURITY.md"]
AT_THE_ROOT = [*EVERYWHERE, "CONTRIBUTING.md"]


def links(name: str) -> list[str]:
    text = (ROOT / name).read_text(encoding="utf-8")
    return re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"^\[[\w-]+\]: +(\S+)$", text, re.MULTILINE)


def test_the_readme_leads_to_every_page_of_the_manual() -> None:
    # The parts of the reference are on its first page.
    pages = {f"{MANUAL}/{page.stem}.html" for page in all_pages() if page.parent == ROOT / "docs"}
    parts = {page for page in pages if re.search(r"/api-\w+\.html$", page)}
    assert pages - parts - {f"{MANUAL}/index.html"} == {link for link in links("README.md") if link.startswith(MANUAL)}


@pytest.mark.parametrize("name", AT_THE_ROOT)
def test_links_lead_to_what_is_there(name: str) -> None:
    for link in links(name):
        if link.startswith(MANUAL):
            assert (ROOT / "docs" / Path(link).with_suffix(".md").name).exists(), link
        elif found := re.fullmatch(rf"{re.escape(URLS['Source'])}/blob/main/(.+)", link):
            assert (ROOT / found[1]).exists(), link
        elif link.startswith("https:"):
            # The project's own pages, of which there is no copy here.
            assert link.startswith(f"{URLS['Source']}/"), link
        else:
            assert name not in EVERYWHERE, link
            assert (ROOT / link).exists(), link


def test_the_project_has_one_address_and_its_manual_one() -> None:
    assert URLS["Documentation"] == MANUAL
    assert {url.removeprefix(URLS["Source"])[:1] for key, url in URLS.items() if key != "Documentation"} <= {"", "/"}


def test_files_that_contributors_are_pointed_to_are_there() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:celery_durable|tests|docs|requirements)/[\w/.]*)`", text)
    assert len(named) > 8
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_sources_that_are_published_hold_what_their_readme_needs() -> None:
    included = PROJECT["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    assert [path for path in included if not ROOT.joinpath(path[1:]).exists()] == []
    needed = {"/Makefile", "/docs", "/example_project", "/tests", "/tox.ini", *(f"/{name}" for name in AT_THE_ROOT)}
    assert needed - set(included) == set()


def test_locked_versions_are_versions_and_nothing_of_a_machine() -> None:
    locks = sorted((ROOT / "requirements").glob("dev-*.txt"))
    assert [lock.name for lock in locks] == [f"dev-3.{minor}.txt" for minor in range(10, 14)]
    for lock in locks:
        lines = lock.read_text(encoding="utf-8").splitlines()
        assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.!+-]*", line)] == []
        assert {"celery", "kombu", "SQLAlchemy", "pytest", "mypy", "ruff"} <= {line.split("==")[0] for line in lines}
