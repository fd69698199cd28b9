"""VAPI's custom LLM: `POST …/chat/completions`, with the caller's memory put in.

Theory of operation: the request is checked, its call found, the memory at hand put after the
first system message, and the model asked. The model's bytes go through as they come, in whole
lines; a copy is read once the stream has ended. VAPI ends the call on an error, so whatever goes
wrong with the model is answered with 200 and a sentence to speak, within `Policy.fallback_s`.
A client that goes is noticed by reading on from it, and the model's stream is closed at once.
What is not needed for the reply (the journal, the reading of the copy) waits until the model is asked.
"""

import time
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import anyio
import msgspec
from starlette.types import Receive, Scope, Send

from sidecar import telemetry
from sidecar.channels.vapi import sse
from sidecar.channels.vapi.apart import JSON_SHARE, apart
from sidecar.channels.vapi.auth import Door
from sidecar.channels.vapi.bodies import about, items, passed_on
from sidecar.channels.vapi.call import VapiCall
from sidecar.channels.vapi.calls import VapiCalls
from sidecar.channels.vapi.exchange import (
    Gone,
    Headers,
    Refused,
    answer,
    body_of,
    headers_of,
    object_of,
    parsed,
    refuse,
)
from sidecar.channels.vapi.limits import CHARS_PER_TOKEN, Budget, RateCap
from sidecar.channels.vapi.projection import Block, blocks_of, slot_of
from sidecar.channels.vapi.upstream import Reply, Upstream
from sidecar.errors import CallError, LlmError
from sidecar.telemetry import Emit
from sidecar.tracing import CONVERSATION, NO_TRACES, TEXT, Span, Tracer, traceparent_or_none

STREAM_HEADERS: Final[Headers] = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)
FALLBACK_TEXT: Final = "I'm sorry, I lost my thread for a moment. Could you say that again?"
OVER_BUDGET_TEXT: Final = "I'm sorry, I have to stop here for now. Please call again later."
TOTAL_S: Final = 120.0
_TAP_BYTES: Final = 4 << 20
_HEARD_WITHIN: Final = 16
_ASK_AGAIN_S: Final = 5.0
_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Policy:
    """The owner's limits.

    Attributes:
        model: Asked where VAPI names none that is allowed.
        models: Models VAPI may ask for.
        max_tokens: No reply is longer.
        fallback_s: Without a word of the model for so long, the fallback is spoken.
        fallback_text: What is said when the model fails.
        over_budget_text: What is said when a budget is used up.
        call_tokens: A call's budget of model tokens; 0: none.
        trust_web: See `bodies.about`.
        provider: Whose model it is, as `gen_ai.provider.name` of its spans.
    """

    model: str
    models: Collection[str] = ()
    max_tokens: int = 1_024
    fallback_s: float = 8.0
    fallback_text: str = FALLBACK_TEXT
    over_budget_text: str = OVER_BUDGET_TEXT
    call_tokens: int = 0
    trust_web: bool = False
    provider: str = ""


class _CutOff(Exception):
    """The reply can't go on; the message says why, in a word."""


@dataclass(slots=True)
class _Turn:
    """One request on its way."""

    call: VapiCall | None
    asked: Mapping[str, Any]
    blocks: tuple[Block, ...]
    body: bytes
    model: str
    tenant: str
    span: Span
    stream: object = None
    started: bool = False
    tap: bytearray = field(default_factory=bytearray)
    told: sse.Told | None = None
    how: str = "superseded"
    gone: bool = False
    first_s: float | None = None


