"""The relay: takes due batches out of the journal, posts them, and settles them.

Theory of operation: one loop claims due lanes, as many as there are free slots, and starts one
delivery for each. A delivery calls `decide` after every outcome, and ends by settling, releasing,
retiring or splitting its batch. It repeats that write until the journal accepts it, so no lane
stays claimed and idle. A failure inside a delivery never ends the loop.

While the breaker is open, one delivery at a time goes out as a probe. A cancelled delivery gives
its batch back as unknown if there is time; if not, the next run does that at its start.
"""

from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import TypeVar

import anyio
import anyio.abc

from sidecar import telemetry
from sidecar.breaker import Breaker, backoff_s
from sidecar.delivery.courier import Addressed, Courier
from sidecar.delivery.decisions import (
    DeliveryPolicy,
    Facts,
    LookUp,
    Outcome,
    Release,
    Retire,
    Send,
    Settle,
    Split,
    decide,
)
from sidecar.delivery.observed import (
    FINDINGS,
    delivery_span,
    emit_dead,
    emit_finding,
    emit_post,
    emit_released,
    emit_settled,
    end_attributes,
    post_span,
)
from sidecar.errors import JournalError, TakenOver
from sidecar.journal.outbox import Outbox
from sidecar.journal.states import BatchEvent
from sidecar.letta.port import Letta
from sidecar.model import AgentRef, Batch
from sidecar.telemetry import Emit
from sidecar.tracing import NO_TRACES, Span, Tracer

T = TypeVar("T")

_CLAIM_LIMIT = 32  # more would keep the journal's writer from appends for too long
_IDLE_S = 30.0  # the journal is asked for its next due time at least this often
_LOOK_S = 0.25  # between looks, where nothing wakes the loop
_GATHER_S = 0.003  # slots that free up together are filled by one claim
_PART_WAY_S = 2.0  # to give a batch back when the relay is being cancelled
_ON_SETTLED_S = 60.0  # deadline of `on_settled`

# What an outcome says of Letta as a whole. A post without an answer says nothing: an agent may
# digest for longer than the post's deadline. The look-up that soon follows shows how Letta is.
_ENDPOINT_FAILED = frozenset({BatchEvent.REFUSED, BatchEvent.UNADDRESSED, BatchEvent.UNANSWERED})
_ENDPOINT_WELL = FINDINGS | {
    BatchEvent.DIGESTED,
    BatchEvent.BUSY,
    BatchEvent.REJECTED,
    BatchEvent.TOO_LARGE,
}


def _heard_by_nobody(agent_id: str) -> None:
    """Stand in for `on_changed`."""


async def _tell_nobody(ref: AgentRef, batch: Batch) -> None:
    """Stand in for `on_settled`."""


