"""A language model behind any OpenAI-compatible endpoint, over aiohttp.

A request is never repeated unchanged: a caller is waiting, and the code that asked decides what to
do instead. One that the server does not take is rewritten (`dialects`). The connection is kept for
`KEEP_ALIVE_S`, longer than a pause in a call, because a new TLS handshake costs more than the
request itself.
"""

import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import aiohttp
import anyio
from typing_extensions import override
from yarl import URL

from sidecar.errors import LlmError, PromptTooLong
from sidecar.llm.dialects import Dialects, Refusal, refuse
from sidecar.llm.failures import says_too_large
from sidecar.llm.port import Llm, Reply, ToolCall
from sidecar.llm.reader import ANSWER_BYTES, BROKE_OFF, HALF_A_CALL, NO_END, ChatReader
from sidecar.llm.refusals import REFUSAL_BYTES, TEACHING, words_of

T = TypeVar("T")

KEEP_ALIVE_S = 75.0
_REFUSAL_S = 1.0
_READ_OUT_S = 0.25
_HINTS = {
    401: "check LLM_API_KEY",
    403: "check LLM_API_KEY and what it may use",
    404: "check LLM_BASE_URL and LLM_MODEL",
    429: "the provider's rate limit or budget is used up",
}
_TOO_LONG = "its context is too small for what it was asked: LLM_MODEL names another"
_HTTP_OK = 200
_TOO_LARGE = 413


