"""The loop that `sidecar run` serves on."""

import os
import subprocess
import sys

import pytest

from sidecar.app.loop import LOOKUPS

pytestmark = pytest.mark.unit

LOOKS_UP = """
import asyncio, os
from sidecar.app.loop import run

async def main():
    await asyncio.get_running_loop().getaddrinfo("localhost", 80)
    print(len(os.listdir("/proc/self/task")), type(asyncio.get_running_loop()).__module__)

run(main)
"""


def test_a_name_that_hangs_leaves_threads_for_others() -> None:
    """The loop looks up more names at a time than clients of the sidecar can have hanging."""
    env = {name: value for name, value in os.environ.items() if name != "UV_THREADPOOL_SIZE"}
    done = subprocess.run(
        [sys.executable, "-c", LOOKS_UP], env=env, capture_output=True, text=True, check=True
    )
    threads, module = done.stdout.split()
    assert module == "uvloop"
    assert int(threads) > 2 * LOOKUPS  # libuv gives lookups half of its threads
