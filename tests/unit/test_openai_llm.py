"""The client of OpenAI-compatible endpoints, against the shipped server on a real socket."""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from aiohttp import ClientSession, StreamReader, web
from aiohttp.base_protocol import BaseProtocol

from sidecar.channels.vapi.upstream import HttpUpstream
from sidecar.errors import LlmError, PromptTooLong
from sidecar.llm.dialects import Dialects
from sidecar.llm.failures import says_too_large
from sidecar.llm.openai import PIECE_BYTES, OpenAiLlm, next_piece
from sidecar.llm.port import Reply
from sidecar.llm.served import served as serving
from sidecar.testing.openai_server import LOG_LIMIT, ModelFaults, OpenAiServer
from tests.llm.answers import ANSWERS, CALLS, CUT, DONE, PLAIN, STOP, THOUGHT, data, says, whole

pytestmark = [pytest.mark.unit, pytest.mark.anyio]

KEY = "sk-canary-key"
WORDS = "canary words of a caller"


@asynccontextmanager
async def served(app: web.Application) -> AsyncGenerator[str]:
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        yield f"http://{host}:{port}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def talking(
    app: web.Application | None = None, *, faults: ModelFaults | None = None, **more: Any
) -> AsyncGenerator[tuple[OpenAiLlm, OpenAiServer]]:
    server = OpenAiServer()
    server.faults = faults or ModelFaults()
    async with served(app or server.app()) as url:
        llm = OpenAiLlm(f"{url}/v1/", KEY, "gpt-test", **more)
        try:
            yield llm, server
        finally:
            await llm.aclose()


def said(text: str) -> Mapping[str, Any]:
    return {"role": "user", "content": text}


async def streamed(llm: OpenAiLlm, text: str = WORDS) -> list[str]:
    return [piece async for piece in llm.stream([said(text)])]


def answering(status: int = 200, body: str = "", *, content_type: str = "application/json") -> Any:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(status=status, text=body, content_type=content_type)

    app = web.Application()
    app.router.add_post("/v1/chat/completions", answer)
    return app


async def test_a_reply_comes_in_pieces() -> None:
    """A streamed reply is yielded in pieces that make up the whole reply."""
    async with talking() as (llm, server):
        pieces = await streamed(llm, "my name is ada")
        assert "".join(pieces) == "Nice to meet you, Ada."
        assert len(pieces) > 1
        assert server.log[0]["body"]["model"] == "gpt-test"


async def test_tool_calls_are_returned() -> None:
    """A tool call is returned with its name and with its arguments as JSON text."""
    parameters: dict[str, Any] = {
        "type": "object",
        "properties": {"label": {}, "new_str": {}},
    }
    tool = {"type": "function", "function": {"name": "memory_insert", "parameters": parameters}}
    async with talking() as (llm, _):
        reply = await llm.complete([said("call me Bea")], tools=[tool])
    (call,) = reply.tool_calls
    assert call.name == "memory_insert"
    assert json.loads(call.arguments) == {"label": "human", "new_str": "Name: Bea"}


async def test_a_whole_reply_is_returned() -> None:
    """Without tools the reply is text."""
    async with talking() as (llm, _):
        assert await llm.complete([said("call me Bea")]) == Reply("Nice to meet you, Bea.")


async def test_the_connection_is_kept() -> None:
    """Streamed and whole replies share one connection and send the key as a bearer token."""
    seen: list[tuple[Any, str]] = []

    @web.middleware
    async def note(request: web.Request, handler: Any) -> web.StreamResponse:
        assert request.transport is not None
        peer = request.transport.get_extra_info("peername")
        seen.append((peer, request.headers["Authorization"]))
        return await handler(request)

    app = OpenAiServer().app()
    app.middlewares.append(note)
    async with talking(app) as (llm, _):
        await streamed(llm)
        await streamed(llm)
        await llm.complete([said("hm")])
    assert len(seen) == 3
    assert set(seen) == {(seen[0][0], f"Bearer {KEY}")}


