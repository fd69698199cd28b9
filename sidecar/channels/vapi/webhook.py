"""VAPI's server URL: `POST …/vapi/webhook`, every message type.

Theory of operation: a message is authenticated by its bytes, acknowledged whatever its type, and
answered only after its content is in the journal, so that VAPI's own retry (`backoffPlan`) covers a
sidecar that was away. Messages may come twice, late and in any order: histories carry their time
and an older one is ignored, tools run once per id, and the report may come again.
"""

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import anyio
import msgspec
from starlette.types import Receive, Scope, Send

from sidecar import telemetry
from sidecar.access.door import Admitted, Door
from sidecar.apart import JSON_SHARE, MESSAGE, apart
from sidecar.channels.vapi.asgi import (
    Gone,
    RequestRefused,
    answer,
    body_of,
    headers_of,
    parsed,
    refuse,
)
from sidecar.channels.vapi.bodies import Object, about, child, items
from sidecar.channels.vapi.call import VapiCall
from sidecar.channels.vapi.calls import Stage, VapiCalls
from sidecar.channels.vapi.history import Stretch, histories_in, history_of, stretches_of
from sidecar.channels.vapi.limits import RateCap
from sidecar.errors import CallError, JournalError
from sidecar.telemetry import Emit
from sidecar.tools.ranking import plain
from sidecar.tools.recall import Recall
from sidecar.tools.tool import InCall, Tool
from sidecar.untrusted import MALFORMED

ASK_AGAIN_S: Final = 5.0
KNOWLEDGE_S: Final = 0.8
"""How long a knowledge-base-request waits for archival memory; VAPI asks the model only after."""
MEMORY_S: Final = 0.5
"""How long an assistant-request waits for memory; VAPI gives up after 7.5 s, a caller sooner."""
_NOT_ADMITTED: Final = "wrong, missing or outdated secret or signature"
_TOOLS_LIMIT: Final = 32
"""Tools that run for one message; VAPI sends one or two."""
_REASON: Final = re.compile(
    r"(?!.*[0-9]{4})(?=.{1,140}$)[a-z][a-z0-9]*(?:[-.][a-z0-9]+)*", re.ASCII
)
"""One of VAPI's own reasons, as `customer-ended-call`."""
_STAGES: Final[Mapping[str, Stage]] = {
    "end-of-call-report": "report",
    **dict.fromkeys(
        (
            "conversation-update",
            "transcript",
            "hang",
            "status-update",
            "speech-update",
            "user-interrupted",
        ),
        "over",
    ),
}
_ONLY_FINAL: Final = "transcript["
"""How the type begins where VAPI was set to send only final transcripts:
`transcript[transcriptType="final"]`, with quotation marks of either kind."""
_VOICEMAIL: Final = "voicemail"
_TELLS: Final = frozenset({"conversation-update", "end-of-call-report"})
_WITH_HISTORY: Final = _TELLS | {"knowledge-base-request"}
_MAY_SHOW_MEMORY: Final = frozenset({"assistant-request", "knowledge-base-request", "tool-calls"})

Answer = Mapping[str, Any]
History = tuple[Stretch, ...]


@dataclass(frozen=True, slots=True)
class Assistant:
    """Who answers a phone number that has no assistant of its own.

    Attributes:
        assistant_id: VAPI's id, or empty.
        transient: A whole assistant in VAPI's shape, or None.
        trust_web: See `bodies.about`.
    """

    assistant_id: str = ""
    transient: Object | None = None
    trust_web: bool = False


