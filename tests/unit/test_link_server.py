"""The sidecar's end of the link, on a journal that fails and peers that leave."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, MutableMapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import msgspec
import pytest
from starlette.websockets import WebSocket
from typing_extensions import override

from sidecar.access.callers import IdentityRules
from sidecar.calls import CallPolicy, Calls
from sidecar.channels.link import server as link
from sidecar.channels.link.allowance import Allowance
from sidecar.channels.link.server import MAX_UNSTORED_BYTES, LinkServer
from sidecar.errors import CallError, JournalError, JournalFull
from sidecar.letta.identity import Identity
from sidecar.memory.snapshots import Snapshots
from sidecar.model import CHANNEL_RULE, Call, Turn
from sidecar.telemetry import Telemetry
from sidecar.testing.fake_letta import FakeLetta
from sidecar.testing.memory_journal import MemoryJournal
from sidecar.wire.frames import (
    SUBPROTOCOL,
    Ack,
    CallClose,
    CallOpen,
    ErrorFrame,
    FromSidecar,
    FromWorker,
    Guidance,
    Hello,
    Hints,
    Memory,
    SpeechStarted,
    TurnFrame,
    Welcome,
    decode_from_sidecar,
    encode,
)
from tests.no_store import NoStore

pytestmark = [pytest.mark.unit, pytest.mark.anyio]

CALL = "c1"
OPEN = CallOpen(CALL, "livekit", Hints(caller="ada"), 1.0)
CLOSE = CallClose(CALL, 2.0)


def turn(n: int) -> TurnFrame:
    return TurnFrame(CALL, f"t{n}", n, "caller", f"word {n}", 1.0)


class Journal(MemoryJournal):
    """A journal whose disk can stall, and whose appends can fail."""

    def __init__(self) -> None:
        super().__init__(clock=lambda: 1.0)
        self.fails: dict[str, list[JournalError]] = {}
        self.disk = anyio.Event()
        self.disk.set()
        self.stalled_for = ""

    @override
    async def open_call(
        self, call: Call, *, continues: str = "", lost_s: float | None = None
    ) -> Call:
        await self.disk.wait()
        return await super().open_call(call, continues=continues, lost_s=lost_s)

    @override
    async def append(self, turns: Sequence[Turn], *, left: bool = False) -> None:
        if turns[0].call.endswith(self.stalled_for):
            await self.disk.wait()
        for each in turns:
            if fails := self.fails.get(each.item_id):
                raise fails.pop(0)
        await super().append(turns, left=left)

    def will_fail(self, item: str, *errors: JournalError) -> None:
        self.fails[item] = list(errors)

    def stall(self, call: str = "") -> None:
        """Stall openings of calls, and appends of all calls or of one."""
        self.disk = anyio.Event()
        self.stalled_for = call

    async def items(self) -> list[str]:
        return [each.item_id for each in await self.turns(f"acme/{CALL}")]


class Peer:
    """A worker on a socket in this process."""

    def __init__(self) -> None:
        self.heard: list[FromSidecar] = []
        self.reads = anyio.Event()
        self.reads.set()
        self.closed: int | None = None
        self.to_sidecar, self.of_worker = anyio.create_memory_object_stream[dict[str, Any]](1000)
        self._changed = anyio.Event()

    async def receive(self) -> dict[str, Any]:
        return await self.of_worker.receive()

    async def send(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "websocket.close":
            self.closed = message["code"]
        elif message["type"] == "websocket.send":
            await self.reads.wait()
            if frame := decode_from_sidecar(message["text"]):
                self.heard.append(frame)
        self._changed.set()
        self._changed = anyio.Event()

    def says(self, *frames: FromWorker | str) -> None:
        for frame in frames:
            text = frame if isinstance(frame, str) else encode(frame)
            self.to_sidecar.send_nowait({"type": "websocket.receive", "text": text})

    @property
    def unread(self) -> int:
        """Frames that the sidecar has not read yet."""
        return self.to_sidecar.statistics().current_buffer_used

    def leaves(self) -> None:
        self.to_sidecar.send_nowait({"type": "websocket.disconnect", "code": 1006})

    async def until(self, condition: Callable[[], bool]) -> None:
        with anyio.fail_after(10.0):
            while not condition():
                await self._changed.wait()

    @property
    def acked(self) -> list[str]:
        return [item for frame in self.heard if isinstance(frame, Ack) for item in frame.items]

    @property
    def refused(self) -> list[str]:
        return [frame.item for frame in self.errors]

    @property
    def errors(self) -> list[ErrorFrame]:
        return [frame for frame in self.heard if isinstance(frame, ErrorFrame)]


class LinkServerBench:
    """A link server with its calls, a journal and a Letta."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.events = Telemetry(strict=True)
        letta = FakeLetta(clock=lambda: 1.0)
        rules = IdentityRules(agent_id="agent-7")
        self.calls = Calls(
            journal,
            Snapshots(letta, NoStore(), emit=self.events.emit, clock=lambda: 1.0),
            Identity(letta, journal, rules=rules, emit=self.events.emit),
            rules=rules,
            policy=CallPolicy(),
            secret=b"s" * 32,
            emit=self.events.emit,
            clock=lambda: 1.0,
        )
        self.server = LinkServer(
            self.calls,
            tokens={"token": "acme"},
            memory_wait_s=0.1,
            cold_start_s=0.1,
            emit=self.events.emit,
            wall=lambda: 1_764_400_000.0,
        )

    @asynccontextmanager
    async def connected(
        self, *frames: FromWorker | str, worker: str = "w1"
    ) -> AsyncGenerator[Peer]:
        peer = Peer()
        scope = {
            "type": "websocket",
            "headers": [(b"authorization", b"Bearer token")],
            "subprotocols": [SUBPROTOCOL],
        }
        peer.to_sidecar.send_nowait({"type": "websocket.connect"})
        peer.says(Hello(worker), *frames)
        async with peer.to_sidecar, peer.of_worker, anyio.create_task_group() as tasks:
            socket = WebSocket(scope, peer.receive, peer.send)
            tasks.start_soon(self.server.endpoint, socket)
            await peer.until(lambda: any(isinstance(frame, Welcome) for frame in peer.heard))
            yield peer
            peer.leaves()


