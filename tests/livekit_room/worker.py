"""The unmodified voice worker as a process, registered at the stand-in server."""

import json
import os
import signal
import sys
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import psutil
from anyio.abc import Process

from tests.livekit_room.server import API_KEY, API_SECRET, LiveKitServer

ROOT = Path(__file__).parents[2]


@dataclass
class VoiceWorker:
    """A running worker.

    Attributes:
        process: The worker's own process; each job is a child process of it.
        scripts: The directory with the scripts of rooms and the notes of their prompts.
        spool_dir: Its spool.
        log: Its output.
    """

    process: Process
    scripts: Path
    spool_dir: Path
    log: Path

    def will_hear(self, room: str, *lines: str) -> None:
        """Write what the caller of a room will say."""
        (self.scripts / f"{room}.json").write_text(json.dumps(lines))

    def prompts(self, room: str) -> list[list[dict[str, Any]]]:
        """Return every prompt that the model of a room got, in order."""
        notes = self.scripts / f"{room}.prompts.jsonl"
        return (
            [json.loads(line) for line in notes.read_text().splitlines()] if notes.exists() else []
        )

    async def kill(self) -> None:
        """Kill it and all of its jobs at once, as `kill -9` does."""
        jobs = psutil.Process(self.process.pid).children(recursive=True)
        for process in (*jobs, self.process):
            process.kill()
        await self.process.wait()
        await anyio.to_thread.run_sync(psutil.wait_procs, jobs, 10)

    async def stop(self, budget_s: float = 60.0) -> int:
        """Send SIGTERM, as an orchestrator does; returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        with anyio.fail_after(budget_s):
            return await self.process.wait()


@asynccontextmanager
async def voice_worker(
    server: LiveKitServer,
    link_url: str,
    directory: Path,
    *,
    parts: str = "scripted",
    python: Path = Path(sys.executable),
    program: Path = ROOT / "voice_worker.py",
    env: Mapping[str, str] | None = None,
) -> AsyncGenerator[VoiceWorker]:
    """Run `voice_worker.py dev` until the context ends.

    Args:
        server: The server that it registers at.
        link_url: The link of its sidecar.
        directory: For its scripts, spool and log; `data` in it is the sidecar's.
        parts: A function of `tests.livekit_room.parts`.
        python: The interpreter of its environment.
        program: The worker's file; it can import the files beside it.
        env: Further environment variables.
    """
    scripts, spool_dir, log = directory / "scripts", directory / "spool", directory / "worker.log"
    scripts.mkdir(parents=True, exist_ok=True)
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("LIVEKIT", "SIDECAR", "VOICE", "LLM", "OPENAI", "LETTA"))
    }
    environ = {
        **inherited,
        "LIVEKIT_URL": server.url,
        "LIVEKIT_API_KEY": API_KEY,
        "LIVEKIT_API_SECRET": API_SECRET,
        "SIDECAR_LINK_URL": link_url,
        "SIDECAR_DATA_DIR": str(directory / "data"),  # the token is there
        "SIDECAR_SPOOL_DIR": str(spool_dir),
        "VOICE_PARTS": f"tests.livekit_room.parts:{parts}",
        "VOICE_SCRIPTS": str(scripts),
        "OMP_NUM_THREADS": "1",
        **(env or {}),
    }
    others = list(server.dispatcher.workers)
    with log.open("ab") as output:
        process = await anyio.open_process(
            [str(python), program.name, "dev", "--no-reload"],
            cwd=program.parent,
            env=environ,
            stdin=None,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    worker = VoiceWorker(process, scripts, spool_dir, log)
    try:
        await server.dispatcher.until_registered(beside=others)
        yield worker
    finally:
        with anyio.CancelScope(shield=True):
            if process.returncode is None:
                with anyio.move_on_after(15):
                    await worker.stop()
            if process.returncode is None:
                await worker.kill()