@pytest.mark.parametrize(
    ("status", "hint"),
    [(401, "LLM_API_KEY"), (404, "LLM_MODEL"), (429, "rate"), (500, ""), (302, "")],
)
async def test_a_refusal_is_an_error_without_words_or_keys(status: int, hint: str) -> None:
    """A refusal or redirect is an error that repeats nothing of the provider's text."""
    async with talking(answering(status, f"you said {WORDS} with {KEY}")) as (llm, _):
        for attempt in (streamed(llm), llm.complete([said(WORDS)])):
            with pytest.raises(LlmError, match=str(status)) as refusal:
                await attempt
            assert hint in refusal.value.hint
            assert "canary" not in str(refusal.value)


NO_ROOM = "This model's maximum context length is 8192 tokens"


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (400, {"error": {"message": NO_ROOM, "code": "context_length_exceeded"}}),
        (400, {"error": {"message": NO_ROOM}}),
        (422, {"detail": NO_ROOM}),
        (500, {"error": {"message": "the request exceeds the available context size"}}),
        (413, {}),
        (200, {"error": {"message": NO_ROOM}}),
        (200, {"error": NO_ROOM}),
        (200, {"error": {"code": "context_length_exceeded"}}),
    ],
)
async def test_a_prompt_that_is_too_long_is_told_from_an_outage(
    status: int, body: dict[str, object]
) -> None:
    """A context that is too small raises PromptTooLong, in whichever words a server says it."""
    async with talking(answering(status, json.dumps(body))) as (llm, _):
        for attempt in (streamed(llm), llm.complete([said(WORDS)])):
            with pytest.raises(PromptTooLong):
                await attempt


async def test_words_of_a_caller_are_no_word_of_the_server() -> None:
    """Words of the request that an error repeats don't count as the server's reason."""
    echoed = {"detail": [{"msg": "bad", "input": NO_ROOM}]}
    async with talking(answering(422, json.dumps(echoed))) as (llm, _):
        with pytest.raises(LlmError) as refused:
            await llm.complete([said(NO_ROOM)])
        assert not isinstance(refused.value, PromptTooLong)


async def test_an_app_server_is_told_too() -> None:
    """An App Server that uses our model is told of a context overflow in words it knows."""
    refusal = {"error": {"message": NO_ROOM}}
    async with (
        talking(answering(400, json.dumps(refusal))) as (llm, _),
        serving(llm, key="k") as url,
        ClientSession() as client,
        client.post(
            f"{url}/chat/completions",
            json={"messages": [said(WORDS)]},
            headers={"Authorization": "Bearer k"},
        ) as answer,
    ):
        assert answer.status == 400
        assert says_too_large(await answer.text())


async def test_silence_before_the_first_piece_is_an_error() -> None:
    """A stream without a first piece within its time is an error."""
    late = ModelFaults(first_token_delay_s=30)
    async with talking(faults=late, first_token_timeout_s=0.1) as (llm, _):
        with pytest.raises(LlmError, match="silent"):
            await streamed(llm)


async def test_no_answer_at_all_is_an_error() -> None:
    """A request to a server that hangs ends with an error when its time is up."""
    budgets: dict[str, Any] = {"first_token_timeout_s": 0.1, "total_timeout_s": 0.1}
    async with talking(faults=ModelFaults(hang=True), **budgets) as (llm, _):
        with anyio.fail_after(5):
            with pytest.raises(LlmError, match="in time"):
                await streamed(llm)
            with pytest.raises(LlmError, match="in time"):
                await llm.complete([said(WORDS)])


async def test_a_stream_that_breaks_off_is_an_error_after_its_pieces() -> None:
    """When a stream breaks off, its pieces are yielded and then an error is raised."""
    pieces: list[str] = []
    async with talking(faults=ModelFaults(fail_mid_stream=1)) as (llm, _):

        async def listen() -> None:
            async for piece in llm.stream([said("my name is ada")]):
                pieces.append(piece)  # noqa: PERF401 - the error must not lose them

        with pytest.raises(LlmError, match="broke off"):
            await listen()
        assert pieces == ["Nice"]
        assert await streamed(llm)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("", "empty"),
        ("data: {no json\n\n", "not JSON"),
        ("data: []\n\n", "not a JSON object"),
        ('data: {"error": {"message": "canary", "code": "overloaded"}}\n\n', ": overloaded"),
        ("data: [DONE]\n\n", "empty"),
        (": a comment\n\nevent: x\n\n", "empty"),
    ],
)
async def test_a_stream_of_nonsense_is_an_error(body: str, why: str) -> None:
    """A stream that can't be read raises an `LlmError`."""
    async with talking(answering(body=body, content_type="text/event-stream")) as (llm, _):
        with pytest.raises(LlmError, match=why) as failure:
            await streamed(llm)
        assert "canary" not in str(failure.value)


