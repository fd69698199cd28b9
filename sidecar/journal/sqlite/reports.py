"""The journal's file as a person looks at it, also while a sidecar owns and writes it.

Opened for reading only: a look holds no writer up, and takes no lock that a start would meet.
Blocking: for the command line, not for a loop.
"""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import apsw

from sidecar.errors import JournalError
from sidecar.journal.reports import BatchRow, JournalCounts, LaneStatus
from sidecar.journal.sqlite import reads
from sidecar.journal.sqlite.file import SCHEMA_VERSION, execute, journal_error
from sidecar.journal.sqlite.transactions import Transaction
from sidecar.model import AgentRef, Call, Turn

_BUSY_MS = 5_000


@dataclass(frozen=True, slots=True)
class CallRow:
    """A call with how much of it there is. `undelivered`: neither settled nor given up."""

    call: Call
    turns: int
    undelivered: int


class JournalFile:
    """What a journal's file holds, each answer on the state of one commit."""

    def __init__(self, connection: apsw.Connection) -> None:
        self._tx = Transaction(connection)

    def counts(self) -> JournalCounts:
        """Return totals."""
        return reads.counts(self._tx)

    def lanes(self) -> list[LaneStatus]:
        """Return the lanes that hold something undelivered."""
        return reads.lanes(self._tx)

    def calls(self, *, limit: int, live: bool = False, caller_key: str = "") -> list[CallRow]:
        """Return the newest calls, newest first.

        Args:
            limit: At most this many; negative: all.
            live: Only those that are not closed.
            caller_key: Only this caller's; empty: everybody's.
        """
        rows = self._tx.rows(
            f"{_SELECT_CALL_ROW} WHERE (NOT ?1 OR c.closed_at_s IS NULL)"
            " AND (?2 = '' OR c.caller_key = ?2) ORDER BY c.id DESC LIMIT ?3",
            live,
            caller_key,
            limit,
        )
        return [_call_row(row) for row in rows]

    def keys(self) -> list[str]:
        """Return the key of every call."""
        return [key for (key,) in self._tx.rows("SELECT key FROM calls")]

    def callers(self, beginning: str) -> list[str]:
        """Return the keys (hex) of callers that begin so, of those who have called."""
        rows = self._tx.rows(
            "SELECT DISTINCT caller_key FROM calls"
            " WHERE caller_key >= ?1 AND caller_key < ?1 || 'g' ORDER BY caller_key",
            beginning,
        )
        return [key for (key,) in rows]

    def call(self, key: str) -> CallRow | None:
        """Return a call by its key."""
        rows = self._tx.rows(f"{_SELECT_CALL_ROW} WHERE c.key = ?", key)
        return _call_row(rows[0]) if rows else None

    def agents_of(self, caller_key: str) -> list[str]:
        """Return Letta's ids of the agents that this caller's calls went to, as far as known."""
        rows = self._tx.rows(
            "SELECT name, agent_id FROM lanes WHERE name LIKE '%/caller/' || ?1"
            " OR id IN (SELECT lane FROM calls WHERE caller_key = ?1)",
            caller_key,
        )
        agents = [AgentRef.of_lane(name).agent_id or agent_id for name, agent_id in rows]
        return sorted({agent for agent in agents if agent})

    def turns(self, key: str) -> tuple[Turn, ...]:
        """Return all turns of a call, in order."""
        return reads.turns(self._tx, key)

    def turns_since(self, appended_s: float) -> list[tuple[float, Turn]]:
        """Return the turns stored at or after a Unix time, each with when it was stored."""
        rows = self._tx.rows(
            f"{reads.SELECT_TURN} WHERE t.appended_s >= ? ORDER BY t.appended_s, c.id, t.n".replace(
                "SELECT c.key", "SELECT t.appended_s, c.key"
            ),
            appended_s,
        )
        return [(row[0], reads.turn_of_row(row[1:])) for row in rows]

    def batches(self, *, states: tuple[str, ...], limit: int) -> list[BatchRow]:
        """Return the batches in one of these states, oldest first."""
        return reads.batches(self._tx, states=states, limit=limit)

    def batch(self, name: str) -> tuple[BatchRow, tuple[Turn, ...]] | None:
        """Return a batch by its id, or by the first characters of it, with its turns."""
        rows = self._tx.rows(
            f"{reads.SELECT_BATCH} WHERE substr(b.batch_id, 1, length(?1)) = ?1 LIMIT 2", name
        )
        if len(rows) != 1:
            return None
        batch = BatchRow(*rows[0])
        turns = self._tx.rows(
            f"{reads.SELECT_TURN} JOIN batches b ON b.call = c.id AND t.n BETWEEN b.lo AND b.hi"
            " WHERE b.batch_id = ? ORDER BY t.n",
            batch.batch_id,
        )
        return batch, tuple(reads.turn_of_row(row) for row in turns)


_SELECT_CALL_ROW = reads.SELECT_CALL.replace(" FROM ", ", c.head, c.head - c.acked FROM ", 1)


def _call_row(row: tuple[object, ...]) -> CallRow:
    *call, turns, undelivered = row
    assert isinstance(turns, int)
    assert isinstance(undelivered, int)
    return CallRow(reads.call_of_row(tuple(call)), turns, undelivered)


@contextmanager
def journal_file(path: Path) -> Generator[JournalFile]:
    """Open a journal's file for reading.

    Raises:
        JournalError: there is none, or it can't be read.
    """
    if not path.is_file():
        raise JournalError(
            f"there is no journal at {path}",
            hint="start the sidecar once, or check SIDECAR_DATA_DIR",
        )
    try:
        connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
        connection.set_busy_timeout(_BUSY_MS)
        ((version,),) = execute(connection, "PRAGMA user_version")
    except apsw.Error as error:
        raise journal_error(error, path) from error
    try:
        if version != SCHEMA_VERSION:
            raise JournalError(
                f"{path} was written by another version of the sidecar (schema {version})",
                hint="start this version once, or look with the version that runs",
            )
        yield JournalFile(connection)
    except apsw.Error as error:
        raise journal_error(error, path) from error
    finally:
        connection.close()
