"""Limits of VAPI calls over several replicas: what one uses counts for all."""

from collections.abc import Sequence
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.channels.vapi.limits import Budget, RateCap, Spent
from sidecar.channels.vapi.shared_limits import SharedLimits
from sidecar.errors import JournalError
from sidecar.journal.elsewhere import Usage
from sidecar.journal.sql import SqlJournal
from sidecar.journal.sql.replicas import enter
from sidecar.model import AgentRef, Call
from sidecar.testing.memory_journal import POLICY, MemoryJournal

pytestmark = pytest.mark.unit

LIMIT = 1_000
CALL = Call("acme/c1", AgentRef("acme", agent_id="agent-1"), "vapi", "k1", 0.0)


class Replica:
    """A replica: its limits, and what they have admitted.

    Args:
        journal: As it has it.
    """

    def __init__(self, journal: SqlJournal) -> None:
        self.rate = RateCap(per_s=12.0, burst=12.0)
        self.budget = Budget(LIMIT)
        self.of_call = Spent()
        self.used = 0
        self._journal = journal
        self.limits = SharedLimits(
            journal,
            rates=[self.rate],
            budget=self.budget,
            of_calls=lambda: {CALL.key: self.of_call},
            wall=lambda: 0.0,
        )

    def use(self, tokens: int, share: float = 1.0) -> None:
        """Reserve tokens, and use a part of them."""
        if reserved := self.budget.reserve("acme", tokens, now_s=0.0):
            used = int(tokens * share)
            self.budget.charge(reserved, used, now_s=0.0)
            self.of_call.use(used)
            self.used += used

    async def share(self, *, fails: bool = False) -> None:
        if not fails:
            await self.limits.share()
            return
        real = self._journal.use

        async def refuse(_: Usage, **__: object) -> Any:
            raise JournalError("the database is away", hint="")

        self._journal.use = refuse  # type: ignore[method-assign]
        try:
            await self.limits.share()
        except JournalError:
            pass
        finally:
            self._journal.use = real


async def fleet(count: int) -> list[Replica]:
    first = MemoryJournal()
    await first.open_call(CALL)
    journals: list[SqlJournal] = [first]
    for n in range(1, count):
        name = f"replica-{n}"
        await first.executor.write(lambda tx, name=name: enter(tx, name, now_s=0.0))
        journals.append(SqlJournal(first.executor, policy=POLICY, secret=b"", replica=name))
    return [Replica(journal) for journal in journals]


@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 400), st.floats(0, 1), st.sampled_from("usf")),
        max_size=40,
    )
)
def test_what_is_used_anywhere_counts_everywhere(
    steps: Sequence[tuple[int, int, float, str]],
) -> None:
    """Whatever fails, once it is shared all know the sum, and nothing is counted twice."""

    async def body() -> None:
        replicas = await fleet(3)
        for which, tokens, share, step in steps:
            if step == "u":
                replicas[which].use(tokens, share)
            else:
                await replicas[which].share(fails=step == "f")
        for _ in range(2):
            for one in replicas:
                one.of_call.use(1)
                await one.share()
        total = sum(one.used for one in replicas)
        for one in replicas:
            await one.share()
            assert one.budget.used("acme", now_s=0.0) == total
        known = replicas[-1].of_call.tokens
        assert known == total + 2 * len(replicas)

    anyio.run(body)


def test_each_replica_admits_its_share_of_a_rate() -> None:
    """A cap is divided by the replicas that are there, and whole again when they are gone."""

    async def body() -> None:
        replicas = await fleet(3)
        await replicas[0].share()
        admitted = [replicas[0].rate.admits("acme", now_s=0.0) for _ in range(5)]
        assert admitted[:4] == [0.0] * 4
        assert admitted[4] == pytest.approx(0.25)

    anyio.run(body)


def test_a_day_that_is_used_up_elsewhere_is_used_up_here() -> None:
    """After the shares of a second no replica admits what another has used up."""

    async def body() -> None:
        one, other, _ = await fleet(3)
        one.use(LIMIT)
        await one.share()
        await other.share()
        assert other.budget.reserve("acme", 1, now_s=0.0) is None

    anyio.run(body)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 400)), max_size=40))
def test_a_budget_that_is_shared_at_once_is_not_exceeded(
    requests: Sequence[tuple[int, int]],
) -> None:
    """Where every use is shared before the next request, all replicas stay within the limit."""

    async def body() -> None:
        replicas = await fleet(3)
        for which, tokens in requests:
            replicas[which].use(tokens)
            for one in (*replicas, *replicas):
                await one.share()
        assert sum(one.used for one in replicas) <= LIMIT

    anyio.run(body)


def test_what_was_reserved_and_not_used_is_nobodys() -> None:
    """A replica that dies with a request under way leaves the day to the others."""

    async def body() -> None:
        one, other, _ = await fleet(3)
        assert one.budget.reserve("acme", LIMIT, now_s=0.0)
        await one.share()
        await other.share()
        assert other.budget.reserve("acme", LIMIT, now_s=0.0)

    anyio.run(body)
