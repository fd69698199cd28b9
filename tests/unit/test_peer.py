"""Who is at the other end of a connection."""

from collections.abc import Mapping

import pytest

from sidecar.peer import from_this_machine

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("headers", "client", "direct"),
    [
        ({"host": "127.0.0.1:8377"}, "127.0.0.1", True),
        ({"host": "[::1]:8377"}, "::1", True),
        ({"host": "localhost"}, "127.0.0.1", True),
        ({"host": "LocalHost:80"}, "127.0.0.1", True),
        ({"host": "[::1]"}, "::1", True),
        ({"host": "[::1].example.com"}, "::1", False),
        ({"host": "127.0.0.1:80:90"}, "127.0.0.1", False),
        ({"host": "abc.ngrok.app"}, "127.0.0.1", False),
        ({"host": "localhost", "x-forwarded-for": "203.0.113.9"}, "127.0.0.1", False),
        ({"host": "localhost", "origin": "null"}, "127.0.0.1", False),
        ({"host": "localhost"}, "203.0.113.9", False),
        ({}, "127.0.0.1", False),
    ],
)
def test_a_direct_request_of_this_machine(
    headers: Mapping[str, str], client: str, direct: bool
) -> None:
    """A tunnel, a proxy, a page in a browser or another host is no direct request of ours."""
    assert from_this_machine(headers, client) is direct
