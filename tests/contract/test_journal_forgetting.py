"""What every journal promises about forgetting a caller, whatever keeps it."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from sidecar.errors import CallerBusy
from sidecar.model import AgentRef, Call, Turn
from sidecar.testing.memory_journal import MemoryJournal
from sidecar.transcript.journal import CallerHolding, Journal, PostPolicy
from sidecar.transcript.sqlite import SqliteJournal

pytestmark = [pytest.mark.contract, pytest.mark.anyio]

OWN = AgentRef("acme", caller_key="k1")
SHARED = AgentRef("acme", agent_id="agent-7")
NOTHING = CallerHolding((), 0, 0, 0, 0, 0, (), (), None)
SECRET = "my dog is called Barnaby the Ninth"


@dataclass
class Clock:
    now_s: float = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture(params=["memory", "sqlite"])
def engine(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def journal(engine: str, clock: Clock, tmp_path: Path) -> AsyncIterator[Journal]:
    if engine == "memory":
        yield MemoryJournal(PostPolicy(), clock=clock)
    else:
        opened = await SqliteJournal.open(tmp_path / "journal.db", policy=PostPolicy(), clock=clock)
        yield opened
        await opened.aclose()


async def had(
    journal: Journal, name: str, *, ref: AgentRef, caller_key: str, closed: bool = True
) -> None:
    """A call of two turns."""
    key = f"acme/{name}"
    await journal.open_call(Call(key, ref, "livekit", caller_key, 1_799_999_000.0))
    turns = [Turn(key, f"i{n}", n, "caller", f"{SECRET} {n}", 1_799_999_000.0 + n) for n in (1, 2)]
    await journal.append(turns)
    if closed:
        await journal.close_call(key, at_s=1_799_999_100.0)


def bytes_below(directory: Path) -> bytes:
    return b"".join(file.read_bytes() for file in directory.iterdir())


async def test_what_is_held_of_a_caller_is_told_in_full(journal: Journal) -> None:
    """Calls, turns, what is undelivered, agents and conversations of a caller are counted."""
    await had(journal, "one", ref=OWN, caller_key="k1")
    await had(journal, "two", ref=SHARED, caller_key="k1")
    await had(journal, "other", ref=SHARED, caller_key="k2", closed=False)
    await journal.learn_agent(OWN, "agent-own")
    await journal.learn_conversation("acme/two", "conv-2")
    held = await journal.held_of_caller("k1")
    assert held == CallerHolding(
        calls=("acme/one", "acme/two"),
        live_calls=0,
        turns=4,
        undelivered=4,
        dead_batches=0,
        under_way=0,
        agents=("agent-7", "agent-own"),
        conversations=(("agent-7", "conv-2"),),
        own_agent="agent-own",
    )
    assert await journal.held_of_caller("k9") == NOTHING
    assert await journal.held_of_caller("") == NOTHING


async def test_a_caller_is_erased_in_every_state(journal: Journal, clock: Clock) -> None:
    """Pending, waiting and dead turns of a caller go, and the learnt agent with them."""
    await had(journal, "dead", ref=OWN, caller_key="k1")
    (batch,) = await journal.claim(5, now_s=clock(), post_timeout_s=30.0)
    await journal.retire(batch, error="400", now_s=clock())
    await had(journal, "waiting", ref=OWN, caller_key="k1")
    (batch,) = await journal.claim(5, now_s=clock(), post_timeout_s=30.0)
    await journal.release(
        batch, due_s=clock() + 60, unknown=False, over=False, error="503", now_s=clock()
    )
    await had(journal, "pending", ref=OWN, caller_key="k1")
    await journal.learn_agent(OWN, "agent-own")
    assert await journal.erase_caller("k1", now_s=clock()) == 6
    assert await journal.held_of_caller("k1") == NOTHING
    assert await journal.agent_of(OWN) is None
    assert await journal.dead_letters() == []
    assert (await journal.counts()).turns == 0
    assert await journal.claim(5, now_s=clock() + 1e6, post_timeout_s=30.0) == []


async def test_another_caller_of_the_same_agent_keeps_everything(
    journal: Journal, clock: Clock
) -> None:
    """Where two callers share an agent, only the one is erased, and the lane goes on."""
    await had(journal, "one", ref=SHARED, caller_key="k1")
    (batch,) = await journal.claim(5, now_s=clock(), post_timeout_s=30.0)
    await journal.release(
        batch, due_s=clock() + 3600, unknown=False, over=False, error="503", now_s=clock()
    )
    await had(journal, "two", ref=SHARED, caller_key="k2")
    assert await journal.erase_caller("k1", now_s=clock()) == 2
    (batch,) = await journal.claim(5, now_s=clock(), post_timeout_s=30.0)
    assert batch.call.key == "acme/two"
    assert len(batch.turns) == 2


async def test_a_caller_on_the_line_is_not_erased(journal: Journal, clock: Clock) -> None:
    """A live call, or a batch on its way, stops the erasure before anything is gone."""
    await had(journal, "one", ref=OWN, caller_key="k1", closed=False)
    with pytest.raises(CallerBusy):
        await journal.erase_caller("k1", now_s=clock())
    await journal.close_call("acme/one", at_s=clock())
    (batch,) = await journal.claim(5, now_s=clock(), post_timeout_s=30.0)
    with pytest.raises(CallerBusy):
        await journal.erase_caller("k1", now_s=clock())
    assert (await journal.held_of_caller("k1")).turns == 2
    await journal.settle(batch, now_s=clock())
    assert await journal.erase_caller("k1", now_s=clock()) == 2


async def test_an_empty_key_erases_nobody(journal: Journal, clock: Clock) -> None:
    """The calls of anonymous callers are not one caller's."""
    await had(journal, "one", ref=AgentRef("acme"), caller_key="")
    assert await journal.erase_caller("", now_s=clock()) == 0
    assert (await journal.counts()).calls == 1


async def test_no_byte_of_an_erased_caller_stays(tmp_path: Path, clock: Clock) -> None:
    """After the erasure no file of the journal holds a word of the caller; others' words stay."""
    path = tmp_path / "journal.db"
    journal = await SqliteJournal.open(path, policy=PostPolicy(), clock=clock)
    await had(journal, "one", ref=OWN, caller_key="k1")
    long = Turn("acme/long", "long", 1, "caller", f"{SECRET} " * 2_000, 1_799_999_000.0)
    await journal.open_call(Call("acme/long", OWN, "livekit", "k1", 1_799_999_000.0))
    await journal.append([long])
    await journal.close_call("acme/long", at_s=clock())
    await journal.open_call(Call("acme/k", replace(OWN, caller_key="k2"), "livekit", "k2", 1.0))
    await journal.append([Turn("acme/k", "i", 1, "caller", "kept for good", 2.0)])
    await journal.erase_caller("k1", now_s=clock())
    found = bytes_below(tmp_path)
    assert b"Barnaby" not in found
    assert b"kept for good" in found
    await journal.aclose()
