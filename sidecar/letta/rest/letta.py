"""Letta over REST through letta-client: Letta Cloud and the classic self-hosted server.

Theory of operation. A post goes out as a *background* run under an otid: the server keeps the
run's stream in Redis, so a second post of the same otid joins the run rather than starting one,
and a look-up can ask for it. A server without Redis answers 503; then posts go out in the
foreground, without these two advantages (docs/letta.md describes the windows).
"""

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Final
from urllib.parse import quote, urlsplit

import anyio
from letta_client import APIStatusError
from typing_extensions import override

from sidecar.errors import (
    AgentNotFound,
    ConversationGone,
    LettaUnavailable,
    OutcomeUnknown,
    Rejected,
)
from sidecar.letta.port import AgentSpec, Finding, FoundAgent, Letta, Post
from sidecar.letta.rest import agents, wire
from sidecar.letta.rest.client import (
    CLOUD_URL,
    KEEPALIVE_S,
    asking,
    of_agent,
    open_client,
    unix_s,
)
from sidecar.letta.rest.lookup import OTID_LOOKUP_S, PostLookUp
from sidecar.letta.rest.requests import (
    AgentAnswer,
    IdAnswer,
    LeanRequests,
    ListedAgentAnswer,
    PassagesAnswer,
)
from sidecar.model import Block, Passage

# How long a server that has said it has no Redis is believed to have none.
_BACKGROUND_AGAIN_S: Final = 600.0
_BATCHES_REMEMBERED: Final = 10_000
_PAGE: Final = 100
_READS_LIMIT: Final = 50
_WITH_BLOCKS: Final = {"include": "agent.blocks"}


