"""JSON from outside: bad input is refused by its reader, and half a character is replaced."""

import ast
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import sidecar
from sidecar.channels.vapi.asgi import RequestRefused, object_of
from sidecar.errors import NotLetta
from sidecar.letta.app_server.socket import AppServerSocket, asking
from sidecar.llm.reader import parsed
from sidecar.untrusted import whole_characters

pytestmark = [pytest.mark.unit, pytest.mark.backend("asyncio", "trio")]

NO_JSON = (b"", b"{", b"[" * 5_000, b'{"a": ' * 5_000, b"<html>", b'{"a": \xff}', b'{"a": "\\x"}')
TEXTS = st.text(st.characters(codec=None), max_size=40) | st.text(
    '\ud83d\ude00\\u"d8a{', max_size=20
)
OF_OUR_OWN = {
    "wire/schema.py": "a schema that msgspec wrote",
    "journal/sql/reads.py": "figures that the journal wrote",
    "channels/vapi/upstream.py": "a body that was read before",
    "cli/callers.py": "an answer that `reach` has read",
    "tools/tool.py": "an answer that a replica stored",
}
READS = {"loads", "load", "decode", "convert", "Decoder"}


@given(TEXTS)
def test_half_a_character_is_read_alike_everywhere(text: str) -> None:
    """In a request and in an answer only halves of characters are replaced."""
    raw = json.dumps({"text": text}).encode()
    whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    assert object_of(raw)["text"] == whole
    assert (parsed(raw)[0] or {})["text"] == whole
    assert object_of(parsed(raw)[1])["text"] == whole


@given(
    st.text(st.characters(codec="utf-8", exclude_characters='"\\'), max_size=20), st.integers(0, 80)
)
def test_a_text_cut_by_its_bytes_is_read(text: str, at: int) -> None:
    """A text cut within a character ends in a replacement, in a request and in an answer."""
    cut = json.dumps(text, ensure_ascii=False)[1:-1].encode()[:at]
    if cut.endswith(b"\\"):
        return
    raw = b'{"text": "' + cut + b'"}'
    try:
        whole = json.loads(raw.decode("utf-8", "replace"))["text"]
    except ValueError:  # cut within an escape
        return
    assert object_of(raw)["text"] == whole
    assert (parsed(raw)[0] or {})["text"] == whole


@given(st.binary(max_size=60))
def test_making_characters_whole_changes_nothing_that_is(raw: bytes) -> None:
    """Valid UTF-8 without escapes stays as it is, byte for byte."""
    whole = whole_characters(raw)
    assert whole_characters(whole) == whole
    if b"\\" not in raw and raw == raw.decode("utf-8", "ignore").encode():
        assert whole == raw


@pytest.mark.parametrize("raw", NO_JSON)
def test_what_is_no_json_is_refused_by_each_reader(raw: bytes) -> None:
    """Whatever a parser raises, the reader refuses the input as JSON that can't be read."""
    with pytest.raises(RequestRefused):
        object_of(raw)
    with pytest.raises(ValueError, match="JSON"):
        parsed(raw)


class _Connection:
    """One end of a socket that has received one frame."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw

    async def send(self, _: str) -> None: ...

    async def recv(self) -> str:
        return self._raw.decode("latin-1")


@pytest.mark.anyio
@pytest.mark.parametrize("raw", NO_JSON)
async def test_a_frame_that_is_none_is_no_app_servers(raw: bytes) -> None:
    """A frame that is no JSON, however deeply nested, is reported as not a Letta's."""
    socket: Any = AppServerSocket(_Connection(raw))  # type: ignore[arg-type]
    with pytest.raises(NotLetta):
        async with asking("the agent", 5.0):
            await socket.ask("app_server_info")


def test_each_reader_of_json_knows_all_that_reading_raises() -> None:
    """Each module that reads JSON catches `MALFORMED`, or is listed here with its reason."""
    root = Path(sidecar.__file__).parent
    unguarded: set[str] = set()
    for path in root.rglob("*.py"):
        name = path.relative_to(root).as_posix()
        tree = ast.parse(path.read_text(encoding="utf-8"))
        reads = any(
            isinstance(node, ast.Attribute)
            and node.attr in READS
            and ast.unparse(node.value) in {"json", "msgspec.json", "msgspec"}
            for node in ast.walk(tree)
        )
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        if reads and "MALFORMED" not in names and not name.startswith("testing/"):
            unguarded.add(name)
    assert unguarded == OF_OUR_OWN.keys()
