"""Celery settings on their way from a test into the processes it starts."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from celery import Celery

__all__ = ["ENV", "conf_env", "configure"]

#: Environment variable that carries the settings, as JSON.
ENV = "DURABLE_TEST_CONF"


def conf_env(*confs: Mapping[str, Any], **settings: Any) -> dict[str, str]:
    """The environment that hands these settings to a process; later ones win."""
    merged: dict[str, Any] = {}
    for conf in confs:
        merged.update(conf)
    merged.update(settings)
    return {ENV: json.dumps(merged)}


def configure(app: Celery) -> Celery:
    """Give an application under test the settings that its test chose, and return it.

    A module that tests run as a worker begins with ``app = configure(Celery("something"))``.
    """
    app.conf.update(json.loads(os.environ.get(ENV, "{}")))
    return app
