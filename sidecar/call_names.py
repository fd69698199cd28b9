"""How a person names a call: by its key, its id on the channel, or a beginning. Pure.

A key is long (a tenant, and up to 256 characters of some provider's id), so tables show a short id:
8 hex digits over the key. It never changes, whatever other calls there are.
"""

import hashlib
from collections.abc import Iterable, Sequence

_SHORT_CHARS = 8
_FEWEST_CHARS = 4
_SEVERAL = 5


def short_id(key: str) -> str:
    """Return the short id of a call: 8 hex digits, which depend on its key alone."""
    raw = key.encode("utf-8", "surrogatepass")
    return hashlib.sha256(raw).hexdigest()[:_SHORT_CHARS]


def calls_named(name: str, keys: Iterable[str]) -> list[str]:
    """Return the keys of the calls that a name fits; several if it is ambiguous.

    Args:
        name: A key or an id, which is tried first; or the first characters, at least 4, of a short
            id, an id or a key.
        keys: Of all calls.
    """
    known = [(key, key.partition("/")[2]) for key in keys]
    for exact in (
        [key for key, _ in known if key == name],
        [key for key, call_id in known if call_id == name],
    ):
        if exact:
            return exact
    if len(name) < _FEWEST_CHARS:
        return []
    return [
        key
        for key, call_id in known
        if key.startswith(name) or call_id.startswith(name) or short_id(key).startswith(name)
    ]


def several(keys: Sequence[str]) -> str:
    """Return the calls that an ambiguous name fits, each with the short id that tells it apart."""
    shown = [f"{short_id(key)} ({key})" for key in keys[:_SEVERAL]]
    more = len(keys) - len(shown)
    return ", ".join(shown) + (f", and {more} more" if more else "")
