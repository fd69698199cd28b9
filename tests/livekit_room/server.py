"""A stand-in for `livekit-server --dev` on 127.0.0.1.

Real signalling, real worker protocol, real WebRTC audio, so that the unmodified LiveKit SDK and
the unmodified voice worker meet in it.
"""

import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import jwt
from aiohttp import web
from livekit.protocol import room as room_api

from tests.livekit_room.dispatch import Dispatcher
from tests.livekit_room.priority import ahead_of_others
from tests.livekit_room.room import Participant, Room

API_KEY = "devkey"
API_SECRET = "a-secret-of-the-stand-in-at-least-32-long"


def token_for(
    *,
    identity: str,
    room: str,
    name: str = "",
    metadata: str = "",
    attributes: dict[str, str] | None = None,
    kind: str = "",
) -> str:
    """Return a participant's signed token."""
    claims: dict[str, Any] = {
        "iss": API_KEY,
        "sub": identity,
        "name": name,
        "metadata": metadata,
        "attributes": attributes or {},
        "kind": kind,
        "exp": int(time.time()) + 3600,
        "video": {"room": room, "roomJoin": True, "agent": kind == "agent"},
    }
    return jwt.encode(claims, API_SECRET, algorithm="HS256")


class LiveKitServer:
    """Rooms and workers behind one port."""

    def __init__(self) -> None:
        self.url = ""
        self.rooms: dict[str, Room] = {}
        self.dispatcher = Dispatcher(token_for)

    @asynccontextmanager
    async def serving(self) -> AsyncGenerator["LiveKitServer"]:
        """Serve on a free port of loopback, ahead of this machine's other work."""
        with ahead_of_others():
            async with self._serving():
                yield self

    @asynccontextmanager
    async def _serving(self) -> AsyncGenerator[None]:
        app = web.Application()
        app.add_routes(
            [
                web.get("/rtc", self._rtc),
                web.get("/rtc/validate", self._fine),
                web.get("/agent", self._agent),
                web.post("/twirp/{method:.*}", self._twirp),
                web.get("/", self._fine),
            ]
        )
        runner = web.AppRunner(app, shutdown_timeout=0.5)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        self.url = f"ws://127.0.0.1:{port}"
        try:
            yield
        finally:
            for room in list(self.rooms.values()):
                await room.close()
            await runner.cleanup()

    def room(self, name: str) -> Room:
        """Return a room, which is made at first use."""
        return self.rooms.setdefault(name, Room(name))

    async def call_agent(self, room: str, *, metadata: str = "") -> str:
        """Dispatch an agent to a room; returns the job's id."""
        return await self.dispatcher.dispatch(self.room(room), metadata=metadata)

    async def _rtc(self, request: web.Request) -> web.StreamResponse:
        try:
            claims = _claims(request)
        except jwt.PyJWTError as error:
            return web.Response(status=401, text=str(error))
        socket = web.WebSocketResponse(max_msg_size=0)
        await socket.prepare(request)
        await Participant(self.room(claims["video"]["room"]), socket, claims).stay()
        return socket

    async def _agent(self, request: web.Request) -> web.StreamResponse:
        try:
            _claims(request)
        except jwt.PyJWTError as error:
            return web.Response(status=401, text=str(error))
        socket = web.WebSocketResponse(max_msg_size=0)
        await socket.prepare(request)
        await self.dispatcher.serve(socket)
        return socket

    async def _twirp(self, request: web.Request) -> web.Response:
        raw = await request.read()
        if request.match_info["method"].endswith("DeleteRoom"):
            name = room_api.DeleteRoomRequest.FromString(raw).room
            if room := self.rooms.pop(name, None):
                await room.close()
        return web.Response(body=b"", content_type="application/protobuf")

    async def _fine(self, _: web.Request) -> web.Response:
        return web.Response(text="OK")


def _claims(request: web.Request) -> dict[str, Any]:
    bearer = request.headers.get("Authorization", "").removeprefix("Bearer ")
    token = request.query.get("access_token") or bearer
    return jwt.decode(token, API_SECRET, algorithms=["HS256"], options={"verify_aud": False})
