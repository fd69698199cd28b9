"""A worker's end of the link as the part of a script (`tests.playbook`), in virtual time.

Of what happens, frames of the sidecar and utterances of the voice stand for themselves; of what the
link does about it, the frames that it sends. There is no socket, and disk and time are as fast as
the script.
"""

from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self, TypeAlias, TypeVar
from unittest.mock import ANY

import anyio
import anyio.from_thread
import anyio.lowlevel
import anyio.to_thread
import pytest
import trio
import trio.lowlevel
import trio.testing
from anyio.abc import TaskGroup
from websockets.exceptions import ConnectionClosedError

from sidecar.model import Speaker, Utterance
from sidecar.telemetry import Event, Telemetry
from sidecar.wire.frames import (
    CallClose,
    CallOpen,
    ErrorFrame,
    FromSidecar,
    FromWorker,
    Hello,
    Hints,
    Memory,
    TurnFrame,
    Welcome,
    decode_from_worker,
    encode,
)
from sidecar.wire.spool import spool_files, spooled_in
from sidecar.worker import link
from sidecar.worker.call import LinkedCall
from sidecar.worker.link import Link
from tests.playbook import Playbook
from tests.quiet import Quiet

CALL = "AJ_1"
ADA = Hints(caller="ada")
NOW_S: Final = 1_000.0
"""What the worker's clock shows when the script begins."""

# What happens


@dataclass(frozen=True)
class Starts:
    """The worker process starts."""


@dataclass(frozen=True)
class Ends:
    """The worker process ends."""


@dataclass(frozen=True)
class Accepts:
    """The sidecar takes the connection."""


@dataclass(frozen=True)
class Refuses:
    """Nobody listens where the sidecar should."""


@dataclass(frozen=True)
class Cuts:
    """The connection ends without a goodbye."""


@dataclass(frozen=True)
class Closes:
    """The sidecar closes the connection."""

    code: int
    reason: str = ""


@dataclass(frozen=True)
class Writes:
    """The sidecar sends what the script spells out, frame or not."""

    raw: str


@dataclass(frozen=True)
class Passes:
    """Time passes."""

    seconds: float


@dataclass(frozen=True)
class Opens:
    """The voice opens the call."""

    hints: Hints | None = ADA
    meanwhile: Hints = field(default_factory=Hints)


@dataclass(frozen=True)
class Identifies:
    """The voice says who is on the line."""

    hints: Hints


@dataclass(frozen=True)
class SpeechStarts:
    """The caller begins to speak."""


@dataclass(frozen=True)
class Prompts:
    """The voice asks for the memory of its next prompt."""


@dataclass(frozen=True)
class HangsUp:
    """The call ends."""

    reason: str = ""


@dataclass(frozen=True)
class Flushes:
    """The voice waits for what is unacked."""

    budget_s: float


Happens: TypeAlias = (
    Starts
    | Ends
    | Accepts
    | Refuses
    | Cuts
    | Closes
    | Writes
    | Passes
    | Opens
    | Identifies
    | SpeechStarts
    | Prompts
    | HangsUp
    | Flushes
    | Utterance
    | FromSidecar
)

# What the link does


@dataclass(frozen=True)
class Connects:
    """The link asks for a connection."""


@dataclass(frozen=True)
class Tells:
    """The link emits an event; those that only count what the script shows are left out."""

    event: str
    fields: Mapping[str, object]


@dataclass(frozen=True)
class OnDisk:
    """The call's spool file says something else than before.

    Attributes:
        texts: Its turns, as they are in the file.
        hints: Who is on the line, as far as it says.
        closed: It has the end of the call.
    """

    texts: tuple[str, ...]
    hints: Hints = ADA
    closed: bool = False


@dataclass(frozen=True)
class OffDisk:
    """The call's spool file is gone."""


@dataclass(frozen=True)
class Goes:
    """The prompt goes, with this memory; None: there was none yet."""

    text: str | None


@dataclass(frozen=True)
class Flushed:
    """The wait for what is unacked is over."""

    newest: bool


Does: TypeAlias = Connects | FromWorker | Tells | OnDisk | OffDisk | Goes | Flushed

# The field's own words for frames

HELLO: Final = Hello(worker="w1")
WELCOME: Final = Welcome(memory_wait_s=0.15, cold_start_s=0.8, max_frame_bytes=1 << 20)
SHOWN_BY_FRAMES: Final = {"turn_recorded", "turns_spooled"}


def opened(hints: Hints = ADA) -> CallOpen:
    """The opening of the call."""
    return CallOpen(call=CALL, channel="livekit", hints=hints, opened_at_s=NOW_S)


def turn(seq: int, text: str, speaker: Speaker = "caller") -> TurnFrame:
    """A turn, whenever it was said."""
    return TurnFrame(CALL, f"i{seq}", seq, speaker, text, at_s=ANY)


