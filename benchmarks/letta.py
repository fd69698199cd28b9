"""Every generation of Letta side by side, and Letta itself as the voice's language model.

A stand-in for the language model answers at once, in a process beside each server, so that only
Letta's own time is measured. The servers are the real ones where they are installed (`make
letta-server`, `make app-server`); a row without its server says so. Reads follow one another, and
the first one is of an agent that was never read. A post is one batch of one turn in a new
conversation, with and without a fact to remember.

`first token` rows stream a reply to one short question, by turns with the model alone: through the
sidecar's VAPI endpoint with memory in the prompt (ours), through the App Server's `--openai-api` in
one chat and in a new one each time, and through the classic server's chat completions, the API that
LiveKit's `openai.LLM.with_letta` uses.
"""

import json
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import aiohttp
import anyio
from letta_client import AsyncLetta

from benchmarks.figures import Figures, milliseconds, percentile
from sidecar.demo.model import DemoModel
from sidecar.letta.app_server.letta import AppServerLetta
from sidecar.letta.digest_agent import DIGEST_SYSTEM
from sidecar.letta.embedded.letta import EmbeddedLetta
from sidecar.letta.port import AgentSpec, Letta, Post
from sidecar.letta.rest.letta import RestLetta
from sidecar.model import Block
from tests.app_server.stack import MODEL as APP_SERVER_MODEL
from tests.app_server.stack import AppServerStack
from tests.app_server.stack import installed as app_server_installed
from tests.letta_server.stack import EMBEDDING, MODEL, LettaStack
from tests.letta_server.stack import installed as classic_installed
from tests.sidecar_process import COLD, SidecarProcess

READS, POSTS, TOKENS = 200, 20, 50
QUICK_READS, QUICK_POSTS, QUICK_TOKENS = 10, 2, 3
BLOCKS, BLOCK_CHARS = 8, 800
QUESTION = "Hello"
BUDGET_S = 30.0


async def measure(quick: bool) -> Figures:
    """Return a row for each generation, and one for each way to a first token.

    With `quick`, the classic server is left out: it takes half a minute to start.
    """
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        rows: dict[str, Figures] = {"embedded": await _embedded(directory, quick)}
        rows["classic REST"] = {"absent": "make letta-server"}
        rows["App Server"] = {"absent": "make app-server"}
        if quick:
            rows["classic REST"] = {"absent": "--quick"}
        elif classic_installed():
            with LettaStack(directory / "classic", redis=True) as server:
                rows["classic REST"] = await _classic(server, quick)
                rows |= await _first_token_of_classic(server, quick)
        if app_server_installed():
            with AppServerStack(directory / "app-server", openai_api=True) as server:
                rows["App Server"] = await _app_server(server, quick)
                rows |= await _first_token_of_app_server(server, directory, quick)
        return rows


def _spec(model: str, embedding: str = "") -> AgentSpec:
    value = ("likes sailing and tea. " * BLOCK_CHARS)[:BLOCK_CHARS]
    blocks = [Block(f"notes{n}", value, "notes", limit_chars=5_000) for n in range(BLOCKS - 1)]
    human = Block("human", "", "the caller", limit_chars=20_000)
    tags = ("bench", uuid.uuid4().hex)
    return AgentSpec("bench", DIGEST_SYSTEM, [human, *blocks], tags, model, embedding)


async def _embedded(directory: Path, quick: bool) -> Figures:
    letta = await EmbeddedLetta.open(directory / "letta.db", llm=DemoModel())
    try:
        return await _reads_and_posts(letta, _spec(""), quick)
    finally:
        await letta.aclose()


async def _classic(server: LettaStack, quick: bool) -> Figures:
    letta = RestLetta(server.base_url, server.api_key, read_timeout_s=BUDGET_S)
    try:
        return await _reads_and_posts(letta, _spec(MODEL, EMBEDDING), quick)
    finally:
        await letta.aclose()


async def _app_server(server: AppServerStack, quick: bool) -> Figures:
    letta = AppServerLetta(server.url, server.token, read_timeout_s=BUDGET_S)
    try:
        return await _reads_and_posts(letta, _spec(APP_SERVER_MODEL), quick)
    finally:
        await letta.aclose()


async def _reads_and_posts(letta: Letta, spec: AgentSpec, quick: bool) -> Figures:
    agent_id = await letta.create_agent(spec)
    first_s = await _took(letta, agent_id)
    reads = [await _took(letta, agent_id) for _ in range(QUICK_READS if quick else READS)]
    plain: list[float] = []
    edits: list[float] = []
    for number in range(QUICK_POSTS if quick else POSTS):
        for took, words in (
            (plain, "Well, fine then"),
            (edits, f"[[remember human: Said {number}]]"),
        ):
            conversation_id = await letta.open_conversation(agent_id, label="bench")
            post = _post(agent_id, conversation_id, words)
            began_s = time.perf_counter()
            await letta.post(post)
            took.append(time.perf_counter() - began_s)
    human = next(b for b in await letta.read_blocks(agent_id) if b.label == "human")
    assert human.value.count("Said ") == len(edits), "a post did not edit"
    return {
        "first_read_ms": milliseconds(first_s),
        "refresh_p50_ms": milliseconds(percentile(reads, 0.5)),
        "refresh_p99_ms": milliseconds(percentile(reads, 0.99)),
        "post_p50_ms": milliseconds(percentile(plain, 0.5)),
        "post_edit_p50_ms": milliseconds(percentile(edits, 0.5)),
        "samples": len(reads),
    }


async def _took(letta: Letta, agent_id: str) -> float:
    began_s = time.perf_counter()
    assert len(await letta.read_blocks(agent_id)) == BLOCKS
    return time.perf_counter() - began_s


