"""The page of the link protocol against the code that speaks it."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import jsonschema_rs
import pytest
from hatchling.builders.wheel import WheelBuilder
from hypothesis import given
from hypothesis import strategies as st

from sidecar.channels.link import server as link
from sidecar.errors import LinkError
from sidecar.model import CHANNEL_PATTERN
from sidecar.wire import frames, schema
from tests.documents import fences

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "link-protocol.md").read_text()
ENDS = (
    "sidecar/channels/link/server.py",
    "sidecar/channels/link/inbox.py",
    "sidecar/wire/frames.py",
)
SCHEMA: dict[str, Any] = json.loads(schema.FILE.read_text())
DEFINITIONS: dict[str, Any] = SCHEMA["$defs"]
VALIDATOR = jsonschema_rs.Draft202012Validator(SCHEMA)
BEFORE_HELLO = {"hello_expected"}
"""Reasons given by closing the connection, not in a frame."""


def table(heading: str) -> list[list[str]]:
    """Return the rows of the first table below a heading, without its head."""
    below = PAGE.split(f"{heading}\n", 1)[1]
    lines = [line for line in below.split("\n#", 1)[0].splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[2:]]


def kinds(end: str) -> set[str]:
    """Return the types of the frames of one end."""
    return {choice["$ref"].rpartition("/")[2] for choice in DEFINITIONS[end]["anyOf"]}


def examples() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Return the page's blocks of frames, one a line, each with its heading."""
    for fence in fences():
        if fence.document == "docs/link-protocol.md" and fence.language == "json":
            yield fence.heading, [json.loads(line) for line in fence.lines]


def test_each_error_code_is_on_the_page_and_no_other() -> None:
    """The page's table of codes has the code's list, which are retryable and what each needs."""
    rows = {
        code.strip("`"): (retryable, does) for code, _, retryable, does in table("### Error codes")
    }
    assert set(get_args(frames.ErrorCode)) == rows.keys()
    assert {code for code, (retryable, _) in rows.items() if retryable == "yes"} == {"journal_full"}
    assert {code for code, (_, does) in rows.items() if "open again" in does} == frames.OPEN_AGAIN


@pytest.mark.parametrize("path", ENDS)
def test_no_other_code_is_sent(path: str) -> None:
    """Each error code in the source of either end is in the table."""
    raised = set(re.findall(r'(?:LinkError|CallError)\(\s*"(\w+)"', (ROOT / path).read_text()))
    assert raised
    assert raised <= {*get_args(frames.ErrorCode), *BEFORE_HELLO}


@pytest.mark.parametrize(
    ("heading", "end"),
    [("## Worker → sidecar", "from_worker"), ("## Sidecar → worker", "from_sidecar")],
)
def test_each_frame_is_on_the_page_with_its_fields(heading: str, end: str) -> None:
    """The frames, fields, values and optional fields (`?`) on the page are those of the schema."""
    rows = {kind.strip("`"): fields for kind, fields, _ in table(heading)}
    assert kinds(end) == rows.keys()
    for kind, row in rows.items():
        shape = DEFINITIONS[kind]
        fields = {name: field for name, field in shape["properties"].items() if name != "type"}
        documented = re.findall(r"`(\w+)`(?: \(([^)]*)\))?(\?)?", row)
        assert list(fields) == [name for name, _, _ in documented]
        for name, values, _ in documented:
            said = re.findall(r"`(\w+)`", values)
            assert fields[name].get("enum", []) == sorted(said)
        if end == "from_worker":
            required = set(shape["required"]) - {"type"}
            assert required == {name for name, _, optional in documented if not optional}


def test_each_hint_is_on_the_page() -> None:
    """The page lists every hint and its values, and says that all are optional."""
    documented = " ".join(PAGE.split("`hints` says", 1)[1].split("\n\n", 1)[0].split())
    assert "All hints are optional." in documented
    assert not DEFINITIONS["hints"]["required"]
    for name, field in DEFINITIONS["hints"]["properties"].items():
        assert f"`{name}`" in documented
        assert all(f"`{value}`" in documented for value in field.get("enum", []) if value)


def test_the_rule_of_a_channels_name_is_on_the_page() -> None:
    """The page, the schema and the code have one pattern."""
    assert f"`{CHANNEL_PATTERN}`" in PAGE
    assert f"^{CHANNEL_PATTERN}$" == DEFINITIONS["call.open"]["properties"]["channel"]["pattern"]


