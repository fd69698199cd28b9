"""The worker's end of the link, against a fake sidecar on a real socket."""

import random
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from sidecar.model import Utterance
from sidecar.private import token_in
from sidecar.telemetry import Event, Telemetry, link_token_unread
from sidecar.testing.fake_sidecar import FakeSidecar
from sidecar.wire.frames import (
    CLOSE_DRAINING,
    MAX_FRAME_BYTES,
    OPEN_AGAIN,
    Ack,
    CallClose,
    CallOpen,
    Drain,
    Guidance,
    HangUp,
    Hello,
    Hints,
    Memory,
    Say,
    SpeechStarted,
    Welcome,
)
from sidecar.wire.spool import SpoolFile, spool_files, spooled_in
from sidecar.worker import link
from sidecar.worker.call import LinkedCall
from sidecar.worker.link import Link
from sidecar.worker.sidecar_clock import SidecarClock
from sidecar.worker.unacked import SpoolFrame
from tests import ports
from tests.link_wire import (
    ADA,
    CALL,
    HELLO,
    WELCOME,
    Accepts,
    Closes,
    Connects,
    Cuts,
    Ends,
    Flushed,
    Flushes,
    Goes,
    HangsUp,
    Identifies,
    OffDisk,
    OnDisk,
    Opens,
    Passes,
    Prompts,
    Refuses,
    SpeechStarts,
    Wire,
    Writes,
    a_wire,
    closed,
    dropped,
    in_call,
    lost,
    memory,
    opened,
    refusal,
    refused,
    restored,
    said,
    started,
    turn,
    welcomed,
)
from tests.quiet import Quiet

pytestmark = [pytest.mark.unit, pytest.mark.anyio]


class Worker:
    """A link of a worker process, and what it said of itself."""

    def __init__(self, url: str, spool_dir: Path, **options: object) -> None:
        self.telemetry = Telemetry(strict=True, logger=Quiet())
        self.link = Link(
            url,
            worker="w1",
            spool_dir=spool_dir,
            emit=self.telemetry.emit,
            dice=random.Random(7).random,
            **{"clock": time.time, **options},  # type: ignore[arg-type]
        )

    def call(self, hints: Hints | None = ADA, *, at_s: float | None = None) -> LinkedCall:
        opened_at_s = time.time() if at_s is None else at_s
        return self.link.open_call(CALL, "livekit", hints, opened_at_s=opened_at_s)


@asynccontextmanager
async def running(url: str, spool_dir: Path, **options: object) -> AsyncGenerator[Worker]:
    worker = Worker(url, spool_dir, **options)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(worker.link.run)
        yield worker
        tasks.cancel_scope.cancel()


@pytest.fixture
def wire(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Wire]:
    with a_wire(tmp_path, monkeypatch) as wire:
        yield wire


@pytest.fixture
def free_port() -> int:
    return ports.free_port()


async def until(condition: Callable[[], bool], budget_s: float = 10.0) -> None:
    with anyio.fail_after(budget_s):
        while not condition():  # noqa: ASYNC110 - of the link, which offers no event for it
            await anyio.sleep(0.01)


def turns_on_disk(spool_dir: Path) -> list[str]:
    """Return the texts of the one spool file, read without its lock."""
    texts: list[str] = []
    for path in spool_files(spool_dir):
        texts += [turn.text for turn in spooled_in(path).turns]
    return texts


# Turns


async def test_turns_reach_the_sidecar_once_and_in_order(
    sidecar: FakeSidecar, tmp_path: Path
) -> None:
    """A whole call: hello, open, turns in order, close; then all of it is acked."""
    async with sidecar.serving() as url, running(url, tmp_path) as worker:
        call = worker.call()
        for n in range(20):
            call.record(Utterance(f"i{n}", "caller" if n % 2 else "agent", f"turn {n}"))
        call.close("hung up")

        assert await call.flushed(5.0)

    assert [f"turn {n}" for n in range(20)] == sidecar.texts(CALL)
    assert [CALL] == sidecar.closed
    assert [Hello, CallOpen] == [type(frame) for frame in sidecar.received[:2]]
    assert isinstance(sidecar.received[-1], CallClose)
    assert [] == spool_files(tmp_path)


