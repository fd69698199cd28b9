"""`SqlJournal`: every port of the journal, implemented by SQL that an `Executor` runs."""

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import anyio.to_thread

from sidecar.errors import CallError
from sidecar.journal.elsewhere import Commanded, Usage
from sidecar.journal.erasure import StoredOfCaller
from sidecar.journal.policy import PostPolicy
from sidecar.journal.sql import (
    batches,
    commands,
    forgetting,
    once,
    reads,
    replicas,
    taking,
    tombstones,
    writes,
)
from sidecar.journal.sql import usage as usages
from sidecar.journal.sql.executor import Executor
from sidecar.journal.sql.reports import SqlReports
from sidecar.journal.sql.transaction import Transaction
from sidecar.model import MAX_SEQ, AgentRef, Batch, Call, Turn

if TYPE_CHECKING:
    from sidecar.journal.port import Journal

_MANY_TURNS = 500
"""From this many on, turns are checked in a thread: redacting them takes milliseconds."""


class SqlJournal(SqlReports):
    """A journal in an SQL database.

    Promises beyond `Journal`: an append whose caller is cancelled is still stored; reads do not
    delay appends; when there is no room, settling and erasing go on.

    Args:
        executor: Runs the operations; closed with the journal.
        policy: When turns are due.
        secret: Keys the tombstones.
        clock: Unix time in seconds.
        redact: Returns a turn's text as it may be kept; no other reaches the database. Commands
            into live calls and answers of tools are stored as they are, and go with their call.
        replica: Names this run of a sidecar; entered by whoever opens the journal. Operations read
            it when they are run.
    """

    def __init__(
        self,
        executor: Executor,
        *,
        policy: PostPolicy,
        secret: bytes,
        clock: Callable[[], float] = time.time,
        redact: Callable[[str], str] | None = None,
        replica: str,
    ) -> None:
        super().__init__(executor)
        self.executor = executor
        self._secret = secret
        self._policy = policy
        self._clock = clock
        self._redact = redact
        self._replica = replica
        self.digested: Callable[[AgentRef], None] = _tell_nobody

    @property
    def replica(self) -> str:
        """See `Journal.replica`."""
        return self._replica

    @property
    def has_room(self) -> bool:
        """Whether appends are accepted: False from when the disk is full until space returns."""
        return self.executor.has_room

    # Calls and turns

    async def open_call(
        self, call: Call, *, continues: str = "", lost_s: float | None = None
    ) -> Call:
        """See `Journal.open_call`."""
        _check_text(call.key, call.caller_key, call.channel, call.room)
        now_s = self._clock()
        return await self.executor.write(
            lambda tx: writes.open_call(
                tx,
                call,
                continues=continues,
                lost_s=lost_s,
                replica=self.replica,
                secret=self._secret,
                now_s=now_s,
                policy=self._policy,
            ),
            grows=True,
        )

    async def lose(self, lost: Sequence[tuple[str, int]], *, at_s: float) -> None:
        """See `Journal.lose`."""
        await self.executor.write(lambda tx: taking.lose(tx, lost, replica=self.replica, at_s=at_s))

    async def refuse(self, key: str) -> None:
        """See `Journal.refuse`."""
        await self.executor.write(lambda tx: taking.refuse(tx, key))

    async def in_room(self, room: str, *, caller_key: str) -> str | None:
        """See `Journal.in_room`."""
        if not room or not caller_key:
            return None
        now_s = self._clock()
        return await self.executor.read(lambda tx: reads.in_room(tx, room, caller_key, now_s=now_s))

    async def so_far(self, key: str, *, except_by: str, limit: int) -> tuple[Turn, ...]:
        """See `Journal.so_far`."""
        return await self.executor.read(
            lambda tx: reads.so_far(tx, key, except_by=except_by, limit=limit)
        )

    async def identify(self, call: Call) -> Call:
        """See `Journal.identify`."""
        _check_text(call.key, call.caller_key)
        now_s = self._clock()
        return await self.executor.write(
            lambda tx: writes.identify(
                tx, call, secret=self._secret, now_s=now_s, policy=self._policy
            ),
            grows=True,
        )

    async def append(self, turns: Sequence[Turn], *, left: bool = False) -> None:
        """See `Journal.append`."""
        turns = self._checked(turns)
        now_s = self._clock()
        await self.executor.write(
            lambda tx: writes.append(
                tx,
                turns,
                replica=None if left else self.replica,
                now_s=now_s,
                policy=self._policy,
            ),
            grows=True,
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

    async def rewrite(self, key: str, turns: Sequence[Turn], *, unchanged: int, epoch: int) -> int:
        """See `Journal.rewrite`."""
        if len(turns) < _MANY_TURNS:
            turns = self._checked(turns)
        else:
            turns = await anyio.to_thread.run_sync(self._checked, turns)
        now_s = self._clock()
        return await self.executor.write(
            lambda tx: writes.rewrite(
                tx,
                key,
                turns,
                unchanged=unchanged,
                replica=self.replica,
                epoch=epoch,
                now_s=now_s,
                policy=self._policy,
            ),
            grows=True,
        )

    async def close_call(
        self,
        key: str,
        *,
        at_s: float,
        epoch: int | None,
        final: bool = False,
        ended: bool = True,
        if_lost: bool = False,
    ) -> None:
        """See `Journal.close_call`."""
        now_s = self._clock()
        await self.executor.write(
            lambda tx: writes.close_call(
                tx,
                key,
                at_s=at_s,
                final=final,
                ended=ended,
                if_lost=if_lost,
                replica=self.replica,
                epoch=epoch,
                now_s=now_s,
                policy=self._policy,
            )
        )

    async def try_write(self) -> None:
        """See `Journal.try_write`."""
        await self.executor.write(lambda tx: tx.write_nothing_new(), grows=True)

    async def hurry(self, *, now_s: float) -> None:
        """See `Journal.hurry`."""
        await self.executor.write(lambda tx: writes.hurry(tx, replica=self.replica, now_s=now_s))

    async def erase_settled(self, *, before_s: float) -> int:
        """See `Journal.erase_settled`."""
        erased = 0
        while True:
            some = await self.executor.write(
                lambda tx: forgetting.erase_ended(tx, before_s=before_s)
            )
            if some is None:
                break
            erased += some
        now_s = self._clock()

        def clear(tx: Transaction) -> None:
            tombstones.clear(tx, before_s=before_s)
            once.clear(tx, now_s=now_s)
            commands.drop_late(tx, now_s=now_s)

        await self.executor.write(clear)
        return erased

    async def stored_of_caller(self, caller_key: str) -> StoredOfCaller:
        """See `Journal.stored_of_caller`."""
        return await self.executor.read(lambda tx: forgetting.stored_of_caller(tx, caller_key))

    async def erase_caller(
        self,
        caller_key: str,
        *,
        also: Sequence[str] = (),
        agents: Sequence[str] = (),
        now_s: float,
    ) -> int:
        """See `Journal.erase_caller`.

        Raises:
            CallerBusy: see `Journal.erase_caller`.
        """
        return await self.executor.write(
            lambda tx: forgetting.erase_caller(
                tx, caller_key, also=also, agents=agents, secret=self._secret, now_s=now_s
            )
        )

    async def is_any_erased(self, *, since_s: float) -> bool:
        """See `Journal.is_any_erased`."""
        return await self.executor.read(lambda tx: tombstones.is_any_since(tx, since_s))

    async def erased_agents(self, agent_ids: Collection[str], *, since_s: float) -> set[str]:
        """See `Journal.erased_agents`."""
        return await self.executor.read(
            lambda tx: tombstones.erased_agents(tx, agent_ids, secret=self._secret, since_s=since_s)
        )

    async def said_of(self, pieces: Collection[bytes]) -> set[bytes]:
        """See `Journal.said_of`. Reads some calls at a time, so that other reads wait less."""
        left, found, after = set(pieces), set[bytes](), 0
        while left:
            last, said = await self.executor.read(
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
        return await self.executor.read(lambda tx: reads.agent_of(tx, ref))

    async def learn_agent(self, ref: AgentRef, agent_id: str, *, instead_of: str = "") -> str:
        """See `Journal.learn_agent`."""
        return await self.executor.write(
            lambda tx: writes.learn_agent(tx, ref, agent_id, instead_of=instead_of)
        )

    async def forget_agent(self, ref: AgentRef, agent_id: str) -> None:
        """See `Journal.forget_agent`."""
        await self.executor.write(lambda tx: writes.forget_agent(tx, ref, agent_id))

    async def learn_conversation(
        self, key: str, conversation_id: str, *, agent_id: str, instead_of: str = ""
    ) -> str:
        """See `Journal.learn_conversation`."""
        return await self.executor.write(
            lambda tx: writes.learn_conversation(
                tx, key, conversation_id, agent_id=agent_id, instead_of=instead_of
            )
        )

    # Batches

    async def claim(self, limit: int, *, now_s: float, post_timeout_s: float) -> list[Batch]:
        """See `Journal.claim`."""
        return await self.executor.write(
            lambda tx: batches.claim(
                tx,
                limit,
                replica=self.replica,
                now_s=now_s,
                post_timeout_s=post_timeout_s,
                policy=self._policy,
            )
        )

    async def take_back(
        self, *, now_s: float, wait_s: float = math.inf, horizon_s: float = math.inf
    ) -> None:
        """See `Journal.take_back`."""
        await self.executor.write(
            lambda tx: batches.take_back(
                tx,
                replica=self.replica,
                now_s=now_s,
                wait_s=wait_s,
                horizon_s=horizon_s,
                policy=self._policy,
            )
        )

    async def resend(self, batch: Batch, *, now_s: float, post_timeout_s: float) -> Batch:
        """See `Journal.resend`."""
        return await self.executor.write(
            lambda tx: batches.resend(
                tx, self._claimed(batch), now_s=now_s, post_timeout_s=post_timeout_s
            )
        )

    async def settle(self, batch: Batch, *, now_s: float) -> None:
        """See `Journal.settle`."""
        await self.executor.write(lambda tx: batches.settle(tx, self._claimed(batch), now_s=now_s))

    async def release(
        self, batch: Batch, *, due_s: float, unknown: bool, over: bool, error: str, now_s: float
    ) -> None:
        """See `Journal.release`."""
        await self.executor.write(
            lambda tx: batches.release(
                tx,
                self._claimed(batch),
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
        await self.executor.write(
            lambda tx: batches.retire(
                tx, self._claimed(batch), error=error, now_s=now_s, hold_until_s=hold_until_s
            )
        )

    async def split(self, batch: Batch, *, now_s: float) -> None:
        """See `Journal.split`."""
        await self.executor.write(lambda tx: batches.split(tx, self._claimed(batch), now_s=now_s))

    def _claimed(self, batch: Batch) -> batches.Claim:
        return batches.Claim(batch.batch_id, self.replica, batch.epoch)

    async def replay(self, batch_id: str, *, now_s: float) -> bool:
        """See `Journal.replay`."""
        return await self.executor.write(lambda tx: batches.replay(tx, batch_id, now_s=now_s))

    async def drop(self, batch_id: str, *, now_s: float) -> bool:
        """See `Journal.drop`."""
        return await self.executor.write(lambda tx: batches.drop(tx, batch_id, now_s=now_s))

    # The state of delivery

    async def next_due_s(self) -> float | None:
        """See `Journal.next_due_s`."""
        return await self.executor.read(reads.next_due_s)

    async def wait(self, timeout_s: float) -> None:
        """See `Journal.wait`."""
        await self.executor.wait(timeout_s)

    async def recent(
        self, ref: AgentRef, *, caller_key: str, except_call: str, since_s: float, limit: int
    ) -> tuple[Turn, ...]:
        """See `Journal.recent`."""
        if not caller_key or not ref.known:
            return ()
        return await self.executor.read(
            lambda tx: reads.recent(
                tx,
                ref,
                caller_key=caller_key,
                except_call=except_call,
                since_s=since_s,
                limit=limit,
            )
        )

    async def take_over(self, *, first: bool = False) -> list[Call]:
        """See `Journal.take_over`."""
        if not await self.executor.read(reads.free_calls):
            return []
        now_s = self._clock()
        return await self.executor.write(
            lambda tx: taking.take_over(tx, replica=self.replica, now_s=now_s, first=first)
        )

    async def retake(self, key: str) -> int | None:
        """See `Journal.retake`."""
        return await self.executor.write(lambda tx: taking.retake(tx, key, replica=self.replica))

    async def is_live_elsewhere(self, key: str) -> bool:
        """See `Journal.is_live_elsewhere`."""
        return await self.executor.read(
            lambda tx: reads.is_live_elsewhere(tx, key, replica=self.replica)
        )

    # The other replicas

    async def live_elsewhere(self) -> Mapping[str, str]:
        """See `Journal.live_elsewhere`."""
        return await self.executor.read(
            lambda tx: commands.live_elsewhere(tx, replica=self.replica)
        )

    async def pass_on(self, commanded: Commanded) -> int:
        """See `Journal.pass_on`."""
        now_s = self._clock()
        return await self.executor.write(
            lambda tx: commands.pass_on(tx, commanded, replica=self.replica, now_s=now_s),
            grows=True,
        )

    async def passed_on(
        self, *, after: int, opened: Sequence[str], live: Collection[str]
    ) -> list[Commanded]:
        """See `Journal.passed_on`."""

        def look(tx: Transaction) -> tuple[list[Commanded], bool]:
            found = commands.for_all(tx, after=after, opened=opened)
            return found, bool(commands.to_take(tx, replica=self.replica, live=live))

        found, to_take = await self.executor.read(look)
        if to_take:
            found += await self.executor.write(
                lambda tx: commands.take(tx, replica=self.replica, live=live)
            )
        return sorted(found, key=lambda one: one.n)

    async def replicas(self) -> int:
        """See `Journal.replicas`."""
        return await self.executor.read(replicas.count)

    async def use(self, usage: Usage, *, day: int) -> Usage:
        """See `Journal.use`."""
        if not usage.tenants and not usage.calls:
            return Usage(await self.executor.read(lambda tx: usages.of_day(tx, day)), {})
        return await self.executor.write(lambda tx: usages.use(tx, usage, day=day), grows=True)

    async def first(self, name: str, *, call: str = "", until_s: float) -> str | None:
        """See `Journal.first`."""
        now_s = self._clock()
        return await self.executor.write(
            lambda tx: once.first(tx, name, call=call, until_s=until_s, now_s=now_s), grows=True
        )

    async def answer(self, name: str, text: str) -> None:
        """See `Journal.answer`."""
        await self.executor.write(lambda tx: once.answer(tx, name, text), grows=True)

    async def finish_copy(self) -> None:
        """Let a sidecar open what was copied here, where the engine has refused that meanwhile."""

    async def aclose(self) -> None:
        """See `Journal.aclose`."""
        await self.executor.stop()


def _tell_nobody(ref: AgentRef) -> None:
    """Stand in for `SqlJournal.digested`."""


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
    _EVERY_PORT: type[Journal] = SqlJournal
