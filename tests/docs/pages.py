"""The Python in a Markdown page, run from top to bottom as one module.

Two kinds of blocks are run: fenced ones of the language ``python``, which readers see, and HTML comments that begin
with ``<!-- python``, which they do not: what a page needs and need not show, and what it claims, as assertions.
"""

from __future__ import annotations

import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]

_FENCE = re.compile(r"^(?P<indent>\s*)(?P<fence>`{3,}|~{3,})\s*(?P<language>[^\s`]*)")
_HIDDEN = "<!-- python"
#: Every page gets a fresh one.
WORLD = f"{__package__}.world"


class Block(NamedTuple):
    """Some lines of Python, and the line of the page on which they begin (from 1)."""

    line: int
    code: str


def all_pages() -> list[Path]:
    """The README and everything under ``docs/``."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]


def blocks(page: Path) -> list[Block]:
    """The blocks of a page, in order.

    :raises ValueError: for a block that would be overlooked, or has no end.
    """
    return list(_scan(page.name, page.read_text(encoding="utf-8").splitlines()))


def _scan(name: str, lines: list[str]) -> Iterator[Block]:
    end, start, python = "", 0, False
    for number, line in enumerate(lines, 1):
        if end:
            if line.strip() == end:
                if python:
                    yield Block(start + 1, "\n".join(lines[start : number - 1]))
                end = ""
        elif line.startswith(_HIDDEN):
            if line.strip() != _HIDDEN:
                raise ValueError(f"{name}:{number}: '{_HIDDEN}' stands alone on its line")
            end, start, python = "-->", number, True
        elif match := _FENCE.match(line):
            python = match["language"] == "python"
            if python and match["indent"]:
                raise ValueError(f"{name}:{number}: an indented block of Python would not be run")
            end, start = match["fence"], number
    if end:
        raise ValueError(f"{name}:{start}: this block has no end")


def run(page: Path) -> int:
    """Run a page's blocks in one namespace; errors show the page's own lines.

    :returns: how many there were.
    """
    name = f"page_{re.sub(r'[^a-z0-9]', '_', page.stem.lower())}"
    module = types.ModuleType(name)
    module.__file__ = str(page)
    # The journal stores classes by name: a replay must be able to import what the page defines.
    sys.modules[name] = module
    sys.modules.pop(WORLD, None)
    try:
        found = blocks(page)
        for block in found:
            # Blank lines in front put every statement on the line that it has in the page.
            source = "\n" * (block.line - 1) + block.code
            exec(compile(source, str(page), "exec", dont_inherit=True), module.__dict__)
    finally:
        del sys.modules[name]
    return len(found)
