"""The courier where several sidecars deliver: which conversation a batch goes to."""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial

import pytest

from sidecar.delivery.courier import Addressed, Courier
from sidecar.delivery.decisions import DeliveryPolicy
from sidecar.journal.policy import PostPolicy
from sidecar.journal.states import BatchEvent
from sidecar.model import AgentRef, Batch, Call, Turn
from sidecar.testing.fake_letta import FakeLetta
from sidecar.testing.memory_journal import MemoryJournal

pytestmark = [pytest.mark.unit, pytest.mark.anyio]

NOW_S = 1_000.0
CALL = Call("acme/one", AgentRef("acme", caller_key="k1"), "livekit", "k1", NOW_S)


class CourierBench:
    """A courier of one replica, and a batch that it has claimed."""

    def __init__(self) -> None:
        self.journal = MemoryJournal(PostPolicy(max_turns=4, max_age_s=60.0), clock=lambda: NOW_S)
        self.letta = FakeLetta(clock=lambda: NOW_S)

        async def own_agent(_ref: AgentRef) -> str:
            return "agent-1"

        self.courier = Courier(self.journal, self.letta, own_agent, policy=DeliveryPolicy())

    async def batch(self) -> Batch:
        await self.journal.open_call(CALL)
        await self.journal.append([Turn(CALL.key, "i1", 1, "caller", "hello", NOW_S)])
        await self.journal.close_call(CALL.key, at_s=NOW_S, epoch=None)
        (batch,) = await self.journal.claim(1, now_s=NOW_S, post_timeout_s=9.0)
        return batch

    def before_opening(self, happens: Callable[[], Awaitable[object]]) -> None:
        """Let something happen elsewhere while this one opens a conversation."""
        opened = self.letta.open_conversation

        async def meanwhile(agent_id: str, *, label: str) -> str:
            await happens()
            return await opened(agent_id, label=label)

        self.letta.open_conversation = meanwhile

    async def address(self, batch: Batch) -> Batch:
        addressed = await self.courier.address(batch)
        assert isinstance(addressed, Addressed)
        return addressed.batch


async def test_a_conversation_that_another_replica_replaced_is_used() -> None:
    """Where a call's conversation was gone, the one that another replica has opened is taken."""
    bench = CourierBench()
    addressed = await bench.courier.address(await bench.batch())
    assert isinstance(addressed, Addressed)
    bench.letta.forget_conversations()
    assert (await bench.courier.send(addressed)).event is BatchEvent.CONVERSATION_GONE
    batch = addressed.batch
    newer = await bench.letta.open_conversation("agent-1", label="of another replica")
    claimed = replace(batch, call=replace(batch.call, conversation_id=newer))
    assert (await bench.address(claimed)).call.conversation_id == newer
    assert list(bench.letta.conversations) == [newer]


async def test_one_that_is_gone_is_replaced_once() -> None:
    """A call whose conversation is gone gets a new one, which its next batch goes to as well."""
    bench = CourierBench()
    addressed = await bench.courier.address(await bench.batch())
    assert isinstance(addressed, Addressed)
    bench.letta.forget_conversations()
    await bench.courier.send(addressed)
    new = await bench.address(addressed.batch)
    assert new.call.conversation_id != addressed.batch.call.conversation_id
    assert await bench.address(new) == new
    assert len(bench.letta.conversations) == 1


async def test_what_another_replica_opened_first_is_used() -> None:
    """Of two conversations that two replicas open at once for a call, both use the first learnt."""
    bench = CourierBench()
    batch = await bench.batch()
    bench.before_opening(
        partial(bench.journal.learn_conversation, CALL.key, "conv-first", agent_id="agent-1")
    )
    assert (await bench.address(batch)).call.conversation_id == "conv-first"


async def test_a_conversation_of_an_agent_that_was_replaced_is_not_used() -> None:
    """If the caller's agent is replaced while a conversation is opened, the try begins anew."""
    bench = CourierBench()
    batch = await bench.batch()
    bench.before_opening(
        partial(bench.journal.learn_agent, CALL.ref, "agent-2", instead_of="agent-1")
    )
    outcome = await bench.courier.address(batch)
    assert not isinstance(outcome, Addressed)
    assert outcome.event is BatchEvent.UNADDRESSED