# The schema, and the examples


def test_the_schema_is_what_the_frames_say() -> None:
    """The schema file is what the frames generate, and is a valid JSON schema."""
    assert schema.FILE.read_text() == schema.text()
    jsonschema_rs.meta.validate(SCHEMA)


def test_the_schema_is_in_the_wheel_and_the_page_says_where() -> None:
    """The wheel contains the schema, and the page says where."""
    shipped = {file.distribution_path for file in WheelBuilder(str(ROOT)).recurse_included_files()}
    place = schema.FILE.relative_to(ROOT).as_posix()
    assert place in shipped
    assert f"`{place}`" in PAGE


def test_each_frame_has_an_example() -> None:
    """The page has an example of every frame."""
    shown = {example["type"] for _, lines in examples() for example in lines}
    assert kinds("from_worker") | kinds("from_sidecar") == shown


@pytest.mark.parametrize(
    ("heading", "lines"), list(examples()), ids=[f"{n}" for n in range(len(list(examples())))]
)
def test_each_example_is_of_the_schema_and_of_the_code(
    heading: str, lines: list[dict[str, Any]]
) -> None:
    """Each example is valid by the schema and the decoder; the sidecar's have every field."""
    ends = [end for end in ("from_worker", "from_sidecar") if lines[0]["type"] in kinds(end)]
    if heading == "Left behind":
        ends.append("spooled")
    for line in lines:
        for end in ends:
            jsonschema_rs.validate(SCHEMA | {"anyOf": [{"$ref": f"#/$defs/{end}"}]}, line)
        decode = frames.decode_from_worker if "from_worker" in ends else frames.decode_from_sidecar
        assert decode(json.dumps(line)) is not None
        assert line.keys() <= DEFINITIONS[line["type"]]["properties"].keys()
        if "from_sidecar" in ends:
            assert line.keys() == DEFINITIONS[line["type"]]["properties"].keys()


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 70), 1 << 70)
    | st.floats(allow_nan=False, allow_infinity=False).filter(lambda x: not x.is_integer())
    | st.text(st.characters(exclude_categories=["Cs"]))
    | st.sampled_from(["livekit", "caller", "agent", "yes", "fresh", "x" * 257, "x" * 1_025]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)


@given(st.data())
def test_the_schema_and_the_code_agree_on_every_frame(data: st.DataObject) -> None:
    """The schema and the decoder accept the same frames, whatever fields are changed."""
    frame = dict(data.draw(st.sampled_from([line for _, lines in examples() for line in lines])))
    fields = sorted(DEFINITIONS[frame["type"]]["properties"].keys() - {"type"})
    for name in data.draw(st.lists(st.sampled_from([*fields, "of_a_later_version"]), max_size=2)):
        if data.draw(st.booleans()):
            frame[name] = data.draw(anything)
        else:
            frame.pop(name, None)
    decode = (
        frames.decode_from_worker
        if frame["type"] in kinds("from_worker")
        else frames.decode_from_sidecar
    )
    if VALIDATOR.is_valid(frame):
        assert decode(json.dumps(frame)) is not None
    else:
        with pytest.raises(LinkError):
            decode(json.dumps(frame))


def test_the_numbers_of_the_page_are_those_of_the_code() -> None:
    """The page's close codes and limits are those of the code."""
    codes = {code for code, *_ in table("## Closing") if code.isdigit()}
    assert codes == {
        str(code) for code in (frames.CLOSE_DRAINING, frames.CLOSE_PROTOCOL, frames.CLOSE_DENIED)
    }
    for documented, true in (
        ("at most 1 MiB", frames.MAX_FRAME_BYTES == 1 << 20),
        ("at most 64 entries", frames.MAX_METRICS == 64),
        ("the last 256 calls", link.MAX_ENDED == 256),
        ("holds 1,000 live calls", link.MAX_CALLS == 1_000),
        ("8 MiB of a connection's frames", link.MAX_UNSTORED_BYTES == 8 << 20),
        ("64 MiB of all connections'", link.MAX_UNSTORED_OF_ALL_BYTES == 64 << 20),
        ("1 MiB of answers", link.MAX_UNSENT_BYTES == 1 << 20),
        ("reads nothing for 20 s", link.SEND_S == 20.0),
        ("within 10 s", link.HELLO_S == 10.0),
    ):
        assert documented in " ".join(PAGE.split())
        assert true
