"""A journal in memory: the same promises but durability, on any loop, in virtual time."""

import math
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace

import anyio
import anyio.lowlevel

from sidecar.errors import CallerBusy, CallError
from sidecar.journal.backlog import Backlog
from sidecar.journal.dead_letters import DeadLetter
from sidecar.journal.erasure import CallerHolding
from sidecar.journal.policy import PostPolicy
from sidecar.journal.reports import BatchRow, JournalCounts, LaneStatus
from sidecar.journal.states import Event, State, after
from sidecar.model import MAX_SEQ, AgentRef, Batch, Call, Turn, joined_consent

_OPEN = frozenset({State.SEALED, State.SENDING, State.UNKNOWN, State.RETRY})
_ENDED_WELL = frozenset({State.SETTLED, State.DROPPED})


@dataclass(slots=True)
class _Call:
    call: Call
    turns: list[Turn] = field(default_factory=list[Turn])
    appended_s: list[float] = field(default_factory=list[float])
    items: set[str] = field(default_factory=set[str])
    sealed: int = 0
    acked: int = 0
    parts: int = 0
    due_s: float | None = None
    last_s: float = 0.0


@dataclass(slots=True)
class _Batch:
    batch_id: str
    lane: str
    call: str
    part: int
    lo: int
    hi: int
    last_part: bool
    sealed_at_s: float
    state: State = State.SEALED
    attempt: int = 0
    horizon_s: float = 0.0
    replayed_s: float | None = None
    ended_s: float = 0.0
    error: str = ""


@dataclass(slots=True)
class _Lane:
    agent_id: str | None = None
    due_s: float | None = None
    hold_s: float = 0.0
    open_batch: _Batch | None = None


