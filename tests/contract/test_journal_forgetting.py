"""What every journal promises about forgetting a caller."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from sidecar.errors import CallerBusy, CallError
from sidecar.journal.erasure import StoredOfCaller
from sidecar.journal.policy import PostPolicy
from sidecar.journal.port import Journal
from sidecar.journal.postgres import PostgresJournal
from sidecar.journal.sqlite import SqliteJournal
from sidecar.model import AgentRef, Call, Turn
from sidecar.testing.memory_journal import MemoryJournal
from tests.set_clock import Clock

pytestmark = [pytest.mark.contract, pytest.mark.anyio]

OWN = AgentRef("acme", caller_key="k1")
SHARED = AgentRef("acme", agent_id="agent-7")
NOTHING = StoredOfCaller((), 0, 0, 0, 0, 0, (), (), None)
SECRET = "my dog is called Barnaby the Ninth"


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def engine(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def journal(
    engine: str, clock: Clock, tmp_path: Path, request: pytest.FixtureRequest
) -> AsyncIterator[Journal]:
    policy = PostPolicy(max_turns=20, max_age_s=60.0)
    if engine == "memory":
        yield MemoryJournal(policy, clock=clock)
        return
    if engine == "postgres":
        url = request.getfixturevalue("postgres").emptied()
        opened = await PostgresJournal.open(url, secret=b"s" * 32, policy=policy, clock=clock)
    else:
        opened = await SqliteJournal.open(tmp_path / "journal.db", policy=policy, clock=clock)
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
        await journal.close_call(key, epoch=1, at_s=1_799_999_100.0)


def bytes_below(directory: Path) -> bytes:
    return b"".join(file.read_bytes() for file in directory.iterdir())


async def test_what_is_held_of_a_caller_is_told_in_full(journal: Journal) -> None:
    """A caller's calls, turns, undelivered turns, agents and conversations are all counted."""
    await had(journal, "one", ref=OWN, caller_key="k1")
    await had(journal, "two", ref=SHARED, caller_key="k1")
    await had(journal, "other", ref=SHARED, caller_key="k2", closed=False)
    await journal.learn_agent(OWN, "agent-own")
    await journal.learn_conversation("acme/two", "conv-2", agent_id="agent-shared")
    stored = await journal.stored_of_caller("k1")
    assert stored == StoredOfCaller(
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
    assert await journal.stored_of_caller("k9") == NOTHING
    assert await journal.stored_of_caller("") == NOTHING


async def test_a_caller_is_erased_in_every_state(journal: Journal, clock: Clock) -> None:
    """A caller's pending, waiting and dead turns are erased, and so is the learnt agent."""
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
    assert await journal.stored_of_caller("k1") == NOTHING
    assert await journal.agent_of(OWN) is None
    assert await journal.batches(states=("dead",), limit=99) == []
    assert (await journal.counts()).turns == 0
    assert await journal.claim(5, now_s=clock() + 1e6, post_timeout_s=30.0) == []


async def test_another_caller_of_the_same_agent_keeps_everything(
    journal: Journal, clock: Clock
) -> None:
    """Where two callers share an agent, one is erased and the other's turns are still delivered."""
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
    """A live call or a batch under way stops the erasure before anything is erased."""
    await had(journal, "one", ref=OWN, caller_key="k1", closed=False)
    with pytest.raises(CallerBusy):
        await journal.erase_caller("k1", now_s=clock())
    await journal.close_call("acme/one", epoch=1, at_s=clock())
    (batch,) = await journal.claim(5, now_s=clock(), post_timeout_s=30.0)
    with pytest.raises(CallerBusy):
        await journal.erase_caller("k1", now_s=clock())
    assert (await journal.stored_of_caller("k1")).turns == 2
    await journal.settle(batch, now_s=clock())
    assert await journal.erase_caller("k1", now_s=clock()) == 2


async def test_an_empty_key_erases_nobody(journal: Journal, clock: Clock) -> None:
    """Calls of anonymous callers are not treated as those of one caller."""
    await had(journal, "one", ref=AgentRef("acme"), caller_key="")
    assert await journal.erase_caller("", now_s=clock()) == 0
    assert (await journal.counts()).calls == 1


async def test_no_byte_of_an_erased_caller_stays(tmp_path: Path, clock: Clock) -> None:
    """After the erasure no file of the journal holds a word of the caller; others' words stay."""
    path = tmp_path / "journal.db"
    journal = await SqliteJournal.open(
        path, policy=PostPolicy(max_turns=20, max_age_s=60.0), clock=clock
    )
    await had(journal, "one", ref=OWN, caller_key="k1")
    long = Turn("acme/long", "long", 1, "caller", f"{SECRET} " * 2_000, 1_799_999_000.0)
    await journal.open_call(Call("acme/long", OWN, "livekit", "k1", 1_799_999_000.0))
    await journal.append([long])
    await journal.close_call("acme/long", epoch=1, at_s=clock())
    await journal.open_call(Call("acme/k", replace(OWN, caller_key="k2"), "livekit", "k2", 1.0))
    await journal.append([Turn("acme/k", "i", 1, "caller", "kept for good", 2.0)])
    await journal.erase_caller("k1", now_s=clock())
    found = bytes_below(tmp_path)
    assert b"Barnaby" not in found
    assert b"kept for good" in found
    await journal.aclose()


async def refused(journal: Journal, name: str, *, caller_key: str = "k1") -> str:
    """Why a call can't be opened; empty when it can."""
    try:
        await journal.open_call(Call(f"acme/{name}", OWN, "vapi", caller_key, 1.0))
    except CallError as error:
        return error.code
    return ""


async def test_what_was_erased_can_not_be_opened_again(journal: Journal, clock: Clock) -> None:
    """A late turn of an erased call is not stored; a new call of the same caller is."""
    await had(journal, "one", ref=OWN, caller_key="k1")
    await journal.erase_caller("k1", also=["acme/spooled"], now_s=clock())
    assert [await refused(journal, name) for name in ("one", "spooled")] == ["erased"] * 2
    assert await refused(journal, "one", caller_key="k2") == "erased"
    with pytest.raises(CallError):
        await journal.append([Turn("acme/one", "late", 9, "caller", SECRET, 1.0)])
    assert await journal.stored_of_caller("k1") == NOTHING
    assert await refused(journal, "new") == ""
    assert (await journal.stored_of_caller("k1")).calls == ("acme/new",)


async def test_last_words_from_before_an_erasure_are_not_stored(
    journal: Journal, clock: Clock
) -> None:
    """What a dead worker left of a call that no journal knew is refused with its caller's."""
    await journal.erase_caller("k1", now_s=clock())
    for lost_s, caller_key, code in (
        (clock() - 1, "k1", "erased"),
        (clock() - 1, "k2", ""),
        (clock() + 1, "k1", ""),
    ):
        call = Call(f"acme/{lost_s}-{caller_key}", OWN, "livekit", caller_key, 1.0)
        try:
            await journal.open_call(call, lost_s=lost_s)
            refusal = ""
        except CallError as error:
            refusal = error.code
        assert refusal == code


async def test_an_erased_agent_is_known_by_who_has_a_copy(journal: Journal, clock: Clock) -> None:
    """Of the agents that somebody holds, those erased since are returned, and nobody else's."""
    began_s = clock()
    await journal.erase_caller("k1", agents=["agent-1"], now_s=began_s)
    clock.now_s += 10
    assert not await journal.is_any_erased(since_s=clock())
    await journal.erase_caller("k2", agents=["agent-2", "agent-3"], now_s=clock())
    assert await journal.is_any_erased(since_s=clock())
    held = {"agent-1", "agent-2", "agent-9"}
    assert await journal.erased_agents(held, since_s=clock()) == {"agent-2"}
    assert await journal.erased_agents(held, since_s=began_s) == {"agent-1", "agent-2"}
    assert await journal.erased_agents([], since_s=began_s) == set()


async def test_a_tombstone_goes_with_the_transcripts_of_its_age(
    journal: Journal, clock: Clock
) -> None:
    """The tombstone of an erased call is kept as long as transcripts are, and no longer."""
    await had(journal, "one", ref=OWN, caller_key="k1")
    await journal.erase_caller("k1", now_s=clock())
    await journal.erase_settled(before_s=clock() - 1)
    assert await refused(journal, "one") == "erased"
    await journal.erase_settled(before_s=clock() + 1)
    assert await refused(journal, "one") == ""


async def test_erasing_again_keeps_what_was_erased_away(journal: Journal, clock: Clock) -> None:
    """A second `forget` keeps earlier tombstones; a refused one sets none."""
    await had(journal, "one", ref=OWN, caller_key="k1")
    await journal.erase_caller("k1", now_s=clock())
    await journal.erase_caller("k1", now_s=clock())
    assert await refused(journal, "one") == "erased"
    await had(journal, "live", ref=OWN, caller_key="k1", closed=False)
    with pytest.raises(CallerBusy):
        await journal.erase_caller("k1", also=["acme/other"], now_s=clock())
    assert await refused(journal, "live") == ""
    assert await refused(journal, "other") == ""


async def test_a_tombstone_outlives_a_restart_and_names_nobody(
    tmp_path: Path, clock: Clock
) -> None:
    """No journal file holds an erased call's id or caller key, and the call stays erased."""
    path = tmp_path / "journal.db"
    name, key = "01a0a3c4-6b1e-7aa2-9d0e-3f5b8a1c2d44", "5f2d0a3bc8de4471a0b1c2d3e4f50617"
    ref = AgentRef("acme", caller_key=key)
    journal = await SqliteJournal.open(
        path, policy=PostPolicy(max_turns=20, max_age_s=60.0), clock=clock
    )
    await had(journal, name, ref=ref, caller_key=key)
    await journal.learn_agent(ref, "agent-of-the-caller")
    assert name.encode() in bytes_below(tmp_path)
    await journal.erase_caller(key, now_s=clock())
    for telling in (name, key, "agent-of-the-caller", "Barnaby"):
        assert telling.encode() not in bytes_below(tmp_path)
    await journal.aclose()
    again = await SqliteJournal.open(
        path, policy=PostPolicy(max_turns=20, max_age_s=60.0), clock=clock
    )
    assert await refused(again, name) == "erased"
    await again.aclose()
    for telling in (name, key):
        assert telling.encode() not in bytes_below(tmp_path)


async def test_pieces_of_what_others_said_are_found(journal: Journal) -> None:
    """Pieces of text that stored turns hold are found, across many calls."""
    for n in range(120):
        await had(journal, f"c{n}", ref=SHARED, caller_key="k2")
    key = "acme/c7"
    await journal.append([Turn(key, "x", 3, "caller", "l\u00e0-bas, he said", 1.0)])
    pieces = ["l\u00e0-bas".encode(), b"Barnaby the Ninth 2", b"nobody has said this"]
    assert await journal.said_of(pieces) == set(pieces[:2])
    assert await journal.said_of([]) == set()


async def test_an_erased_call_is_given_to_nobody(journal: Journal, clock: Clock) -> None:
    """Naming the caller of an erased call is refused, and the call stays erased."""
    await had(journal, "one", ref=OWN, caller_key="k1")
    await journal.erase_caller("k1", now_s=clock())
    with pytest.raises(CallError) as refused:
        await journal.identify(Call("acme/one", OWN, "vapi", "k1", 1.0))
    assert refused.value.code == "erased"
    assert await journal.call("acme/one") is None
