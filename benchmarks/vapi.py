"""VAPI's model endpoint: time to the first word through the sidecar, compared with the model alone.

A stand-in for the model's server says its first word after 0.3 s and another every 20 ms. Its reply
is always the same, so that its cost does not depend on the prompt.

As many calls as there are streams ask at the same moment: by turns directly, through a proxy that
does nothing (`bare_proxy`), and through the sidecar. All prompts have the same length; the sidecar
adds the memory to its own. Each call has its own caller and agent, and was announced by a
status-update, as VAPI does. Each round is the next turn of every call, so the journal stores the
turns that are settled since the round before.
"""

import json
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import anyio
import anyio.to_thread
import psutil

from benchmarks.cut import cut_streams
from benchmarks.figures import Figures, milliseconds, percentile
from benchmarks.processes import MEMORY, LettaProcess, sidecar
from tests.sidecar_process import SidecarProcess, eventually
from tests.vapi.model import Model

STREAMS = (1, 50, 200)
ROUNDS = {1: 20, 50: 6, 200: 5}
QUICK_ROUNDS = {1: 2, 50: 1, 200: 1}
CUTS, QUICK_CUTS = 200, 20
FIRST_S, EACH_S = 0.3, 0.02
REPLY = "There was once a small boat on a wide and quiet lake."
SYSTEM = {"role": "system", "content": "You are Ada."}
AS_LONG = {"role": "system", "content": (f"{MEMORY} " + "likes sailing and tea. " * 90)[:2_000]}
"""A text as long as the memory, for ways that add none."""


async def measure(quick: bool) -> Figures:
    """Return `ttft_ratio_p50` and `ttft_ratio_p99` by streams, and what a chunk and a cut cost."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stage = await anyio.to_thread.run_sync(opened, stack, directory)
        figures = await stage.measured(QUICK_ROUNDS if quick else ROUNDS)
        cuts = QUICK_CUTS if quick else CUTS
        cut_s = await cut_streams(stage.letta, stage.agent, directory / "cut", cuts)
    return figures | {
        "cancelled_upstream_closed_p50_ms": milliseconds(percentile(cut_s, 0.50)),
        "cancelled_upstream_closed_p99_ms": milliseconds(percentile(cut_s, 0.99)),
        "cancelled": len(cut_s),
    }


def opened(stack: ExitStack, directory: Path) -> "Stage":
    """Start the model's stand-in, a Letta with an agent per caller, the sidecar and bare proxy."""
    model = stack.enter_context(Model(say=REPLY))
    model.faults(first_token_delay_s=FIRST_S, token_delay_s=EACH_S)
    letta = stack.enter_context(LettaProcess())
    callers = {_number(s, i): letta.agent(f"caller {s}-{i}") for s in STREAMS for i in range(s)}
    agent_map = directory / "agents.json"
    agent_map.write_text(json.dumps(callers))
    process = stack.enter_context(
        sidecar(
            directory / "data",
            letta,
            SIDECAR_AGENT_MAP=str(agent_map),
            LLM_BASE_URL=f"{model.url}/v1",
            SIDECAR_VAPI_RATE_PER_S="5000",
        )
    )
    bare, bare_url = _bare(stack, f"{model.url}/v1")
    ways = {
        "direct": Way(f"{model.url}/v1/chat/completions"),
        "bare": Way(bare_url, psutil.Process(bare.pid)),
        "through": Way(
            f"{process.url}/vapi/chat/completions",
            psutil.Process(process.pid),
            memory=True,
            headers=process.bearer,
        ),
    }
    return Stage(model, letta, process, callers[_number(1, 0)], ways)


