"""Who may speak to the VAPI routes, and as which tenant.

The model endpoint takes a bearer key (VAPI's `custom-llm` credential). The server URL takes what
VAPI can be told to send: a bearer token, an HMAC over the raw bytes with its time, or the legacy
`x-vapi-secret`. The tenant is the credential's, never the body's. Each credential may be two
values at a time, so that a key can be changed while calls go on.

Everything is compared as digests in constant time, every candidate each time.
"""

import base64
import binascii
import hashlib
import hmac
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from sidecar.channels.peer import from_this_machine

REPLAY_WINDOW_S = 300.0
_SEEN_LIMIT = 20_000
_MILLISECONDS_FROM = 1e11  # as seconds, the year 5138


@dataclass(frozen=True, slots=True)
class Credential:
    """What one tenant's VAPI account sends.

    Attributes:
        tenant: Whose calls these are.
        keys: Bearer keys of the model endpoint; any of them opens.
        secrets: Secrets of the server URL; any of them opens.
    """

    tenant: str
    keys: tuple[bytes, ...]
    secrets: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Admitted:
    """A request that belongs.

    Attributes:
        tenant: The credential's.
        again: A signed delivery whose very signature was here before.
    """

    tenant: str
    again: bool = False


class Door:
    """Checks requests.

    Args:
        credentials: Empty: open to direct requests from this machine, and to nothing else.
        open_tenant: Whose calls those are.
        clock: Unix time in seconds.
    """

    def __init__(
        self,
        credentials: Sequence[Credential],
        *,
        open_tenant: str,
        clock: Callable[[], float],
    ) -> None:
        self._credentials = tuple(credentials)
        self._open_tenant = open_tenant
        self._clock = clock
        self._seen: OrderedDict[bytes, float] = OrderedDict()

    def admit_model(self, headers: Mapping[str, str], client: str) -> Admitted | None:
        """Admit a request to the model endpoint.

        Args:
            headers: By lower-case name.
            client: The peer's address, empty where unknown.
        """
        if not self._credentials:
            return self._of_this_machine(headers, client)
        shown = _bearer(headers.get("authorization", ""))
        return self._holder(shown, [(c.tenant, c.keys) for c in self._credentials])

    def admit_webhook(
        self, headers: Mapping[str, str], client: str, body: bytes
    ) -> Admitted | None:
        """Admit a delivery to the server URL, judged on the bytes as they came.

        A signed delivery is admitted within `REPLAY_WINDOW_S` of its time, either side. The unit
        of VAPI's `x-timestamp` is not documented: seconds and milliseconds are both read.
        """
        if not self._credentials:
            return self._of_this_machine(headers, client)
        secrets = [(c.tenant, c.secrets) for c in self._credentials]
        signature = headers.get("x-signature", "")
        if signature:
            return self._signed(signature, headers.get("x-timestamp", ""), body, secrets)
        shown = _bearer(headers.get("authorization", "")) or headers.get("x-vapi-secret", "")
        return self._holder(shown, secrets)

    def _holder(
        self, shown: str, candidates: Sequence[tuple[str, tuple[bytes, ...]]]
    ) -> Admitted | None:
        digest = _digest(shown.encode("utf-8", "surrogateescape"))
        admitted: Admitted | None = None
        for tenant, values in candidates:
            for value in values:
                if hmac.compare_digest(digest, _digest(value)):
                    admitted = Admitted(tenant)
        return admitted if shown else None

    def _signed(
        self,
        signature: str,
        timestamp: str,
        body: bytes,
        candidates: Sequence[tuple[str, tuple[bytes, ...]]],
    ) -> Admitted | None:
        try:
            stamp_s = float(timestamp)
        except ValueError:
            return None
        if stamp_s >= _MILLISECONDS_FROM:
            stamp_s /= 1_000
        now_s = self._clock()
        if not abs(now_s - stamp_s) <= REPLAY_WINDOW_S:
            return None
        given = _signature_bytes(signature)
        signed = timestamp.encode() + b"." + body
        tenant = ""
        for name, values in candidates:
            for value in values:
                if hmac.compare_digest(given, hmac.digest(value, signed, "sha256")):
                    tenant = name
        return Admitted(tenant, again=self._was_here(given, now_s)) if tenant else None

    def _was_here(self, signature: bytes, now_s: float) -> bool:
        again = signature in self._seen
        self._seen[signature] = now_s
        while self._seen:
            oldest_s = next(iter(self._seen.values()))
            if len(self._seen) <= _SEEN_LIMIT and now_s - oldest_s <= 2 * REPLAY_WINDOW_S:
                break
            self._seen.popitem(last=False)
        return again

    def _of_this_machine(self, headers: Mapping[str, str], client: str) -> Admitted | None:
        return Admitted(self._open_tenant) if from_this_machine(headers, client) else None


def _bearer(authorization: str) -> str:
    """Return the token; a key without the word Bearer is taken as it stands."""
    scheme, _, token = authorization.strip().partition(" ")
    return token.strip() if token and scheme.lower() == "bearer" else authorization.strip()


def _digest(value: bytes) -> bytes:
    return hashlib.sha256(value).digest()


def _signature_bytes(signature: str) -> bytes:
    """Read a SHA-256 signature in hex or base64, with or without `sha256=` before it."""
    text = signature.strip().removeprefix("sha256=")
    try:
        if len(text) == 2 * hashlib.sha256().digest_size:
            return bytes.fromhex(text)
        return base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error):
        return b""
