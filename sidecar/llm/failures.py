"""What the error of a failed run says about its request. Pure; the error's words go no further.

A model that cannot be reached may work tomorrow. One that answers that the request is too long,
or malformed, gives the same answer to the same request for ever.
"""

import re
from typing import Final

_TOO_LARGE: Final = re.compile(
    r"context[_ ]window[_ ](exceeded|overflow)|context[_ ]length[_ ]exceeded"
    r"|maximum[_ ]context[_ ]length|exceeds?[^.]{0,40}context[_ ](window|length|size|limit)"
    r"|greater than the context length|context the overflows"
    r"|(prompt|input|request)( is)? too (long|large)|input token count[^.]{0,40}exceeds"
    r"|reduce the length of (the|your) (messages|prompt|input)|too many (input )?tokens:"
    r"|must have less than \d+ tokens|tokens[^.]{0,40}must be <=",
    re.IGNORECASE,
)
_INVALID: Final = re.compile(
    r"\binvalid_argument\b|\binvalid_request(_error)?\b|\bcontent_policy_violation\b",
    re.IGNORECASE,
)


def says_too_large(words: str) -> bool:
    """Return whether a run failed because its model takes no request of this length."""
    return bool(_TOO_LARGE.search(words))


def says_invalid(words: str) -> bool:
    """Return whether a run failed because its model will never take this request."""
    return bool(_INVALID.search(words))