class Way:
    """A way to the model, and its figures.

    Args:
        url: Of the chat completions.
        process: Its CPU time is measured.
        memory: It adds the memory itself.
        headers: Sent with each request.
    """

    def __init__(
        self,
        url: str,
        process: psutil.Process | None = None,
        *,
        memory: bool = False,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.url = url
        self.headers = dict(headers or {})
        self.memory = memory
        self.first_s: list[float] = []
        self.chunks = 0
        self.cpu_s = 0.0
        self._process = process

    async def asked(self, session: aiohttp.ClientSession, streams: int, number: int) -> None:
        """Run turn `number` of `streams` calls at once, and add up the figures."""
        before_s = self._cpu_s()
        took = await _round(session, self, streams, number)
        self.cpu_s += self._cpu_s() - before_s
        self.chunks += sum(chunks for _, chunks in took)
        self.first_s += [first_s for first_s, _ in took]

    def _cpu_s(self) -> float:
        return sum(self._process.cpu_times()[:2]) if self._process else 0.0


class Stage(NamedTuple):
    """All that runs. `agent` is one of `letta`'s."""

    model: Model
    letta: LettaProcess
    process: SidecarProcess
    agent: str
    ways: dict[str, Way]

    async def measured(self, rounds: Mapping[int, int]) -> Figures:
        """Return the ratios of every way except the direct one, and what its chunks cost."""
        ways = self.ways
        proxies = {key: "" if key == "through" else f"{key}_" for key in ways if key != "direct"}
        figures: Figures = {
            f"{proxies[key]}ttft_ratio_{name}": {} for key in proxies for name in ("p50", "p99")
        }
        rows: dict[str, Figures] = {}
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=60)
        async with aiohttp.ClientSession(connector=connector) as session:
            for streams in STREAMS:
                await _announce(session, self.process, streams)
                for way in ways.values():
                    await _round(session, way, streams, 0)
                    way.first_s = []
                for number in range(1, rounds[streams] + 1):
                    for way in ways.values():
                        await way.asked(session, streams, number)
                row: Figures = {"samples": len(ways["through"].first_s)}
                for name, share in (("p50", 0.5), ("p99", 0.99)):
                    first = {key: percentile(way.first_s, share) for key, way in ways.items()}
                    row |= {f"{key}_{name}_ms": milliseconds(value) for key, value in first.items()}
                    for key, prefix in proxies.items():
                        ratio = round(first[key] / first["direct"], 3)
                        figures[f"{prefix}ttft_ratio_{name}"][str(streams)] = ratio
                rows[f"{streams} streams"] = row
        cpu = {
            f"{prefix}cpu_us_per_chunk": round(ways[key].cpu_s / ways[key].chunks * 1e6, 1)
            for key, prefix in proxies.items()
        }
        return {**figures, **rows, **cpu}


async def _announce(session: aiohttp.ClientSession, process: SidecarProcess, streams: int) -> None:
    """Report that each call has begun, as VAPI does before it asks the model."""
    for index in range(streams):
        message = {"type": "status-update", "status": "in-progress", "call": _call(streams, index)}
        url = f"{process.url}/vapi/webhook"
        headers = process.bearer
        async with session.post(url, json={"message": message}, headers=headers) as answer:
            assert answer.status == 200


def _call(streams: int, index: int) -> dict[str, Any]:
    customer = {"number": _number(streams, index)}
    return {"id": f"call-{streams}-{index}", "type": "inboundPhoneCall", "customer": customer}


def _number(streams: int, index: int) -> str:
    return f"+1415{200 + streams:03}{index:04}"


def _messages(way: Way, number: int) -> list[dict[str, str]]:
    """Return the history of a call at its turn `number`."""
    said = [SYSTEM] if way.memory else [SYSTEM, AS_LONG]
    for turn in range(number):
        said += [
            {"role": "user", "content": f"Tell me something long, for the {turn}th time."},
            {"role": "assistant", "content": f"there was a boat on a lake, number {turn}"},
        ]
    return [*said, {"role": "user", "content": f"Tell me something long, for the {number}th time."}]


async def _round(
    session: aiohttp.ClientSession, way: Way, streams: int, number: int
) -> Sequence[tuple[float, int]]:
    """Return the seconds to the first word, and the chunks, of each stream."""
    took: list[tuple[float, int]] = []
    messages = _messages(way, number)

    async def one(index: int) -> None:
        body: dict[str, Any] = {"model": "demo", "stream": True, "messages": messages}
        if way.memory:
            body["call"] = _call(streams, index)
        began_s = time.perf_counter()
        first_s, chunks = 0.0, 0
        async with session.post(way.url, json=body, headers=way.headers) as response:
            async for line in response.content:
                if not line.startswith(b"data: {"):
                    continue
                chunks += 1
                if not first_s and b'"content": ""' not in line:
                    first_s = time.perf_counter() - began_s
        took.append((first_s, chunks))

    async with anyio.create_task_group() as tasks:
        for index in range(streams):
            tasks.start_soon(one, index)
    return took


def _bare(stack: ExitStack, model_url: str) -> tuple[subprocess.Popen[bytes], str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    command = [sys.executable, "-m", "benchmarks.bare_proxy"]
    process = subprocess.Popen([*command, "--port", str(port), "--model-url", model_url])
    stack.callback(process.wait, 10)
    stack.callback(process.terminate)
    url = f"http://127.0.0.1:{port}/chat/completions"
    body = json.dumps({"stream": False, "messages": [SYSTEM]}).encode()

    def up() -> bool:
        with suppress(urllib.error.URLError, OSError):
            asked = urllib.request.Request(url, body, {"Content-Type": "application/json"})
            with urllib.request.urlopen(asked, timeout=5) as answer:
                return answer.status == 200
        return False

    eventually(up)
    return process, url