@pytest.mark.parametrize("continues", [True, False])
async def test_a_worker_asks_whether_its_call_goes_on(
    sidecar: FakeSidecar, tmp_path: Path, continues: bool
) -> None:
    """The sidecar's first memory answers it, also one without words and with newer to come."""
    sidecar.memory_of = lambda call: Memory(
        call, "", "", 0.0, "none", newest=False, continues=continues
    )
    async with sidecar.serving() as url, running(url, tmp_path) as worker:
        assert await worker.call().goes_on(60.0) is continues


async def test_without_a_sidecar_no_call_goes_on(tmp_path: Path, free_port: int) -> None:
    """A worker whose sidecar stays away greets when its time is over."""
    with anyio.fail_after(30.0):
        async with running(f"ws://127.0.0.1:{free_port}/link", tmp_path) as worker:
            assert not await worker.call().goes_on(0.3)


async def test_no_wait_for_a_prompt_has_a_caller_greeted_twice(
    sidecar: FakeSidecar, tmp_path: Path
) -> None:
    """Where a first prompt may wait for nothing, a worker still hears that its call goes on."""
    sidecar.welcome = Welcome(0.0, 0.0, MAX_FRAME_BYTES)
    sidecar.memory_of = lambda call: Memory(call, "", "", 0.0, "none", newest=True, continues=True)
    async with sidecar.serving() as url, running(url, tmp_path) as worker:
        await until(lambda: worker.link.connected)
        assert await worker.call().goes_on()


async def test_a_sidecar_that_comes_back_at_once_is_waited_for(
    sidecar: FakeSidecar, tmp_path: Path, free_port: int
) -> None:
    """A refused connection does not have a caller greeted twice."""
    sidecar.memory_of = lambda call: Memory(call, "", "", 0.0, "none", newest=True, continues=True)
    async with running(f"ws://127.0.0.1:{free_port}/link", tmp_path) as worker:
        call = worker.call()
        await until(lambda: worker.link.away)
        async with sidecar.serving(free_port):
            assert await call.goes_on(30.0)


async def test_an_answer_that_does_not_come_is_not_waited_for(
    sidecar: FakeSidecar, tmp_path: Path
) -> None:
    """A sidecar that says nothing of a call holds the greeting up for the budget and no longer."""
    sidecar.memory_of = lambda _: None
    async with sidecar.serving() as url, running(url, tmp_path) as worker:
        with anyio.fail_after(30.0):
            assert not await worker.call().goes_on(0.05)


def test_a_call_goes_on_with_no_sidecar_at_its_start(wire: Wire) -> None:
    """What was said before the sidecar came is handed over, in order, when it does."""
    script = (
        started(wire)
        >> Opens()
        >> said(1, "one")
        >> said(2, "two", "agent")
        >> Refuses()
        << lost("ConnectionRefusedError", unacked=2, retry_in_s=0.1)
        << OnDisk(("one", "two"))
        >> Passes(0.1)
        << Connects()
        >> Accepts()
        << HELLO
        >> WELCOME
        << restored(unacked=2)
        << opened()
        << turn(1, "one")
        << turn(2, "two", "agent")
    )
    assert script
    assert not wire.call.unacked.all_acked
    assert (
        script
        >> Ack(CALL, ["i1", "i2"])
        << OffDisk()
        >> said(3, "three")
        << turn(3, "three")
        >> Ack(CALL, ["i3"])
    )
    assert wire.call.unacked.all_acked


def test_a_sidecar_that_dies_mid_call_costs_no_turn(wire: Wire) -> None:
    """Turns unacked at the cut and turns of the outage arrive after it, once and in order."""
    assert (
        in_call(wire)
        >> said(1, "one")
        << turn(1, "one")
        >> Ack(CALL, ["i1"])
        >> said(2, "two", "agent")
        << turn(2, "two", "agent")
        >> Cuts()
        << lost("closed 1006", unacked=1, retry_in_s=0.1)
        << OnDisk(("two",))
        >> said(3, "three")
        << OnDisk(("two", "three"))
        >> Passes(0.1)
        << Connects()
        >> Accepts()
        << HELLO
        >> WELCOME
        << restored(unacked=2)
        << opened()
        << turn(2, "two", "agent")
        << turn(3, "three")
        >> said(4, "four", "agent")
        << turn(4, "four", "agent")
        >> HangsUp()
        << closed()
        >> Ack(CALL, ["i2", "i3", "i4"])
        >> Ack(CALL, closed=True)
        << OffDisk()
    )
    assert wire.call.unacked.all_acked


