"""The voice worker of `sidecar run`: a separate process that is kept running."""

import contextlib
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Protocol

import anyio
import anyio.abc

from sidecar.config.load import for_a_worker
from sidecar.config.settings import Settings

WORKER_STOP_S = 15.0
GROUP_LOOK_S = 1.0


class Restarting(Protocol):
    """A parent that starts the sidecar again when it is killed; `sidecar.cli.restart`."""

    @property
    def page_token(self) -> str:
        """The token that admits the page."""
        ...

    @property
    def earlier_groups(self) -> Sequence[int]:
        """Process groups of killed predecessors in which something still runs."""
        ...

    def came_up(self) -> None:
        """Tell the parent that the sidecar serves."""
        ...


def worker_part(
    worker: Path, settings: Settings, parent: Restarting | None
) -> Callable[[anyio.Event], Awaitable[None]]:
    """Return a part that keeps the voice worker running as a separate process.

    When the drain begins, the worker is told to finish its calls and take no new ones. A worker
    that has outlived a killed predecessor of this process goes on, and no other is started before
    it ends.
    """

    async def run(stopping: anyio.Event) -> None:
        for group in parent.earlier_groups if parent else ():
            await _outlived(group, stopping)
        if stopping.is_set():
            await anyio.sleep_forever()
        env = for_a_worker(os.environ)
        env.setdefault("SIDECAR_LINK_URL", f"ws://127.0.0.1:{settings.port}/link")
        # Not `start`: it refuses calls above 0.7 of the CPU, which a small machine reaches when it
        # loads models.
        command = [sys.executable, str(worker), "dev", "--no-reload", "--log-level", "info"]
        async with await anyio.open_process(command, env=env, stdout=None, stderr=None) as process:
            try:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(_terminate_when, stopping, process)
                    await process.wait()
                    tasks.cancel_scope.cancel()
                if stopping.is_set():
                    await anyio.sleep_forever()  # it ended because of the drain: don't restart it
            finally:
                with anyio.CancelScope(shield=True):
                    await _stop(process)

    return run


async def _outlived(group: int, stopping: anyio.Event) -> None:
    """Wait until no process of a group is left; when the drain begins, tell the group to end."""
    signalled = False
    with contextlib.suppress(OSError):  # ProcessLookupError: all its processes are gone
        while True:
            os.killpg(group, signal.SIGTERM if stopping.is_set() and not signalled else 0)
            signalled = stopping.is_set()
            with anyio.move_on_after(None if signalled else GROUP_LOOK_S):
                await (anyio.sleep(GROUP_LOOK_S) if signalled else stopping.wait())


async def _terminate_when(stopping: anyio.Event, process: anyio.abc.Process) -> None:
    await stopping.wait()
    process.terminate()


async def _stop(process: anyio.abc.Process) -> None:
    if process.returncode is None:
        process.terminate()
        with anyio.move_on_after(WORKER_STOP_S):
            await process.wait()
    if process.returncode is None:
        process.kill()
