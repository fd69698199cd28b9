"""`SqliteJournal`: every port of the journal, implemented by SQL that an `Executor` runs."""

import math
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

import anyio
import anyio.to_thread
import apsw

from sidecar.errors import CallError, JournalError
from sidecar.journal.erasure import StoredOfCaller
from sidecar.journal.policy import PostPolicy
from sidecar.journal.sqlite import batches, forgetting, reads, tombstones, writes
from sidecar.journal.sqlite.executor import Executor
from sidecar.journal.sqlite.file import FileLock, Reserve, journal_error, open_reader, open_writer
from sidecar.journal.sqlite.reports import SqliteReports
from sidecar.journal.sqlite.threads import Threads
from sidecar.model import MAX_SEQ, AgentRef, Batch, Call, Turn
from sidecar.private import installation_secret, make_directory

if TYPE_CHECKING:
    from sidecar.journal.port import Journal

RESERVE_BYTES = 4 << 20

_MANY_TURNS = 500
"""From this many on, turns are checked in a thread: redacting them takes milliseconds."""
_CHECKPOINT_TRIES = 40
_CHECKPOINT_AGAIN_S = 0.05


class SqliteJournal(SqliteReports):
    """A journal in one SQLite file, for one process on an asyncio loop: `open` creates one.

    Promises beyond `Journal`: an append whose caller is cancelled is still stored; reads
    do not delay appends; when the disk is full, settling and erasing go on.
    Costs: one fsync per group of operations that wait at the same time.

    Args:
        executor: Runs the operations; closed with the journal.
        policy: When turns are due.
        secret: Keys the tombstones.
        clock: Unix time in seconds.
        redact: Returns a turn's text as it may be kept; no other text reaches the file.
    """

    def __init__(
        self,
        executor: Executor,
        *,
        policy: PostPolicy,
        secret: bytes,
        clock: Callable[[], float] = time.time,
        redact: Callable[[str], str] | None = None,
    ) -> None:
        super().__init__(executor)
        self._executor = executor
        self._secret = secret
        self._policy = policy
        self._clock = clock
        self._redact = redact

    @classmethod
    async def open(
        cls,
        path: Path | str,
        *,
        policy: PostPolicy,
        clock: Callable[[], float] = time.time,
        reserve_bytes: int = RESERVE_BYTES,
        redact: Callable[[str], str] | None = None,
    ) -> Self:
        """Open the journal at `path`, creating it and its directory when missing.

        Batches that an earlier process was sending are in doubt from here on. No other time or
        state changes, whatever the policy: a command with other settings moves nothing.

        Args:
            path: The file; `-wal`, `-shm`, `.lock` and `.reserve` appear beside it. Tombstones are
                keyed by the `secret` of its directory, the installation's own.
            policy: When turns are due.
            clock: Unix time in seconds.
            reserve_bytes: Disk kept aside for a full disk.
            redact: Returns a turn's text as it may be kept; no other text reaches the file.

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
                secret = _secret(path)
                reserve = Reserve(path, size_bytes=reserve_bytes)
                reserve.take()
                return lock, reserve, (writer, open_reader(path)), secret
            except BaseException:
                lock.release()
                raise

        lock, reserve, connections, secret = await anyio.to_thread.run_sync(prepare)
        threads = Threads(path, lock=lock, reserve=reserve, connections=connections)
        journal = cls(threads, policy=policy, secret=secret, clock=clock, redact=redact)
        try:
            now_s = clock()
            await threads.write(lambda tx: batches.doubt(tx, now_s=now_s))
        except BaseException:
            with anyio.CancelScope(shield=True):
                await journal.aclose()
            raise
        return journal

    @property
    def has_room(self) -> bool:
        """Whether appends are accepted: False from when the disk is full until space returns."""
        return self._executor.has_room

    # Calls and turns

    async def open_call(self, call: Call) -> Call:
        """See `Journal.open_call`."""
        _check_text(call.key, call.caller_key, call.channel)
        now_s = self._clock()
        seal = tombstones.seal_of(self._secret, call.key)
        return await self._executor.write(
            lambda tx: writes.open_call(tx, call, seal=seal, now_s=now_s, policy=self._policy),
            grows=True,
        )

    async def identify(self, call: Call) -> Call:
        """See `Journal.identify`."""
        _check_text(call.key, call.caller_key)
        now_s = self._clock()
        seal = tombstones.seal_of(self._secret, call.key)
        return await self._executor.write(
            lambda tx: writes.identify(tx, call, seal=seal, now_s=now_s, policy=self._policy),
            grows=True,
        )

    async def append(self, turns: Sequence[Turn]) -> None:
        """See `Journal.append`."""
        turns = self._checked(turns)
        now_s = self._clock()
        await self._executor.write(
            lambda tx: writes.append(tx, turns, now_s=now_s, policy=self._policy), grows=True
        )

    def _checked(self, turns: Sequence[Turn]) -> Sequence[Turn]:
        """Return the turns as they may be kept.

        Raises:
            CallError: a lone surrogate, or a `seq` beyond `MAX_SEQ` (`bad_value`).
        """
        for turn in turns:
            _check_text(turn.text, turn.item_id, turn.call)
            if turn.seq > MAX_SEQ:
                raise CallError("bad_value", "a turn's seq is too large", hint="count from 1")
        redact = self._redact
        if redact is None:
            return turns
        return [replace(turn, text=redact(turn.text)) for turn in turns]

    async def rewrite(self, key: str, turns: Sequence[Turn], *, unchanged: int) -> int:
        """See `Journal.rewrite`."""
        if len(turns) < _MANY_TURNS:
            turns = self._checked(turns)
        else:
            turns = await anyio.to_thread.run_sync(self._checked, turns)
        now_s = self._clock()
        return await self._executor.write(
            lambda tx: writes.rewrite(
                tx, key, turns, unchanged=unchanged, now_s=now_s, policy=self._policy
            ),
            grows=True,
        )

    async def close_call(self, key: str, *, at_s: float, final: bool = False) -> None:
        """See `Journal.close_call`."""
        now_s = self._clock()
        await self._executor.write(
            lambda tx: writes.close_call(
                tx, key, at_s=at_s, final=final, now_s=now_s, policy=self._policy
            )
        )

    async def try_write(self) -> None:
        """See `Journal.try_write`."""
        await self._executor.write(writes.write_nothing_new, grows=True)

    async def hurry(self, *, now_s: float) -> None:
        """See `Journal.hurry`."""
        await self._executor.write(lambda tx: writes.hurry(tx, now_s=now_s))

    async def erase_settled(self, *, before_s: float) -> int:
        """See `Journal.erase_settled`. The text is overwritten in the file, and in its log."""
        erased = 0
        while True:
            some = await self._executor.write(lambda tx: writes.erase_ended(tx, before_s=before_s))
            if some is None:
                break
            erased += some
        await self._executor.write(lambda tx: tombstones.clear(tx, before_s=before_s))
        if erased:
            await self._emptied_log()  # if not now: after the next erasure, or in due course
        return erased

    async def _emptied_log(self) -> bool:
        """Empty the log, in several tries that each delay appends only for a moment."""
        for _ in range(_CHECKPOINT_TRIES):
            if await self._executor.read(reads.checkpoint):
                return True
            await anyio.sleep(_CHECKPOINT_AGAIN_S)
        return False

    async def stored_of_caller(self, caller_key: str) -> StoredOfCaller:
        """See `Journal.stored_of_caller`."""
        return await self._executor.read(lambda tx: forgetting.stored_of_caller(tx, caller_key))

    async def erase_caller(self, caller_key: str, *, also: Sequence[str] = (), now_s: float) -> int:
        """See `Journal.erase_caller`. The words are overwritten in the file, and in its log.

        Raises:
            CallerBusy: see `Journal.erase_caller`.
            JournalError: the calls are erased, but the log could not be emptied, because a
                program holds the file open. Call it again.
        """
        erased = await self._executor.write(
            lambda tx: forgetting.erase_caller(
                tx, caller_key, also=also, secret=self._secret, now_s=now_s
            )
        )
        if not await self._emptied_log():
            raise JournalError(
                "the calls are erased, but not yet overwritten in the journal's log",
                hint="end the program that reads the journal, and repeat this",
            )
        return erased

    async def said_of(self, pieces: Collection[bytes]) -> set[bytes]:
        """See `Journal.said_of`. Reads some calls at a time, so that other reads wait less."""
        left, found, after = set(pieces), set[bytes](), 0
        while left:
            last, said = await self._executor.read(
                lambda tx, after=after, left=tuple(left): reads.said_of(tx, left, after=after)
            )
            if last is None:
                break
            found |= said
            left -= said
            after = last
        return found

    # What was learnt from Letta

    async def agent_of(self, ref: AgentRef) -> str | None:
        """See `Journal.agent_of`."""
        return await self._executor.read(lambda tx: reads.agent_of(tx, ref))

    async def learn_agent(self, ref: AgentRef, agent_id: str) -> None:
        """See `Journal.learn_agent`."""
        await self._executor.write(lambda tx: writes.learn_agent(tx, ref, agent_id))

    async def forget_agent(self, ref: AgentRef) -> None:
        """See `Journal.forget_agent`."""
        await self._executor.write(lambda tx: writes.learn_agent(tx, ref, None))

    async def learn_conversation(self, key: str, conversation_id: str) -> None:
        """See `Journal.learn_conversation`."""
        await self._executor.write(lambda tx: writes.learn_conversation(tx, key, conversation_id))

    # Batches

    async def claim(self, limit: int, *, now_s: float, post_timeout_s: float) -> list[Batch]:
        """See `Journal.claim`."""
        return await self._executor.write(
            lambda tx: batches.claim(
                tx, limit, now_s=now_s, post_timeout_s=post_timeout_s, policy=self._policy
            )
        )

    async def take_back(
        self, *, now_s: float, wait_s: float = math.inf, horizon_s: float = math.inf
    ) -> None:
        """See `Journal.take_back`."""
        await self._executor.write(
            lambda tx: batches.take_back(
                tx, now_s=now_s, wait_s=wait_s, horizon_s=horizon_s, policy=self._policy
            )
        )

    async def resend(self, batch: Batch, *, now_s: float, post_timeout_s: float) -> Batch:
        """See `Journal.resend`."""
        return await self._executor.write(
            lambda tx: batches.resend(
                tx, batch.batch_id, now_s=now_s, post_timeout_s=post_timeout_s
            )
        )

    async def settle(self, batch: Batch, *, now_s: float) -> None:
        """See `Journal.settle`."""
        await self._executor.write(lambda tx: batches.settle(tx, batch.batch_id, now_s=now_s))

    async def release(
        self, batch: Batch, *, due_s: float, unknown: bool, over: bool, error: str, now_s: float
    ) -> None:
        """See `Journal.release`."""
        await self._executor.write(
            lambda tx: batches.release(
                tx,
                batch.batch_id,
                due_s=due_s,
                unknown=unknown,
                over=over,
                error=error,
                now_s=now_s,
            )
        )

    async def retire(
        self, batch: Batch, *, error: str, now_s: float, hold_until_s: float = 0.0
    ) -> None:
        """See `Journal.retire`."""
        await self._executor.write(
            lambda tx: batches.retire(
                tx, batch.batch_id, error=error, now_s=now_s, hold_until_s=hold_until_s
            )
        )

    async def split(self, batch: Batch, *, now_s: float) -> None:
        """See `Journal.split`."""
        await self._executor.write(lambda tx: batches.split(tx, batch.batch_id, now_s=now_s))

    async def replay(self, batch_id: str, *, now_s: float) -> bool:
        """See `Journal.replay`."""
        return await self._executor.write(lambda tx: batches.replay(tx, batch_id, now_s=now_s))

    async def drop(self, batch_id: str, *, now_s: float) -> bool:
        """See `Journal.drop`."""
        return await self._executor.write(lambda tx: batches.drop(tx, batch_id, now_s=now_s))

    # The state of delivery

    async def next_due_s(self) -> float | None:
        """See `Journal.next_due_s`."""
        return await self._executor.read(reads.next_due_s)

    async def wait(self, timeout_s: float) -> None:
        """See `Journal.wait`."""
        await self._executor.wait(timeout_s)

    async def recent(
        self, ref: AgentRef, *, caller_key: str, except_call: str, since_s: float, limit: int
    ) -> tuple[Turn, ...]:
        """See `Journal.recent`."""
        if not caller_key or not ref.known:
            return ()
        return await self._executor.read(
            lambda tx: reads.recent(
                tx,
                ref,
                caller_key=caller_key,
                except_call=except_call,
                since_s=since_s,
                limit=limit,
            )
        )

    async def live_calls(self) -> list[Call]:
        """See `Journal.live_calls`."""
        return await self._executor.read(reads.live_calls)

    async def aclose(self) -> None:
        """See `Journal.aclose`."""
        await self._executor.stop()


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


def _check_text(*texts: str) -> None:
    """Refuse text that UTF-8 cannot encode, before any of it is stored.

    Raises:
        CallError: a lone surrogate (`bad_value`).
    """
    for text in texts:
        # Compared, because the codec's own error would carry the text.
        if text.isascii():
            continue
        if text.encode("utf-8", "surrogatepass") != text.encode("utf-8", "replace"):
            raise CallError("bad_value", "a text is no Unicode", hint="send no lone surrogates")


if TYPE_CHECKING:
    _EVERY_PORT: type[Journal] = SqliteJournal
