"""One browser's conversation with the console, over one WebSocket.

Frames are JSON objects with a `type`. From the browser: `hello {token}` first, then
`call.start {caller, consent}`, `speech.started`, `say {text}`, `call.end`. To it: `ready {summary}`,
`call {live, caller, call}`, `reply.delta {text}`, `reply.end {interrupted}`,
`memory {blocks, text, version, age_s, served}`, `outbox {undelivered, dead}`, `error {message}`.

The path is the one every channel takes: memory at hand goes into the prompt, the reply streams,
turns are recorded as they were heard. A reply that is cut off by the next words, or by the end of
the call, is recorded with what was sent of it.
"""

import uuid
from collections.abc import Callable, Mapping
from typing import Any, Final, cast

import anyio
import msgspec
from anyio.abc import TaskGroup
from starlette.websockets import WebSocket, WebSocketDisconnect

from sidecar.calls import Calls, LiveCall, MemoryView
from sidecar.errors import SidecarError
from sidecar.llm.port import Llm
from sidecar.memory.freshness import age_s
from sidecar.model import CallerHints, Consent, Speaker, Turn, prompt_metrics
from sidecar.prompt_wait import Waits
from sidecar.transcript.journal import Journal

SYSTEM: Final = (
    "You are a friendly voice agent. Answer in one or two short spoken sentences. "
    "Use what you remember about the caller where it helps, as someone would who knows them."
)
HELLO_S: Final = 10.0
OUTBOX_EVERY_S: Final = 1.0
TEXT_LIMIT_CHARS: Final = 8_000
FALLBACK: Final = "I'm sorry, I can't think just now. Please say that again in a moment."


