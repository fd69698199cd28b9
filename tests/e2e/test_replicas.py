"""Several sidecars on one database, as their workers, callers and owners meet them."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import anyio
import pytest

from examples.vapi.play import Player
from sidecar.journal.postgres.reports import reports_of_database
from tests.chaos.lettas import StandIn
from tests.e2e.test_cli import Cli
from tests.e2e.test_link_server import CANARY, worker
from tests.e2e.test_vapi import SYSTEM, ask, body, spoken
from tests.fault_proxy import FaultProxy
from tests.postgres.server import PostgresServer
from tests.sidecar_process import SidecarProcess, eventually
from tests.vapi.model import Model

pytestmark = pytest.mark.e2e

RECORDED = Path(__file__).parents[2] / "examples" / "vapi" / "calls" / "first-call.json"
KEY, SECRET = "key-of-the-assistant-01", "secret-of-the-assistant-01"


@dataclass
class Fleet:
    """Two sidecars on one database and one Letta.

    Attributes:
        first: One of them.
        second: The other one.
        letta: Where both deliver.
        model: The language model of both.
        cli: Commands on the data directory of the first.
        url: Of the database.
    """

    first: SidecarProcess
    second: SidecarProcess
    letta: StandIn
    model: Model
    cli: Cli
    url: str

    def is_at_rest(self) -> bool:
        return self.first.is_at_rest() and self.second.is_at_rest()

    def texts(self, call: str) -> list[str]:
        """What the journal has of a call."""

        async def read() -> list[str]:
            async with reports_of_database(self.url) as reports:
                return [turn.text for turn in await reports.turns(f"default/{call}")]

        return anyio.run(read)


@pytest.fixture
def fleet(postgres: PostgresServer, letta: StandIn, tmp_path: Path) -> Iterator[Fleet]:
    url = postgres.emptied()
    with ExitStack() as stack:
        model = stack.enter_context(Model())
        env = {
            **letta.env,
            "SIDECAR_JOURNAL_URL": url,
            "SIDECAR_SECRET": "s" * 32,
            "SIDECAR_LINK_TOKEN": "token-of-all-replicas-1",
            "SIDECAR_ORPHAN_S": "5",
            "SIDECAR_VAPI_KEY": KEY,
            "SIDECAR_VAPI_SECRET": SECRET,
            "SIDECAR_VAPI_MODELS": "gpt-4o-mini",
            "LLM_BASE_URL": f"{model.url}/v1",
            "LLM_MODEL": "demo",
        }
        first, second = (
            stack.enter_context(SidecarProcess(tmp_path / name, env)) for name in ("one", "two")
        )
        yield Fleet(first, second, letta, model, Cli(tmp_path / "one", **env), url)
        for sidecar in (first, second):
            sidecar.stop()
            assert CANARY not in "".join(sidecar.log)


def test_a_call_goes_on_at_another_replica(fleet: Fleet) -> None:
    """When a worker's replica is killed, the other one takes its call, and all arrives once."""
    with worker(fleet.first) as peer:
        peer.open("c1", identity="ada")
        peer.turn("c1", "i1", text="first words")
        peer.until("ack")
        fleet.first.kill()
    with worker(fleet.second) as peer:
        peer.open("c1", identity="ada")
        peer.turn("c1", "i1", text="first words")
        peer.turn("c1", "i2", seq=2, text="more words")
        peer.until("ack")
        peer.send(type="call.close", call="c1", at_s=2.0)
    eventually(fleet.second.is_at_rest)
    assert fleet.texts("c1") == ["first words", "more words"]
    said = fleet.letta.messages()
    assert len({conversation for conversation, _ in said}) == 1
    assert [sum(word in text for _, text in said) for word in ("first words", "more words")] == [
        1,
        1,
    ]
    fleet.first.start()
    eventually(fleet.is_at_rest)


def test_what_a_dead_replica_had_is_delivered(fleet: Fleet) -> None:
    """The words of a call whose replica and worker are both gone are delivered by the other one."""
    with worker(fleet.first) as peer:
        peer.open("c1", identity="ada")
        peer.turn("c1", "i1")
        peer.until("ack")
        fleet.first.kill()
    eventually(fleet.second.is_at_rest)
    assert [text.count(CANARY) for _, text in fleet.letta.messages()] == [1]
    eventually(lambda: '"reason": "lost"' in "".join(fleet.second.log))
    fleet.first.start()


