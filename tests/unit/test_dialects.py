"""What servers refuse, and what is sent instead."""

import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.llm.dialects import ANY, RETRIES, Dialect, Dialects, Refusal, Roles, in_turns

pytestmark = pytest.mark.unit

LIMIT = {"max_tokens": 100}
OPTIONS = {"stream_options": {"include_usage": True}}
BODY: Mapping[str, Any] = {
    "model": "m",
    "stream": True,
    "messages": [
        {"role": "system", "content": "Be Ada."},
        {"role": "user", "content": "MEMORY"},
        {"role": "user", "content": "Hello"},
    ],
    "temperature": 0.7,
    **LIMIT,
    **OPTIONS,
}


def error(message: str, **fields: Any) -> bytes:
    return json.dumps({"error": {"message": message, **fields}}).encode()


def forbidden(*loc: str) -> bytes:
    """As pydantic says it, with what was sent beside it."""
    what = {
        "type": "extra_forbidden",
        "loc": ["body", *loc],
        "msg": "Extra inputs are not permitted",
    }
    return json.dumps({"detail": [{**what, "input": "temperature roles must alternate"}]}).encode()


PARAMETERS: list[tuple[int, bytes, str]] = [
    (
        400,
        error(
            "Unsupported parameter: 'max_tokens' is not supported with this model."
            " Use 'max_completion_tokens' instead.",
            param="max_tokens",
            code="unsupported_parameter",
        ),
        "max_tokens",
    ),
    (
        400,
        error("Use max_completion_tokens instead of max_tokens: it is unsupported"),
        "max_tokens",
    ),
    (422, forbidden("stream_options"), "stream_options"),
    (400, error("Unrecognized request argument supplied: stream_options"), "stream_options"),
    (400, error("property 'stream_options' is unsupported"), "stream_options"),
    (
        400,
        error("Additional properties are not allowed ('stream_options' was unexpected)"),
        "stream_options",
    ),
    (
        400,
        json.dumps(
            {
                "object": "error",
                "message": "[{'type': 'extra_forbidden', 'loc': ('body', 'max_tokens'), "
                "'msg': 'Extra inputs are not permitted', 'input': 100}]",
            }
        ).encode(),
        "max_tokens",
    ),
    (
        400,
        error(
            "Unsupported value: 'temperature' does not support 0.7 with this model."
            " Only the default (1) value is supported.",
            param="temperature",
            code="unsupported_value",
        ),
        "temperature",
    ),
    (400, b"got an unexpected keyword argument 'stream_options'", "stream_options"),
]
TEMPLATES: list[tuple[int, bytes, Roles]] = [
    (
        400,
        error("Conversation roles must alternate user/assistant/user/assistant/..."),
        Roles.ALTERNATING,
    ),
    (
        500,
        error(
            "After the optional system message, conversation roles must alternate user and"
            " assistant roles except for tool calls and results. at row 189, column 164"
        ),
        Roles.ALTERNATING,
    ),
    (500, error("Jinja Exception: System message must be at the beginning."), Roles.ALTERNATING),
    (
        400,
        b'{"detail": "Chat template error: System message must be at the beginning."}',
        Roles.ALTERNATING,
    ),
    (400, error("Only one system message is allowed"), Roles.ALTERNATING),
    (400, error("Unexpected role 'user' after role 'user'"), Roles.ALTERNATING),
    (
        400,
        error(
            "Only user and assistant roles are supported, with the exception of an initial"
            " optional system message!"
        ),
        Roles.ALTERNATING,
    ),
    *(
        (400, error(words), Roles.ALTERNATING)
        for words in (
            "After the (optional) system message(s), user message(s) should alternate with others",
            "deepseek-reasoner does not support successive user or assistant messages (messages[1]",
            "Please ensure that multiturn requests alternate between user and model.",
            "A conversation must start with a user message.",
            'messages: first message must use the "user" role',
        )
    ),
    (400, error("System role not supported"), Roles.NO_SYSTEM),
    (400, error("Only user and assistant roles are supported!"), Roles.NO_SYSTEM),
    (400, error("this model does not support the system role"), Roles.NO_SYSTEM),
    (400, error("Developer instruction is not enabled for models/gemma-3-4b-it"), Roles.NO_SYSTEM),
    (
        400,
        error("'system' is not one of ['user', 'assistant'] - 'messages.0.role'"),
        Roles.NO_SYSTEM,
    ),
    (400, error("Invalid value: 'system'. Supported values are: 'user'."), Roles.NO_SYSTEM),
]
TEACH_NOTHING: list[tuple[int, bytes]] = [
    (400, b""),
    (400, b"[" * 100_000),
    (400, b"\xff\xfe"),
    (400, error("You said roles", input="max_tokens is unsupported")),
    (
        400,
        error("max_tokens is too large: 100. This model supports at most 50", param="max_tokens"),
    ),
    (400, error("maximum context length is 4096 tokens, you requested 5000 (max_tokens 100)")),
    (400, error("Unsupported parameter: 'n'", param="n")),
    (400, error("Unknown model")),
    (401, error("Unsupported parameter: 'max_tokens'", param="max_tokens")),
    (429, error("stream_options unsupported")),
    (503, error("roles must alternate")),
]


