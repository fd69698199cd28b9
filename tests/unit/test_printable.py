"""Which characters of a text are shown, and how the others are replaced."""

import contextlib
import io
import json
import logging
import subprocess
import sys
import unicodedata
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typing_extensions import override

from sidecar import telemetry
from sidecar.cli import show
from sidecar.delivery.message import render_batch
from sidecar.memory.prompt import PromptLimits, render
from sidecar.model import AgentRef, Batch, Block, Call, Snapshot, Turn
from sidecar.printable import printable, printable_json, printable_line
from sidecar.telemetry import Telemetry
from sidecar.tools import ranking
from sidecar.worker.livekit.job import _JobLog

pytestmark = pytest.mark.unit

SHOWN = frozenset(
    "\t\n"
    "\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u0890\u0891\u08e2\U000110bd\U000110cd"  # numbers
)
HIDDEN = {"Cc", "Cf", "Zl", "Zp", "Cs"}
SELECTORS = frozenset("\u180b\u180c\u180d\u180f") | {
    chr(code) for code in (*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0))
}
JOINERS = frozenset("\u200c\u200d")
# Default_Ignorable_Code_Point of Unicode's DerivedCoreProperties.txt, beside Cf and selectors:
# a combining joiner, fillers of Hangul, vowels of Khmer, what is not assigned; and Braille's blank
BLANK = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2065\u2800\u3164\uffa0") | {
    chr(code)
    for code in (*range(0xFFF0, 0xFFF9), *range(0xE0000, 0xE0100), *range(0xE01F0, 0xE1000))
}


def is_hidden(char: str) -> bool:
    """Whether a character controls, reverses or shows nothing, wherever it is."""
    return char in BLANK or (unicodedata.category(char) in HIDDEN and char not in SHOWN | JOINERS)


def is_safe(text: str) -> bool:
    """Whether nothing in a text controls a terminal, reverses a line or hides text."""
    before = " "  # a character that is seen, a selector after one, or neither of them: a blank
    for char in text:
        if is_hidden(char) or (char in SELECTORS | JOINERS and before.isspace()):
            return False
        if char in SELECTORS and before in SELECTORS:
            return False
        before = " " if char in JOINERS else char
    return True


def test_every_character_of_unicode_is_judged_by_its_kind() -> None:
    """What controls, reverses or shows nothing is replaced, and nothing else is."""
    for code in range(sys.maxunicode + 1):
        char = chr(code)
        if unicodedata.category(char) != "Cn" or char in BLANK:
            assert printable(char) == (char if is_safe(char) else "\ufffd"), hex(code)


@pytest.mark.parametrize(
    "text",
    [
        "\u0645\u06cc\u200c\u062e",  # Persian
        "क्\u200dष",  # Hindi
        "葛\U000e0100城市",  # a form of a character, in the name of a Japanese city
        "\u2764\ufe0f\u200d\U0001f525",  # a heart on fire
        "\U0001f469\U0001f3fd\u200d\U0001f4bb",
        "1\ufe0f\u20e3",
        "ᠮᠤ\u180b",  # Mongolian
    ],
)
def test_what_languages_and_emoji_need_stays(text: str) -> None:
    """A joiner or a variation selector stays after the character that it belongs to."""
    assert printable(text) == text
    assert json.loads(printable_json(json.dumps(text))) == text


@pytest.mark.parametrize("unseen", [*"\u200d\u200c\ufe0f\ufe00\U000e0100\U000e01ef\u180b"])
def test_no_words_hide_behind_a_character(unseen: str) -> None:
    """Of a row of joiners or selectors, at most the first stays, and none that follows nothing."""
    assert printable("a" + unseen * 9) == "a" + unseen + "\ufffd" * 8
    assert printable(unseen) == "\ufffd"
    assert printable("a " + unseen) == "a \ufffd"
    assert is_safe(printable_json(json.dumps("a" + unseen * 9, ensure_ascii=False)))


@given(st.text(st.sampled_from("a \n\x1b\u3164") | st.sampled_from(sorted(SELECTORS | JOINERS))))
def test_what_is_printable_stays_so(text: str) -> None:
    """What was made printable is safe, as long as before, and the same if it is made so again."""
    shown = printable(text)
    assert is_safe(shown)
    assert len(shown) == len(text)
    assert printable(shown) == shown


