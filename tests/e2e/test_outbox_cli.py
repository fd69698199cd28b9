"""`sidecar outbox`: dead letters are shown, replayed and dropped, with and without a sidecar."""

import time
from collections import Counter
from pathlib import Path

import anyio
import pytest

from sidecar.journal.policy import PostPolicy
from sidecar.journal.sqlite import SqliteJournal
from sidecar.model import AgentRef, Call, Turn
from tests.e2e.test_cli import Cli
from tests.sidecar_process import SidecarProcess, eventually

pytestmark = pytest.mark.e2e


async def _bury(path: Path, count: int) -> list[str]:
    journal = await SqliteJournal.open(path, policy=PostPolicy(max_turns=20, max_age_s=60.0))
    dead: list[str] = []
    for n in range(count):
        ref = AgentRef("default", caller_key=f"{n:032x}")
        key = f"default/call-{n}"
        await journal.open_call(Call(key, ref, "livekit", ref.caller_key or "", time.time()))
        await journal.append([Turn(key, "i", 1, "caller", f"words number {n}", time.time())])
        await journal.close_call(key, epoch=1, at_s=time.time())
        (batch,) = await journal.claim(5, now_s=time.time(), post_timeout_s=30.0)
        await journal.retire(batch, error="Letta answered 400", now_s=time.time())
        dead.append(batch.batch_id)
    await journal.aclose()
    return dead


@pytest.fixture
def dead(tmp_path: Path) -> list[str]:
    """Three dead letters in a journal that no sidecar has open."""
    (tmp_path / "data").mkdir(mode=0o700)
    return anyio.run(_bury, tmp_path / "data" / "journal.db", 3)


def test_dead_letters_are_shown(dead: list[str], tmp_path: Path) -> None:
    """A dead letter is listed with its reason, and shown by the first characters of its id."""
    cli = Cli(tmp_path / "data")
    listed = cli.json("outbox", "list")
    assert [row["batch_id"] for row in listed["dead"]] == dead
    assert listed["dead"][0]["error"] == "Letta answered 400"
    assert "words number 1" in cli.ok("outbox", "show", dead[1][:13])
    assert cli.run("outbox", "show", "no-such").returncode == 1
    lines = cli.ok("outbox", "list").splitlines()
    assert max(map(len, lines)) <= 80
    for batch in dead:
        (line,) = [line for line in lines if batch[:8] in line]
        assert "Letta answered 400" in line
        assert cli.json("outbox", "show", batch[:8])["batch"]["batch_id"] == batch


def test_what_fits_several_dead_letters_names_them(tmp_path: Path) -> None:
    """First characters that fit several dead letters drop none of them and name each."""
    (tmp_path / "data").mkdir(mode=0o700)
    dead = anyio.run(_bury, tmp_path / "data" / "journal.db", 17)
    (start, _), *_ = Counter(batch[0] for batch in dead).most_common()
    done = Cli(tmp_path / "data").run("outbox", "drop", start)
    assert done.returncode == 1
    assert all((batch in done.stderr) == batch.startswith(start) for batch in dead)
    assert len(Cli(tmp_path / "data").json("outbox", "list")["dead"]) == 17


def test_without_a_sidecar_they_are_changed_here(dead: list[str], tmp_path: Path) -> None:
    """Without a sidecar the command drops and replays, and exits with 1 for an unknown id."""
    cli = Cli(tmp_path / "data")
    assert cli.json("outbox", "drop", dead[0])["done"] == [dead[0]]
    assert cli.json("outbox", "replay", dead[1])["done"] == [dead[1]]
    listed = cli.json("outbox", "list")
    assert [row["batch_id"] for row in listed["dead"]] == [dead[2]]
    assert [row["batch_id"] for row in listed["open"]] == [dead[1]]
    assert cli.run("outbox", "drop", dead[0]).returncode == 1
    assert cli.run("outbox", "drop").returncode == 2


def test_a_running_sidecar_changes_them(dead: list[str], tmp_path: Path) -> None:
    """A running sidecar drops and replays dead letters on request, and delivers at once."""
    cli = Cli(tmp_path / "data")
    with SidecarProcess(tmp_path / "data") as sidecar:
        assert cli.json("outbox", "drop", dead[0])["done"] == [dead[0]]
        assert len(cli.json("outbox", "replay", "--all")["done"]) == 2
        eventually(lambda: sidecar.undelivered() == 0)
        assert cli.json("outbox", "list")["dead"] == []
        assert sidecar.readiness()["dead_batches"] == 0
