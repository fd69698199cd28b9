"""Who holds a bearer token. How one is read from a request is `sidecar.bearer`. Pure."""

from collections.abc import Iterable

from sidecar.bearer import is_secret


class Holders:
    """Names by the secret that each one shows.

    Args:
        secrets: Name and secret; a name may have several. An empty secret is nobody's.
    """

    def __init__(self, secrets: Iterable[tuple[str, bytes]]) -> None:
        self._secrets = tuple(secrets)

    def of(self, shown: bytes) -> str | None:
        """Return whose token it is, None for nobody's. Each secret is compared: the time says nothing."""
        found: str | None = None
        for name, secret in self._secrets:
            if is_secret(shown, secret):
                found = name
        return found
