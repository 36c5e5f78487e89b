"""The settings of a Django project, with Celery's in the namespace that its manual recommends."""

from __future__ import annotations

import json
import os

from tests.support.conf import ENV

SECRET_KEY = "not one"
USE_TZ = True
INSTALLED_APPS: list[str] = []
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": os.environ.get("DURABLE_TEST_DJANGO_DB", "")}}

# What the test chose.
globals().update({f"CELERY_{name.upper()}": value for name, value in json.loads(os.environ.get(ENV, "{}")).items()})
# Belongs to somebody else.
DURABLE_RULES = "strict"
