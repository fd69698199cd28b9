"""VAPI's custom LLM: `POST …/chat/completions`, with the caller's memory added to the prompt.

Theory of operation: check the request, find its call, insert the current memory just before the
caller's last message, and ask the model. Nothing is sent before there is something to hear; from
then on the model's frames are forwarded as they arrive (see `reply` and `passing`). VAPI ends the
call on an error, so every failure of the model is answered with 200 and a sentence to speak, within
`Policy.fallback_s`. An empty reply is a failure too, and output that no caller can hear does not
extend the deadline. A client that disconnects is noticed because its connection is read all the
while, and the model's stream is closed at once. Work that the reply does not need (the journal,
parsing the forwarded frames) waits until the model has been asked.
"""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import anyio
import msgspec
from starlette.types import Receive, Scope, Send

from sidecar import telemetry
from sidecar.access.door import Door
from sidecar.apart import JSON_SHARE, apart
from sidecar.channels.vapi.asgi import (
    Gone,
    RequestRefused,
    answer,
    body_of,
    headers_of,
    parsed,
    refuse,
)
from sidecar.channels.vapi.bodies import about, items
from sidecar.channels.vapi.call import VapiCall
from sidecar.channels.vapi.calls import VapiCalls
from sidecar.channels.vapi.history import slot_of, stretches_of
from sidecar.channels.vapi.limits import CHARS_PER_TOKEN, Budget, RateCap
from sidecar.channels.vapi.passed import not_passed_on, passed_on, prompt_tokens
from sidecar.channels.vapi.reply import STREAM_HEADERS, CutOff, Replies, Request
from sidecar.channels.vapi.upstream import Upstream
from sidecar.errors import CallError, LlmError
from sidecar.llm.writer import DONE
from sidecar.telemetry import Emit
from sidecar.tracing import CONVERSATION, NO_TRACES, TEXT, Span, Tracer, traceparent_or_empty

FALLBACK_TEXT: Final = "I'm sorry, I lost my thread for a moment. Could you say that again?"
OVER_BUDGET_TEXT: Final = "I'm sorry, I have to stop here for now. Please call again later."
_ASK_AGAIN_S: Final = 5.0
_MOST_TOKENS: Final = 1_000_000_000
_ALLOW_HINT: Final = "name it in SIDECAR_VAPI_ALLOW if it may cost what it costs"
_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Policy:
    """The owner's limits.

    Attributes:
        model: Used where VAPI names no model that is allowed.
        models: Models VAPI may ask for.
        max_tokens: No reply is longer.
        fallback_s: The fallback is spoken when the model has sent nothing that a caller can hear
            for this long; between two words up to an eighth of it, at most 1 s, sooner.
        fallback_text: What is said when the model fails.
        over_budget_text: What is said when a budget is used up.
        call_tokens: A call's budget of model tokens; 0: no limit.
        allow: See `passed.passed_on`.
        trust_web: See `bodies.about`.
        provider: Who provides the model, as `gen_ai.provider.name` of its spans.
    """

    model: str
    models: Collection[str] = ()
    max_tokens: int = 1_024
    fallback_s: float = 8.0
    fallback_text: str = FALLBACK_TEXT
    over_budget_text: str = OVER_BUDGET_TEXT
    call_tokens: int = 0
    allow: Collection[str] = ()
    trust_web: bool = False
    provider: str = ""


