"""A real PostgreSQL on this machine, from Debian's package, with a database for each test."""

import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, LiteralString, cast

import psycopg
from typing_extensions import override

from sidecar.journal.postgres.connection import connect
from sidecar.journal.postgres.schema import migrate
from tests.ports import free_ports
from tests.stack import Stack, listens

READY_S = 120.0
_TEMPLATE = "journal_template"


def binaries() -> Path | None:
    """Return the directory of the server's programs; None where it is not installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    return found[-1].parent if found else None


class PostgresServer(Stack):
    """One server. Its data are durable: it may be killed and started again.

    Args:
        workdir: For its log.
        fsync: Whether what is committed survives a power cut; the tests need not wait for it.

    Attributes:
        port: On which it listens; the same over restarts.
    """

    _STOP_SIGNALS: ClassVar[Mapping[str, signal.Signals]] = {"postgres": signal.SIGINT}

    def __init__(self, workdir: Path, *, fsync: bool = False) -> None:
        llm_port, self.port = free_ports(2)
        super().__init__(workdir, llm_port=llm_port, ready_s=READY_S)
        # PostgreSQL refuses to run as root, and pytest's directories are closed to others.
        self._user = "nobody" if os.geteuid() == 0 else ""
        self._home = Path(tempfile.mkdtemp(prefix="sidecar-postgres-"))
        self._fsync = "on" if fsync else "off"
        self._numbers = itertools.count(1)

    @override
    def start(self) -> None:
        self._dir.mkdir(parents=True, exist_ok=True)
        self._home.chmod(0o755)
        data = self._home / "data"
        data.mkdir(mode=0o700)
        if self._user:
            os.chown(data, pwd.getpwnam(self._user).pw_uid, -1)
        self._make_data(data)
        self.start_postgres()
        self._prepare()

    def _make_data(self, data: Path) -> None:
        """Make the server's data in an empty directory."""
        words = ["--auth=trust", "-U", "sidecar", "-E", "utf8", "--locale=C", "--no-sync"]
        self._run_as_user("initdb", *words, "-D", str(data))

    def _prepare(self) -> None:
        """Make what the tests find on a server that has just started."""
        with connect(self.url("postgres")) as admin:
            admin.execute(f"CREATE DATABASE {_TEMPLATE}")
        with connect(self.url(_TEMPLATE)) as template:
            migrate(template)

    def _run_as_user(self, program: str, *words: str) -> None:
        found = binaries()
        assert found is not None, "PostgreSQL is not installed: make debian"
        subprocess.run(
            [str(found / program), *words],
            check=True,
            user=self._user or None,
            cwd="/",
            capture_output=True,
            timeout=READY_S,
        )

    @override
    def stop(self) -> None:
        super().stop()
        shutil.rmtree(self._home, ignore_errors=True)

    def url(self, database: str) -> str:
        """Return the address of a database."""
        return f"postgresql://sidecar@127.0.0.1:{self.port}/{database}"

    def database(self, *, migrated: bool = True) -> str:
        """Make a database and return its address; with the journal's tables, if `migrated`."""
        name = f"journal_{next(self._numbers)}"
        template = _TEMPLATE if migrated else "template0"
        with connect(self.url("postgres")) as admin:
            admin.execute(cast("LiteralString", f"CREATE DATABASE {name} TEMPLATE {template}"))
        return self.url(name)

    def emptied(self) -> str:
        """Return the address of the one shared database, with a journal that holds nothing."""
        with connect(self.url(_TEMPLATE)) as shared:
            shared.execute(
                # A fifth of what TRUNCATE costs where there is little to delete.
                "DELETE FROM turns; DELETE FROM batches; DELETE FROM successors;"
                " DELETE FROM commands; DELETE FROM once; DELETE FROM spent; DELETE FROM calls;"
                " DELETE FROM lanes; DELETE FROM tombstones; DELETE FROM replicas;"
                " UPDATE writer SET owner = '', epoch = 0, until = '-infinity', commits = 0,"
                " installation = NULL, copied_from = ''"
            )
        return self.url(_TEMPLATE)

    def start_postgres(self) -> None:
        """Start the server on its data and wait until it answers."""
        found = binaries()
        assert found is not None
        command = [str(found / "postgres"), "-D", str(self._home / "data")]
        command += ["-h", "127.0.0.1", "-p", str(self.port), "-k", ""]
        for setting in ("shared_buffers=32MB", "max_connections=60", f"fsync={self._fsync}"):
            command += ["-c", setting]
        # SIGQUIT also ends PostgreSQL's own child processes.
        self._spawn(
            "postgres",
            command,
            cwd="/" if self._user else None,
            farewell=signal.SIGQUIT,
            user=self._user,
        )
        self._wait("postgres", lambda: listens(self.port) and self._answers())

    def run(self, program: str, *words: str) -> None:
        """Run a program that comes with the server; fail if it does."""
        found = binaries()
        assert found is not None
        subprocess.run([str(found / program), *words], check=True, timeout=READY_S)

    def crash(self) -> None:
        """End the server and every process of it at once: it recovers when it is started again."""
        self._end("postgres", signal.SIGQUIT)

    def end_sessions(self) -> None:
        """End every other session, as an administrator or a failover does."""
        with connect(self.url("postgres")) as admin:
            admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
            )

    def _answers(self) -> bool:
        try:
            connect(self.url("postgres")).close()
        except psycopg.Error:
            return False
        return True


class Standby(PostgresServer):
    """A copy of a server, which follows it, and takes its place when it is told to.

    Args:
        primary: The server, which runs.
        workdir: For its log.
    """

    def __init__(self, primary: PostgresServer, workdir: Path) -> None:
        super().__init__(workdir)
        self._primary = primary

    @override
    def _make_data(self, data: Path) -> None:
        words = ["-h", "127.0.0.1", "-p", str(self._primary.port), "-U", "sidecar"]
        words += ["-D", str(data), "-R", "-X", "stream", "--checkpoint=fast", "--no-sync"]
        self._run_as_user("pg_basebackup", *words)

    @override
    def _prepare(self) -> None:
        """From here on the primary answers a commit when it is here too."""
        with connect(self._primary.url("postgres")) as admin:
            admin.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
            admin.execute("SELECT pg_reload_conf()")

    def promote(self) -> None:
        """Take the primary's place."""
        with connect(self.url("postgres")) as admin:
            admin.execute("SELECT pg_promote()")
