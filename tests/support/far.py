"""A database that is far away: every answer takes so many milliseconds more, however many are asked for.

The line is a process of its own, so that a test which watches a worker of hundreds of greenlets does not slow it down.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from sqlalchemy.engine import make_url

__all__ = ["far"]

ROOT = Path(__file__).resolve().parents[2]


@contextlib.contextmanager
def far(url: str, milliseconds: float) -> Iterator[str]:
    """The URL under which a PostgreSQL or MariaDB is that far away; half of it on the way there."""
    given = make_url(url)
    port = given.port or {"postgresql": 5432, "mysql": 3306}[given.get_backend_name()]
    target = [given.host or "127.0.0.1", str(port), str(milliseconds / 2000)]
    process = subprocess.Popen(
        [sys.executable, "-m", __name__, *target], cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert process.stdout is not None
        listening = int(process.stdout.readline())
        yield given.set(host="127.0.0.1", port=listening).render_as_string(hide_password=False)
    finally:
        process.kill()
        process.communicate()


async def _pass_on(source: asyncio.StreamReader, sink: asyncio.StreamWriter, delay: float) -> None:
    loop, pieces = asyncio.get_running_loop(), asyncio.Queue[tuple[float, bytes]]()

    async def deliver() -> None:
        while True:
            due, piece = await pieces.get()
            await asyncio.sleep(due - loop.time())
            if not piece:
                sink.close()
                return
            sink.write(piece)
            await sink.drain()

    delivering = asyncio.create_task(deliver())
    with contextlib.suppress(OSError):
        while piece := await source.read(65536):
            pieces.put_nowait((loop.time() + delay, piece))
    pieces.put_nowait((loop.time() + delay, b""))
    with contextlib.suppress(OSError):
        await delivering


async def _serve(host: str, port: int, delay: float) -> None:
    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(host, port)
        await asyncio.gather(_pass_on(reader, back, delay), _pass_on(there, writer, delay))

    server = await asyncio.start_server(accept, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])))