@pytest.fixture
async def bench() -> AsyncIterator[LinkServerBench]:
    bench = LinkServerBench(Journal())
    async with anyio.create_task_group() as tasks:
        await tasks.start(bench.calls.run)
        yield bench
        tasks.cancel_scope.cancel()


FULL = JournalFull("full")


# Whose clock


async def test_each_worker_is_told_the_sidecars_clock(bench: LinkServerBench) -> None:
    """The welcome frame has the sidecar's time of day, from which a worker dates its turns."""
    async with bench.connected() as peer:
        [welcome] = [frame for frame in peer.heard if isinstance(frame, Welcome)]
    assert 1_764_400_000.0 == welcome.now_s


# Whose channel


async def test_a_wrong_channel_is_said_and_costs_no_turn(bench: LinkServerBench) -> None:
    """A wrong channel is an error with the rule, and the turns are stored once it is corrected."""
    wrong = encode(OPEN).replace('"livekit"', '"My Worker"')
    async with bench.connected(wrong, turn(1)) as peer:
        await peer.until(lambda: len(peer.errors) == 2)
        first, second = peer.errors
        assert ("malformed", "channel", CALL) == (first.code, first.field, first.call)
        assert CHANNEL_RULE in first.message
        assert ("unknown_call", "t1") == (second.code, second.item)
        peer.says(CallOpen(CALL, "my-worker", Hints(caller="ada"), 1.0), turn(1), CLOSE)
        await peer.until(lambda: any(isinstance(f, Ack) and f.closed for f in peer.heard))
    assert ["t1"] == await bench.journal.items()


# A call that goes on


async def test_a_successor_is_told_that_its_call_goes_on(bench: LinkServerBench) -> None:
    """Each memory of a new job in a lost call's room says so, and all frames have its own id."""
    opened = msgspec.structs.replace(OPEN, room="RM_1")
    async with bench.connected(opened, turn(1)) as peer:
        await peer.until(lambda: peer.acked == ["t1"])
        assert not any(frame.continues for frame in peer.heard if isinstance(frame, Memory))
    theirs = msgspec.structs.replace(opened, call="next")
    later = msgspec.structs.replace(turn(1), call="next", at_s=9.0)
    async with bench.connected(theirs, later, worker="w2") as peer:
        await peer.until(lambda: peer.acked == ["t1"] and has_memory(peer))
        memories = [frame for frame in peer.heard if isinstance(frame, Memory)]
        assert all(frame.continues and "word 1" in frame.text for frame in memories)
        peer.says(CallClose("next", 2.0))
        await peer.until(lambda: any(isinstance(f, Ack) and f.closed for f in peer.heard))
        named = {frame.call for frame in peer.heard if isinstance(frame, Memory | Ack)}
        assert named == {"next"}
    assert await bench.journal.items() == ["t1", "next/t1"]


