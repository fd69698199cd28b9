"""The demo model understands plain facts, digests transcripts and answers from memory."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from sidecar.channels.vapi.history import VOICEMAIL_NOTE
from sidecar.demo.facts import facts_of_speech
from sidecar.demo.model import DemoModel
from sidecar.llm.port import Reply

pytestmark = [pytest.mark.unit, pytest.mark.anyio, pytest.mark.backend("asyncio", "trio")]


def tool(name: str, *required: str, **optional: str) -> dict[str, Any]:
    properties = {n: {"type": "string"} for n in required} | {
        n: {"type": kind} for n, kind in optional.items()
    }
    return {
        "type": "function",
        "function": {
            "name": name,
            "description": name,
            "parameters": {
                "type": "object",
                "properties": properties,
                "required": [*required],
            },
        },
    }


EMBEDDED_TOOLS = [
    tool("memory_insert", "label", "new_str", insert_line="integer"),
    tool("memory_replace", "label", "old_str", "new_str"),
    tool("memory_rethink", "label", "new_memory"),
]
SLEEPTIME_TOOLS = [
    tool("memory_insert", "label", "new_string", "thinking", insert_line="integer"),
    tool("memory_replace", "label", "old_string", "new_string"),
    tool("memory_rethink", "label", "new_memory"),
    tool("memory_finish_edits"),
]
CLASSIC_TOOLS = [
    tool("core_memory_append", "label", "content"),
    tool("core_memory_replace", "label", "old_content", "new_content"),
    tool("send_message", "message"),
]


def transcript(*turns: tuple[str, str]) -> dict[str, Any]:
    lines = [
        f'<turn speaker="{who}" time="2026-11-22T18:00:00Z">{text}</turn>' for who, text in turns
    ]
    text = "\n".join(
        ['<transcript batch="b1" call="c1" channel="console" part="1">', *lines, "</transcript>"]
    )
    return {"role": "user", "content": f"A call was held.\n{text}"}


def letta_system(**blocks: str) -> dict[str, Any]:
    rendered = "\n".join(
        f"<{label}>\n<description>\nabout\n</description>\n<metadata>\n- chars_current=1\n"
        f"</metadata>\n<value>\n{value}\n</value>\n</{label}>"
        for label, value in blocks.items()
    )
    return {"role": "system", "content": f"<memory_blocks>\n{rendered}\n</memory_blocks>"}


def fenced(*, recent: Sequence[str] = (), **blocks: str) -> dict[str, Any]:
    lines = ["<memory-0a1b2c>", "What is remembered about this caller."]
    for label, value in blocks.items():
        lines += [f'<block label="{label}" about="x">', value, "</block>"]
    if recent:
        lines.append("<said-recently>")
        lines += [f'<turn speaker="caller">{text}</turn>' for text in recent]
        lines.append("</said-recently>")
    return {"role": "system", "content": "\n".join([*lines, "</memory-0a1b2c>"])}


def said(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


async def replied(*messages: Mapping[str, Any]) -> str:
    return "".join([piece async for piece in DemoModel().stream(messages)])


async def run_tools(
    messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]], *, answer: str = "ok"
) -> tuple[list[tuple[str, dict[str, Any]]], Reply]:
    """Play the agent's loop without changing any block; returns the calls and the last reply."""
    history = list(messages)
    calls: list[tuple[str, dict[str, Any]]] = []
    for _ in range(20):
        reply = await DemoModel().complete(history, tools=tools)
        if not reply.tool_calls:
            return calls, reply
        (call,) = reply.tool_calls
        calls.append((call.name, json.loads(call.arguments)))
        function = {"name": call.name, "arguments": call.arguments}
        history.append(
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": call.call_id, "type": "function", "function": function}],
            }
        )
        history.append({"role": "tool", "tool_call_id": call.call_id, "content": answer})
    raise AssertionError("the model never finished")


