"""The Lettas that the kill loop runs against, and the faults that each can have."""

import json
import os
import random
import re
import signal
import socket
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import anyio
import anyio.lowlevel
from typing_extensions import override

from sidecar.letta.app_server.history import text_of, trace_of
from sidecar.letta.app_server.letta import AppServerLetta
from sidecar.letta.app_server.socket import Sockets
from sidecar.letta.port import Post
from tests.app_server.stack import AppServerStack
from tests.chaos.ledger import lessons_in
from tests.letta_server.stack import LettaStack
from tests.ports import free_port
from tests.sidecar_process import warm
from tests.warm import Warm, WarmProcess

ROOT = Path(__file__).parents[2]
START_S = 90.0
FREEZE_S = 1.5


class Stuck(Exception):
    """Something that had to happen did not."""


def start(
    program: Sequence[str], log: Path, env: Mapping[str, str], *, imported: Warm | None = None
) -> WarmProcess:
    """Start a module with its arguments, warm; its output is appended to `log`.

    Args:
        program: The module, and its arguments.
        log: Where it writes.
        env: Its whole environment.
        imported: Starts it; None: what has imported this checkout.
    """
    with log.open("ab") as out:
        return (imported or warm()).start(program, stdout=out, stderr=out, cwd=ROOT, env=env)


class Letta(Protocol):
    """One Letta under test."""

    moods: Sequence[str]
    env: Mapping[str, str]
    """The sidecar's settings for it."""
    recover_s: float = 900.0
    """How long delivery may take once all faults are over."""

    def start(self) -> None:
        """Start it; returns when it answers."""
        ...

    def become(self, mood: str, dice: random.Random) -> None:
        """Change to one of its moods, from any other."""
        ...

    def messages(self) -> list[tuple[str, str]]:
        """Return (conversation, text) of each post, in the order of each conversation."""
        ...

    def lessons(self) -> list[str] | None:
        """Return the calls in its agents' memory; None if the workers don't teach it."""
        return None

    def stop(self) -> None:
        """Stop it."""
        ...


WELL: Mapping[str, Any] = {
    "reads": {"latency_s": 0.0, "jitter_s": 0.0, "chances": {}},
    "posts": {"latency_s": 0.0, "jitter_s": 0.0, "chances": {}},
}
SLOW: Mapping[str, Any] = {
    "reads": {"latency_s": 0.0, "jitter_s": 0.3, "chances": {}},
    # A delayed post lands long after its client has gone, and no look-up finds it until then. That
    # is well within the horizon, even if Letta is frozen as well.
    "posts": {"latency_s": 0.0, "jitter_s": 1.0, "chances": {"delayed": 0.25, "late": 0.25}},
    "late_s": 2.5,
}
BELATED: Mapping[str, Any] = {
    "reads": WELL["reads"],
    "posts": {"latency_s": 0.0, "jitter_s": 0.0, "chances": {"delayed": 0.5}},
    "late_s": 2.5,
}
DOWN: Mapping[str, Any] = {
    "reads": {"latency_s": 0.0, "jitter_s": 0.0, "chances": {"unavailable": 1.0}},
    "posts": {"latency_s": 0.0, "jitter_s": 0.0, "chances": {"unavailable": 1.0}},
}
LYING: Mapping[str, Any] = {
    "reads": {
        "latency_s": 0.0,
        "jitter_s": 0.05,
        "chances": {"broken": 0.1, "unavailable": 0.1, "cut_before": 0.1, "empty": 0.1},
    },
    "posts": {
        "latency_s": 0.0,
        "jitter_s": 0.2,
        "chances": {
            "broken_after": 0.15,
            "cut_after": 0.15,
            "stream_error": 0.1,
            "unavailable": 0.1,
            "broken": 0.05,
            "gateway": 0.05,
            "busy": 0.05,
            "late": 0.05,
            "mute": 0.05,
            "cut_before": 0.05,
        },
    },
}


