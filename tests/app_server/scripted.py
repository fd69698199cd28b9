"""An App Server that follows a script, for what the real one does only rarely."""

import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

from websockets.asyncio.server import ServerConnection, serve

Frame: TypeAlias = dict[str, Any]
Say: TypeAlias = Callable[[Frame], Awaitable[None]]
Script: TypeAlias = Callable[[Frame, Say], Awaitable[None]]

IDLE: Mapping[str, object] = {
    "status": "WAITING_ON_INPUT",
    "active_run_ids": [],
    "executing_tool_call_ids": [],
}


@asynccontextmanager
async def scripted(script: Script, *, protocol_version: int = 1) -> AsyncGenerator[str]:
    """Serve; yield the URL.

    Args:
        script: Called with each frame except `app_server_info`, and with a function that sends one.
        protocol_version: The version that it claims to speak.
    """

    async def speak(connection: ServerConnection) -> None:
        async def say(frame: Frame) -> None:
            await connection.send(json.dumps(frame))

        async for raw in connection:
            frame = json.loads(raw)
            if frame["type"] != "app_server_info":
                await script(frame, say)
                continue
            info = {"protocol_version": protocol_version, "letta_code_version": "9.9.9"}
            await say(
                {"type": "app_server_info_response", "request_id": frame["request_id"], **info}
            )

    async with serve(speak, "127.0.0.1", 0) as server:
        yield f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}"
