"""A stand-in for a classic Letta server: the part of its REST wire that the sidecar speaks.

Run it as ``python -m sidecar.testing.letta_server --port N [--db FILE]``. Without a language
model it digests by waiting ``--delay-ms``; with ``--digest demo`` the demo model edits the blocks.
Its answers and their timing follow the source of letta 0.16.8: an otid posted in the background
joins the run it started before, even one that failed; a conversation is locked while a run is at
work (409); a message is listed after its run; two conversations of one agent lose edits when they
run at once. ``--no-dedupe`` switches the first of these off: what is posted twice is stored twice.
``--no-redis`` answers background posts with 503, as that server does without Redis.

Beside Letta's routes:

* ``POST /_ctl``: fields of `FaultScript`, merged into the one in force; answers with it.
* ``GET /_messages``: every message ever accepted, in order: conversation, otid, text, at_s.
* ``GET /_stats``: counts of requests, posts, messages, runs at work and drawn faults.
"""

import argparse
import contextlib
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import msgspec
from aiohttp import web

from sidecar.demo.model import DemoModel
from sidecar.letta.embedded.letta import digested
from sidecar.model import Block
from sidecar.testing.faults import FaultScript
from sidecar.testing.letta_routes import LettaStandIn, StandInOptions


async def demo_digest(system: str, blocks: Mapping[str, Block], text: str) -> Mapping[str, Block]:
    """Digest with the demo model."""
    return await digested(DemoModel(), system, blocks, text)


@asynccontextmanager
async def standing_in(
    options: StandInOptions,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    script: FaultScript | None = None,
) -> AsyncGenerator[tuple[str, LettaStandIn]]:
    """Serve a stand-in while the context is open.

    Args:
        options: How it behaves.
        host: To bind.
        port: To bind; 0 takes a free one.
        script: Its first faults.

    Yields:
        Its base URL, and the stand-in itself.
    """
    async with anyio.create_task_group() as tasks:
        stand_in = LettaStandIn(options, tasks, script or FaultScript())
        runner = web.AppRunner(
            stand_in.app(), access_log=None, handler_cancellation=True, shutdown_timeout=0.1
        )
        await runner.setup()
        try:
            await web.TCPSite(runner, host, port).start()
            bound = runner.addresses[0]
            yield f"http://{bound[0]}:{bound[1]}", stand_in
        finally:
            with anyio.CancelScope(shield=True):
                await runner.cleanup()
            tasks.cancel_scope.cancel()
            stand_in.state.close()


async def _serve(options: StandInOptions, host: str, port: int, script: FaultScript) -> None:
    async with standing_in(options, host=host, port=port, script=script):
        await anyio.sleep_forever()


def main() -> None:
    """Serve until a signal ends the process."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--db", type=Path, help="file of JSON lines to keep everything in")
    parser.add_argument("--digest", choices=["none", "demo"], default="none")
    parser.add_argument("--delay-ms", type=float, default=0.0)
    parser.add_argument("--no-dedupe", action="store_true")
    parser.add_argument("--no-redis", action="store_true")
    parser.add_argument("--password", default="")
    parser.add_argument("--faults", default="{}", help="a FaultScript as JSON")
    asked = parser.parse_args()
    options = StandInOptions(
        file=asked.db,
        digest=demo_digest if asked.digest == "demo" else None,
        delay_s=asked.delay_ms / 1000,
        dedupe=not asked.no_dedupe,
        redis=not asked.no_redis,
        password=asked.password,
    )
    script = msgspec.json.decode(asked.faults, type=FaultScript)
    with contextlib.suppress(KeyboardInterrupt):
        anyio.run(_serve, options, asked.host, asked.port, script)


if __name__ == "__main__":
    main()
