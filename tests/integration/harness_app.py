"""An application for the tests of the harness; nothing in it is durable."""

from __future__ import annotations

import os
import time

from celery import Celery

from tests.support.conf import configure
from tests.support.ledger import Ledger

app = configure(Celery("harness"))


@app.task
def add(a: int, b: int) -> int:
    Ledger.from_env().fire("add", a=a, b=b)
    return a + b


@app.task
def hang() -> None:
    Ledger.from_env().fire("hang", parent=os.getppid())
    time.sleep(3600)
