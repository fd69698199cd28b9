"""The journal under kills, torn files, full disks and changes of the clock."""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

import anyio
import pytest

from sidecar.clock import SteadyClock
from sidecar.delivery.decisions import DeliveryPolicy
from sidecar.delivery.relay import Relay
from sidecar.errors import JournalCorrupt, JournalFull
from sidecar.journal.policy import PostPolicy
from sidecar.journal.sqlite import SqliteJournal
from sidecar.model import AgentRef, Call, Turn
from sidecar.telemetry import Telemetry
from sidecar.testing.fake_letta import FakeLetta
from tests.quiet import Quiet

pytestmark = [pytest.mark.chaos, pytest.mark.anyio]

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
REF = AgentRef("acme", agent_id="agent-1")
CALL = Call("acme/one", REF, "livekit", "k1", 0.0)
POLICY = PostPolicy(max_turns=1_000, max_age_s=60.0)


@pytest.fixture
def dice() -> random.Random:
    seed = int(os.environ.get("CHAOS_SEED", str(random.SystemRandom().randrange(1 << 32))))
    print(f"CHAOS_SEED={seed}")
    return random.Random(seed)


def turn(n: int, text: str = "") -> Turn:
    return Turn(CALL.key, f"item-{n}", n, "caller", text or f"turn {n}", float(n))


def run_appender(path: Path, first: int, *, lines: int) -> list[int]:
    """Append from `first` on, kill -9 after `lines` acks, and return what was acked."""
    command = [sys.executable, str(HERE / "appender.py"), str(path), str(first)]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=env, text=True) as child:
        assert child.stdout is not None
        acked = [int(child.stdout.readline()) for _ in range(lines)]
        child.send_signal(signal.SIGKILL)
        acked += [int(line) for line in child.stdout if line.endswith("\n")]
    return acked


async def test_what_was_acked_survives_kill_9(tmp_path: Path, dice: random.Random) -> None:
    """A process killed while it appends loses no acked turn, and keeps their order."""
    path = tmp_path / "journal.db"
    acked: list[int] = []
    first = 0
    for _ in range(5):
        lines = dice.randrange(1, 400)
        some = await anyio.to_thread.run_sync(
            lambda first=first, lines=lines: run_appender(path, first, lines=lines)
        )
        acked += some
        first = max(acked) + 100
        journal = await SqliteJournal.open(path, policy=POLICY)
        stored: list[int] = []
        for n in range(7):
            of_call = [int(turn.item_id) for turn in await journal.turns(f"acme/{n}")]
            assert of_call == sorted(of_call)
            stored += of_call
        await journal.aclose()
        assert set(acked) <= set(stored)
        assert len(stored) == len(set(stored))


async def filled(path: Path, turns: int) -> SqliteJournal:
    journal = await SqliteJournal.open(path, policy=POLICY)
    await journal.open_call(CALL)
    for n in range(turns):
        await journal.append([turn(n)])
    return journal