class ConsoleSession:
    """Serves one open page.

    Args:
        socket: Accepted.
        calls: Where its calls live.
        journal: Asked how much is undelivered.
        llm: Who replies.
        waits: What a prompt may wait for memory.
        tenant: Whose callers they are.
        summary: What is real and what is demo.
        admits: Whether a token is this start's own.
        clock: Unix time in seconds.
    """

    def __init__(
        self,
        socket: WebSocket,
        calls: Calls,
        journal: Journal,
        llm: Llm,
        *,
        waits: Waits,
        tenant: str,
        summary: Mapping[str, str],
        admits: Callable[[str], bool],
        clock: Callable[[], float],
    ) -> None:
        self._socket = socket
        self._calls = calls
        self._journal = journal
        self._llm = llm
        self._waits = waits
        self._tenant = tenant
        self._summary = summary
        self._admits = admits
        self._clock = clock
        self._owner = f"console/{uuid.uuid4()}"
        self._live: LiveCall | None = None
        self._history: list[dict[str, str]] = []
        self._reply: anyio.CancelScope | None = None
        self._reply_over = anyio.Event()
        self._memory_news = anyio.Event()
        self._tasks: TaskGroup | None = None
        self._seq = 0
        self._prompted: dict[str, float] = {}

    async def serve(self) -> None:
        """Serve until the browser goes or the sidecar does."""
        try:
            with anyio.fail_after(HELLO_S):
                hello = await self._receive()
        except (TimeoutError, WebSocketDisconnect):
            return
        if hello.get("type") != "hello" or not self._admits(str(hello.get("token", ""))):
            await self._socket.close(4401, "wrong token: use the link that the sidecar printed")
            return
        try:
            async with anyio.create_task_group() as tasks:
                self._tasks = tasks
                await self._send("ready", summary=dict(self._summary))
                tasks.start_soon(self._tell_memory)
                tasks.start_soon(self._tell_outbox)
                await self._read()
                tasks.cancel_scope.cancel()
        finally:
            with anyio.CancelScope(shield=True):
                await self._end_call("page closed")

    async def close(self) -> None:
        """The sidecar goes away: end the call and close the page's socket."""
        await self._end_call("sidecar stops")
        with anyio.move_on_after(2.0):
            await self._quietly(self._socket.close(1001, "the sidecar stops"))

    # What the listener of a call hears -----------------------------------------------------

    def on_memory(self, view: MemoryView, *, settled: bool) -> None:
        """See `sidecar.calls.Listener`."""
        self._memory_news.set()

    def on_guidance(self, text: str) -> None:
        """See `sidecar.calls.Listener`. The console heeds it in the next prompt."""
        self._history.append({"role": "system", "content": text})

    # ---------------------------------------------------------------------------------------

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
        match frame.get("type"):
            case "call.start":
                refused = frame.get("consent") == "no"
                await self._start_call(
                    str(frame.get("caller", "")).strip()[:100], consent="no" if refused else "yes"
                )
            case "speech.started":
                if self._live is not None:
                    self._live.speech_started()
            case "say":
                await self._say(str(frame.get("text", "")).strip()[:TEXT_LIMIT_CHARS])
            case "call.end":
                await self._end_call("caller hung up")
                await self._send("call", live=False)
            case _:
                await self._send("error", message="unknown frame")

    async def _start_call(self, caller: str, *, consent: Consent) -> None:
        await self._end_call("a new call began")
        self._history = []
        self._seq = 0
        self._live = await self._calls.open(
            self._tenant,
            f"console-{uuid.uuid4()}",
            channel="console",
            hints=CallerHints(identity=caller, consent=consent),
            opened_at_s=self._clock(),
            owner=self._owner,
            listener=self,
        )
        await self._send("call", live=True, caller=caller, call=self._live.call.call_id)

    async def _say(self, text: str) -> None:
        live = self._live
        if live is None:
            await self._send("error", message="start a call first")
            return
        if not text:
            return
        await self._stop_reply()
        await self._record(live, "caller", text)
        self._history.append({"role": "user", "content": text})
        assert self._tasks is not None
        self._reply_over = anyio.Event()
        self._reply = anyio.CancelScope()
        self._tasks.start_soon(self._answer, live, self._reply, self._reply_over)

    async def _answer(self, live: LiveCall, scope: anyio.CancelScope, over: anyio.Event) -> None:
        spoken: list[str] = []
        failed = False
        try:
            with scope:
                try:
                    async for piece in self._llm.stream(await self._prompt(live)):
                        spoken.append(piece)
                        await self._send("reply.delta", text=piece)
                except SidecarError as error:
                    failed = True
                    await self._send("error", message=str(error))
                    if not spoken:
                        spoken.append(FALLBACK)
                        await self._send("reply.delta", text=FALLBACK)
            text = "".join(spoken).strip()
            interrupted = scope.cancelled_caught or (failed and text != FALLBACK)
            with anyio.CancelScope(shield=True):
                if text:
                    self._history.append({"role": "assistant", "content": text})
                    await self._record(live, "agent", text, interrupted=interrupted)
                await self._send("reply.end", interrupted=interrupted)
        finally:
            over.set()

    async def _prompt(self, live: LiveCall) -> list[dict[str, str]]:
        wait_s = await live.ready(self._waits)
        messages = [{"role": "system", "content": SYSTEM}, *self._history]
        memory = live.memory
        age = age_s(memory.read_at_s, now_s=self._clock()) if memory.read_at_s else None
        self._prompted = prompt_metrics(memory.served, age_s=age, wait_s=wait_s)
        if memory.text:
            # Role user: it stems from callers' words, which get no system message's authority.
            messages.insert(len(messages) - 1, {"role": "user", "content": memory.text})
        return messages

    async def _stop_reply(self) -> None:
        if self._reply is not None:
            self._reply.cancel()
            with anyio.move_on_after(5.0):
                await self._reply_over.wait()
            self._reply = None

    async def _record(
        self, live: LiveCall, speaker: Speaker, text: str, *, interrupted: bool = False
    ) -> None:
        self._seq += 1
        turn = Turn(
            live.key,
            f"turn-{self._seq}",
            self._seq,
            speaker,
            text,
            self._clock(),
            interrupted,
            self._prompted if speaker == "agent" else {},
        )
        try:
            await live.record([turn])
        except SidecarError as error:
            await self._send("error", message=str(error))

    async def _end_call(self, reason: str) -> None:
        await self._stop_reply()
        live, self._live = self._live, None
        if live is not None:
            try:
                await live.close(reason)
            except SidecarError as error:
                await self._send("error", message=str(error))

    async def _tell_memory(self) -> None:
        while True:
            await self._memory_news.wait()
            self._memory_news = anyio.Event()
            live = self._live
            if live is None:
                continue
            view, snapshot = live.memory, live.snapshot
            await self._send(
                "memory",
                blocks=[
                    {"label": b.label, "value": b.value, "description": b.description}
                    for b in (snapshot.blocks if snapshot else ())
                ],
                text=view.text,
                version=view.version,
                age_s=age_s(view.read_at_s, now_s=self._clock()) if view.read_at_s else None,
                served=view.served,
            )

    async def _tell_outbox(self) -> None:
        told: dict[str, int] = {}
        while True:
            counts = await self._journal.counts()
            now = {"undelivered": counts.undelivered, "dead": counts.dead_batches}
            if now != told:
                await self._send("outbox", **now)
                told = now
            await anyio.sleep(OUTBOX_EVERY_S)

    async def _receive(self) -> dict[str, Any]:
        message = await self._socket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code") or 1005)
        try:
            frame: object = msgspec.json.decode(message.get("text") or "")
        except (msgspec.DecodeError, UnicodeDecodeError):
            return {}
        return cast("dict[str, Any]", frame) if isinstance(frame, dict) else {}

    async def _send(self, kind: str, **fields: object) -> None:
        await self._quietly(
            self._socket.send_text(msgspec.json.encode({"type": kind, **fields}).decode())
        )

    async def _quietly(self, sending: Any) -> None:
        """A page that has gone must not stop the turns from being recorded."""
        try:
            with anyio.move_on_after(10.0):
                await sending
        except (WebSocketDisconnect, RuntimeError, OSError):
            return
