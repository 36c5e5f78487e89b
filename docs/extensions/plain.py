"""The manual for readers that want no HTML: ``page.md`` beside ``page.html``, and ``llms.txt``, a list of all."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.writers.text import TextTranslator

#: What only a build sees: Python that a page needs and does not show, and names of places in it.
_UNSEEN = re.compile(r"^<!--.*?^-->\n+|^\([\w-]+\)=\n+", re.MULTILINE | re.DOTALL)
_DIRECTIVE = re.compile(r"^```\{(?P<name>[\w-]+)\}(?P<argument>[^\n]*)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)


def write(app: Sphinx, exception: Exception | None) -> None:
    """Write the twins and the list, once the pages are written."""
    if exception is not None or app.builder.name != "html":
        return
    out = Path(app.outdir)
    for page in app.env.found_docs:
        out.joinpath(f"{page}.md").write_text(_twin(app, page), encoding="utf-8")
    out.joinpath("llms.txt").write_text("\n".join(_list(app)) + "\n", encoding="utf-8")


class _Translator(TextTranslator):
    """Sphinx's plain text, with what Markdown has for code."""

    def visit_literal(self, node: nodes.Element) -> None:
        self.add_text("`")

    depart_literal = visit_literal


# -- twins -------------------------------------------------------------------------------------------------------------


def _twin(app: Sphinx, page: str) -> str:
    source = Path(app.env.doc2path(page))
    text = source.read_text(encoding="utf-8")
    if "```{eval-rst}" in text:
        # Mostly docstrings, which only the build has brought together.
        tree = app.env.get_and_resolve_doctree(page, app.builder)
        translator = _Translator(tree, app.builder)
        tree.walkabout(translator)
        return str(translator.body)
    # Of a file, a page may show some lines only: the tree has them.
    included = (block for block in app.env.get_doctree(page).findall(nodes.literal_block) if "source" in block)

    def written_out(directive: re.Match[str]) -> str:
        if directive["name"] == "toctree":
            pages = [name for name in directive["body"].split() if name in app.env.found_docs]
            return "\n".join(f"- [{app.env.titles[name].astext()}]({name}.md)" for name in pages)
        if directive["name"] == "literalinclude":
            block = next(included)
            return f"```{block.get('language', '')}\n{block.astext().rstrip()}\n```"
        raise ValueError(f"{page}: docs/extensions/plain.py does not know how to write out {directive['name']!r}")

    return _DIRECTIVE.sub(written_out, _UNSEEN.sub("", text))


# -- llms.txt ----------------------------------------------------------------------------------------------------------


def _list(app: Sphinx) -> Iterator[str]:
    root = app.env.get_doctree(app.config.root_doc)
    yield f"# {app.config.project}"
    yield ""
    yield f"> {_first_paragraph(root)}"
    for tree in root.findall(addnodes.toctree):
        yield ""
        yield f"## {tree.get('caption') or 'Pages'}"
        yield ""
        for _, page in tree["entries"]:
            yield from _lines(app, page)


def _lines(app: Sphinx, page: str) -> Iterator[str]:
    summary = re.split(r"(?<=[.?!:]) (?=[A-Z])", _first_paragraph(app.env.get_doctree(page)))[0]
    yield f"- [{app.env.titles[page].astext()}]({app.config.html_baseurl}{page}.md)" + (
        f": {summary}" if summary else ""
    )
    for below in app.env.toctree_includes.get(page, ()):
        yield from _lines(app, below)


def _first_paragraph(tree: nodes.document) -> str:
    for section in tree.findall(nodes.section):
        for child in section.children:
            if isinstance(child, nodes.paragraph):
                return " ".join(child.astext().split())
    return ""


def setup(app: Sphinx) -> dict[str, Any]:
    # Headings underlined as Markdown does it.
    app.config.text_sectionchars = "=-~^"  # type: ignore[attr-defined]
    app.connect("build-finished", write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
