"""A language model behind any OpenAI-compatible endpoint, over aiohttp.

Requests are never repeated: a caller is waiting, and who asked decides what to do instead. The
connection is kept for `KEEP_ALIVE_S`, longer than a pause in a call, because a new TLS handshake
costs more than the request itself.
"""

import contextlib
import json
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, cast

import aiohttp
import anyio
from typing_extensions import override
from yarl import URL

from sidecar.errors import LlmError
from sidecar.llm.port import Llm, Reply, ToolCall

KEEP_ALIVE_S = 75.0
_MAX_ANSWER_BYTES = 8 << 20
_READ_OUT_S = 0.25
_DONE = b"[DONE]"
_HINTS = {
    401: "check LLM_API_KEY",
    403: "check LLM_API_KEY and what it may use",
    404: "check LLM_BASE_URL and LLM_MODEL",
    429: "the provider's rate limit or budget is used up",
}
_HTTP_OK = 200


class OpenAiLlm(Llm):
    """Chat completions of one model.

    Args:
        base_url: Up to and without ``/chat/completions``, for instance
            ``https://api.openai.com/v1``.
        api_key: Sent as a bearer token; empty sends none.
        model: The model's name, as the endpoint knows it.
        first_token_timeout_s: A streamed reply that stays silent this long, before its first
            piece or between two, has failed.
        total_timeout_s: No reply takes longer.
        traceparent: Asked at each request for the span it belongs to (W3C Trace Context), sent
            to the endpoint unless it is empty.

    Every failure is an `LlmError` whose message holds no word of the conversation or the answer,
    and no key.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str,
        model: str,
        *,
        first_token_timeout_s: float = 8.0,
        total_timeout_s: float = 60.0,
        traceparent: Callable[[], str] = str,
    ) -> None:
        self._url = URL(base_url.rstrip("/") + "/chat/completions")
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._model = model
        self._silence_s = first_token_timeout_s
        self._total_s = total_timeout_s
        self._traceparent = traceparent
        self._session: aiohttp.ClientSession | None = None
        self._closed = False

    @property
    @override
    def name(self) -> str:
        return f"{self._model} at {self._url.host}"

    @override
    async def stream(self, messages: Sequence[Mapping[str, Any]]) -> AsyncIterator[str]:
        ends_at_s = time.monotonic() + self._total_s
        response = await self._ask({"messages": messages, "stream": True}, self._silence_s)
        try:
            lines = _Lines(response)
            spoken = False
            while True:
                left_s = ends_at_s - time.monotonic()
                event = await _next_event(lines, min(self._silence_s, left_s))
                if event is None:
                    raise LlmError("the language model broke off in the middle of a reply")
                piece, ended = _piece_of(event)
                if piece:
                    spoken = True
                    yield piece
                if ended:
                    break
            await _read_out(lines)
            if not spoken:
                raise LlmError("the language model gave an empty reply")
        finally:
            response.close()

    @override
    async def complete(
        self, messages: Sequence[Mapping[str, Any]], *, tools: Sequence[Mapping[str, Any]] = ()
    ) -> Reply:
        ends_at_s = time.monotonic() + self._total_s
        body: dict[str, Any] = {"messages": messages}
        if tools:
            body["tools"] = tools
        response = await self._ask(body, self._total_s)
        try:
            lines = _Lines(response)
            with anyio.fail_after(max(0.0, ends_at_s - time.monotonic())):
                answer = await lines.whole()
        except TimeoutError as error:
            raise LlmError("the language model was too slow") from error
        finally:
            response.close()
        return _reply_of(_json_object(answer))

    @override
    async def aclose(self) -> None:
        self._closed = True
        if self._session is not None:
            await self._session.close()

    async def _ask(self, body: Mapping[str, Any], budget_s: float) -> aiohttp.ClientResponse:
        """Send a request and return the response once its headers say that it succeeded."""
        raw = json.dumps({"model": self._model, **body}).encode("utf-8")
        headers = {"Content-Type": "application/json", **self._headers}
        if traceparent := self._traceparent():
            headers["traceparent"] = traceparent
        try:
            with anyio.fail_after(budget_s):
                response = await self._connected().post(
                    self._url, data=raw, headers=headers, allow_redirects=False
                )
        except TimeoutError as error:
            raise LlmError(
                "the language model did not answer in time", hint="is LLM_BASE_URL reachable?"
            ) from error
        except aiohttp.ClientError as error:
            raise LlmError(
                f"the language model cannot be reached: {type(error).__name__}",
                hint="is LLM_BASE_URL reachable?",
            ) from error
        if response.status != _HTTP_OK:
            response.close()
            raise LlmError(
                f"the language model answered {response.status}",
                hint=_HINTS.get(response.status, ""),
            )
        return response

    def _connected(self) -> aiohttp.ClientSession:
        if self._closed:
            raise LlmError("the language model was closed")
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S),
                timeout=aiohttp.ClientTimeout(total=None),
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._session


class _Lines:
    """A response's body by lines of any length, up to `_MAX_ANSWER_BYTES` in all."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._content = response.content
        self._held = bytearray()
        self._read_bytes = 0

    async def next(self) -> bytes | None:
        """Return the next line without its end; None after the last one."""
        while (end := self._held.find(b"\n")) < 0:
            if not await self._read():
                return None
        line = bytes(self._held[:end]).rstrip(b"\r")
        del self._held[: end + 1]
        return line

    async def whole(self) -> bytes:
        """Return everything that is left."""
        while await self._read():
            pass
        return bytes(self._held)

    async def _read(self) -> bool:
        try:
            some = await self._content.readany()
        except aiohttp.ClientError as error:
            raise LlmError("the language model broke off in the middle of a reply") from error
        self._read_bytes += len(some)
        if self._read_bytes > _MAX_ANSWER_BYTES:
            raise LlmError("the language model's answer has no end")
        self._held += some
        return bool(some)


