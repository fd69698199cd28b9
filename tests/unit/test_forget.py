"""Forgetting a caller: what is erased, what is kept, and what is reported."""

import errno
import json
import tempfile
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import IO, Any

import anyio
import pytest

from sidecar.access.callers import IdentityRules
from sidecar.errors import CallerBusy, CallError, LettaUnavailable
from sidecar.jobs.copies import ErasedCopies
from sidecar.jobs.forget import Forgetting, pieces_of
from sidecar.journal.policy import PostPolicy
from sidecar.journal.sqlite import SqliteJournal
from sidecar.letta.digest_agent import spec_of_caller
from sidecar.memory.store import DirectoryStore
from sidecar.model import AgentRef, Block, Call, Snapshot, Turn, caller_key
from sidecar.telemetry import Telemetry
from sidecar.testing.fake_letta import FakeLetta
from sidecar.wire.frames import CallOpen, Hints, TurnFrame
from sidecar.wire.spool import SpoolFile
from tests.set_clock import Clock

pytestmark = [pytest.mark.unit, pytest.mark.anyio]

KEY = caller_key("acme", "caller:bob")
OTHER = caller_key("acme", "caller:eve")
OWN = AgentRef("acme", caller_key=KEY)
SHARED = AgentRef("acme", agent_id="agent-shared")
SECRET = "the safe opens with my mother's birthday"


class ForgettingBench:
    """A data directory with a journal, copies, a spool and a Letta."""

    def __init__(self, root: Path, journal: SqliteJournal) -> None:
        self.root = root
        self.spool = root / "spool"
        self.journal = journal
        self.letta = FakeLetta(clock=self.clock, latency_s=0.0)
        self.copies = DirectoryStore(root / "snapshots")
        self.events = Telemetry(strict=True)
        self.on_the_line: set[str] = set()
        self.forgetting = Forgetting(
            journal,
            self.letta,
            self.copies,
            rules=IdentityRules(),
            directory=root,
            spool=self.spool,
            spool_tenant="acme",
            on_the_line=lambda caller_key: caller_key in self.on_the_line,
            emit=self.events.emit,
            clock=self.clock,
        )

    def clock(self) -> float:
        return 1_800_000_000.0

    async def call(
        self, name: str, *, ref: AgentRef, key: str, text: str, closed: bool = True
    ) -> None:
        call = f"acme/{name}"
        await self.journal.open_call(Call(call, ref, "livekit", key, 1_799_999_000.0))
        await self.journal.append([Turn(call, "i1", 1, "caller", text, 1_799_999_001.0)])
        if closed:
            await self.journal.close_call(call, epoch=1, at_s=1_799_999_100.0)

    async def agent(self) -> str:
        """The caller's own agent, with a last good copy of its memory."""
        agent_id = await self.letta.create_agent(spec_of_caller("acme", KEY))
        await self.journal.learn_agent(OWN, agent_id)
        block = Block("human", f"Said that {SECRET}")
        await self.copies.save(Snapshot.of(agent_id, [block], read_at_s=1.0))
        return agent_id

    def spooled(self, name: str, caller: str, text: str) -> SpoolFile:
        file = SpoolFile.create(self.spool, name)
        opened = CallOpen(name, "livekit", Hints(caller=caller), 1_799_999_000.0)
        file.append([opened, TurnFrame(name, "i1", 1, "caller", text, 1_799_999_001.0)])
        return file

    def files_with(self, text: str) -> list[str]:
        return [
            p.name for p in self.root.rglob("*") if p.is_file() and text.encode() in p.read_bytes()
        ]


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[ForgettingBench]:
    journal = await SqliteJournal.open(
        tmp_path / "journal.db", policy=PostPolicy(max_turns=20, max_age_s=60.0)
    )
    yield ForgettingBench(tmp_path, journal)
    await journal.aclose()


