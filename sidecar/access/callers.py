"""Who a caller is, and whose memory a call belongs to, by rules alone. Pure; Letta is not asked.

A call belongs to an agent named by the owner's own backend, else to one in the owner's map, else to
the one fixed agent, else to the caller's own (`sidecar/letta/identity.py` finds or creates that).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from sidecar.access import phone
from sidecar.model import AgentRef, CallerHints, caller_key


@dataclass(frozen=True, slots=True)
class IdentityRules:
    """How a caller becomes an agent.

    Attributes:
        agent_id: One agent for every call, or None.
        agent_map: Agent id by number (E.164), identity or caller id; with `TENANT/` before it where
            there are several tenants. An identity that reads like a number is not looked up: many
            applications let people choose their own.
        create_agents: A caller without an agent gets one.
        default_region: Country of numbers without a country code, as in `US`; None refuses them.
        one_tenant: An agent id that a worker names is used, and names in the map have no tenant
            before them. False where several tenants share one Letta: one could name another's
            agent.
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
    """Whose memory a call belongs to, and who is calling.

    Attributes:
        ref: Whose memory; `ref.known` is False if it is nobody's.
        caller_key: Key of the caller, empty when anonymous.
        why: Why the caller is unknown, for the log: a reason of `phone.Reading`, or `no_hint`.
            Empty if the caller is known, or if one agent has all calls and no hint was given.
        number: The caller's number in E.164, also where an id is the stronger hint; empty if no
            valid one was given.
    """

    ref: AgentRef
    caller_key: str
    why: str = ""
    number: str = ""


def resolve(tenant: str, hints: CallerHints, rules: IdentityRules) -> Resolution:
    """Return whose memory a call belongs to. Pure; Letta is not asked.

    The caller is known by the strongest hint there is: an id the owner's backend vouches for, a
    phone number, the identity of a signed token. Each kind has its own name space, so an identity
    that looks like a number is not that number's owner. A text that means "no caller", such as
    `anonymous`, is no hint.
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
    if phone.reads_like_number(identity):
        identity = ""
    agent_id = _agent_of(tenant, hints, (caller, number.e164, identity), rules)
    if agent_id is not None:
        return Resolution(AgentRef(tenant, agent_id=agent_id), key, why, number.e164)
    if not key:
        return Resolution(AgentRef(tenant), key, why or "no_hint", number.e164)
    return Resolution(AgentRef(tenant, caller_key=key), key, number=number.e164)


def _agent_of(
    tenant: str, hints: CallerHints, names: Iterable[str], rules: IdentityRules
) -> str | None:
    """Return the agent that the call or the rules name; None: the caller has one."""
    if hints.agent_id and rules.one_tenant:
        return hints.agent_id
    within = "" if rules.one_tenant else f"{tenant}/"
    mapped = (rules.agent_map.get(within + name) for name in names if name)
    return next((agent_id for agent_id in mapped if agent_id is not None), rules.agent_id)
