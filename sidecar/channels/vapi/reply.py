"""One reply on its way from the model to VAPI, and what is said in its place. See `completions`."""

import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import anyio
from starlette.types import Send

from sidecar import telemetry
from sidecar.channels.vapi.asgi import Headers, answer
from sidecar.channels.vapi.call import VapiCall
from sidecar.channels.vapi.history import Stretch
from sidecar.channels.vapi.limits import Reservation
from sidecar.channels.vapi.upstream import Answer, Upstream
from sidecar.errors import LlmError
from sidecar.llm.dialects import Dialect, Dialects, refuse
from sidecar.llm.frames import json_of
from sidecar.llm.passing import Passing
from sidecar.llm.port import Reply
from sidecar.llm.reader import NO_COMPLETION, ChatReader
from sidecar.llm.writer import ChatWriter
from sidecar.telemetry import Emit
from sidecar.tracing import Span

STREAM_HEADERS: Final[Headers] = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)
TOTAL_S: Final = 120.0
_LOOK_S: Final = 1.0  # most time between two readings of the frames that passed
_READ_OUT_S: Final = 1.0  # after the last word, for the token count and the end of the body


class CutOff(Exception):
    """The reply can't go on; the message briefly says why."""


@dataclass(slots=True)
class Request:
    """One request for a reply, on its way.

    Attributes:
        call: Its call; None: no call was found for it.
        asked: As VAPI sent it.
        stretches: Its history, as read.
        prompt: What is sent to the model.
        body: `prompt` as JSON.
        model: The model to ask.
        tenant: Of the credential that came with it.
        span: Of the request to the model.
        passing: What the model streams.
        reserved: Tokens reserved of the day's budget; None: no reservation was made.
        prompt_tokens: An estimate of what `prompt` costs.
        asked_model: The model's server took it, or may have.
        stream: What `VapiCall.begin` returned.
        started: Something was sent to VAPI.
        sent_bytes: Bytes sent to VAPI.
        spoke: What was said in place of a reply, or after half of one.
        how: How it ended.
        gone: VAPI disconnected.
        first_s: Seconds to the first thing that a caller can hear; None: nothing came.
        look_at_s: When the frames that passed are next read.
        over: The model has said its last word.
    """

    call: VapiCall | None
    asked: Mapping[str, Any]
    stretches: tuple[Stretch, ...]
    prompt: Mapping[str, Any]
    body: bytes
    model: str
    tenant: str
    span: Span
    passing: Passing = field(default_factory=Passing)
    reserved: Reservation | None = None
    prompt_tokens: int = 0
    asked_model: bool = False
    stream: object = None
    started: bool = False
    sent_bytes: int = 0
    spoke: str = ""
    how: str = "superseded"
    gone: bool = False
    first_s: float | None = None
    look_at_s: float = 0.0
    over: bool = False

    @property
    def reader(self) -> ChatReader:
        """The reader of the model's answer."""
        return self.passing.reader

    @property
    def text(self) -> str:
        """The text that was sent to be spoken."""
        said = self.reader.text if self.passing.heard else ""
        return f"{said} {self.spoke}" if said and self.spoke else said or self.spoke


