"""`SqliteJournal`: the journal in one file, whose erased words are overwritten."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

import anyio
import anyio.to_thread
import apsw
from typing_extensions import override

from sidecar.errors import JournalError
from sidecar.journal.policy import PostPolicy
from sidecar.journal.sql import SqlJournal
from sidecar.journal.sql.batches import begin
from sidecar.journal.sql.replicas import new_name
from sidecar.journal.sql.transaction import Transaction
from sidecar.journal.sqlite.file import (
    FileLock,
    Reserve,
    journal_error,
    open_reader,
    open_writer,
)
from sidecar.journal.sqlite.threads import Threads
from sidecar.private import installation_secret, make_directory

RESERVE_BYTES = 4 << 20

_CHECKPOINT_BUSY_MS = 50
_CHECKPOINT_TRIES = 40
_CHECKPOINT_AGAIN_S = 0.05


class SqliteJournal(SqlJournal):
    """A journal in one SQLite file, for one process on an asyncio loop: `open` creates one.

    Costs: one fsync per group of operations that wait at the same time.
    """

    @classmethod
    async def open(
        cls,
        path: Path | str,
        *,
        policy: PostPolicy,
        clock: Callable[[], float] = time.time,
        reserve_bytes: int = RESERVE_BYTES,
        redact: Callable[[str], str] | None = None,
        secret: bytes | None = None,
    ) -> Self:
        """Open the journal at `path`, creating it and its directory when missing.

        Batches that an earlier process was sending are in doubt from here on. No other time or
        state changes, whatever the policy: a command with other settings moves nothing.

        Args:
            path: The file; `-wal`, `-shm`, `.lock` and `.reserve` appear beside it.
            policy: When turns are due.
            clock: Unix time in seconds.
            reserve_bytes: Disk kept aside for a full disk.
            redact: As for `SqlJournal`.
            secret: Keys the tombstones; None: the `secret` of the file's directory.

        Raises:
            JournalLocked: another process has it open.
            JournalCorrupt: the file is damaged beyond its own recovery, or is no journal.
            JournalFull: there is no room to create it.
        """
        path = Path(path)

        def prepare() -> tuple[FileLock, Reserve, tuple[apsw.Connection, apsw.Connection], bytes]:
            lock = _lock(path)
            try:
                writer = open_writer(path)
                key = secret or _secret(path)
                reserve = Reserve(path, size_bytes=reserve_bytes)
                reserve.take()
                return lock, reserve, (writer, open_reader(path)), key
            except BaseException:
                lock.release()
                raise

        lock, reserve, connections, key = await anyio.to_thread.run_sync(prepare)
        threads = Threads(path, lock=lock, reserve=reserve, connections=connections)
        journal = cls(
            threads, policy=policy, secret=key, clock=clock, redact=redact, replica=new_name()
        )
        now_s = clock()
        try:
            await threads.write(lambda tx: begin(tx, replica=journal.replica, now_s=now_s))
        except BaseException:
            with anyio.CancelScope(shield=True):
                await journal.aclose()
            raise
        return journal

    @override
    async def erase_settled(self, *, before_s: float) -> int:
        """See `Journal.erase_settled`. The text is overwritten in the file, and in its log."""
        erased = await super().erase_settled(before_s=before_s)
        if erased:
            await self._emptied_log()  # if not now: after the next erasure, or in due course
        return erased

    @override
    async def erase_caller(
        self,
        caller_key: str,
        *,
        also: Sequence[str] = (),
        agents: Sequence[str] = (),
        now_s: float,
    ) -> int:
        """See `Journal.erase_caller`. The words are overwritten in the file, and in its log.

        Raises:
            CallerBusy: see `Journal.erase_caller`.
            JournalError: the calls are erased, but the log could not be emptied, because a
                program holds the file open. Call it again.
        """
        erased = await super().erase_caller(caller_key, also=also, agents=agents, now_s=now_s)
        if not await self._emptied_log():
            raise JournalError(
                "the calls are erased, but not yet overwritten in the journal's log",
                hint="end the program that reads the journal, and repeat this",
            )
        return erased

    async def _emptied_log(self) -> bool:
        """Empty the log, in several tries that each delay appends only for a moment."""
        for _ in range(_CHECKPOINT_TRIES):
            if await self.executor.read(checkpoint):
                return True
            await anyio.sleep(_CHECKPOINT_AGAIN_S)
        return False


def checkpoint(tx: Transaction) -> bool:
    """Move the write-ahead log into the file and empty it: erased text stays in neither.

    Appends wait for it, and it waits for readers of the file (a backup, a shell); not for long.

    Returns:
        False when another reader or writer was in the way; repeat it.
    """
    ((busy_ms,),) = tx.rows("PRAGMA busy_timeout")
    tx.rows(f"PRAGMA busy_timeout = {_CHECKPOINT_BUSY_MS}")
    try:
        return tx.rows("PRAGMA wal_checkpoint(TRUNCATE)")[0][0] == 0
    finally:
        tx.rows(f"PRAGMA busy_timeout = {busy_ms}")


def _lock(path: Path) -> FileLock:
    try:
        make_directory(path.parent)
        return FileLock(path)
    except OSError as error:
        raise journal_error(error, path) from error


def _secret(path: Path) -> bytes:
    try:
        return installation_secret(path.parent)
    except OSError as error:
        raise journal_error(error, path) from error