class OpenAiLlm(Llm):
    """Chat completions of one model, read by `sidecar.llm.reader`, asked as `dialects` has learnt.

    Args:
        base_url: Up to and without ``/chat/completions``, for instance
            ``https://api.openai.com/v1``.
        api_key: Sent as a bearer token; empty sends none.
        model: The model's name, as the endpoint knows it.
        first_token_timeout_s: A streamed reply fails if nothing of it can be heard for so long,
            from the request on or between two words.
        total_timeout_s: No reply takes longer.
        traceparent: Called at each request, returns the span it belongs to (W3C Trace Context),
            which is sent to the endpoint unless it is empty.

    Every failure is an `LlmError` whose message holds no word of the conversation or the answer,
    and no key. A reply without a word in it is a failure.
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
        self._dialects = Dialects()
        self._session: aiohttp.ClientSession | None = None
        self._closed = False

    @property
    @override
    def name(self) -> str:
        return f"{self._model} at {self._url.host}"

    @override
    async def stream(self, messages: Sequence[Mapping[str, Any]]) -> AsyncIterator[str]:
        began_s = time.monotonic()
        ends_at_s = began_s + self._total_s
        due_s = min(began_s + self._silence_s, ends_at_s)

        async def begin(raw: bytes) -> _Begun:
            return await _begun(await self._post(raw, due_s), due_s)

        body = {"messages": messages, "stream": True}
        response, reader, words = await self._asked(body, begin)
        due_s = min(time.monotonic() + self._silence_s, ends_at_s)
        try:
            if reader.words:
                yield words
            _check(reader)
            while not reader.ended and (came := await _next(response, due_s)):
                moved = reader.moved
                if said := "".join(chunk.text for chunk in reader.feed(came)):
                    yield said
                if reader.moved > moved:
                    due_s = min(time.monotonic() + self._silence_s, ends_at_s)
                _check(reader)
            if rest := "".join(chunk.text for chunk in reader.close()):
                yield rest
            _check(reader)
            if not reader.words:  # nobody here runs tools
                raise LlmError(reader.empty)
            await _read_out(response)
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
        response = await self._asked(body, lambda raw: self._post(raw, ends_at_s))
        try:
            whole = bytearray()
            while came := await _next(response, ends_at_s):
                whole += came
                if len(whole) > ANSWER_BYTES:
                    raise LlmError(NO_END)
        finally:
            response.close()
        return _reply_of(bytes(whole))

    @override
    async def aclose(self) -> None:
        self._closed = True
        if self._session is not None:
            await self._session.close()

    async def _asked(self, body: Mapping[str, Any], ask: Callable[[bytes], Awaitable[T]]) -> T:
        try:
            return await self._dialects.asked({"model": self._model, **body}, ask)
        except Refusal as refusal:
            if refusal.status == _TOO_LARGE or says_too_large(words_of(refusal.answer)[0]):
                raise PromptTooLong(refusal.message, hint=_TOO_LONG) from refusal
            raise

    async def _post(self, raw: bytes, due_s: float) -> aiohttp.ClientResponse:
        """Send a request and return the response once its headers say that it succeeded."""
        headers = {"Content-Type": "application/json", **self._headers}
        if traceparent := self._traceparent():
            headers["traceparent"] = traceparent
        try:
            with anyio.fail_after(max(0.0, due_s - time.monotonic())):
                return await opened_response(self._connected(), self._url, raw, headers)
        except TimeoutError as error:
            raise LlmError(
                "the language model did not answer in time", hint="is LLM_BASE_URL reachable?"
            ) from error

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


async def opened_response(
    session: aiohttp.ClientSession, url: URL, raw: bytes, headers: Mapping[str, str]
) -> aiohttp.ClientResponse:
    """Send a request and return the response once its headers say that it succeeded.

    Has no deadline of its own.

    Raises:
        Refusal: it was answered with another status than 200.
        LlmError: there is no answer.
    """
    try:
        response = await session.post(url, data=raw, headers=headers, allow_redirects=False)
    except (aiohttp.ClientError, OSError) as error:
        raise LlmError(
            f"the language model cannot be reached: {type(error).__name__}",
            hint="is LLM_BASE_URL reachable?",
        ) from error
    if response.status != _HTTP_OK:
        raise await _refusal_of(response)
    return response


async def _refusal_of(response: aiohttp.ClientResponse) -> Refusal:
    """Return the refusal of a server, read for a moment at most; close the response."""
    answer = bytearray()
    hint = _HINTS.get(response.status, "")
    try:
        if response.status not in TEACHING:
            return Refusal(response.status, hint=hint)
        with anyio.move_on_after(_REFUSAL_S), contextlib.suppress(aiohttp.ClientError, OSError):
            while len(answer) < REFUSAL_BYTES and (came := await response.content.readany()):
                answer += came
    finally:
        response.close()
    return Refusal(response.status, bytes(answer[:REFUSAL_BYTES]), hint=hint)


class _Begun(NamedTuple):
    """A stream of which something was heard, or that has ended; `words` are its words so far."""

    response: aiohttp.ClientResponse
    reader: ChatReader
    words: str


async def _begun(response: aiohttp.ClientResponse, due_s: float) -> _Begun:
    """Read a stream up to its first word, with the blanks before it, since they are no reply.

    Raises:
        Refusal: an error came in place of words.
    """
    reader = ChatReader()
    words = ""
    try:
        while not (reader.words or reader.ended) and (came := await _next(response, due_s)):
            words += "".join(chunk.text for chunk in reader.feed(came))
            if reader.failure:
                break
        if not (reader.words or reader.ended or reader.failure):
            words += "".join(chunk.text for chunk in reader.close())
        if not reader.words:
            refuse(reader)
            _check(reader)
    except BaseException:
        response.close()
        raise
    return _Begun(response, reader, words)


async def _next(response: aiohttp.ClientResponse, due_s: float) -> bytes:
    """Return what came since; empty at the end of the body."""
    try:
        with anyio.fail_after(max(0.0, due_s - time.monotonic())):
            return await response.content.readany()
    except TimeoutError as error:
        raise LlmError("the language model fell silent") from error
    except aiohttp.ClientError as error:
        raise LlmError(BROKE_OFF) from error


async def _read_out(response: aiohttp.ClientResponse) -> None:
    """Read what follows the end of a reply, so that the connection can be used again."""
    with anyio.move_on_after(_READ_OUT_S), contextlib.suppress(aiohttp.ClientError):
        while await response.content.readany():
            pass


def _check(reader: ChatReader) -> None:
    if says_too_large(reader.failure):
        raise PromptTooLong(reader.failure, hint=_TOO_LONG)
    if reader.failure:
        raise LlmError(reader.failure)


def _reply_of(raw: bytes) -> Reply:
    """Read a whole answer, tools included, or the words of one that was streamed anyway.

    An answer without either is a reply, too: an agent that is done with its tools has nothing to
    add.
    """
    reader = ChatReader()
    reader.feed(raw)
    reader.close()
    # An agent gets its own broken call back, and a text that was cut is still a text.
    if reader.answer is None or reader.failure not in {reader.empty, HALF_A_CALL, reader.cut}:
        _check(reader)
    calls: tuple[ToolCall, ...] = ()
    if reader.tools:
        if reader.answer is None:
            raise LlmError("the language model streamed an answer that was to be whole")
        calls = _calls_of(reader.answer)
    return Reply(reader.text, calls)


def _calls_of(answer: Mapping[str, Any]) -> tuple[ToolCall, ...]:
    try:
        message: Any = answer["choices"][0]["message"]
        return tuple(
            ToolCall(str(c["id"]), str(c["function"]["name"]), str(c["function"]["arguments"]))
            for c in message["tool_calls"]
        )
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise LlmError("the language model's answer is no chat completion") from error
