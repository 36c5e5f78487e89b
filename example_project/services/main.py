"""Runs a service as a process of its own: ``python -m example_project.services.gateway``."""

from __future__ import annotations

import signal
import threading
from pathlib import Path

import click

from .service import Faults, Server, Service


def main(service: type[Service]) -> None:
    """Parse the command line and serve until SIGTERM or Ctrl-C."""

    @click.command(help=f"The {service.name}: takes POST {' and '.join(service.paths)}, shows GET /ledger.")
    @click.option("--port", default=service.default_port, show_default=True, help="0 takes any free port.")
    @click.option("--ledger", default=f"{service.name}.db", show_default=True, type=click.Path(path_type=Path))
    @click.option("--url-file", type=click.Path(path_type=Path), help="Write the address here once it answers.")
    @click.option("--latency", nargs=2, type=float, default=(0.0, 0.0), help="Seconds before the work: least, most.")
    @click.option("--down", default=0.0, help="Share of requests refused with 503 before anything is done.")
    @click.option("--slow", default=0.0, help="Share of requests answered late although the work is done.")
    @click.option("--seed", type=int, help="Seed of the faults.")
    def run(
        port: int,
        ledger: Path,
        url_file: Path | None,
        latency: tuple[float, float],
        down: float,
        slow: float,
        seed: int | None,
    ) -> None:
        faults = Faults(latency=latency, down=down, slow=slow, seed=seed)
        server = Server(service(ledger, faults), port)

        def stop(*_: object) -> None:
            # shutdown() waits for the loop, which runs in this very thread.
            threading.Thread(target=server.shutdown).start()

        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)
        click.echo(f"{service.name} answers at {server.url}, ledger in {ledger}")
        if url_file is not None:
            # Renamed into place: whoever sees the file sees the whole address.
            draft = url_file.with_suffix(".part")
            draft.write_text(server.url)
            draft.replace(url_file)
        server.serve_forever(poll_interval=0.1)
        server.server_close()
        server.service.ledger.close()

    run()