def has_memory(peer: Peer) -> bool:
    return any(isinstance(frame, Memory) for frame in peer.heard)


# Guidance


async def test_a_worker_that_comes_back_has_all_guidance_again(bench: LinkServerBench) -> None:
    """Reopening a call brings all its guidance again, in order, with what was missed."""
    async with bench.connected(OPEN) as peer:
        await peer.until(lambda: bool(bench.calls.live))
        bench.calls.live[0].guide("Offer a call back.")
        await peer.until(lambda: any(isinstance(frame, Guidance) for frame in peer.heard))
        bench.calls.live[0].guide("Be brief.")
    async with bench.connected(OPEN, turn(1)) as peer:
        await peer.until(lambda: peer.acked == ["t1"])
        guidance = [frame.text for frame in peer.heard if isinstance(frame, Guidance)]
        assert guidance == ["Offer a call back.", "Be brief."]


# Order


ERASED = CallError("unknown_call", "erased")


@pytest.mark.parametrize("errors", [[FULL], [ERASED, ERASED]], ids=["full", "erased"])
async def test_no_turn_overtakes_one_that_was_refused(
    bench: LinkServerBench, errors: list[JournalError]
) -> None:
    """After a failed turn, later ones of its call are refused until it is sent again."""
    error = errors[0]
    bench.journal.will_fail("t1", *errors)
    async with bench.connected(OPEN, turn(1)) as peer:
        await peer.until(lambda: peer.refused == ["t1"])
        peer.says(turn(2), CLOSE)
        await peer.until(lambda: peer.refused == ["t1", "t2", ""])
        peer.says(turn(1), turn(2), turn(3), CLOSE)
        await peer.until(lambda: peer.acked == ["t1", "t2", "t3"])
    assert ["t1", "t2", "t3"] == await bench.journal.items()
    assert {error.code if isinstance(error, CallError) else "journal_full"} == {
        frame.code for frame in peer.errors
    }


async def test_turns_sent_before_the_refusal_was_heard_do_not_overtake(
    bench: LinkServerBench,
) -> None:
    """Turns sent before their worker heard of the failed one are refused as well."""
    bench.journal.will_fail("t2", FULL)
    async with bench.connected(OPEN) as peer:
        for n in (1, 2, 3, 4):
            peer.says(turn(n))
            await anyio.wait_all_tasks_blocked()
        await peer.until(lambda: peer.refused == ["t2", "t3", "t4"])
        peer.says(turn(2), turn(3), turn(4))
        await peer.until(lambda: peer.acked == ["t1", "t2", "t3", "t4"])
    assert ["t1", "t2", "t3", "t4"] == await bench.journal.items()


async def test_a_repeat_of_a_stored_turn_is_not_awaited(bench: LinkServerBench) -> None:
    """A failed repeat of a stored turn holds up no turn behind it."""
    async with bench.connected(OPEN, turn(1)) as peer:
        await peer.until(lambda: peer.acked == ["t1"])
        bench.journal.will_fail("t1", FULL)
        peer.says(turn(1))
        await peer.until(lambda: peer.refused == ["t1"])
        peer.says(turn(2))
        await peer.until(lambda: peer.acked == ["t1", "t2"])


async def test_one_calls_refusal_is_no_other_calls(bench: LinkServerBench) -> None:
    """A refused turn of one call holds up no other call of the worker."""
    bench.journal.will_fail("t1", FULL)
    other = CallOpen("c2", "livekit", Hints(caller="bob"), 1.0)
    async with bench.connected(OPEN, other, turn(1)) as peer:
        await peer.until(lambda: peer.refused == ["t1"])
        peer.says(TurnFrame("c2", "o1", 1, "caller", "word", 1.0))
        await peer.until(lambda: peer.acked == ["o1"])


async def test_a_turn_that_can_not_be_stored_costs_itself_alone(bench: LinkServerBench) -> None:
    """A turn that can't be stored is refused for good, and those sent with it are stored."""
    bad = CallError("bad_value", "a text is no Unicode")
    bench.journal.stall()
    bench.journal.will_fail("t2", bad, bad)
    async with bench.connected(OPEN, turn(1), turn(2), turn(3)) as peer:
        await anyio.wait_all_tasks_blocked()
        bench.journal.disk.set()
        await peer.until(lambda: peer.acked == ["t1", "t3"])
        peer.says(turn(4))
        await peer.until(lambda: peer.acked == ["t1", "t3", "t4"])
        assert [("bad_value", "t2", False)] == [(e.code, e.item, e.retryable) for e in peer.errors]