class TestLearning:
    @pytest.mark.parametrize(("status", "refusal", "name"), PARAMETERS)
    def test_a_parameter_that_is_named(self, status: int, refusal: bytes, name: str) -> None:
        """What a server names as not taken is refused, and nothing else."""
        assert ANY.after(status, refusal, BODY) == Dialect(frozenset({name}))

    @pytest.mark.parametrize(("status", "refusal", "roles"), TEMPLATES)
    def test_what_a_template_demands(self, status: int, refusal: bytes, roles: Roles) -> None:
        """A template's demand is known by its words, whichever server passes it on."""
        assert ANY.after(status, refusal, BODY) == Dialect(roles=roles)

    @pytest.mark.parametrize(("status", "refusal"), TEACH_NOTHING)
    def test_what_teaches_nothing(self, status: int, refusal: bytes) -> None:
        """A value out of range, another status and a parameter that was not sent teach nothing."""
        assert ANY.after(status, refusal, BODY) is None

    def test_a_demand_that_is_not_met_yet(self) -> None:
        """Where turns alone don't help, the system message is what is left."""
        demand = TEMPLATES[0][1]
        turns = Dialect(roles=Roles.ALTERNATING)
        assert turns.after(400, demand, BODY) == Dialect(roles=Roles.NO_SYSTEM)
        assert Dialect(roles=Roles.NO_SYSTEM).after(400, demand, BODY) is None

    @given(st.sampled_from([400, 422, 500]), st.binary(max_size=200) | st.text().map(str.encode))
    def test_any_refusal(self, status: int, refusal: bytes) -> None:
        """Whatever a server answers is read."""
        ANY.after(status, refusal, BODY)


