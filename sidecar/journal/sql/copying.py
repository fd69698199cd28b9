"""All rows of one journal into another, of the same engine or of another.

The copy is in the order of the tables and of their keys, each step in one transaction, so what is
left of one that was interrupted is its beginning. A later one compares that with the source, and
goes on behind it; if the source has changed since, it begins anew.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sidecar.errors import JournalError
from sidecar.journal.sql.executor import Executor
from sidecar.journal.sql.transaction import Transaction

_ROWS: Final = 200
_ERASED_ROWS: Final = 2_000


@dataclass(frozen=True, slots=True)
class Table:
    """What is copied of a table.

    Attributes:
        name: Of the table.
        key: Its primary key.
        others: The other columns.
    """

    name: str
    key: tuple[str, ...]
    others: tuple[str, ...]

    @property
    def columns(self) -> str:
        """All of them, as SQL lists them."""
        return ", ".join((*self.key, *self.others))


# A lane's open batch is copied last: it names a row of a table that names lanes.
_TABLES: Final = (
    Table("lanes", ("id",), ("name", "agent_id", "due_s", "hold_s", "replica", "epoch")),
    Table(
        "calls",
        ("id",),
        (
            *("key", "lane", "deliver", "channel", "caller_key", "opened_at_s", "closed_at_s"),
            *("conversation_id", "consent", "final", "head", "sealed", "acked", "parts"),
            *("due_s", "last_s", "settled_s", "replica", "epoch", "room", "lost_s", "opened_by"),
            "tokens",
        ),
    ),
    Table("successors", ("key",), ("call", "opened_at_s")),
    Table(
        "turns",
        ("call", "n"),
        (
            *("item_id", "seq", "speaker", "text", "chars", "at_s", "appended_s", "interrupted"),
            *("metrics", "traceparent"),
        ),
    ),
    Table(
        "batches",
        ("id",),
        (
            *("batch_id", "lane", "call", "part", "lo", "hi", "last_part", "state", "attempt"),
            *("horizon_s", "sealed_at_s", "replayed_s", "ended_s", "error"),
        ),
    ),
    Table("tombstones", ("seal",), ("erased_s",)),
    Table("spent", ("tenant", "day"), ("tokens",)),
)
TABLES: Final = tuple(table.name for table in _TABLES)

Progress = Callable[[str, int, int], None]
"""Called with the table, how many of its rows are compared or copied, and how many it has."""


class _Changed(Exception):
    """The source has other rows than it had when the target's were copied."""


async def copy(source: Executor, target: Executor, *, progress: Progress) -> dict[str, int]:
    """Copy all rows; return how many of each table were not in the target before.

    A second copy that returns only zeros proves the first: it has compared every row.

    Args:
        source: Nothing else writes to it meanwhile.
        target: Empty, or left by an earlier copy.
        progress: See `Progress`.

    Raises:
        JournalError: one of the two failed. Call it again: what is copied stays.
    """
    try:
        return await _copy(source, target, progress)
    except _Changed:
        await _empty(target)
    try:
        return await _copy(source, target, progress)
    except _Changed:
        raise JournalError("the source changes while it is copied", hint="stop what does") from None


async def _copy(source: Executor, target: Executor, progress: Progress) -> dict[str, int]:
    written: dict[str, int] = {}
    for table in _TABLES:
        written[table.name] = await _copy_table(table, source, target, progress)
    open_batches = await source.read(_open_batches)
    if open_batches != await target.read(_open_batches):
        await target.write(lambda tx: _open(tx, open_batches))
    return written


async def _copy_table(table: Table, source: Executor, target: Executor, progress: Progress) -> int:
    total = await source.read(lambda tx: _count(tx, table))
    done, written, after = 0, 0, None
    while True:
        rows = await source.read(lambda tx, after=after: _rows(tx, table, after))
        there = await target.read(lambda tx, after=after: _rows(tx, table, after))
        if there != rows[: len(there)]:
            raise _Changed
        missing = rows[len(there) :]
        if missing:
            await target.write(lambda tx, missing=missing: _insert(tx, table, missing), grows=True)
        if not rows:
            break
        written += len(missing)
        done += len(rows)
        after = rows[-1][: len(table.key)]
        progress(table.name, done, total)
    if done != await target.read(lambda tx: _count(tx, table)):
        raise JournalError(f"the copy of {table.name} has another number of rows than its source")
    return written


def _count(tx: Transaction, table: Table) -> int:
    return tx.rows(f"SELECT count(*) FROM {table.name}")[0][0]  # noqa: S608 - constants only


def _rows(tx: Transaction, table: Table, after: Sequence[Any] | None) -> list[tuple[Any, ...]]:
    key = ", ".join(table.key)
    where = "" if after is None else f" WHERE ({key}) > ({', '.join('?' for _ in after)})"
    return tx.rows(
        f"SELECT {table.columns} FROM {table.name}{where}"  # noqa: S608 - constants only
        f" ORDER BY {key} LIMIT {_ROWS}",
        *(after or ()),
    )


def _insert(tx: Transaction, table: Table, rows: Sequence[tuple[Any, ...]]) -> None:
    one = f"({', '.join('?' for _ in rows[0])})"
    tx.run(
        f"INSERT INTO {table.name}({table.columns})"  # noqa: S608 - constants only
        f" VALUES {', '.join(one for _ in rows)}",
        *(value for row in rows for value in row),
    )


def _open_batches(tx: Transaction) -> list[tuple[Any, ...]]:
    return tx.rows("SELECT id, open_batch FROM lanes WHERE open_batch IS NOT NULL ORDER BY id")


def _open(tx: Transaction, open_batches: Sequence[tuple[Any, ...]]) -> None:
    tx.run("UPDATE lanes SET open_batch = NULL WHERE open_batch IS NOT NULL")
    for lane, batch in open_batches:
        tx.run("UPDATE lanes SET open_batch = ? WHERE id = ?", batch, lane)


async def _empty(target: Executor) -> None:
    """Erase all rows, some at a time."""
    await target.write(lambda tx: tx.run("UPDATE lanes SET open_batch = NULL"))
    for table in reversed(_TABLES):
        while await target.write(lambda tx, table=table: _erase_some(tx, table)):
            pass


def _erase_some(tx: Transaction, table: Table) -> int:
    key = ", ".join(table.key)
    return tx.run(
        f"DELETE FROM {table.name} WHERE ({key}) IN"  # noqa: S608 - constants only
        f" (SELECT {key} FROM {table.name} ORDER BY {key} LIMIT {_ERASED_ROWS})"
    )