async def test_many_cuts_lose_and_double_nothing(sidecar: FakeSidecar, tmp_path: Path) -> None:
    """A link cut again and again in the middle of a stream still hands every turn over, once."""
    async with sidecar.serving() as url, running(url, tmp_path) as worker:
        call = worker.call()
        for n in range(60):
            call.record(Utterance(f"i{n}", "caller", f"turn {n}"))
            if n % 10 == 5:
                await until(lambda: worker.link.connected)
                sidecar.cut()
            await anyio.lowlevel.checkpoint()
        call.close()
        await until(lambda: call.unacked.all_acked, 20.0)

    assert [f"turn {n}" for n in range(60)] == sidecar.texts(CALL)
    assert sidecar.connections >= 3


def test_a_drain_is_honoured(wire: Wire) -> None:
    """After a drain the worker comes back no sooner than it was told, and loses nothing."""
    assert (
        in_call(wire)
        >> Drain(retry_after_s=0.5)
        >> Closes(CLOSE_DRAINING, "0.5")
        << lost("closed 4503", retry_in_s=0.5)
        >> said(1, "one")
        << OnDisk(("one",))
        >> Passes(0.375)
        >> Passes(0.125)
        << Connects()
        >> Accepts()
        << HELLO
        >> WELCOME
        << restored(unacked=1)
        << opened()
        << turn(1, "one")
        >> Ack(CALL, ["i1"])
        << OffDisk()
    )


def test_a_full_journal_is_tried_again_in_order(wire: Wire) -> None:
    """A retryable refusal keeps the turn, and nothing behind it is lost."""
    assert (
        in_call(wire)
        >> said(1, "one")
        << turn(1, "one")
        >> said(2, "two")
        << turn(2, "two")
        >> refusal("journal_full", item="i1", retryable=True)
        << refused("journal_full")
        >> Passes(0.75)
        << OnDisk(("one", "two"))
        >> Passes(0.25)
        << turn(1, "one")
        << turn(2, "two")
        >> Ack(CALL, ["i1", "i2"])
        << OffDisk()
    )


@pytest.mark.parametrize("code", sorted(OPEN_AGAIN))
def test_a_call_that_is_refused_for_now_is_opened_again(wire: Wire, code: str) -> None:
    """A sidecar that forgot the call, or can't have it yet, is told it again with the same turn."""
    pause_s = link.CLAIMED_PAUSE_S if code == "call_claimed" else link.REFUSED_PAUSE_S
    assert (
        in_call(wire)
        >> said(1, "one")
        << turn(1, "one")
        >> refusal(code, item="i1")
        << refused(code)
        >> Passes(pause_s - 0.25)
        << OnDisk(("one",))
        >> Passes(0.25)
        << opened()
        << turn(1, "one")
        >> Ack(CALL, ["i1"])
        << OffDisk()
    )


def test_a_turn_refused_for_good_is_dropped_loudly(wire: Wire) -> None:
    """What the sidecar will never take is given up with an error event; the rest goes on."""
    assert (
        in_call(wire)
        >> said(1, "one")
        << turn(1, "one")
        >> said(2, "two")
        << turn(2, "two")
        >> refusal("bad_value", item="i1")
        << refused("bad_value")
        << dropped(1, "bad_value")
        >> Ack(CALL, ["i2"])
    )
    assert wire.call.unacked.all_acked


async def test_an_oversized_turn_arrives_whole(sidecar: FakeSidecar, tmp_path: Path) -> None:
    """Two megabytes of text go over a link of one-megabyte frames without losing a character."""
    text = "ä" * 2_000_000
    async with sidecar.serving() as url, running(url, tmp_path) as worker:
        call = worker.call()
        call.record(Utterance("i1", "caller", text))
        call.close()
        assert await call.flushed(10.0)

    assert text == "".join(sidecar.texts(CALL))


async def test_a_token_that_is_not_there_yet_is_said_once_and_found(
    tmp_path: Path, free_port: int
) -> None:
    """Whichever starts first: the token is read at each connect, and its absence told once."""
    file, reads = tmp_path / "link-token", [0]
    reported: list[Mapping[str, object]] = []

    def token() -> str:
        reads[0] += 1
        return token_in(file)

    def observe(event: Event, fields: Mapping[str, object]) -> None:
        reported.extend([fields] if event is link_token_unread else [])

    url = f"ws://127.0.0.1:{free_port}/link"
    async with running(url, tmp_path / "spool", token=token) as worker:
        worker.telemetry.observe = observe
        await until(lambda: reads[0] > 2)
        file.write_text("made-at-the-first-start")
        async with FakeSidecar(token="made-at-the-first-start").serving(free_port):
            await until(lambda: worker.link.connected)
    (fields,) = reported
    assert fields["file"] == str(file)
    assert "SIDECAR_DATA_DIR" in str(fields["hint"])
    assert "SIDECAR_LINK_TOKEN" in str(fields["hint"])