async def test_many_turns_at_once_are_acked_in_frames_that_fit(bench: LinkServerBench) -> None:
    """However many turns are acked at once, and however long their ids, each ack fits a frame."""
    bench.journal.stall()
    items = [f"{n}{chr(1) * 256}"[:256] for n in range(1_000)]
    async with bench.connected(OPEN) as peer:
        for n, item in enumerate(items, start=1):
            peer.says(TurnFrame(CALL, item, n, "caller", "x", 1.0))
            if n % 500 == 0:
                await anyio.wait_all_tasks_blocked()
        bench.journal.disk.set()
        await peer.until(lambda: len(peer.acked) == len(items))
        assert items == peer.acked


# What is wrong is named


@pytest.mark.parametrize(
    ("frame", "code", "named"),
    [
        (encode(turn(1)).replace('"word 1"', '" "'), "bad_value", (CALL, "t1")),
        (encode(turn(1)).replace('"caller"', '"cat"'), "malformed", (CALL, "t1")),
        (encode(turn(1)).replace(CALL, "c9"), "unknown_call", ("c9", "t1")),
        (encode(CLOSE).replace(CALL, "c9"), "unknown_call", ("c9", "")),
        (encode(SpeechStarted("c9")), "unknown_call", ("c9", "")),
        ('{"type":"turn","x":' + "[" * 5_000 + "]" * 5_000 + "}", "malformed", ("", "")),
    ],
)
async def test_an_error_names_the_call_and_the_turn(
    bench: LinkServerBench, frame: str, code: str, named: tuple[str, str]
) -> None:
    """An error names the call and the turn, and the link goes on."""
    async with bench.connected(OPEN, frame, turn(2)) as peer:
        await peer.until(lambda: peer.acked == ["t2"])
        assert [(code, *named)] == [(e.code, e.call, e.item) for e in peer.errors]
        assert all(e.remedy for e in peer.errors)


# Opening


async def test_the_reader_waits_for_no_disk(bench: LinkServerBench) -> None:
    """While a call waits to be stored a bad frame is answered, then all frames are processed."""
    bench.journal.stall()
    async with bench.connected(OPEN, SpeechStarted(CALL), turn(1), CLOSE, "{") as peer:
        await peer.until(lambda: [e.code for e in peer.errors] == ["malformed"])
        bench.journal.disk.set()
        await peer.until(lambda: Ack(CALL, [], closed=True) in peer.heard)
    assert ["t1"] == await bench.journal.items()
    assert () == bench.calls.live


async def test_a_worker_that_leaves_while_its_call_is_stored_leaves_an_orphan(
    bench: LinkServerBench,
) -> None:
    """A call stored after its worker left becomes an orphan."""
    bench.journal.stall()
    async with bench.connected(OPEN) as peer:
        await anyio.wait_all_tasks_blocked()
        peer.leaves()
        await anyio.wait_all_tasks_blocked()
        bench.journal.disk.set()
    assert [f"acme/{CALL}"] == list(bench.calls._orphans)


