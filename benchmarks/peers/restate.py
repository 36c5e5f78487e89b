"""Restate: the program that runs in its environment. It answers requests on standard input; see ``peer.py``.

First run: a handler of plain ``run`` actions, which fails at its end. Replay: the server's second attempt.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from typing import Any

answers, sys.stdout = sys.stdout, sys.stderr

import hypercorn.asyncio  # noqa: E402
import hypercorn.config  # noqa: E402
import restate  # noqa: E402

inside: list[float] = []
bench = restate.Service("bench")


class NotYet(Exception):
    """Ends the first attempt; the server tries again."""


def double(number: int) -> int:
    return 2 * number


@bench.handler()
async def body(context: restate.Context, steps: int) -> None:
    begin = time.perf_counter()
    for number in range(steps):
        await context.run_typed("double", double, number=number)
    inside.append(time.perf_counter() - begin)
    if len(inside) == 1:
        raise NotYet


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def serve(port: int) -> None:
    config = hypercorn.config.Config()
    config.bind = [f"127.0.0.1:{port}"]
    app: Any = restate.app(services=[bench])
    asyncio.run(hypercorn.asyncio.serve(app, config, shutdown_trigger=asyncio.Event().wait))


def post(url: str, content: Any) -> bytes:
    data = json.dumps(content).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as response:
        found: bytes = response.read()
        return found


def post_when_ready(url: str, content: Any) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            post(url, content)
            return
        except (urllib.error.URLError, ConnectionError):
            if time.monotonic() > deadline or server.poll() is not None:
                raise
            time.sleep(0.1)


def answer(request: dict[str, Any]) -> dict[str, float]:
    inside.clear()
    post(f"http://127.0.0.1:{ingress}/bench/body", request["steps"])
    return {"first": inside[0], "replay": inside[1]}


service, ingress, admin, node = free_port(), free_port(), free_port(), free_port()
folder = tempfile.TemporaryDirectory(prefix="bench-restate-")
server = subprocess.Popen(
    [os.environ["BENCH_RESTATE"], "--no-logo", "--node-name", "bench", "--base-dir", folder.name],
    cwd=folder.name,
    env={
        **os.environ,
        "DO_NOT_TRACK": "1",
        "RESTATE_DISABLE_TELEMETRY": "true",
        "RESTATE_LISTEN_MODE": "tcp",
        "RESTATE_BIND_ADDRESS": f"127.0.0.1:{node}",
        "RESTATE_ADVERTISED_ADDRESS": f"http://127.0.0.1:{node}",
        "RESTATE_INGRESS__BIND_ADDRESS": f"127.0.0.1:{ingress}",
        "RESTATE_ADMIN__BIND_ADDRESS": f"127.0.0.1:{admin}",
        "RESTATE_DEFAULT_RETRY_POLICY__INITIAL_INTERVAL": "50ms",
    },
    stdin=subprocess.DEVNULL,
    stdout=sys.stderr,
)
try:
    threading.Thread(target=serve, args=(service,), daemon=True).start()
    post_when_ready(f"http://127.0.0.1:{admin}/deployments", {"uri": f"http://127.0.0.1:{service}"})
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), file=answers, flush=True)
finally:
    server.terminate()
    server.wait()
    folder.cleanup()
