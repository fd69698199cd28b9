"""One open page, over one WebSocket. It may hold several calls, and watch any other.

Frames are JSON objects with a `type`; `call` is the key of a call, `turn` an id the browser made.

From the browser: `hello {token}` first, then `call.start {call, caller, consent}` (sent again, it
reopens the call), `speech.started {call}`, `say {call, turn, text, aloud}` (sent again until its
reply has ended), `reply.stop {call, heard_chars}`, `reply.heard {call, turn}`, `call.end {call}`,
`prompt.show {call, turn}`, `call.watch {call}` (empty: none), `outbox.replay {batch}`,
`outbox.drop {batch}`, `plug {pulled}`, `kill`.

To the browser: `ready {summary, tenant, pid, plug, restarts}`,
`call {call, live, caller, lane, kept, turns}` (`call {call, live}` if it is not live),
`turn {call, turn, stored}`, `reply.delta {call, turn, text}`,
`reply.spoken {call, turn}` (the whole reply was sent),
`reply.end {call, turn, text, interrupted, stored, timing, memory}`,
`agent.said {call, turn, text, stored}`, `prompt {call, turn, messages}`, `memory {call, …}`,
`transcript {call, live, turns, earlier}`, `calls {live, past}`, `outbox {…}`, `plug {pulled}`,
`error {message}`; see `views.py`.
"""

import os
import re
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol, cast

import anyio
import msgspec
from anyio.abc import TaskGroup
from starlette.websockets import WebSocket, WebSocketDisconnect

from sidecar.calls import Calls, LiveCall
from sidecar.channels.console import views
from sidecar.channels.console.call import ConsoleCall
from sidecar.errors import CallError, JournalError, SidecarError
from sidecar.journal.dead_letters import DeadLetters
from sidecar.journal.directory import Directory
from sidecar.journal.reports import Reports
from sidecar.llm.port import Llm
from sidecar.model import CallerHints, Consent
from sidecar.prompt_wait import Waits
from sidecar.untrusted import MALFORMED