def _post(agent_id: str, conversation_id: str, words: str) -> Post:
    batch_id = str(uuid.uuid4())
    text = (
        f'<transcript batch="{batch_id}" call="bench" channel="console" caller="k" part="1"'
        f' final="true">\n<turn speaker="caller" time="2026-11-22T18:00:00Z">{words}</turn>\n'
        "</transcript>"
    )
    return Post(batch_id, agent_id, conversation_id, text, time.time())


# Time to the first token


async def _first_token_of_classic(server: LettaStack, quick: bool) -> dict[str, Figures]:
    spec = _spec(MODEL, EMBEDDING)
    async with AsyncLetta(base_url=server.base_url, api_key=server.api_key or None) as client:
        # Not one of ours: those digest and give no answer to a caller.
        talking = await client.agents.create(
            agent_type="letta_v1_agent",
            name=spec.name,
            memory_blocks=[{"label": b.label, "value": b.value} for b in spec.blocks],
            model=MODEL,
            embedding=EMBEDDING,
            include_base_tools=False,
        )
    agent_id = talking.id
    ways = {
        "first token: model, beside classic": _Way(f"{server.llm_url}/v1", "demo"),
        "first token: Letta, classic": _Way(f"{server.base_url}/v1", agent_id, server.api_key),
    }
    return await _first_tokens(ways, quick)


async def _first_token_of_app_server(
    server: AppServerStack, directory: Path, quick: bool
) -> dict[str, Figures]:
    letta = AppServerLetta(server.url, server.token, read_timeout_s=BUDGET_S)
    try:
        agent_id = await letta.create_agent(_spec(APP_SERVER_MODEL))
    finally:
        await letta.aclose()
    env = {
        "LETTA_APP_SERVER_URL": server.url,
        "LETTA_APP_SERVER_TOKEN": server.token,
        "LLM_BASE_URL": f"{server.llm_url}/v1",
        "SIDECAR_AGENT_ID": agent_id,
        "SIDECAR_LOG_LEVEL": "info",
    }
    api = f"{server.url.replace('ws', 'http', 1)}/v1"
    with SidecarProcess(directory / "data", env, command=COLD) as sidecar:
        ways = {
            "first token: model, beside App Server": _Way(f"{server.llm_url}/v1", "demo"),
            "first token: ours": _Way(
                f"{sidecar.url}/vapi", "demo", sidecar.link_token, as_vapi=True
            ),
            "first token: Letta, App Server, one chat": _Way(
                api, agent_id, server.token, chat="bench"
            ),
            "first token: Letta, App Server, new chat": _Way(
                api, agent_id, server.token, chat="new"
            ),
        }
        return await _first_tokens(ways, quick)


class _Way:
    """One way to ask for a reply.

    Args:
        base_url: The URL before `/chat/completions`.
        model: Named in the request.
        key: Bearer token, or empty.
        chat: The App Server's chat key; `new` is another one each time.
        as_vapi: Send the body of a VAPI call.
    """

    def __init__(
        self, base_url: str, model: str, key: str = "", *, chat: str = "", as_vapi: bool = False
    ) -> None:
        self.url = f"{base_url}/chat/completions"
        self._model = model
        self._key = key
        self._chat = chat
        self._as_vapi = as_vapi

    def headers(self) -> Mapping[str, str]:
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        if self._chat:
            headers["X-Letta-Chat-Key"] = uuid.uuid4().hex if self._chat == "new" else self._chat
        return headers

    def body(self) -> Mapping[str, object]:
        messages = [{"role": "user", "content": QUESTION}]
        body: dict[str, object] = {"model": self._model, "stream": True, "messages": messages}
        if self._as_vapi:
            body["messages"] = [{"role": "system", "content": "You are Ada."}, *messages]
            body["call"] = {"id": "bench", "type": "inboundPhoneCall"}
        return body


async def _first_tokens(ways: Mapping[str, _Way], quick: bool) -> dict[str, Figures]:
    """Ask each way in turn, so that other load on the machine affects all of them."""
    took: dict[str, list[float]] = {name: [] for name in ways}
    async with aiohttp.ClientSession() as session:
        for number in range(1 + (QUICK_TOKENS if quick else TOKENS)):
            for name, way in ways.items():
                first_s = await _first_token_s(session, way)
                if number:  # the first of each opens its connection and its chat
                    took[name].append(first_s)
    base = percentile(next(iter(took.values())), 0.5)
    return {
        name: {
            "p50_ms": milliseconds(percentile(values, 0.5)),
            "p99_ms": milliseconds(percentile(values, 0.99)),
            "over_model_p50_ms": milliseconds(percentile(values, 0.5) - base),
            "samples": len(values),
        }
        for name, values in took.items()
    }


async def _first_token_s(session: aiohttp.ClientSession, way: _Way) -> float:
    began_s = time.perf_counter()
    first_s = 0.0
    with anyio.fail_after(BUDGET_S):
        async with session.post(way.url, json=way.body(), headers=way.headers()) as answer:
            assert answer.status == 200, (way.url, answer.status, await answer.text())
            async for line in answer.content:
                if not first_s and _speaks(line):
                    first_s = time.perf_counter() - began_s
    assert first_s, f"{way.url} said nothing"
    return first_s


def _speaks(line: bytes) -> bool:
    """Return whether a server-sent event has words of the reply."""
    if not line.startswith(b"data: {"):
        return False
    choices: Sequence[Mapping[str, Mapping[str, object]]] = json.loads(line[6:]).get("choices", ())
    return any((choice.get("delta") or {}).get("content") for choice in choices)
