"""What the PostgreSQL journal promises beyond every journal: replicas, and no commit in doubt."""

import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from sidecar.errors import (
    CallError,
    JournalAway,
    JournalError,
    JournalLocked,
    JournalRefused,
    LeaseLost,
    NoJournal,
    TakenOver,
)
from sidecar.journal.policy import PostPolicy
from sidecar.journal.postgres import PostgresJournal
from sidecar.journal.postgres.about import about, migrated
from sidecar.journal.postgres.lease import ahead_s
from sidecar.journal.postgres.owner import is_gone, own_name, started
from sidecar.journal.postgres.reports import reports_of_database
from sidecar.journal.postgres.schema import SCHEMA_VERSION
from sidecar.model import AgentRef, Call, Turn
from tests.fault_proxy import FaultProxy
from tests.postgres.pooler import Pooler
from tests.postgres.server import PostgresServer
from tests.postgres.wrong import WRONG, asked

pytestmark = [pytest.mark.contract, pytest.mark.anyio]

POLICY = PostPolicy(max_turns=20, max_age_s=60.0)
SECRET = b"s" * 32
NOW_S = 1_800_000_000.0
CALL = Call("acme/one", AgentRef("acme", agent_id="agent-1"), "livekit", "k1", NOW_S)
WAIT_S = 60.0


def turn(n: int) -> Turn:
    return Turn(CALL.key, f"item-{n}", n, "caller", f"word {n}", NOW_S + n)


@pytest.fixture
def url(postgres: PostgresServer) -> str:
    return postgres.emptied()


@pytest.fixture
def proxy(postgres: PostgresServer) -> Iterator[FaultProxy]:
    with FaultProxy(postgres.port) as between:
        yield between


def through(proxy: FaultProxy, postgres: PostgresServer, url: str) -> str:
    return url.replace(f":{postgres.port}/", f":{proxy.port}/")


@asynccontextmanager
async def opened(
    url: str, *, secret: bytes = SECRET, wait_s: float = 0.0, alone: bool = False
) -> AsyncGenerator[PostgresJournal]:
    journal = await PostgresJournal.open(
        url, secret=secret, policy=POLICY, clock=lambda: NOW_S, wait_s=wait_s, alone=alone
    )
    try:
        yield journal
    finally:
        await journal.aclose()


async def numbers(journal: PostgresJournal) -> list[int]:
    return [said.seq for said in await journal.turns(CALL.key)]


