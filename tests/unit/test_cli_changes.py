"""A command that changes the journal while no sidecar runs changes what was asked, and no more."""

import sqlite3
import time
from pathlib import Path

import anyio
import pytest

from sidecar.journal.policy import PostPolicy
from sidecar.journal.sqlite import SqliteJournal
from sidecar.model import AgentRef, Call, Turn, caller_key
from tests.unit.test_cli import Cli

pytestmark = pytest.mark.unit

DAY_S = 86_400.0
ADA = caller_key("default", "tel:+12025550147")
BOB = caller_key("default", "tel:+12025550148")
Rows = dict[str, list[tuple[object, ...]]]


async def fill(path: Path) -> str:
    """Store a live call whose turn is due in a day, and a dead letter of another caller."""
    policy = PostPolicy(max_turns=20, max_age_s=DAY_S)
    journal = await SqliteJournal.open(path, policy=policy)
    for name, key in (("live", ADA), ("over", BOB)):
        call = Call(
            f"default/{name}", AgentRef("default", caller_key=key), "livekit", key, time.time()
        )
        await journal.open_call(call)
        await journal.append([Turn(call.key, "i1", 1, "caller", "hello", time.time())])
    await journal.close_call("default/over", epoch=1, at_s=time.time())
    (batch,) = await journal.claim(9, now_s=time.time(), post_timeout_s=60.0)
    await journal.retire(batch, error="400", now_s=time.time())
    await journal.aclose()
    return batch.batch_id


def rows(path: Path) -> Rows:
    """Return every row of the journal."""
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        return {
            table: list(connection.execute(f"SELECT * FROM {table}"))
            for table in ("lanes", "calls", "turns", "batches", "tombstones")
        }
    finally:
        connection.close()


class ClosedJournal:
    """A journal that no sidecar has open, and the command line on it.

    Args:
        monkeypatch: Sets the command's environment.
        data_dir: Where to make it.
        max_age_s: `SIDECAR_POST_MAX_AGE_S` of the commands; the sidecar's was a day.
    """

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, data_dir: Path, *, max_age_s: float
    ) -> None:
        data_dir.mkdir(mode=0o700)
        self.path = data_dir / "journal.db"
        self.dead = anyio.run(fill, self.path)
        self._max_age_s = max_age_s
        self._cli = Cli(monkeypatch, data_dir)

    def changed(self, *args: str, code: int = 0) -> set[str]:
        """Run a command; return the tables in which a row changed."""
        before = rows(self.path)
        done = self._cli.run(*args, SIDECAR_POST_MAX_AGE_S=f"{self._max_age_s:g}")
        assert done.code == code, done
        after = rows(self.path)
        return {table for table in before if before[table] != after[table]}

    def due_times_s(self) -> dict[str, float | None]:
        connection = sqlite3.connect(f"file:{self.path}?mode=ro", uri=True)
        try:
            return dict(connection.execute("SELECT key, due_s FROM calls"))
        finally:
            connection.close()


@pytest.fixture(params=[DAY_S, 60.0], ids=["its settings", "other settings"])
def closed(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> ClosedJournal:
    return ClosedJournal(monkeypatch, tmp_path / "data", max_age_s=request.param)


def test_a_batch_that_does_not_exist_is_dropped_without_a_change(closed: ClosedJournal) -> None:
    """Dropping a batch that is not a dead letter changes no row of the journal."""
    assert closed.changed("outbox", "drop", "no-such-batch", code=1) == set()


@pytest.mark.parametrize(
    ("verb", "tables"), [("drop", {"batches"}), ("replay", {"batches", "lanes"})]
)
def test_a_change_to_one_dead_letter_hastens_no_other_call(
    closed: ClosedJournal, verb: str, tables: set[str]
) -> None:
    """Dropping or replaying a dead letter does not change when other turns are due."""
    due_s = closed.due_times_s()
    assert closed.changed("outbox", verb, closed.dead) == tables
    assert closed.due_times_s() == due_s


def test_looking_at_what_is_held_of_a_caller_changes_nothing(closed: ClosedJournal) -> None:
    """`sidecar forget` without --yes changes no row of the journal."""
    assert closed.changed("forget", "--caller", "tel:+12025550148") == set()


def test_forgetting_one_caller_hastens_nobody_elses_call(closed: ClosedJournal) -> None:
    """Forgetting one caller does not change when another caller's turns are due."""
    due_s = closed.due_times_s()
    closed.changed("forget", "--caller", "tel:+12025550148", "--yes")
    assert closed.due_times_s() == {"default/live": due_s["default/live"]}