async def test_the_token_is_shown_and_a_wrong_one_keeps_the_turns(tmp_path: Path) -> None:
    """With the right token the link opens; with a wrong one turns wait in the spool."""
    sidecar = FakeSidecar(token="right")
    async with sidecar.serving() as url:
        async with running(url, tmp_path, token="wrong") as worker:
            call = worker.call()
            call.record(Utterance("i1", "caller", "one"))
            assert not await call.flushed(3.0)
            assert not worker.link.connected
        assert ["one"] == turns_on_disk(tmp_path)
        async with running(url, tmp_path, token="right") as worker:
            await until(lambda: worker.link.connected)


def test_frames_of_a_later_version_and_rubbish_are_passed_over(wire: Wire) -> None:
    """A frame the worker can't read is counted and changes nothing."""
    assert (
        in_call(wire)
        >> memory("before")
        >> Writes('{"type":"future","x":1}')
        >> Writes("[1,2")
        << refused("malformed")
        >> Writes('{"type":"memory","call":7}')
        << refused("malformed", field="call")
        >> Prompts()
        << Goes("before")
        >> memory("after")
        >> Prompts()
        << Goes("after")
    )


def test_a_turn_after_the_close_was_acked_reaches_the_sidecar(wire: Wire) -> None:
    """A call that ended and was forgotten is opened again for late words, on any connection."""
    assert (
        in_call(wire)
        >> said(1, "one")
        << turn(1, "one")
        >> HangsUp("hung up")
        << closed("hung up")
        >> Flushes(5.0)
        >> Ack(CALL, ["i1"])
        >> Ack(CALL, closed=True)
        << Flushed(True)
        >> said(2, "late")
        << turn(2, "late")
        >> Ack(CALL, ["i2"])
        >> Cuts()
        << lost("closed 1006", retry_in_s=0.1)
        >> said(3, "later")
        << OnDisk(("later",))
        >> Passes(0.1)
        << Connects()
        >> Accepts()
        << HELLO
        >> WELCOME
        << restored(unacked=1)
        << opened()
        << turn(3, "later")
        << closed("hung up")
        >> Ack(CALL, ["i3"])
        >> Ack(CALL, closed=True)
        << OffDisk()
        >> said(3, "later")
    )
    assert not wire.link._calls


def test_with_the_sidecar_away_words_are_on_disk_at_once(wire: Wire) -> None:
    """What was under way when the sidecar died, and what is said then, waits for no ack."""
    assert (
        in_call(wire)
        >> said(1, "under way")
        << turn(1, "under way")
        >> Cuts()
        << lost("closed 1006", unacked=1)
        << OnDisk(("under way",))
        >> said(2, "away")
        << OnDisk(("under way", "away"))
    )


