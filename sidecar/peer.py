"""Who is at the other end of a connection, as far as the connection shows it. Pure."""

import ipaddress
import re
from collections.abc import Mapping
from typing import Final

_FORWARDED: Final = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip", "via")
_HOST: Final = re.compile(r"(?:\[([^\]]*)\]|([^:\[\]]*))(?::[0-9]*)?")
"""A `Host` header, RFC 9110: an IPv6 address in brackets, or a name or IPv4 address; a port."""


def is_loopback(address: str) -> bool:
    """Whether an address, or the name `localhost`, is this machine's own."""
    if address == "localhost":
        return True
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    mapped = getattr(found, "ipv4_mapped", None)
    return bool((mapped or found).is_loopback)


def forwarded(headers: Mapping[str, str]) -> bool:
    """Whether a proxy or tunnel has marked the request as somebody else's."""
    return any(name in headers for name in _FORWARDED)


def from_this_machine(headers: Mapping[str, str], client: str) -> bool:
    """Whether a request comes directly from a program on this machine.

    Promises: False for a browser's page (`Origin`), for a host name that is not loopback's (DNS
    rebinding, tunnels), for a peer elsewhere, and for a request marked as forwarded. Does not
    promise to see a forwarder that leaves no mark and rewrites `Host`: behind one, set secrets.

    Args:
        headers: By lower-case name.
        client: The peer's address; empty if it has none.
    """
    if forwarded(headers) or "origin" in headers:
        return False
    named = _HOST.fullmatch(headers.get("host", "").lower())
    host = named[1] or named[2] if named else ""
    return is_loopback(host) and (not client or is_loopback(client))
