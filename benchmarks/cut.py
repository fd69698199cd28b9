"""How soon the model's stream is closed after VAPI has closed its request for a reply.

The model's server is in this process, so that both times come from one clock. Streams without an
end come through the sidecar, their clients disconnect one after another, and the server notes when
each connection was closed.
"""

import time
from collections.abc import Sequence
from pathlib import Path

import aiohttp
import anyio
import anyio.abc

from benchmarks.processes import LettaProcess, sidecar
from tests.sidecar_process import SidecarProcess

_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
_NOT_FOUND = b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
_CHUNK = b'data: {"choices": [{"index": 0, "delta": {"content": "on "}}]}\n\n'
_EACH_S = 0.02
_AT_ONCE = 20


class _Endless:
    """A model that never ends; `closed` holds when each connection was closed, by call number."""

    def __init__(self) -> None:
        self.closed: dict[str, float] = {}

    async def serve(self, stream: anyio.abc.ByteStream) -> None:
        head = b""
        async with stream:
            while b"stream-" not in head:
                head += await stream.receive()
                if head.startswith(b"GET"):  # a connection that was opened before the first request
                    await stream.send(_NOT_FOUND)
                    return
            name = head.partition(b"stream-")[2].split(b'"')[0].decode()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._speak, stream)
                try:
                    while True:
                        await stream.receive()
                except (anyio.EndOfStream, anyio.BrokenResourceError):
                    self.closed[name] = time.perf_counter()
                tasks.cancel_scope.cancel()

    @staticmethod
    async def _speak(stream: anyio.abc.ByteStream) -> None:
        try:
            await stream.send(_HEAD)
            while True:
                await stream.send(_CHUNK)
                await anyio.sleep(_EACH_S)
        except anyio.BrokenResourceError:
            pass  # the reader notes the time


async def cut_streams(
    letta: LettaProcess, agent: str, data_dir: Path, streams: int
) -> Sequence[float]:
    """Return the seconds from each client's disconnect to the closing of its model's stream."""
    model = _Endless()
    took_s: list[float] = []
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(anyio.abc.SocketAttribute.local_port)
    url = f"http://127.0.0.1:{port}/v1"
    process = sidecar(data_dir, letta, SIDECAR_AGENT_ID=agent, LLM_BASE_URL=url)
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, model.serve)
        await anyio.to_thread.run_sync(process.start)
        try:
            async with aiohttp.ClientSession() as session:
                for first in range(0, streams, _AT_ONCE):
                    names = [str(n) for n in range(first, min(first + _AT_ONCE, streams))]
                    async with anyio.create_task_group() as cutting:
                        for name in names:
                            cutting.start_soon(_cut_one, session, process, name, model, took_s)
        finally:
            await anyio.to_thread.run_sync(process.stop)
        tasks.cancel_scope.cancel()
    return took_s


async def _cut_one(
    session: aiohttp.ClientSession,
    process: SidecarProcess,
    name: str,
    model: _Endless,
    took_s: list[float],
) -> None:
    body = {
        "stream": True,
        "messages": [{"role": "user", "content": f"stream-{name}"}],
        "call": {"id": f"cut-{name}", "type": "inboundPhoneCall"},
    }
    response = await session.post(
        f"{process.url}/vapi/chat/completions", json=body, headers=process.bearer
    )
    await response.content.readline()
    response.close()
    gone_s = time.perf_counter()
    with anyio.fail_after(10.0):
        while name not in model.closed:  # noqa: ASYNC110 - the server writes it into a dict
            await anyio.sleep(0.001)
    took_s.append(model.closed[name] - gone_s)
