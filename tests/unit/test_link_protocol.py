"""The page of the link protocol against the code that speaks it."""

import re
from pathlib import Path
from typing import get_args

import msgspec
import pytest

from sidecar.channels.link import server as link
from sidecar.wire import frames

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "link-protocol.md").read_text()
ENDS = (
    "sidecar/channels/link/server.py",
    "sidecar/channels/link/inbox.py",
    "sidecar/wire/frames.py",
)
BEFORE_HELLO = {"hello_expected"}
"""Said by closing the connection, not by a frame."""


def table(heading: str) -> list[list[str]]:
    """Return the rows of the first table below a heading, without its head."""
    below = PAGE.split(f"{heading}\n", 1)[1]
    lines = [line for line in below.split("\n#", 1)[0].splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[2:]]


def test_each_error_code_is_on_the_page_and_no_other() -> None:
    """The table of codes is that of the code: which there are, which come again, and how."""
    rows = {
        code.strip("`"): (retryable, does) for code, _, retryable, does in table("### Error codes")
    }
    assert set(get_args(frames.ErrorCode)) == rows.keys()
    assert {code for code, (retryable, _) in rows.items() if retryable == "yes"} == {"journal_full"}
    assert {code for code, (_, does) in rows.items() if "open again" in does} == frames.OPEN_AGAIN


@pytest.mark.parametrize("path", ENDS)
def test_no_other_code_is_sent(path: str) -> None:
    """Whatever code either end of the link names is one of the table."""
    raised = set(re.findall(r'(?:LinkError|CallError)\(\s*"(\w+)"', (ROOT / path).read_text()))
    assert raised
    assert raised <= {*get_args(frames.ErrorCode), *BEFORE_HELLO}


@pytest.mark.parametrize(
    ("heading", "kinds"),
    [
        ("## Worker → sidecar", get_args(frames.FromWorker)),
        ("## Sidecar → worker", get_args(frames.FromSidecar)),
    ],
)
def test_each_frame_is_on_the_page_with_its_fields(
    heading: str, kinds: tuple[type[msgspec.Struct], ...]
) -> None:
    """Types and field names of the page are those of the frames; `?` marks what may be left out."""
    rows = {kind.strip("`"): fields for kind, fields, _ in table(heading)}
    assert {kind.__struct_config__.tag for kind in kinds} == rows.keys()
    for kind in kinds:
        told = re.findall(
            r"`(\w+)`(\?)?", re.sub(r"\([^)]*\)", "", rows[str(kind.__struct_config__.tag)])
        )
        names = [field.encode_name for field in msgspec.structs.fields(kind)]
        assert names == [name for name, _ in told]
        if kind in get_args(frames.FromWorker):
            required = {f.encode_name for f in msgspec.structs.fields(kind) if f.required}
            assert required == {name for name, optional in told if not optional}


def test_the_numbers_of_the_page_are_those_of_the_code() -> None:
    """Close codes and bounds."""
    codes = {code for code, *_ in table("## Closing") if code.isdigit()}
    assert codes == {
        str(code) for code in (frames.CLOSE_DRAINING, frames.CLOSE_PROTOCOL, frames.CLOSE_DENIED)
    }
    for told, held in (
        ("at most 1 MiB", frames.MAX_FRAME_BYTES == 1 << 20),
        ("at most 64 entries", frames.MAX_METRICS == 64),
        ("the last 256 calls", link.KEEP_ENDED == 256),
        ("holds 1,000 live calls", link.MAX_CALLS == 1_000),
        ("8 MiB of a connection's frames", link.MAX_HELD_BYTES == 8 << 20),
        ("64 MiB of all connections'", link.MAX_HELD_OF_ALL_BYTES == 64 << 20),
        ("1 MiB of answers", link.MAX_UNSENT_BYTES == 1 << 20),
        ("reads nothing for 20 s", link.SEND_S == 20.0),
        ("within 10 s", link.HELLO_S == 10.0),
    ):
        assert told in " ".join(PAGE.split())
        assert held
