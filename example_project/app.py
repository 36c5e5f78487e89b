"""The Celery application of the shop.

Everything comes from the environment (see ``config.py``); with none of it set, the shop runs without any server:
``celery -A example_project.app worker``.
"""

from __future__ import annotations

from typing import Any

from celery import Celery

from .config import Config

config = Config.from_env()
config.make_directories()

app = Celery("shop", broker=config.broker, backend=config.result_backend, include=["example_project.tasks"])

app.conf.update(
    # -- what makes it durable --------------------------------------------------------------------------------
    durable_database_url=config.database,
    durable_outbox=config.outbox,
    durable_namespace=config.namespace,
    durable_secret=config.secret,
    # A whole worker that is killed says nothing; its orders go on when its leases have run out. 30 s is the
    # default and a good one. The demo has a minute, so it waits for three seconds only; the price is a renewal
    # of the leases every second.
    durable_lease_timeout=config.lease_timeout,
    # The doctor advises against so short a lease (CD911), and is right where bodies compute hard. These wait.
    durable_silence=["CD911"],
    # The default of 10 take-overs parks an order that kills every worker which touches it. Here the killer
    # comes from outside and means no order in particular, so the cap must not be what ends the demo.
    durable_max_attempts=100,
    # -- plain Celery -----------------------------------------------------------------------------------------
    task_default_queue=config.namespace,
    # One order at a time per process: an order that waits in a worker cannot be done by another.
    worker_prefetch_multiplier=1,
    # Where the broker has no event loop, Celery waits this long for a last word of a dead pool process, and the
    # worker takes no other order in its place meanwhile. The default is 10 s.
    worker_lost_wait=1.0,
    worker_hijack_root_logger=True,
    broker_connection_retry_on_startup=True,
)

if config.embedded_broker:
    folder = config.directory / "broker"
    transport: dict[str, Any] = {
        "data_folder_in": str(folder / "messages"),
        "data_folder_out": str(folder / "messages"),
        "control_folder": str(folder / "control"),
        # Otherwise every message moves through the system's temporary folder, and a killed worker leaves it there.
        "store_processed": True,
        "processed_folder": str(folder / "processed"),
        "polling_interval": 0.05,
    }
    # Remote control needs broadcasts, which on this transport are one more folder to poll.
    app.conf.update(broker_transport_options=transport, worker_enable_remote_control=False)