async def _next_event(lines: _Lines, budget_s: float) -> bytes | None:
    """Return the data of the next server-sent event; None at the end of the body."""
    try:
        with anyio.fail_after(max(0.0, budget_s)):
            while (line := await lines.next()) is not None:
                if line.startswith(b"data:"):
                    return line[5:].strip()
    except TimeoutError as error:
        raise LlmError("the language model fell silent") from error
    return None


async def _read_out(lines: _Lines) -> None:
    """Read what follows the end of a reply, so that the connection can be used again."""
    with anyio.move_on_after(_READ_OUT_S), contextlib.suppress(LlmError):
        while await lines.next() is not None:
            pass


def _piece_of(event: bytes) -> tuple[str, bool]:
    """Return the text an event adds, and whether the reply ends with it."""
    if event == _DONE:
        return "", True
    chunk = _json_object(event)
    if "error" in chunk:
        raise LlmError(f"the language model failed while it spoke{_code_of(chunk['error'])}")
    choices = chunk.get("choices")
    if not isinstance(choices, list) or not choices:
        return "", False
    first = cast("Mapping[str, Any]", choices[0])
    return _text_of(first.get("delta")), first.get("finish_reason") is not None


def _reply_of(answer: Mapping[str, Any]) -> Reply:
    try:
        message = cast("Mapping[str, Any]", answer["choices"][0]["message"])
        calls = tuple(
            ToolCall(str(c["id"]), str(c["function"]["name"]), str(c["function"]["arguments"]))
            for c in message.get("tool_calls") or ()
        )
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise LlmError("the language model's answer is no chat completion") from error
    return Reply(_text_of(message), calls)


def _text_of(message: object) -> str:
    if not isinstance(message, Mapping):
        return ""
    content = cast("Mapping[str, object]", message).get("content")
    return content if isinstance(content, str) else ""


def _json_object(raw: bytes) -> Mapping[str, Any]:
    try:
        parsed: object = json.loads(raw)
    except ValueError as error:
        raise LlmError("the language model's answer is no JSON") from error
    if not isinstance(parsed, dict):
        raise LlmError("the language model's answer is no JSON object")
    return cast("dict[str, Any]", parsed)


def _code_of(error: object) -> str:
    """Return a provider's error code where it is a plain word; its message may hold prompts."""
    if isinstance(error, Mapping):
        code = cast("Mapping[str, object]", error).get("code")
        if isinstance(code, str) and re.fullmatch(r"[\w.-]{1,64}", code):
            return f": {code}"
    return ""