class Webhook:
    """The route, as a raw ASGI application.

    Args:
        calls: The VAPI calls.
        door: Who may deliver.
        assistant: What an assistant-request is answered with.
        tools: What the model may call.
        recall: What the knowledge base searches.
        rate: Cap per tenant.
        emit: Where events go.
        clock: Unix time in seconds.
    """

    def __init__(
        self,
        calls: VapiCalls,
        door: Door,
        *,
        assistant: Assistant,
        tools: Sequence[Tool],
        recall: Recall,
        rate: RateCap,
        emit: Emit,
        clock: Callable[[], float],
    ) -> None:
        self._calls = calls
        self._door = door
        self._tools = {tool.name: tool for tool in tools}
        self._recall = recall
        self._assistant = assistant
        self._rate = rate
        self._emit = emit
        self._clock = clock
        self._answers: Mapping[
            str, Callable[[VapiCall | None, Object, History], Awaitable[Answer]]
        ] = {
            "assistant-request": self._assistant_request,
            "status-update": self._status_update,
            "speech-update": self._speech_update,
            "conversation-update": self._conversation_update,
            "user-interrupted": self._user_interrupted,
            "transcript": self._transcript,
            "tool-calls": self._tool_calls,
            "knowledge-base-request": self._knowledge,
            "end-of-call-report": self._report,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one delivery."""
        try:
            answered = await self._served(scope, receive)
        except RequestRefused as refused:
            self._emit(
                telemetry.vapi_refused,
                route="webhook",
                status=refused.status,
                why=refused.message,
            )
            await refuse(send, refused)
        except Gone:
            return
        else:
            await answer(send, 200, msgspec.json.encode(answered))

    async def _admitted(self, scope: Scope, receive: Receive) -> tuple[Admitted, bytes]:
        """Return whose delivery it is, and its body."""
        headers = headers_of(scope)
        # A signature covers the body, so only a signed body is read before the sender is known.
        signed = "x-signature" in headers
        admitted = None if signed else self._door.admit_webhook(scope["headers"], b"")
        if admitted is None and not signed:
            raise RequestRefused(401, _NOT_ADMITTED)
        body = await body_of(scope, receive)
        admitted = admitted or self._door.admit_webhook(scope["headers"], body)
        if admitted is None:
            raise RequestRefused(401, _NOT_ADMITTED)
        return admitted, body

    async def _served(self, scope: Scope, receive: Receive) -> Answer:
        admitted, body = await self._admitted(scope, receive)
        wait_s = self._rate.admits(admitted.tenant, now_s=self._clock())
        if wait_s:
            raise RequestRefused(
                429, "more messages than SIDECAR_VAPI_RATE_PER_S", retry_after_s=wait_s
            )
        message = child(await parsed(body), "message")
        kind = _kind_of(message)
        if admitted.again and kind in _MAY_SHOW_MEMORY:
            raise RequestRefused(401, "this delivery was here before")
        if kind in _MAY_SHOW_MEMORY and not await self._door.save(admitted):
            raise RequestRefused(401, "this delivery was at another replica before")
        act = self._answers.get(kind)
        if act is None:
            return {}
        said = about(message, trust_web=self._assistant.trust_web)
        history = await _history(kind, message, body)
        try:
            stage = _STAGES.get(kind, "live")
            found = await self._calls.of(admitted.tenant, said, stage=stage)
            call = found.call if found is not None and found.own else None
            if found is not None and kind in _TELLS:
                call = await self._calls.of_history(found, history)
            elif found is not None and not found.own and _is_final(message):
                self._emit(
                    telemetry.turn_refused,
                    call=found.call.live.key,
                    code="unnamed",
                    error="a final transcript of a body that names nobody",
                )
            return await act(call, message, history)
        except CallError as error:
            if error.code != "draining":
                raise RequestRefused(400, error.message) from error
            raise RequestRefused(503, error.message, retry_after_s=ASK_AGAIN_S) from error
        except JournalError as error:
            raise RequestRefused(
                503, "the journal is not taking words", retry_after_s=ASK_AGAIN_S
            ) from error

    # Before the prompt -------------------------------------------------------------------------

    async def _assistant_request(
        self, call: VapiCall | None, message: Object, _: History
    ) -> Answer:
        memory = ""
        if call is not None:
            with anyio.move_on_after(MEMORY_S):
                await call.ready()  # no prompt of ours, so none is counted
            memory = call.live.memory.text
        variables = {"letta_memory": memory}
        if self._assistant.assistant_id:
            overrides = {"variableValues": variables}
            return {
                "assistantId": self._assistant.assistant_id,
                "assistantOverrides": overrides,
            }
        if self._assistant.transient is not None:
            return {
                "assistant": self._assistant.transient,
                "assistantOverrides": {"variableValues": variables},
            }
        return {"error": "This number is not set up yet. Please call again later."}

    async def _status_update(self, call: VapiCall | None, message: Object, _: History) -> Answer:
        if call is not None:
            if message.get("status") == "ended":
                call.ended_s = call.ended_s or self._clock()
                call.voicemail = call.voicemail or message.get("endedReason") == _VOICEMAIL
            elif not call.finished:
                call.speech_started()
        return {}

    async def _speech_update(self, call: VapiCall | None, message: Object, _: History) -> Answer:
        if (
            call is not None
            and not call.finished
            and message.get("role") == "user"
            and message.get("status") == "started"
        ):
            call.speech_started()
        return {}

    # The transcript ----------------------------------------------------------------------------

    async def _conversation_update(
        self, call: VapiCall | None, message: Object, history: History
    ) -> Answer:
        if call is not None:
            stamp = about(message, trust_web=False).stamp_ms
            await call.take(history, stamp_ms=stamp)
        return {}

    async def _user_interrupted(self, call: VapiCall | None, message: Object, _: History) -> Answer:
        if call is not None:
            call.interrupted()
        return {}

    async def _transcript(self, call: VapiCall | None, message: Object, _: History) -> Answer:
        if call is not None and _is_final(message):
            text, speaker = message.get("transcript"), message.get("role")
            stamp = about(message, trust_web=False).stamp_ms
            call.heard(stretches_of([{"role": speaker, "content": text}]), stamp_ms=stamp)
        return {}

    async def _report(self, call: VapiCall | None, message: Object, history: History) -> Answer:
        if call is not None:
            call.voicemail = call.voicemail or message.get("endedReason") == _VOICEMAIL
            await call.report(history)
            reason = _reason_of(message)
            await self._calls.end(call, reason, final=True)
            self._emit(
                telemetry.vapi_reported,
                call=call.live.key,
                turns=len(history),
                reason=reason,
            )
        return {}

    # Tools -------------------------------------------------------------------------------------

    async def _tool_calls(self, call: VapiCall | None, message: Object, _: History) -> Answer:
        asked = items(message, "toolCallList") or items(message, "toolCalls")
        if not asked:
            asked = [child(one, "toolCall") for one in items(message, "toolWithToolCallList")]
        results = [
            await self._run_once(call, cast("Object", one))
            for one in asked[:_TOOLS_LIMIT]
            if isinstance(one, dict)
        ]
        return {"results": results}

    async def _run_once(self, call: VapiCall | None, asked: Object) -> Answer:
        """Run a tool, or wait for the run under way with the same id."""
        name, arguments = tool_of(asked)
        run_id = str(asked.get("id", ""))
        shown = {"name": name, "toolCallId": run_id}
        tool = self._tools.get(name)
        if tool is None:
            names = ", ".join(self._tools)
            return shown | {"error": f"the sidecar has no tool of this name; it has {names}"}
        runs = call.tool_runs if call is not None else self._calls.tool_runs()
        answered = await runs.run(tool, run_id, _in_call(call), arguments)
        return shown | {"error" if answered.failed else "result": answered.text}

    async def _knowledge(self, call: VapiCall | None, message: Object, history: History) -> Answer:
        query = next((one.text for one in reversed(history) if one.speaker == "caller"), "")
        found = await self._recall.found(
            _in_call(call), query, archive_s=KNOWLEDGE_S, this_call=False
        )
        return {
            "documents": [
                {
                    "content": plain(f"{p.source}: {p.text}"),
                    "similarity": p.score,
                    "uuid": p.passage_id or f"{p.source}:{number}",
                }
                for number, p in enumerate(found)
            ]
        }


def _in_call(call: VapiCall | None) -> InCall | None:
    return InCall(call.live, call.transcript) if call is not None else None


async def _history(kind: str, message: Object, body: bytes) -> History:
    """Return the history of a message whose kind has one; read in a thread where it is long."""
    if kind not in _WITH_HISTORY:
        return ()
    cost = max(len(body) // JSON_SHARE, MESSAGE * max(map(len, histories_in(message))))
    return await apart(cost, history_of, message)


def _kind_of(message: Object) -> str:
    """Return the type of a server message.

    Raises:
        RequestRefused: it has none.
    """
    kind = message.get("type")
    if not isinstance(kind, str):
        raise RequestRefused(400, "message: an object with a type, as VAPI's server messages are")
    return "transcript" if kind.startswith(_ONLY_FINAL) else kind


def _reason_of(report: Object) -> str:
    """Return why a call ended if it reads like a reason of VAPI's; nothing else may be logged."""
    reason = report.get("endedReason", "ended")
    return reason if isinstance(reason, str) and _REASON.fullmatch(reason) else "other"


def _is_final(transcript: Object) -> bool:
    """Whether a transcript is final: its words will not be transcribed again."""
    only_final = str(transcript.get("type", "")).startswith(_ONLY_FINAL)
    return transcript.get("transcriptType", "final" if only_final else "") == "final"


def tool_of(asked: Object) -> tuple[str, Object]:
    """Return a tool call's name and arguments, from each of the shapes VAPI sends.

    `{function: {name, arguments}}` with arguments as text or as an object, and the flat
    `{name, parameters}` or `{name, arguments}`.
    """
    function = child(asked, "function") or asked
    given: object = function.get("arguments", function.get("parameters"))
    if isinstance(given, str):
        try:
            given = msgspec.json.decode(given)
        except MALFORMED:
            given = None
    return str(function.get("name", "")), child({"given": given}, "given")
