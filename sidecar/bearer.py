"""The token of an `Authorization: Bearer …` header: how it is read and compared, at every door. Pure.

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


def is_secret(shown: bytes, secret: bytes) -> bool:
    """Whether a token is the secret; takes as long for any token of its length. Empty ones are not."""
    same = hmac.compare_digest(hashlib.sha256(shown).digest(), hashlib.sha256(secret).digest())
    return same and bool(secret)


def _token(value: bytes, *, bare: bool) -> bytes:
    value = value.strip(_BLANKS)
    scheme, _, token = value.partition(b" ")
    token = token.strip(_BLANKS)
    if scheme.lower() == b"bearer" and token:
        return token
    return value if bare else b""
