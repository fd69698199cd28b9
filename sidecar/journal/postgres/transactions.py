"""PostgreSQL runs the journal's operations: their SQL in its words."""

import functools
import re
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any, Final, LiteralString, cast

import psycopg
from psycopg.pq import TransactionStatus

from sidecar.journal.postgres.connection import Connection

_PLACE: Final = re.compile(r"\?(\d*)")
_HINT: Final = re.compile(r" INDEXED BY \w+")
_TEXT_AS_BYTES: Final = "CAST(text AS BLOB)"
# PostgreSQL stores every character but NUL, for which two others stand.
_NUL: Final = "\x00"
_MARK: Final = "\U0010ffff"
_STORED_NUL: Final = f"{_MARK}0"
_STORED_MARK: Final = f"{_MARK}1"


@functools.cache
def in_postgres(sql: str) -> LiteralString:
    """Return a statement of `sidecar.journal.sql` in PostgreSQL's words."""
    places = 0

    def place(match: re.Match[str]) -> str:
        nonlocal places
        places += 1
        return f"${match[1] or places}"

    sql = _HINT.sub("", sql).replace(_TEXT_AS_BYTES, "convert_to(text, 'UTF8')")
    # The operations' statements are constants of this package.
    return cast("LiteralString", _PLACE.sub(place, sql))


def _notes_nothing() -> None:
    """Do nothing: nobody waits for the answer but the caller."""


class PostgresTransaction:
    """A `Transaction` on one connection.

    Args:
        connection: In autocommit mode, used by one thread at a time.
        asks: Called before each statement.
    """

    def __init__(
        self, connection: Connection, *, asks: Callable[[], None] = _notes_nothing
    ) -> None:
        self._connection = connection
        self._asks = asks
        self._cursor = psycopg.RawCursor(connection)
        self.wakes = False
        self.digested: list[int] = []

    def rows(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        """Run a statement and return its rows."""
        self._execute(sql, values)
        if self._cursor.description is None:
            return []
        return [_as_said(row) for row in self._cursor.fetchall()]

    def row(self, sql: str, *values: Any) -> tuple[Any, ...] | None:
        """Run a statement and return its first row."""
        return next(iter(self.rows(sql, *values)), None)

    def run(self, sql: str, *values: Any) -> int:
        """Run a statement and return how many rows it changed."""
        self._execute(sql, values)
        return self._cursor.rowcount

    def _execute(self, sql: str, values: Sequence[Any]) -> None:
        self._asks()
        searched = _TEXT_AS_BYTES in sql
        self._cursor.execute(
            in_postgres(sql), [_storable(value, searched=searched) for value in values]
        )

    def write_nothing_new(self) -> None:
        """Count a try."""
        self.run("UPDATE writer SET tries = tries + 1")

    @contextmanager
    def snapshot(self) -> Generator[None]:
        """Let all statements of a read see the same commit; a single statement does so anyway."""
        if self._connection.info.transaction_status != TransactionStatus.IDLE:
            yield
            return
        self.run("BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        try:
            yield
        finally:
            self.run("ROLLBACK")


def _storable(value: Any, *, searched: bool) -> Any:
    """Return a value as it is stored; bytes that are `searched` for are those of a text."""
    if isinstance(value, str):
        return str(value).replace(_MARK, _STORED_MARK).replace(_NUL, _STORED_NUL)
    if searched and isinstance(value, bytes):
        return _storable(value.decode("utf-8", "surrogateescape"), searched=False).encode(
            "utf-8", "surrogateescape"
        )
    return value


def _as_said(row: tuple[Any, ...]) -> tuple[Any, ...]:
    if not any(isinstance(value, str) and _MARK in value for value in row):
        return row
    return tuple(
        value.replace(_STORED_NUL, _NUL).replace(_STORED_MARK, _MARK)
        if isinstance(value, str)
        else value
        for value in row
    )
