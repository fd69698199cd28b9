"""Whose a bearer token is. How one is read from a request is `sidecar.bearer`. Pure."""

import hmac
from collections.abc import Iterable

from sidecar.bearer import digest_of


class BearerTokens:
    """Finds the name that belongs to a secret.

    Args:
        secrets: Name and secret; a name may have several. An empty secret is ignored.
    """

    def __init__(self, secrets: Iterable[tuple[str, bytes]]) -> None:
        self._digests = tuple((name, digest_of(secret)) for name, secret in secrets if secret)

    def of(self, shown: bytes) -> str | None:
        """Return whose token it is, None for an unknown one.

        Every secret is compared each time, so the time taken reveals nothing.
        """
        found: str | None = None
        digest = digest_of(shown)
        for name, secret in self._digests:
            if hmac.compare_digest(digest, secret):
                found = name
        return found