async def test_a_caller_goes_from_every_place(bench: ForgettingBench) -> None:
    """The caller is erased from journal, spool, copies and Letta, and no file holds its words."""
    agent_id = await bench.agent()
    await bench.call("one", ref=OWN, key=KEY, text=f"listen, {SECRET} and so on")
    bench.spooled("left", "bob", f"again: {SECRET}").close()
    bench.spooled("others", "eve", "nothing of his is in here").close()
    assert len(bench.files_with(SECRET)) >= 3
    report = await bench.forgetting.forget("acme", KEY)
    assert (report.done, report.calls, report.turns, report.spool_files) == (True, 1, 1, 1)
    assert report.agents == (agent_id,)
    assert report.traces == ()
    assert len(report.left) == 1
    assert bench.files_with(SECRET) == []
    assert await bench.letta.find_agents(()) == []
    assert [p.name for p in bench.spool.iterdir()] == ["others.jsonl"]
    assert bench.events.counts["caller_forgotten"] == 1


async def test_no_erased_call_comes_back(bench: ForgettingBench) -> None:
    """Erased calls of the journal and the spool stay away, and no file names them."""
    await bench.call("01a0a3c4-6b1e-7aa2", ref=OWN, key=KEY, text=SECRET)
    bench.spooled("AJ_9f2b11c07", "bob", SECRET).close()
    report = await bench.forgetting.forget("acme", KEY)
    assert report.tombstones == 2
    for name in ("01a0a3c4-6b1e-7aa2", "AJ_9f2b11c07"):
        with pytest.raises(CallError, match="erased"):
            await bench.call(name, ref=OWN, key=KEY, text=SECRET)
        assert bench.files_with(name) == []
    assert bench.files_with(SECRET) == bench.files_with(KEY) == []


async def test_a_dry_run_touches_nothing(bench: ForgettingBench) -> None:
    """A dry run counts what would be erased and erases nothing."""
    agent_id = await bench.agent()
    await bench.call("one", ref=OWN, key=KEY, text=SECRET)
    plan = await bench.forgetting.plan("acme", KEY)
    assert (plan.done, plan.calls, plan.agents) == (False, 1, (agent_id,))
    assert plan.tombstones == 1
    assert (await bench.journal.counts()).turns == 1
    assert len(await bench.letta.find_agents(())) == 1


async def test_an_agent_found_by_its_tags_alone_goes_too(bench: ForgettingBench) -> None:
    """An agent that only its tags link to the caller is erased, too."""
    await bench.letta.create_agent(spec_of_caller("acme", KEY))
    await bench.letta.create_agent(spec_of_caller("acme", OTHER))
    report = await bench.forgetting.forget("acme", KEY)
    assert len(report.agents) == 1
    assert len(await bench.letta.find_agents(())) == 1


async def test_of_a_shared_agent_only_the_conversation_goes(bench: ForgettingBench) -> None:
    """A shared agent stays, its conversation with the caller goes, and the report names it."""
    await bench.call("one", ref=SHARED, key=KEY, text=SECRET)
    await bench.call("two", ref=SHARED, key=OTHER, text="somebody else's words entirely")
    mine = await bench.letta.open_conversation("agent-shared", label="one")
    other = await bench.letta.open_conversation("agent-shared", label="two")
    await bench.journal.learn_conversation("acme/one", mine, agent_id="agent-shared")
    await bench.journal.learn_conversation("acme/two", other, agent_id="agent-shared")
    report = await bench.forgetting.forget("acme", KEY)
    assert report.agents == ()
    assert report.conversations == 1
    assert bench.letta.conversations == {other: "agent-shared"}
    assert any("agent-shared" in text for text in report.left)
    assert (await bench.journal.counts()).calls == 1


async def test_with_letta_away_nothing_is_erased(bench: ForgettingBench) -> None:
    """While Letta is unavailable nothing is erased, so no caller is erased in part."""
    await bench.agent()
    await bench.call("one", ref=OWN, key=KEY, text=SECRET)
    bench.letta.down = True
    with pytest.raises(LettaUnavailable):
        await bench.forgetting.forget("acme", KEY)
    assert (await bench.journal.counts()).turns == 1


async def test_a_live_caller_is_not_erased(bench: ForgettingBench) -> None:
    """A live call stops the erasure before the spool or Letta is touched."""
    await bench.agent()
    await bench.call("one", ref=OWN, key=KEY, text=SECRET, closed=False)
    bench.spooled("left", "bob", SECRET).close()
    with pytest.raises(CallerBusy):
        await bench.forgetting.forget("acme", KEY)
    assert len(list(bench.spool.iterdir())) == 1
    assert len(await bench.letta.find_agents(())) == 1


