"""An anchor for each code: ``errors.html#cd501``.

A table's cell that holds a code and nothing else gets its anchor; one that holds two codes, those of all from the first
to the second.
"""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

_CODE = re.compile(r"CD(\d{3})")


def anchor_codes(app: Sphinx, doctree: nodes.document) -> None:
    for cell in doctree.findall(nodes.entry):
        literals = list(cell.findall(nodes.literal))
        found = [match for literal in literals if (match := _CODE.fullmatch(literal.astext()))]
        words = cell.astext()
        if not found or len(found) != len(literals) or len(words.split()) > 2 * len(found):
            continue
        numbers = [int(match[1]) for match in found]
        for number in range(numbers[0], numbers[-1] + 1):
            anchor = f"cd{number:03}"
            if anchor not in doctree.ids:
                literals[0]["ids"].append(anchor)
                doctree.ids[anchor] = literals[0]


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("doctree-read", anchor_codes)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
