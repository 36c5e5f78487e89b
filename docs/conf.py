"""Sphinx: ``make docs`` and ``tox run -e docs`` build the manual, warnings as errors. Nothing is fetched."""

from __future__ import annotations

import sys
from importlib.metadata import version as installed
from pathlib import Path

HERE = Path(__file__).parent
# What is documented is the package beside this folder.
sys.path[:0] = [str(HERE / "extensions"), str(HERE.parent)]

from celery_durable.errors import MANUAL  # noqa: E402

project = "celery_durable"
copyright = "celery_durable contributors"  # noqa: A001 (the name is Sphinx's)
release = version = installed("celery-durable")

# The last three are ours.
extensions = ["myst_parser", "sphinx.ext.autodoc", "from_code", "codes", "plain"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"celery_durable {release}"
html_copy_source = False
html_baseurl = f"{MANUAL}/"
# The twins of plain.py take the place of what Sphinx would show.
html_show_sourcelink = False

autodoc_class_signature = "separated"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
add_module_names = False
python_maximum_signature_line_length = 88
toc_object_entries_show_parents = "hide"

# A class is shown as its users meet it: most are made by the library, and a dataclass by its fields.
autodoc_default_options = {"exclude-members": "__init__, __new__, with_traceback, add_note"}

nitpicky = True
nitpick_ignore_regex = [
    # Of Python, Celery and SQLAlchemy, whose manuals are not fetched.
    (r"py:.*", r"(.*\.)?(Callable|Coroutine|Iterable|Iterator|datetime|timedelta|UUID|logging|send)"),
    (r"py:.*", r"(.*\.)?(AsyncResult|Celery|Connection|EagerResult|Session|Signature|scoped_session)"),
    # Type variables.
    (r"py:class", r"(.*\.)?[A-Z](\.k?w?args)?"),
    # Ours, and not for users to name.
    (r"py:class", r"(.*\.)?(DidNotHappen|Unknown|DjangoConnection|Giver|Isolation|Joinable|Sendable)"),
    (r"py:class", r"(.*\.)?(CoroutineTask|Declares|DeclaresBound|DurableLogger|DurableSignature)"),
]
exclude_patterns = ["_build", "extensions"]