def test_a_caller_of_two_replicas_is_one(fleet: Fleet) -> None:
    """What a caller said in a call of one replica is in the memory of their call at the other."""
    with worker(fleet.first) as here, worker(fleet.second) as there:
        here.open("c1", identity="ada")
        here.turn("c1", "i1")
        here.until("ack")
        there.open("c2", identity="ada")
        while CANARY not in there.until("memory")["text"]:
            pass
        there.open("c3", identity="bob")
        frame = there.until("memory")
        while frame["call"] != "c3":
            frame = there.until("memory")
        assert CANARY not in frame["text"]


def test_requests_of_a_vapi_call_spread_over_replicas(fleet: Fleet) -> None:
    """A call whose requests and webhooks alternate between replicas has each turn once."""
    recorded = json.loads(RECORDED.read_text())
    texts: list[list[str]] = []
    ports = fleet.first.port, fleet.second.port
    for call, targets in (("alone", ports[:1]), ("spread", ports)):
        with FaultProxy(*targets) as between:
            player = Player(
                f"http://127.0.0.1:{between.port}",
                key=KEY,
                secret=SECRET,
                speed=0,
                say=lambda _: None,
            )
            heard = player.play(recorded, call_id=call)
            assert {one.status for one in heard} <= {200, 0}
        eventually(fleet.is_at_rest)
        texts.append(fleet.texts(call))
    assert texts[0] == texts[1] != []


def test_a_command_reaches_a_call_of_another_replica(fleet: Fleet) -> None:
    """What the owner asks at one replica is done in a call of the other one, once."""
    with worker(fleet.second) as peer:
        peer.open("c1", identity="ada")
        peer.turn("c1", "i1")
        peer.until("ack")
        fleet.cli.ok("calls", "guide", "c1", "Be brief.")
        assert peer.until("guidance")["text"] == "Be brief."
        fleet.cli.ok("calls", "say", "c1", "One moment.")
        assert peer.until("say")["text"] == "One moment."
        fleet.cli.ok("calls", "hang-up", "c1")
        peer.until("hang_up")
        refused = fleet.cli.run("calls", "hang-up", "c2")
        assert "no call c2 is live" in refused.stderr


def test_guidance_is_in_the_prompts_of_every_replica(fleet: Fleet) -> None:
    """A VAPI call whose requests reach both replicas follows guidance that one was given."""
    assert ask(fleet.first, body(call_id="v1"), key=KEY)[0] == 200
    assert ask(fleet.second, body(call_id="v1"), key=KEY)[0] == 200
    fleet.cli.ok("calls", "guide", "v1", "Speak like a pirate.")

    def guided(replica: SidecarProcess) -> bool:
        assert ask(replica, body(call_id="v1"), key=KEY)[0] == 200
        return "Speak like a pirate." in json.dumps(fleet.model.prompts()[-1])

    assert guided(fleet.first)
    eventually(lambda: guided(fleet.second))


def test_a_newer_request_at_another_replica_ends_an_older_one(fleet: Fleet) -> None:
    """When a caller goes on speaking, the reply that another replica waits for is given up."""
    said = {"role": "user", "content": "Hello"}
    further = [SYSTEM, said, {"role": "assistant", "content": "Yes?"}, said | {"content": "Wait"}]

    def given_up(call: str) -> bool:
        asked = len(fleet.model.prompts())
        with ThreadPoolExecutor(2) as callers:
            fleet.model.faults(hang=True)
            older = callers.submit(ask, fleet.first, body("Hello", call_id=call), key=KEY)
            eventually(lambda: len(fleet.model.prompts()) == asked + 1)
            newer = callers.submit(ask, fleet.second, body(call_id=call, messages=further), key=KEY)
            ended = older.result(20)
            fleet.model.faults(hang=False)
            assert spoken(newer.result(20)[1])
        return ended == (200, b"data: [DONE]\n\n")

    # Within a second of their start the replicas do not know of one another.
    assert any(given_up(f"v{n}") for n in range(3))


def test_the_owner_sees_who_writes(fleet: Fleet) -> None:
    """`journal status` names every replica, and a command beside a foreign one is refused."""
    written = fleet.cli.json("journal", "status")["writers"]
    assert len(written) == 2
    assert all(f"process {one.pid} of" in str(written) for one in (fleet.first, fleet.second))
    with worker(fleet.second) as peer:
        peer.open("c1", identity="ada")
        peer.turn("c1", "i1")
        peer.until("ack")
        refused = fleet.cli.run("forget", "--caller", "id:ada", "--yes")
        assert "a call of this caller is live" in refused.stderr
    fleet.first.stop()
    refused = fleet.cli.run("forget", "--caller", "id:ada", "--yes")
    assert refused.returncode == 1
    assert f"process {fleet.second.pid} of" in refused.stderr
    fleet.first.start()
