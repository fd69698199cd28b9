"""The text of a post: what callers say cannot break out of it."""

import html
import re
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.cli import show
from sidecar.delivery.message import PREAMBLE, render_batch
from sidecar.model import AgentRef, Batch, Call, Turn, utc_of
from sidecar.printable import printable
from sidecar.testing.strategies import batches

pytestmark = pytest.mark.unit

TURN = re.compile(
    r'<turn speaker="(caller|agent)" time="([^"]*)"( interrupted="true")?>([^<]*)</turn>'
)


def test_the_whole_message() -> None:
    """A batch is rendered exactly as documented, byte for byte."""
    call = Call("acme/room-1", AgentRef("acme", caller_key="k"), "livekit", "5e", 0.0)
    turns = (
        Turn(call.key, "a", 1, "caller", "I'm <Ada> & co", 1_795_370_400.9),
        Turn(call.key, "b", 2, "agent", "Hello\nAda", 1_795_370_402.0, interrupted=True),
    )
    batch = Batch("6f1c", call.ref.lane, call, None, 2, turns, 0, False, 0.0, 0.0, 0.0, True)
    assert render_batch(batch) == (
        PREAMBLE + "\n"
        '<transcript batch="6f1c" call="room-1" channel="livekit" caller="5e" part="2"'
        ' final="true">\n'
        '<turn speaker="caller" time="2026-11-22T18:00:00Z">I&#x27;m &lt;Ada&gt; &amp; co</turn>\n'
        '<turn speaker="agent" time="2026-11-22T18:00:02Z" interrupted="true">Hello\nAda</turn>\n'
        "</transcript>"
    )


def shown(text: str) -> str:
    """Return a text as the message shows it, with controls replaced."""
    return printable(text)


@given(batches())
def test_no_text_closes_the_tag_or_forges_a_turn(batch: Batch) -> None:
    """Whatever is said, the message holds exactly the batch's turns, each one whole."""
    first, _, rest = render_batch(batch).partition("\n")
    head, _, body = rest.partition("\n")
    assert first == PREAMBLE
    assert head.startswith(f'<transcript batch="{batch.batch_id}" ')
    assert body.endswith("\n</transcript>")
    found = TURN.findall(body)
    assert [(speaker, bool(cut), html.unescape(text)) for speaker, _, cut, text in found] == [
        (turn.speaker, turn.interrupted, shown(turn.text)) for turn in batch.turns
    ]
    assert TURN.sub("", body).strip("\n") == "</transcript>"


@given(batches())
def test_it_is_well_formed_and_can_be_sent(batch: Batch) -> None:
    """The message is UTF-8, and its tags parse as XML with every attribute in its place."""
    text = render_batch(batch).partition("\n")[2]
    # XML excludes noncharacters; the parser must accept everything else.
    tag = ET.fromstring(text.replace("\ufffe", "").replace("\uffff", "").encode())
    assert tag.attrib["batch"] == batch.batch_id
    assert tag.attrib["part"] == str(batch.part)
    assert tag.attrib["final"] == ("true" if batch.last_part else "false")
    assert [child.tag for child in tag] == ["turn"] * len(batch.turns)


@given(batches())
def test_the_same_batch_is_the_same_text(batch: Batch) -> None:
    """A batch is rendered to the same bytes each time."""
    assert render_batch(batch) == render_batch(batch)


@given(st.floats() | st.sampled_from([1e300, -1e300, 1e18, 253_402_300_800.0]))
def test_any_time_a_worker_says_can_be_shown(at_s: float) -> None:
    """A time beyond the calendar is shown as the nearest one in it, to people and to Letta."""
    assert 1970 <= utc_of(at_s).year <= 9999
    assert len(show.moment(at_s)) == len("2026-11-22 18:00:00")
