"""The command `sidecar`, which is also `python -m sidecar`.

A voice worker does not need it: without the extra `server`, it prints what to
install and exits.
"""

import sys
from importlib.util import find_spec
from typing import Final

SERVER_MODULES: Final = (
    *("apsw", "letta_client", "phonenumbers", "prometheus_client", "pydantic_settings", "rich"),
    *("starlette", "structlog", "typer", "uvicorn", "uvloop"),
)
"""What the extra `server` installs, by import names."""
_LEFT_OUT: Final = (
    "sidecar: only the voice worker's part is installed here; for the sidecar itself:"
    " pip install 'letta-voice-sidecar[server]'\n"
)


def main() -> None:
    """Run the command line and exit; with code 2 where the sidecar's packages are not installed."""
    if not all(map(find_spec, SERVER_MODULES)):
        sys.stderr.write(_LEFT_OUT)
        sys.exit(2)
    from sidecar.cli import main as run  # noqa: PLC0415 - it imports the above

    run()


if __name__ == "__main__":
    main()