class Completions:
    """The route, as a raw ASGI application.

    Args:
        calls: The VAPI calls.
        upstream: Who writes the replies.
        door: Who may ask.
        policy: The owner's limits.
        rate: Cap per tenant.
        budget: Of each tenant and day.
        emit: Where events go.
        clock: Unix time in seconds that never jumps.
        wall: Unix time as the machine has it now: a day of the budget is the world's.
        tracer: Makes a span of each request to the model.
    """

    def __init__(
        self,
        calls: VapiCalls,
        upstream: Upstream,
        door: Door,
        *,
        policy: Policy,
        rate: RateCap,
        budget: Budget,
        emit: Emit,
        clock: Callable[[], float],
        wall: Callable[[], float] = time.time,
        tracer: Tracer = NO_TRACES,
    ) -> None:
        self._calls = calls
        self._tracer = tracer
        self._upstream = upstream
        self._door = door
        self._policy = policy
        self._rate = rate
        self._budget = budget
        self._emit = emit
        self._clock = clock
        self._wall = wall

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        try:
            turn = await self._heard(scope, receive)
        except Refused as refused:
            self._emit(
                telemetry.vapi_refused,
                route="chat",
                status=refused.status,
                why=refused.message,
            )
            await refuse(send, refused)
            return
        except Gone:
            return
        began_s = self._clock()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_cancel_when_gone, receive, turn, tasks.cancel_scope)
            try:
                await self._reply(turn, send, tasks.cancel_scope)
            finally:
                self._account(turn, began_s)
        if turn.how == "superseded" and not turn.gone:
            await self._end_superseded(turn, send)

    async def _heard(self, scope: Scope, receive: Receive) -> _Turn:
        """Check a request and prepare what goes to the model."""
        headers = headers_of(scope)
        admitted = self._door.admit_model(headers)
        if admitted is None:
            raise Refused(401, "wrong or missing key: set the custom-llm credential")
        wait_s = self._rate.admits(admitted.tenant, now_s=self._clock())
        if wait_s:
            raise Refused(429, "more requests than SIDECAR_VAPI_RATE_PER_S", retry_after_s=wait_s)
        raw = await body_of(scope, receive)
        asked = await parsed(raw)
        messages = items(asked, "messages")
        if not messages or not all(isinstance(message, dict) for message in messages):
            raise Refused(400, "messages: a list of message objects, not empty")
        said = about(asked, trust_web=self._policy.trust_web)
        try:
            found = await self._calls.of(admitted.tenant, said)
        except CallError as error:
            raise Refused(503, error.message, retry_after_s=_ASK_AGAIN_S) from error
        cost = len(raw) // JSON_SHARE
        blocks = await apart(cost, blocks_of, messages)
        memory = ""
        call = await self._calls.told(found, blocks)
        if call is not None and found is not None:
            if call.saw(blocks, stamp_ms=said.stamp_ms):
                self._calls.store_soon(call)
            memory = (await call.memory()).text if found.own else ""
        model = self._model(asked)
        limit = self._policy.max_tokens
        passed = partial(passed_on, asked, memory, model=model, max_tokens=limit)
        body = await apart(cost, lambda: _encode(passed()))
        span = self._span(headers.get("traceparent", ""), call, model, asked)
        return _Turn(call, asked, blocks, body, model, admitted.tenant, span)

    def _span(
        self, given: str, call: VapiCall | None, model: str, asked: Mapping[str, Any]
    ) -> Span:
        """Start the span of a request to the model: in the request's trace, else in its call's."""
        of_call = call.live.traceparent if call else ""
        given = traceparent_or_none(given)
        about = {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": self._policy.provider or None,
            "gen_ai.request.model": model,
            "gen_ai.request.stream": asked.get("stream") is True,
            CONVERSATION: call.live.call.call_id if call else None,
            "sidecar.memory.served": call.live.memory.served if call else None,
        }
        links = [of_call] if given else []
        return self._tracer.start(
            f"chat {model}", kind="client", parent=given or of_call, links=links, attributes=about
        )

    def _model(self, asked: Mapping[str, Any]) -> str:
        wanted = asked.get("model")
        if isinstance(wanted, str) and wanted in self._policy.models:
            return wanted
        return self._policy.model

    async def _reply(self, turn: _Turn, send: Send, scope: anyio.CancelScope) -> None:
        policy = self._policy
        call = turn.call
        if not self._affordable(turn):
            turn.how = "over budget"
            await self._speak(turn, send, policy.over_budget_text)
            return
        if call is not None:
            blocks = turn.blocks
            words = blocks[-1].text if blocks and blocks[-1].speaker == "caller" else ""
            turn.stream = call.begin(slot_of(blocks), words, scope)
        streams = turn.asked.get("stream") is True
        try:
            await (self._pass_through(turn, send) if streams else self._pass_whole(turn, send))
        except (LlmError, _CutOff) as error:
            turn.how = "failed"
            hint = error.hint if isinstance(error, LlmError) else ""
            self._emit(
                telemetry.reply_failed,
                call=call.live.key if call else "",
                error=error.message if isinstance(error, LlmError) else str(error),
                hint=hint,
            )
            if call is not None:
                call.fell_back(policy.fallback_text)
            await self._speak(turn, send, policy.fallback_text)

    async def _pass_through(self, turn: _Turn, send: Send) -> None:
        """Send the model's stream on, whole lines at a time.

        Raises:
            LlmError, _CutOff: it failed, broke off or fell silent; what was sent ends with a line.
        """
        reply: Reply | None = None
        held = b""
        try:
            with anyio.CancelScope(
                deadline=anyio.current_time() + self._policy.fallback_s
            ) as silence:
                reply = await self._upstream.ask(turn.body, turn.span.traceparent)
                if reply.content_type != "text/event-stream":
                    raise _CutOff("the language model's answer is no stream")
                held = await self._copy(turn, reply, send, silence)
            if silence.cancelled_caught:
                raise _CutOff("the language model was too slow")
            told = sse.read(bytes(turn.tap) + held)
            if not told.ended:
                raise _CutOff("the language model broke off in the middle of a reply")
            if held:
                await self._send_piece(turn, send, held)
            turn.told, turn.how = told, "ended"
            await send({"type": "http.response.body", "body": b""})
        finally:
            if reply is not None:
                reply.close()

    async def _copy(
        self, turn: _Turn, reply: Reply, send: Send, silence: anyio.CancelScope
    ) -> bytes:
        """Send whole lines on to the end of the stream; return what is left of a line.

        `silence` ends when no word has come for `fallback_s`; a role alone is no word.
        """
        began_s = silence.deadline - self._policy.fallback_s
        held = b""
        pieces = 0
        while came := await reply.next():
            pieces += 1
            piece = held + came if held else came
            if sse.is_failure(piece):
                raise _CutOff("the language model failed while it spoke")
            end = piece.rfind(b"\n") + 1
            held = piece[end:]
            if end:
                await self._send_piece(turn, send, piece[:end])
            if turn.first_s is None:
                if pieces < _HEARD_WITHIN and not sse.is_heard(piece):
                    continue
                turn.first_s = anyio.current_time() - began_s
            # Moving a deadline costs more than passing a chunk on: not for every one.
            deadline_s = anyio.current_time() + self._policy.fallback_s
            if deadline_s - silence.deadline > 1.0:
                silence.deadline = min(deadline_s, began_s + TOTAL_S)
        return held

    async def _send_piece(self, turn: _Turn, send: Send, piece: bytes) -> None:
        if not turn.started:
            turn.started = True
            await send(
                {"type": "http.response.start", "status": 200, "headers": list(STREAM_HEADERS)}
            )
        turn.tap += piece
        if len(turn.tap) > _TAP_BYTES:
            raise _CutOff("the language model's answer has no end")
        await send({"type": "http.response.body", "body": piece, "more_body": True})

    async def _pass_whole(self, turn: _Turn, send: Send) -> None:
        """Send the model's whole answer on."""
        reply: Reply | None = None
        whole = bytearray()
        try:
            with anyio.CancelScope(
                deadline=anyio.current_time() + self._policy.fallback_s
            ) as silence:
                reply = await self._upstream.ask(turn.body, turn.span.traceparent)
                while piece := await reply.next():
                    whole += piece
                    if len(whole) > _TAP_BYTES:
                        raise _CutOff("the language model's answer has no end")
            if silence.cancelled_caught:
                raise _CutOff("the language model was too slow")
            told = sse.read_answer(_answer_of(bytes(whole)))
            if not told.text and not told.tools:
                raise _CutOff("the language model's answer is no chat completion")
        finally:
            if reply is not None:
                reply.close()
        turn.started, turn.how = True, "ended"
        turn.tap += whole
        await answer(send, 200, bytes(whole))

    async def _speak(self, turn: _Turn, send: Send, text: str) -> None:
        """Say `text`, after whatever was sent."""
        about_answer: Any = {
            "model": turn.model,
            "created_s": self._wall(),
            "answer_id": f"chatcmpl-fallback-{uuid.uuid4().hex}",
        }
        if turn.asked.get("stream") is not True:
            await answer(send, 200, sse.answer(text, **about_answer))
            return
        frames = sse.spoken(f" {text}" if turn.tap else text, **about_answer)
        # An event that was cut between its line and its blank line is ended first.
        await self._send_piece(turn, send, (b"\n" if turn.started else b"") + frames)
        await send({"type": "http.response.body", "body": b""})

    @staticmethod
    async def _end_superseded(turn: _Turn, send: Send) -> None:
        """End a reply that a newer request made pointless; VAPI no longer listens to it."""
        if turn.started:
            await send({"type": "http.response.body", "body": b""})
        elif turn.asked.get("stream") is True:
            await answer(send, 200, sse.DONE, STREAM_HEADERS)
        else:
            await refuse(send, Refused(409, "a newer request of this call took its place"))

    def _affordable(self, turn: _Turn) -> bool:
        limit = self._policy.call_tokens
        if limit and turn.call is not None and turn.call.tokens >= limit:
            return False
        return self._budget.left(turn.tenant, now_s=self._wall())

    def _account(self, turn: _Turn, began_s: float) -> None:
        """Note what was written and what it cost."""
        tap = bytes(turn.tap)
        if turn.asked.get("stream") is True:
            told = turn.told if turn.told is not None else sse.read(tap)
        else:
            told = sse.read_answer(_answer_of(tap) if tap else {})
        # Without the model's own count: what was asked, and a token for each frame, for a tool's
        # arguments and hidden reasoning are no text.
        written = max(len(told.text) // CHARS_PER_TOKEN, tap.count(b"data:"))
        tokens = told.tokens or len(turn.body) // CHARS_PER_TOKEN + written
        if turn.how == "over budget":
            tokens = 0
        self._budget.use(turn.tenant, tokens, now_s=self._wall())
        call = turn.call
        if call is not None:
            messages: Sequence[Any] = turn.asked["messages"]
            call.wrote(
                turn.stream,
                told.text,
                tokens=tokens,
                follow_up=messages[-1].get("role") == "tool",
            )
        turn.span.set(
            {
                "gen_ai.response.time_to_first_chunk": turn.first_s,
                "sidecar.reply.ended": turn.how,
                TEXT: told.text,
            }
        )
        turn.span.end(error="failed" if turn.how == "failed" else "")
        self._emit(
            telemetry.vapi_stream_ended,
            call=call.live.key if call else "",
            how=turn.how,
            first_token_s=turn.first_s,
            took_s=self._clock() - began_s,
            bytes=len(tap),
            tokens=tokens,
        )


def _answer_of(whole: bytes) -> Mapping[str, Any]:
    try:
        return object_of(whole)
    except Refused:
        return {}


async def _cancel_when_gone(receive: Receive, turn: _Turn, scope: anyio.CancelScope) -> None:
    """Cancel when the client goes; ends by itself with the response, which `receive` tells too."""
    while (await receive())["type"] != "http.disconnect":
        pass
    if turn.how == "superseded":
        turn.how, turn.gone = "client gone", True
        scope.cancel()