class TestReplicas:
    """Sidecars beside one another: each writes in turn, for as long as it renews its lease."""

    async def test_two_append_to_one_call(self, url: str) -> None:
        """Turns that two replicas append at once, some of them both, are stored once, in order."""
        async with opened(url) as first, opened(url) as second:
            await first.open_call(CALL)

            async def say(journal: PostgresJournal, ns: range) -> None:
                for n in ns:
                    await journal.append([turn(n)])

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(say, first, range(1, 60))
                tasks.start_soon(say, second, range(30, 90))
            found = await numbers(first)
            assert sorted(found) == list(range(1, 90))
            assert [n for n in found if n >= 60] == list(range(60, 90))
            assert await numbers(second) == found

    async def test_two_claim_each_lane_once(self, url: str) -> None:
        """Of two replicas that claim at once, one gets a lane."""
        async with opened(url) as first, opened(url) as second:
            for n in range(20):
                call = Call(f"acme/{n}", AgentRef("acme", agent_id=f"a{n}"), "vapi", "k", NOW_S)
                await first.open_call(call)
                await first.append([Turn(call.key, "i", 1, "caller", "hello", NOW_S)])
            await first.hurry(now_s=NOW_S)
            lanes: list[str] = []

            async def claim(journal: PostgresJournal) -> None:
                while batches := await journal.claim(3, now_s=NOW_S, post_timeout_s=1.0):
                    lanes.extend(batch.lane for batch in batches)
                    for batch in batches:
                        await journal.settle(batch, now_s=NOW_S)

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(claim, first)
                tasks.start_soon(claim, second)
            assert sorted(lanes) == sorted(f"acme/agent/a{n}" for n in range(20))

    async def test_one_that_is_cut_off_is_succeeded_and_comes_back(
        self, url: str, postgres: PostgresServer, proxy: FaultProxy
    ) -> None:
        """What a replica had that can't renew is another's; it goes on under another name."""
        async with opened(through(proxy, postgres, url)) as late, opened(url) as other:
            stored = await late.open_call(CALL)
            await late.append([turn(1)])
            await late.hurry(now_s=NOW_S)
            (batch,) = await late.claim(9, now_s=NOW_S, post_timeout_s=1.0)
            name = late.replica
            proxy.hold()
            taken: list[Call] = []
            with anyio.fail_after(WAIT_S):
                while not taken:
                    await anyio.sleep(0.05)
                    taken = await other.take_over()
            assert [call.epoch for call in taken] == [stored.epoch + 1]
            (again,) = await other.claim(9, now_s=NOW_S, post_timeout_s=1.0)
            assert (again.batch_id, again.in_doubt) == (batch.batch_id, True)
            proxy.resume()
            await late.append([turn(2)])
            assert late.replica != name
            with pytest.raises(TakenOver):
                await late.settle(batch, now_s=NOW_S)
            with pytest.raises(TakenOver):
                await late.resend(batch, now_s=NOW_S, post_timeout_s=1.0)
            with pytest.raises(TakenOver):
                await late.close_call(CALL.key, at_s=NOW_S, epoch=stored.epoch)
            epoch = await late.retake(CALL.key)
            assert epoch == stored.epoch + 2
            await other.settle(again, now_s=NOW_S)
            assert await numbers(other) == [1, 2]
            assert late.has_room

    async def test_an_idle_one_renews_its_lease(self, url: str) -> None:
        """A replica without a call holds its lease for longer than a lease lasts."""
        async with opened(url), opened(url):
            ((first,),) = asked(url, "SELECT max(until) FROM replicas")

            def are_longer() -> bool:
                sql = f"SELECT min(until) > timestamptz '{first}' + interval '2 s' FROM replicas"
                return asked(url, sql) == [(True,)]

            await until(are_longer)

    async def test_one_whose_writes_all_fail_renews_its_lease(self, url: str) -> None:
        """A replica that is asked only for what it has to refuse is not taken for gone."""
        async with opened(url) as journal:
            ((first,),) = asked(url, "SELECT max(until) FROM replicas")
            sql = f"SELECT max(until) > timestamptz '{first}' + interval '2 s' FROM replicas"
            with anyio.fail_after(WAIT_S):
                while asked(url, sql) != [(True,)]:
                    with pytest.raises(CallError):
                        await journal.append([Turn("acme/none", "i", 1, "caller", "hello", NOW_S)])

    async def test_a_process_that_ended_here_is_gone_at_once(self, url: str) -> None:
        """What a killed process of this machine had is free before its lease ends."""
        async with opened(url) as journal, await anyio.open_process(["sleep", "600"]) as process:
            name = own_name().split(":")
            name[1], name[3] = str(process.pid), started(process.pid)
            asked(url, f"INSERT INTO replicas(name, entered_s) VALUES ('{':'.join(name)}', 0)")
            await journal.open_call(CALL)
            asked(url, f"UPDATE calls SET replica = '{':'.join(name)}'")
            assert await journal.take_over() == []
            assert f"process {process.pid} of" in "".join(about(url).writers)
            process.kill()
            await process.wait()
            taken: list[Call] = []
            with anyio.fail_after(WAIT_S):
                while not taken:
                    await anyio.sleep(0.05)
                    taken = await journal.take_over()

    async def test_one_that_leaves_frees_what_it_had(self, url: str) -> None:
        """What a replica was sending and whom it had on the line is free when it has stopped."""
        async with opened(url) as other:
            async with opened(url) as leaving:
                await leaving.open_call(CALL)
                await leaving.append([turn(1)])
                await leaving.hurry(now_s=NOW_S)
                await leaving.claim(9, now_s=NOW_S, post_timeout_s=1.0)
                assert await other.claim(9, now_s=NOW_S, post_timeout_s=1.0) == []
            (again,) = await other.claim(9, now_s=NOW_S, post_timeout_s=1.0)
            assert again.in_doubt
            assert [call.key for call in await other.take_over()] == [CALL.key]

    async def test_what_one_makes_due_wakes_the_others(
        self, url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A replica that waits for work is woken by a turn that another one stores."""
        monkeypatch.setattr("sidecar.journal.postgres.threads.POLL_S", 900.0)
        async with opened(url) as first, opened(url) as second:
            await first.open_call(CALL)
            woken = anyio.Event()

            async def wait_for_work() -> None:
                while await second.next_due_s() is None:
                    await second.wait(900.0)
                woken.set()

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(wait_for_work)
                await first.append([turn(1)])
                with anyio.fail_after(WAIT_S):
                    await woken.wait()

    async def test_what_one_settles_the_others_hear(
        self, url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A replica is told whose memory another one's delivery has changed, but not of its own."""
        monkeypatch.setattr("sidecar.journal.postgres.threads.POLL_S", 900.0)
        heard: list[str] = []
        async with opened(url) as first, opened(url) as second:
            first.digested = lambda ref: heard.append(f"first {ref.lane}")
            second.digested = lambda ref: heard.append(f"second {ref.lane}")
            with anyio.fail_after(WAIT_S):
                for journal in (first, second):
                    await journal.wait(900.0)  # ends when it listens
            await first.open_call(CALL)
            for n, journal in enumerate((first, second), 1):
                await journal.append([turn(n)])
                await first.hurry(now_s=NOW_S)
                (batch,) = await journal.claim(9, now_s=NOW_S, post_timeout_s=1.0)
                await journal.settle(batch, now_s=NOW_S)
                await until(lambda n=n: len(heard) == n)
        assert heard == [f"second {CALL.ref.lane}", f"first {CALL.ref.lane}"]

    async def test_behind_a_pooler_it_looks_by_itself(self, url: str, pooler: Pooler) -> None:
        """Where no notification comes through, a replica sees within a second what is due."""
        async with opened(pooler.url(url)) as first, opened(pooler.url(url)) as second:
            await first.open_call(CALL)
            await first.append([turn(1)])
            with anyio.fail_after(WAIT_S):
                while await second.next_due_s() is None:
                    await second.wait(900.0)

    async def test_all_follow_the_databases_clock(self, url: str) -> None:
        """A replica is given the database's time when it starts, and again while it runs."""
        told: list[float] = []
        journal = await PostgresJournal.open(url, secret=SECRET, policy=POLICY, timed=told.append)
        try:
            await until(lambda: len(told) > 1)
        finally:
            await journal.aclose()
        assert all(abs(time.monotonic() + one - time.time()) < 1.0 for one in told)

    async def test_an_answer_that_came_late_sets_no_clock(self) -> None:
        """Time that a database told before this process was frozen is no time to follow."""
        assert ahead_s(NOW_S, asked_s=time.monotonic() - 9.0) is None
        assert ahead_s(NOW_S, asked_s=time.monotonic()) is not None


class TestAlone:
    """A command that needs the journal for itself gets it where no replica is, and lets none in."""

    async def test_beside_a_replica_it_is_refused(self, url: str) -> None:
        """While a sidecar runs, a command is told which one."""
        async with opened(url):
            with pytest.raises(JournalLocked, match="writes to this journal"):
                await PostgresJournal.open(url, secret=SECRET, policy=POLICY, alone=True)
        async with opened(url, alone=True) as command:
            await command.open_call(CALL)

    async def test_no_replica_comes_beside_it(self, url: str) -> None:
        """While a command has the journal, a sidecar and another command are told which one."""
        async with opened(url, alone=True) as command:
            for alone in (False, True):
                with pytest.raises(JournalLocked, match="writes to this journal"):
                    await PostgresJournal.open(url, secret=SECRET, policy=POLICY, alone=alone)
            await command.open_call(CALL)
        async with opened(url), opened(url):
            pass

    @pytest.mark.parametrize("alone", [False, True])
    async def test_a_dead_ones_lease_ends(self, url: str, alone: bool) -> None:
        """A start waits for the lease of a process that was killed, and then has it."""
        asked(url, "UPDATE writer SET owner = 'gone', until = clock_timestamp() + interval '2 s'")
        began_s = time.monotonic()
        async with opened(url, wait_s=WAIT_S, alone=alone) as journal:
            await journal.open_call(CALL)
        assert time.monotonic() - began_s < WAIT_S

    async def test_a_process_that_ended_here_is_succeeded_at_once(self, url: str) -> None:
        """The lease of a killed process of this machine is free; that of a living one is not."""
        async with await anyio.open_process(["sleep", "600"]) as process:
            name = own_name().split(":")
            name[1], name[3] = str(process.pid), started(process.pid)
            asked(
                url,
                f"UPDATE writer SET owner = '{':'.join(name)}',"
                " until = clock_timestamp() + interval '1 h'",
            )
            with pytest.raises(JournalLocked, match=f"process {process.pid} of"):
                await PostgresJournal.open(url, secret=SECRET, policy=POLICY)
            process.kill()
        async with opened(url) as journal:
            await journal.open_call(CALL)

    async def test_a_process_elsewhere_may_live(self) -> None:
        """Of a process of another machine or namespace nobody here knows that it has ended."""
        host, pid, kernel, at, nonce = own_name().split(":")
        assert not is_gone(f"{host}:{pid}:{kernel}:{at}:{nonce}")
        assert is_gone(f"{host}:{pid}:{kernel}:1:{nonce}")
        assert not is_gone(f"{host}:{pid}:another-kernel:1:{nonce}")
        assert not is_gone("a name that says nothing")

    async def test_a_process_that_is_hidden_may_live(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where /proc hides the processes of others, one that exists is not taken for ended."""

        def unseen(_pid: int) -> bool:
            return False

        monkeypatch.setattr("sidecar.journal.postgres.owner._is_seen", unseen)
        host, pid, kernel, _, nonce = own_name().split(":")
        assert not is_gone(f"{host}:{pid}:{kernel}:1:{nonce}")

    @pytest.mark.parametrize("alone", [False, True])
    async def test_one_that_lost_its_lease_stores_nothing(self, url: str, alone: bool) -> None:
        """One that was frozen past its lease and wakes beside a command is fenced off."""
        async with opened(url, alone=alone) as late:
            await late.open_call(CALL)
            await late.append([turn(1)])
            asked(url, "UPDATE writer SET owner = '', until = '-infinity'")
            async with opened(url, alone=True) as other:
                with pytest.raises((LeaseLost, JournalLocked)):
                    await late.append([turn(2)])
                with pytest.raises((LeaseLost, JournalLocked)):
                    await late.claim(9, now_s=NOW_S + 99, post_timeout_s=1.0)
                assert not late.has_room
                await other.append([turn(3)])
                assert await numbers(other) == [1, 3]
                assert other.has_room
            if not alone:
                await late.append([turn(2)])
                assert await numbers(late) == [1, 3, 2]
                assert late.has_room

    async def test_a_sidecar_of_the_version_before_writes_alone(self, url: str) -> None:
        """While one of a version before replicas writes, none of this one starts beside it."""
        asked(
            url,
            "UPDATE writer SET owner = 'old:1:k:1:n', until = clock_timestamp() + interval '1 h';"
            " INSERT INTO replicas(name, entered_s) VALUES ('old:1:k:1:n', 0)",
        )
        with pytest.raises(JournalLocked, match="process 1 of old"):
            await PostgresJournal.open(url, secret=SECRET, policy=POLICY)
        asked(url, "UPDATE writer SET until = '-infinity'")
        async with opened(url):
            assert asked(url, "SELECT count(*) FROM replicas WHERE name LIKE 'old%'") == [(0,)]
            ((free,),) = asked(url, "SELECT owner = '' OR until < clock_timestamp() FROM writer")
            assert not free  # by this it sees that it may not write


class TestSecret:
    """A journal belongs to one installation's secret."""

    async def test_another_installations_secret_is_refused(self, url: str) -> None:
        """Tombstones are keyed by the secret, so a sidecar with another one does not write."""
        async with opened(url):
            pass
        with pytest.raises(JournalRefused, match="another secret") as caught:
            await PostgresJournal.open(url, secret=b"t" * 32, policy=POLICY)
        assert "SIDECAR_SECRET" in caught.value.hint


class TestFaults:
    """Connections, answers and servers are lost at every moment."""

    async def test_a_commit_whose_answer_is_lost_took_effect_once(
        self, url: str, postgres: PostgresServer, proxy: FaultProxy
    ) -> None:
        """A claim that was committed before the connection ended returns its batch."""
        async with opened(through(proxy, postgres, url)) as journal:
            await journal.open_call(CALL)
            await journal.append([turn(1)])
            await journal.close_call(CALL.key, epoch=1, at_s=NOW_S)
            proxy.lose_answer_to(b"COMMIT")
            (batch,) = await journal.claim(9, now_s=NOW_S, post_timeout_s=1.0)
            assert proxy.lost == 1
            assert batch.attempt == 0
            assert await journal.claim(9, now_s=NOW_S, post_timeout_s=1.0) == []
            await journal.settle(batch, now_s=NOW_S)
            assert (await journal.counts()).undelivered == 0

    async def test_a_commit_that_never_arrived_is_made_again(
        self, url: str, postgres: PostgresServer, proxy: FaultProxy
    ) -> None:
        """A write whose commit was lost on its way is stored, once, without its caller's help."""
        async with opened(through(proxy, postgres, url)) as journal:
            await journal.open_call(CALL)
            for n, words in enumerate((b"BEGIN", b"INSERT INTO turns", b"COMMIT"), 1):
                proxy.lose(words)
                await journal.append([turn(n)])
                assert proxy.lost == n
            assert await numbers(journal) == [1, 2, 3]

    async def test_sessions_that_end_lose_and_double_nothing(
        self, url: str, postgres: PostgresServer
    ) -> None:
        """Turns appended while every session is ended again and again are there once, in order."""
        async with opened(url) as journal:
            await journal.open_call(CALL)
            for n in range(1, 91, 3):
                async with anyio.create_task_group() as tasks:
                    for one in range(n, n + 3):
                        tasks.start_soon(journal.append, [turn(one)])
                    tasks.start_soon(anyio.to_thread.run_sync, postgres.end_sessions)
            assert await numbers(journal) == list(range(1, 91))

    async def test_a_server_that_crashes_delays_writes(
        self, url: str, postgres: PostgresServer
    ) -> None:
        """What is appended while the database recovers from a crash is stored when it is back."""
        async with opened(url) as journal, anyio.create_task_group() as tasks:
            await journal.open_call(CALL)
            await journal.append([turn(1)])
            postgres.crash()
            tasks.start_soon(journal.append, [turn(2)])
            postgres.start_postgres()
        async with opened(url, wait_s=WAIT_S) as journal:
            assert await numbers(journal) == [1, 2]

    async def test_a_database_that_stays_away_fails_writes(
        self,
        url: str,
        postgres: PostgresServer,
        proxy: FaultProxy,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """A write to a database that can't be reached fails, and one after it is back succeeds."""
        monkeypatch.setattr("sidecar.journal.postgres.threads.AWAY_S", 0.3)
        async with opened(through(proxy, postgres, url)) as journal:
            await journal.open_call(CALL)
            proxy.cut()
            with pytest.raises(JournalAway):
                await journal.append([turn(1)])
            with pytest.raises(JournalAway):
                await journal.counts()
            proxy.resume()
            await journal.append([turn(2)])
            assert await numbers(journal) == [2]

    async def test_a_database_that_stops_answering_is_left(
        self,
        url: str,
        postgres: PostgresServer,
        proxy: FaultProxy,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """A connection on which no answer comes is ended, and the write made on another one."""
        monkeypatch.setattr("sidecar.journal.postgres.threads.WRITE_S", 0.5)
        async with opened(through(proxy, postgres, url)) as journal:
            await journal.open_call(CALL)
            before = proxy.accepted
            proxy.hold()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(journal.append, [turn(1)])
                await until(lambda: proxy.accepted > before)
                proxy.resume()
            assert await numbers(journal) == [1]

    async def test_a_bad_write_does_not_fail_its_neighbours(self, url: str) -> None:
        """Of writes that are committed together, one that is refused takes none with it."""
        async with opened(url) as journal:
            await journal.open_call(CALL)
            refused: list[str] = []

            async def append_to(key: str, n: int) -> None:
                try:
                    await journal.append([Turn(key, f"item-{n}", n, "caller", "hello", NOW_S)])
                except CallError as error:
                    refused.append(error.code)

            async with anyio.create_task_group() as tasks:
                for n in range(1, 41):
                    tasks.start_soon(append_to, CALL.key if n % 4 else "acme/none", n)
            assert refused == ["unknown_call"] * 10
            assert sorted(await numbers(journal)) == [n for n in range(1, 41) if n % 4]


class TestSchema:
    """Migrations, and sidecars of other versions."""

    async def test_two_that_start_at_once_make_the_tables_once(
        self, postgres: PostgresServer
    ) -> None:
        """Sidecars that migrate a new database at the same time wait for one another."""
        new = postgres.database(migrated=False)
        applied: list[int] = []

        async def make() -> None:
            applied.extend(await anyio.to_thread.run_sync(migrated, new))

        async with anyio.create_task_group() as tasks:
            for _ in range(4):
                tasks.start_soon(make)
        assert applied == list(range(1, SCHEMA_VERSION + 1))

    async def test_an_earlier_release_runs_on_newer_tables(self, url: str) -> None:
        """Tables of a later version that admits this one are used; this one leaves them so."""
        asked(
            url,
            f"INSERT INTO journal_schema(version, oldest_reader) VALUES ({SCHEMA_VERSION + 1}, 1);"
            " ALTER TABLE turns ADD COLUMN later TEXT; ALTER TABLE calls ADD COLUMN later TEXT",
        )
        try:
            async with opened(url) as journal:
                await journal.open_call(CALL)
                await journal.append([turn(1)])
                assert await numbers(journal) == [1]
            assert about(url).schema == SCHEMA_VERSION + 1
        finally:
            asked(
                url,
                f"DELETE FROM journal_schema WHERE version > {SCHEMA_VERSION};"
                " ALTER TABLE turns DROP COLUMN later; ALTER TABLE calls DROP COLUMN later",
            )

    async def test_tables_that_are_too_new_are_refused(self, postgres: PostgresServer) -> None:
        """Tables that say that this version is too old for them are neither read nor written."""
        new = WRONG["newer"].arrange(postgres)
        with pytest.raises(JournalRefused, match="newer sidecar"):
            await PostgresJournal.open(new, secret=SECRET, policy=POLICY)
        with pytest.raises(JournalRefused, match="newer sidecar"):
            async with reports_of_database(new):
                pass

    async def test_reading_makes_no_tables(self, postgres: PostgresServer) -> None:
        """A report on a database without a journal says that there is none, and makes none."""
        new = postgres.database(migrated=False)
        with pytest.raises(NoJournal):
            async with reports_of_database(new):
                pass
        assert about(new).schema == 0


class TestWrongDatabase:
    """A database that can't be used is named with its remedy, in one line."""

    @pytest.mark.parametrize("kind", WRONG)
    async def test_what_is_wrong_is_said_with_its_remedy(
        self, postgres: PostgresServer, kind: str
    ) -> None:
        """Each kind of database that can't be used has its own message and remedy."""
        wrong = WRONG[kind]
        where = wrong.arrange(postgres)
        with pytest.raises(JournalError) as caught:
            await PostgresJournal.open(where, secret=SECRET, policy=POLICY)
        assert isinstance(caught.value, JournalRefused | JournalAway)
        assert wrong.message in caught.value.message
        assert wrong.hint in caught.value.hint
        assert "\n" not in str(caught.value)
        assert "127.0.0.1" not in str(caught.value)

    async def test_what_is_sound_is_described(self, url: str) -> None:
        """The description of a database names its version, its settings and its writer."""
        assert about(url).writers == ()
        async with opened(url):
            found = about(url)
        assert found.server >= 140_000
        assert (found.schema, found.newest) == (SCHEMA_VERSION, SCHEMA_VERSION)
        assert len(found.writers) == 1
        assert (found.read_only, found.may_write, found.synchronous_commit) == (False, True, "on")
        assert abs(found.clock_ahead_s) < found.round_trip_s + 1.0
        assert found.pooling == "none"

    @pytest.mark.parametrize("mode", ["session", "transaction"])
    async def test_a_pooler_between_is_seen(
        self, postgres: PostgresServer, url: str, tmp_path: Path, mode: str
    ) -> None:
        """Whether a pooler shares sessions among connections is found by asking through two."""
        with Pooler(tmp_path, postgres_port=postgres.port, mode=mode) as between:
            assert about(between.url(url)).pooling == mode

    async def test_a_pooler_without_transactions_is_refused(
        self, postgres: PostgresServer, url: str, tmp_path: Path
    ) -> None:
        """A pooler that gives each statement another session is named with the mode to set."""
        with Pooler(tmp_path, postgres_port=postgres.port, mode="statement") as between:
            with pytest.raises(JournalError, match="allows no transactions") as caught:
                await PostgresJournal.open(between.url(url), secret=SECRET, policy=POLICY)
            assert "pool_mode = transaction" in caught.value.hint
            with pytest.raises(JournalRefused, match="allows no transactions"):
                about(between.url(url))


async def until(holds: Callable[[], bool]) -> None:
    """Wait, at most `WAIT_S`, for something that happens on another thread or server."""
    with anyio.fail_after(WAIT_S):
        while not await anyio.to_thread.run_sync(holds):
            await anyio.lowlevel.checkpoint()