@given(st.text())
def test_a_line_stays_one_line(text: str) -> None:
    """A text made printable as a line has no line break."""
    assert is_safe(printable_line(text))
    assert len(printable_line(text).splitlines()) <= 1


@given(st.recursive(st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_json_is_safe_on_a_terminal_and_loses_nothing(value: object) -> None:
    """JSON made printable is safe on a terminal and is parsed to the same value."""
    for indent in (None, 2):
        shown = printable_json(json.dumps(value, ensure_ascii=False, indent=indent))
        assert is_safe(shown)
        assert json.loads(shown) == value


@pytest.mark.parametrize("char", ["\x7f", "\x9b", "\u202e", "\ufeff", "\U000e0041", "\ud800"])
def test_json_spells_what_is_not_shown(char: str) -> None:
    """A character that is not shown is written as a JSON escape."""
    shown = printable_json(json.dumps(char, ensure_ascii=False))
    assert shown.isascii()
    assert json.loads(shown) == char


def written(write: Callable[[], object]) -> str:
    """Return what is written to standard output."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        write()
    return out.getvalue()


def turn_of(text: str) -> Turn:
    return Turn("t/c", "item", 1, "caller", text, 0.0)


def posted(text: str) -> str:
    call = Call(f"t/{text}", AgentRef("t", caller_key="k"), text, text, 0.0)
    lane = call.ref.lane
    return render_batch(
        Batch("id", lane, call, None, 1, (turn_of(text),), 0, False, 0.0, 0.0, 0.0, True)
    )


def in_the_prompt(text: str) -> str:
    snapshot = Snapshot.of("agent", [Block(text, f"v{text}", text)], read_at_s=0.0)
    return render(snapshot, [turn_of(text)], nonce="0" * 12, limits=PromptLimits()).text


def in_a_workers_log(text: str) -> str:
    """Return what LiveKit's job logger writes for an event."""
    lines: list[str] = []

    class Handler(logging.Handler):
        @override
        def emit(self, record: logging.LogRecord) -> None:
            lines.extend(v for v in vars(record).values() if isinstance(v, str))

    logger = logging.getLogger("sidecar")
    handler = Handler()
    logger.addHandler(handler)
    try:
        Telemetry(log_text=True, logger=_JobLog()).emit(
            telemetry.turns_dropped, call=text, turns=1, why=text
        )
    finally:
        logger.removeHandler(handler)
    assert lines
    return "".join(lines)


PLACES: dict[str, Callable[[str], str]] = {
    "the prompt": in_the_prompt,
    "a post to Letta": posted,
    "a worker's log": in_a_workers_log,
    "an answer of recall": lambda text: ranking.as_text([ranking.Remembered(text, text)]),
    "a document of the knowledge base": ranking.plain,
    "a line of a command": lambda text: written(lambda: show.say(text)),
    "a table": lambda text: written(lambda: show.table([">n", "a"], [["1", text]], empty="")),
    "--json": lambda text: written(lambda: show.as_json({text: [text, turn_of(text)]})),
    "export": lambda text: show.json_line({text: [turn_of(text)]}),
}


@pytest.mark.parametrize("place", PLACES)
@given(text=st.text(min_size=1, max_size=50))
def test_no_place_shows_what_is_not_printable(place: str, text: str) -> None:
    """Whatever a caller or an agent says, it is safe wherever it is shown."""
    assert is_safe(PLACES[place](text))


@pytest.mark.parametrize("json_lines", [True, False])
def test_the_log_shows_nothing_else_either(json_lines: bool) -> None:
    """Text in log fields and exceptions can neither control a terminal nor forge a line."""
    code = (
        "import structlog; from sidecar.log import configure_logging\n"
        f"configure_logging(level='info', json={json_lines})\n"
        "log = structlog.get_logger()\n"
        "bad = 'a\\x1b[2J\\x9b\\u202eb\\U000e0041\\ud800\\nforged'\n"
        "log.info('event', text=bad, **{'call': bad.replace(' ', '')})\n"
        "try:\n    raise ValueError(bad)\nexcept ValueError:\n    log.exception('failed')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "event" in done.stderr
    assert is_safe(done.stderr)
    assert "\nforged" not in done.stderr.partition("Traceback")[0]
