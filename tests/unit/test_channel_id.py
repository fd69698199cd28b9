"""Names of channels: an open id that is the same everywhere, or is refused by name."""

import json
import re
import sqlite3
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from sidecar import telemetry
from sidecar.access.callers import IdentityRules
from sidecar.calls import CallPolicy, Calls
from sidecar.cli import show
from sidecar.delivery.message import render_batch
from sidecar.errors import CallError, LinkError
from sidecar.http.metrics import CHANNELS, OUTCOMES, Gauges, Metrics
from sidecar.journal.backlog import Backlog
from sidecar.journal.policy import PostPolicy
from sidecar.journal.sqlite.journal import SqliteJournal
from sidecar.journal.sqlite.reports import reports_of_file
from sidecar.letta.identity import Identity
from sidecar.memory.snapshots import Snapshots
from sidecar.model import (
    CHANNEL_RULE,
    OTHER_CHANNEL,
    Batch,
    Call,
    CallerHints,
    Turn,
    call_key,
    is_channel,
)
from sidecar.telemetry import Telemetry
from sidecar.testing.fake_letta import FakeLetta
from sidecar.testing.strategies import channels
from sidecar.wire.frames import CallOpen, Hints, TurnFrame, decode_from_worker, encode
from sidecar.wire.spool import SpoolFile
from sidecar.worker.link import Link
from tests.no_store import NoStore

pytestmark = pytest.mark.unit

WRONG = (
    "",
    "-a",
    "7up",
    "LiveKit",
    "live_kit",
    "livekit\n",
    "\nlivekit",
    " livekit",
    "li\x00vekit",
    "a" * 33,
    "é",
    "\uff41",
    "channel=x",
    "\ud800",
)
names = channels | st.sampled_from(WRONG) | st.text(max_size=40)
TURN = TurnFrame("c1", "i1", 1, "caller", "hello", 1.0)


def opening(channel: str) -> str:
    """Return the `call.open` of a worker that gives this channel."""
    fields: dict[str, object] = {"call": "c1", "channel": channel, "hints": {}, "opened_at_s": 1.0}
    return json.dumps({"type": "call.open"} | fields, separators=(",", ":"))


@given(names)
def test_a_name_is_one_by_its_pattern_alone(name: str) -> None:
    """A channel name matches the whole pattern: ASCII only, without a newline at the end."""
    assert is_channel(name) == bool(re.match(r"\A[a-z][a-z0-9-]{0,31}\Z", name))


@given(names)
def test_over_the_link_a_name_comes_through_or_is_refused_by_field_and_rule(name: str) -> None:
    """A frame keeps the name exactly as sent, or its error names the field and the rule."""
    if is_channel(name):
        frame = decode_from_worker(opening(name))
        assert isinstance(frame, CallOpen)
        assert name == frame.channel
        assert frame == decode_from_worker(encode(frame))
        return
    with pytest.raises(LinkError) as refused:
        decode_from_worker(opening(name))
    error = refused.value
    assert "malformed" == error.code
    if not any("\ud800" <= character <= "\udfff" for character in name):  # otherwise it is no JSON
        assert ("channel", "c1") == (error.field, error.call)
        assert f"field `channel`: {CHANNEL_RULE}" == error.message


@given(names)
def test_a_frame_of_ours_can_not_be_made_with_another_name(name: str) -> None:
    """A `CallOpen` with an invalid channel can't be made, so a worker never sends one."""
    if is_channel(name):
        assert name == CallOpen("c1", name, Hints(), 1.0).channel
    else:
        with pytest.raises(ValueError, match="channel"):
            CallOpen("c1", name, Hints(), 1.0)


@pytest.mark.parametrize("name", WRONG)
def test_a_worker_is_told_at_once_that_no_channel_may_be_called_so(
    name: str, tmp_path: Path
) -> None:
    """Opening a call with an invalid channel raises at once and names the field and the rule."""
    link = Link(
        "ws://127.0.0.1:1/link",
        worker="w1",
        spool_dir=tmp_path,
        emit=Telemetry(strict=True).emit,
        clock=lambda: 1.0,
        dice=lambda: 0.5,
    )
    with pytest.raises(LinkError, match=CHANNEL_RULE) as refused:
        link.open_call("c1", name, None, opened_at_s=1.0)
    assert "channel" == refused.value.field


@settings(max_examples=30, deadline=None)
@given(names)
def test_a_spool_file_gives_the_name_back_or_keeps_every_byte(name: str) -> None:
    """A spool file gives the channel back, or counts as damaged and is set aside unchanged."""
    raw = f"{opening(name)}\n{encode(TURN)}\n".encode()
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "c1.jsonl"
        path.write_bytes(raw)
        file = SpoolFile.take(path)
        assert file is not None
        spooled = file.read()
        assert (TURN,) == spooled.turns
        if is_channel(name):
            assert spooled.opened is not None
            assert (name, 0) == (spooled.opened.channel, spooled.damaged)
            file.close()
        else:
            assert (None, 1) == (spooled.opened, spooled.damaged)
            assert raw == file.set_aside().read_bytes()


class Ear:
    """Hears nothing: these calls have no memory."""

    def __getattr__(self, name: str) -> object:
        def nothing(*_: object, **__: object) -> None:
            pass

        return nothing