HELLO_S: Final = 10.0
LOOK_EVERY_S: Final = 0.5
TEXT_LIMIT_CHARS: Final = 8_000
CALLS_LIMIT: Final = 16
ENDED_LIMIT: Final = 8
OWNER: Final = "console"
_CALL_ID = re.compile(r"console-[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_TURN_ID = re.compile(r"[\w-]{1,64}")


class Plug(Protocol):
    """The connection to Letta, which the page may cut; `sidecar.letta.plug`."""

    @property
    def pulled(self) -> bool:
        """Whether the connection is cut at present."""
        ...

    def pull(self) -> None:
        """Cut the connection."""
        ...

    def restore(self) -> None:
        """Restore the connection."""
        ...


class PageJournal(Reports, DeadLetters, Directory, Protocol):
    """What a page reads from the journal, and what it may do with dead letters."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What every page shares.

    Attributes:
        calls: Where calls live.
        journal: What is stored, and the outbox.
        llm: Who replies.
        waits: What a prompt may wait for memory.
        plug: The connection to Letta.
        tenant: Whose callers they are.
        summary: The names of the Letta and of the language model in use.
        restarts: A parent starts the sidecar again when it is killed.
        clock: Unix time in seconds.
    """

    calls: Calls
    journal: PageJournal
    llm: Llm
    waits: Waits
    plug: Plug
    tenant: str
    summary: Mapping[str, str]
    restarts: bool
    clock: Callable[[], float]


class ConsoleSession:
    """Serves one open page.

    Args:
        socket: Accepted.
        parts: What every page shares.
        admits: Whether a token is the token of this start.
    """

    def __init__(self, socket: WebSocket, parts: Parts, *, admits: Callable[[str], bool]) -> None:
        self._socket = socket
        self._parts = parts
        self._admits = admits
        self._calls: dict[str, ConsoleCall] = {}
        self._watched: tuple[str, LiveCall | None] | None = None
        self._last_sent: dict[str, object] = {}
        self._news = anyio.Event()
        self._tasks: TaskGroup | None = None

    async def serve(self) -> None:
        """Serve until the browser goes or the sidecar does."""
        try:
            with anyio.fail_after(HELLO_S):
                hello = await self._receive()
        except (TimeoutError, WebSocketDisconnect):
            return
        if hello.get("type") != "hello" or not self._admits(_text(hello, "token")):
            await self._socket.close(4401, "wrong token: use the link that the sidecar printed")
            return
        parts = self._parts
        try:
            async with anyio.create_task_group() as tasks:
                self._tasks = tasks
                await self._send(
                    "ready",
                    summary=dict(parts.summary),
                    tenant=parts.tenant,
                    pid=os.getpid(),
                    plug=parts.plug.pulled,
                    restarts=parts.restarts,
                )
                tasks.start_soon(self._look)
                await self._read()
                await self._end_calls("page closed")
                tasks.cancel_scope.cancel()
        finally:
            with anyio.CancelScope(shield=True):
                await self._end_calls("page closed")

    async def close(self) -> None:
        """End the calls and close the page's socket, because the sidecar stops."""
        await self._end_calls("sidecar stops")
        with anyio.move_on_after(2.0):
            await self._quietly(self._socket.close(1001, "the sidecar stops"))

    async def _end_calls(self, reason: str) -> None:
        for call in tuple(self._calls.values()):
            await call.end(reason)

    # From the browser ------------------------------------------------------------------------

    async def _read(self) -> None:
        while True:
            try:
                frame = await self._receive()
            except WebSocketDisconnect:
                return
            try:
                await self._take(frame)
            except SidecarError as error:
                await self._send("error", message=str(error))

    async def _take(self, frame: Mapping[str, Any]) -> None:
        kind = frame.get("type")
        match kind:
            case "call.start":
                try:
                    await self._start_call(frame)
                except SidecarError as error:
                    await self._send("error", message=str(error))
                    await self._send("call", call=_text(frame, "call"), live=False)
            case "call.watch":
                await self._watch(_text(frame, "call"))
            case "outbox.replay" | "outbox.drop":
                await self._change_outbox(kind, _text(frame, "batch"))
            case "plug":
                self._pull_plug(pulled=frame.get("pulled") is True)
            case "kill":
                await self._kill()
            case _:
                call = self._calls.get(_text(frame, "call"))
                if call is None:
                    await self._send("error", message="start a call first")
                else:
                    await self._take_of_call(call, frame)

    async def _take_of_call(self, call: ConsoleCall, frame: Mapping[str, Any]) -> None:
        turn = _text(frame, "turn")
        match frame.get("type"):
            case "speech.started":
                if call.live is not None and call.on_the_line:
                    call.live.speech_started()
            case "say":
                text = _text(frame, "text").strip()[:TEXT_LIMIT_CHARS]
                if text and _TURN_ID.fullmatch(turn):
                    await call.say(turn, text, aloud=frame.get("aloud") is True)
                else:
                    await self._send("error", message="`say` needs a text and a turn id")
            case "reply.stop":
                heard = frame.get("heard_chars")
                await call.stop(heard_chars=max(0, heard) if isinstance(heard, int) else None)
            case "reply.heard":
                call.heard(turn)
            case "prompt.show":
                await self._send("prompt", call=call.key, turn=turn, messages=call.prompt_of(turn))
            case "call.end":
                await call.end("caller hung up")
                await self._send("call", call=call.key, live=False)
            case _:
                await self._send("error", message="unknown frame")

    async def _start_call(self, frame: Mapping[str, Any]) -> None:
        """Open a call, or reopen it.

        Raises:
            SidecarError: it can't be opened; it is not live.
        """
        parts = self._parts
        call_id = _text(frame, "call").removeprefix(f"{parts.tenant}/")
        caller = _text(frame, "caller").strip()[:100]
        consent: Consent = "no" if frame.get("consent") == "no" else "yes"
        if not _CALL_ID.fullmatch(call_id):
            raise CallError("bad_value", "`call` must be `console-` and a UUID")
        if sum(call.on_the_line for call in self._calls.values()) >= CALLS_LIMIT:
            raise CallError("too_many", f"a page can have at most {CALLS_LIMIT} live calls")
        assert self._tasks is not None
        call = ConsoleCall(
            f"{parts.tenant}/{call_id}",
            self._send,
            parts.llm,
            look=self._look_now,
            waits=parts.waits,
            tasks=self._tasks,
            clock=parts.clock,
        )
        before = self._calls.pop(call.key, None)
        if before is not None:
            await before.stop()
        turns = await parts.journal.turns(call.key)
        live = await parts.calls.open(
            parts.tenant,
            call_id,
            channel="console",
            hints=CallerHints(identity=caller, consent=consent),
            opened_at_s=parts.clock(),
            owner=OWNER,
            listener=call,
        )
        call.begin(live, turns)
        self._calls[call.key] = call
        self._let_go_of_ended()
        await self._send(
            "call",
            call=call.key,
            live=True,
            caller=caller,
            lane=live.call.ref.lane if live.call.ref.known else "",
            kept=live.may_be_stored,
            turns=[views.turn_view(turn) for turn in turns],
        )
        await self._tell_memory(call.key, live)

    def _let_go_of_ended(self) -> None:
        """Forget all but the latest ended calls; those still show what Letta learns from them."""
        ended = [key for key, call in self._calls.items() if not call.on_the_line]
        for key in ended[: max(0, len(ended) - ENDED_LIMIT)]:
            del self._calls[key]
            self._last_sent.pop("memory" + key, None)

    async def _watch(self, key: str) -> None:
        """Show a call of any channel, and keep its view up to date while it is live."""
        self._last_sent.pop("transcript", None)
        of_key = [one for one in self._parts.calls.live if one.call.key == key]
        live = next((one for one in of_key if one.stored), of_key[0] if of_key else None)
        self._watched = (key, live) if key else None
        await self._tell_watched()

    async def _change_outbox(self, kind: str, batch: str) -> None:
        journal, now_s = self._parts.journal, self._parts.clock()
        change = journal.replay if kind == "outbox.replay" else journal.drop
        if not await change(batch, now_s=now_s):
            await self._send("error", message="that batch is no longer a dead letter")

    def _pull_plug(self, *, pulled: bool) -> None:
        plug = self._parts.plug
        if pulled:
            plug.pull()
        else:
            plug.restore()

    async def _kill(self) -> None:
        if self._parts.restarts:
            os.kill(os.getpid(), signal.SIGKILL)
        await self._send(
            "error", message="nothing would restart the sidecar: it runs without --restart"
        )

    # To the browser ---------------------------------------------------------------------------

    async def _look(self) -> None:
        """Tell the page what has changed, for as long as it is open."""
        while True:
            try:
                await self._tell_news()
            except JournalError as error:
                await self._tell("error", message=str(error))
            self._news = anyio.Event()
            with anyio.move_on_after(LOOK_EVERY_S):
                await self._news.wait()

    def _look_now(self) -> None:
        self._news.set()

    async def _tell_news(self) -> None:
        parts = self._parts
        await self._tell("plug", pulled=parts.plug.pulled)
        await self._tell("outbox", **await views.outbox_view(parts.journal))
        await self._tell("calls", **await views.calls_view(parts.calls, parts.journal))
        for call in tuple(self._calls.values()):
            if call.live is not None:
                await self._find_agent(call.live)
                await self._tell_memory(call.key, call.live)
        if self._watched is not None and self._watched[1] is not None:
            await self._tell_watched()

    async def _find_agent(self, live: LiveCall) -> None:
        """Let a call that ended while Letta was away show what Letta learnt of it later."""
        if live.closed and live.agent_id is None and live.call.ref.known:
            live.agent_id = await self._parts.journal.agent_of(live.call.ref)

    async def _tell_memory(self, key: str, live: LiveCall) -> None:
        # A read that found nothing new is sent as well, because the page shows its age.
        await self._tell("memory", about=key, call=key, **views.memory_view(live))

    async def _tell_watched(self) -> None:
        if self._watched is None:
            return
        key, live = self._watched
        turns = await self._parts.journal.turns(key)
        await self._tell(
            "transcript",
            call=key,
            live=live is not None and not live.closed,
            **views.transcript_view(turns),
        )
        if live is not None:
            await self._tell_memory(key, live)

    async def _tell(self, kind: str, *, about: str = "", **fields: object) -> None:
        """Send a frame, unless it is the same as the last one of its kind."""
        if self._last_sent.get(kind + about) != fields:
            self._last_sent[kind + about] = fields
            await self._send(kind, **fields)

    async def _receive(self) -> dict[str, Any]:
        message = await self._socket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code") or 1005)
        try:
            frame: object = msgspec.json.decode(message.get("text") or "")
        except MALFORMED:
            return {}
        return cast("dict[str, Any]", frame) if isinstance(frame, dict) else {}

    async def _send(self, kind: str, **fields: object) -> None:
        await self._quietly(
            self._socket.send_text(msgspec.json.encode({"type": kind, **fields}).decode())
        )

    async def _quietly(self, sending: Any) -> None:
        """Send, and ignore a page that has gone: turns must be recorded all the same."""
        try:
            with anyio.move_on_after(10.0):
                await sending
        except (WebSocketDisconnect, RuntimeError, OSError):
            return


def _text(frame: Mapping[str, Any], name: str) -> str:
    value = frame.get(name)
    return value if isinstance(value, str) else ""
