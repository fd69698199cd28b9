"""Requests of the command line to a running sidecar, the one owner of the journal's file.

A request must come from this machine and carry the token of `control.json` in the data directory,
a file that only this user can read and that is new at each start. A browser is refused.
"""

import contextlib
import json
import os
import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, TypeVar, cast

import anyio
import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from sidecar.access.bearer import BearerTokens
from sidecar.bearer import token_in
from sidecar.calls.commands import CallCommands
from sidecar.errors import SidecarError
from sidecar.journal.dead_letters import DeadLetters
from sidecar.model import Command
from sidecar.peer import from_this_machine
from sidecar.private import write_whole
from sidecar.untrusted import MALFORMED

CONTROL_FILE = "control.json"
BUDGET_S = 300.0
_BODY_LIMIT_BYTES = 65_536
_TEXT_LIMIT_CHARS = 1_024
COMMAND_CHARS = 2_000

T = TypeVar("T")


class Forget(msgspec.Struct, frozen=True):
    """Asks to forget a caller; without `really` it only reports what is held."""

    tenant: str
    caller_key: str
    really: bool = False


class CommandRequest(msgspec.Struct, frozen=True):
    """Asks for a command into a live call.

    Attributes:
        call: Its key, the channel's own id of it, or another name that `calls_named` accepts.
        command: What to do.
        text: The guidance, or the words to say; ignored for a hang-up.
    """

    call: str
    command: Command
    text: Annotated[str, msgspec.Meta(max_length=COMMAND_CHARS)] = ""


class Admin:
    """The routes below `/admin`.

    Args:
        journal: The one this process owns.
        commands: For live calls.
        forget: Reports what is held of a caller, or erases it; its result can be written as JSON.
        clock: Unix time in seconds.
    """

    def __init__(
        self,
        journal: DeadLetters,
        *,
        commands: CallCommands,
        forget: Callable[[Forget], Awaitable[object]],
        clock: Callable[[], float],
    ) -> None:
        self._journal = journal
        self._commands = commands
        self._forget = forget
        self._clock = clock
        self._token = secrets.token_urlsafe(32)
        self._tokens = BearerTokens([("this user", self._token.encode())])

    def announce(self, directory: Path, url: str) -> None:
        """Write this sidecar's URL and token to a file that only this user can read (0600)."""
        content = {"url": url, "token": self._token, "pid": os.getpid()}
        write_whole(directory / CONTROL_FILE, json.dumps(content).encode())

    def withdraw(self, directory: Path) -> None:
        """Remove the file of `announce`, unless a later sidecar has announced itself."""
        path = directory / CONTROL_FILE
        with contextlib.suppress(OSError, *MALFORMED, KeyError, TypeError):
            if cast("dict[str, object]", json.loads(path.read_text()))["pid"] == os.getpid():
                path.unlink()

    def routes(self) -> list[BaseRoute]:
        """Return the routes."""
        return [
            Route("/admin/status", self._guarded(self._status)),
            Route("/admin/outbox/{batch}/replay", self._guarded(self._replay), methods=["POST"]),
            Route("/admin/outbox/{batch}/drop", self._guarded(self._drop), methods=["POST"]),
            Route("/admin/command", self._guarded(self._command), methods=["POST"]),
            Route("/admin/forget", self._guarded(self._forget_caller), methods=["POST"]),
        ]

    def _guarded(
        self, serve: Callable[[Request], Awaitable[Response]]
    ) -> Callable[[Request], Awaitable[Response]]:
        async def guarded(request: Request) -> Response:
            if not _asked_directly(request):
                return JSONResponse({"error": "not for you"}, 403)
            if self._tokens.of(token_in(request.headers.raw)) is None:
                return JSONResponse({"error": "not without the token of control.json"}, 401)
            try:
                with anyio.fail_after(BUDGET_S):
                    return await serve(request)
            except SidecarError as error:
                return JSONResponse(
                    {
                        "error": error.message,
                        "hint": error.hint,
                        "kind": type(error).__name__,
                        "retryable": error.retryable,
                    },
                    409,
                )
            except TimeoutError:
                return JSONResponse({"error": f"not done in {BUDGET_S:g} s", "hint": ""}, 504)

        return guarded

    async def _status(self, _: Request) -> Response:
        return JSONResponse({"pid": os.getpid()})

    async def _replay(self, request: Request) -> Response:
        batch = str(request.path_params["batch"])[:_TEXT_LIMIT_CHARS]
        return _outcome(await self._journal.replay(batch, now_s=self._clock()))

    async def _drop(self, request: Request) -> Response:
        batch = str(request.path_params["batch"])[:_TEXT_LIMIT_CHARS]
        return _outcome(await self._journal.drop(batch, now_s=self._clock()))

    async def _command(self, request: Request) -> Response:
        """Pass a command on to the call's channel; only the transcript shows its effect."""
        asked = await _asked(request, CommandRequest)
        if asked is None:
            return _malformed()
        if asked.command != "hang-up" and not asked.text:
            return JSONResponse({"error": "text: give the guidance, or the words to say"}, 400)
        return _outcome(done=await self._commands.give(asked.call, asked.command, asked.text))

    async def _forget_caller(self, request: Request) -> Response:
        asked = await _asked(request, Forget)
        if asked is None:
            return _malformed()
        report = await self._forget(asked)
        return Response(msgspec.json.encode(report), media_type="application/json")


async def _asked(request: Request, kind: type[T]) -> T | None:
    """Return what a body asks; None if it is too long, is not JSON or not of that kind."""
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > _BODY_LIMIT_BYTES:
            return None
    try:
        return msgspec.json.decode(body, type=kind)
    except MALFORMED:
        return None


def _malformed() -> Response:
    return JSONResponse({"error": "malformed", "hint": ""}, 400)


def _outcome(done: bool) -> Response:
    return JSONResponse({"done": done})


def _asked_directly(request: Request) -> bool:
    client = request.client.host if request.client else ""
    return from_this_machine(request.headers, client)
