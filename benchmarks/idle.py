"""What a sidecar costs when it has nothing to do."""

import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import psutil

from benchmarks.figures import Figures
from benchmarks.processes import LettaProcess, sidecar

SETTLE_S = 3.0
WATCHED_S = 10.0


def measure(quick: bool) -> Figures:
    """Return `rss_mb` and `cpu_percent` (of one core) of a sidecar on each kind of Letta.

    Both sidecars are watched at the same time, after they have been up for `SETTLE_S`.
    """
    watched_s = 1.0 if quick else WATCHED_S
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        letta = stack.enter_context(LettaProcess())
        watched = {
            "embedded": stack.enter_context(sidecar(directory / "embedded", None)),
            "rest": stack.enter_context(sidecar(directory / "rest", letta)),
        }
        time.sleep(SETTLE_S)
        processes = {name: psutil.Process(one.pid) for name, one in watched.items()}
        for process in processes.values():
            process.cpu_percent()
        time.sleep(watched_s)
        return {
            name: {
                "rss_mb": round(process.memory_info().rss / 1e6, 1),
                "cpu_percent": round(process.cpu_percent(), 2),
            }
            for name, process in processes.items()
        }
