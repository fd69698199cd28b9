"""This version beside the release before, and in its place, as those who upgrade meet them."""

import ast
import json
import os
import secrets
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest

from sidecar.journal.postgres.schema import OLDEST_READER, migrations
from sidecar.journal.sqlite.file import MIGRATIONS
from sidecar.private import LINK_TOKEN_FILE
from tests import release_before
from tests.chaos.ledger import Verdict, judge, read_ledgers
from tests.chaos.lettas import StandIn
from tests.chaos.sidecars import SIDECAR_ENV, Child
from tests.fault_proxy import FaultProxy
from tests.job_process import Job
from tests.postgres.server import PostgresServer
from tests.sidecar_process import SidecarProcess, eventually, get, warm
from tests.warm import Warm

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
REPLICAS: Final = 3
TALK: Final = {"CHAOS_CALLS": "2", "CHAOS_TURN_EVERY_S": "0.4"}
MORE_TURNS: Final = 5


class Talk(Child):
    """A worker that talks all the time (`tests.chaos.killed_worker`), of a version.

    Args:
        name: Of the worker.
        directory: For its files; `data` has the link's token.
        port: Where it connects.
        version: Has imported it.
    """

    def __init__(self, name: str, directory: Path, port: int, version: Warm) -> None:
        super().__init__(name, directory / f"{name}.log", imported=version)
        self._ledger = directory / f"{name}.ledger"
        link, spool = f"ws://127.0.0.1:{port}/link", str(directory / "spool")
        words = [name, link, spool, str(self._ledger), "1"]
        env = os.environ | TALK | {"SIDECAR_DATA_DIR": str(directory / "data")}
        self.start(["tests.chaos.killed_worker", *words], env)

    @property
    def ledger(self) -> bytes:
        """What it noted."""
        return self._ledger.read_bytes() if self._ledger.exists() else b""

    def goes_on(self) -> None:
        """Wait until some more of its turns are acked."""
        acked = self.ledger.count(b"acked") + MORE_TURNS
        eventually(lambda: self.ledger.count(b"acked") >= acked, saying=self.log.read_text())

    def end(self) -> None:
        """Let it end its calls."""
        self.stop(within_s=30.0)
        assert self.process is not None
        assert self.process.wait(0.0) == 0, self.log.read_text()


def version_of(sidecar: SidecarProcess) -> str:
    """Return what the sidecar's description of its HTTP API says."""
    return str(json.loads(get(f"{sidecar.url}/openapi.json")[1])["info"]["version"])


def spooled(directory: Path) -> list[Path]:
    """Return the files that workers have left for the sidecars."""
    return list((directory / "spool").glob("*.jsonl"))


def test_replicas_are_upgraded_one_by_one(
    postgres: PostgresServer, letta: StandIn, tmp_path: Path
) -> None:
    """While replicas are replaced by this version, and one by the old again, no turn is lost."""
    token = tmp_path / "data" / LINK_TOKEN_FILE
    token.parent.mkdir(mode=0o700)
    token.write_text(secrets.token_hex(16), encoding="ascii")
    token.chmod(0o600)
    env = SIDECAR_ENV | {
        **letta.env,
        "SIDECAR_JOURNAL_URL": postgres.database(migrated=False),
        "SIDECAR_SECRET": "s" * 32,
        "SIDECAR_LINK_TOKEN": token.read_text(encoding="ascii"),
        "SIDECAR_SPOOL_DIR": str(tmp_path / "spool"),
    }

    def replica(place: int, version: Warm, port: int = 0) -> SidecarProcess:
        return SidecarProcess(tmp_path / f"data{place}", env, port=port, imported=version)

    with ExitStack() as stack:
        old = release_before.warm()
        replicas = [stack.enter_context(replica(n, old)) for n in range(REPLICAS)]
        network = stack.enter_context(FaultProxy(*(one.port for one in replicas)))
        talks = [
            Talk("old", tmp_path, network.port, old),
            Talk("new", tmp_path, network.port, warm()),
        ]
        for talk in talks:
            stack.callback(talk.kill)
        steps = [*((n, warm()) for n in range(REPLICAS)), (0, old)]
        for place, version in steps:
            for talk in talks:
                talk.goes_on()
            replicas[place].stop()
            replicas[place] = stack.enter_context(replica(place, version, replicas[place].port))
        for talk in talks:
            talk.goes_on()
            talk.end()
        eventually(lambda: not spooled(tmp_path) and all(one.is_at_rest() for one in replicas))
        verdict = judge(read_ledgers(talk.ledger for talk in talks), letta.messages())
        assert verdict == Verdict(turns=verdict.turns, lost=0, doubled=0, misordered=0, mixed=0)
        assert verdict.turns >= len(steps) * len(talks) * MORE_TURNS


@pytest.mark.parametrize("of_worker", ["old", "new"])
def test_worker_and_sidecar_are_upgraded_one_after_the_other(
    letta: StandIn, tmp_path: Path, of_worker: str
) -> None:
    """A worker of either version goes on with its call when its sidecar becomes the other's."""
    code = release_before.unpacked() if of_worker == "old" else None
    data, env = tmp_path / "data", {**letta.env, "SIDECAR_DRAIN_CALLS_S": "0"}
    with ExitStack() as stack:
        sidecar = SidecarProcess(data, env, imported=release_before.warm())
        stack.enter_context(sidecar)
        assert version_of(sidecar) == release_before.VERSION
        job = stack.enter_context(Job("job", sidecar, tmp_path / "spool", code=code))
        job.ask(do="open")
        job.say("before", "the answer")
        sidecar.stop()
        job.say("meanwhile", acked=False)
        sidecar = SidecarProcess(data, env, port=sidecar.port)
        stack.enter_context(sidecar)
        assert version_of(sidecar) != release_before.VERSION
        job.say("after")
        job.ask(do="close")
        eventually(sidecar.is_at_rest)
    text = " ".join(text for _, text in letta.messages())
    assert [text.count(f">{word}<") for word in ("before", "meanwhile", "after")] == [1, 1, 1]


def test_a_journal_of_the_release_before_is_taken_up(letta: StandIn, tmp_path: Path) -> None:
    """What a killed sidecar of the release before acked, this version delivers from its file."""
    env = {**letta.env, "SIDECAR_POST_MAX_AGE_S": "3600"}
    with SidecarProcess(tmp_path / "data", env, imported=release_before.warm()) as old:
        with Job("job", old, tmp_path / "spool") as job:
            job.ask(do="open")
            job.say("first", "second")
        old.kill()
    with SidecarProcess(tmp_path / "data", {**env, "SIDECAR_ORPHAN_S": "0.1"}) as new:
        eventually(new.is_at_rest)
    text = " ".join(text for _, text in letta.messages())
    assert [text.count(f">{word}<") for word in ("first", "second")] == [1, 1]


def test_what_is_released_of_the_tables_stays() -> None:
    """No migration of the release before has changed, and its sidecars work on today's tables."""
    released = release_before.unpacked() / "sidecar/journal"
    files = sorted((released / "postgres/migrations").glob("*.sql"))
    assert files
    assert {int(file.stem): file.read_text() for file in files}.items() <= migrations().items()
    assert len(files) >= OLDEST_READER
    of_file = next(
        ast.literal_eval(node.value)
        for node in ast.parse((released / "sqlite/file.py").read_text()).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "MIGRATIONS"
    )
    assert of_file
    assert of_file.items() <= MIGRATIONS.items()