def closed(reason: str = "") -> CallClose:
    """The end of the call, whenever it was."""
    return CallClose(call=CALL, at_s=ANY, reason=reason)


def said(seq: int, text: str, speaker: Speaker = "caller") -> Utterance:
    """Somebody said something."""
    return Utterance(f"i{seq}", speaker, text)


def refusal(code: str, *, item: str = "", retryable: bool = False) -> ErrorFrame:
    """The sidecar refuses a frame of the call."""
    return ErrorFrame(code=code, message="", call=CALL, item=item, retryable=retryable)


def memory(text: str, *, newest: bool = True, served: Any = "fresh") -> Memory:
    """The sidecar's memory of the caller."""
    return Memory(CALL, text, version=text, read_at_s=1.0, served=served, newest=newest)


def refused(code: str, *, field: str = "") -> Tells:
    """The link told that a frame was refused, on either side."""
    return Tells("frame_refused", {"worker": "w1", "code": code, "field": field})


def dropped(turns: int, why: str) -> Tells:
    """The link told that it gave up turns."""
    return Tells("turns_dropped", {"call": CALL, "turns": turns, "why": why})


def lost(error: str, *, unacked: int = 0, retry_in_s: float = ANY) -> Tells:
    """The link told that it is down."""
    return Tells("link_lost", {"error": error, "retry_in_s": retry_in_s, "unacked": unacked})


def restored(*, unacked: int = 0) -> Tells:
    """The link told that it is up again."""
    return Tells("link_restored", {"unacked": unacked, "down_s": ANY})


# The wire


class Socket:
    """A connection in memory, as far as the link uses one of `websockets`."""

    def __init__(self, sent: Callable[[str | bytes], None]) -> None:
        self._sent = sent
        self._inbox: deque[str] = deque()
        self._changed = anyio.Event()
        self.close_code: int | None = None
        self.close_reason: str | None = None

    @property
    def transport(self) -> Self:
        return self

    def abort(self) -> None:
        self.end(1006)

    def push(self, raw: str) -> None:
        """Let the sidecar send."""
        self._inbox.append(raw)
        self._changed.set()

    def end(self, code: int, reason: str = "") -> None:
        """Let the connection end, if it has not yet."""
        if self.close_code is None:
            self.close_code, self.close_reason = code, reason
            self._changed.set()

    async def send(self, raw: str) -> None:
        await anyio.lowlevel.checkpoint()
        if self.close_code is not None:
            raise ConnectionClosedError(None, None)
        self._sent(raw)

    async def recv(self) -> str:
        await anyio.lowlevel.checkpoint()
        while not self._inbox:
            if self.close_code is not None:
                raise ConnectionClosedError(None, None)
            self._changed = anyio.Event()
            await self._changed.wait()
        return self._inbox.popleft()

    async def __aiter__(self) -> AsyncIterator[str]:
        while True:
            yield await self.recv()

    async def close(self) -> None:
        await anyio.lowlevel.checkpoint()
        self.end(1000)


