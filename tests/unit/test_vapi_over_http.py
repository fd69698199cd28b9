"""Replies for VAPI from servers on real sockets that treat HTTP in every way."""

import contextlib
import gzip
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from anyio.abc import SocketStream
from anyio.streams.buffered import BufferedByteReceiveStream

from sidecar.channels.vapi.reply import CutOff, Replies, Request
from sidecar.channels.vapi.upstream import HttpUpstream
from sidecar.errors import LlmError
from sidecar.tracing import NO_TRACES
from tests.llm.answers import ANSWERS, CALLS, CUT, DONE, PLAIN, ROLE, STOP, THOUGHT, data, says
from tests.quiet import unheard
from tests.unit.test_wire import spoken

pytestmark = [pytest.mark.unit, pytest.mark.anyio]

FALLBACK = "Say that again?"
OK = b"HTTP/1.1 200 OK\r\n"
CLOSE = b"Connection: close\r\n\r\n"
WORDS = data(ROLE, says("Grüß "), says("Gott, 日本 🎉."))
TEXT = "Grüß Gott, 日本 🎉."
Answering = Callable[[SocketStream], Awaitable[None]]


def sends(*pieces: bytes | float) -> Answering:
    """Sends each of these bytes on its own, and waits these seconds between them."""

    async def answer(stream: SocketStream) -> None:
        for piece in pieces:
            if isinstance(piece, bytes):
                await stream.send(piece)
            else:
                await anyio.sleep(piece)

    return answer


def for_ever(first: bytes, again: bytes) -> Answering:
    async def answer(stream: SocketStream) -> None:
        await stream.send(first)
        while True:
            await stream.send(again)
            await anyio.sleep(0.01)

    return answer


def chunked(body: bytes, size: int, *, end: bytes = b"0\r\n\r\n") -> bytes:
    """A body in chunks of HTTP."""
    pieces = [body[n : n + size] for n in range(0, len(body), size)]
    head = OK + b"Transfer-Encoding: chunked\r\nContent-Type: text/event-stream\r\n\r\n"
    return head + b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + end


def whole_of(body: bytes, content_type: str = "text/event-stream", *more: str) -> bytes:
    lines = [f"Content-Type: {content_type}", f"Content-Length: {len(body)}", *more]
    return OK + "".join(f"{line}\r\n" for line in lines).encode() + b"\r\n" + body


def each_byte(raw: bytes) -> Answering:
    """Answers byte by byte."""
    return sends(*(raw[n : n + 1] for n in range(len(raw))))


@asynccontextmanager
async def served(answer: Answering) -> AsyncGenerator[str]:
    """A server with one kind of answer, which breaks each connection after it."""

    async def serve(stream: SocketStream) -> None:
        asked = BufferedByteReceiveStream(stream)
        async with stream:
            with contextlib.suppress(anyio.BrokenResourceError, anyio.IncompleteRead):
                head = (await asked.receive_until(b"\r\n\r\n", 10_000)).lower().split(b"\r\n")
                length = next(line for line in head if line.startswith(b"content-length"))
                await asked.receive_exactly(int(length.partition(b":")[2]))
                await answer(stream)

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, serve)
        yield f"http://127.0.0.1:{listener.extra(anyio.abc.SocketAttribute.local_port)}/v1"
        tasks.cancel_scope.cancel()


async def heard_of(answer: Answering, *, fallback_s: float = 5.0) -> str:
    """What a caller hears; fails if VAPI gets a stream that it can't read."""
    sent: list[bytes] = []

    async def send(part: Any) -> None:
        sent.append(part.get("body", b""))

    prompt = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "Hi"}]}
    span = NO_TRACES.start("chat m", kind="client")
    turn = Request(None, prompt, (), prompt, json.dumps(prompt).encode(), "m", "acme", span)
    async with served(answer) as url:
        upstream = HttpUpstream(url, "")
        replies = Replies(upstream, fallback_s=fallback_s, emit=unheard)
        try:
            with anyio.fail_after(20):
                await replies.send(turn, send)
        except (LlmError, CutOff):
            await replies.speak(turn, send, FALLBACK)
        finally:
            await upstream.aclose()
    return spoken(b"".join(sent))


@pytest.mark.parametrize("name", sorted({**ANSWERS, **CALLS}))
async def test_each_kind_of_answer_in_single_bytes(name: str) -> None:
    """Every kind of answer is heard the same if it comes in single bytes."""
    body, heard, _ = {**ANSWERS, **CALLS}[name]
    raw = chunked(body[:4_000], 1)
    assert await heard_of(sends(raw)) == (FALLBACK if heard is None else heard)


