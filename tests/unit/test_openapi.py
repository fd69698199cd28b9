"""The published OpenAPI names exactly the existing routes."""

import json
from typing import Any

import pytest
from starlette.routing import Route

from sidecar.app.routes import OPENAPI, routes
from sidecar.channels.admin import Admin
from sidecar.channels.link.server import LinkServer
from sidecar.channels.vapi.routes import Vapi
from sidecar.http.metrics import Metrics

pytestmark = pytest.mark.unit


def test_every_route_is_in_it_and_no_other() -> None:
    """Paths and methods of the document are those that the parts register."""
    nothing: Any = None
    link = LinkServer.__new__(LinkServer)
    extra = [
        *Vapi(nothing, nothing, nothing, nothing, nothing).routes(),
        *Metrics(nothing).routes(),
        *Admin(nothing, commands=nothing, forget=nothing, clock=nothing).routes(),
    ]
    served = {
        (route.path, method.lower())
        for route in routes(link, nothing, extra).routes
        if isinstance(route, Route)
        for method in (route.methods or set()) - {"HEAD"}
    }
    document = json.loads(OPENAPI.read_bytes())
    items = document["components"]["pathItems"]
    named = {
        (path, method)
        for path, item in document["paths"].items()
        for method in (items[item["$ref"].rpartition("/")[2]] if "$ref" in item else item)
        if method != "summary"
    }
    assert served == named
