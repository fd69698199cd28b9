"""A sidecar and its commands on a journal in PostgreSQL, as their users run them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos.lettas import StandIn
from tests.e2e.test_cli import Cli
from tests.e2e.test_link_server import CANARY, worker
from tests.postgres.server import PostgresServer, Standby
from tests.postgres.wrong import WRONG
from tests.sidecar_process import SidecarProcess, eventually

pytestmark = pytest.mark.e2e

SECRET = "s" * 32


def on(postgres: PostgresServer) -> dict[str, str]:
    return {"SIDECAR_JOURNAL_URL": postgres.emptied(), "SIDECAR_SECRET": SECRET}


def test_a_killed_sidecar_goes_on_from_the_database(
    postgres: PostgresServer, letta: StandIn, tmp_path: Path
) -> None:
    """What one machine acked, another delivers after a kill, without the first one's disk."""
    env = {**on(postgres), **letta.env, "SIDECAR_POST_MAX_AGE_S": "3600"}
    first = SidecarProcess(tmp_path / "first", env)
    with first, worker(first) as peer:
        peer.open("c1", identity="ada")
        peer.turn("c1", "i1")
        peer.until("ack")
        first.kill()
    with SidecarProcess(tmp_path / "second", {**env, "SIDECAR_ORPHAN_S": "0.1"}) as second:
        eventually(second.is_at_rest)
        second.stop()
        assert CANARY not in "".join((*first.log, *second.log))
    assert [text.count(CANARY) for _, text in letta.messages()] == [1]


def test_a_failover_loses_and_doubles_nothing(letta: StandIn, tmp_path: Path) -> None:
    """When a copy takes the primary's place, what was acked is there, and calls go on."""
    with (
        PostgresServer(tmp_path / "primary") as primary,
        Standby(primary, tmp_path / "standby") as standby,
    ):
        database = primary.database()
        hosts = f"127.0.0.1:{primary.port},127.0.0.1:{standby.port}"
        url = f"postgresql://sidecar@{hosts}/{database.rpartition('/')[2]}"
        env = {"SIDECAR_JOURNAL_URL": f"{url}?target_session_attrs=read-write", **letta.env}
        with SidecarProcess(tmp_path / "data", {**env, "SIDECAR_SECRET": SECRET}) as sidecar:
            with worker(sidecar) as peer:
                peer.open("c1", identity="ada")
                peer.turn("c1", "i1", text="before")
                peer.until("ack")
                primary.crash()
                peer.turn("c1", "i2", seq=2, text="meanwhile")
                standby.promote()
                peer.until("ack", within_s=60.0)
                peer.turn("c1", "i3", seq=3, text="after")
                peer.until("ack", within_s=60.0)
                peer.send(type="call.close", call="c1", at_s=2.0)
            eventually(sidecar.is_at_rest)
    said = [text for _, text in letta.messages()]
    for words in ("before", "meanwhile", "after"):
        assert sum(words in text for text in said) == 1


def test_commands_work_beside_it_and_without_it(postgres: PostgresServer, tmp_path: Path) -> None:
    """Calls are shown, exported, and forgotten, with a sidecar running and with none."""
    env = on(postgres)
    cli = Cli(tmp_path / "data", **env)
    with SidecarProcess(tmp_path / "data", env) as sidecar:
        with worker(sidecar) as peer:
            for name, caller in (("c1", "ada"), ("c2", "bob")):
                peer.open(name, identity=caller)
                peer.turn(name, "i1")
                peer.until("ack")
                peer.send(type="call.close", call=name, at_s=2.0)
        eventually(sidecar.is_at_rest)
        assert [call["call"] for call in cli.json("calls", "list")] == ["default/c2", "default/c1"]
        assert CANARY in cli.ok("calls", "show", "c1")
        status = cli.json("journal", "status")
        assert (status["engine"], status["schema"]) == ("postgresql", status["newest"])
        assert f"process {sidecar.pid} of" in "".join(status["writers"])
        assert "@" not in status["place"]
        cli.ok("forget", "--caller", "id:ada", "--yes")
    assert [call["call"] for call in cli.json("calls", "list")] == ["default/c2"]
    assert cli.json("journal", "status")["writers"] == []
    cli.ok("forget", "--caller", "id:bob", "--yes")
    assert cli.json("calls", "list") == []


