"""Who may use the VAPI routes, and as which tenant.

The model endpoint takes a bearer key (VAPI's `custom-llm` credential). The server URL takes what
VAPI can be configured to send: a bearer token, an HMAC over the raw bytes with its time, or the
legacy `x-vapi-secret`. The tenant comes from the credential, never from the body. Each credential
may have two values at a time, so that a key can be changed while calls go on.

Everything is compared in constant time, every candidate each time.
"""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sidecar.access.bearer import BearerTokens
from sidecar.access.deliveries import Deliveries
from sidecar.bearer import RawHeaders, token_in

REPLAY_WINDOW_S = 300.0
_MILLISECONDS_FROM = 1e11  # as seconds, the year 5138


@dataclass(frozen=True, slots=True)
class Credential:
    """What one tenant's VAPI account sends.

    Attributes:
        tenant: Whose calls these are.
        keys: Bearer keys of the model endpoint; any of them is accepted.
        secrets: Secrets of the server URL; any of them is accepted.
    """

    tenant: str
    keys: tuple[bytes, ...]
    secrets: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Admitted:
    """A request that was admitted.

    Attributes:
        tenant: Of its credential.
        again: It is a signed delivery, and its signature came before.
        signature: Of a signed delivery, else empty.
        stamp_s: The time that a signed delivery names, Unix seconds.
    """

    tenant: str
    again: bool = False
    signature: bytes = b""
    stamp_s: float = 0.0


class Door:
    """Checks requests.

    Args:
        credentials: Without any, every request is refused.
        wall: Unix time in seconds, as the machine has it now: VAPI's times are compared with it.
        deliveries: Which signed deliveries came before.
    """

    def __init__(
        self,
        credentials: Sequence[Credential],
        *,
        wall: Callable[[], float],
        deliveries: Deliveries,
    ) -> None:
        self._keys = BearerTokens((c.tenant, key) for c in credentials for key in c.keys)
        self._secrets = tuple((c.tenant, secret) for c in credentials for secret in c.secrets)
        self._tokens = BearerTokens(self._secrets)
        self._wall = wall
        self._deliveries = deliveries

    def admit_model(self, headers: RawHeaders) -> Admitted | None:
        """Admit a request to the model endpoint.

        A key without the word Bearer is accepted too: VAPI can be configured to send it so.
        """
        tenant = self._keys.of(token_in(headers, bare=True))
        return None if tenant is None else Admitted(tenant)

    def admit_webhook(self, headers: RawHeaders, body: bytes) -> Admitted | None:
        """Admit a delivery to the server URL, judged on the bytes as they came.

        A signed delivery is admitted within `REPLAY_WINDOW_S` before or after its time. The unit of
        VAPI's `x-timestamp` is not documented: seconds and milliseconds are both read.
        """
        headers = list(headers)
        by_name = {name.lower(): value for name, value in headers}
        signature = by_name.get(b"x-signature", b"").decode("latin-1")
        if signature:
            return self._signed(signature, by_name.get(b"x-timestamp", b"").decode("latin-1"), body)
        shown = token_in(headers, bare=True) or by_name.get(b"x-vapi-secret", b"")
        tenant = self._tokens.of(shown)
        return None if tenant is None else Admitted(tenant)

    def _signed(self, signature: str, timestamp: str, body: bytes) -> Admitted | None:
        try:
            stamp_s = float(timestamp)
        except ValueError:
            return None
        if stamp_s >= _MILLISECONDS_FROM:
            stamp_s /= 1_000
        if not abs(self._wall() - stamp_s) <= REPLAY_WINDOW_S:
            return None
        given = _signature_bytes(signature)
        signed = timestamp.encode() + b"." + body
        tenant = ""
        for name, secret in self._secrets:
            if hmac.compare_digest(given, hmac.digest(secret, signed, "sha256")):
                tenant = name
        if not tenant:
            return None
        return Admitted(tenant, self._deliveries.was_here(given, stamp_s), given, stamp_s)

    async def save(self, admitted: Admitted) -> bool:
        """Store a signed delivery, so that it is known after a restart; ignore others.

        Returns:
            False: it came before, at another replica.
        """
        if not admitted.signature:
            return True
        return await self._deliveries.save(admitted.signature, admitted.stamp_s)


def _signature_bytes(signature: str) -> bytes:
    """Read a SHA-256 signature in hex or base64, with or without `sha256=` before it."""
    text = signature.strip().removeprefix("sha256=")
    try:
        if len(text) == 2 * hashlib.sha256().digest_size:
            return bytes.fromhex(text)
        return base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error):
        return b""
