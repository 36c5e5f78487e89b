"""The settings of a Django project with durable tasks; where its database is, says the test that runs its tests."""

from __future__ import annotations

import json
import os

import pymysql

# Django wants mysqlclient; PyMySQL takes its place, and its version's.
pymysql.version_info = (2, 2, 7, "final", 0)
pymysql.install_as_MySQLdb()

SECRET_KEY = "not one"
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
INSTALLED_APPS = ["tests.acceptance.django_site.shop"]
#: Where the project's own database is, which its tests must not touch.
DATABASES = {"default": json.loads(os.environ["DJANGO_SITE_DATABASE"])}

CELERY_BROKER_URL = "memory://"
CELERY_RESULT_BACKEND = "cache+memory://"
CELERY_TASK_ALWAYS_EAGER = True
CELERY_TASK_EAGER_PROPAGATES = True
CELERY_DURABLE_DATABASE_URL = os.environ["DJANGO_SITE_JOURNAL"]
CELERY_DURABLE_SECRET = "long enough to be one"