class Relay:
    """Delivers what the journal holds, each batch once, one at a time per agent.

    Args:
        journal: Where batches come from.
        letta: Where they go.
        resolve_agent: Finds or creates the agent of a reference; may raise any `LettaError`.
        policy: Deadlines, waits and limits.
        concurrency: Deliveries under way at once.
        breaker: Of this Letta; None makes a new one.
        clock: Unix time in seconds.
        dice: Uniform in [0, 1).
        emit: Where events go.
        tracer: Makes a span of each delivery, linked to the turns it holds.
        on_changed: Called with the id of an agent whose memory a batch has changed, before that
            batch is settled; it returns at once and never raises.
        on_settled: Called with each settled batch, in a separate task; what it raises is logged.
    """

    def __init__(
        self,
        journal: Outbox,
        letta: Letta,
        resolve_agent: Callable[[AgentRef], Awaitable[str]],
        *,
        policy: DeliveryPolicy,
        clock: Callable[[], float],
        dice: Callable[[], float],
        emit: Emit,
        concurrency: int = 64,
        breaker: Breaker | None = None,
        on_changed: Callable[[str], None] = _heard_by_nobody,
        on_settled: Callable[[AgentRef, Batch], Awaitable[None]] = _tell_nobody,
        tracer: Tracer = NO_TRACES,
    ) -> None:
        self._journal = journal
        self._courier = Courier(journal, letta, resolve_agent, policy=policy)
        self._policy = policy
        self._concurrency = concurrency
        self._breaker = breaker if breaker is not None else Breaker(failure_limit=8)
        self._clock = clock
        self._dice = dice
        self._emit = emit
        self._tracer = tracer
        self._on_changed = on_changed
        self._on_settled = on_settled
        self._under_way = 0
        self._changed = anyio.Event()
        self._agents = _OneAtATime()
        self._rejections: Counter[str] = Counter()
        self._faults: Counter[str] = Counter()

    @property
    def degraded(self) -> bool:
        """Whether Letta fails so often that only probes go out."""
        return self._breaker.is_open

    @property
    def failing(self) -> bool:
        """Whether the last delivery failed because of Letta."""
        return self._breaker.failing

    async def run(self) -> None:
        """Deliver until cancelled. Only one relay of a replica may run on a journal.

        Batches that an earlier run claimed and could not give back are in doubt, and looked up.

        Raises:
            Exception: a fault of this code, outside any delivery. Run it again.
        """
        self._under_way = 0
        self._breaker.abandoned()
        await self._until_taken(
            lambda: self._journal.take_back(
                now_s=self._clock(),
                wait_s=self._policy.longest_wait_s,
                horizon_s=self._policy.horizon_s,
            )
        )
        async with anyio.create_task_group() as deliveries:
            while True:
                if not await self._start_some(deliveries):
                    await self._wait_for_work()

    async def flush(self, budget_s: float) -> int | None:
        """Deliver what is pending now, live calls included; `run` has to be under way.

        Returns after `budget_s`, or as soon as nothing more can be delivered within it.

        Returns:
            How many turns are still undelivered; None when the journal did not say.
        """
        deadline_s = self._clock() + budget_s
        undelivered: int | None = None
        with anyio.move_on_after(budget_s):
            await self._until_taken(lambda: self._journal.hurry(now_s=self._clock()))
            while True:
                changed = self._changed
                undelivered = (await self._until_taken(self._journal.backlog)).undelivered
                due_s = await self._until_taken(self._journal.next_due_s)
                if not undelivered or (
                    not self._under_way and (due_s is None or due_s >= deadline_s)
                ):
                    break
                with anyio.move_on_after(_LOOK_S):
                    await changed.wait()
        return undelivered

    # The loop

    async def _start_some(self, deliveries: anyio.abc.TaskGroup) -> bool:
        """Claim what is due and start its delivery; False if nothing is due or none may start."""
        room = min(self._concurrency - self._under_way, _CLAIM_LIMIT)
        if room <= 0:
            return False
        now_s = self._clock()
        due_s = await self._until_taken(self._journal.next_due_s)
        if due_s is None or due_s > now_s:
            return False
        probing = self._breaker.is_open
        if probing:
            if not self._breaker.admits(now_s=now_s):
                return False
            room = 1
        batches: list[Batch] = []
        try:
            batches = await self._until_taken(
                lambda: self._journal.claim(
                    room, now_s=now_s, post_timeout_s=self._policy.horizon_s
                )
            )
        finally:
            if probing and not batches:
                self._breaker.abandoned()
        for batch in batches:
            self._under_way += 1
            deliveries.start_soon(self._deliver, deliveries, batch, now_s, probing)
        return bool(batches)

    async def _wait_for_work(self) -> None:
        """Return when a slot is free and something may be due, or the breaker may be probed."""
        if self._under_way >= self._concurrency:
            await self._changed.wait()
            await anyio.sleep(_GATHER_S)
            return
        if self._breaker.is_open:
            # `_changed` is set when a probe ends; a due time is found at the next look.
            with anyio.move_on_after(max(self._breaker.retry_in_s(now_s=self._clock()), _LOOK_S)):
                await self._changed.wait()
            return
        due_s = await self._until_taken(self._journal.next_due_s)
        wait_s = _IDLE_S if due_s is None else min(max(due_s - self._clock(), 0.0), _IDLE_S)
        await self._journal.wait(wait_s)

    async def _until_taken(self, operation: Callable[[], Awaitable[T]]) -> T:
        """Repeat a journal operation until it succeeds."""
        attempt = 0
        while True:
            try:
                return await operation()
            except JournalError as error:
                attempt += 1
                self._emit(telemetry.journal_failed, error=error.message, hint=error.hint)
            await anyio.sleep(backoff_s(attempt, base_s=0.1, cap_s=5.0, dice=self._dice()))

    # One delivery

    async def _deliver(
        self, deliveries: anyio.abc.TaskGroup, batch: Batch, claimed_s: float, probing: bool
    ) -> None:
        try:
            with delivery_span(self._tracer, batch) as span:
                settled = await self._bring_home(batch, claimed_s, span)
        except anyio.get_cancelled_exc_class():
            with (
                anyio.CancelScope(shield=True),
                anyio.move_on_after(_PART_WAY_S),
                suppress(TakenOver),
            ):
                await self._until_taken(lambda: self._give_up_try(batch, "the sidecar stopped"))
            raise
        except TakenOver:  # whoever has the lane now looks the batch up
            self._emit(telemetry.lane_taken_over, lane=batch.lane, batch=batch.batch_id)
            settled = None
        except Exception as error:  # noqa: BLE001 - one batch's fault must not stop the others
            fault = type(error).__name__
            self._emit(telemetry.part_failed, part="delivery", error=fault, hint="")
            with suppress(TakenOver):
                await self._until_taken(lambda: self._give_up_try(batch, fault))
            settled = None
        finally:
            if probing:
                self._breaker.abandoned()
            self._under_way -= 1
            self._changed.set()
            self._changed = anyio.Event()
        if settled is not None:
            deliveries.start_soon(self._tell, settled)

    async def _give_up_try(self, batch: Batch, error: str) -> None:
        """Give a batch back as unknown. No effect on one that is settled or given back already."""
        now_s = self._clock()
        self._faults[batch.lane] += 1
        wait_s = backoff_s(
            self._faults[batch.lane],
            base_s=1.0,
            cap_s=self._policy.retry_cap_s,
            dice=self._dice(),
        )
        await self._journal.release(
            batch, due_s=now_s + wait_s, unknown=True, over=False, error=error, now_s=now_s
        )

    async def _bring_home(self, batch: Batch, recorded_s: float, span: Span) -> Batch | None:
        """Take the steps of one claim; return the batch, with its agent, if it was settled."""
        began_s = self._clock()
        addressed = await self._until_taken(lambda: self._courier.address(batch))
        if isinstance(addressed, Outcome):
            outcome = addressed
        else:
            batch = addressed.batch
            outcome = Outcome(BatchEvent.CLAIMED)
        horizon_s = batch.horizon_s
        while True:
            self._judge_endpoint(outcome.event, began_s=began_s)
            began_s = now_s = self._clock()
            facts = Facts(
                batch.attempt,
                batch.in_doubt,
                horizon_s,
                batch.tried_since_s,
                self._rejections[batch.batch_id],
                len(batch.turns),
            )
            step = decide(facts, outcome, now_s=now_s, dice=self._dice(), policy=self._policy)
            match step:
                case LookUp():
                    assert isinstance(addressed, Addressed)
                    outcome = await self._courier.look_up(addressed)
                    emit_finding(self._emit, batch, outcome)
                case Send():
                    assert isinstance(addressed, Addressed)
                    outcome, horizon_s = await self._send(
                        addressed, None if step.record_anew else recorded_s, horizon_s, span
                    )
                case _:
                    await self._end(batch, outcome, step, now_s)
                    span.set(end_attributes(batch, outcome, step, now_s))
                    return batch if isinstance(step, Settle) else None

    async def _send(
        self, addressed: Addressed, recorded_s: float | None, horizon_s: float, span: Span
    ) -> tuple[Outcome, float]:
        """Post, once no other post of this agent is under way and the try is freshly recorded.

        Args:
            addressed: The batch.
            recorded_s: Unix time at which this try was recorded; None when it was not.
            horizon_s: Horizon of the try recorded last.
            span: Span of the delivery.

        Returns:
            The outcome, and the horizon of the try it belongs to.
        """
        async with self._agents.entered(addressed.post.agent_id):
            while recorded_s is None or self._clock() - recorded_s > self._policy.guard_s:
                recorded_s = self._clock()
                horizon_s = await self._record_anew(addressed.batch, recorded_s)
            began_s = self._clock()
            with post_span(self._tracer, addressed, parent=span.traceparent) as posting:
                outcome = await self._courier.send(addressed)
                posting.end(
                    error="" if outcome.event is BatchEvent.DIGESTED else outcome.event.value
                )
            emit_post(self._emit, addressed.batch, outcome, took_s=self._clock() - began_s)
            return outcome, horizon_s

    async def _record_anew(self, batch: Batch, now_s: float) -> float:
        renewed = await self._until_taken(
            lambda: self._journal.resend(batch, now_s=now_s, post_timeout_s=self._policy.horizon_s)
        )
        return renewed.horizon_s

    async def _end(
        self, batch: Batch, outcome: Outcome, step: Settle | Release | Retire | Split, now_s: float
    ) -> None:
        """Store how this claim of the batch ends, and emit it."""
        self._faults.pop(batch.lane, None)
        if outcome.event is BatchEvent.REJECTED:
            self._rejections[batch.batch_id] += 1
        match step:
            case Settle():
                if batch.agent_id is not None:
                    self._on_changed(batch.agent_id)
                await self._until_taken(lambda: self._journal.settle(batch, now_s=now_s))
                emit_settled(self._emit, batch, outcome, now_s=now_s)
            case Release(due_s, unknown, over):
                await self._until_taken(
                    lambda: self._journal.release(
                        batch,
                        due_s=due_s,
                        unknown=unknown,
                        over=over,
                        error=outcome.error,
                        now_s=now_s,
                    )
                )
                emit_released(self._emit, batch, outcome, due_in_s=due_s - now_s)
                return
            case Split():
                await self._until_taken(lambda: self._journal.split(batch, now_s=now_s))
                emit_released(self._emit, batch, outcome, due_in_s=0.0)
            case Retire(hold_until_s):
                await self._until_taken(
                    lambda: self._journal.retire(
                        batch, error=outcome.error, now_s=now_s, hold_until_s=hold_until_s
                    )
                )
                emit_dead(self._emit, batch, outcome)
        self._rejections.pop(batch.batch_id, None)

    def _judge_endpoint(self, event: BatchEvent, *, began_s: float) -> None:
        """Tell the breaker an outcome that says something about Letta as a whole."""
        now_s = self._clock()
        if event in _ENDPOINT_WELL:
            if self._breaker.succeeded(now_s=now_s):
                self._emit(telemetry.relay_breaker_closed)
        elif event in _ENDPOINT_FAILED and self._breaker.failed(now_s=now_s, began_s=began_s):
            self._emit(
                telemetry.relay_breaker_opened, retry_in_s=self._breaker.retry_in_s(now_s=now_s)
            )

    async def _tell(self, batch: Batch) -> None:
        try:
            with anyio.fail_after(_ON_SETTLED_S):
                await self._on_settled(batch.call.ref, batch)
        except Exception as error:  # noqa: BLE001 - delivery goes on whatever listeners do
            self._emit(
                telemetry.part_failed, part="on_settled", error=type(error).__name__, hint=""
            )


class _OneAtATime:
    """A lock per agent, since two lanes may belong to one agent. Dropped when nobody uses it."""

    def __init__(self) -> None:
        self._locks: dict[str, anyio.Lock] = {}
        self._users: Counter[str] = Counter()

    @asynccontextmanager
    async def entered(self, agent_id: str) -> AsyncGenerator[None]:
        """Hold the agent's lock."""
        lock = self._locks.setdefault(agent_id, anyio.Lock())
        self._users[agent_id] += 1
        try:
            async with lock:
                yield
        finally:
            self._users[agent_id] -= 1
            if not self._users[agent_id]:
                del self._users[agent_id], self._locks[agent_id]