@pytest.mark.parametrize("body", ["", "[]", "{}", '{"choices": []}', '{"choices": [{}]}'])
async def test_an_answer_of_nonsense_is_an_error(body: str) -> None:
    """A whole answer of another shape raises an `LlmError`."""
    async with talking(answering(body=body)) as (llm, _):
        with pytest.raises(LlmError):
            await llm.complete([said(WORDS)])


async def test_a_stream_without_its_last_mark_is_whole() -> None:
    """A stream that ends at finish_reason without [DONE] is complete."""
    chunk = {"choices": [{"delta": {"content": "Hi."}, "finish_reason": "stop"}]}
    body = f"data: {json.dumps(chunk)}\n\n"
    async with talking(answering(body=body, content_type="text/event-stream")) as (llm, _):
        assert await streamed(llm) == ["Hi."]


async def test_an_unreachable_endpoint_is_an_error() -> None:
    """A refused connection and a closed client are errors that say so."""
    llm = OpenAiLlm("http://127.0.0.1:9/v1", KEY, "gpt-test")
    assert llm.name == "gpt-test at 127.0.0.1"
    with pytest.raises(LlmError, match="cannot be reached"):
        await streamed(llm)
    await llm.aclose()
    await llm.aclose()
    with pytest.raises(LlmError, match="closed"):
        await llm.complete([said(WORDS)])


async def test_the_server_obeys_its_controls() -> None:
    """Faults are set by /_ctl and counted down, and the log of requests is bounded."""
    server = OpenAiServer()
    async with served(server.app()) as url, ClientSession(url) as client:
        chat = "/v1/chat/completions"
        answer = await client.post("/_ctl", json={"fail": 1})
        assert (await answer.json())["fail"] == 1
        assert (await client.post(chat, json={})).status == 500
        assert (await client.post(chat, json={})).status == 200
        assert (await client.post("/_ctl", json={"nonsense": 1})).status == 400
        assert len(await (await client.get("/_log?tail=1")).json()) == 1
        await client.post("/_ctl", json={"clear": True})
        assert await (await client.get("/_log")).json() == []
        embedded = await client.post("/v1/embeddings", json={"input": ["a", "b"], "dimensions": 4})
        assert [len(d["embedding"]) for d in (await embedded.json())["data"]] == [4, 4]
        assert (await (await client.get("/v1/models")).json())["data"]
    assert server.log.maxlen == LOG_LIMIT