async def test_ended_calls_are_forgotten_but_for_the_newest(
    bench: LinkServerBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call that ended long ago must be opened again before it takes a late turn."""
    monkeypatch.setattr("sidecar.channels.link.server.MAX_ENDED", 1)
    opens = [CallOpen(f"c{n}", "livekit", Hints(caller="ada"), 1.0) for n in (1, 2)]
    async with bench.connected() as peer:
        for frame in opens:
            peer.says(frame, CallClose(frame.call, 2.0))
            await peer.until(lambda call=frame.call: Ack(call, [], closed=True) in peer.heard)
        peer.says(TurnFrame("c2", "t1", 1, "caller", "late", 1.0), turn(1))
        await peer.until(lambda: peer.acked == ["t1"] and len(peer.errors) == 1)
        assert ("unknown_call", "c1") == (peer.errors[0].code, peer.errors[0].call)
        peer.says(opens[0], turn(1))
        await peer.until(lambda: peer.acked == ["t1", "t1"])


# Closing


async def test_closing_what_has_left_is_no_error(bench: LinkServerBench) -> None:
    """A drain closes every connection, even if it was closed already or the worker left."""
    async with bench.connected() as one, bench.connected() as other:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(bench.server.close_all)
            tasks.start_soon(bench.server.close_all)
        assert (4400, 4503) == (one.closed, other.closed)
        await bench.server.close_all()


# Bounds


async def test_what_waits_for_the_disk_is_bounded_in_bytes(bench: LinkServerBench) -> None:
    """Beyond a limit in bytes no frame is read; once the disk works, all turns are stored."""
    async with bench.connected(OPEN) as peer:
        await peer.until(lambda: any(isinstance(frame, Memory) for frame in peer.heard))
        bench.journal.stall()
        big = [TurnFrame(CALL, f"t{n}", n, "caller", "\u6c34" * 200_000, 1.0) for n in range(1, 61)]
        peer.says(*big)
        await anyio.wait_all_tasks_blocked()
        taken_bytes = bench.server.unstored.taken_bytes
        assert MAX_UNSTORED_BYTES < taken_bytes < MAX_UNSTORED_BYTES + (1 << 20)
        assert peer.unread > 30
        bench.journal.disk.set()
        await peer.until(lambda: len(peer.acked) == 60)
        assert 0 == bench.server.unstored.taken_bytes
    assert [f"t{n}" for n in range(1, 61)] == await bench.journal.items()


async def test_what_one_worker_has_waiting_holds_no_other_up(
    bench: LinkServerBench,
) -> None:
    """A worker that uses up the shared limit does not keep another's turns from being stored."""
    bench.server.unstored = Allowance(100_000)
    other = CallOpen("c2", "livekit", Hints(caller="bob"), 1.0)
    async with bench.connected(OPEN) as full, bench.connected(other, worker="w2") as quick:
        await full.until(lambda: any(isinstance(frame, Memory) for frame in full.heard))
        bench.journal.stall(CALL)
        full.says(*(TurnFrame(CALL, f"t{n}", n, "caller", "x" * 60_000, 1.0) for n in range(1, 9)))
        await anyio.wait_all_tasks_blocked()
        assert full.unread > 3
        quick.says(*(TurnFrame("c2", f"t{n}", n, "caller", "y" * 60_000, 1.0) for n in range(1, 9)))
        await quick.until(lambda: len(quick.acked) == 8)
        bench.journal.disk.set()
        await full.until(lambda: len(full.acked) == 8)


async def test_a_worker_that_leaves_gives_back_what_it_had_waiting(bench: LinkServerBench) -> None:
    """Frames held for a connection are released when it ends."""
    async with bench.connected(OPEN) as peer:
        await peer.until(lambda: any(isinstance(frame, Memory) for frame in peer.heard))
        bench.journal.stall()
        peer.says(*(turn(n) for n in range(1, 9)))
        await anyio.wait_all_tasks_blocked()
        assert bench.server.unstored.taken_bytes
    assert 0 == bench.server.unstored.taken_bytes


async def test_a_worker_that_reads_nothing_is_read_no_more(
    bench: LinkServerBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers to a worker that does not read are bounded in bytes, and none is lost."""
    monkeypatch.setattr(link, "MAX_UNSENT_BYTES", 20_000)
    async with bench.connected() as peer:
        peer.reads = anyio.Event()
        peer.says(*["{"] * 900)
        await anyio.wait_all_tasks_blocked()
        [connection] = bench.server._connections
        assert 20_000 < connection.unsent.taken_bytes < 21_000
        assert peer.unread > 700
        peer.reads.set()
        await peer.until(lambda: len(peer.errors) == 900)
        assert 0 == connection.unsent.taken_bytes


async def test_a_connection_holds_so_many_calls_and_no_more(
    bench: LinkServerBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call past the limit is refused, and is accepted once another has ended."""
    monkeypatch.setattr(link, "MAX_CALLS", 1)
    other = CallOpen("c2", "livekit", Hints(caller="bob"), 1.0)
    async with bench.connected(OPEN, other) as peer:
        await peer.until(lambda: bool(peer.errors))
        assert ("too_many_calls", "c2") == (peer.errors[0].code, peer.errors[0].call)
        peer.says(CLOSE)
        await peer.until(lambda: any(isinstance(f, Ack) and f.closed for f in peer.heard))
        peer.says(other, TurnFrame("c2", "t1", 1, "caller", "hello", 1.0))
        await peer.until(lambda: peer.acked == ["t1"])
