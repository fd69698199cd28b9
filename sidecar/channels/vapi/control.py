"""Commands into a live VAPI call, by the control URL that its bodies carry.

The URL is a secret (anyone who has it can command the call) and it comes from outside: it is never
logged, and it is used only when it is https on VAPI's own hosts at public addresses, without
redirects.
"""

import ipaddress
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp
import anyio
from aiohttp.abc import AbstractResolver, ResolveResult
from typing_extensions import override

from sidecar import telemetry
from sidecar.telemetry import Emit

COMMAND_S: Final = 5.0
_HOSTS: Final = "vapi.ai"
_HTTP_OK: Final = 300

Post = Callable[[str, Mapping[str, Any]], Awaitable[int]]
"""Posts JSON to a URL and returns the status; raises `aiohttp.ClientError` or `OSError`."""


def checked_url(url: str) -> str:
    """Return a control URL if it may be used, else an empty text.

    It must be https on port 443, of `vapi.ai` or a host below it, without credentials in it.
    """
    if not url.isascii() or not url.isprintable() or "\\" in url or " " in url:
        return ""
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").lower(), parts.port
    except ValueError:
        return ""
    named = host == _HOSTS or host.endswith(f".{_HOSTS}")
    plain = "@" not in parts.netloc and not parts.fragment
    return url if parts.scheme == "https" and named and plain and port in {None, 443} else ""


class Control:
    """Sends commands, each once and within `COMMAND_S`; a failed one is reported and dropped.

    Args:
        emit: Where events go.
        post: Used in place of its own HTTP client.
    """

    def __init__(self, *, emit: Emit, post: Post | None = None) -> None:
        self._emit = emit
        self._post_json = post if post is not None else self._post
        self._session: aiohttp.ClientSession | None = None

    async def guide(self, call: str, url: str, text: str) -> bool:
        """Put a message for the agent into the conversation, without making it answer."""
        message = {"role": "system", "content": text}
        command = {"type": "add-message", "message": message, "triggerResponseEnabled": False}
        return await self._send(call, url, command)

    async def say(self, call: str, url: str, text: str, *, then_end: bool = False) -> bool:
        """Make the agent say `text`. Takes 0.3 s, at times 10, and may be dropped by VAPI."""
        command = {"type": "say", "content": text, "endCallAfterSpoken": then_end}
        return await self._send(call, url, command)

    async def end_call(self, call: str, url: str) -> bool:
        """Hang up."""
        return await self._send(call, url, {"type": "end-call"})

    async def aclose(self) -> None:
        """Close connections. Safe to call twice."""
        if self._session is not None:
            await self._session.close()

    async def _send(self, call: str, url: str, command: Mapping[str, Any]) -> bool:
        """Send a command; return whether VAPI took it."""
        checked = checked_url(url)
        error = "the call has no control URL that may be used"
        if checked:
            try:
                with anyio.fail_after(COMMAND_S):
                    status = await self._post_json(checked, command)
                if status < _HTTP_OK:
                    return True
                error = f"answered {status}"
            except (aiohttp.ClientError, OSError, TimeoutError) as failure:
                error = type(failure).__name__
        self._emit(telemetry.control_failed, call=call, command=command["type"], error=error)
        return False

    async def _post(self, url: str, command: Mapping[str, Any]) -> int:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(resolver=PublicResolver(), use_dns_cache=False),
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        async with self._session.post(url, json=command, allow_redirects=False) as response:
            return response.status


class PublicResolver(AbstractResolver):
    """Resolves names to public addresses only: no name can lead back into this network."""

    def __init__(self, resolver: AbstractResolver | None = None) -> None:
        self._resolver = resolver if resolver is not None else aiohttp.ThreadedResolver()

    @override
    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self._resolver.resolve(host, port, family)
        public = [one for one in found if ipaddress.ip_address(one["host"]).is_global]
        if not public:
            raise OSError("the name has no public address")
        return public

    @override
    async def close(self) -> None:
        await self._resolver.close()
