"""What autodoc needs to show the package as its users see it."""

from __future__ import annotations

import sys
from typing import Any

import sphinx.util.inspect
from sphinx.application import Sphinx
from sphinx.pycode import ModuleAnalyzer

import celery_durable


def comment_of(app: Sphinx, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """A value's ``#:`` comment stands in the module that makes it; autodoc looks where it is handed on."""
    if what != "data":
        return
    public = name.rpartition(".")[2]
    for module, contents in list(sys.modules.items()):
        if module.startswith("celery_durable.") and getattr(contents, public, None) is value:
            analyzer = ModuleAnalyzer.for_module(module)
            analyzer.analyze()
            if comment := analyzer.attr_docs.get(("", public)):
                lines[:] = comment
                return


def name_parameters() -> None:
    """``*args: P.args`` is printed so, and not as ``*args: ~P``."""
    usual = sphinx.util.inspect.stringify_annotation

    def stringify(annotation: Any, *args: Any, **kwargs: Any) -> str:
        # typing's, or those of typing_extensions.
        kind = {"ParamSpecArgs": "args", "ParamSpecKwargs": "kwargs"}.get(type(annotation).__name__)
        return f"{annotation.__origin__.__name__}.{kind}" if kind else usual(annotation, *args, **kwargs)

    sphinx.util.inspect.stringify_annotation = stringify  # type: ignore[assignment]


def where_it_is_public(app: Sphinx, env: Any, node: Any, content: Any) -> Any:
    """A public class that an annotation names by the module that makes it is described under its public name."""
    name = str(node.get("reftarget", "")).rpartition(".")[2]
    if node.get("refdomain") != "py" or name not in celery_durable.__all__:
        return None
    python, public = env.get_domain("py"), f"celery_durable.{name}"
    found = python.resolve_any_xref(env, node["refdoc"], app.builder, public, node, content)
    return found[0][1] if found else None


def setup(app: Sphinx) -> dict[str, Any]:
    name_parameters()
    app.connect("autodoc-process-docstring", comment_of)
    app.connect("missing-reference", where_it_is_public)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
