"""Brokers for tests: each test gets an empty one, or a corner of its own in one that others use."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import kombu
import redis
from kombu.transport import memory

from .backends import Backend, Missing, address
from .servers import OwnRedis, OwnServer, ServerFailed, accepts

__all__ = ["FINDERS", "MessageBroker"]


class MessageBroker:
    """A broker for one test, with the result backend that goes with it."""

    def __init__(
        self,
        kind: str,
        url: str,
        version: str,
        *,
        result_backend: str,
        transport: str | None = None,
        transport_options: dict[str, Any] | None = None,
        result_backend_transport_options: dict[str, Any] | None = None,
        flush: Callable[[MessageBroker], None],
        server: OwnServer | None = None,
    ) -> None:
        #: ``filesystem``, ``redis``, ``rabbitmq`` or ``memory``.
        self.kind = kind
        self.url = url
        self.version = version
        #: The class, as Kombu names one, where it is not the one of the URL's scheme.
        self.transport = transport
        self.transport_options = transport_options or {}
        self.result_backend = result_backend
        self.result_backend_transport_options = result_backend_transport_options or {}
        #: The default queue, unlike that of any other test.
        self.queue = f"durable-test-{secrets.token_hex(6)}"
        #: The process, where it is our own and a test may stop and start it; else None.
        self.server = server
        self.queues = [self.queue]
        self._flush = flush

    def __repr__(self) -> str:
        return f"<{self.kind} {self.version}: {self.url} {self.queue}>"

    @property
    def conf(self) -> dict[str, Any]:
        """The Celery settings that connect an application to it."""
        return {
            "broker_url": self.url,
            "broker_transport": self.transport,
            "broker_transport_options": self.transport_options,
            "broker_connection_retry_on_startup": True,
            "result_backend": self.result_backend,
            "result_backend_transport_options": self.result_backend_transport_options,
            "task_default_queue": self.queue,
        }

    def another_queue(self, name: str) -> str:
        """The name of a further queue of this test; it goes when the test ends."""
        queue = f"{self.queue}-{name}"
        self.queues.append(queue)
        return queue

    def flush(self) -> None:
        """Lose every message (on Redis: everything, results too), as a broker does that is wiped."""
        self._flush(self)

    def connect(self) -> kombu.Connection:
        """A new connection; close it."""
        return kombu.Connection(
            self.url, transport=self.transport, transport_options=self.transport_options, connect_timeout=3
        )


def _results_in_files(folder: Path) -> str:
    """A result backend without a server, for brokers that are none."""
    results = folder / "results"
    results.mkdir(exist_ok=True)
    return f"file://{results}"


class _Memory:
    """Kombu's queues in this very process: for workers in threads of the test only."""

    version = f"kombu {kombu.__version__}"
    where = "inside the test process"

    @contextmanager
    def lend(self, folder: Path) -> Iterator[MessageBroker]:
        broker = MessageBroker(
            "memory",
            "memory://",
            self.version,
            result_backend="cache+memory://",
            transport_options={"polling_interval": 0.02},
            flush=lambda broker: memory.Channel.queues.clear(),
        )
        yield broker
        broker.flush()

    def close(self) -> None:
        pass


class _Filesystem:
    """A folder of the test."""

    version = f"kombu {kombu.__version__}"
    where = "a folder per test"

    @contextmanager
    def lend(self, folder: Path) -> Iterator[MessageBroker]:
        messages, control = folder / "messages", folder / "control"
        messages.mkdir(exist_ok=True)
        control.mkdir(exist_ok=True)

        def flush(broker: MessageBroker) -> None:
            for message in messages.iterdir():
                message.unlink(missing_ok=True)

        yield MessageBroker(
            "filesystem",
            "filesystem://",
            self.version,
            result_backend=_results_in_files(folder),
            transport="tests.support.filesystem:Transport",
            transport_options={
                "data_folder_in": str(messages),
                "data_folder_out": str(messages),
                "control_folder": str(control),
                "polling_interval": 0.05,
            },
            flush=flush,
        )

    def close(self) -> None:
        pass


