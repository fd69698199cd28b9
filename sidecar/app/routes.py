"""All routes of the sidecar: those of every part, and those that show whether it is up."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route, WebSocketRoute

from sidecar.channels.link.server import LinkServer

OPENAPI = Path(__file__).with_name("openapi.json")
"""The HTTP routes of every part, as OpenAPI 3.1."""
Readiness = Callable[[], Awaitable[Mapping[str, object]]]


def routes(link: LinkServer, readiness: Readiness, extra: Sequence[BaseRoute]) -> Starlette:
    """Build the application.

    Args:
        link: Serves `/link`.
        readiness: Returns what `/readyz` shows; its `ready` decides 200 or 503.
        extra: Routes of other channels.
    """

    async def livez(_: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def readyz(_: Request) -> Response:
        state = await readiness()
        return JSONResponse(dict(state), status_code=200 if state["ready"] else 503)

    async def openapi(_: Request) -> Response:
        return Response(document, media_type="application/json")

    document = OPENAPI.read_bytes()

    return Starlette(
        routes=[
            Route("/livez", livez),
            Route("/readyz", readyz),
            Route("/openapi.json", openapi),
            WebSocketRoute("/link", link.endpoint),
            *extra,
        ]
    )
