"""What the SQLite journal promises beyond every journal: one owner, privacy, its two threads."""

import json
import os
import stat
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import apsw
import pytest
from blockbuster import blockbuster_ctx
from typing_extensions import override

from sidecar.errors import JournalCorrupt, JournalError, JournalLocked
from sidecar.journal.policy import PostPolicy
from sidecar.journal.sql import batches, forgetting, reads, writes
from sidecar.journal.sql.transaction import Transaction
from sidecar.journal.sqlite import SqliteJournal
from sidecar.journal.sqlite.backup import back_up
from sidecar.journal.sqlite.file import execute
from sidecar.journal.sqlite.reports import reports_of_file
from sidecar.journal.sqlite.threads import Threads
from sidecar.journal.sqlite.transactions import SqliteTransaction
from sidecar.model import AgentRef, Call, Turn

pytestmark = [pytest.mark.contract, pytest.mark.anyio]

REF = AgentRef("acme", agent_id="agent-1")
CALL = Call("acme/one", REF, "livekit", "k1", 1_800_000_000.0)
POLICY = PostPolicy(max_turns=3, max_age_s=60.0)
COLUMNS = {
    "table": "SELECT name FROM pragma_table_info(?)",
    "index": "SELECT coalesce(name, 'an expression') FROM pragma_index_info(?)",
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "journal.db"


@pytest.fixture
async def journal(path: Path) -> AsyncIterator[SqliteJournal]:
    opened = await SqliteJournal.open(path, policy=POLICY)
    await opened.open_call(CALL)
    yield opened
    await opened.aclose()


def turn(n: int, text: str = "hello") -> Turn:
    return Turn(CALL.key, f"item-{n}", n, "caller", text, 1_800_000_000.0)


def connection_of(tx: Transaction) -> apsw.Connection:
    assert isinstance(tx, SqliteTransaction)
    return tx._connection


async def store_calls(
    journal: SqliteJournal, first: int, end: int, *, caller_key: str, settled: bool
) -> None:
    """Store ended calls of one caller with their own agent, of two turns each."""
    replica = journal.replica

    def store(tx: Transaction) -> None:
        for n in range(first, end):
            key = f"acme/{caller_key}-{n}"
            call = Call(key, AgentRef("acme", caller_key=caller_key), "livekit", caller_key, 1.0)
            writes.open_call(tx, call, replica=replica, secret=b"", now_s=float(n), policy=POLICY)
            said = [Turn(key, f"i{m}", m, "caller", "hello", 10.0 * n + m) for m in (1, 2)]
            writes.append(tx, said, replica=None, now_s=float(n), policy=POLICY)
            writes.close_call(
                tx,
                key,
                replica=replica,
                epoch=1,
                at_s=float(n),
                now_s=float(n),
                policy=POLICY,
            )
        if not settled:
            return
        while batches.claim(tx, 1, replica=replica, now_s=1e9, post_timeout_s=1.0, policy=POLICY):
            tx.run("UPDATE batches SET state = 'settled', ended_s = 1e9")
            tx.run("UPDATE calls SET acked = sealed, settled_s = 1e9 WHERE sealed > 0")
            tx.run("UPDATE lanes SET open_batch = NULL, due_s = 0 WHERE open_batch IS NOT NULL")

    await journal.executor.write(store)


async def steps_of(
    journal: SqliteJournal, ask: Callable[[Transaction], object], *, writing: bool = False
) -> int:
    """Return how many steps SQLite's virtual machine takes for a read or a write, in tens."""
    steps = 0

    def step() -> bool:
        nonlocal steps
        steps += 1
        return False

    def counted(tx: Transaction) -> None:
        connection = connection_of(tx)
        connection.set_progress_handler(step, 10)
        try:
            ask(tx)
        finally:
            connection.set_progress_handler(None)

    executor = journal.executor
    await (executor.write(counted) if writing else executor.read(counted))
    return steps


def schema_of(connection: apsw.Connection) -> set[tuple[str, str, tuple[str, ...]]]:
    """Return tables and indexes, each with the names of its columns."""
    named = execute(connection, "SELECT type, name FROM sqlite_schema WHERE sql IS NOT NULL")
    return {
        (
            kind,
            name,
            tuple(sorted(str(row[0]) for row in execute(connection, COLUMNS[kind], (name,)))),
        )
        for kind, name in named
    }


def names_in(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


class TestBackup:
    async def test_a_backup_is_a_journal_with_all_that_was_acked(
        self, journal: SqliteJournal, path: Path, tmp_path: Path
    ) -> None:
        """A backup made during writes has every turn acked before it, and no gap between turns."""
        await journal.append([turn(n) for n in range(1, 6)])
        target = tmp_path / "copy.db"

        async def go_on() -> None:
            for n in range(6, 60):
                await journal.append([turn(n)])

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(go_on)
            size_bytes = await anyio.to_thread.run_sync(back_up, path, target)
            assert size_bytes == target.stat().st_size
        assert stat.S_IMODE(target.stat().st_mode) == 0o600
        assert names_in(tmp_path) == {"copy.db", "data"}
        again = await SqliteJournal.open(target, policy=POLICY)
        stored = [said.seq for said in await again.turns(CALL.key)]
        await again.aclose()
        assert stored == list(range(1, len(stored) + 1))
        assert len(stored) >= 5

    async def test_a_backup_overwrites_nothing_and_leaves_no_half(
        self, journal: SqliteJournal, path: Path, tmp_path: Path
    ) -> None:
        """An existing file stays as it was, and a copy that failed is removed."""
        (tmp_path / "kept").write_text("mine")
        with pytest.raises(JournalError, match="is there already"):
            await anyio.to_thread.run_sync(back_up, path, tmp_path / "kept")
        assert (tmp_path / "kept").read_text() == "mine"
        with pytest.raises(JournalError, match="can't be written"):
            await anyio.to_thread.run_sync(back_up, path, tmp_path / "nowhere" / "copy.db")
        (tmp_path / "torn.db").write_bytes(b"no journal at all" * 400)
        with pytest.raises(JournalError):
            await anyio.to_thread.run_sync(back_up, tmp_path / "torn.db", tmp_path / "copy.db")
        assert not (tmp_path / "copy.db").exists()


class TestOwner:
    async def test_a_second_owner_is_refused(self, journal: SqliteJournal, path: Path) -> None:
        """Two sidecars never share a file; the error names the process that has it."""
        with pytest.raises(JournalLocked, match=f"process {os.getpid()} "):
            await SqliteJournal.open(path, policy=POLICY)
        await journal.append([turn(1)])

    async def test_the_lock_ends_with_its_process(self, path: Path) -> None:
        """A killed owner leaves no lock behind."""
        script = (
            "import anyio, pathlib, sys; from sidecar.journal.sqlite import SqliteJournal\n"
            "from sidecar.journal.policy import PostPolicy\n"
            "async def main():\n"
            "    await SqliteJournal.open(pathlib.Path(sys.argv[1]),"
            " policy=PostPolicy(max_turns=20, max_age_s=60.0))\n"
            "    print('open', flush=True)\n"
            "    await anyio.sleep_forever()\n"
            "anyio.run(main)\n"
        )
        with subprocess.Popen(  # noqa: ASYNC220 - it only has to start
            [sys.executable, "-c", script, str(path)],
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        ) as owner:
            try:
                assert owner.stdout is not None
                assert await anyio.to_thread.run_sync(owner.stdout.readline) == b"open\n"
                with pytest.raises(JournalLocked, match=f"process {owner.pid} "):
                    await SqliteJournal.open(path, policy=POLICY)
            finally:
                owner.kill()
                await anyio.to_thread.run_sync(owner.wait)
        journal = await SqliteJournal.open(path, policy=POLICY)
        await journal.aclose()

    async def test_a_closed_journal_says_so(self, path: Path) -> None:
        """A closed journal raises an error, and does not hang."""
        journal = await SqliteJournal.open(path, policy=POLICY)
        await journal.aclose()
        with pytest.raises(JournalError, match="closed"):
            await journal.open_call(CALL)

    async def test_closing_finishes_what_is_queued(self, path: Path) -> None:
        """What was queued before the close is stored."""
        journal = await SqliteJournal.open(path, policy=POLICY)
        await journal.open_call(CALL)
        async with anyio.create_task_group() as tasks:
            for n in range(50):
                tasks.start_soon(journal.append, [turn(n)])
            await anyio.lowlevel.checkpoint()
            await journal.aclose()
        again = await SqliteJournal.open(path, policy=POLICY)
        assert len(await again.turns(CALL.key)) == 50
        await again.aclose()


class TestPrivacy:
    async def test_only_the_owner_may_read(self, journal: SqliteJournal, path: Path) -> None:
        """The directory is 0700 and every file in it 0600, SQLite's side files too."""
        await journal.append([turn(1)])
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        files = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
        assert set(files.values()) == {0o600}, files
        assert {"journal.db", "journal.db-wal", "journal.db-shm"} <= files.keys()

    async def test_what_is_erased_is_gone(self, journal: SqliteJournal, path: Path) -> None:
        """After retention no file holds the words any more."""
        secret = "my code is four seven one one"

        def files_with_it() -> list[str]:
            needle = secret.encode()
            return [file.name for file in path.parent.iterdir() if needle in file.read_bytes()]

        await journal.append([turn(n, text=secret) for n in range(3)])
        (batch,) = await journal.claim(1, now_s=time.time(), post_timeout_s=1.0)
        await journal.settle(batch, now_s=time.time())
        await journal.close_call(CALL.key, epoch=1, at_s=1.0)
        assert files_with_it()
        assert await journal.erase_settled(before_s=time.time()) == 3
        assert files_with_it() == []


class TestThreads:
    async def test_a_cancelled_append_is_stored(self, journal: SqliteJournal) -> None:
        """Cancelling the wait for an append does not undo the append."""
        with anyio.CancelScope() as scope:
            scope.cancel()
            await journal.append([turn(1)])
        assert scope.cancelled_caught
        await journal.append([turn(2)])
        assert [stored.seq for stored in await journal.turns(CALL.key)] == [1, 2]

    async def test_a_slow_read_delays_no_append(self, journal: SqliteJournal) -> None:
        """An append is acked while a long read is still under way."""
        threads = journal.executor
        assert isinstance(threads, Threads)
        slow = threads.read(
            lambda tx: tx.rows(
                "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 20000000)"
                " SELECT count(*) FROM n"
            )
        )
        for n in range(5):
            await journal.append([turn(n)])
        assert not slow.done()
        threads._reader._connection.interrupt()
        with pytest.raises(JournalError):
            await slow

    async def test_the_loop_is_never_blocked(self, path: Path) -> None:
        """No file or database call runs on the event loop."""
        with blockbuster_ctx("sidecar"):
            journal = await SqliteJournal.open(path, policy=POLICY)
            await journal.open_call(CALL)
            await journal.append([turn(n) for n in range(4)])
            (batch,) = await journal.claim(1, now_s=time.time(), post_timeout_s=1.0)
            await journal.settle(batch, now_s=time.time())
            await journal.counts()
            await journal.erase_settled(before_s=0.0)
            await journal.aclose()

    async def test_who_reads_the_file_holds_no_append_up(
        self, journal: SqliteJournal, path: Path
    ) -> None:
        """A backup or a shell that reads the file delays the emptying of the log, but no append."""
        await journal.open_call(Call("acme/two", REF, "livekit", "k2", 0.0))
        await journal.append([turn(1)])
        await journal.close_call(CALL.key, epoch=1, at_s=1.0)
        backup = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
        execute(backup, "BEGIN; SELECT count(*) FROM turns")
        refused: list[JournalError] = []

        async def erase() -> None:
            try:
                await journal.erase_caller("k1", now_s=2.0)
            except JournalError as error:
                refused.append(error)

        n = 0
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(erase)
            while not refused:
                with anyio.fail_after(4):  # less than the 5 s for which SQLite waits for a reader
                    await journal.append([Turn("acme/two", f"i{n}", n, "caller", "hi", 1.0)])
                await anyio.sleep(0.02)
                n += 1
        assert "not yet overwritten" in refused[0].message
        backup.close()
        assert await journal.erase_caller("k1", now_s=3.0) == 0
        assert len(await journal.turns("acme/two")) == n

    async def test_counting_what_is_undelivered_looks_at_no_settled_call(
        self, journal: SqliteJournal, path: Path
    ) -> None:
        """Reading the backlog costs the same, however many settled calls the journal keeps."""
        plans = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
        asked: list[str] = []

        class Asking(SqliteTransaction):
            @override
            def rows(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
                asked.extend(str(row[3]) for row in execute(plans, f"EXPLAIN QUERY PLAN {sql}"))
                return super().rows(sql, *values)

        reads.backlog(Asking(plans))
        plans.close()
        scanned = [step for step in asked if step.startswith("SCAN")]
        assert asked
        assert all("USING" in step and "INDEX" in step for step in scanned), scanned

    async def test_finding_the_call_of_a_room_scans_no_table(
        self, journal: SqliteJournal, path: Path
    ) -> None:
        """A new call in a room finds the one it goes on with by an index, whatever is kept."""
        plans = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
        asked: list[str] = []

        def open_next(tx: Transaction) -> None:
            class Asking(SqliteTransaction):
                @override
                def row(self, sql: str, *values: Any) -> tuple[Any, ...] | None:
                    plan = execute(plans, f"EXPLAIN QUERY PLAN {sql}", values)
                    asked.extend(str(step[3]) for step in plan)
                    return super().row(sql, *values)

            call = replace(CALL, key="acme/next", room="acme/RM_1", caller_key="k1")
            writes.open_call(
                Asking(connection_of(tx)),
                call,
                replica=journal.replica,
                secret=b"",
                now_s=1.0,
                policy=POLICY,
            )

        await journal.executor.write(open_next)
        plans.close()
        assert any("calls_of_room" in step for step in asked)
        assert [step for step in asked if step.startswith("SCAN c")] == []

    @pytest.mark.parametrize("settled", [True, False], ids=["settled", "Letta away"])
    async def test_what_a_callers_calls_cost_does_not_grow_with_them(
        self, path: Path, settled: bool
    ) -> None:
        """Recent turns, and what another caller has, cost as much with 2,000 calls as with 100."""
        journal = await SqliteJournal.open(path, policy=POLICY)
        ref = AgentRef("acme", caller_key="k1")
        now_s = 0.0
        asks: tuple[Callable[[Transaction], object], ...] = (
            lambda tx: reads.recent(
                tx, ref, caller_key="k1", except_call="", since_s=now_s - 1, limit=60
            ),
            lambda tx: reads.recent(
                tx, ref, caller_key="k1", except_call="", since_s=0.0, limit=60
            ),
            lambda tx: forgetting.stored_of_caller(tx, "k2"),
            reads.free_calls,
            lambda tx: reads.agent_of(tx, ref),
        )
        cost: list[list[int]] = []
        stored = 0
        await store_calls(journal, 0, 1, caller_key="k2", settled=settled)
        for many in (100, 2_000):
            await store_calls(journal, stored, many, caller_key="k1", settled=settled)
            stored, now_s = many, time.time() + 10
            cost.append([await steps_of(journal, ask) for ask in asks])
        await journal.aclose()
        few, lots = cost
        # A B-tree of twenty times as many rows is a level deeper, no more.
        assert all(after <= 1.2 * before + 200 for before, after in zip(few, lots, strict=True)), (
            cost
        )

    async def test_forgetting_looks_at_no_other_callers_calls(self, path: Path) -> None:
        """Erasing one caller costs as much beside 2,000 calls of others as beside 100."""
        journal = await SqliteJournal.open(path, policy=POLICY)
        cost: list[int] = []
        stored = 0
        for many in (100, 2_000):
            await store_calls(journal, stored, many, caller_key="k1", settled=False)
            await store_calls(journal, 0, 3, caller_key="k2", settled=False)
            stored = many
            cost.append(
                await steps_of(
                    journal,
                    lambda tx: forgetting.erase_caller(
                        tx, "k2", also=(), agents=(), secret=b"x" * 32, now_s=1.0
                    ),
                    writing=True,
                )
            )
        await journal.aclose()
        assert cost[1] <= 1.2 * cost[0] + 200, cost

    async def test_one_bad_append_spoils_no_other(self, journal: SqliteJournal) -> None:
        """An operation that fails does not undo those that were committed with it."""
        errors: list[str] = []

        async def append(call: str, n: int) -> None:
            try:
                await journal.append([Turn(call, f"item-{n}", n, "caller", "hi", 1.0)])
            except JournalError as error:
                errors.append(type(error).__name__)

        async with anyio.create_task_group() as tasks:
            for n in range(40):
                tasks.start_soon(append, CALL.key if n % 2 else "acme/ghost", n)
        assert errors == ["CallError"] * 20
        assert len(await journal.turns(CALL.key)) == 20


class TestRestart:
    async def test_what_was_being_sent_is_in_doubt(self, path: Path) -> None:
        """After a restart a batch that was being sent comes back as the same one, in doubt."""
        journal = await SqliteJournal.open(path, policy=POLICY)
        await journal.open_call(CALL)
        await journal.append([turn(n) for n in range(3)])
        (batch,) = await journal.claim(1, now_s=time.time(), post_timeout_s=50.0)
        await journal.aclose()
        again = await SqliteJournal.open(path, policy=POLICY)
        (found,) = await again.claim(1, now_s=time.time(), post_timeout_s=50.0)
        await again.aclose()
        assert found.in_doubt
        assert (found.batch_id, found.turns, found.attempt) == (batch.batch_id, batch.turns, 1)
        assert found.horizon_s == batch.horizon_s

    @pytest.mark.parametrize("jump_s", [-86_400.0, 86_400.0])
    async def test_the_clock_was_set_meanwhile(self, path: Path, jump_s: float) -> None:
        """A journal whose clock was set by a day between two starts still delivers, in order."""
        now_s = 1_800_000_000.0

        def clock() -> float:
            return now_s

        journal = await SqliteJournal.open(path, policy=POLICY, clock=clock)
        await journal.open_call(CALL)
        await journal.append([turn(n) for n in range(5)])
        (batch,) = await journal.claim(1, now_s=now_s, post_timeout_s=50.0)
        await journal.append([turn(5)])
        await journal.aclose()
        now_s += jump_s
        again = await SqliteJournal.open(path, policy=POLICY, clock=clock)
        await again.take_back(now_s=now_s, wait_s=60.0, horizon_s=50.0)
        (found,) = await again.claim(1, now_s=now_s, post_timeout_s=50.0)
        assert (found.batch_id, found.in_doubt) == (batch.batch_id, True)
        assert found.horizon_s <= now_s + 50
        await again.settle(found, now_s=now_s)
        now_s += POLICY.max_age_s
        (rest,) = await again.claim(1, now_s=now_s, post_timeout_s=50.0)
        assert [stored.seq for stored in rest.turns] == [5]
        await again.aclose()


class TestForeignFiles:
    async def test_another_database_is_left_alone(self, path: Path) -> None:
        """A database that is no journal is refused, named, and not touched."""
        path.parent.mkdir()
        other = apsw.Connection(str(path))
        execute(other, "CREATE TABLE precious(x)")
        other.close()
        before = path.read_bytes()  # noqa: ASYNC240 - tiny
        with pytest.raises(JournalCorrupt, match="no journal") as refused:
            await SqliteJournal.open(path, policy=POLICY)
        assert refused.value.hint
        assert path.read_bytes() == before  # noqa: ASYNC240 - tiny

    async def test_a_newer_format_is_refused(self, journal: SqliteJournal, path: Path) -> None:
        """A file that a newer sidecar wrote is refused."""
        await journal.aclose()
        newer = apsw.Connection(str(path))
        execute(newer, "PRAGMA user_version = 99")
        newer.close()
        with pytest.raises(JournalCorrupt, match="newer sidecar"):
            await SqliteJournal.open(path, policy=POLICY)

    @pytest.mark.parametrize("version", [1, 2, 3, 4, 5, 6, 7])
    async def test_an_older_format_is_taken_up(
        self, journal: SqliteJournal, path: Path, version: int
    ) -> None:
        """A file of any earlier version keeps what it holds, and gets the schema of a new one."""
        await journal.append([turn(n) for n in range(3)])
        now_s = time.time()
        (batch,) = await journal.claim(1, now_s=now_s, post_timeout_s=1.0)
        await journal.retire(batch, error="400", now_s=now_s)
        await journal.aclose()
        older = apsw.Connection(str(path))
        made = schema_of(older)
        execute(older, "DROP TABLE once; DROP TABLE spent; DROP TABLE commands")
        execute(older, "ALTER TABLE calls DROP COLUMN tokens")
        if version <= 6:
            execute(older, "DROP TABLE successors; DROP INDEX calls_of_room")
            for column in ("room", "lost_s", "opened_by"):
                execute(older, f"ALTER TABLE calls DROP COLUMN {column}")
        if version <= 5:
            execute(older, "DROP TABLE replicas")
            for table, column in (
                ("lanes", "replica"),
                ("lanes", "epoch"),
                ("calls", "replica"),
                ("calls", "epoch"),
            ):
                execute(older, f"ALTER TABLE {table} DROP COLUMN {column}")
        if version <= 4:
            execute(older, "ALTER TABLE calls DROP COLUMN final")
        if version <= 3:
            execute(
                older,
                "DROP TABLE tombstones; DROP INDEX calls_settled; DROP INDEX calls_waiting;"
                "DROP INDEX calls_live; DROP INDEX lanes_of_caller;"
                "DROP INDEX batches_dead_of_lane; DROP INDEX calls_of_caller;"
                "CREATE INDEX calls_of_caller ON calls(lane, caller_key)",
            )
        if version <= 2:
            execute(older, "ALTER TABLE batches DROP COLUMN replayed_s")
        if version == 1:
            execute(older, "ALTER TABLE turns DROP COLUMN traceparent")
            execute(older, "ALTER TABLE calls DROP COLUMN consent")
        execute(older, f"PRAGMA user_version = {version}")
        older.close()
        with pytest.raises(JournalError, match="another version"):
            async with reports_of_file(path):
                pass
        again = await SqliteJournal.open(path, policy=POLICY)
        try:
            traced = replace(turn(3), traceparent="00-x")
            await again.append([traced])
            assert await again.turns(CALL.key) == (*batch.turns, traced)
            assert await again.replay(batch.batch_id, now_s=now_s + 9)
            (replayed,) = await again.claim(1, now_s=now_s + 9, post_timeout_s=1.0)
            assert (replayed.sealed_at_s, replayed.tried_since_s) == (now_s, now_s + 9)
            assert await again.executor.read(lambda tx: schema_of(connection_of(tx))) == made
        finally:
            await again.aclose()
        async with reports_of_file(path) as reports:
            assert len(await reports.turns(CALL.key)) == 4

    async def test_a_place_that_cannot_be_written(self, tmp_path: Path) -> None:
        """A path under a file, not a directory, is a clear error."""
        (tmp_path / "file").write_text("x")
        with pytest.raises(JournalError) as refused:
            await SqliteJournal.open(tmp_path / "file" / "journal.db", policy=POLICY)
        assert "SIDECAR_DATA_DIR" in refused.value.hint


class Interrupted(SqliteTransaction):
    """A read during which another connection appends a turn after each statement."""

    def __init__(self, reader: apsw.Connection, writer: apsw.Connection) -> None:
        super().__init__(reader)
        self._writer = SqliteTransaction(writer)
        self._next = 2

    @override
    def rows(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        """Read, and then let the other connection commit."""
        found = super().rows(sql, *values)
        writes.append(self._writer, [turn(self._next)], replica=None, now_s=0.0, policy=POLICY)
        self._next += 1
        return found


async def test_a_report_of_several_statements_is_on_one_commit(
    journal: SqliteJournal, path: Path
) -> None:
    """Totals agree with each other, even if turns are stored between the statements."""
    await journal.append([turn(1)])
    reader, writer = apsw.Connection(str(path)), apsw.Connection(str(path))
    counts = reads.counts(Interrupted(reader, writer))
    for connection in (reader, writer):
        connection.close()
    assert (counts.turns, counts.undelivered) == (1, 1)
    assert (await journal.counts()).turns > 1


async def test_metrics_round_trip_exactly(journal: SqliteJournal) -> None:
    """A turn's metrics come back exactly, to the last bit."""
    metrics = {"stt_s": 0.1 + 0.2, "tiny": 5e-324, "zero": 0.0}
    said = Turn(CALL.key, "m", 1, "agent", "x", 1.0, metrics=metrics)
    await journal.append([said])
    (stored,) = await journal.turns(CALL.key)
    assert json.dumps(dict(stored.metrics)) == json.dumps(metrics)