def test_the_doctor_looks_at_the_database(postgres: PostgresServer, tmp_path: Path) -> None:
    """It names the version, and says that a server without fsync loses acked turns."""
    cli = Cli(tmp_path / "data", **on(postgres))
    done = cli.run("doctor", "--json")
    assert done.returncode == 1
    found = {row["what"]: row for row in json.loads(done.stdout)}
    assert found["database"]["verdict"] == "ok"
    assert "fsync is off" in found["durability"]["found"]
    assert {found[name]["verdict"] for name in ("writes", "clocks", "lanes")} == {"ok"}


def test_a_journal_moves_from_the_file_and_back(postgres: PostgresServer, tmp_path: Path) -> None:
    """The file's calls are there after a copy into the database, and in a file copied from it."""
    with SidecarProcess(tmp_path / "data") as sidecar, worker(sidecar) as peer:
        peer.open("c1", identity="ada")
        peer.turn("c1", "i1")
        peer.until("ack")
        cli = Cli(tmp_path / "data")
        url = postgres.emptied()
        refused = cli.run("journal", "copy", str(tmp_path / "data"), url)
        assert refused.returncode == 1
        assert f"process {sidecar.pid}" in refused.stderr
    copied = cli.json("journal", "copy", str(tmp_path / "data"), url)
    assert copied["rows"]["turns"] == copied["copied"]["turns"] == 1
    moved = Cli(tmp_path / "data", SIDECAR_JOURNAL_URL=url)
    assert CANARY in moved.ok("calls", "show", "c1")
    assert "1 rows, 1 copied now" in moved.ok(
        "journal", "copy", url, str(tmp_path / "back" / "journal.db")
    )
    back = tmp_path / "back"
    assert CANARY in Cli(back).ok("calls", "show", "c1")


def test_a_restored_dump_is_a_journal(postgres: PostgresServer, tmp_path: Path) -> None:
    """A dump, made while a sidecar runs, restores into another database with every acked turn."""
    url, restored = on(postgres)["SIDECAR_JOURNAL_URL"], postgres.database(migrated=False)
    dump = tmp_path / "journal.dump"
    env = {"SIDECAR_JOURNAL_URL": url, "SIDECAR_SECRET": SECRET}
    with SidecarProcess(tmp_path / "data", env) as sidecar, worker(sidecar) as peer:
        peer.open("c1", identity="ada")
        peer.turn("c1", "i1")
        peer.until("ack")
        postgres.run("pg_dump", "--format=custom", f"--file={dump}", url)
    postgres.run("pg_restore", "--clean", "--if-exists", f"--dbname={restored}", str(dump))
    after = {**env, "SIDECAR_JOURNAL_URL": restored, "SIDECAR_ORPHAN_S": "0.1"}
    assert CANARY in Cli(tmp_path / "data", **after).ok("calls", "show", "c1")
    with SidecarProcess(tmp_path / "data", after) as again:
        eventually(again.is_at_rest)
    refused = Cli(tmp_path / "data", **after).run("backup", str(tmp_path / "copy.db"))
    assert refused.returncode == 1
    assert "pg_dump" in refused.stderr


@pytest.mark.parametrize("kind", WRONG)
def test_a_database_that_cannot_be_used_is_one_line(
    postgres: PostgresServer, tmp_path: Path, kind: str
) -> None:
    """`sidecar run` and a command exit with 2 and name what is wrong, without the URL."""
    wrong = WRONG[kind]
    url = wrong.arrange(postgres).replace("@", ":pass-word@")
    cli = Cli(tmp_path / "data", SIDECAR_JOURNAL_URL=url, SIDECAR_SECRET=SECRET)
    for command in (("run",), ("calls", "list"))[: 1 + wrong.reads]:
        done = cli.run(*command)
        assert done.returncode == 2, done
        (line,) = done.stderr.splitlines()
        assert wrong.message in line
        assert wrong.hint in line
        assert "pass-word" not in done.stdout + done.stderr
    assert "SIDECAR_JOURNAL_URL=***" in cli.ok("check")


def test_without_the_driver_it_says_what_to_install(tmp_path: Path) -> None:
    """Where the extra is not installed, the setting is named with the command that installs it."""
    hidden = "import sys; sys.modules['psycopg'] = None; from sidecar.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", hidden, "calls", "list"],
        env=os.environ
        | {"SIDECAR_DATA_DIR": str(tmp_path), "SIDECAR_JOURNAL_URL": "postgresql://h/d"},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 2
    assert "SIDECAR_JOURNAL_URL: install the driver: pip install" in done.stderr
