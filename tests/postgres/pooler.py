"""A real pgbouncer on this machine, which gives each transaction another session."""

import os
from pathlib import Path

from typing_extensions import override

from tests.ports import free_ports
from tests.stack import Stack, listens

READY_S = 60.0
PROGRAM = Path("/usr/sbin/pgbouncer")


class Pooler(Stack):
    """One pooler, with a few sessions for all that connect.

    Args:
        workdir: For its log and settings.
        postgres_port: Of the server behind it.
        mode: How long a client has a session: for a `session`, `transaction` or `statement`.

    Attributes:
        port: On which it listens.
    """

    def __init__(self, workdir: Path, *, postgres_port: int, mode: str = "transaction") -> None:
        llm_port, self.port = free_ports(2)
        super().__init__(workdir, llm_port=llm_port, ready_s=READY_S)
        self._postgres_port = postgres_port
        self._mode = mode
        self._user = "nobody" if os.geteuid() == 0 else ""

    @override
    def start(self) -> None:
        self._dir.mkdir(parents=True, exist_ok=True)
        settings = Path(f"/tmp/pgbouncer-{self.port}.ini")  # pytest's directories are closed
        settings.write_text(
            "[databases]\n"
            f"* = host=127.0.0.1 port={self._postgres_port} user=sidecar\n"
            "[pgbouncer]\n"
            f"listen_addr = 127.0.0.1\nlisten_port = {self.port}\nunix_socket_dir =\n"
            f"auth_type = any\npool_mode = {self._mode}\ndefault_pool_size = 2\n"
            "ignore_startup_parameters = extra_float_digits\n"
        )
        self._settings = settings
        self._spawn("pgbouncer", [str(PROGRAM), str(settings)], cwd="/", user=self._user)
        self._wait("pgbouncer", lambda: listens(self.port))

    @override
    def stop(self) -> None:
        super().stop()
        self._settings.unlink(missing_ok=True)

    def url(self, database_url: str) -> str:
        """Return the address at which the pooler offers a database of its server."""
        return database_url.replace(f":{self._postgres_port}/", f":{self.port}/")
