"""Finds out what became of a post over REST.

Theory of operation. The order of the steps leaves no gap: first the stream of each otid the batch
went out under, then active runs, then the stored messages. A run stores its message before it ends,
so a post that is in no active run and no stored message is absent. A run that has been active for
longer than a cut-off counts as dead: a server that died during a run leaves it active.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal, TypeAlias
from urllib.parse import quote

import anyio
from letta_client import APIStatusError

from sidecar.errors import LettaUnavailable
from sidecar.letta.port import Finding, Post
from sidecar.letta.rest import wire
from sidecar.letta.rest.client import asking, of_agent, unix_s
from sidecar.letta.rest.requests import IdAnswer, LeanRequests, MessageAnswer, RunAnswer

# A stream that goes on for longer belongs to a run at work, or to a server that died.
_PEEK_S: Final = 1.0
# stream(otid=) of 0.16.8 asks Redis three times over 1.75 s before it answers 404.
OTID_LOOKUP_S: Final = 3.0
# Largest difference allowed between this machine's clock and the server's.
_SKEW_S: Final = 120.0
_PAGE: Final = 100
_PAGES: Final = 50
# Runs of one batch asked for in one look-up; the next look-up continues after them. Letta remembers
# each for 3 h, and a model that is down for long leaves one a minute.
_OTIDS_TRIED: Final = 50

_Fate: TypeAlias = Literal["unheard", "running", "done", "over"]


@dataclass(frozen=True, slots=True)
class _Trace:
    """What became of one otid: `unheard`, `running`, `done` (stored) or `over` (perhaps not)."""

    fate: _Fate
    run_id: str = ""


class PostLookUp:
    """Looks posts up; one instance serves all posts.

    Args:
        requests: Sends its requests.
        timeout_s: Deadline of each step; the look-up of an otid gets 3 s more, since the server
            spends 1.75 s on one it does not know.
        cutoff_s: A run that is active for longer counts as dead.
        clock: Unix time in seconds.
    """

    def __init__(
        self,
        requests: LeanRequests,
        *,
        timeout_s: float,
        cutoff_s: float,
        clock: Callable[[], float],
    ) -> None:
        self._requests = requests
        self._timeout_s = timeout_s
        self._cutoff_s = cutoff_s
        self._clock = clock

    async def find(self, post: Post, *, number: int, by_otid: bool) -> tuple[Finding, int]:
        """Look a post up.

        Args:
            post: Of unknown outcome.
            number: Number of the otid it was last sent under, as far as known (`wire.wire_otid`).
            by_otid: The server keeps the streams of its runs (it has Redis).

        Returns:
            What `Letta.find` returns, and the number of the otid to send it under next. An otid
            whose run has ended without a trace is skipped, since a post under it would be
            answered from that run.

        Raises:
            LettaError: as `Letta.find`.
        """
        ended: set[str] = set()
        for _ in range(_OTIDS_TRIED if by_otid else 0):
            trace = await self._trace(post, wire.wire_otid(post.batch_id, number))
            if trace.fate == "done":
                return "found", number
            if trace.fate == "running":
                return "running", number
            if trace.fate == "unheard":
                break
            ended.add(trace.run_id)
            number += 1
        if await self._is_at_work(post, ended):
            return "running", number
        if await self._is_stored(post, number):
            return "found", number
        await self.check_agent(post.agent_id)
        return "absent", number

    async def _trace(self, post: Post, otid: str) -> _Trace:
        """Return what Redis knows of the run that took this otid."""
        run_id, reason = "", None
        async with asking("a post's run", OTID_LOOKUP_S + self._timeout_s):
            try:
                async with self._requests.events(
                    f"/v1/conversations/{quote(post.conversation_id, safe='')}/stream",
                    body={"otid": otid, "include_pings": False},
                ) as events:
                    with anyio.move_on_after(_PEEK_S):
                        async for event in events:
                            run_id = run_id or event.run_id or ""
                            if event.message_type == "stop_reason":
                                reason = event.stop_reason
            except APIStatusError as error:
                if wire.was_accepted(error):
                    reason = reason or "error"
                elif error.status_code in wire.NO_STREAM or wire.wants_no_background(error):
                    return _Trace("unheard")
                else:
                    raise
        if reason is not None:
            return _Trace("done" if reason in wire.DONE else "over", run_id)
        return await self._trace_of_run(run_id) if run_id else _Trace("over")

    async def _trace_of_run(self, run_id: str) -> _Trace:
        """Return what the database knows of a run whose stream has not ended."""
        async with asking("a run", self._timeout_s):
            run = await self._requests.ask("GET", f"/v1/runs/{quote(run_id, safe='')}", RunAnswer)
        if run.stop_reason is not None:
            return _Trace("done" if run.stop_reason in wire.DONE else "over", run_id)
        alive = run.status in wire.ACTIVE and self._is_young(run.created_at)
        return _Trace("running" if alive else "over", run_id)

    async def _is_at_work(self, post: Post, ended: set[str]) -> bool:
        """Return whether a run that may be this post's is active in its conversation."""
        async with asking("active runs", self._timeout_s):
            try:
                runs = await self._requests.ask(
                    "GET",
                    "/v1/runs/",
                    list[RunAnswer],
                    params={
                        "conversation_id": post.conversation_id,
                        "active": "true",
                        "limit": str(_PAGE),
                    },
                )
            except APIStatusError as error:
                if not wire.is_missing(error, parameter="conversation_id"):
                    raise
                return False
        return any(run.id not in ended and self._is_young(run.created_at) for run in runs)

    async def _is_stored(self, post: Post, number: int) -> bool:
        """Return whether the conversation holds the post's message, by otid or by batch id."""
        since_s = post.first_sent_at_s - _SKEW_S
        otids = {wire.wire_otid(post.batch_id, number) for number in range(number + _OTIDS_TRIED)}
        async with asking("stored messages", 2 * self._timeout_s):
            params = {"limit": str(_PAGE), "order": "desc"}
            for _ in range(_PAGES):
                # In this list `after` means "newer than" in either order. A page's length is not
                # `limit`, since one stored message shows as several.
                try:
                    page = await self._requests.ask(
                        "GET",
                        f"/v1/conversations/{quote(post.conversation_id, safe='')}/messages",
                        list[MessageAnswer],
                        params=params,
                    )
                except APIStatusError as error:
                    if wire.is_missing(error, parameter="conversation_id"):
                        return False
                    raise
                for message in page:
                    if message.message_type == "user_message" and (
                        message.otid in otids or post.batch_id in str(message.content)
                    ):
                        return True
                if not page or page[-1].date.timestamp() < since_s:
                    return False
                params["before"] = page[-1].id
        raise LettaUnavailable("stored messages: too many since the post to look through")

    async def check_agent(self, agent_id: str) -> None:
        """Raise AgentNotFound when the agent is gone."""
        async with asking("the agent", self._timeout_s), of_agent():
            await self._requests.ask("GET", f"/v1/agents/{quote(agent_id, safe='')}", IdAnswer)

    def _is_young(self, created_at: datetime | None) -> bool:
        created_s = unix_s(created_at)
        return created_s is None or self._clock() - created_s < self._cutoff_s