def sending(body: bytes, content_type: str, *, size: int = 1 << 20) -> web.Application:
    """A server that sends a body in pieces, with this content type or none."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        if content_type:
            response.content_type = content_type
        await response.prepare(request)
        for start in range(0, len(body), size):
            await response.write(body[start : start + size])
        return response

    app = web.Application()
    app.router.add_post("/v1/chat/completions", answer)
    return app


async def test_other_calls_run_between_two_pieces() -> None:
    """A long body that is already there is read in pieces, and others run between them."""
    loop = asyncio.get_running_loop()
    content = StreamReader(BaseProtocol(loop), 1 << 16, loop=loop)
    content.feed_data(b"x" * (PIECE_BYTES * 5 + 1))
    content.feed_eof()
    turns = 0
    sizes: list[int] = []

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(other)
        while piece := await next_piece(content):
            assert turns >= len(sizes)
            sizes.append(len(piece))
        tasks.cancel_scope.cancel()
    assert sizes == [PIECE_BYTES] * 5 + [1]


@pytest.mark.parametrize("name", sorted({**ANSWERS, **CALLS}))
async def test_every_kind_of_answer(name: str) -> None:
    """Every kind of answer is yielded as its words, or raises an error if it has none."""
    body, heard, content_type = {**ANSWERS, **CALLS}[name]
    async with talking(sending(body, content_type, size=97)) as (llm, _):
        if heard:
            pieces = await streamed(llm)
            assert "".join(pieces) == heard
            assert pieces[0].strip()
        else:
            with pytest.raises(LlmError) as failure:
                await streamed(llm)
            assert "canary" not in str(failure.value)


@pytest.mark.parametrize("name", sorted(CUT))
async def test_a_reply_that_stops_in_the_middle(name: str) -> None:
    """When a reply stops in the middle, its words are yielded and then an error is raised."""
    body, heard, content_type = CUT[name]
    pieces: list[str] = []
    async with talking(sending(body, content_type, size=97)) as (llm, _):

        async def listen() -> None:
            async for piece in llm.stream([said("Hi")]):
                pieces.append(piece)  # noqa: PERF401 - the error must not lose them

        with pytest.raises(LlmError) as failure:
            await listen()
        assert "".join(pieces) == heard
        assert "canary" not in str(failure.value)


async def test_thought_that_no_tag_begins_is_learnt_and_unlearnt() -> None:
    """The next reply of a model whose thought only ends is heard without it, until one has none."""
    thought = data(says("Hm."), says("</think>"), says("\n\nYes."), STOP) + DONE
    plain = data(says("It "), says("is."), STOP) + DONE
    bodies = [thought, thought, whole({"content": "Hm.</think>No."}), plain, plain, thought]
    heard = [["Hm.", "\n\nYes."], ["Yes."], "No.", ["It is."], ["It is."], ["Hm.", "\n\nYes."]]
    app = web.Application()

    async def answer(_: web.Request) -> web.Response:
        return web.Response(body=bodies.pop(0))

    app.router.add_post("/v1/chat/completions", answer)
    async with talking(app) as (llm, _):
        for words in heard:
            if isinstance(words, str):
                assert (await llm.complete([said("Hi")])).text == words
            else:
                assert "".join(await streamed(llm)) == "".join(words)


async def test_an_agents_text_may_be_cut() -> None:
    """A whole answer that was cut is returned as it is, also with a broken tool call."""
    function = {"name": "memory_insert", "arguments": '{"label": "hu'}
    calls = [{"id": "t1", "type": "function", "function": function}]
    for message, text, found in (
        ({"content": "Half a"}, "Half a", 0),
        ({"content": "<think>Hm.</think>", "tool_calls": calls}, "", 1),
    ):
        async with talking(sending(whole(message, "length"), "application/json")) as (llm, _):
            reply = await llm.complete([said("Hi")])
            assert (reply.text, len(reply.tool_calls)) == (text, found)


@pytest.mark.parametrize("name", sorted(CALLS))
async def test_tool_calls_of_every_kind(name: str) -> None:
    """A whole answer's tool call is returned; one in an unrequested stream is an error."""
    body, _, content_type = CALLS[name]
    async with talking(sending(body, content_type)) as (llm, _):
        if content_type == "application/json":
            assert (await llm.complete([said("bye")])).tool_calls[0].name == "endCall"
        else:
            with pytest.raises(LlmError):
                await llm.complete([said("bye")])


async def test_an_agent_may_have_nothing_to_add() -> None:
    """A whole answer without words is an empty reply, unless there is an error beside it."""
    async with talking(sending(whole({"content": None}), "application/json")) as (llm, _):
        assert await llm.complete([said("done?")]) == Reply("")
    failed = whole({"content": None}, error={"code": "x"})
    async with talking(sending(failed, "application/json")) as (llm, _):
        with pytest.raises(LlmError, match="failed while it spoke: x"):
            await llm.complete([said("done?")])


