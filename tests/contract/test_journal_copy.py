"""A copy of a journal between engines is whole and proven, and goes on where it was interrupted."""

import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from sidecar.app.journal import opened_journal, opened_reports, place_of
from sidecar.app.journal_copy import Copied, copy_journal, place_named
from sidecar.config.load import load
from sidecar.config.settings import Settings
from sidecar.errors import ConfigError, JournalError, JournalLocked, JournalRefused, NoJournal
from sidecar.journal.elsewhere import Usage
from sidecar.journal.sql.copying import TABLES
from sidecar.model import AgentRef, Call, Turn
from tests.postgres.server import PostgresServer

pytestmark = [pytest.mark.contract, pytest.mark.anyio]

NOW_S = 1_800_000_000.0
CALLS = 7
TURNS = 90
"""Of each call; the table of turns takes several steps."""


class CopyBench:
    """A data directory with a journal, and an empty database.

    Args:
        home: For directories.
        url: Of the database.
    """

    def __init__(self, home: Path, url: str) -> None:
        self.home = home
        self.url = url
        self.data = home / "data"
        self.file = self.data / "journal.db"

    def settings(self, variables: Mapping[str, str] | None = None) -> Settings:
        return load({"SIDECAR_DATA_DIR": str(self.data), **(variables or {})})

    async def fill(self, first: int = 1) -> None:
        """Store calls that are settled, dead, under way, live, succeeded and erased."""
        self.data.mkdir(mode=0o700, exist_ok=True)
        async with opened_journal(self.settings(), self.data, clock=lambda: NOW_S) as journal:
            for n in range(first, first + CALLS):
                key, ref, room = f"acme/{n}", AgentRef("acme", caller_key=f"k{n}"), f"acme/room {n}"
                call = Call(key, ref, "livekit", f"k{n}", NOW_S, room=room)
                stored = await journal.open_call(call)
                await journal.append(
                    [
                        Turn(call.key, f"i{m}", m, "caller", f"w\0rd {m} \U0010ffff", NOW_S + m)
                        for m in range(1, TURNS + 1)
                    ]
                )
                await journal.learn_agent(call.ref, f"agent-{n}")
                if n % 3:
                    await journal.close_call(call.key, epoch=stored.epoch, at_s=NOW_S)
                else:
                    await journal.open_call(replace(call, key=f"{key}-next"), continues=key)
            settled, dead, *_ = await journal.claim(9, now_s=NOW_S, post_timeout_s=60.0)
            await journal.settle(settled, now_s=NOW_S)
            await journal.retire(dead, error="400", now_s=NOW_S)
            await journal.erase_caller("nobody", also=["acme/erased"], now_s=NOW_S)
            await journal.use(Usage({"acme": 7}, {}), day=20_000)

    async def copy(
        self, source: str, target: str, *, after: Callable[[str, int], None] = lambda _t, _n: None
    ) -> Copied:
        return await copy_journal(
            self.settings(),
            self.data,
            place_named(source, "FROM"),
            place_named(target, "TO"),
            progress=lambda table, done, _total: after(table, done),
        )

    async def turns_in_database(self) -> int:
        settings = self.settings({"SIDECAR_JOURNAL_URL": self.url})
        async with opened_reports(place_of(settings, self.data)) as reports:
            return (await reports.counts()).turns


def rows(file: Path) -> dict[str, list[tuple[object, ...]]]:
    """Return every row of a journal's file."""
    connection = sqlite3.connect(f"file:{file}?mode=ro", uri=True)
    try:
        return {
            table: list(connection.execute(f"SELECT * FROM {table} ORDER BY 1, 2"))
            for table in TABLES
        }
    finally:
        connection.close()


@pytest.fixture
def bench(tmp_path: Path, postgres: PostgresServer) -> CopyBench:
    return CopyBench(tmp_path, postgres.emptied())


class Interrupted(Exception):
    """What ends a copy early."""


async def test_every_row_comes_back_as_it_was(bench: CopyBench) -> None:
    """A file copied into a database, and that into another file, has the same rows as the first."""
    await bench.fill()
    there = await bench.copy(str(bench.data), bench.url)
    assert there.rows == there.written
    assert there.rows["turns"] == CALLS * TURNS
    assert all(there.rows.values())
    back = bench.home / "back" / "journal.db"
    await bench.copy(bench.url, str(back))
    assert rows(back) == rows(bench.file)
    assert (back.parent / "secret").read_bytes() == (bench.data / "secret").read_bytes()


async def test_a_sidecar_goes_on_with_the_copy(bench: CopyBench) -> None:
    """New calls, turns and batches follow the copied ones, and erased calls stay erased."""
    await bench.fill()
    await bench.copy(str(bench.file), bench.url)
    settings = bench.settings({"SIDECAR_JOURNAL_URL": bench.url})
    async with opened_journal(settings, bench.data, clock=lambda: NOW_S) as journal:
        call = Call("acme/new", AgentRef("acme", caller_key="new"), "vapi", "new", NOW_S)
        stored = await journal.open_call(call)
        await journal.append([Turn(call.key, "i1", 1, "caller", "hello", NOW_S)])
        await journal.close_call(call.key, epoch=stored.epoch, at_s=NOW_S)
        batches = await journal.claim(99, now_s=NOW_S + 1e6, post_timeout_s=60.0)
        assert {"acme/new", "acme/3"} <= {batch.call.key for batch in batches}
        erased = Call("acme/erased", call.ref, "vapi", "new", NOW_S)
        with pytest.raises(JournalError, match="erased"):
            await journal.open_call(erased)


