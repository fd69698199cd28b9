"""Connections to a Letta server through letta-client, and what all requests over them share."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import datetime
from json import JSONDecodeError
from typing import Final

import anyio
import httpx
from letta_client import APIStatusError, AsyncLetta, DefaultAioHttpClient

from sidecar.environment import wrong
from sidecar.errors import AgentNotFound, LettaUnavailable, NotLetta
from sidecar.letta.rest.wire import NO_LETTA, WIRE_ERRORS, is_missing, read_error

CLOUD_URL: Final = "https://api.letta.com"

# Below the 5 s after which uvicorn drops an idle connection: a post on a connection the server
# is just closing has an unknown outcome for no reason.
KEEPALIVE_S: Final = 3.0
_CONNECT_S: Final = 5.0
_PROXIES: Final = (
    "it, HTTP_PROXY, ALL_PROXY, NO_PROXY or SSL_CERT_FILE can't be used: a proxy is"
    " http://HOST:PORT, NO_PROXY has hosts (an IPv6 address without brackets), and the file has to"
    " be there"
)


def open_client(base_url: str, api_key: str | None, *, timeout_s: float, limit: int) -> AsyncLetta:
    """Return a client with its own pool of `limit` connections, and without retries.

    The SDK's retries repeat a POST after a time-out, which stores a message twice.

    Raises:
        ConfigError: the address, or the environment's setting of a proxy or certificates, is wrong.
    """
    timeout = httpx.Timeout(timeout_s, connect=min(_CONNECT_S, timeout_s))
    limits = httpx.Limits(max_connections=limit, keepalive_expiry=KEEPALIVE_S)
    try:
        httpx.URL(base_url)
    except httpx.InvalidURL:
        raise wrong((("LETTA_BASE_URL", "that is no name of a host"),)) from None
    try:
        http_client = DefaultAioHttpClient(timeout=timeout, limits=limits)
    except (httpx.InvalidURL, ValueError, ImportError, OSError):
        raise wrong((("HTTPS_PROXY", _PROXIES),)) from None
    client = AsyncLetta(
        base_url=base_url,
        api_key=api_key,
        timeout=timeout,
        max_retries=0,
        http_client=http_client,
    )
    client.api_key = api_key or None  # the SDK takes one from the environment
    return client


@asynccontextmanager
async def asking(what: str, budget_s: float) -> AsyncGenerator[None]:
    """Bound the requests within, and turn their errors into a `LettaError`.

    Args:
        what: What is asked for, for the message; no ids.
        budget_s: Deadline of all requests together.
    """
    try:
        with anyio.fail_after(budget_s):
            yield
    except TimeoutError as error:
        raise LettaUnavailable(f"{what}: no answer in {budget_s:.1f} s") from error
    except (AttributeError, KeyError, TypeError, JSONDecodeError) as error:
        # The SDK builds objects from any JSON it gets, and a string from a page of HTML.
        raise NotLetta(f"{what}: the server that answered is not Letta", hint=NO_LETTA) from error
    except WIRE_ERRORS as error:
        raise read_error(error, what) from error


@asynccontextmanager
async def of_agent() -> AsyncGenerator[None]:
    """Raise AgentNotFound when the answer to a request within is that its agent does not exist."""
    try:
        yield
    except APIStatusError as error:
        if is_missing(error, parameter="agent_id"):
            raise AgentNotFound("the agent does not exist on this Letta") from error
        raise


def unix_s(moment: datetime | None) -> float | None:
    """Return Unix time of a moment the server named."""
    return None if moment is None else moment.timestamp()