class Completions:
    """The route, as a raw ASGI application.

    Args:
        calls: The VAPI calls.
        upstream: Who writes the replies.
        door: Who may ask.
        policy: The owner's limits.
        rate: Cap per tenant.
        budget: Tokens per tenant and day.
        emit: Where events go.
        clock: Unix time in seconds that never jumps.
        wall: Unix time as the machine has it now; the budget's days are those of the real date.
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
        self._replies = Replies(upstream, fallback_s=policy.fallback_s, emit=emit, wall=wall)
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
        except RequestRefused as refused:
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

    async def _heard(self, scope: Scope, receive: Receive) -> Request:
        """Check a request and prepare what goes to the model."""
        headers = headers_of(scope)
        admitted = self._door.admit_model(scope["headers"])
        if admitted is None:
            raise RequestRefused(401, "wrong or missing key: set the custom-llm credential")
        wait_s = self._rate.admits(admitted.tenant, now_s=self._clock())
        if wait_s:
            raise RequestRefused(
                429, "more requests than SIDECAR_VAPI_RATE_PER_S", retry_after_s=wait_s
            )
        raw = await body_of(scope, receive)
        asked = await parsed(raw)
        messages = items(asked, "messages")
        if not messages or not all(isinstance(message, dict) for message in messages):
            raise RequestRefused(400, "messages: a list of message objects, not empty")
        said = about(asked, trust_web=self._policy.trust_web)
        try:
            found = await self._calls.of(admitted.tenant, said)
        except CallError as error:
            raise RequestRefused(503, error.message, retry_after_s=_ASK_AGAIN_S) from error
        cost = len(raw) // JSON_SHARE
        stretches = await apart(cost, stretches_of, messages)
        memory, guidance = "", None
        call = await self._calls.of_history(found, stretches)
        if call is not None and found is not None:
            if call.saw(stretches, stamp_ms=said.stamp_ms):
                self._calls.store_soon(call)
            memory = (await call.memory()).text if found.own else ""
            guidance = call.live.guidance if found.own else None
        model = self._model(asked)
        policy = self._policy

        def written() -> tuple[dict[str, Any], bytes]:
            prompt = passed_on(
                asked,
                memory,
                guidance=guidance,
                model=model,
                max_tokens=policy.max_tokens,
                allow=policy.allow,
            )
            return prompt, _encode(prompt)

        if names := not_passed_on(asked, policy.allow):
            self._emit(telemetry.vapi_held_back, names=_shown(names), hint=_ALLOW_HINT)
        try:
            prompt, body = await apart(cost, written)
        except (ValueError, OverflowError, RecursionError, TypeError):
            raise RequestRefused(400, "the body can't be written back as JSON") from None
        span = self._span(headers.get("traceparent", ""), call, model, asked)
        return Request(call, asked, stretches, prompt, body, model, admitted.tenant, span)

    def _span(
        self, given: str, call: VapiCall | None, model: str, asked: Mapping[str, Any]
    ) -> Span:
        """Start the span of a request to the model: in the request's trace, else in its call's."""
        of_call = call.live.traceparent if call else ""
        given = traceparent_or_empty(given)
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

    async def _reply(self, turn: Request, send: Send, scope: anyio.CancelScope) -> None:
        policy = self._policy
        call = turn.call
        if not self._reserve(turn):
            turn.how = "over budget"
            await self._replies.speak(turn, send, policy.over_budget_text)
            return
        if call is not None:
            stretches = turn.stretches
            words = stretches[-1].text if stretches and stretches[-1].speaker == "caller" else ""
            turn.stream = call.written.begin(slot_of(stretches), words, scope)
            self._calls.begun(call, turn.stream, slot_of(stretches), words)
        try:
            await self._replies.send(turn, send)
        except (LlmError, CutOff) as error:
            turn.how = "failed"
            hint = error.hint if isinstance(error, LlmError) else ""
            self._emit(
                telemetry.reply_failed,
                call=call.live.key if call else "",
                error=error.message if isinstance(error, LlmError) else str(error),
                hint=hint,
            )
            if call is not None:
                call.written.fell_back(policy.fallback_text)
            await self._replies.speak(turn, send, policy.fallback_text)

    @staticmethod
    async def _end_superseded(turn: Request, send: Send) -> None:
        """End a reply that a newer request made pointless; VAPI no longer listens to it."""
        if turn.started:
            await send({"type": "http.response.body", "body": b""})
        elif turn.asked.get("stream") is True:
            await answer(send, 200, DONE, STREAM_HEADERS)
        else:
            await refuse(send, RequestRefused(409, "a newer request of this call took its place"))

    def _reserve(self, turn: Request) -> bool:
        """Reserve what a request may cost; False where its call or its day has less left.

        Nothing is awaited here, so of two simultaneous requests the second sees the first's
        reservation.
        """
        limit = self._policy.call_tokens
        call = turn.call
        turn.prompt_tokens = prompt_tokens(turn.prompt, turn.body)
        tokens = turn.prompt_tokens + self._reply_tokens(turn)
        if limit and call is not None and call.spent.tokens + tokens > limit:
            return False
        turn.reserved = self._budget.reserve(turn.tenant, tokens, now_s=self._wall())
        if turn.reserved is None:
            return False
        if call is not None:
            call.spent.reserved += tokens
        return True

    @staticmethod
    def _reply_tokens(turn: Request) -> int:
        limits = (turn.prompt.get(name) for name in ("max_tokens", "max_completion_tokens"))
        return next(limit for limit in limits if limit is not None)

    def _account(self, turn: Request, began_s: float) -> None:
        """Note what was written, and replace the reservation with what it really cost.

        A request that the model's server refused cost nothing.
        """
        turn.passing.look()
        reader = turn.reader
        # Without the server's own count, estimate: the prompt, and at least a token for each frame,
        # because a tool's arguments and hidden reasoning are not in `reader.text`.
        written = max(len(reader.text) // CHARS_PER_TOKEN, reader.frames)
        tokens = reader.tokens or (turn.prompt_tokens + written if turn.asked_model else 0)
        tokens = max(0, min(tokens, _MOST_TOKENS))  # a server may name any number
        reserved = 0
        if turn.reserved is not None:
            reserved = turn.reserved.tokens
            self._budget.charge(turn.reserved, tokens, now_s=self._wall())
        call = turn.call
        if call is not None:
            messages: Sequence[Any] = turn.asked["messages"]
            call.spent.use(tokens, reserved=reserved)
            call.written.end(
                turn.stream,
                turn.text,
                follow_up=messages[-1].get("role") == "tool",
                delivered=turn.how == "ended" and not reader.tools,
            )
        turn.span.set(
            {
                "gen_ai.response.time_to_first_chunk": turn.first_s,
                "sidecar.reply.ended": turn.how,
                TEXT: turn.text,
            }
        )
        turn.span.end(error="failed" if turn.how == "failed" else "")
        self._emit(
            telemetry.vapi_stream_ended,
            call=call.live.key if call else "",
            how=turn.how,
            first_token_s=turn.first_s,
            took_s=self._clock() - began_s,
            bytes=turn.sent_bytes,
            tokens=tokens,
        )


def _shown(names: Sequence[str]) -> str:
    """Return names in a form that is safe to log: they come from outside."""
    return ", ".join(name[:40] if name.isprintable() else "?" for name in names[:5])


async def _cancel_when_gone(receive: Receive, turn: Request, scope: anyio.CancelScope) -> None:
    """Cancel when the client disconnects; ends with the response, as `receive` reports that too."""
    while (await receive())["type"] != "http.disconnect":
        pass
    if turn.how == "superseded":
        turn.how, turn.gone = "client gone", True
        scope.cancel()
