"""Caller → tenant → agent.

Theory of operation: the rules say, without asking Letta, whose memory a call belongs to
(`resolve`): an agent named by the owner's own backend, one in the owner's map, the one fixed agent,
or the caller's own. A caller's own agent carries tags made of the tenant and the caller's key; it
is found by all of them and otherwise created (`Identity.agent_of`). A created agent is stored at
once, even if a later step fails: otherwise a Letta whose list is late, or has no tags, would be
asked for another agent each time. Two sidecars may create one at the same moment: after creating,
the tags are looked up again, and the oldest agent wins everywhere, unless both share a journal and
the other one was learnt there first. An agent is never looked up by
name, and never picked because it is similar.
"""

from collections.abc import Sequence

import anyio

from sidecar import telemetry
from sidecar.access.callers import IdentityRules
from sidecar.errors import Rejected
from sidecar.journal.directory import Directory
from sidecar.letta.digest_agent import caller_tags, spec_of_caller
from sidecar.letta.port import FoundAgent, Letta
from sidecar.model import AgentRef
from sidecar.telemetry import Emit


class Identity:
    """Finds or creates the agent a reference stands for, one task at a time per caller.

    Args:
        letta: Where agents live.
        directory: The agents that are known already.
        rules: As for `resolve`.
        emit: Where events go.
    """

    def __init__(
        self, letta: Letta, directory: Directory, *, rules: IdentityRules, emit: Emit
    ) -> None:
        self._letta = letta
        self._directory = directory
        self._rules = rules
        self._emit = emit
        self._locks: dict[str, tuple[anyio.Lock, int]] = {}

    async def known_agent(self, ref: AgentRef) -> str | None:
        """Return the agent id as far as it is known without asking Letta."""
        return ref.agent_id or await self._directory.agent_of(ref)

    async def agent_of(self, ref: AgentRef) -> str:
        """Return the agent id, finding or creating the agent if needed.

        Raises:
            LettaUnavailable: Letta did not answer; try again later.
            LettaDenied: the key is refused.
            Rejected: the caller has no agent and none may be, or can be, created.
        """
        known = await self.known_agent(ref)
        if known is not None:
            return known
        if ref.caller_key is None:
            raise Rejected("a call without a known caller has no agent")
        async with self._one_at_a_time(ref.lane):
            known = await self._directory.agent_of(ref)
            if known is not None:
                return known
            return await self._find_or_create(ref, ref.caller_key)

    async def found_agent(self, ref: AgentRef) -> str | None:
        """Return the agent id if there is an agent; create none and store nothing.

        Raises:
            LettaUnavailable: Letta did not answer; try again later.
            LettaDenied: the key is refused.
        """
        known = await self.known_agent(ref)
        if known is not None or ref.caller_key is None:
            return known
        found = await self._letta.find_agents(caller_tags(ref.tenant, ref.caller_key))
        return _oldest(found) if found else None

    async def _find_or_create(self, ref: AgentRef, key: str) -> str:
        tags = caller_tags(ref.tenant, key)
        found = await self._letta.find_agents(tags)
        if found:
            agent_id = await self._directory.learn_agent(ref, _oldest(found))
            self._emit(telemetry.agent_found, lane=ref.lane, agent=agent_id)
            return agent_id
        if not self._rules.create_agents:
            raise Rejected(
                "this caller has no agent",
                hint="create one, map the caller to one, or set SIDECAR_CREATE_AGENTS=1",
            )
        created = await self._letta.create_agent(
            spec_of_caller(
                ref.tenant, key, model=self._rules.model, embedding=self._rules.embedding
            )
        )
        learnt = created
        with anyio.CancelScope(shield=True):
            learnt = await self._directory.learn_agent(ref, created)
        self._emit(telemetry.agent_created, lane=ref.lane, agent=created)
        return await self._oldest_after(ref, tags, created, learnt)

    async def _oldest_after(
        self, ref: AgentRef, tags: Sequence[str], created: str, learnt: str
    ) -> str:
        """Return the agent that every sidecar agrees on; delete ours if it is not.

        That is the oldest. Only who learnt an agent first replaces it by an older one, so that of
        two replicas not each deletes its own.

        Args:
            ref: Whose agent.
            tags: By which it is found.
            created: The one that was created here.
            learnt: The one in the directory: another replica's, if that was faster.
        """
        found = await self._letta.find_agents(tags)
        if not any(agent.agent_id == created for agent in found):
            return learnt  # a late list: what it lacks can't be compared
        oldest = _oldest(found)
        if oldest == created:
            return learnt
        agent_id = learnt
        if learnt == created:
            agent_id = await self._directory.learn_agent(ref, oldest, instead_of=created)
        await self._letta.delete_agent(created)
        self._emit(telemetry.agent_found, lane=ref.lane, agent=agent_id)
        return agent_id

    def _one_at_a_time(self, lane: str) -> "_LaneLock":
        return _LaneLock(self._locks, lane)


class _LaneLock:
    """A lock per lane, dropped when nobody uses it."""

    def __init__(self, locks: dict[str, tuple[anyio.Lock, int]], lane: str) -> None:
        self._locks = locks
        self._lane = lane

    async def __aenter__(self) -> None:
        lock, users = self._locks.get(self._lane, (anyio.Lock(), 0))
        self._locks[self._lane] = (lock, users + 1)
        try:
            await lock.acquire()
        except BaseException:
            self._leave(lock)
            raise

    async def __aexit__(self, *_: object) -> None:
        lock, _users = self._locks[self._lane]
        lock.release()
        self._leave(lock)

    def _leave(self, lock: anyio.Lock) -> None:
        users = self._locks[self._lane][1] - 1
        if users:
            self._locks[self._lane] = (lock, users)
        else:
            del self._locks[self._lane]


def _oldest(found: Sequence[FoundAgent]) -> str:
    return min(found, key=lambda agent: (agent.created_at_s, agent.agent_id)).agent_id
