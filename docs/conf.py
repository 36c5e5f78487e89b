"""Sphinx: ``tox run -e docs`` builds the manual, warnings as errors."""

from __future__ import annotations

from importlib.metadata import version as installed

project = "celery_durable"
copyright = "celery_durable contributors"  # noqa: A001 (the name is Sphinx's)
release = version = installed("celery-durable")

extensions = ["myst_parser"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"celery_durable {release}"
html_copy_source = False

nitpicky = True
exclude_patterns = ["_build"]
