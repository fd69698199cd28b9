"""Serve the classic Letta server on 127.0.0.1. Runs on the interpreter of `.letta-venv`.

Args: port.
"""

import sys

port = int(sys.argv[1])
sys.argv = ["letta"]

from letta.server.rest_api.app import start_server  # noqa: E402

start_server(port=port, host="127.0.0.1")
