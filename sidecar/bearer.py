"""Reads and compares the token of an `Authorization: Bearer …` header, alike at every door. Pure.

Tokens are bytes, as they came: no encoding of a header is guessed.
"""

import hashlib
import hmac
from collections.abc import Iterable
from typing import Final, TypeAlias

RawHeaders: TypeAlias = Iterable[tuple[bytes, bytes]]
"""Name and value of each header of a request, as ASGI and aiohttp have them."""
_BLANKS: Final = b" \t"


def token_in(headers: RawHeaders, *, bare: bool = False) -> bytes:
    """Return the token that a request shows; empty if it shows none.

    The scheme's case and the number of blanks after it do not matter. Headers that show different
    tokens count as none: a proxy in between may have read another one of them.

    Args:
        headers: Of the request.
        bare: The value of a header without the scheme is a token as a whole.
    """
    shown = {
        _token(value, bare=bare) for name, value in headers if name.lower() == b"authorization"
    }
    return shown.pop() if len(shown) == 1 else b""


def digest_of(token: bytes) -> bytes:
    """Return a token's digest: tokens are compared by it, since all digests are equally long."""
    return hashlib.sha256(token).digest()


def is_secret(shown: bytes, secret: bytes) -> bool:
    """Return whether a token is the secret, in constant time for tokens of one length.

    No token is equal to an empty secret.
    """
    return hmac.compare_digest(digest_of(shown), digest_of(secret)) and bool(secret)


def _token(value: bytes, *, bare: bool) -> bytes:
    value = value.strip(_BLANKS)
    scheme, _, token = value.partition(b" ")
    token = token.strip(_BLANKS)
    if scheme.lower() == b"bearer" and token:
        return token
    return value if bare else b""
