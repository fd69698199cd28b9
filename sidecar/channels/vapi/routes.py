"""VAPI's routes and the objects that serve them, as one part of the sidecar."""

import anyio
from anyio.abc import TaskStatus
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp

from sidecar.channels.vapi.calls import VapiCalls
from sidecar.channels.vapi.completions import Completions
from sidecar.channels.vapi.shared_limits import SharedLimits
from sidecar.channels.vapi.upstream import Upstream
from sidecar.channels.vapi.webhook import Webhook

CHAT_PATHS = (
    "/vapi/chat/completions",
    # One page of VAPI's documentation puts the suffix into `model.url`, and it is added again.
    "/vapi/chat/completions/chat/completions",
)
WEBHOOK_PATH = "/vapi/webhook"


class Vapi:
    """The VAPI channel.

    Args:
        calls: The VAPI calls.
        completions: The model endpoint.
        webhook: The server URL.
        upstream: Who writes the replies; closed with the channel.
        limits: Shared with other replicas.
    """

    def __init__(
        self,
        calls: VapiCalls,
        completions: Completions,
        webhook: Webhook,
        upstream: Upstream,
        limits: SharedLimits,
    ) -> None:
        self.calls = calls
        self._completions = completions
        self._webhook = webhook
        self._upstream = upstream
        self._limits = limits

    def posts(self) -> dict[str, ASGIApp]:
        """Return the applications that serve a POST, by path."""
        return {**dict.fromkeys(CHAT_PATHS, self._completions), WEBHOOK_PATH: self._webhook}

    def routes(self) -> list[BaseRoute]:
        """Return the routes."""
        return [Route(path, app, methods=["POST"]) for path, app in self.posts().items()]

    async def run(self, *, task_status: TaskStatus[None]) -> None:
        """Serve until cancelled; the first request finds a warm connection."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._upstream.warm)
            tasks.start_soon(self._limits.run)
            await self.calls.run(task_status=task_status)

    async def aclose(self) -> None:
        """Close connections. Safe to call twice."""
        await self._upstream.aclose()
        await self.calls.control.aclose()