@pytest.mark.parametrize("name", sorted(CUT))
async def test_each_kind_of_stop_in_single_bytes(name: str) -> None:
    """A reply that stops in the middle and comes in single bytes is heard with the fallback."""
    body, heard, _ = CUT[name]
    assert await heard_of(sends(chunked(body, 1))) == f"{heard} {FALLBACK}"


SOUND: dict[str, Answering] = {
    "byte by byte": each_byte(chunked(WORDS + data(STOP) + DONE, 3)),
    "another content type": sends(whole_of(PLAIN.replace(b"Fine, thanks.", b""), "image/png")),
    "another charset": sends(whole_of(WORDS + DONE, "text/event-stream; charset=utf-16")),
    "no length": sends(OK + CLOSE + WORDS + data(STOP)),
    "an old HTTP": sends(b"HTTP/1.0 200 OK\r\n\r\n" + WORDS + data(STOP) + DONE),
    "a hint before it": sends(
        b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n", chunked(WORDS + DONE, 50)
    ),
    "compressed": sends(whole_of(gzip.compress(WORDS + DONE), "x/y", "Content-Encoding: gzip")),
    "no end of its chunks, after the last word": sends(chunked(WORDS + data(STOP), 40, end=b"")),
    "a length too large, after the last word": sends(
        OK + b"Content-Length: 99999\r\n\r\n" + WORDS + data(STOP)
    ),
    "garbage after the last word": sends(chunked(WORDS + DONE + b"\xff\x00<html>", 40)),
    "stalls after the last word": sends(chunked(WORDS + data(STOP), 40, end=b""), 60.0),
    "pings after the last word": for_ever(
        chunked(WORDS + data(STOP), 40, end=b""), b"8\r\n: ping\n\n\r\n"
    ),
}


@pytest.mark.parametrize("name", sorted(SOUND))
async def test_a_reply_that_came(name: str) -> None:
    """However a server uses HTTP, a complete reply is heard without the fallback."""
    text = await heard_of(SOUND[name])
    assert text == ("Fine, thanks." if name == "another content type" else TEXT)


BROKEN: dict[str, Answering] = {
    "nothing": sends(),
    "no HTTP": sends(b"hello\r\n\r\n"),
    "half its headers": sends(OK + b"Content-Ty"),
    "no content": sends(b"HTTP/1.1 204 No Content\r\n\r\n"),
    "a redirect": sends(b"HTTP/1.1 302 Found\r\nLocation: /v1/x\r\nContent-Length: 0\r\n\r\n"),
    "half a refusal": sends(b"HTTP/1.1 400 Bad\r\nContent-Length: 99\r\n\r\nmax_tok"),
    "not compressed": sends(whole_of(WORDS + DONE, "x/y", "Content-Encoding: gzip")),
    "wrong chunks": sends(chunked(b"", 1, end=b"zz\r\n") + WORDS),
    "an empty body": sends(whole_of(b"")),
    "a login page": sends(whole_of(b"<html>", "text/html")),
}


@pytest.mark.parametrize("name", sorted(BROKEN))
async def test_a_server_that_is_none(name: str) -> None:
    """A server's answer that can't be read leads to the fallback at once."""
    assert await heard_of(BROKEN[name]) == FALLBACK


BROKEN_OFF: dict[str, Answering] = {
    "no end of its chunks": sends(chunked(WORDS, 40, end=b"")),
    "half a chunk": sends(chunked(WORDS, 40, end=b"ff\r\ndata: {")),
    "a length too large": sends(OK + b"Content-Length: 99999\r\n\r\n" + WORDS),
}


@pytest.mark.parametrize("name", sorted(BROKEN_OFF))
async def test_a_server_that_breaks_off(name: str) -> None:
    """Words without an end, or from a body without one, are followed by the fallback."""
    assert await heard_of(BROKEN_OFF[name]) == f"{TEXT} {FALLBACK}"


@pytest.mark.parametrize("silent", [b"", b": ping\n\n", data(THOUGHT), data(says(" ")), b"\n"])
@pytest.mark.parametrize("words", [b"", WORDS])
async def test_silence(words: bytes, silent: bytes) -> None:
    """A server that stalls, pings or only thinks leads to the fallback in time."""
    head = chunked(words, 40, end=b"")
    answer = (
        for_ever(head, b"%x\r\n%b\r\n" % (len(silent), silent)) if silent else sends(head, 60.0)
    )
    heard = await heard_of(answer, fallback_s=0.3)
    assert " ".join(heard.split()) == (f"{TEXT} {FALLBACK}" if words else FALLBACK)
