"""The token of an `Authorization: Bearer …` header, read and compared alike at every door. Pure.

Bytes, as they came: what a header's bytes mean as text is nobody's to guess.
"""

import hashlib
import hmac
from collections.abc import Iterable
from typing import Final, TypeAlias

RawHeaders: TypeAlias = Iterable[tuple[bytes, bytes]]
"""Name and value of each header of a request, as ASGI and aiohttp have them."""
_BLANKS: Final = b" \t"


def token_in(headers: RawHeaders, *, bare: bool = False) -> bytes:
    """Return the token that a request shows; empty: none.

    The scheme's case and the number of blanks behind it count for nothing. Headers that show
    different tokens show none: what stands between may have read another one of them.

    Args:
        headers: Of the request.
        bare: A header of no such scheme is a token as it stands.
    """
    shown = {
        _token(value, bare=bare) for name, value in headers if name.lower() == b"authorization"
    }
    return shown.pop() if len(shown) == 1 else b""


def digest_of(token: bytes) -> bytes:
    """Return what tokens are compared by: equal for equal ones, and of one length for all."""
    return hashlib.sha256(token).digest()


def is_secret(shown: bytes, secret: bytes) -> bool:
    """Whether a token is the secret; takes as long for any token of its length.

    An empty secret is nobody's.
    """
    return hmac.compare_digest(digest_of(shown), digest_of(secret)) and bool(secret)


def _token(value: bytes, *, bare: bool) -> bytes:
    value = value.strip(_BLANKS)
    scheme, _, token = value.partition(b" ")
    token = token.strip(_BLANKS)
    if scheme.lower() == b"bearer" and token:
        return token
    return value if bare else b""
