"""A call that outlives its worker, with real processes: workers killed at one sidecar or at two."""

import os
import signal
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.chaos.lettas import StandIn
from tests.job_process import Job
from tests.postgres.server import PostgresServer
from tests.sidecar_process import SidecarProcess, eventually

pytestmark = pytest.mark.e2e

SECRET = "s" * 32
TOKEN = "t" * 32
ON_A_BUSY_MACHINE_S = 5.0
# What is settled at once is in no snapshot of the stand-in: only the call itself can have it.
DELIVERED_AT_ONCE = {"SIDECAR_POST_MAX_TURNS": "1"}


def words_at(letta: StandIn) -> list[tuple[str, list[str]]]:
    """Return each conversation at Letta with the words that were posted to it, in order."""
    posted: dict[str, list[str]] = {}
    for conversation, text in letta.messages():
        words = [
            word for word in text.replace("<", " ").replace(">", " ").split() if "said-" in word
        ]
        posted.setdefault(conversation, []).extend(words)
    return list(posted.items())


def goes_on(first: SidecarProcess, second: SidecarProcess, letta: StandIn, spool: Path) -> None:
    """Kill two workers of a call, one after the other, and end it with the third."""
    with ExitStack() as stack:
        one = stack.enter_context(Job("AJ_1", first, spool))
        assert not one.ask(do="open")["continues"]
        one.say("said-1", "said-2")
        eventually(lambda: words_at(letta) != [])
        one.kill()
        two = stack.enter_context(Job("AJ_2", second, spool))
        answer = two.ask(do="open")
        assert answer["continues"]
        assert "This call goes on" in answer["text"]
        assert answer["text"].index("said-1") < answer["text"].index("said-2")
        assert answer["took_s"] < ON_A_BUSY_MACHINE_S
        two.say("said-3", "said-4")
        two.kill()
        three = stack.enter_context(Job("AJ_3", first, spool))
        answer = three.ask(do="open")
        places = [answer["text"].index(f"said-{n}") for n in range(1, 5)]
        assert places == sorted(places)
        three.say("said-5")
        three.ask(do="close")
    for sidecar in {first, second}:
        eventually(sidecar.is_at_rest)
    ((_, words),) = words_at(letta)
    assert words == ["said-1", "said-2", "said-3", "said-4", "said-5"]
    assert first.has_logged("call_opened")


def test_a_call_outlives_two_workers(letta: StandIn, tmp_path: Path) -> None:
    """Each successor's first prompt has every acked turn; Letta gets one call, each turn once."""
    spool = tmp_path / "spool"
    env = {**letta.env, **DELIVERED_AT_ONCE, "SIDECAR_SPOOL_DIR": str(spool)}
    with SidecarProcess(tmp_path / "data", env) as sidecar:
        goes_on(sidecar, sidecar, letta, spool)


def test_what_a_killed_worker_left_joins_the_call(letta: StandIn, tmp_path: Path) -> None:
    """Words that only the spool of a killed worker has are in the call once, which stays open."""
    spool = tmp_path / "spool"
    env = {**letta.env, "SIDECAR_SPOOL_DIR": str(spool)}
    sidecar = SidecarProcess(tmp_path / "data", env)
    with sidecar, Job("AJ_1", sidecar, spool) as one:
        one.ask(do="open")
        one.say("said-1")
        os.kill(sidecar.pid, signal.SIGSTOP)
        one.say("said-2", acked=False)
        eventually(lambda: any("said-2" in path.read_text() for path in spool.glob("*.jsonl")))
        one.kill()
        os.kill(sidecar.pid, signal.SIGCONT)
        with Job("AJ_2", sidecar, spool) as two:
            assert two.ask(do="open")["continues"]
            eventually(lambda: not any("said-2" in path.read_text() for path in spool.glob("*")))
            two.say("said-3")
            assert sidecar.live_calls() == 1
            two.ask(do="close")
        eventually(sidecar.is_at_rest)
    ((_, words),) = words_at(letta)
    assert sorted(words) == ["said-1", "said-2", "said-3"]


def test_a_call_goes_on_at_another_sidecar(
    postgres: PostgresServer, letta: StandIn, tmp_path: Path
) -> None:
    """With two sidecars on one database, successors go on with the call wherever they connect."""
    env = {
        **letta.env,
        **DELIVERED_AT_ONCE,
        "SIDECAR_JOURNAL_URL": postgres.emptied(),
        "SIDECAR_SECRET": SECRET,
        "SIDECAR_LINK_TOKEN": TOKEN,
        "SIDECAR_SPOOL_DIR": str(tmp_path / "spool"),
    }
    with (
        SidecarProcess(tmp_path / "one", env) as one,
        SidecarProcess(tmp_path / "two", env) as two,
    ):
        goes_on(one, two, letta, tmp_path / "spool")


def test_a_call_goes_on_when_its_sidecar_dies_as_well(
    postgres: PostgresServer, letta: StandIn, tmp_path: Path
) -> None:
    """A machine is lost with a worker and its sidecar: the call goes on at the other one."""
    env = {
        **letta.env,
        "SIDECAR_JOURNAL_URL": postgres.emptied(),
        "SIDECAR_SECRET": SECRET,
        "SIDECAR_LINK_TOKEN": TOKEN,
        "SIDECAR_SPOOL_DIR": str(tmp_path / "spool"),
    }
    first = SidecarProcess(tmp_path / "one", env)
    with first, SidecarProcess(tmp_path / "two", env) as other:
        with Job("AJ_1", first, tmp_path / "spool") as one:
            one.ask(do="open")
            one.say("said-1", "said-2")
            first.kill()
        with Job("AJ_2", other, tmp_path / "spool") as two:
            answer = two.ask(do="open")
            assert answer["continues"]
            assert answer["text"].index("said-1") < answer["text"].index("said-2")
            two.say("said-3")
            two.ask(do="close")
        eventually(other.is_at_rest)
    ((_, words),) = words_at(letta)
    assert words == ["said-1", "said-2", "said-3"]


def test_a_frozen_worker_is_succeeded_before_its_loss_is_noticed(
    letta: StandIn, tmp_path: Path
) -> None:
    """While a worker's link is half open, the next job knows that the call goes on."""
    spool = tmp_path / "spool"
    env = {**letta.env, "SIDECAR_SPOOL_DIR": str(spool)}
    with SidecarProcess(tmp_path / "data", env) as sidecar, Job("AJ_1", sidecar, spool) as one:
        one.ask(do="open")
        one.say("said-1")
        one.freeze()
        with Job("AJ_2", sidecar, spool) as two:
            answer = two.ask(do="open")
            assert answer["continues"]
            assert "said-1" in answer["text"]
            two.say("said-2", acked=False)
            threading.Event().wait(0.5)
            one.kill()
            two.ask(do="flush")
            two.ask(do="close")
        eventually(sidecar.is_at_rest)
    ((_, words),) = words_at(letta)
    assert words == ["said-1", "said-2"]