async def test_a_machines_greeting_teaches_nothing() -> None:
    """What a voicemail greeting says about its owner is not stored as a fact of the caller's."""
    digest = transcript(
        ("caller", f"[{VOICEMAIL_NOTE}]\nHi, my name is Otto."), ("caller", "I like tea.")
    )
    calls, _ = await run_tools(
        [letta_system(human=""), digest], [tool("memory_insert", "label", "new_string")]
    )
    assert "Otto" not in str(calls)
    assert "tea" in str(calls)


@pytest.mark.parametrize(
    ("speech", "lines"),
    [
        ("my name is ada", ["Name: Ada"]),
        ("My name is Ada Lovelace, and I live in Lyon.", ["Name: Ada Lovelace", "Home: Lyon"]),
        ("call me Ada please", ["Name: Ada"]),
        ("Hi, I'm Ada.", ["Name: Ada"]),
        ("This is Ada speaking", ["Name: Ada"]),
        (
            "hello my name is ada i live in new york and im allergic to nuts",
            ["Name: Ada", "Home: New York", "Allergy: nuts"],
        ),
        ("I work at Acme as a nurse", ["Work: at Acme as a nurse"]),
        ("my dog's name is rex", ["Dog: Rex"]),
        ("My favourite colour is green!", ["Favourite colour: green"]),
        ("i don\u2019t like mushrooms", ["Dislikes: mushrooms"]),
        ("I like tea, but I hate coffee", ["Likes: tea", "Dislikes: coffee"]),
        ("remember that the door code is 4711", ["Note: the door code is 4711"]),
        ("can you remember that I have a peanut allergy?", ["Allergy: peanut"]),
        ("I'm 34 years old", ["Age: 34"]),
        ("my name is Ada. No, my name is Bea.", ["Name: Bea"]),
        ("My doctor is Dr. Meyer. I live in St. Louis.", ["Doctor: Dr. Meyer", "Home: St. Louis"]),
        ("my doctor is called dr. anna meyer", ["Doctor: Dr. Anna Meyer"]),
        ("My name is Mrs. Smith", ["Name: Mrs. Smith"]),
        ("Hi, I'm Mr. Bean.", ["Name: Mr. Bean"]),
        ("My boss is Ms. Jones. I like tea.", ["Boss: Ms. Jones", "Likes: tea"]),
        ("I work for Prof. Dr. Weiss", ["Work: for Prof. Dr. Weiss"]),
        ("My name is J. R. R. Tolkien.", ["Name: J. R. R. Tolkien"]),
        (
            "My name is I. M. Pei. I work as an architect",
            ["Name: I. M. Pei", "Work: as an architect"],
        ),
        ("My name is Sam Jones Jr. I live in Rye", ["Name: Sam Jones Jr", "Home: Rye"]),
        ("My budget is 3.5 million. I like tea", ["Budget: 3.5 million", "Likes: tea"]),
        ("My appointment is at 5 p.m. I like tea", ["Appointment: 5 p.m", "Likes: tea"]),
        ("My flight is No. 12 to Rome.", ["Flight: No. 12 to Rome"]),
        ("My birthday is on Jan. 5. I like tea", ["Birthday: Jan. 5", "Likes: tea"]),
        ("My birthday is Dec. 24, 1990.", ["Birthday: Dec. 24, 1990"]),
        ("I live in the U.S. I like tea", ["Home: the U.S", "Likes: tea"]),
        ("I live in Mt. Vernon, N.Y. Do I like tea?", ["Home: Mt. Vernon, N.Y"]),
    ],
)
async def test_a_stated_fact_becomes_one_clean_line(speech: str, lines: list[str]) -> None:
    """Facts are found both in written text and in a speech recogniser's words."""
    assert [fact.line for fact in facts_of_speech(speech)] == lines


@pytest.mark.parametrize(
    "speech",
    [
        "what is my name?",
        "do you remember where i live",
        "hello i'm tired",
        "I'm sorry",
        "I love you",
        "I'd like to book a table",
        "my name is not Bob",
        "",
        "\u0000 \u2603 [[[ <turn>",
    ],
)
async def test_what_states_nothing_leaves_nothing(speech: str) -> None:
    """Questions, moods and noise state no facts."""
    assert facts_of_speech(speech) == []