@pytest.mark.parametrize("first", [b"", data(says("One moment."))])
@pytest.mark.parametrize("silent", [b": ping\n\n", data(THOUGHT), data(says(" "))])
async def test_what_nobody_hears_is_silence(first: bytes, silent: bytes) -> None:
    """Comments, thoughts and blanks extend no deadline, either before a word or after it."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(first)
        while True:
            await response.write(silent)
            await anyio.sleep(0.01)

    app = web.Application()
    app.router.add_post("/v1/chat/completions", answer)
    async with talking(app, first_token_timeout_s=0.3) as (llm, _):
        with anyio.fail_after(5), pytest.raises(LlmError, match="silent"):
            await streamed(llm)


class Strict:
    """A server that accepts only one dialect, and refuses every other with the reason.

    Args:
        refuses: Returns the status and text that refuse a body; None to accept it.
    """

    def __init__(self, refuses: Callable[[dict[str, Any]], tuple[int, str] | None]) -> None:
        self.refuses = refuses
        self.bodies: list[dict[str, Any]] = []

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._answer)
        return app

    async def _answer(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.bodies.append(body)
        if refused := self.refuses(body):
            return web.Response(status=refused[0], text=refused[1])
        return web.Response(body=PLAIN)


def wants_turns(body: dict[str, Any]) -> tuple[int, str] | None:
    roles = [message["role"] for message in body["messages"]]
    turns = roles[1:] if roles[0] == "system" else roles
    if turns == ["user", "assistant"] * (len(turns) // 2) + ["user"]:
        return None
    return 400, '{"message": "Conversation roles must alternate user/assistant/user/..."}'


async def test_a_dialect_is_learnt_once() -> None:
    """A template's demand for alternating roles is learnt once, and no word is lost."""
    server = Strict(wants_turns)
    async with talking(server.app()) as (llm, _):
        messages = [{"role": "system", "content": "Be Ada."}, said("MEMORY"), said("Hello")]
        for _ in range(2):
            assert "".join([piece async for piece in llm.stream(messages)]) == "Fine, thanks."
    assert len(server.bodies) == 3
    assert server.bodies[2]["messages"][1] == said("MEMORY\n\nHello")


async def test_a_dialect_is_learnt_from_an_error_in_a_stream() -> None:
    """A refusal sent as an error in a stream with status 200 is learnt, too."""

    def refuses(body: dict[str, Any]) -> tuple[int, str] | None:
        if wants_turns(body):
            return 200, 'event: error\ndata: {"error": {"message": "roles must alternate"}}\n\n'
        return None

    server = Strict(refuses)
    async with talking(server.app()) as (llm, _):
        for _ in range(2):
            pieces = [piece async for piece in llm.stream([said("MEMORY"), said("Hello")])]
            assert "".join(pieces) == "Fine, thanks."
    assert len(server.bodies) == 3


async def test_half_a_character_costs_no_reply() -> None:
    """Half a character at the end of a text is sent as a replacement character."""
    server = Strict(lambda _: None)
    async with talking(server.app()) as (llm, _):
        assert await streamed(llm, "cut \ud83d")
    assert server.bodies[0]["messages"][0]["content"] == "cut \ufffd"


async def test_a_refusal_that_teaches_nothing_is_final() -> None:
    """A refusal that names no parameter is an error at once."""
    server = Strict(lambda _: (400, '{"message": "no"}'))
    async with talking(server.app()) as (llm, _):
        with pytest.raises(LlmError, match="400"):
            await streamed(llm)
    assert len(server.bodies) == 1


async def test_vapis_upstream_learns_from_a_server() -> None:
    """VAPI's upstream learns from a refusal over HTTP and sends the request again."""

    def refuses(body: dict[str, Any]) -> tuple[int, str] | None:
        if "max_tokens" in body:
            return 400, '{"error": {"message": "Unsupported parameter", "param": "max_tokens"}}'
        return wants_turns(body)

    server = Strict(refuses)
    async with served(server.app()) as url:
        upstream = HttpUpstream(f"{url}/v1", KEY)
        messages = [said("MEMORY"), said("Hello")]
        body = {"model": "m", "stream": True, "messages": messages, "max_tokens": 7}
        reply = await Dialects().asked(body, upstream.ask)
        assert await reply.next() == PLAIN
        reply.close()
        await upstream.aclose()
    assert len(server.bodies) == 3
    assert server.bodies[-1]["max_completion_tokens"] == 7
    assert server.bodies[-1]["messages"] == [said("MEMORY\n\nHello")]
