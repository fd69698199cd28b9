"""What servers refuse, and what is sent instead."""

import json
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.llm.dialects import ANY, RETRIES, Dialect, Dialects, Refusal, in_turns
from sidecar.llm.refusals import REFUSAL_BYTES, Roles, said_in
from tests.cpu_time import at_most

pytestmark = [pytest.mark.unit, pytest.mark.backend("asyncio", "trio")]

CPU_S = 0.4
"""The CPU time of a refusal: several times what it takes, and a fraction of its square."""
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
    """A refusal in pydantic's form, which repeats the input that was sent."""
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
SAMPLING: Mapping[str, Any] = dict.fromkeys(
    (
        "top_p",
        "stop",
        "seed",
        "tool_choice",
        "parallel_tool_calls",
        "response_format",
        "presence_penalty",
        "frequency_penalty",
        "reasoning_effort",
    ),
    1,
)
PENALTIES = "frequency_penalty presence_penalty"
# What servers were seen to answer a request with every parameter in it, by server.
SPOKEN: list[tuple[str, int, bytes, str]] = [
    (
        "xAI",
        400,
        (
            b'{"code": "Client specified an invalid argument",'
            b' "error": "Argument not supported on this model: presencePenalty"}'
        ),
        "presence_penalty",
    ),
    (
        "xAI",
        400,
        error("Argument not supported on this model: frequencyPenalty"),
        "frequency_penalty",
    ),
    (
        "xAI",
        400,
        error("Model grok-4 does not support parameter presencePenalty."),
        "presence_penalty",
    ),
    (
        "xAI",
        400,
        error("Model grok-4 does not support parameter reasoningEffort."),
        "reasoning_effort",
    ),
    (
        "xAI by LiteLLM",
        400,
        error(
            "litellm.BadRequestError: XaiException - "
            '{"code":"Client specified an invalid argument",'
            '"error":"Argument not supported on this model: frequencyPenalty"}\nNo fallback model'
            " group found for original model_group=grok-4. Fallbacks=[{'mf-1': ['deepseek-v3']}]"
        ),
        "frequency_penalty",
    ),
    (
        "Anthropic",
        400,
        error(
            "`temperature` and `top_p` cannot both be specified for this model."
            " Please use only one."
        ),
        "top_p",
    ),
    (
        "Anthropic by Bedrock",
        400,
        (
            b'{"message": "The model returned the following errors: temperature and top_p cannot'
            b' both be specified for this model. Please use only one."}'
        ),
        "top_p",
    ),
    ("Anthropic", 400, error("`temperature` is deprecated for this model."), "temperature"),
    (
        "Gemini",
        400,
        (
            b'[{"error": {"code": 400, "message": "Invalid JSON payload received. Unknown name'
            b' \\"frequency_penalty\\": Cannot find field.\\nInvalid JSON payload received.'
            b' Unknown name \\"seed\\": Cannot find field.", "status": "INVALID_ARGUMENT"}}]'
        ),
        "frequency_penalty seed",
    ),
    ("Gemini", 400, error("Penalty is not enabled for models/gemini-2.5-flash"), PENALTIES),
    ("Gemini", 400, error("Penalty is not enabled for this model"), PENALTIES),
    ("Gemma", 400, error("JSON mode is not enabled for models/gemma-3-27b-it"), "response_format"),
    (
        "Mistral by a proxy",
        422,
        json.dumps(
            {
                "object": "error",
                "message": '{"detail":[{"type":"extra_forbidden",'
                '"loc":["body","frequency_penalty"],'
                '"msg":"Extra inputs are not permitted","input":"stop and seed"}]}',
                "type": "internal_error_proxy",
            }
        ).encode(),
        "frequency_penalty",
    ),
    (
        "Mistral",
        422,
        (
            b'{"object": "error", "message": {"detail": [{"type": "extra_forbidden",'
            b' "loc": ["body", "stream_options", "include_usage"],'
            b' "msg": "Extra inputs are not permitted"}]}}'
        ),
        "stream_options",
    ),
    (
        "Azure",
        400,
        error("Validation error at #/stream_options: Extra inputs are not permitted"),
        "stream_options",
    ),
    (
        "Azure",
        400,
        error("Extra parameters ['seed', 'stop'] are not allowed when extra-parameters is not set"),
        "seed stop",
    ),
    (
        "Azure",
        400,
        error("Unrecognized request argument supplied: parallel_tool_calls"),
        "parallel_tool_calls",
    ),
    (
        "OpenAI",
        400,
        error("Unsupported parameter: 'stop' is not supported with this model.", param="stop"),
        "stop",
    ),
    (
        "OpenAI",
        400,
        error(
            "Function tools with reasoning_effort are not supported for gpt-5 in"
            " /v1/chat/completions. Please use /v1/responses instead."
        ),
        "reasoning_effort",
    ),
    (
        "Bedrock",
        400,
        (
            b'{"message": "This model doesn\'t support the stopSequences field.'
            b' Remove stopSequences and try again."}'
        ),
        "stop",
    ),
    (
        "Bedrock",
        400,
        (
            b'{"message": "This model doesn\'t support the toolConfig.toolChoice field. Remove'
            b' toolConfig.toolChoice and try again."}'
        ),
        "tool_choice",
    ),
    (
        "Bedrock",
        400,
        error("Malformed input request: extraneous key [stop_sequences] is not permitted"),
        "stop",
    ),
    (
        "DeepSeek",
        400,
        error("deepseek-reasoner does not support the parameter `presence_penalty`"),
        "presence_penalty",
    ),
    ("DeepSeek", 400, error("deepseek-reasoner does not support this tool_choice"), "tool_choice"),
    ("DeepSeek", 400, error("This response_format type is unavailable now"), "response_format"),
    ("Ollama", 400, error('"llama3.2:1b" does not support thinking'), "reasoning_effort"),
    (
        "Moonshot",
        400,
        error("invalid temperature: only 1 is allowed for this model"),
        "temperature",
    ),
    ("Groq", 400, error("property 'parallel_tool_calls' is unsupported"), "parallel_tool_calls"),
    (
        "LiteLLM",
        400,
        error(
            "litellm.UnsupportedParamsError: gpt-5-nano doesn't support temperature=0.1 while"
            " reasoning is active. Only temperature=1 is supported. To drop unsupported params set"
            " `litellm.drop_params = True`."
        ),
        "temperature",
    ),
    (
        "LiteLLM",
        400,
        error("ollama does not support parameters: ['seed', 'parallel_tool_calls'], for model=m"),
        "parallel_tool_calls seed",
    ),
    (
        "OpenRouter",
        404,
        (
            b'{"error": {"message": "No endpoints found that support the provided'
            b" 'tool_choice' value. To learn more about provider routing,"
            b' visit: https://openrouter.ai/docs", "code": 404}}'
        ),
        "tool_choice",
    ),
    (
        "llama.cpp",
        500,
        b'{"code": 500, "message": "Unsupported param: tool_choice"}',
        "tool_choice",
    ),
    (
        "a server in Rust",
        422,
        b"unknown field `seed`, expected one of `model`, `max_tokens`, `temperature`, `stop`",
        "seed",
    ),
    (
        "a server with a list",
        400,
        error("Unknown parameter: 'seed'. Supported parameters are: temperature, top_p, stop"),
        "seed",
    ),
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
    *(
        (400, error(words), Roles.ALTERNATING)
        for words in (
            (
                "This model does not support assistant message prefill."
                " The conversation must end with a user message."
            ),
            "No user query found in messages.",
            "* GenerateContentRequest.contents: contents is not specified",
            "messages: at least one message is required",
            (
                "Expected last role User or Tool (or Assistant with prefix True)"
                " for serving but got system"
            ),
        )
    ),
    (
        400,
        error(
            "Unsupported value: 'messages[0].role' does not support 'system' with this model.",
            param="messages[0].role",
        ),
        Roles.NO_SYSTEM,
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
    (404, error("roles must alternate")),
    (404, error("The model `m` does not exist: temperature")),
    (400, error("Tool choice is none, but the model called a tool: temperature 0.7")),
    (400, error("temperature must be between 0 and 2, and stop have at most 4 sequences")),
    (400, error("'llama3.2:1b' does not support tools")),
    (404, error("No endpoints found that support tool use.")),
    (400, error('"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser')),
]
# Words of the patterns, each before a long run, and texts in which many matches begin.
NASTY = [
    *(
        words + sign * REFUSAL_BYTES
        for words in (
            "The system prompt",
            "developer instructions are",
            "'system' is not",
            "does not support the",
            "unexpected role",
            "only user and assistant roles",
            "first message",
            "only",
            "only 1",
            "not both",
            "param:",
            "use",
        )
        for sign in ("-", ".", " ", "\n", "'")
    ),
    *(
        words * REFUSAL_BYTES
        for words in (
            "alternat",
            "role ",
            "system role ",
            "both not ",
            "use seed ",
            "seed unknown\n",
            "instead\n",
            "a\n",
            "allowed ",
        )
    ),
]


class TestLearning:
    @pytest.mark.parametrize("text", NASTY, ids=lambda text: repr(text[:40]))
    def test_nasty_texts_hold_nobody(self, text: str) -> None:
        """The longest refusal is read in little CPU time, whatever runs it holds."""
        with at_most(CPU_S):
            said_in(400, text[:REFUSAL_BYTES].encode(), (*BODY, *SAMPLING))

    @pytest.mark.parametrize(("status", "refusal", "name"), PARAMETERS)
    def test_a_parameter_that_is_named(self, status: int, refusal: bytes, name: str) -> None:
        """Exactly the parameter that a server names as unsupported is learnt as refused."""
        assert ANY.after(said_in(status, refusal, tuple(BODY))) == Dialect(frozenset({name}))

    @pytest.mark.parametrize(("who", "status", "refusal", "names"), SPOKEN)
    def test_what_servers_say(self, who: str, status: int, refusal: bytes, names: str) -> None:
        """From each server's wording, exactly the parameters that it names are learnt."""
        taught = ANY.after(said_in(status, refusal, (*BODY, *SAMPLING)))
        assert taught == Dialect(frozenset(names.split())), who

    def test_one_of_two_is_left(self) -> None:
        """Of two parameters that exclude each other one is dropped, and a lone one is kept."""
        refusal = error("temperature and top_p cannot both be specified for this model")
        assert ANY.after(said_in(400, refusal, (*BODY, "top_p"))) == Dialect(frozenset({"top_p"}))
        assert ANY.after(said_in(400, refusal, tuple(BODY))) is None

    @pytest.mark.parametrize(("status", "refusal", "roles"), TEMPLATES)
    def test_what_a_template_demands(self, status: int, refusal: bytes, roles: Roles) -> None:
        """A template's demand is recognised by its words, whichever server passes it on."""
        assert ANY.after(said_in(status, refusal, tuple(BODY))) == Dialect(roles=roles)

    @pytest.mark.parametrize(("status", "refusal"), TEACH_NOTHING)
    def test_what_teaches_nothing(self, status: int, refusal: bytes) -> None:
        """A value out of range, another status and a parameter that was not sent teach nothing."""
        assert ANY.after(said_in(status, refusal, tuple(BODY))) is None

    def test_a_demand_that_is_not_met_yet(self) -> None:
        """If alternating roles don't meet a template's demand, the system message goes next."""
        demand = TEMPLATES[0][1]
        turns = Dialect(roles=Roles.ALTERNATING)
        assert turns.after(said_in(400, demand, tuple(BODY))) == Dialect(roles=Roles.NO_SYSTEM)
        assert Dialect(roles=Roles.NO_SYSTEM).after(said_in(400, demand, tuple(BODY))) is None

    @given(st.sampled_from([400, 422, 500]), st.binary(max_size=200) | st.text().map(str.encode))
    def test_any_refusal(self, status: int, refusal: bytes) -> None:
        """Any status and any body can be read as a refusal without an error."""
        ANY.after(said_in(status, refusal, tuple(BODY)))


class TestWriting:
    def test_the_limit_has_two_names(self) -> None:
        """A limit whose name is refused is sent under its other name, unless both are refused."""
        no_old, neither = (
            frozenset({"max_tokens"}),
            frozenset({"max_tokens", "max_completion_tokens"}),
        )
        written = Dialect(no_old).written(BODY)
        assert written.get("max_completion_tokens") == 100
        assert "max_tokens" not in written
        newer: dict[str, Any] = {"model": "m", "messages": [], "max_completion_tokens": 7}
        assert Dialect(frozenset({"max_completion_tokens"})).written(newer)["max_tokens"] == 7
        assert not {"max_tokens", "max_completion_tokens"} & set(Dialect(neither).written(BODY))

    def test_nothing_else_changes(self) -> None:
        """A body changes only in the parameters that are refused."""
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
        """Any messages become alternating turns, the user's first, and keep all their words."""
        written = in_turns(messages, roles)
        kinds = [message["role"] for message in written]
        if roles is Roles.ALTERNATING and kinds[:1] in (["system"], ["developer"]):
            kinds = kinds[1:]
        assert all(kind == ("user", "assistant")[n % 2] for n, kind in enumerate(kinds))
        said = json.dumps([m["content"] for m in written])
        for message in messages:
            for text in [message["content"]] if isinstance(message["content"], str) else ["part"]:
                assert not message["content"] or json.dumps(text)[1:-1] in said

    @pytest.mark.parametrize("content", ["x" * 20, [{"type": "text", "text": "x"}]], ids=["t", "p"])
    @pytest.mark.parametrize("role", ["user", "assistant", "system", "tool", None])
    def test_many_turns_hold_nobody(self, role: str | None, content: object) -> None:
        """Twice as many messages cost twice as much, whoever says them, not four times."""
        both = ("user", "assistant")
        messages = [{"role": role or both[n % 2], "content": content} for n in range(24_000)]
        with at_most(CPU_S):
            in_turns(messages, Roles.ALTERNATING)

    @pytest.mark.parametrize("role", [None, 1, [], {}, ["user"], {"role": "user"}])
    def test_a_role_may_be_anything(self, role: object) -> None:
        """A message whose role is no text is passed on as it is."""
        odd = {"role": role, "content": "Hi"}
        for roles in (Roles.ALTERNATING, Roles.NO_SYSTEM):
            assert odd in in_turns([odd, odd, {"role": "user", "content": "Yes"}], roles)

    def test_memory_gets_no_system_messages_authority(self) -> None:
        """Memory is joined to the caller's words, never to the system message."""
        system, user = in_turns(BODY["messages"], Roles.ALTERNATING)
        assert system == {"role": "system", "content": "Be Ada."}
        assert user == {"role": "user", "content": "MEMORY\n\nHello"}

    @pytest.mark.parametrize("roles", [Roles.ALTERNATING, Roles.NO_SYSTEM])
    def test_the_last_word_is_a_users(self, roles: Roles) -> None:
        """Messages that don't end with a user's get one at the end, unless the last is a prefix."""
        system = {"role": "system", "content": "Be Ada."}
        spoke = {"role": "assistant", "content": "Hello?"}
        for messages in ([system], [system, spoke], [spoke], [{**system}, {**spoke}, spoke]):
            assert in_turns(messages, roles)[-1]["role"] == "user"
        begun = [{"role": "user", "content": "Hi"}, {**spoke, "prefix": True}]
        assert in_turns(begun, roles) == begun

    def test_tools_keep_their_order(self) -> None:
        """Tool calls and their results keep their places."""
        call = {"role": "assistant", "content": None, "tool_calls": [{"id": "t"}]}
        result = {"role": "tool", "tool_call_id": "t", "content": "4"}
        words = {"role": "assistant", "content": "Let me see."}
        asked = {"role": "user", "content": "And?"}
        messages = [{"role": "user", "content": "2+2?"}, words, call, result, words, asked]
        assert in_turns(messages, Roles.ALTERNATING) == messages


class Server:
    """Refuses its unsupported parameters, one at a time."""

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
        """A refused request is changed until it is accepted, and the next one is right at once."""
        server, learnt = Server("max_tokens", "stream_options", "temperature"), list[Dialect]()
        dialects = Dialects(lambda _, dialect: learnt.append(dialect))
        assert await dialects.asked(BODY, server.ask) == "fine"
        assert len(server.asked) == 4
        assert await dialects.asked(BODY, server.ask) == "fine"
        assert len(server.asked) == 5
        assert [len(dialect.refused) for dialect in learnt] == [1, 2, 3]
        assert server.asked[-1]["max_completion_tokens"] == 100

    @pytest.mark.parametrize(
        ("said", "hint"),
        [
            ("registry.ollama.ai/library/gemma:2b does not support tools", "takes no tools"),
            ("No endpoints found that support tool use.", "takes no tools"),
            ('"auto" tool choice requires --enable-auto-tool-choice', "takes no tools"),
            ("tools param requires --jinja flag", "takes no tools"),
            ("Unsupported param: tools", "takes no tools"),
            ("Function calling is not enabled for models/gemma-3-27b-it", "takes no tools"),
            ("Your tools are fine, your temper is not", ""),
        ],
    )
    async def test_what_is_no_dialect_has_a_remedy(self, said: str, hint: str) -> None:
        """A refusal of tools has a hint, since assistants need them; other errors have none."""

        async def ask(_: bytes) -> str:
            raise Refusal(400, error(said))

        with pytest.raises(Refusal) as refusal:
            await Dialects().asked(BODY, ask)
        assert hint in refusal.value.hint
        assert bool(refusal.value.hint) is bool(hint)

    async def test_no_more_than_so_often(self) -> None:
        """A server that refuses each new request is asked a bounded number of times."""
        many = dict.fromkeys(("top_p", "stop", "seed", "presence_penalty", "frequency_penalty"), 1)
        server = Server(*many, "temperature")
        with pytest.raises(Refusal):
            await Dialects().asked({**BODY, **many}, server.ask)
        assert len(server.asked) == RETRIES + 1

    @pytest.mark.parametrize(
        ("replies", "thinks"),
        [
            ("T", "1"),
            ("TP", "10"),
            ("PTPTTPT", "0000000"),
            ("PTTT", "0001"),
            ("PT-T-TT", "0000011"),
            ("TPTTTT", "100011"),
        ],
    )
    def test_how_a_model_thinks(self, replies: str, thinks: str) -> None:
        """A first reply teaches that thought begins without a tag; after one in words, three do."""
        learnt = list[bool]()
        dialects = Dialects(lambda _, dialect: learnt.append(dialect.thinks))
        known = list[bool]()
        for reply in replies:
            dialects.heard("m", thinks={"T": True, "P": False, "-": None}[reply])
            known.append(dialects.of("m").thinks)
        assert known == [one == "1" for one in thinks]
        assert learnt == [new for old, new in pairwise([False, *known]) if old != new]

    async def test_by_model(self) -> None:
        """Refused parameters are remembered by model, and for a bounded number of models."""
        dialects, server = Dialects(), Server("stream_options")
        for number in range(300):
            await dialects.asked({**BODY, "model": f"m{number}"}, server.ask)
        assert dialects.of("other") is ANY
        assert dialects.of("m0") is ANY
        assert dialects.of("m299") == Dialect(frozenset({"stream_options"}))