class TestWriting:
    def test_the_limit_has_two_names(self) -> None:
        """A limit whose name is refused gets the other one, whichever was asked; else none."""
        no_old, neither = (
            frozenset({"max_tokens"}),
            frozenset({"max_tokens", "max_completion_tokens"}),
        )
        written = Dialect(no_old).written(BODY)
        assert written.get("max_completion_tokens") == 100
        assert "max_tokens" not in written
        newer = {"model": "m", "messages": [], "max_completion_tokens": 7}
        assert Dialect(frozenset({"max_completion_tokens"})).written(newer)["max_tokens"] == 7
        assert not {"max_tokens", "max_completion_tokens"} & set(Dialect(neither).written(BODY))

    def test_nothing_else_changes(self) -> None:
        """A body is left as it is but for what is refused."""
        assert ANY.written(BODY) is BODY
        without = {name: value for name, value in BODY.items() if name != "stream_options"}
        assert Dialect(frozenset({"stream_options"})).written(BODY) == without

    @given(
        st.lists(
            st.fixed_dictionaries(
                {
                    "role": st.sampled_from(["system", "developer", "user", "assistant"]),
                    "content": st.text() | st.lists(st.just({"type": "text", "text": "part"})),
                }
            )
        ),
        st.sampled_from([Roles.ALTERNATING, Roles.NO_SYSTEM]),
    )
    def test_turns(self, messages: list[dict[str, Any]], roles: Roles) -> None:
        """Any conversation becomes turns, user first, with every word of it in order, by role."""
        written = in_turns(messages, roles)
        kinds = [message["role"] for message in written]
        if roles is Roles.ALTERNATING and kinds[:1] in (["system"], ["developer"]):
            kinds = kinds[1:]
        assert all(kind == ("user", "assistant")[n % 2] for n, kind in enumerate(kinds))
        said = json.dumps([m["content"] for m in written])
        for message in messages:
            for text in [message["content"]] if isinstance(message["content"], str) else ["part"]:
                assert not message["content"] or json.dumps(text)[1:-1] in said

    def test_memory_gets_no_system_messages_authority(self) -> None:
        """Memory joins the caller's words; the system message holds its own alone."""
        system, user = in_turns(BODY["messages"], Roles.ALTERNATING)
        assert system == {"role": "system", "content": "Be Ada."}
        assert user == {"role": "user", "content": "MEMORY\n\nHello"}

    def test_tools_keep_their_order(self) -> None:
        """Calls of tools and their results stand where they stood."""
        call = {"role": "assistant", "content": None, "tool_calls": [{"id": "t"}]}
        result = {"role": "tool", "tool_call_id": "t", "content": "4"}
        words = {"role": "assistant", "content": "Let me see."}
        asked = {"role": "user", "content": "And?"}
        messages = [{"role": "user", "content": "2+2?"}, words, call, result, words, asked]
        assert in_turns(messages, Roles.ALTERNATING) == messages


class Server:
    """Refuses what it does not take, one thing at a time."""

    def __init__(self, *refused: str) -> None:
        self.refused = refused
        self.asked: list[dict[str, Any]] = []

    async def ask(self, raw: bytes) -> str:
        body = json.loads(raw)
        self.asked.append(body)
        for name in self.refused:
            if name in body:
                raise Refusal(400, error(f"Unsupported parameter: '{name}'", param=name))
        return "fine"


@pytest.mark.anyio
class TestAsking:
    async def test_each_refusal_teaches_one_thing(self) -> None:
        """A request is written otherwise until it is taken; the next is right at once."""
        server, told = Server("max_tokens", "stream_options", "temperature"), list[Dialect]()
        dialects = Dialects(lambda _, dialect: told.append(dialect))
        assert await dialects.asked(BODY, server.ask) == "fine"
        assert len(server.asked) == 4
        assert await dialects.asked(BODY, server.ask) == "fine"
        assert len(server.asked) == 5
        assert [len(dialect.refused) for dialect in told] == [1, 2, 3]
        assert server.asked[-1]["max_completion_tokens"] == 100

    async def test_no_more_than_so_often(self) -> None:
        """A server that always finds something else is asked five times, and no more."""
        many = dict.fromkeys(("top_p", "stop", "seed", "presence_penalty", "frequency_penalty"), 1)
        server = Server(*many, "temperature")
        with pytest.raises(Refusal):
            await Dialects().asked({**BODY, **many}, server.ask)
        assert len(server.asked) == RETRIES + 1

    async def test_by_model(self) -> None:
        """What one model does not take, another may; only so many are remembered."""
        dialects, server = Dialects(), Server("stream_options")
        for number in range(300):
            await dialects.asked({**BODY, "model": f"m{number}"}, server.ask)
        assert dialects.of("other") is ANY
        assert dialects.of("m0") is ANY
        assert dialects.of("m299") == Dialect(frozenset({"stream_options"}))