async def opened_and_restored(path: Path, said: list[str]) -> list[str]:
    """Open and restore a call for each name; return the codes and names of the refused ones."""
    journal = await SqliteJournal.open(
        path, policy=PostPolicy(max_turns=20, max_age_s=60.0), clock=lambda: 1.0
    )
    letta, events = FakeLetta(clock=lambda: 1.0), Telemetry(strict=True)
    rules = IdentityRules(agent_id="agent-7")
    calls = Calls(
        journal,
        Snapshots(letta, NoStore(), emit=events.emit, clock=lambda: 1.0),
        Identity(letta, journal, rules=rules, emit=events.emit),
        rules=rules,
        policy=CallPolicy(),
        secret=b"s" * 32,
        emit=events.emit,
        clock=lambda: 1.0,
    )
    refused: list[str] = []
    async with anyio.create_task_group() as tasks:
        await tasks.start(calls.run)
        for n, name in enumerate(said):
            left = [Turn(call_key("t", f"r{n}"), "i1", 1, "caller", "hello", 1.0)]
            about = {"channel": name, "hints": CallerHints(), "opened_at_s": 1.0}
            for take in (
                partial(calls.open, "t", f"o{n}", owner="w", listener=Ear(), **about),
                partial(calls.restore, "t", f"r{n}", turns=left, **about),
            ):
                try:
                    await take()
                except CallError as error:
                    refused.append(f"{error.code} {name}")
        tasks.cancel_scope.cancel()
    await journal.aclose()
    return refused


def shown(call: Call) -> tuple[str, str]:
    """Return the channel as `--json` shows it, and as the message to Letta does."""
    (printed,) = re.findall(r'"channel": (".*")', show.json_line({"channel": call.channel}))
    batch = Batch("b", "l", call, "a", 1, (), 0, False, 0.0, 0.0, 0.0, last_part=False)
    (posted,) = re.findall(r' channel="([^"]*)"', render_batch(batch))
    return json.loads(printed), posted


async def calls_in(path: Path) -> list[Call]:
    """Every call of a journal's file."""
    async with reports_of_file(path) as reports:
        return [row.call for row in await reports.calls(limit=-1)]


async def turns_in(path: Path, call: str) -> tuple[Turn, ...]:
    """Every turn of a call in a journal's file."""
    async with reports_of_file(path) as reports:
        return await reports.turns(call)


@settings(max_examples=10, deadline=None)
@given(st.lists(names, min_size=1, max_size=8, unique=True))
def test_the_journal_the_command_line_and_letta_have_the_name_that_was_sent(
    said: list[str],
) -> None:
    """Opened and restored calls have the channel they were given, wherever it is shown."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "journal.db"
        refused = anyio.run(opened_and_restored, path, said)
        found = {call.call_id: call for call in anyio.run(calls_in, path)}
    assert [f"bad_value {name}" for name in said if not is_channel(name) for _ in "or"] == refused
    stored = {
        f"{how}{n}": name for n, name in enumerate(said) if is_channel(name) for how in ("o", "r")
    }
    assert stored == {call_id: call.channel for call_id, call in found.items()}
    for call_id, call in found.items():
        assert (stored[call_id], stored[call_id]) == shown(call)


@settings(max_examples=10, deadline=None)
@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=40))
def test_a_row_of_another_version_is_read_whatever_it_says(name: str) -> None:
    """A stored call with an invalid channel is read as of `other`, with all its words."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "journal.db"
        anyio.run(opened_and_restored, path, ["livekit"])
        connection = sqlite3.connect(path)
        with connection:
            connection.execute("UPDATE calls SET channel = ?", (name,))
        connection.close()
        calls, turns = anyio.run(calls_in, path), anyio.run(turns_in, path, "t/r0")
        assert {name if is_channel(name) else OTHER_CHANNEL} == {call.channel for call in calls}
        assert ["hello"] == [turn.text for turn in turns]


STATE = Gauges(
    backlog=Backlog(0, 0, None),
    journal_ok=True,
    live_calls={},
    connections=0,
    breaker_open={},
    draining=False,
    replicas=1,
    now_s=1.0,
)


@settings(max_examples=30, deadline=None)
@given(st.lists(names, max_size=12))
def test_the_labels_of_the_metrics_are_a_fixed_set(said: list[str]) -> None:
    """Every call is counted whatever its channel, and only known channels become labels."""
    live = {name: n for n, name in enumerate(said, 1)}

    async def state() -> Gauges:
        return replace(STATE, live_calls=live)

    metrics = Metrics(state)
    events = Telemetry(strict=True, logger=Ear(), observe=metrics.observe)
    for name in said:
        events.emit(telemetry.call_opened, call="c", channel=name, lane="l", resumed=False)
        events.emit(telemetry.caller_unresolved, call="c", channel=name, why="no_hint")
        events.emit(telemetry.post_ended, lane="l", batch="b", outcome=name, took_s=1.0)
    text = anyio.run(metrics.text).decode()
    totals = dict.fromkeys(("sidecar_calls_total", "sidecar_live_calls"), 0.0)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            assert sample.labels.get("channel", "other") in {*CHANNELS, OTHER_CHANNEL}
            assert sample.labels.get("outcome", "other") in {*OUTCOMES, "other", "ok", "failed"}
            if sample.name in totals:
                totals[sample.name] += sample.value
    assert {"sidecar_calls_total": len(said), "sidecar_live_calls": sum(live.values())} == totals