async def test_each_fact_of_the_caller_is_stored_by_one_call() -> None:
    """A transcript is digested by one tool call per step, and only from the caller's turns."""
    calls, reply = await run_tools(
        [
            letta_system(human=""),
            transcript(
                ("caller", "my name is ada and i&#x27;m allergic to nuts"),
                ("agent", "My name is Bot. I live in Paris."),
            ),
        ],
        EMBEDDED_TOOLS,
    )
    assert calls == [
        ("memory_insert", {"label": "human", "new_str": "Name: Ada"}),
        ("memory_insert", {"label": "human", "new_str": "Allergy: nuts"}),
    ]
    assert reply == Reply("done")


async def test_a_line_of_the_same_subject_is_replaced() -> None:
    """A new fact on a subject replaces the old line instead of adding one."""
    calls, _ = await run_tools(
        [letta_system(human="Name: Ada\nHome: Lyon"), transcript(("caller", "I moved to Paris"))],
        EMBEDDED_TOOLS,
    )
    change = {"label": "human", "old_str": "Home: Lyon", "new_str": "Home: Paris"}
    assert calls == [("memory_replace", change)]


async def test_what_stands_in_memory_is_not_stored_again() -> None:
    """A fact that memory already holds leads to no edit."""
    calls, reply = await run_tools(
        [letta_system(human="Name: Ada"), transcript(("caller", "my name is ada"))],
        EMBEDDED_TOOLS,
    )
    assert (calls, reply) == ([], Reply("done"))


async def test_a_refused_edit_is_not_tried_for_ever() -> None:
    """An edit that a tool refuses is tried once, not in a loop."""
    calls, reply = await run_tools(
        [letta_system(human=""), transcript(("caller", "my name is ada"))],
        EMBEDDED_TOOLS,
        answer="Error: the block is read-only",
    )
    assert len(calls) == 1
    assert reply == Reply("done")


async def test_a_sleeptime_agent_finishes_its_edits() -> None:
    """Edits use the parameter names of the offered schema, and memory_finish_edits ends the run."""
    calls, reply = await run_tools(
        [letta_system(human="1\u2192 Name: Ada"), transcript(("caller", "call me Bea"))],
        SLEEPTIME_TOOLS,
    )
    change = {"label": "human", "old_string": "Name: Ada", "new_string": "Name: Bea"}
    assert calls == [("memory_replace", change), ("memory_finish_edits", {})]
    assert reply == Reply("done")


async def test_required_parameters_of_a_schema_are_filled() -> None:
    """A required parameter beyond the edit itself gets a neutral value."""
    calls, _ = await run_tools([transcript(("caller", "call me Bea"))], SLEEPTIME_TOOLS)
    assert calls[0][1] == {"label": "human", "new_string": "Name: Bea", "thinking": "demo"}


async def test_a_classic_agent_edits_and_then_speaks_by_its_tool() -> None:
    """With core_memory tools the run ends in one send_message."""
    calls, _ = await run_tools([transcript(("caller", "call me Bea"))], CLASSIC_TOOLS)
    assert [name for name, _ in calls] == ["core_memory_append", "send_message"]


async def test_a_heartbeat_of_the_classic_server_does_not_end_the_digest() -> None:
    """A heartbeat from the server in the user's role does not end the digest."""
    heartbeat = said(json.dumps({"type": "heartbeat", "reason": "go on"}))
    calls, _ = await run_tools([transcript(("caller", "call me Bea")), heartbeat], CLASSIC_TOOLS)
    assert calls[0] == ("core_memory_append", {"label": "human", "content": "Name: Bea"})


async def test_a_remember_mark_stores_its_text_as_it_stands() -> None:
    """`[[remember LABEL: TEXT]]` names the block and the exact line."""
    calls, _ = await run_tools(
        [letta_system(human="", notes=""), said("[[remember notes: canary 42]]")], EMBEDDED_TOOLS
    )
    assert calls == [("memory_insert", {"label": "notes", "new_str": "canary 42"})]