class TestTornFiles:
    async def test_a_torn_log_tail_recovers(self, tmp_path: Path, dice: random.Random) -> None:
        """Damage at the end of the log leaves every turn before it readable."""
        journal = await filled(tmp_path / "a" / "journal.db", 60)
        counts: set[int] = set()
        for round_ in range(12):
            copy = tmp_path / str(round_)
            copy.mkdir()
            for name in ("journal.db", "journal.db-wal"):
                shutil.copy(tmp_path / "a" / name, copy / name)
            log = bytearray((copy / "journal.db-wal").read_bytes())
            at = dice.randrange(len(log) // 3, len(log))
            if round_ % 2:
                log = log[:at]
            else:
                log[at : at + 64] = dice.randbytes(len(log[at : at + 64]))
            (copy / "journal.db-wal").write_bytes(log)
            torn = await SqliteJournal.open(copy / "journal.db", policy=POLICY)
            seqs = [turn.seq for turn in await torn.turns(CALL.key)]
            assert seqs == list(range(len(seqs)))
            counts.add(len(seqs))
            await torn.append([turn(999)])
            await torn.aclose()
        assert len(counts) > 1
        await journal.aclose()

    @pytest.mark.parametrize("kind", ["garbage", "text", "truncated", "header"])
    async def test_a_damaged_file_is_named(
        self, tmp_path: Path, dice: random.Random, kind: str
    ) -> None:
        """A file damaged beyond recovery is refused with a hint, and left unchanged."""
        path = tmp_path / "journal.db"
        journal = await filled(path, 200)
        await journal.aclose()
        data = bytearray(path.read_bytes())
        match kind:
            case "garbage":
                data[5_000:] = dice.randbytes(len(data) - 5_000)
            case "text":
                data = bytearray(b"this is my shopping list\n" * 500)
            case "truncated":
                data = data[: len(data) // 2]
            case _:
                data[:100] = dice.randbytes(100)
        path.write_bytes(data)
        with pytest.raises(JournalCorrupt) as refused:
            await SqliteJournal.open(path, policy=POLICY)
        assert "move it aside" in refused.value.hint
        assert path.read_bytes() == data

    async def test_an_empty_file_is_a_new_journal(self, tmp_path: Path) -> None:
        """An empty file, as a crash at the first start leaves it, becomes a new journal."""
        path = tmp_path / "journal.db"
        path.touch()
        journal = await filled(path, 1)
        await journal.aclose()


@contextmanager
def largest_file(limit_bytes: int) -> Generator[None]:
    """Limit the size of this process's files, so that writes fail as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class TestFullDisk:
    async def test_nothing_is_half_written(self, tmp_path: Path) -> None:
        """An append that the disk refuses stores nothing, and new space ends the refusals."""
        journal = await filled(tmp_path / "journal.db", 3)
        acked = 3
        with largest_file(1 << 20):
            with anyio.fail_after(20):
                while journal.has_room:
                    two = [turn(acked, "x" * 5_000), turn(acked + 10_000, "y" * 5_000)]
                    with suppress(JournalFull):
                        await journal.append(two)
                        acked += 2
            with pytest.raises(JournalFull):
                await journal.append([turn(5_000)])
            with pytest.raises(JournalFull):
                await journal.try_write()
            assert len(await journal.turns(CALL.key)) == acked
        with anyio.fail_after(10):
            while True:
                try:
                    await journal.try_write()
                    break
                except JournalFull:
                    await anyio.sleep(0.1)
        assert journal.has_room
        await journal.append([turn(5_000)])
        assert len(await journal.turns(CALL.key)) == acked + 1
        await journal.aclose()
        again = await SqliteJournal.open(tmp_path / "journal.db", policy=POLICY)
        assert len(await again.turns(CALL.key)) == acked + 1
        await again.aclose()

    async def test_delivery_goes_on_when_the_disk_is_full(self, tmp_path: Path) -> None:
        """On a full disk appends are refused while batches settle, until there is room."""
        unshare = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "-r", "--mount"]
        probe = await anyio.run_process([*unshare, "true"], check=False)
        if probe.returncode:
            pytest.skip("this machine lets us have no mount namespace")
        done = await anyio.run_process(
            [*unshare, sys.executable, str(HERE / "full_disk.py"), str(tmp_path)],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stderr=None,
        )
        found = json.loads(done.stdout)
        assert found["acked_when_full"] > 500
        assert found["settled_while_full"] >= found["acked_when_full"] - 50 * 3
        assert found["refused_while_full"] == 20
        assert found["has_room"] is found["has_room_after_settling"] is False
        assert found["has_room_at_last"] is True
        assert found["stored"] == found["acked"]
        assert found["missing_after_reopen"] == found["never_acked_after_reopen"] == 0


async def test_a_clock_that_is_set_holds_nothing_up(tmp_path: Path, dice: random.Random) -> None:
    """While the clock is set back and forth by days, turns are still delivered in order."""
    wall_s = 1_800_000_000.0
    clock = SteadyClock(wall=lambda: wall_s)
    journal = await SqliteJournal.open(
        tmp_path / "journal.db", policy=PostPolicy(max_turns=4, max_age_s=0.05), clock=clock
    )
    letta = FakeLetta(clock=clock, latency_s=0.001)

    async def agent_of(ref: AgentRef) -> str:
        return ref.agent_id or ""

    relay = Relay(
        journal,
        letta,
        agent_of,
        policy=DeliveryPolicy(post_timeout_s=5.0),
        clock=clock,
        dice=dice.random,
        emit=Telemetry(strict=True, logger=Quiet()).emit,
    )
    await journal.open_call(CALL)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(relay.run)
        for n in range(60):
            wall_s += dice.uniform(-5 * 86_400, 5 * 86_400)
            await journal.append([turn(n)])
            await anyio.sleep(0.005)
        with anyio.fail_after(20):
            while await relay.flush(1.0):
                await journal.wait(0.1)
        tasks.cancel_scope.cancel()
    said = [line for taken in letta.taken for line in taken.post.text.splitlines()]
    heard = [
        int(line.partition(">turn ")[2].removesuffix("</turn>"))
        for line in said
        if ">turn " in line
    ]
    assert heard == list(range(60))
    assert letta.overlaps == 0
    await journal.aclose()