@pytest.mark.parametrize("table", ["lanes", "turns", "batches"])
async def test_an_interrupted_copy_goes_on(bench: CopyBench, table: str) -> None:
    """What was copied stays, nothing opens it before the rest is there, and the rest follows."""
    await bench.fill()

    def interrupt(at: str, done: int) -> None:
        if at == table and done:
            raise Interrupted

    with pytest.raises(Interrupted):
        await bench.copy(str(bench.file), bench.url, after=interrupt)
    settings = bench.settings({"SIDECAR_JOURNAL_URL": bench.url})
    with pytest.raises(JournalRefused, match="was not finished"):
        async with opened_journal(settings, bench.data, clock=lambda: NOW_S):
            pass
    rest = await bench.copy(str(bench.file), bench.url)
    assert rest.written["lanes"] == 0
    assert sum(rest.written.values()) < sum(rest.rows.values())
    assert await bench.turns_in_database() == CALLS * TURNS


async def test_a_copy_of_what_has_changed_begins_anew(bench: CopyBench) -> None:
    """If a sidecar ran on the source after a copy was interrupted, the copy is of what is there."""
    await bench.fill()

    def interrupt(at: str, done: int) -> None:
        if at == "turns" and done:
            raise Interrupted

    with pytest.raises(Interrupted):
        await bench.copy(str(bench.file), bench.url, after=interrupt)
    await bench.fill(first=2)
    await bench.copy(str(bench.file), bench.url)
    back = bench.home / "back" / "journal.db"
    await bench.copy(bench.url, str(back))
    assert rows(back) == rows(bench.file)


async def test_a_file_is_a_journal_when_it_is_whole(bench: CopyBench) -> None:
    """An interrupted copy into a file leaves none of that name; the next one goes on with it."""
    await bench.fill()
    target = bench.home / "new" / "journal.db"

    def interrupt(at: str, done: int) -> None:
        if at == "batches" and done:
            raise Interrupted

    with pytest.raises(Interrupted):
        await bench.copy(str(bench.file), str(target), after=interrupt)
    assert not target.exists()
    rest = await bench.copy(str(bench.file), str(target))
    assert (rest.written["turns"], rest.rows["turns"]) == (0, CALLS * TURNS)
    assert sorted(path.name for path in target.parent.iterdir()) == [
        "journal.db",
        "journal.db.lock",
        "secret",
    ]
    assert rows(target) == rows(bench.file)


async def test_no_journal_is_overwritten(bench: CopyBench) -> None:
    """A database or file that has a journal is refused as a target, and stays as it is."""
    await bench.fill()
    await bench.copy(str(bench.file), bench.url)
    with pytest.raises(JournalRefused, match="a journal already"):
        await bench.copy(str(bench.file), bench.url)
    assert await bench.turns_in_database() == CALLS * TURNS
    with pytest.raises(JournalError, match="is there already"):
        await bench.copy(bench.url, str(bench.file))
    with pytest.raises(JournalError, match="where it is"):
        await bench.copy(str(bench.file), str(bench.data))


async def test_another_secret_is_refused_where_one_was_used(bench: CopyBench) -> None:
    """A secret set beside the directory's own, by which tombstones are known, is no journal's."""
    await bench.fill()
    settings = bench.settings({"SIDECAR_SECRET": "another-secret-than-that"})
    with pytest.raises(ConfigError, match="SIDECAR_SECRET"):
        async with opened_journal(settings, bench.data, clock=lambda: NOW_S):
            pass
    with pytest.raises(ConfigError, match="SIDECAR_SECRET"):
        await copy_journal(
            settings,
            bench.data,
            place_named(str(bench.file), "FROM"),
            place_named(bench.url, "TO"),
            progress=lambda _table, _done, _total: None,
        )


async def test_a_running_sidecars_journal_is_not_copied(bench: CopyBench) -> None:
    """While a sidecar owns the source, a copy is refused."""
    await bench.fill()
    async with opened_journal(bench.settings(), bench.data, clock=lambda: NOW_S):
        with pytest.raises(JournalLocked):
            await bench.copy(str(bench.file), bench.url)


async def test_what_names_no_journal_is_said(bench: CopyBench, postgres: PostgresServer) -> None:
    """A source without a journal or without its secret, and another database's URL, are named."""
    with pytest.raises(NoJournal):
        await bench.copy(str(bench.home / "none"), bench.url)
    with pytest.raises(ConfigError, match="SIDECAR_SECRET"):
        await bench.copy(bench.url, str(bench.home / "new"))
    with pytest.raises(NoJournal):
        await bench.copy(postgres.database(migrated=False), str(bench.home / "new"))
    with pytest.raises(ConfigError, match="FROM: start it with postgresql://"):
        await bench.copy("mysql://host/db", bench.url)