class _Redis:
    """A Redis: our own, which is wiped for every test, or somebody's, where a test has a prefix of its own."""

    def __init__(self, url: str, own: OwnServer | None = None) -> None:
        self.url = url
        self.own = own
        self._client = redis.Redis.from_url(url, socket_connect_timeout=3)
        try:
            self.version = str(self._client.info("server")["redis_version"])
        except redis.RedisError as error:
            raise Missing(f"{_without_password(url)}: {error}") from error
        self.where = f"{_place(url, 6379)} ({'our own' if own else 'service'})"

    @contextmanager
    def lend(self, folder: Path) -> Iterator[MessageBroker]:
        options: dict[str, Any] = {}
        if self.own is None:
            options["global_keyprefix"] = f"durable-test-{secrets.token_hex(6)}:"
        else:
            self.own.start()
            self._client.flushall()

        def flush(broker: MessageBroker) -> None:
            if self.own is not None:
                self._client.flushall()
                return
            for key in self._client.scan_iter(f"{options['global_keyprefix']}*", count=1000):
                self._client.delete(key)

        broker = MessageBroker(
            "redis",
            self.url,
            self.version,
            result_backend=self.url,
            transport_options=dict(options),
            result_backend_transport_options=dict(options),
            flush=flush,
            server=self.own,
        )
        yield broker
        if self.own is None:
            broker.flush()

    def close(self) -> None:
        self._client.close()
        if self.own is not None:
            self.own.remove()


class _RabbitMQ:
    """A RabbitMQ that others may use too: a test has queues of its own, deleted when it ends."""

    def __init__(self, url: str) -> None:
        self.url = url
        try:
            with kombu.Connection(url, connect_timeout=3) as connection:
                connection.ensure_connection(max_retries=1, timeout=5)
                properties = connection.connection.server_properties
        except (OSError, kombu.exceptions.OperationalError) as error:
            raise Missing(f"{_without_password(url)}: {error} (set DURABLE_TEST_RABBITMQ_URL)") from error
        self.version = str(properties.get("version", "of unknown version"))
        self.where = f"{_place(url, 5672)} (service)"

    @contextmanager
    def lend(self, folder: Path) -> Iterator[MessageBroker]:
        broker = MessageBroker(
            "rabbitmq", self.url, self.version, result_backend=_results_in_files(folder), flush=self._purge
        )
        try:
            yield broker
        finally:
            self._delete(broker)

    def _purge(self, broker: MessageBroker) -> None:
        for queue in broker.queues:
            self._each_on_its_own_channel(broker, lambda channel, name=queue: channel.queue_purge(name))

    def _delete(self, broker: MessageBroker) -> None:
        for queue in broker.queues:
            self._each_on_its_own_channel(broker, lambda channel, name=queue: channel.queue_delete(name))
            self._each_on_its_own_channel(broker, lambda channel, name=queue: channel.exchange_delete(name))

    @staticmethod
    def _each_on_its_own_channel(broker: MessageBroker, work: Callable[[Any], object]) -> None:
        # A queue that was never declared is an error that closes the channel.
        with broker.connect() as connection:
            try:
                work(connection.default_channel)
            except connection.channel_errors:
                pass

    def close(self) -> None:
        pass


def _place(url: str, default_port: int) -> str:
    connection = kombu.Connection(url)
    return f"{connection.hostname or '127.0.0.1'}:{connection.port or default_port}"


def _without_password(url: str) -> str:
    return str(kombu.Connection(url).as_uri())


def _find_redis() -> Backend[MessageBroker]:
    given = address("redis")
    if given and given != "bundled":
        return _Redis(given)
    try:
        own = OwnRedis()
        own.start()
    except ServerFailed as error:
        usual = "redis://127.0.0.1:6379/0"
        if given == "bundled" or not accepts(6379):
            raise Missing(f"no server at 127.0.0.1:6379, and {error}") from error
        return _Redis(usual)
    return _Redis(f"redis://127.0.0.1:{own.port}/0", own)


def _find_rabbitmq() -> Backend[MessageBroker]:
    given = address("rabbitmq")
    if given == "bundled":
        raise Missing("there is no bundled RabbitMQ")
    if not given and not accepts(5672):
        raise Missing("no server at 127.0.0.1:5672 (set DURABLE_TEST_RABBITMQ_URL)")
    return _RabbitMQ(given or "amqp://guest:guest@127.0.0.1:5672//")


#: Kind of broker → how to find it. The order is that of the reports.
FINDERS: dict[str, Callable[[], Backend[MessageBroker]]] = {
    "filesystem": _Filesystem,
    "redis": _find_redis,
    "rabbitmq": _find_rabbitmq,
    "memory": _Memory,
}
