"""The sidecars of the kill loop: one, or several on one database behind a round-robin proxy."""

import secrets
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from sidecar.journal.postgres.connection import connect
from sidecar.private import LINK_TOKEN_FILE
from tests.chaos.lettas import Stuck, answers, start
from tests.chaos.mutated_sidecar import MUTATIONS
from tests.fault_proxy import FaultProxy
from tests.ports import free_port
from tests.postgres.server import PostgresServer
from tests.sidecar_process import without_settings
from tests.warm import Warm, WarmProcess

SIDECAR_ENV = {
    "SIDECAR_CONSOLE": "0",
    "SIDECAR_LOG_JSON": "1",
    "SIDECAR_POST_MAX_TURNS": "4",
    "SIDECAR_POST_MAX_AGE_S": "0.4",
    "SIDECAR_ORPHAN_S": "3.0",
    "SIDECAR_DRAIN_CALLS_S": "0",
    "SIDECAR_DRAIN_FLUSH_S": "5",
}
SKEWS_S = (0.0, 60.0, -60.0)
"""By how much the clock of each replica is ahead."""


class Child:
    """A process that is started again under the same name.

    Args:
        name: Of the process.
        log: Where it writes.
        imported: Starts it; None: what has imported this checkout.
    """

    def __init__(self, name: str, log: Path, *, imported: Warm | None = None) -> None:
        self.name = name
        self.log = log
        self._imported = imported
        self.process: WarmProcess | None = None

    def start(self, program: Sequence[str], env: Mapping[str, str]) -> None:
        self.process = start(program, self.log, env, imported=self._imported)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def stop(self, within_s: float) -> None:
        """Send SIGTERM and wait; kill a process that does not end."""
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise Stuck(f"{self.name} did not stop in {within_s:g} s") from None

    def signal(self, number: signal.Signals) -> None:
        if self.process is not None:
            self.process.send_signal(number)


class Sidecar(Child):
    """One sidecar.

    Attributes:
        port: On which it listens.
        data_dir: Its own.
        network: Between it and the database; None: its journal is a file.
    """

    def __init__(
        self, name: str, directory: Path, env: Mapping[str, str], database: PostgresServer | None
    ) -> None:
        super().__init__(name, directory / f"{name}.log")
        self.port = free_port()
        self.data_dir = Path(env["SIDECAR_DATA_DIR"])
        self._env = without_settings() | SIDECAR_ENV | {**env, "SIDECAR_PORT": str(self.port)}
        self.network: FaultProxy | None = None
        if database is not None:
            self.network = FaultProxy(database.port)
            url = database.url("postgres").replace(f":{database.port}/", f":{self.network.port}/")
            self._env["SIDECAR_JOURNAL_URL"] = url
        mutated = env["CHAOS_MUTATION"] in MUTATIONS
        module = "tests.chaos.mutated_sidecar" if mutated else "sidecar"
        if "CLOCK_FILE" in env and not mutated:
            module = "tests.moved_clock"
        self._program = [module, "run"]

    def run(self) -> None:
        """Start it."""
        self.start(self._program, self._env)

    @property
    def ended(self) -> bool:
        """Whether its process has ended by itself."""
        return self.process is not None and self.process.poll() is not None

    @property
    def answers(self) -> bool:
        """Whether it listens."""
        return answers(self.port)


class Sidecars:
    """All of them, and what is between them and the others.

    Args:
        directory: For their logs and data; `data` has the link's token, `spool` what workers spool.
        replicas: How many.
        env: Settings.
        database: Of the journal; None: it is a file.

    Attributes:
        link_port: Where workers connect.
    """

    def __init__(
        self,
        directory: Path,
        *,
        replicas: int,
        env: Mapping[str, str],
        database: PostgresServer | None,
    ) -> None:
        data = directory / "data"
        data.mkdir(mode=0o700)
        token = data / LINK_TOKEN_FILE
        token.write_text(secrets.token_hex(16), encoding="ascii")
        token.chmod(0o600)
        self.all: list[Sidecar] = []
        for n in range(replicas):
            own = {
                "SIDECAR_DATA_DIR": str(data if n == 0 else directory / f"data{n}"),
                "SIDECAR_SPOOL_DIR": str(directory / "spool"),
                "SIDECAR_LINK_TOKEN": token.read_text(encoding="ascii"),
            }
            if replicas > 1:
                clock = directory / f"clock{n}"
                clock.write_text(str(SKEWS_S[n % len(SKEWS_S)]), encoding="ascii")
                own |= {"SIDECAR_SECRET": "s" * 32, "CLOCK_FILE": str(clock)}
            name = "sidecar" if replicas == 1 else f"sidecar{n}"
            self.all.append(Sidecar(name, directory, {**env, **own}, database))
        ports = [sidecar.port for sidecar in self.all]
        self._networks = ExitStack()
        self.link_port = ports[0]
        if replicas > 1:
            self.link_port = self._networks.enter_context(FaultProxy(*ports)).port
        for sidecar in self.all:
            if sidecar.network is not None:
                self._networks.enter_context(sidecar.network)

    def heal(self) -> None:
        """End every fault."""
        for sidecar in self.all:
            sidecar.signal(signal.SIGCONT)
            if sidecar.network is not None:
                sidecar.network.resume()

    def end(self) -> None:
        """Kill them, and close what is between them and the others."""
        self.heal()
        for sidecar in self.all:
            sidecar.kill()
        self._networks.close()


def taken_over_in_s(
    database: PostgresServer, pid: int, *, within_s: float, pause: Callable[[float], None]
) -> float:
    """Return how long it takes until nothing belongs to a process that was killed just now.

    Args:
        database: Of the journal.
        pid: Of the process.
        within_s: The longest wait.
        pause: Waits for some seconds. Letta has to answer in one of them: while it is down, nobody
            claims a lane.

    Raises:
        Stuck: it took longer than `within_s`.
    """
    began_s = time.monotonic()
    # A name is HOST:PID:KERNEL:STARTED:NONCE.
    sql = (
        "SELECT (SELECT count(*) FROM replicas WHERE split_part(name, ':', 2) = %(pid)s)"
        " + (SELECT count(*) FROM calls WHERE closed_at_s IS NULL"
        "  AND split_part(replica, ':', 2) = %(pid)s)"
        " + (SELECT count(*) FROM lanes WHERE split_part(replica, ':', 2) = %(pid)s)"
    )
    with connect(database.url("postgres")) as connection:
        while time.monotonic() - began_s < within_s:
            ((left,),) = connection.execute(sql, {"pid": str(pid)}).fetchall()
            if not left:
                return time.monotonic() - began_s
            pause(0.05)
    raise Stuck(f"what a replica had is not taken over within {within_s:g} s")
