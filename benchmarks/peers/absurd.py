"""absurd: the program that runs in its environment. It answers requests on standard input; see ``peer.py``.

First run: a task of plain steps, which fails at its end. Replay: its second attempt.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

answers, sys.stdout = sys.stdout, sys.stderr

from absurd_sdk import Absurd  # noqa: E402

database = os.environ["BENCH_DATABASE"]
control = Path(sys.executable).with_name("absurdctl")
for words in (["init"], ["create-queue", "default"]):
    subprocess.run([control, *words], check=True, stdout=sys.stderr, env={**os.environ, "PGDATABASE": database})

absurd = Absurd(database)
inside: list[float] = []


class NotYet(Exception):
    """Ends the first attempt."""


@absurd.register_task("body")
def body(parameters: dict[str, Any], context: Any) -> None:
    begin = time.perf_counter()
    for number in range(parameters["steps"]):
        context.step("double", lambda number=number: 2 * number)
    inside.append(time.perf_counter() - begin)
    if len(inside) == 1:
        raise NotYet


def work() -> float:
    """One attempt: claimed, run and ended."""
    known = len(inside)
    while True:
        begin = time.perf_counter()
        absurd.work_batch()
        if len(inside) > known:
            return time.perf_counter() - begin


def answer(request: dict[str, Any]) -> dict[str, float]:
    inside.clear()
    absurd.spawn("body", {"steps": request["steps"]}, max_attempts=2, retry_strategy={"kind": "none"})
    whole = work()
    resumed = work()
    return {"whole": whole, "first": inside[0], "replay": inside[1], "resumed": resumed}


print(json.dumps({"ready": True}), file=answers, flush=True)
for line in sys.stdin:
    print(json.dumps(answer(json.loads(line))), file=answers, flush=True)
absurd.close()
