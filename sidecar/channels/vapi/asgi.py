"""One HTTP exchange on raw ASGI: read a bounded body, send an answer, notice a lost client.

Raw ASGI, because every chunk of a stream passes here.
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import anyio
import msgspec
from starlette.types import Receive, Scope, Send

from sidecar.apart import JSON_SHARE, apart
from sidecar.errors import SidecarError
from sidecar.untrusted import MALFORMED, whole_characters

MAX_BODY_BYTES = 1 << 20
BODY_S = 10.0

Headers = Sequence[tuple[bytes, bytes]]
JSON_HEADERS: Headers = ((b"content-type", b"application/json"),)

_decode = msgspec.json.Decoder().decode


class RequestRefused(SidecarError):
    """A request that is answered with an error status.

    Args:
        status: HTTP status.
        message: What is wrong with it, for the person who set it up.
        retry_after_s: Seconds after which it may be sent again, or None.
    """

    def __init__(self, status: int, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after_s = retry_after_s


class Gone(Exception):
    """The client disconnected before its request was complete."""


def headers_of(scope: Scope) -> dict[str, str]:
    """Return the headers by lower-case name; for a name given twice, the last one."""
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}


async def body_of(scope: Scope, receive: Receive, *, limit_bytes: int = MAX_BODY_BYTES) -> bytes:
    """Read the body.

    Raises:
        RequestRefused: it is larger than `limit_bytes` (413) or took longer than `BODY_S` (408).
        Gone: the client disconnected.
    """
    length = next((v for name, v in scope["headers"] if name == b"content-length"), b"0")
    if not length.isdigit() or int(length) > limit_bytes:
        raise _too_large(limit_bytes)
    parts: list[bytes] = []
    size = 0
    with anyio.CancelScope(deadline=anyio.current_time() + BODY_S):
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Gone
            part: bytes = message.get("body", b"")
            size += len(part)
            if size > limit_bytes:
                raise _too_large(limit_bytes)
            parts.append(part)
            if not message.get("more_body"):
                return b"".join(parts)
    raise RequestRefused(408, f"the body did not come within {BODY_S:g} s")


def _too_large(limit_bytes: int) -> RequestRefused:
    return RequestRefused(413, f"a body holds at most {limit_bytes} bytes")


def object_of(body: bytes) -> Mapping[str, Any]:
    """Parse a JSON object.

    Raises:
        RequestRefused: it is not a JSON object (400).
    """
    try:
        try:
            parsed: object = _decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError):
            parsed = _decode(whole_characters(body))
    except MALFORMED:
        raise RequestRefused(400, "the body is not JSON") from None
    if not isinstance(parsed, dict):
        raise RequestRefused(400, "the body is not a JSON object")
    return cast("dict[str, Any]", parsed)


async def parsed(body: bytes) -> Mapping[str, Any]:
    """Run `object_of`, in a thread where the body is large."""
    return await apart(len(body) // JSON_SHARE, object_of, body)


async def answer(send: Send, status: int, body: bytes, headers: Headers = JSON_HEADERS) -> None:
    """Send a whole answer."""
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
    await send({"type": "http.response.body", "body": body})


async def refuse(send: Send, refused: RequestRefused) -> None:
    """Answer a refused request with an error in OpenAI's shape, which says what is wrong."""
    headers = list(JSON_HEADERS)
    if refused.retry_after_s is not None:
        headers.append((b"retry-after", str(max(1, round(refused.retry_after_s))).encode()))
    if refused.status in {408, 413}:
        headers.append((b"connection", b"close"))
    body = msgspec.json.encode({"error": {"message": refused.message, "type": "invalid_request"}})
    await answer(send, refused.status, body, headers)
