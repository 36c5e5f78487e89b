"""DBOS Transact: the program that runs in its environment. It answers requests on standard input; see ``peer.py``.

First run: a workflow of plain steps. Replay: a fork that begins after the last step, so that each step is looked up.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

answers, sys.stdout = sys.stdout, sys.stderr

from dbos import DBOS  # noqa: E402

inside: list[float] = []


@DBOS.step()
def double(number: int) -> int:
    return 2 * number


@DBOS.workflow()
def body(steps: int) -> None:
    begin = time.perf_counter()
    for number in range(steps):
        double(number)
    inside.append(time.perf_counter() - begin)


def answer(request: dict[str, Any]) -> dict[str, float]:
    steps = request["steps"]
    begin = time.perf_counter()
    handle = DBOS.start_workflow(body, steps)
    handle.get_result(polling_interval_sec=0.001)
    whole = time.perf_counter() - begin
    first = inside.pop()
    fork = DBOS.fork_workflow(handle.get_workflow_id(), steps + 1)
    fork.get_result(polling_interval_sec=0.05)
    return {"whole": whole, "first": first, "replay": inside.pop()}


DBOS(
    config={
        "name": "bench",
        "system_database_url": os.environ["BENCH_DATABASE"],
        "log_level": "ERROR",
        "application_version": "1",
    }
)
DBOS.launch()
print(json.dumps({"ready": True}), file=answers, flush=True)
for line in sys.stdin:
    print(json.dumps(answer(json.loads(line))), file=answers, flush=True)
DBOS.destroy()