class StandIn(Letta):
    """The stand-in, which stores a post twice if it gets it twice.

    Args:
        directory: For its log and its file.
        moods: It is in one of these at a time.
    """

    _SCRIPTS: Mapping[str, Mapping[str, Any]] = {
        "well": WELL,
        "slow": SLOW,
        "belated": BELATED,
        "down": DOWN,
        "lying": LYING,
    }

    def __init__(
        self,
        directory: Path,
        moods: Sequence[str] = (
            "well",
            "slow",
            "slow",
            "down",
            "lying",
            "lying",
            "frozen",
            "restarted",
        ),
    ) -> None:
        self.moods = moods
        self._directory = directory
        self._port = free_port()
        self._process: WarmProcess | None = None
        self._frozen = False
        self.env = {
            "LETTA_BASE_URL": f"http://127.0.0.1:{self._port}",
            "SIDECAR_POST_TIMEOUT_S": "1.5",
            "SIDECAR_READ_TIMEOUT_S": "1.0",
        }

    @override
    def start(self) -> None:
        command = ["sidecar.testing.letta_server", "--no-dedupe"]
        options = ["--port", str(self._port), "--db", str(self._directory / "letta.jsonl")]
        log = self._directory / "letta.log"
        self._process = start([*command, *options, "--delay-ms", "20"], log, os.environ)
        wait_for_port(self._port)

    @override
    def become(self, mood: str, dice: random.Random) -> None:
        assert self._process is not None
        if self._frozen:
            self._process.send_signal(signal.SIGCONT)
            self._frozen = False
        if mood == "frozen":
            self._process.send_signal(signal.SIGSTOP)
            self._frozen = True
        elif mood == "restarted":
            self.stop()
            self.start()
        else:
            script = {**self._SCRIPTS[mood], "seed": dice.randrange(1 << 30)}
            ask(f"{self.env['LETTA_BASE_URL']}/_ctl", json.dumps(script).encode())

    @override
    def messages(self) -> list[tuple[str, str]]:
        if self._frozen:
            return []
        messages = ask(f"{self.env['LETTA_BASE_URL']}/_messages")
        return [(message["conversation"], message["text"]) for message in messages]

    @override
    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()


class RealServer(Letta):
    """The real Letta server, slow or frozen at times; it is not killed.

    A run that was at work when the server died stays active forever, and look-ups treat it as
    running for minutes, in which the loop could not go on. That case has a separate test.
    """

    moods = ("well", "slow", "frozen")
    _PAGE = 100

    def __init__(self, directory: Path) -> None:
        self._stack = LettaStack(directory / "letta", redis=True, password="a password for tests")
        self._frozen = False
        self.env = {
            "LETTA_BASE_URL": self._stack.base_url,
            "LETTA_API_KEY": self._stack.api_key,
            "SIDECAR_POST_TIMEOUT_S": "8",
            "SIDECAR_READ_TIMEOUT_S": "4",
            "CHAOS_TURN_EVERY_S": "0.5",
        }

    @override
    def start(self) -> None:
        self._stack.start()

    @override
    def become(self, mood: str, dice: random.Random) -> None:
        if self._frozen:
            self._stack.resume_letta()
            self._frozen = False
        if mood == "frozen":
            self._stack.pause_letta()
            self._frozen = True
        else:
            self._stack.control_llm(delay_s=dice.uniform(0.5, 4.0) if mood == "slow" else 0.0)

    @override
    def messages(self) -> list[tuple[str, str]]:
        return [
            (conversation["id"], str(message["content"]))
            for agent in self._all("/v1/agents/")
            for conversation in self._all("/v1/conversations/", agent_id=agent["id"])
            for message in self._all(f"/v1/conversations/{conversation['id']}/messages")
            if message["message_type"] == "user_message"
        ]

    def _all(self, path: str, **query: str) -> list[dict[str, Any]]:
        """Return every page of a list, oldest first."""
        found: list[dict[str, Any]] = []
        while True:
            wanted = {"limit": str(self._PAGE), "order": "asc", **query}
            if found:
                wanted["after"] = found[-1]["id"]
            url = f"{self._stack.base_url}{path}?{urllib.parse.urlencode(wanted)}"
            page = ask(url, key=self._stack.api_key)
            found += page
            if len(page) < self._PAGE:
                return found

    @override
    def stop(self) -> None:
        self._stack.stop()


