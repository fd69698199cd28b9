"""Caller → tenant → agent.

Theory of operation: the rules say, without asking Letta, whose memory a call belongs to
(`resolve`): an agent named by the owner's own backend, one in the owner's map, the one fixed agent,
or the caller's own. A caller's own agent carries tags made of the tenant and the caller's key; it
is found by all of them and otherwise created (`Identity.agent_of`). What was created is learnt at
once, whatever becomes of the rest: a Letta whose list is late, or has no tags, would be asked for
another each time. Two sidecars may create one at the same moment: after creating, the tags are
looked up again, and the oldest agent wins everywhere. Never by name, and never the first of several
that merely resemble.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import anyio

from sidecar import phone, telemetry
from sidecar.errors import Rejected
from sidecar.letta.digest_agent import caller_tags, spec_of_caller
from sidecar.letta.port import FoundAgent, Letta
from sidecar.model import AgentRef, CallerHints, caller_key
from sidecar.telemetry import Emit


@dataclass(frozen=True, slots=True)
class IdentityRules:
    """How a caller becomes an agent.

    Attributes:
        agent_id: One agent for every call, or None.
        agent_map: Agent id by number (E.164), identity or caller id; behind `TENANT/` where there
            are several tenants. An identity that reads like a number is not
            looked up: many applications let people choose their own.
        create_agents: A caller without an agent gets one.
        default_region: Country of numbers without a country code, as in `US`; None refuses them.
        one_tenant: An agent id that a worker names is heeded, and a bare name in the map. False
            where several tenants share one Letta: one could name another's agent.
        model: Model handle of created agents, empty for Letta's default.
        embedding: Embedding handle of created agents, empty for Letta's default.
    """

    agent_id: str | None = None
    agent_map: Mapping[str, str] = field(default_factory=dict[str, str])
    create_agents: bool = True
    default_region: str | None = None
    one_tenant: bool = True
    model: str = ""
    embedding: str = ""


@dataclass(frozen=True, slots=True)
class Resolution:
    """Whose memory, and who is calling.

    Attributes:
        ref: Whose memory; `ref.known` is False for nobody's.
        caller_key: Key of the caller, empty when anonymous.
        why: Why the caller is nobody, for the log: a word of `sidecar.phone.Reading`, or `no_hint`.
            Empty where the caller is somebody, and where one agent has all calls and none named a
            caller.
    """

    ref: AgentRef
    caller_key: str
    why: str = ""


def resolve(tenant: str, hints: CallerHints, rules: IdentityRules) -> Resolution:
    """Say whose memory a call belongs to. Pure; Letta is not asked.

    The caller is known by the strongest hint there is: an id the owner's backend vouches for, a
    phone number, the identity of a signed token. Each kind has a name space of its own, so an
    identity that looks like a number is not that number's owner. What stands for nobody, as
    `anonymous` does, is no hint.
    """
    number = (
        phone.read(hints.phone, region=rules.default_region) if hints.phone else phone.Reading()
    )
    caller = "" if phone.stands_for_nobody(hints.caller) else hints.caller
    identity = "" if phone.stands_for_nobody(hints.identity) else hints.identity
    names = [
        name
        for name in (
            f"caller:{caller}" if caller else "",
            f"tel:{number.e164}" if number.e164 else "",
            f"id:{identity}" if identity else "",
        )
        if name
    ]
    key = caller_key(tenant, names[0]) if names else ""
    why = "" if key else number.why or ("withheld" if hints.caller or hints.identity else "")
    if hints.agent_id and rules.one_tenant:
        return Resolution(AgentRef(tenant, agent_id=hints.agent_id), key, why)
    if phone.reads_like_number(identity):
        identity = ""
    within = "" if rules.one_tenant else f"{tenant}/"
    for name in (caller, number.e164, identity):
        mapped = rules.agent_map.get(within + name) if name else None
        if mapped is not None:
            return Resolution(AgentRef(tenant, agent_id=mapped), key, why)
    if rules.agent_id is not None:
        return Resolution(AgentRef(tenant, agent_id=rules.agent_id), key, why)
    if not key:
        return Resolution(AgentRef(tenant), key, why or "no_hint")
    return Resolution(AgentRef(tenant, caller_key=key), key)


class Directory(Protocol):
    """Remembers which agent a lane's caller has; the journal does."""

    async def agent_of(self, ref: AgentRef) -> str | None:
        """Return the agent id learnt, or None."""
        ...

    async def learn_agent(self, ref: AgentRef, agent_id: str) -> None:
        """Remember an agent id durably."""
        ...


class Identity:
    """Finds or creates the agent a reference stands for, once at a time per caller.

    Args:
        letta: Where agents live.
        directory: What was learnt before.
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
        """Return the agent id, finding or creating the agent where that is needed.

        Raises:
            LettaUnavailable: Letta did not answer; try again later.
            LettaDenied: the key is refused.
            Rejected: the caller has no agent and none may be, or can be, created.
        """
        known = await self.known_agent(ref)
        if known is not None:
            return known
        if ref.caller_key is None:
            raise Rejected("a call of nobody has no agent")
        async with self._one_at_a_time(ref.lane):
            known = await self._directory.agent_of(ref)
            if known is not None:
                return known
            return await self._find_or_create(ref, ref.caller_key)

    async def found_agent(self, ref: AgentRef) -> str | None:
        """Return the agent id where there is an agent; creates none and stores nothing.

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
            agent_id = _oldest(found)
            await self._directory.learn_agent(ref, agent_id)
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
        with anyio.CancelScope(shield=True):
            await self._directory.learn_agent(ref, created)
        self._emit(telemetry.agent_created, lane=ref.lane, agent=created)
        return await self._oldest_after(ref, tags, created)

    async def _oldest_after(self, ref: AgentRef, tags: Sequence[str], created: str) -> str:
        """Return the agent that every sidecar agrees on: not ours where another was quicker."""
        found = await self._letta.find_agents(tags)
        agent_id = _oldest(found) if found else created
        if agent_id != created and any(agent.agent_id == created for agent in found):
            await self._directory.learn_agent(ref, agent_id)
            await self._letta.delete_agent(created)
            self._emit(telemetry.agent_found, lane=ref.lane, agent=agent_id)
            return agent_id
        return created

    def _one_at_a_time(self, lane: str) -> "_LaneLock":
        return _LaneLock(self._locks, lane)


class _LaneLock:
    """A lock per lane that is gone when nobody wants it."""

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