class MemoryJournal:
    """Keeps what `Journal` promises, until the process ends.

    Args:
        policy: When turns are due.
        clock: Unix time in seconds.
    """

    def __init__(
        self, policy: PostPolicy | None = None, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._policy = policy if policy is not None else PostPolicy(max_turns=20, max_age_s=60.0)
        self._clock = clock
        self._calls: dict[str, _Call] = {}
        self._lanes: dict[str, _Lane] = {}
        self._batches: dict[str, _Batch] = {}
        self._erased: dict[str, float] = {}
        self._due = anyio.Event()

    async def take_back(
        self, *, now_s: float, wait_s: float = math.inf, horizon_s: float = math.inf
    ) -> None:
        """See `Journal.take_back`."""
        await anyio.lowlevel.checkpoint()
        max_age_s = self._policy.max_age_s
        for batch in self._batches.values():
            if batch.state in _OPEN:
                batch.horizon_s = min(batch.horizon_s, now_s + horizon_s)
                batch.sealed_at_s = min(batch.sealed_at_s, now_s)
                if batch.replayed_s is not None:
                    batch.replayed_s = min(batch.replayed_s, now_s)
            elif batch.state is State.SETTLED:
                batch.ended_s = min(batch.ended_s, now_s)
        for stored in self._calls.values():
            if stored.due_s is not None:
                stored.due_s = min(stored.due_s, now_s + max_age_s)
        for lane in self._lanes.values():
            lane.hold_s = min(lane.hold_s, now_s + horizon_s)
            if lane.due_s is not None:
                longest_s = max(max_age_s, horizon_s) if lane.open_batch is None else wait_s
                lane.due_s = min(lane.due_s, now_s + longest_s)
            batch = lane.open_batch
            if batch is not None and batch.state is State.SENDING:
                batch.state = after(batch.state, Event.CRASHED)
                lane.due_s = now_s
        self._due.set()

    # Calls and turns

    async def open_call(self, call: Call) -> Call:
        """See `Journal.open_call`."""
        await anyio.lowlevel.checkpoint()
        stored = self._calls.get(call.key)
        if stored is None:
            if call.key in self._erased:
                raise CallError("erased", "the call was erased with its caller")
            self._calls[call.key] = _Call(call, last_s=self._clock())
            self._lanes.setdefault(call.ref.lane, _Lane())
            self._hasten_earlier(call)
            return call
        if stored.call.caller_key not in {"", call.caller_key}:
            raise CallError("call_claimed", "the call is stored as another caller's")
        if stored.call.closed_at_s is not None:
            stored.call = replace(stored.call, closed_at_s=None)
            self._reschedule(stored)
        consent = joined_consent(stored.call.consent, call.consent)
        stored.call = replace(stored.call, consent=consent)
        return stored.call

    def _hasten_earlier(self, call: Call) -> None:
        now_s = self._clock()
        for stored in self._of_caller(call.ref.lane, call.caller_key):
            if stored.due_s is not None and stored.due_s > now_s:
                stored.due_s = now_s
                self._hasten(call.ref.lane, now_s)

    def _of_caller(self, lane: str, caller_key: str) -> Iterator[_Call]:
        return (
            stored
            for stored in self._of_lane(lane)
            if caller_key and stored.call.caller_key == caller_key
        )

    async def call(self, key: str) -> Call | None:
        """See `Journal.call`."""
        await anyio.lowlevel.checkpoint()
        stored = self._calls.get(key)
        return stored.call if stored else None

    async def identify(self, call: Call) -> Call:
        """See `Journal.identify`."""
        await anyio.lowlevel.checkpoint()
        if call.key in self._erased and call.key not in self._calls:
            raise CallError("erased", "the call was erased with its caller")
        stored = self._known(call.key)
        ref = stored.call.ref
        if stored.call.caller_key or (ref.known and ref != call.ref):
            return stored.call
        self._lanes.setdefault(call.ref.lane, _Lane())
        stored.call = replace(stored.call, ref=call.ref, caller_key=call.caller_key)
        if call.ref.known and not ref.known:
            stored.sealed = stored.acked = 0
            self._reschedule(stored)
        self._hasten_earlier(stored.call)
        return stored.call

    async def append(self, turns: Sequence[Turn]) -> None:
        """See `Journal.append`."""
        await anyio.lowlevel.checkpoint()
        self._check(turns)
        self._append(turns)

    def _check(self, turns: Sequence[Turn]) -> None:
        for turn in turns:
            self._known(turn.call)
            if any("\ud800" <= char <= "\udfff" for char in turn.text + turn.item_id):
                raise CallError("bad_value", "a text is no Unicode")
            if turn.seq > MAX_SEQ:
                raise CallError("bad_value", "a turn's seq is too large")

    def _append(self, turns: Sequence[Turn]) -> None:
        now_s = self._clock()
        for turn in turns:
            stored = self._calls[turn.call]
            if turn.item_id in stored.items:
                continue
            stored.items.add(turn.item_id)
            stored.turns.append(turn)
            stored.appended_s.append(now_s)
            stored.last_s = now_s
            if stored.call.ref.known:
                self._reschedule(stored)
            else:
                stored.sealed = stored.acked = len(stored.turns)

    async def rewrite(self, call: str, turns: Sequence[Turn], *, keep: int) -> int:
        """See `Journal.rewrite`."""
        await anyio.lowlevel.checkpoint()
        stored = self._known(call)
        self._check(turns)
        deliver = stored.call.ref.known
        if deliver and stored.sealed > keep:
            return stored.sealed
        oldest_s = stored.appended_s[keep:][:1]
        del stored.turns[keep:], stored.appended_s[keep:]
        stored.items = {turn.item_id for turn in stored.turns}
        if not deliver:
            stored.sealed = stored.acked = len(stored.turns)
        head = len(stored.turns)
        self._append(turns)
        if oldest_s and len(stored.turns) > head:
            stored.appended_s[head] = oldest_s[0]
        if deliver:
            self._reschedule(stored)
        return stored.sealed if deliver else 0

    async def close_call(self, call: str, *, at_s: float, final: bool = False) -> None:
        """See `Journal.close_call`."""
        await anyio.lowlevel.checkpoint()
        stored = self._known(call)
        stored.call = replace(stored.call, final=stored.call.final or final)
        if stored.call.closed_at_s is None:
            stored.call = replace(stored.call, closed_at_s=at_s)
            self._reschedule(stored)

    async def try_write(self) -> None:
        """See `Journal.try_write`."""
        await anyio.lowlevel.checkpoint()

    async def hurry(self, *, now_s: float) -> None:
        """See `Journal.hurry`."""
        await anyio.lowlevel.checkpoint()
        for stored in self._calls.values():
            if stored.due_s is not None:
                stored.due_s = min(stored.due_s, now_s)
                self._hasten(stored.call.ref.lane, now_s)
        self._due.set()

    async def erase_settled(self, *, before_s: float) -> int:
        """See `Journal.erase_settled`."""
        await anyio.lowlevel.checkpoint()
        erased = 0
        self._erased = {key: at_s for key, at_s in self._erased.items() if at_s >= before_s}
        for key, stored in list(self._calls.items()):
            ended_s = stored.call.closed_at_s
            of_call = [batch for batch in self._batches.values() if batch.call == key]
            if (
                (stored.last_s if ended_s is None else ended_s) < before_s
                and stored.acked == len(stored.turns)
                and all(batch.state in _ENDED_WELL for batch in of_call)
            ):
                erased += len(stored.turns)
                del self._calls[key]
                for batch in of_call:
                    del self._batches[batch.batch_id]
        return erased

    async def held_of_caller(self, caller_key: str) -> CallerHolding:
        """See `Journal.held_of_caller`."""
        await anyio.lowlevel.checkpoint()
        return self._held_of(caller_key)

    def _held_of(self, caller_key: str) -> CallerHolding:
        keys = self._keys_of(caller_key)
        stored = [self._calls[key] for key in keys]
        batches = [batch for batch in self._batches.values() if batch.call in keys]
        agents = {
            name: AgentRef.of_lane(name).agent_id or lane.agent_id
            for name, lane in self._lanes.items()
            if caller_key
            and (
                AgentRef.of_lane(name).caller_key == caller_key
                or any(one.call.ref.lane == name for one in stored)
            )
        }
        own = (a for n, a in agents.items() if AgentRef.of_lane(n).caller_key == caller_key)
        return CallerHolding(
            calls=tuple(keys),
            live_calls=sum(one.call.closed_at_s is None for one in stored),
            turns=sum(len(one.turns) for one in stored),
            undelivered=sum(len(one.turns) - one.acked for one in stored),
            dead_batches=sum(batch.state is State.DEAD for batch in batches),
            under_way=sum(batch.state is State.SENDING for batch in batches),
            agents=tuple(sorted(agent for agent in agents.values() if agent)),
            conversations=tuple(
                (agents[one.call.ref.lane] or "", one.call.conversation_id)
                for one in stored
                if one.call.conversation_id is not None
            ),
            own_agent=next(own, None),
        )

    def _keys_of(self, caller_key: str) -> list[str]:
        return [
            key
            for key, stored in self._calls.items()
            if caller_key and stored.call.caller_key == caller_key
        ]

    async def erase_caller(self, caller_key: str, *, also: Sequence[str] = (), now_s: float) -> int:
        """See `Journal.erase_caller`."""
        await anyio.lowlevel.checkpoint()
        held = self._held_of(caller_key)
        if held.live_calls or held.under_way:
            raise CallerBusy("a call of this caller is live, or on its way to Letta")
        keys = self._keys_of(caller_key)
        if caller_key:
            self._erased |= dict.fromkeys((*keys, *also), now_s)
        names = {self._calls[key].call.ref.lane for key in keys}
        for batch in [b for b in self._batches.values() if b.call in keys]:
            del self._batches[batch.batch_id]
        for key in keys:
            del self._calls[key]
        for name in names:
            lane = self._lanes[name]
            if lane.open_batch is None or lane.open_batch.call in keys:
                self._free(name, now_s=now_s, hold_until_s=lane.hold_s)
        for name in [n for n in self._lanes if AgentRef.of_lane(n).caller_key == caller_key]:
            if caller_key and not any(self._of_lane(name)):
                del self._lanes[name]
        return held.turns

    async def said_of(self, pieces: Collection[bytes]) -> set[bytes]:
        """See `Journal.said_of`."""
        await anyio.lowlevel.checkpoint()
        said = [turn.text.encode() for stored in self._calls.values() for turn in stored.turns]
        return {piece for piece in pieces if any(piece in text for text in said)}

    def _known(self, call: str) -> _Call:
        if call not in self._calls:
            raise CallError("unknown_call", "no such call was opened", hint="send call.open first")
        return self._calls[call]

    def _reschedule(self, stored: _Call) -> None:
        pending = len(stored.turns) - stored.sealed
        now_s = self._clock()
        stored.due_s = self._policy.due_s(
            pending=pending,
            oldest_s=stored.appended_s[stored.sealed] if pending else now_s,
            closed=stored.call.closed_at_s is not None,
            now_s=now_s,
        )
        if stored.due_s is not None and stored.call.ref.known:
            self._hasten(stored.call.ref.lane, stored.due_s)

    def _hasten(self, name: str, due_s: float) -> None:
        lane = self._lanes[name]
        due_s = max(due_s, lane.hold_s)
        if lane.open_batch is None and (lane.due_s is None or due_s < lane.due_s):
            lane.due_s = due_s
            self._due.set()

    # What was learnt of Letta

    async def agent_of(self, ref: AgentRef) -> str | None:
        """See `Journal.agent_of`."""
        await anyio.lowlevel.checkpoint()
        return self._lanes.get(ref.lane, _Lane()).agent_id

    async def learn_agent(self, ref: AgentRef, agent_id: str) -> None:
        """See `Journal.learn_agent`."""
        await self._set_agent(ref, agent_id)

    async def forget_agent(self, ref: AgentRef) -> None:
        """See `Journal.forget_agent`."""
        await self._set_agent(ref, None)

    async def _set_agent(self, ref: AgentRef, agent_id: str | None) -> None:
        await anyio.lowlevel.checkpoint()
        lane = self._lanes.setdefault(ref.lane, _Lane())
        if lane.agent_id not in {None, agent_id}:
            for stored in self._calls.values():
                if stored.call.ref == ref:
                    stored.call = replace(stored.call, conversation_id=None)
        lane.agent_id = agent_id

    async def learn_conversation(self, call: str, conversation_id: str) -> None:
        """See `Journal.learn_conversation`."""
        await anyio.lowlevel.checkpoint()
        stored = self._calls[call]
        stored.call = replace(stored.call, conversation_id=conversation_id)

    # Batches

    async def claim(self, limit: int, *, now_s: float, post_timeout_s: float) -> list[Batch]:
        """See `Journal.claim`."""
        await anyio.lowlevel.checkpoint()
        due = sorted(
            (lane.due_s, name)
            for name, lane in self._lanes.items()
            if lane.due_s is not None and lane.due_s <= now_s
        )
        claimed: list[Batch] = []
        for _, name in due[:limit]:
            lane = self._lanes[name]
            if lane.open_batch is None:
                lane.open_batch = self._next_batch(name, now_s)
            if lane.open_batch is None:
                self._free(name, now_s=now_s, hold_until_s=0.0)
            else:
                lane.due_s = None
                claimed.append(self._take(lane.open_batch, now_s + post_timeout_s))
        return claimed

    def _next_batch(self, name: str, now_s: float) -> _Batch | None:
        waiting = [b for b in self._batches.values() if b.lane == name and b.state in _OPEN]
        if waiting:
            calls = list(self._calls)
            return min(waiting, key=lambda b: (b.sealed_at_s, calls.index(b.call), b.lo))
        due = sorted(
            (
                (stored.due_s, stored)
                for stored in self._of_lane(name)
                if stored.due_s is not None and stored.due_s <= now_s
            ),
            key=lambda pair: pair[0],
        )
        if not due:
            return None
        stored = due[0][1]
        pending = [
            other
            for other in self._of_caller(name, stored.call.caller_key)
            if other.due_s is not None
        ]
        if pending:
            stored = min(pending, key=lambda other: other.turns[other.sealed].at_s)
        lo = stored.sealed
        stored.sealed += self._policy.cut([len(turn.text) for turn in stored.turns[lo:]])
        stored.parts += 1
        batch = _Batch(
            str(uuid.uuid4()),
            name,
            stored.call.key,
            stored.parts,
            lo,
            stored.sealed,
            last_part=stored.call.closed_at_s is not None and stored.sealed == len(stored.turns),
            sealed_at_s=now_s,
        )
        self._batches[batch.batch_id] = batch
        self._lanes[name].open_batch = batch
        self._reschedule(stored)
        return batch

    def _take(self, batch: _Batch, horizon_s: float) -> Batch:
        in_doubt = batch.state is State.UNKNOWN
        attempt = batch.attempt
        if in_doubt:
            batch.state = State.SENDING
        else:
            batch.state = after(batch.state, Event.SENT)
            batch.attempt += 1
            batch.horizon_s = horizon_s
        return self._seen(batch, attempt=attempt, in_doubt=in_doubt)

    def _seen(self, batch: _Batch, *, attempt: int, in_doubt: bool) -> Batch:
        stored = self._calls[batch.call]
        return Batch(
            batch.batch_id,
            batch.lane,
            stored.call,
            stored.call.ref.agent_id or self._lanes[batch.lane].agent_id,
            batch.part,
            tuple(stored.turns[batch.lo : batch.hi]),
            attempt,
            in_doubt,
            batch.horizon_s,
            batch.sealed_at_s,
            batch.sealed_at_s if batch.replayed_s is None else batch.replayed_s,
            batch.last_part,
        )

    async def resend(self, batch: Batch, *, now_s: float, post_timeout_s: float) -> Batch:
        """See `Journal.resend`."""
        await anyio.lowlevel.checkpoint()
        stored = self._batches[batch.batch_id]
        attempt = stored.attempt
        stored.attempt += 1
        stored.horizon_s = now_s + post_timeout_s
        return self._seen(stored, attempt=attempt, in_doubt=False)

    async def settle(self, batch: Batch, *, now_s: float) -> None:
        """See `Journal.settle`."""
        await anyio.lowlevel.checkpoint()
        self._end(batch, Event.DIGESTED, error="", now_s=now_s, hold_until_s=0.0)

    async def retire(
        self, batch: Batch, *, error: str, now_s: float, hold_until_s: float = 0.0
    ) -> None:
        """See `Journal.retire`."""
        await anyio.lowlevel.checkpoint()
        event = Event.REJECTED_FOR_GOOD
        self._end(batch, event, error=error, now_s=now_s, hold_until_s=hold_until_s)

    def _end(
        self, batch: Batch, event: Event, *, error: str, now_s: float, hold_until_s: float
    ) -> None:
        stored = self._batches[batch.batch_id]
        if stored.state is not State.SENDING:
            return
        stored.state = after(stored.state, event)
        stored.ended_s = now_s
        stored.error = error
        call = self._calls[stored.call]
        call.acked = max(call.acked, stored.hi)
        self._free(stored.lane, now_s=now_s, hold_until_s=hold_until_s)

    def _free(self, name: str, *, now_s: float, hold_until_s: float) -> None:
        lane = self._lanes[name]
        lane.open_batch = None
        lane.hold_s = hold_until_s
        waiting = [stored.due_s for stored in self._of_lane(name) if stored.due_s is not None]
        if any(batch.lane == name and batch.state in _OPEN for batch in self._batches.values()):
            waiting.append(now_s)
        lane.due_s = max(now_s, hold_until_s, min(waiting)) if waiting else None
        self._due.set()

    async def release(
        self, batch: Batch, *, due_s: float, unknown: bool, over: bool, error: str, now_s: float
    ) -> None:
        """See `Journal.release`."""
        await anyio.lowlevel.checkpoint()
        stored = self._batches[batch.batch_id]
        if stored.state is not State.SENDING:
            return
        stored.state = State.UNKNOWN if unknown else State.RETRY
        stored.error = error
        if over:
            stored.horizon_s = min(stored.horizon_s, now_s)
        self._lanes[stored.lane].due_s = due_s
        self._due.set()

    async def split(self, batch: Batch, *, now_s: float) -> None:
        """See `Journal.split`."""
        await anyio.lowlevel.checkpoint()
        whole = self._batches.get(batch.batch_id)
        if whole is None or whole.state is not State.SENDING or whole.hi - whole.lo < 2:  # noqa: PLR2004
            return
        del self._batches[batch.batch_id]
        call = self._calls[whole.call]
        call.parts += 1
        middle = (whole.lo + whole.hi + 1) // 2
        for part, lo, hi in ((whole.part, whole.lo, middle), (call.parts, middle, whole.hi)):
            half = _Batch(
                str(uuid.uuid4()),
                whole.lane,
                whole.call,
                part,
                lo,
                hi,
                last_part=whole.last_part and hi == whole.hi,
                sealed_at_s=whole.sealed_at_s,
                replayed_s=whole.replayed_s,
            )
            self._batches[half.batch_id] = half
        self._free(whole.lane, now_s=now_s, hold_until_s=0.0)

    async def batches(self, *, states: Sequence[str], limit: int) -> list[BatchRow]:
        """See `Journal.batches`."""
        await anyio.lowlevel.checkpoint()
        rows = [
            BatchRow(
                batch.batch_id,
                batch.lane,
                batch.call,
                batch.part,
                batch.hi - batch.lo,
                batch.state.value,
                batch.attempt,
                batch.sealed_at_s,
                batch.ended_s or None,
                batch.error,
            )
            for batch in self._batches.values()
            if batch.state.value in states
        ]
        return rows[::-1][:limit]

    async def dead_letters(self) -> list[DeadLetter]:
        """See `Journal.dead_letters`."""
        await anyio.lowlevel.checkpoint()
        return [
            DeadLetter(
                batch.batch_id,
                batch.lane,
                batch.call,
                batch.hi - batch.lo,
                batch.ended_s,
                batch.error,
            )
            for batch in self._batches.values()
            if batch.state is State.DEAD
        ]

    async def replay(self, batch_id: str, *, now_s: float) -> bool:
        """See `Journal.replay`."""
        await anyio.lowlevel.checkpoint()
        batch = self._batches.get(batch_id)
        if batch is None or batch.state is not State.DEAD:
            return False
        batch.state = after(batch.state, Event.REPLAYED)
        batch.horizon_s = 0.0
        batch.replayed_s = now_s
        self._hasten(batch.lane, now_s)
        return True

    async def drop(self, batch_id: str, *, now_s: float) -> bool:
        """See `Journal.drop`."""
        await anyio.lowlevel.checkpoint()
        batch = self._batches.get(batch_id)
        if batch is None or batch.state is not State.DEAD:
            return False
        batch.state = after(batch.state, Event.DROPPED)
        batch.ended_s = now_s
        return True

    # How it stands

    def _of_lane(self, name: str) -> Iterator[_Call]:
        return (stored for stored in self._calls.values() if stored.call.ref.lane == name)

    async def next_due_s(self) -> float | None:
        """See `Journal.next_due_s`."""
        await anyio.lowlevel.checkpoint()
        return min((x.due_s for x in self._lanes.values() if x.due_s is not None), default=None)

    async def wait(self, timeout_s: float) -> None:
        """See `Journal.wait`."""
        with anyio.move_on_after(timeout_s):
            await self._due.wait()
        self._due = anyio.Event()

    async def recent(
        self, ref: AgentRef, *, caller_key: str, except_call: str, since_s: float, limit: int
    ) -> tuple[Turn, ...]:
        """See `Journal.recent`."""
        await anyio.lowlevel.checkpoint()
        if not caller_key or not ref.known:
            return ()
        found: list[Turn] = []
        for key, stored in self._calls.items():
            if key == except_call or stored.call.ref != ref or stored.call.caller_key != caller_key:
                continue
            digested: set[int] = set()
            for batch in self._batches.values():
                if batch.call == key and (
                    batch.state is State.DROPPED
                    or (batch.state is State.SETTLED and batch.ended_s < since_s)
                ):
                    digested.update(range(batch.lo, batch.hi))
            found += [turn for n, turn in enumerate(stored.turns) if n not in digested]
        found.sort(key=lambda turn: turn.at_s)
        return tuple(found[max(0, len(found) - limit) :])

    async def lanes(self) -> list[LaneStatus]:
        """See `Journal.lanes`."""
        await anyio.lowlevel.checkpoint()
        statuses: list[LaneStatus] = []
        for name, lane in self._lanes.items():
            behind = [s for s in self._of_lane(name) if s.acked < len(s.turns)]
            batch = lane.open_batch
            if not behind and batch is None:
                continue
            oldest = [stored.appended_s[stored.acked] for stored in behind]
            statuses.append(
                LaneStatus(
                    name,
                    AgentRef.of_lane(name).agent_id or lane.agent_id,
                    sum(len(stored.turns) - stored.sealed for stored in behind),
                    batch.state.value if batch else "idle",
                    batch.attempt if batch else 0,
                    min(oldest) if oldest else batch.sealed_at_s if batch else None,
                    batch.error if batch else "",
                )
            )
        return sorted(statuses, key=lambda status: status.oldest_s or 0.0)

    async def backlog(self) -> Backlog:
        """See `Journal.backlog`."""
        return await self.counts()

    async def counts(self) -> JournalCounts:
        """See `Journal.counts`."""
        await anyio.lowlevel.checkpoint()
        calls = list(self._calls.values())
        replayed = sum(
            batch.hi - batch.lo
            for batch in self._batches.values()
            if batch.state in _OPEN and batch.hi <= self._calls[batch.call].acked
        )
        oldest = [call.appended_s[call.acked] for call in calls if call.acked < len(call.turns)]
        return JournalCounts(
            calls=len(calls),
            live_calls=sum(call.call.closed_at_s is None for call in calls),
            turns=sum(len(call.turns) for call in calls),
            undelivered=sum(len(call.turns) - call.acked for call in calls) + replayed,
            dead_batches=sum(batch.state is State.DEAD for batch in self._batches.values()),
            oldest_undelivered_s=min(oldest, default=None),
        )

    async def calls(self, *, limit: int) -> list[Call]:
        """See `Journal.calls`."""
        await anyio.lowlevel.checkpoint()
        return [stored.call for stored in reversed(self._calls.values())][:limit]

    async def live_calls(self) -> list[Call]:
        """See `Journal.live_calls`."""
        await anyio.lowlevel.checkpoint()
        return [c.call for c in self._calls.values() if c.call.closed_at_s is None]

    async def turns(self, call: str) -> tuple[Turn, ...]:
        """See `Journal.turns`."""
        await anyio.lowlevel.checkpoint()
        stored = self._calls.get(call)
        return tuple(stored.turns) if stored else ()

    async def aclose(self) -> None:
        """See `Journal.aclose`."""
        await anyio.lowlevel.checkpoint()