class Wire:
    """A worker with a link, and a sidecar that does what the script says."""

    def __init__(
        self,
        portal: anyio.from_thread.BlockingPortal,
        tasks: TaskGroup,
        clock: trio.testing.MockClock,
        spool: Path,
    ) -> None:
        self._portal = portal
        self._tasks = tasks
        self._time = clock
        self._spool = spool
        self._on_disk: OnDisk | OffDisk = OffDisk()
        self._done: list[Does] = []
        self._at_the_voice: list[Does] = []
        self._asked: trio.Event | None = None
        self._answer: type[Accepts | Refuses] = Refuses
        self._socket: Socket | None = None
        self._runs = anyio.CancelScope()
        self._call: LinkedCall | None = None
        self.link = Link(
            "ws://sidecar/link",
            worker="w1",
            spool_dir=spool,
            emit=Telemetry(strict=True, logger=Quiet(), observe=self._tell).emit,
            clock=lambda: NOW_S + clock.current_time(),
            dice=lambda: 1.0,
        )

    @property
    def call(self) -> LinkedCall:
        """The call that was opened last."""
        assert self._call
        return self._call

    def __call__(self, happens: Happens) -> list[Does]:
        """Let something happen; returns what the link did about it until it waits for more.

        What it did on the wire is first, then what it did for the voice, then on the disk.
        """
        return self._portal.call(self._play, happens)

    async def connect(self, *_: object, **options: object) -> Socket:
        """Stand in for `websockets.connect`."""
        self._done.append(Connects())
        self._asked = trio.Event()
        await self._asked.wait()
        if self._answer is Refuses:
            raise ConnectionRefusedError
        self._socket = Socket(self._take)
        return self._socket

    def _take(self, raw: str | bytes) -> None:
        frame = decode_from_worker(raw)
        assert frame
        self._done.append(frame)

    async def _play(self, happens: Happens) -> list[Does]:
        self._done.clear()
        self._at_the_voice.clear()
        if isinstance(happens, Passes):
            await self._pass(happens.seconds)
        else:
            self._let(happens)
        await trio.testing.wait_all_tasks_blocked()
        on_disk = self._read_disk()
        if on_disk != self._on_disk:
            self._on_disk = on_disk
            return [*self._done, *self._at_the_voice, on_disk]
        return [*self._done, *self._at_the_voice]

    async def _pass(self, seconds: float) -> None:
        """Let time pass, and each thing that is due in it happen when it is due."""
        until_s = trio.current_time() + seconds
        while (left_s := until_s - trio.current_time()) > 0:
            await trio.testing.wait_all_tasks_blocked()
            next_s = trio.lowlevel.current_statistics().seconds_to_next_deadline
            self._time.jump(min(max(next_s, 0.0), left_s))

    def _let(self, happens: Happens) -> None:  # noqa: C901, PLR0912 - a word each
        match happens:
            case Starts():
                self._tasks.start_soon(self._run)
            case Ends():
                self._runs.cancel()
            case Accepts() | Refuses():
                assert self._asked is not None
                self._answer = type(happens)
                self._asked.set()
                self._asked = None
            case Cuts():
                self.socket.abort()
            case Closes():
                self.socket.end(happens.code, happens.reason)
            case Writes():
                self.socket.push(happens.raw)
            case Opens():
                self._call = self.link.open_call(
                    CALL,
                    "livekit",
                    happens.hints,
                    opened_at_s=NOW_S + trio.current_time(),
                    meanwhile=happens.meanwhile,
                )
            case Identifies():
                self.call.identify(happens.hints)
            case SpeechStarts():
                self.call.speech_started()
            case Prompts():
                self._tasks.start_soon(self._prompt, self.call)
            case HangsUp():
                self.call.close(happens.reason)
            case Flushes():
                self._tasks.start_soon(self._flush, self.call, happens.budget_s)
            case Utterance():
                self.call.record(happens)
            case Passes():
                raise AssertionError("time passes by itself")
            case frame:
                self.socket.push(encode(frame))

    @property
    def socket(self) -> Socket:
        """The connection that was accepted last."""
        assert self._socket
        return self._socket

    async def _run(self) -> None:
        with self._runs:
            await self.link.run()

    async def _prompt(self, call: LinkedCall) -> None:
        await call.ready()
        self._at_the_voice.append(Goes(call.memory.text if call.memory else None))

    async def _flush(self, call: LinkedCall, budget_s: float) -> None:
        self._at_the_voice.append(Flushed(await call.flushed(budget_s)))

    def _tell(self, event: Event, fields: Mapping[str, object]) -> None:
        if event.name not in SHOWN_BY_FRAMES:
            self._done.append(Tells(event.name, dict(fields)))

    def _read_disk(self) -> OnDisk | OffDisk:
        for path in spool_files(self._spool):
            file = spooled_in(path)
            assert file.opened
            texts = tuple(turn.text for turn in file.turns)
            return OnDisk(texts, file.opened.hints, file.closed is not None)
        return OffDisk()


T = TypeVar("T")


async def _at_once(function: Callable[..., T], /, *args: object, **_: object) -> T:
    """Stand in for `anyio.to_thread.run_sync`."""
    await anyio.lowlevel.checkpoint()
    return function(*args)


@asynccontextmanager
async def _running(
    portal: anyio.from_thread.BlockingPortal, clock: trio.testing.MockClock, spool: Path
) -> AsyncGenerator[Wire]:
    async with anyio.create_task_group() as tasks:
        yield Wire(portal, tasks, clock, spool)
        tasks.cancel_scope.cancel()


@contextmanager
def a_wire(spool: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[Wire]:
    """Yield a worker whose link is yet to start; it is ended at the end."""
    clock = trio.testing.MockClock()
    options: dict[str, Any] = {"clock": clock}
    monkeypatch.setattr(anyio.to_thread, "run_sync", _at_once)
    with (
        anyio.from_thread.start_blocking_portal("trio", options) as portal,
        portal.wrap_async_context_manager(_running(portal, clock, spool)) as wire,
    ):
        monkeypatch.setattr(link, "connect", wire.connect)
        yield wire


def started(wire: Wire) -> Playbook[Happens, Does]:
    """A script of a link that has just asked for a connection."""
    return Playbook(wire) >> Starts() << Connects()


def welcomed(wire: Wire) -> Playbook[Happens, Does]:
    """A script of a link that the sidecar has welcomed."""
    return started(wire) >> Accepts() << HELLO >> WELCOME


def in_call(wire: Wire) -> Playbook[Happens, Does]:
    """A script of a link that has told the sidecar of its call."""
    return welcomed(wire) >> Opens() << opened()