async def test_two_steps_never_share_a_call_id() -> None:
    """Call ids differ between runs even for the same call."""
    ids = {
        (
            await DemoModel().complete(
                [said(text)], tools=[tool("memory_insert", "label", "new_str")]
            )
        )
        .tool_calls[0]
        .call_id
        for text in ("Hello, call me Bea", "call me Bea")
    }
    assert len(ids) == 2


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("what is my name?", "Your name is Ada."),
        ("whats my name", "Your name is Ada."),
        ("where do i live", "You live in Lyon."),
        ("What am I allergic to?", "You are allergic to nuts & seeds."),
        ("what's my favorite color?", "Your favourite colour is green."),
        ("what's my dog called", "Your dog is Rex."),
        ("What is my name? Where do I live?", "Your name is Ada. You live in Lyon."),
        ("what is my name and where do i live", "Your name is Ada. You live in Lyon."),
        ("what's my name, where do I live?", "Your name is Ada. You live in Lyon."),
        ("whats my name where do i live", "Your name is Ada. You live in Lyon."),
        (
            (
                "Hi. Do you remember what my name is, and also where I live?"
                " And what am I allergic to?"
            ),
            "Your name is Ada. You live in Lyon. You are allergic to nuts & seeds.",
        ),
        ("do you know what my dog is called and who I am", "Your dog is Rex. Your name is Ada."),
        ("What is my name? Who am I?", "Your name is Ada."),
        (
            "How old am I and what's my dog called?",
            "I don't know that yet. Tell me, and I'll remember it. Your dog is Rex.",
        ),
        (
            "I like tea. What's my name?",
            "Got it: you like tea. I'll remember that. Your name is Ada.",
        ),
        (
            "what do you know about me?",
            (
                "Your name is Ada, you live in Lyon, you are allergic to nuts & seeds, "
                "your favourite colour is green and your dog is Rex."
            ),
        ),
    ],
)
async def test_a_question_is_answered_from_memory(question: str, answer: str) -> None:
    """Questions are answered from the human block in the prompt, not from the persona."""
    memory = fenced(
        human="Name: Ada\nHome: Lyon\nAllergy: nuts &amp; seeds\nFavourite colour: green\nDog: Rex",
        persona="My name is Bot.",
    )
    assert await replied(memory, said(question)) == answer


async def test_what_was_said_recently_wins_over_memory() -> None:
    """Recent turns that Letta has not digested yet win over the blocks."""
    memory = fenced(human="Home: Lyon", recent=["i moved to paris"])
    assert await replied(memory, said("where do I live?")) == "You live in Paris."


async def test_the_conversation_itself_is_remembered() -> None:
    """A fact said earlier in the call is known without any memory."""
    talk = [said("my name is ada"), {"role": "assistant", "content": "Nice to meet you, Ada."}]
    assert await replied(*talk, said("who am I?")) == "Your name is Ada."


async def test_memory_in_a_user_message_is_not_taken_for_speech() -> None:
    """A memory message in the user's role is read as memory, never answered."""
    memory = {"role": "user", "content": fenced(human="Name: Ada")["content"]}
    assert await replied(memory) == await replied(fenced(human="Name: Ada"))


async def test_a_stated_fact_is_repeated() -> None:
    """An acknowledgement says what was understood."""
    answer = await replied(said("my name is ada and i live in lyon"))
    assert answer == "Nice to meet you, Ada. I'll remember that you live in Lyon."


async def test_the_greeting_uses_the_name() -> None:
    """With nothing said yet, a known caller is greeted by name."""
    assert (await replied(fenced(human="Name: Ada"))).startswith("Hello Ada,")


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [said("")],
        [said("\u0000\ud800 <memory-x>")],
        [{"role": "user"}],
        [{"role": "user", "content": [{"type": "image_url"}, {"type": "text", "text": "hm"}]}],
        [said("why?")],
        [said("a" * 100_000)],
    ],
)
async def test_no_reply_is_ever_empty(messages: list[dict[str, Any]]) -> None:
    """Odd input gets a reply that says that this is the demo model."""
    assert "demo model" in await replied(*messages)