async def test_a_link_that_ends_while_it_spools_leaves_no_file_of_acked_words(
    sidecar: FakeSidecar, tmp_path: Path, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Acked, and the link ended, while the disk is slow: the file goes when it is written."""
    began, goes_on = threading.Event(), threading.Event()
    append = SpoolFile.append

    def slow(file: SpoolFile, frames: Sequence[SpoolFrame]) -> None:
        began.set()
        goes_on.wait(10.0)
        append(file, frames)

    monkeypatch.setattr(SpoolFile, "append", slow)
    async with running(f"ws://127.0.0.1:{free_port}/link", tmp_path) as worker:
        await until(lambda: worker.link.away)
        call = worker.call()
        call.record(Utterance("i1", "caller", "one"))
        call.close("hung up")
        await until(began.is_set)
        async with sidecar.serving(free_port):
            await until(lambda: call.unacked.all_acked)
        threading.Timer(0.2, goes_on.set).start()

    assert ["one"] == sidecar.texts(CALL)
    assert [] == spool_files(tmp_path)


def test_a_hang_up_waits_for_no_ack_that_can_not_come(wire: Wire) -> None:
    """With the sidecar away the wait at the end of a call is over when its words are on disk."""
    assert (
        started(wire)
        >> Opens()
        >> said(1, "one")
        >> HangsUp("hung up")
        >> Flushes(3600.0)
        >> Refuses()
        << lost("ConnectionRefusedError", unacked=1)
        << Flushed(False)
        << OnDisk(("one",), closed=True)
    )


def test_a_hang_up_waits_for_the_ack_of_a_sidecar_that_is_there(wire: Wire) -> None:
    """Words in the spool are no reason to leave while an ack may come."""
    assert (
        in_call(wire)
        >> said(1, "one")
        << turn(1, "one")
        >> HangsUp("hung up")
        << closed("hung up")
        >> Flushes(3600.0)
        >> Passes(60.0)
        << OnDisk(("one",), closed=True)
        >> Ack(CALL, ["i1"])
        >> Ack(CALL, closed=True)
        << Flushed(True)
        << OffDisk()
    )


def test_late_words_with_the_sidecar_away_are_in_the_spool(wire: Wire) -> None:
    """A late turn nobody acks is left behind like any other."""
    assert (
        in_call(wire)
        >> HangsUp()
        << closed()
        >> Flushes(5.0)
        >> Ack(CALL, closed=True)
        << Flushed(True)
        >> said(1, "late")
        << turn(1, "late")
        >> Passes(0.5)
        << OnDisk(("late",))
    )


# The spool


def test_a_call_of_nobody_yet_is_on_disk_within_a_second(wire: Wire) -> None:
    """Before it is known who calls, words are on disk with what the job says, and then with who."""
    job = Hints(agent_id="agent-7")
    assert (
        welcomed(wire)
        >> Opens(None, meanwhile=job)
        >> said(1, "one")
        >> Passes(0.5)
        << OnDisk(("one",), hints=job)
        >> Identifies(ADA)
        << opened()
        << turn(1, "one")
        << OnDisk(("one",), hints=ADA)
        >> Ack(CALL, ["i1"])
        << OffDisk()
    )


def test_a_no_deletes_what_was_spooled_before_it(wire: Wire) -> None:
    """Words on disk from before the caller's "no" are deleted, and reach nobody."""
    no = Hints(caller="ada", consent="no")
    assert (
        welcomed(wire)
        >> Opens(None)
        >> said(1, "my secret")
        >> Passes(0.5)
        << OnDisk(("my secret",), hints=Hints())
        >> Identifies(no)
        << opened(no)
        << OffDisk()
        >> HangsUp()
        << closed()
        >> Flushes(5.0)
        >> Ack(CALL, closed=True)
        << Flushed(True)
    )


async def test_an_ack_that_comes_while_the_file_is_written_leaves_no_file(
    sidecar: FakeSidecar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call that was acked to its end during the write is not left on disk, nor locked."""
    acked = threading.Event()
    append = SpoolFile.append

    def slow(file: SpoolFile, frames: Sequence[SpoolFrame]) -> None:
        append(file, frames)
        assert acked.wait(10)

    monkeypatch.setattr(SpoolFile, "append", slow)
    sidecar.acks = False
    async with sidecar.serving() as url, running(url, tmp_path) as worker:
        call = worker.call()
        call.record(Utterance("i1", "caller", "one"))
        call.close()
        await until(lambda: bool(spool_files(tmp_path)), 3.0)
        await sidecar.ack_all()
        assert await call.flushed(5.0)
        acked.set()
        await until(lambda: not spool_files(tmp_path), 3.0)


def test_an_outage_puts_turns_on_disk_within_a_second(wire: Wire, tmp_path: Path) -> None:
    """With the sidecar away a killed worker loses half a second of talk, not the call."""
    assert (
        started(wire)
        >> Opens()
        >> said(1, "one")
        >> Passes(0.5)
        << OnDisk(("one",))
        >> Refuses()
        << lost("ConnectionRefusedError", unacked=1)
        >> said(2, "two", "agent")
        << OnDisk(("one", "two"))
    )
    assert SpoolFile.take(spool_files(tmp_path)[0]) is None


def test_an_acked_spool_is_deleted(wire: Wire) -> None:
    """When the sidecar comes back and acks, the file is gone: nothing is handed over twice."""
    assert (
        started(wire)
        >> Opens()
        >> said(1, "one")
        >> Refuses()
        << lost("ConnectionRefusedError", unacked=1)
        << OnDisk(("one",))
        >> Passes(0.1)
        << Connects()
        >> Accepts()
        << HELLO
        >> WELCOME
        << restored(unacked=1)
        << opened()
        << turn(1, "one")
        >> Ack(CALL, ["i1"])
        << OffDisk()
        >> said(2, "two")
        << turn(2, "two")
        >> Ack(CALL, ["i2"])
        >> Passes(60.0)
    )


def test_what_is_unacked_at_the_end_is_left_for_the_sidecar(wire: Wire, tmp_path: Path) -> None:
    """A job that ends with the sidecar away leaves open, turns and close, and lets go of them."""
    assert (
        started(wire)
        >> Opens()
        >> said(1, "one")
        >> HangsUp("hung up")
        >> Ends()
        << OnDisk(("one",), hints=ADA, closed=True)
    )
    file = SpoolFile.take(spool_files(tmp_path)[0])
    assert file is not None
    file.close()


async def test_more_than_memory_holds_goes_to_disk_and_comes_back_in_order(
    sidecar: FakeSidecar, tmp_path: Path, free_port: int
) -> None:
    """A long outage is bounded in memory, not in what survives it."""
    url = f"ws://127.0.0.1:{free_port}/link"
    said = [f"turn {n}" for n in range(50)]
    async with running(url, tmp_path, max_unacked=8) as worker:
        call = worker.call()
        for n, text in enumerate(said):
            call.record(Utterance(f"i{n}", "caller", text))
            await until(lambda: call.unacked.in_memory <= 9)
        assert 50 == call.unacked.count
        assert call.unacked.in_memory <= 9
        async with sidecar.serving(free_port):
            call.close()
            await until(lambda: call.unacked.all_acked, 15.0)

    assert said == sidecar.texts(CALL)
    assert 0 == worker.telemetry.counts["turns_dropped"]


async def test_large_turns_of_an_outage_are_bounded_in_bytes(
    sidecar: FakeSidecar, tmp_path: Path, free_port: int
) -> None:
    """Turns in memory are bounded in bytes, however few they are, and all arrive in order."""
    said = [chr(0x4E00 + n) * 50_000 for n in range(40)]
    async with running(
        f"ws://127.0.0.1:{free_port}/link", tmp_path, max_unacked_bytes=1 << 20
    ) as worker:
        call = worker.call()
        for n, text in enumerate(said):
            call.record(Utterance(f"i{n}", "caller", text))
            await until(lambda: not call.unacked.overflowing)
            assert call.unacked.bytes_in_memory < (1 << 20) + 410_000
        assert call.unacked.disk_only > 20
        async with sidecar.serving(free_port):
            call.close()
            await until(lambda: call.unacked.all_acked, 15.0)

    assert said == sidecar.texts(CALL)
    assert 0 == worker.telemetry.counts["turns_dropped"]


async def test_with_no_room_anywhere_dropping_is_counted(tmp_path: Path, free_port: int) -> None:
    """When memory is full and the disk refuses, lost turns are an error event with their number."""
    nowhere = tmp_path / "file"
    nowhere.write_text("not a directory")
    async with running(
        f"ws://127.0.0.1:{free_port}/link", nowhere / "spool", max_unacked=4
    ) as worker:
        call = worker.call()
        for n in range(20):
            call.record(Utterance(f"i{n}", "caller", "x"))
        await until(lambda: worker.telemetry.counts["part_failed"] > 0)
        assert worker.telemetry.counts["turns_dropped"] > 0
        assert call.unacked.in_memory <= 9


# Memory


def test_the_newest_memory_is_in_the_call(wire: Wire) -> None:
    """Memory that the sidecar pushes is what the next prompt reads."""
    assert (
        in_call(wire)
        >> memory("first")
        >> Prompts()
        << Goes("first")
        >> memory("second")
        >> Prompts()
        << Goes("second")
    )


def test_another_calls_memory_is_never_taken(wire: Wire) -> None:
    """A memory frame of another call does not touch this one."""
    assert (
        in_call(wire)
        >> Memory("AJ_2", text="x", version="x", read_at_s=1.0, served="fresh", newest=True)
        >> Prompts()
        >> Passes(0.8)
        << Goes(None)
    )


def test_a_cold_start_ends_with_the_first_memory(wire: Wire) -> None:
    """The first prompt of a call waits for its memory, and goes the moment it is there."""
    assert in_call(wire) >> Prompts() >> Passes(0.5) >> memory("", served="none") << Goes("")


def test_a_cold_start_waits_no_longer_than_it_may(wire: Wire) -> None:
    """With a silent sidecar the first prompt waits `cold_start_s` once, the next not at all."""
    assert (
        in_call(wire)
        >> Prompts()
        >> Passes(WELCOME.cold_start_s - 0.01)
        >> Passes(0.01)
        << Goes(None)
        >> Prompts()
        << Goes(None)
    )


def test_an_empty_memory_that_is_not_the_newest_does_not_end_a_cold_start(wire: Wire) -> None:
    """`none yet, still reading` is waited out; an old copy from disk goes at once."""
    assert (
        in_call(wire)
        >> memory("", newest=False, served="none")
        >> Prompts()
        >> Passes(0.5)
        >> memory("old", newest=False, served="disk")
        << Goes("old")
    )


def test_a_read_in_flight_is_waited_for_and_no_longer(wire: Wire) -> None:
    """A prompt waits for the read that speech started until `memory_wait_s` after that start."""
    assert (
        in_call(wire)
        >> memory("", served="none")
        >> SpeechStarts()
        << SpeechStarted(CALL)
        >> Passes(0.05)
        >> Prompts()
        >> Passes(WELCOME.memory_wait_s - 0.06)
        >> Passes(0.01)
        << Goes("")
        >> Prompts()
        << Goes("")
    )


def test_a_hanging_letta_costs_nothing_after_a_long_speech(wire: Wire) -> None:
    """The wait is counted from the start of the speech, not from the prompt."""
    assert (
        in_call(wire)
        >> memory("", served="none")
        >> SpeechStarts()
        << SpeechStarted(CALL)
        >> Passes(0.2)
        >> SpeechStarts()
        << SpeechStarted(CALL)
        >> Prompts()
        << Goes("")
    )


def test_the_newest_memory_lets_the_prompt_go(wire: Wire) -> None:
    """The answer to a speech start ends the wait at once, and is what the prompt gets."""
    assert (
        in_call(wire)
        >> memory("", served="none")
        >> SpeechStarts()
        << SpeechStarted(CALL)
        >> Prompts()
        >> memory("newest")
        << Goes("newest")
    )


def test_with_the_link_down_a_prompt_goes_with_what_it_has(wire: Wire) -> None:
    """A dead sidecar adds nothing to a prompt: the last memory serves."""
    assert (
        in_call(wire)
        >> memory("last", newest=False, served="disk")
        >> Cuts()
        << lost("closed 1006")
        >> SpeechStarts()
        >> Prompts()
        << Goes("last")
    )


def test_a_link_lost_while_a_read_is_in_flight_ends_the_wait(wire: Wire) -> None:
    """A prompt does not wait for an answer that can't come any more."""
    assert (
        in_call(wire)
        >> memory("", served="none")
        >> SpeechStarts()
        << SpeechStarted(CALL)
        >> Prompts()
        >> Cuts()
        << lost("closed 1006")
        << Goes("")
    )


def test_a_call_of_somebody_unknown_yet_does_not_wait(wire: Wire) -> None:
    """Before it is known who calls there is nothing to wait for; then the cold start begins."""
    hers = Hints(phone="+12025550100")
    assert (
        welcomed(wire)
        >> Opens(None)
        >> Prompts()
        << Goes(None)
        >> Identifies(hers)
        << opened(hers)
        >> Prompts()
        >> Passes(0.5)
        >> memory("hers")
        << Goes("hers")
    )


# Whose clock


class Wrong:
    """A worker's clock that is so many seconds off, and may be set."""

    def __init__(self, by_s: float) -> None:
        self.by_s = by_s

    def __call__(self) -> float:
        return time.time() + self.by_s


def near(at_s: float, by_s: float = 0.0) -> bool:
    return abs(time.time() + by_s - at_s) < 20


@pytest.mark.parametrize("by_s", [-90_000.0, -120.0, 120.0, 90_000.0])
async def test_a_worker_dates_by_the_sidecars_clock(
    sidecar: FakeSidecar, tmp_path: Path, by_s: float
) -> None:
    """A worker's times are by the sidecar's clock, however wrong its own is, and when it is set."""
    clock = Wrong(by_s)
    async with sidecar.serving() as url, running(url, tmp_path, clock=clock) as worker:
        call = worker.call(at_s=clock())
        call.record(Utterance("i0", "caller", "before the sidecar was there", at_s=clock() - 1))
        await until(lambda: call.unacked.all_acked)
        assert near(call.now_s)
        call.record(Utterance("i1", "caller", "after"))
        clock.by_s = 0.0
        call.record(Utterance("i2", "caller", "with a clock that was set", at_s=clock() - 1))
        call.close("hung up")
        assert await call.flushed(5)
    assert all(near(turn.at_s) for turn in sidecar.stored[CALL].values())
    assert 3 == len(sidecar.stored[CALL])
    opened, closed = sidecar.of_type(CallOpen)[0], sidecar.of_type(CallClose)[0]
    assert isinstance(opened, CallOpen)
    assert isinstance(closed, CallClose)
    assert near(opened.opened_at_s)
    assert near(closed.at_s)


async def test_a_sidecar_that_tells_no_clock_is_told_the_workers(
    sidecar: FakeSidecar, tmp_path: Path
) -> None:
    """An older sidecar says nothing of its clock: times stay the worker's own."""
    sidecar.wall = None
    clock = Wrong(120.0)
    async with sidecar.serving() as url, running(url, tmp_path, clock=clock) as worker:
        call = worker.call(at_s=clock())
        call.record(Utterance("i0", "caller", "hello"))
        await until(lambda: call.unacked.all_acked)
    assert near(sidecar.stored[CALL]["i0"].at_s, 120.0)


async def test_what_was_recorded_while_the_sidecar_was_away_is_dated_when_it_is_there(
    sidecar: FakeSidecar, tmp_path: Path, free_port: int
) -> None:
    """Words from before the first connection move to the sidecar's clock, once, with their call."""
    clock = Wrong(-500.0)
    url = f"ws://127.0.0.1:{free_port}/link"
    async with running(url, tmp_path, clock=clock) as worker:
        call = worker.call(at_s=clock())
        call.record(Utterance("i0", "caller", "nobody there"))
        call.close("hung up")
        await until(lambda: turns_on_disk(tmp_path) == ["nobody there"])
        async with sidecar.serving(free_port):
            await until(lambda: call.unacked.all_acked and not spool_files(tmp_path))
    assert near(sidecar.stored[CALL]["i0"].at_s)


@pytest.mark.parametrize(
    ("own_s", "rtt_s", "ahead_s"),
    [
        (1_000.0, 0.1, 0.0),  # it agrees
        (999.1, 0.1, 0.0),  # as good as
        (990.0, 0.1, 10.0),
        (1_010.0, 0.1, -10.0),
        (996.0, 8.0, 0.0),  # so slow a link tells no better
        (990.0, 8.0, 10.0),
    ],
)
def test_clocks_that_agree_are_left_alone(own_s: float, rtt_s: float, ahead_s: float) -> None:
    """A difference counts when it is beyond a second and what the measurement may be wrong by."""
    clock = SidecarClock()
    assert 0.0 == clock.ahead_s(unix_s=own_s, now_s=50.0)
    clock.set(1_000.0, asked_s=50.0 - rtt_s / 2, answered_s=50.0 + rtt_s / 2)
    assert ahead_s == pytest.approx(clock.ahead_s(unix_s=own_s, now_s=50.0))
    assert ahead_s == pytest.approx(clock.ahead_s(unix_s=own_s + 70.0, now_s=120.0))


async def test_commands_reach_the_voice_agent_and_their_fault_ends_nothing(
    sidecar: FakeSidecar, tmp_path: Path
) -> None:
    """A callback for guidance, a say or a hang-up may fail: the link stays up."""
    heard: list[str] = []

    def fail(text: str = "hung up") -> None:
        heard.append(text)
        raise RuntimeError("the channel's own fault")

    async with sidecar.serving() as url, running(url, tmp_path) as worker:
        call = worker.call()
        call.guidance = call.say = call.hang_up = fail
        await until(lambda: call.memory is not None)
        await sidecar.push(Guidance(call=CALL, text="offer the discount"))
        await sidecar.push(Say(call=CALL, text="one moment"))
        await sidecar.push(HangUp(call=CALL))
        await sidecar.push(memory("still here"))
        await until(lambda: call.memory is not None and call.memory.text == "still here")

    assert ["offer the discount", "one moment", "hung up"] == heard
    assert 3 == worker.telemetry.counts["part_failed"]