@pytest.mark.parametrize("stored", [True, False])
async def test_a_caller_who_rings_while_letta_is_asked_is_not_erased(
    bench: ForgettingBench, monkeypatch: pytest.MonkeyPatch, stored: bool
) -> None:
    """A call that begins while Letta answers stops the erasure: spool and journal are whole."""
    await bench.call("one", ref=OWN, key=KEY, text=SECRET)
    bench.spooled("left", "bob", SECRET).close()
    find_agents = bench.letta.find_agents

    async def ringing(tags: Sequence[str]) -> Sequence[Any]:
        if stored:
            await bench.call("two", ref=OWN, key=KEY, text=SECRET, closed=False)
        else:
            bench.on_the_line.add(KEY)
        return await find_agents(tags)

    monkeypatch.setattr(bench.letta, "find_agents", ringing)
    with pytest.raises(CallerBusy):
        await bench.forgetting.forget("acme", KEY)
    assert len(list(bench.spool.iterdir())) == 1
    assert (await bench.journal.counts()).turns == 1 + stored


async def test_a_live_call_that_another_records_stops_it(bench: ForgettingBench) -> None:
    """A caller in a call that is not stored, as another call of its room is, is on the line."""
    await bench.call("one", ref=OWN, key=KEY, text=SECRET)
    bench.on_the_line.add(KEY)
    with pytest.raises(CallerBusy):
        await bench.forgetting.forget("acme", KEY)
    assert (await bench.journal.counts()).turns == 1


async def test_a_agent_ids_file_that_names_its_caller_later_stops_it(
    bench: ForgettingBench,
) -> None:
    """A held spool file belongs to the caller whom it names later, and stops the erasure."""
    file = bench.spooled("later", "", SECRET)
    file.append([CallOpen("later", "livekit", Hints(caller="bob"), 1_799_999_000.0)])
    with pytest.raises(CallerBusy):
        await bench.forgetting.plan("acme", KEY)
    file.close()


async def test_a_spool_file_that_a_worker_holds_stops_it(bench: ForgettingBench) -> None:
    """A spool file that a worker still writes stops its own caller's erasure, and no other's."""
    await bench.call("one", ref=OWN, key=KEY, text=SECRET)
    file = bench.spooled("others", "eve", "nothing of his is in here")
    assert (await bench.forgetting.plan("acme", KEY)).spool_files == 0
    mine = bench.spooled("mine", "bob", SECRET)
    with pytest.raises(CallerBusy):
        await bench.forgetting.forget("acme", KEY)
    assert (await bench.journal.counts()).turns == 1
    file.close()
    mine.close()


async def test_a_spool_file_that_names_nobody_is_told(bench: ForgettingBench) -> None:
    """Damaged files without a caller, and files of a spool that tenants share, are reported."""
    bench.spool.mkdir()
    (bench.spool / "AJ_9.damaged").write_text("half a line of somebody's")
    (bench.spool / "AJ_8.damaged").write_text('{"type":"call.open","call":"c9","chan\nrubbish\n')
    report = await bench.forgetting.forget("acme", KEY)
    for name in ("AJ_8.damaged", "AJ_9.damaged"):
        assert any(name in line for line in report.left)
    bench.forgetting._spool_tenant = None
    bench.spooled("left", "bob", SECRET).close()
    report = await bench.forgetting.forget("acme", KEY)
    assert len([line for line in report.left if str(bench.spool) in line]) == 3


async def test_what_is_left_in_a_file_is_found(bench: ForgettingBench) -> None:
    """A file that nobody erases, such as an owner's copy, is reported if it holds the words."""
    await bench.call("one", ref=OWN, key=KEY, text=SECRET)
    copy = bench.root / "backup-of-mine.json"
    copy.write_text(json.dumps({"text": f"he said {SECRET}"}))
    report = await bench.forgetting.forget("acme", KEY)
    assert report.traces == (str(copy),)