class RestLetta(Letta):
    """The adapter. Reads and posts use separate connections.

    Args:
        base_url: Of the server; None or empty is Letta Cloud.
        api_key: Bearer token; None or empty where the server asks for none.
        read_timeout_s: Deadline of a read and of each step of a look-up, except the look-up of
            an otid, on which the server itself spends 1.75 s.
        post_timeout_s: Deadline of a post, its digestion included.
        run_cutoff_s: A run that is active for longer counts as dead. More than the 300 s for which
            a classic server locks a conversation, or a second post would only meet the lock.
        post_limit: Posts that may be under way at once; more wait for a connection.
        clock: The machine's Unix time: the times of runs are compared with it.
    """

    def __init__(
        self,
        base_url: str | None,
        api_key: str | None,
        *,
        read_timeout_s: float = 5.0,
        post_timeout_s: float = 120.0,
        run_cutoff_s: float = 330.0,
        post_limit: int = 100,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._base_url = base_url or CLOUD_URL
        self._read_timeout_s = read_timeout_s
        self._post_timeout_s = post_timeout_s
        self._reads = open_client(
            self._base_url, api_key, timeout_s=read_timeout_s, limit=_READS_LIMIT
        )
        self._posts = open_client(
            self._base_url, api_key, timeout_s=post_timeout_s, limit=post_limit
        )
        self._lean_reads = LeanRequests(
            self._reads, timeout_s=read_timeout_s, limit=_READS_LIMIT, keepalive_s=KEEPALIVE_S
        )
        self._lean_posts = LeanRequests(
            self._posts, timeout_s=post_timeout_s, limit=post_limit, keepalive_s=KEEPALIVE_S
        )
        self._lean_lookups = LeanRequests(
            self._posts,
            timeout_s=OTID_LOOKUP_S + read_timeout_s,
            limit=post_limit,
            keepalive_s=KEEPALIVE_S,
        )
        self._look_up = PostLookUp(
            self._lean_lookups, timeout_s=read_timeout_s, cutoff_s=run_cutoff_s, clock=clock
        )
        self._no_background_until_s = -math.inf
        self._next_otid: OrderedDict[str, int] = OrderedDict()

    @property
    @override
    def name(self) -> str:
        if self._base_url == CLOUD_URL:
            return "Letta Cloud"
        return f"Letta at {urlsplit(self._base_url).netloc.rpartition('@')[2]}"

    # Reading

    @override
    async def read_blocks(self, agent_id: str) -> tuple[Block, ...]:
        async with asking("memory", self._read_timeout_s), of_agent():
            agent = await self._lean_reads.ask(
                "GET", f"/v1/agents/{quote(agent_id, safe='')}", AgentAnswer, params=_WITH_BLOCKS
            )
        blocks = [
            Block(
                label=block.label or "",
                value=block.value,
                description=block.description or "",
                limit_chars=block.limit,
                read_only=bool(block.read_only),
            )
            for block in agent.blocks
        ]
        return tuple(sorted(blocks, key=lambda block: block.label))

    @override
    async def search_passages(
        self, agent_id: str, query: str, *, limit: int
    ) -> tuple[Passage, ...]:
        async with asking("archival memory", self._read_timeout_s), of_agent():
            answer = await self._lean_reads.ask(
                "GET",
                f"/v1/agents/{quote(agent_id, safe='')}/archival-memory/search",
                PassagesAnswer,
                params={"query": query, "top_k": str(limit)},
            )
        found = [Passage(one.id, one.content) for one in answer.results if one.content.strip()]
        return tuple(found[:limit])

    @override
    async def find_agents(self, tags: Sequence[str]) -> Sequence[FoundAgent]:
        found: dict[str, FoundAgent] = {}
        last: set[str] = set()
        async with asking("agents by tag", self._read_timeout_s):
            params = [
                *(("tags", tag) for tag in tags),
                ("match_all_tags", "true"),
                ("include", "agent.tags"),
                ("limit", str(_PAGE)),
            ]
            while True:
                page = await self._lean_reads.ask(
                    "GET", "/v1/agents/", list[ListedAgentAnswer], params=params
                )
                # A server without `match_all_tags` would return other callers' agents.
                found |= {
                    agent.id: FoundAgent(
                        agent_id=agent.id,
                        name=agent.name,
                        tags=tuple(agent.tags),
                        created_at_s=unix_s(agent.created_at) or 0.0,
                    )
                    for agent in page
                    if set(tags) <= set(agent.tags)
                }
                if len(page) < _PAGE or page[-1].id in last:  # it ignores `after`
                    break
                last.add(page[-1].id)
                params = [*(p for p in params if p[0] != "after"), ("after", page[-1].id)]
        return sorted(found.values(), key=lambda agent: (agent.created_at_s, agent.agent_id))

    # Agents and conversations

    @override
    async def open_conversation(self, agent_id: str, *, label: str) -> str:
        async with asking("a new conversation", self._read_timeout_s), of_agent():
            opened = await self._lean_posts.ask(
                "POST",
                "/v1/conversations/",
                IdAnswer,
                params={"agent_id": agent_id},
                body={"summary": label},
            )
        return opened.id

    @override
    async def create_agent(self, spec: AgentSpec) -> str:
        # The server compiles the agent's first prompt and checks its model.
        timeout_s = 4 * self._read_timeout_s
        async with asking("a new agent", timeout_s):
            return await agents.create(
                self._reads, spec, on_cloud=self._base_url == CLOUD_URL, timeout_s=timeout_s
            )

    async def export_agent(self, agent_id: str) -> str:
        """Return an agent's file, as `KnowsAgentFiles` promises."""
        timeout_s = 4 * self._read_timeout_s
        async with asking("an agent's file", timeout_s), of_agent():
            return await agents.export_file(self._reads, agent_id, timeout_s=timeout_s)

    async def import_agent(self, file: str, *, tags: Sequence[str]) -> str:
        """Make an agent of a file, as `KnowsAgentFiles` promises."""
        timeout_s = 4 * self._read_timeout_s
        async with asking("an agent's file", timeout_s):
            return await agents.import_file(self._reads, file, tags=tags, timeout_s=timeout_s)

    @override
    async def delete_agent(self, agent_id: str) -> None:
        with suppress(AgentNotFound):
            async with asking("deleting an agent", self._read_timeout_s), of_agent():
                await self._lean_reads.ask(
                    "DELETE", f"/v1/agents/{quote(agent_id, safe='')}", object
                )

    @override
    async def erase_agent(self, agent_id: str) -> None:
        # The classic server leaves an agent's blocks behind, with all that they say. They are
        # deleted first: once the agent is gone, nothing shows which blocks it had.
        with suppress(AgentNotFound):
            async with asking("an agent's blocks", self._read_timeout_s), of_agent():
                agent = await self._lean_reads.ask(
                    "GET",
                    f"/v1/agents/{quote(agent_id, safe='')}",
                    AgentAnswer,
                    params=_WITH_BLOCKS,
                )
            for block_id in [block.id for block in agent.blocks if block.id]:
                path = f"/v1/blocks/{quote(block_id, safe='')}"
                async with asking("deleting a block", self._read_timeout_s):
                    users = await self._lean_reads.ask(
                        "GET", f"{path}/agents", list[IdAnswer], params={"limit": "2"}
                    )
                    if {user.id for user in users} <= {agent_id}:
                        await self._lean_reads.ask("DELETE", path, object)
        await self.delete_agent(agent_id)

    @override
    async def erase_conversation(self, agent_id: str, conversation_id: str) -> None:
        async with asking("deleting a conversation", self._read_timeout_s):
            try:
                await self._lean_reads.ask(
                    "DELETE", f"/v1/conversations/{quote(conversation_id, safe='')}", object
                )
            except APIStatusError as error:
                if not wire.is_missing(error, parameter="conversation_id"):
                    raise

    # Posting

    @override
    async def post(self, post: Post) -> None:
        try:
            await self._send(post, background=self._may_use_background())
        except _NoBackground:
            self._no_background_until_s = time.monotonic() + _BACKGROUND_AGAIN_S
            await self._send(post, background=False)
        self._next_otid.pop(post.batch_id, None)

    async def _send(self, post: Post, *, background: bool) -> None:
        number = self._next_otid.get(post.batch_id, 0)
        otid = wire.wire_otid(post.batch_id, number)
        try:
            with anyio.fail_after(self._post_timeout_s):
                reason = await self._stop_reason(
                    post.conversation_id,
                    {
                        "messages": [{"role": "user", "content": post.text, "otid": otid}],
                        "background": background,
                        "include_pings": True,
                    },
                )
        except TimeoutError as error:
            raise OutcomeUnknown(
                f"the agent had not digested the post in {self._post_timeout_s:.0f} s"
            ) from error
        except wire.WIRE_ERRORS as error:
            await self._raise_ours(post, error, number, background=background)
            return
        if reason is None:
            raise OutcomeUnknown("the post's stream ended early")
        if reason not in wire.DONE:
            ours = wire.stopped(reason)
            if not isinstance(ours, Rejected):
                raise ours
            await self._require_absent(post, ours)

    async def _raise_ours(
        self, post: Post, error: Exception, number: int, *, background: bool
    ) -> None:
        """Raise our error for a post that failed; return if it is stored nevertheless."""
        if background and isinstance(error, APIStatusError) and wire.wants_no_background(error):
            raise _NoBackground from error
        ours = wire.post_error(error, protected=background)
        if isinstance(ours, Rejected) and wire.was_accepted(error):
            await self._require_absent(post, ours)
            return
        if isinstance(ours, ConversationGone):
            if wire.was_accepted(error):
                self._send_next_under(post.batch_id, number + 1)
            with suppress(LettaUnavailable):
                await self._look_up.check_agent(post.agent_id)
        raise ours from error

    async def _require_absent(self, post: Post, error: Rejected) -> None:
        """Raise the error of a run that would fail each time, unless its message is stored.

        Returns when the run failed in a later step: its message is stored, and is not sent again.
        """
        try:
            finding = await self.find(post)
        except LettaUnavailable as failure:
            raise OutcomeUnknown(error.message, over=True, hint=error.hint) from failure
        if finding == "running":
            raise OutcomeUnknown(error.message, hint=error.hint)
        if finding == "absent":
            raise error

    async def _stop_reason(self, conversation_id: str, body: Mapping[str, object]) -> str | None:
        """Post, and follow the run to its end; return its stop reason, None if it names none."""
        reason: str | None = None
        path = f"/v1/conversations/{quote(conversation_id, safe='')}/messages"
        async with self._lean_posts.events(path, body=body) as events:
            async for event in events:
                if event.message_type == "stop_reason":
                    reason = event.stop_reason
        return reason

    def _may_use_background(self) -> bool:
        return time.monotonic() >= self._no_background_until_s

    # Looking up

    @override
    async def find(self, post: Post) -> Finding:
        finding, number = await self._look_up.find(
            post,
            number=self._next_otid.get(post.batch_id, 0),
            by_otid=self._may_use_background(),
        )
        if number:
            self._send_next_under(post.batch_id, number)
        return finding

    def _send_next_under(self, batch_id: str, number: int) -> None:
        """Remember the otid a batch goes out under next; `find` works it out if it is forgotten."""
        self._next_otid[batch_id] = number
        while len(self._next_otid) > _BATCHES_REMEMBERED:
            self._next_otid.popitem(last=False)

    # The rest

    @override
    async def aclose(self) -> None:
        for connections in (self._lean_reads, self._lean_posts, self._lean_lookups):
            await connections.aclose()
        await self._reads.close()
        await self._posts.close()


class _NoBackground(Exception):
    """The server has no Redis."""
