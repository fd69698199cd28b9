"""The link's frames: any input is decoded to a frame or refused with a named error."""

from json import dumps

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.errors import LinkError
from sidecar.wire.frames import MAX_FRAME_BYTES, decode_from_sidecar, decode_from_worker

pytestmark = pytest.mark.unit

DEEP = "[" * 5_000 + "]" * 5_000


def refusal(raw: str) -> LinkError:
    with pytest.raises(LinkError) as refused:
        decode_from_worker(raw)
    return refused.value


def turn(**fields: str) -> str:
    """Return a turn's JSON with some fields changed."""
    written = {
        "type": '"turn"',
        "call": '"c"',
        "item": '"i"',
        "seq": "1",
        "speaker": '"caller"',
        "text": '"x"',
        "at_s": "1",
    } | fields
    return "{" + ",".join(f'"{name}":{value}' for name, value in written.items()) + "}"


@pytest.mark.parametrize("seq", [str(1 << 63), str(10**30), "-1"])
def test_a_place_the_journal_can_not_hold_is_refused_by_name(seq: str) -> None:
    """A turn whose seq is no 63-bit number is malformed, and the error names it."""
    error = refusal(turn(seq=seq))
    assert ("malformed", "seq", "c", "i") == (error.code, error.field, error.call, error.item)


@pytest.mark.parametrize("decode", [decode_from_worker, decode_from_sidecar])
@pytest.mark.parametrize(
    "raw", [DEEP, f'{{"type":"turn","x":{DEEP}}}', f'{{"type":"ack","call":{DEEP}}}']
)
def test_a_frame_nested_too_deep_is_malformed(decode: object, raw: str) -> None:
    """A frame nested too deep for the decoder is malformed like any other wrong frame."""
    with pytest.raises(LinkError) as refused:
        decode(raw)  # type: ignore[operator]
    assert "malformed" == refused.value.code
    assert refused.value.hint


def test_a_frame_too_large_names_its_turn() -> None:
    """The error for a frame that is too large names its turn."""
    error = refusal(turn(text=f'"{"x" * MAX_FRAME_BYTES}"'))
    assert ("too_large", "c", "i") == (error.code, error.call, error.item)


@pytest.mark.parametrize("name", ['"' + "c" * 257 + '"', "7", "null", '"\\ud800"'])
def test_a_name_that_is_none_is_not_told_back(name: str) -> None:
    """The error names no call when the frame's call id is invalid."""
    error = refusal(turn(call=name))
    assert ("malformed", "") == (error.code, error.call)


json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(
    st.sampled_from(["type", "call", "item", "seq", "speaker", "text", "at_s", "metrics"]),
    json.map(dumps) | st.sampled_from([DEEP, "1e999", "NaN", "1" * 400]),
)
def test_any_value_in_any_field_is_a_frame_or_a_named_error(field: str, value: str) -> None:
    """Any value in any field gives a frame, or an error with a hint."""
    try:
        decode_from_worker(turn(**{field: value}))
    except LinkError as error:
        assert error.hint  # noqa: PT017 - either outcome is right