async def test_a_file_that_can_not_be_read_is_not_called_clean(
    bench: ForgettingBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that can't be read is named in the report, and the others are searched."""
    sealed = bench.root / "sealed.log"
    sealed.write_text("x")
    (bench.root / "notes.log").write_text(f"... {SECRET} ...")
    opened = Path.open

    def refusing(path: Path, mode: str = "r") -> IO[Any]:
        if path == sealed:
            raise PermissionError(errno.EACCES, "Permission denied")
        return opened(path, mode)

    monkeypatch.setattr(Path, "open", refusing)
    await bench.call("one", ref=OWN, key=KEY, text=SECRET)
    report = await bench.forgetting.forget("acme", KEY)
    assert [name for name in report.left if "sealed.log" in name and "Permission denied" in name]
    assert [Path(path).name for path in report.traces] == ["notes.log"]


async def test_a_copy_that_can_not_be_erased_is_named(
    bench: ForgettingBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that keeps an agent's copy stops nothing else, and the report says where it is."""
    agent_id = await bench.agent()
    await bench.call("one", ref=OWN, key=KEY, text=SECRET)

    async def refused(_agent_id: str) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(bench.copies, "forget", refused)
    report = await bench.forgetting.forget("acme", KEY)
    assert [name for name in report.left if agent_id in name and "Read-only" in name]
    assert await bench.letta.find_agents(()) == []
    assert (await bench.journal.counts()).turns == 0


async def test_holes_and_other_peoples_files_cost_nothing(bench: ForgettingBench) -> None:
    """Words behind a hole of terabytes are found, and foreign files in the spool are not read."""
    await bench.call("one", ref=OWN, key=KEY, text=SECRET)
    holed = bench.root / "disk.img"
    with holed.open("wb") as file:
        file.truncate(4 << 40)
        file.seek(3 << 40)
        file.write(SECRET.encode())
    with tempfile.TemporaryDirectory() as elsewhere:
        bench.forgetting._spool = Path(elsewhere)
        (Path(elsewhere) / "training.jsonl").write_text(f"my own file, with {SECRET} in it")
        with anyio.fail_after(30):
            report = await bench.forgetting.forget("acme", KEY)
    assert report.traces == (str(holed),)


async def test_what_another_caller_said_too_is_no_trace(bench: ForgettingBench) -> None:
    """The same sentence of another caller is kept and not reported as a trace."""
    await bench.call("one", ref=OWN, key=KEY, text=SECRET)
    await bench.call("two", ref=AgentRef("acme", caller_key=OTHER), key=OTHER, text=SECRET)
    report = await bench.forgetting.forget("acme", KEY)
    assert report.traces == ()
    assert (await bench.journal.counts()).turns == 1


async def test_forgetting_twice_is_no_error(bench: ForgettingBench) -> None:
    """Forgetting a caller again finds nothing and is no error."""
    await bench.agent()
    await bench.call("one", ref=OWN, key=KEY, text=SECRET)
    await bench.forgetting.forget("acme", KEY)
    again = await bench.forgetting.forget("acme", KEY)
    assert (again.calls, again.turns, again.agents, again.traces) == (0, 0, (), ())


def test_pieces_are_telling_and_few() -> None:
    """Short turns give no piece, pieces avoid escaped characters, and their number is bounded."""
    assert pieces_of(["yes", "ok thanks"], "k" * 32) == [b"k" * 32]
    (_, piece) = pieces_of(['he said "hello" & that was all there was to it'], "k")
    assert piece in b"that was all there was to it"
    assert len(pieces_of([f"sentence number {n} of a long call" for n in range(999)], "k")) <= 201


async def test_the_copies_of_other_replicas_go_too(bench: ForgettingBench, tmp_path: Path) -> None:
    """A replica that holds a copy of an erased agent's memory erases it, and no other one."""
    agent_id = await bench.agent()
    there = DirectoryStore(tmp_path / "there")
    for held in (agent_id, "agent-of-another"):
        await there.save(Snapshot.of(held, [Block("human", SECRET)], read_at_s=1.0))
    clock = Clock()
    elsewhere = ErasedCopies(bench.journal, there, emit=lambda _event, **_fields: None, clock=clock)
    await elsewhere.erase(since_s=0.0)
    assert await there.agent_ids() == {agent_id, "agent-of-another"}
    await bench.forgetting.forget("acme", KEY)
    real = there.forget

    async def fails(_: str) -> None:
        raise OSError(errno.EROFS, "read-only")

    there.forget = fails  # type: ignore[method-assign]
    assert not await elsewhere.erase(since_s=clock()), "it asks again for the same time"
    there.forget = real
    assert await elsewhere.erase(since_s=clock())
    assert await there.agent_ids() == {"agent-of-another"}