class AppServer(Letta):
    """The real App Server: slow, frozen, or killed and started again at times.

    Its workers teach it, so that what it learned is judged as well as what it got. A message counts
    in the conversation where it was digested, and twice if it was digested in two. If no history
    shows that it was digested (the server keeps the end of an aborted turn only in memory), it
    counts wherever it is stored. `cut_off` is the number of other copies, in conversations no
    longer used.
    """

    moods = ("well", "well", "slow", "slow", "frozen", "killed")

    def __init__(self, directory: Path) -> None:
        self._stack = AppServerStack(directory / "app-server")
        self._frozen = False
        self.cut_off = 0
        self.env = {
            "LETTA_APP_SERVER_URL": self._stack.url,
            "LETTA_APP_SERVER_TOKEN": self._stack.token,
            "SIDECAR_POST_TIMEOUT_S": "15",
            "SIDECAR_READ_TIMEOUT_S": "8",
            "SIDECAR_POST_MAX_AGE_S": "3",
            "SIDECAR_POST_MAX_TURNS": "12",
            # A post takes it half a second or more of CPU time.
            "SIDECAR_POST_CONCURRENCY": "3",
            "CHAOS_TURN_EVERY_S": "1.5",
            "CHAOS_TEACH": "1",
        }

    @override
    def start(self) -> None:
        self._stack.start()

    @override
    def become(self, mood: str, dice: random.Random) -> None:
        if self._frozen:
            self._stack.resume_server()
            self._frozen = False
        if mood == "frozen":
            self._stack.pause_server()
            self._frozen = True
        elif mood == "killed":
            self._stack.kill_server()
            self._stack.start_server()
        else:
            self._stack.control_llm(delay_s=dice.uniform(0.3, 1.5) if mood == "slow" else 0.0)

    @override
    def messages(self) -> list[tuple[str, str]]:
        return anyio.run(self._messages)

    @override
    def lessons(self) -> list[str]:
        return anyio.run(self._lessons)

    async def _messages(self) -> list[tuple[str, str]]:
        copies: list[_Copy] = []
        sockets = Sockets(self._stack.url, self._stack.token, timeout_s=20.0)
        async with _closing(sockets), sockets.lend() as socket:
            for agent in (await socket.ask("agent_list", query={"limit": 1000}))["agents"]:
                query = {"agent_id": agent["id"], "limit": 1000}
                answer = await socket.ask("conversation_list", query=query)
                for conversation in answer["conversations"]:
                    listed = await socket.ask(
                        "conversation_messages_list",
                        conversation_id=conversation["id"],
                        query=query,
                    )
                    copies += _copies(conversation["id"], listed["messages"][::-1])
        digested = {copy.batch_id for copy in copies if copy.digested}
        counted = [copy for copy in copies if copy.digested or copy.batch_id not in digested]
        self.cut_off = len(copies) - len(counted)
        return [(copy.conversation, copy.text) for copy in sorted(counted)]

    async def _lessons(self) -> list[str]:
        letta = AppServerLetta(self._stack.url, self._stack.token, read_timeout_s=20.0)
        async with _closing(letta):
            found = await letta.find_agents(("voice-sidecar",))
            read = [await letta.read_blocks(agent.agent_id) for agent in found]
        return [call for blocks in read for b in blocks for call in lessons_in(b.value)]

    @override
    def stop(self) -> None:
        if self._frozen:
            self._stack.resume_server()
        self._stack.stop()


@asynccontextmanager
async def _closing(open_still: Sockets | AppServerLetta) -> AsyncGenerator[None]:
    """Close it, and give the event loop a chance to close its sockets."""
    try:
        yield
    finally:
        await open_still.aclose()
        await anyio.lowlevel.checkpoint()


_BATCH = re.compile(r'<transcript batch="([0-9a-f-]+)"')


@dataclass(frozen=True, slots=True, order=True)
class _Copy:
    """One stored message of a batch, ordered by when it was stored."""

    date: str
    conversation: str
    text: str
    batch_id: str
    digested: bool


def _copies(conversation: str, messages: Sequence[Mapping[str, Any]]) -> Iterator[_Copy]:
    """Yield the copies of batches in a conversation's messages, which come oldest first."""
    for message in messages:
        text = text_of(message) if message["message_type"] == "user_message" else ""
        if (batch := _BATCH.search(text)) is not None:
            trace = trace_of(Post(batch[1], "", conversation, text, 0.0), messages)
            yield _Copy(message["date"], conversation, text, batch[1], trace.digested)


def ask(url: str, body: bytes | None = None, *, key: str = "") -> Any:
    """Return the JSON that answers a request."""
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    request = urllib.request.Request(url, data=body, headers=headers)
    with urllib.request.urlopen(request, timeout=20) as answer:
        return json.load(answer)


def answers(port: int) -> bool:
    """Whether something listens on a port."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
    except OSError:
        return False
    return True


def wait_for_port(port: int) -> None:
    """Return when something listens on a port.

    Raises:
        Stuck: nothing listened in time.
    """
    deadline = time.monotonic() + START_S
    while not answers(port):
        if time.monotonic() > deadline:
            raise Stuck(f"nothing listens on {port}")
        threading.Event().wait(0.05)
