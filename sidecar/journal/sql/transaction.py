"""What an operation gets: SQL, and a way to say that something may be due earlier."""

from contextlib import AbstractContextManager
from typing import Any, Protocol


class Transaction(Protocol):
    """Runs statements, all within one transaction of an engine.

    Values stand in a statement as ``?``, or as ``?1``, ``?2`` where one is used twice. They are
    texts, bytes, whole numbers, floats or None; a yes or no is 1 or 0. Statements are SQLite's, as
    far as other engines understand them or can be taught to: ``min(a, b)`` and ``max(a, b)``, NULL
    where one of them is; ``instr``; ``INDEXED BY``; ``CAST(text AS BLOB)``.
    """

    wakes: bool
    """Set by an operation after which something may be due earlier than before."""

    digested: list[int]
    """Lanes, by their row, of which an operation has noted that Letta has digested more."""

    def rows(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        """Run a statement and return its rows."""
        ...

    def row(self, sql: str, *values: Any) -> tuple[Any, ...] | None:
        """Run a statement and return its first row."""
        ...

    def run(self, sql: str, *values: Any) -> int:
        """Run a statement and return how many rows it changed."""
        ...

    def snapshot(self) -> AbstractContextManager[None]:
        """Let all statements of a read see the same commit; a single statement does so anyway."""
        ...

    def write_nothing_new(self) -> None:
        """Make a durable write that changes nothing."""
        ...