class Replies:
    """Asks the model for replies and forwards them.

    Args:
        upstream: Who writes the replies.
        fallback_s: See `completions.Policy`.
        emit: Where events go.
        wall: Unix time as the machine has it now.
    """

    def __init__(
        self,
        upstream: Upstream,
        *,
        fallback_s: float,
        emit: Emit,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._upstream = upstream
        self._fallback_s = fallback_s
        self._look_s = min(_LOOK_S, fallback_s / 8)
        self._emit = emit
        self._wall = wall
        self._dialects = Dialects(self._learnt)

    async def send(self, turn: Request, send: Send) -> None:
        """Ask the model and send its reply, streamed or whole, as VAPI asked for it.

        Raises:
            LlmError, CutOff: it failed, broke off, fell silent or said nothing; what was sent so
                far ends with a whole frame.
        """
        if turn.asked.get("stream") is True:
            await self._pass_through(turn, send)
        else:
            await self._pass_whole(turn, send)

    async def _ask(self, turn: Request, raw: bytes) -> Answer:
        """Send the request in one of the ways in which the model's server may take it."""
        turn.asked_model = True
        turn.passing = Passing()
        try:
            return await self._upstream.ask(raw, turn.span.traceparent)
        except LlmError:
            turn.asked_model = False
            raise

    def _learnt(self, model: str, dialect: Dialect) -> None:
        self._emit(
            telemetry.model_dialect_learnt,
            model=model,
            refused=", ".join(sorted(dialect.refused)),
            roles=dialect.roles.name.lower(),
        )

    async def _pass_through(self, turn: Request, send: Send) -> None:
        """Send the model's stream on."""

        async def ask(raw: bytes) -> None:
            reply = await self._ask(turn, raw)
            try:
                await self._copy(turn, reply, send, silence)
            except LlmError:
                if not _is_over(turn.passing):
                    raise
            finally:
                reply.close()
            await self._send_rest(turn, send)
            refuse(turn.reader)

        with anyio.CancelScope(deadline=anyio.current_time() + self._fallback_s) as silence:
            await self._dialects.asked(turn.prompt, ask, raw=turn.body)
        if silence.cancelled_caught:
            if not _is_over(turn.passing):
                raise CutOff("the language model was too slow")
            await self._send_rest(turn, send)
        if turn.reader.failure:
            raise CutOff(turn.reader.failure)
        turn.how = "ended"
        await send({"type": "http.response.body", "body": b""})

    async def _copy(
        self, turn: Request, reply: Answer, send: Send, silence: anyio.CancelScope
    ) -> None:
        """Forward frames until the end of the body, or until a failure.

        `silence` expires when nothing that a caller can hear came for `fallback_s`, and soon after
        the last word. A tool call that is still incomplete shortly before that is sent as far as
        it came.
        """
        calls_due_s = 0.0
        began_s = silence.deadline - self._fallback_s
        turn.look_at_s = began_s + self._look_s
        passing, reader = turn.passing, turn.reader
        while came := await reply.next():
            if out := passing.feed(came):
                await self._send_piece(turn, send, out)
            if reader.failure:
                return
            if turn.over or not (passing.heard or passing.has_buffered_calls or reader.ended):
                continue
            now_s = anyio.current_time()
            if passing.has_buffered_calls:
                calls_due_s = calls_due_s or silence.deadline - self._look_s
                if now_s >= calls_due_s and (out := passing.release()):
                    await self._send_piece(turn, send, out)
            if turn.first_s is None and passing.heard:
                turn.first_s = now_s - began_s
            if reader.ended:
                turn.over = True
                silence.deadline = min(silence.deadline, now_s + _READ_OUT_S)
            elif now_s >= turn.look_at_s and passing.look():
                # Only once in a while: to read each frame and move a deadline for it would cost
                # more than to forward it.
                turn.look_at_s = now_s + self._look_s
                silence.deadline = min(now_s + self._fallback_s, began_s + TOTAL_S)

    async def _send_rest(self, turn: Request, send: Send) -> None:
        if rest := turn.passing.close():
            await self._send_piece(turn, send, rest)

    async def _send_piece(self, turn: Request, send: Send, piece: bytes) -> None:
        if not turn.started:
            turn.started = True
            await send(
                {"type": "http.response.start", "status": 200, "headers": list(STREAM_HEADERS)}
            )
        turn.sent_bytes += len(piece)
        await send({"type": "http.response.body", "body": piece, "more_body": True})

    async def _pass_whole(self, turn: Request, send: Send) -> None:
        """Forward the model's whole answer, or make one of what it streams instead."""

        async def ask(raw: bytes) -> None:
            reply = await self._ask(turn, raw)
            reader = turn.reader
            try:
                while not reader.failure and (piece := await reply.next()):
                    reader.feed(piece)
                    if reader.done:
                        over_s = anyio.current_time() + _READ_OUT_S
                        silence.deadline = min(silence.deadline, over_s)
            finally:
                reply.close()
            reader.close()
            refuse(reader)

        with anyio.CancelScope(deadline=anyio.current_time() + self._fallback_s) as silence:
            await self._dialects.asked(turn.prompt, ask, raw=turn.body)
        reader = turn.reader
        if silence.cancelled_caught and not reader.done:
            raise CutOff("the language model was too slow")
        turn.passing.heard = reader.words
        if not reader.failure and reader.answer is None and not reader.words:
            raise CutOff(NO_COMPLETION)
        if reader.failure:
            raise CutOff(reader.failure)
        turn.started = turn.passing.heard = True
        turn.how = "ended"
        whole = (
            json_of(reader.answer)
            if reader.answer
            else self._writer(turn).whole(Reply(reader.text))
        )
        turn.sent_bytes = len(whole)
        await answer(send, 200, whole)

    async def speak(self, turn: Request, send: Send, text: str) -> None:
        """Send `text` to be spoken, after anything that was sent before."""
        turn.spoke = text
        writer = self._writer(turn)
        if turn.asked.get("stream") is not True:
            await answer(send, 200, writer.whole(Reply(turn.text)))
            return
        frames = writer.spoken(f" {text}" if turn.started else text)
        await self._send_piece(turn, send, frames)
        await send({"type": "http.response.body", "body": b""})

    def _writer(self, turn: Request) -> ChatWriter:
        answer_id = f"chatcmpl-fallback-{uuid.uuid4().hex}"
        return ChatWriter(turn.model, created_s=self._wall(), answer_id=answer_id)


def _is_over(passing: Passing) -> bool:
    """Whether the model has said its last word, even if more bytes follow."""
    passing.look()
    return passing.reader.ended
