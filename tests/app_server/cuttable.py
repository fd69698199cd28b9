"""A TCP proxy whose connections a test can cut."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Self

import anyio
import anyio.abc


class Cuttable:
    """A proxy to one port. `links` are its open connections, oldest first."""

    def __init__(self, url: str) -> None:
        self._target = int(url.rpartition(":")[2])
        self.url = ""
        self.links: list[anyio.CancelScope] = []

    @classmethod
    @asynccontextmanager
    async def before(cls, url: str) -> AsyncGenerator[Self]:
        """Listen on a free port and pass everything on to `url`."""
        proxy = cls(url)
        listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
        async with listener, anyio.create_task_group() as tasks:
            port = listener.extra(anyio.abc.SocketAttribute.local_port)
            proxy.url = f"ws://127.0.0.1:{port}"
            tasks.start_soon(listener.serve, proxy._serve)
            yield proxy
            tasks.cancel_scope.cancel()

    def cut(self, *links: anyio.CancelScope) -> None:
        """Close these connections on both sides at once."""
        for link in links:
            link.cancel()

    async def _serve(self, client: anyio.abc.SocketStream) -> None:
        with anyio.CancelScope() as link:
            self.links.append(link)
            try:
                async with (
                    client,
                    await anyio.connect_tcp("127.0.0.1", self._target) as server,
                    anyio.create_task_group() as tasks,
                ):
                    tasks.start_soon(_pipe, client, server)
                    await _pipe(server, client)
                    tasks.cancel_scope.cancel()
            except OSError:
                pass
            finally:
                self.links.remove(link)


async def _pipe(source: anyio.abc.SocketStream, sink: anyio.abc.SocketStream) -> None:
    try:
        async for piece in source:
            await sink.send(piece)
        await sink.send_eof()
    except (anyio.BrokenResourceError, anyio.ClosedResourceError, OSError):
        pass
