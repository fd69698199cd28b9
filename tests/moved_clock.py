"""The sidecar on a machine whose clock is set while it runs: `python -m tests.moved_clock run`.

The file that CLOCK_FILE names holds by how many seconds the clock is ahead.
"""

import os
import time
from pathlib import Path

_AHEAD = Path(os.environ.pop("CLOCK_FILE", "/nonexistent"))
_true = time.time


def _moved() -> float:
    return _true() + float(_AHEAD.read_text())


if __name__ == "__main__":
    time.time = _moved  # before the sidecar imports it
    from sidecar.cli import main

    main()
