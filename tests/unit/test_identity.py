"""Caller → tenant → agent."""

from collections.abc import Sequence

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.errors import LettaUnavailable, Rejected
from sidecar.letta.identity import Identity, IdentityRules, normal_phone, resolve
from sidecar.letta.port import AgentSpec, FoundAgent
from sidecar.model import AgentRef, CallerHints
from sidecar.telemetry import Telemetry

pytestmark = pytest.mark.unit

RULES = IdentityRules()
hints = st.builds(
    CallerHints,
    caller=st.sampled_from(["", "ada", "+15550100"]),
    phone=st.sampled_from(["", "+15550100", "+15550101", "anonymous", "0", "sip:+15550100@pbx"]),
    identity=st.sampled_from(["", "web-1", "+15550100"]),
    agent_id=st.just(""),
)


@given(hints, hints, st.sampled_from(["a", "b"]), st.sampled_from(["a", "b"]))
def test_two_calls_share_memory_only_when_tenant_and_caller_are_the_same(
    first: CallerHints, second: CallerHints, first_tenant: str, second_tenant: str
) -> None:
    """No two callers, and no two tenants, ever resolve to one lane."""
    one = resolve(first_tenant, first, RULES)
    two = resolve(second_tenant, second, RULES)

    def who(tenant: str, hint: CallerHints) -> tuple[str, str] | None:
        phone = normal_phone(hint.phone, region=None)
        for kind, value in (("caller", hint.caller), ("tel", phone), ("id", hint.identity)):
            if value:
                return (f"{tenant}/{kind}", value)
        return None

    same = who(first_tenant, first) == who(second_tenant, second)
    if one.ref.known and two.ref.known:
        assert (one.ref.lane == two.ref.lane) == same
    assert one.ref.known == (who(first_tenant, first) is not None)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("+1 (202) 555-0100", "+12025550100"),
        ("sip:+12025550100@trunk.example", "+12025550100"),
        ("2025550100", None),
        ("anonymous", None),
        ("Restricted", None),
        ("", None),
        ("+1", None),
    ],
)
def test_a_number_is_one_only_in_e164(raw: str, expected: str | None) -> None:
    """The same line written in several ways is one caller; a withheld number is nobody."""
    assert normal_phone(raw, region=None) == expected


def test_a_region_completes_local_numbers() -> None:
    """With a default region, a number without a country code is that country's."""
    assert normal_phone("(202) 555-0100", region="US") == "+12025550100"


def test_the_owners_word_goes_before_the_rules() -> None:
    """A named agent, then the map, then the fixed agent, then the caller's own."""
    rules = IdentityRules(agent_id="agent-fixed", agent_map={"+12025550100": "agent-mapped"})
    named = resolve("t", CallerHints(agent_id="agent-named", phone="+12025550100"), rules)
    mapped = resolve("t", CallerHints(phone="+1 202 555 0100"), rules)
    fixed = resolve("t", CallerHints(phone="+12025550101"), rules)
    own = resolve("t", CallerHints(phone="+12025550101"), RULES)
    assert named.ref.agent_id == "agent-named"
    assert mapped.ref.agent_id == "agent-mapped"
    assert fixed.ref.agent_id == "agent-fixed"
    assert fixed.caller_key == own.caller_key == own.ref.caller_key


def test_an_identity_that_reads_like_a_number_is_not_that_number() -> None:
    """Who chooses a phone number for a name gets no memory of the number's owner."""
    rules = IdentityRules(agent_map={"+12025550100": "agent-of-the-number", "ada": "agent-of-ada"})
    for identity in ("+12025550100", "+1 202 555 0100", "sip:+12025550100@pbx"):
        found = resolve("t", CallerHints(identity=identity), rules)
        assert found.ref.agent_id is None
    assert resolve("t", CallerHints(identity="ada"), rules).ref.agent_id == "agent-of-ada"


def test_one_tenants_map_is_not_anothers() -> None:
    """With several tenants a caller of the same number or name in another has no part in it."""
    rules = IdentityRules(
        one_tenant=False, agent_map={"t/+12025550100": "agent-1", "t/ada": "agent-2"}
    )
    hints = CallerHints(phone="+12025550100"), CallerHints(caller="ada")
    assert [resolve("t", one, rules).ref.agent_id for one in hints] == ["agent-1", "agent-2"]
    assert [resolve("u", one, rules).ref.agent_id for one in hints] == [None, None]
    assert resolve("u", CallerHints(caller="t/ada"), rules).ref.agent_id is None


def test_a_worker_of_many_tenants_names_no_agent() -> None:
    """Where tenants share a Letta, an agent id from a worker is not heeded."""
    rules = IdentityRules(one_tenant=False)
    found = resolve("t", CallerHints(agent_id="agent-of-another", identity="x"), rules)
    assert found.ref.agent_id is None


def test_who_cannot_be_resolved_has_nobodys_memory() -> None:
    """No hint gives no agent and says why, without the number."""
    found = resolve("t", CallerHints(phone="anonymous"), RULES)
    assert not found.ref.known
    assert found.ref.lane == "t/nobody"
    assert found.why


def test_a_lane_names_its_reference() -> None:
    """A reference survives the way through the journal."""
    for ref in (AgentRef("t", agent_id="agent-1"), AgentRef("t", caller_key="k"), AgentRef("t")):
        assert AgentRef.of_lane(ref.lane) == ref


class Agents:
    """A Letta's agents, with a pause in the middle of each request and a hook after creation."""

    def __init__(self) -> None:
        self.found: list[FoundAgent] = []
        self.created = 0
        self.deleted: list[str] = []
        self.fail = False
        self.fail_after_creating = False
        self.lists = True

    async def find_agents(self, tags: Sequence[str]) -> Sequence[FoundAgent]:
        await anyio.lowlevel.checkpoint()
        if self.fail:
            raise LettaUnavailable("down")
        if not self.lists:
            return []
        return [agent for agent in self.found if set(tags) <= set(agent.tags)]

    async def create_agent(self, spec: AgentSpec) -> str:
        await anyio.lowlevel.checkpoint()
        self.created += 1
        agent_id = f"agent-{self.created}"
        self.found.append(FoundAgent(agent_id, spec.name, tuple(spec.tags), float(self.created)))
        self.fail = self.fail_after_creating
        return agent_id

    async def delete_agent(self, agent_id: str) -> None:
        self.deleted.append(agent_id)
        self.found = [agent for agent in self.found if agent.agent_id != agent_id]


class Learnt:
    def __init__(self) -> None:
        self.agents: dict[str, str] = {}

    async def agent_of(self, ref: AgentRef) -> str | None:
        return self.agents.get(ref.lane)

    async def learn_agent(self, ref: AgentRef, agent_id: str) -> None:
        self.agents[ref.lane] = agent_id


REF = AgentRef("t", caller_key="k")


def identity(agents: Agents, learnt: Learnt, rules: IdentityRules = RULES) -> Identity:
    return Identity(agents, learnt, rules=rules, emit=Telemetry(strict=True).emit)  # type: ignore[arg-type]


@pytest.mark.anyio
async def test_two_calls_of_a_new_caller_at_once_create_one_agent() -> None:
    """Ten calls at the same moment end with one agent, the same for all."""
    agents, learnt = Agents(), Learnt()
    who = identity(agents, learnt)
    got: list[str] = []

    async def call() -> None:
        got.append(await who.agent_of(REF))

    async with anyio.create_task_group() as tasks:
        for _ in range(10):
            tasks.start_soon(call)
    assert got == ["agent-1"] * 10
    assert agents.created == 1


@pytest.mark.anyio
async def test_two_sidecars_at_once_agree_on_the_oldest_agent() -> None:
    """When another process created the agent at the same moment, ours is taken back."""
    agents = Agents()
    both = [identity(agents, Learnt()), identity(agents, Learnt())]
    got: list[str] = []

    async def call(who: Identity) -> None:
        got.append(await who.agent_of(REF))

    async with anyio.create_task_group() as tasks:
        for who in both:
            tasks.start_soon(call, who)
    assert len(set(got)) == 1
    assert len(agents.found) == 1


@pytest.mark.anyio
async def test_a_caller_with_an_agent_is_found_by_all_tags_and_never_by_name() -> None:
    """Agents of another tenant, or with the same name, are not this caller's."""
    agents = Agents()
    other = AgentRef("other", caller_key="k")
    theirs = await identity(agents, Learnt()).agent_of(other)
    ours = await identity(agents, Learnt()).agent_of(REF)
    assert ours != theirs
    assert await identity(agents, Learnt()).agent_of(REF) == ours


@pytest.mark.anyio
async def test_a_caller_without_an_agent_is_refused_where_none_may_be_made() -> None:
    """With creation off, the error names the setting."""
    with pytest.raises(Rejected, match="SIDECAR_CREATE_AGENTS"):
        await identity(Agents(), Learnt(), IdentityRules(create_agents=False)).agent_of(REF)


@pytest.mark.anyio
async def test_letta_down_while_looking_is_tried_again_and_nothing_is_learnt() -> None:
    """A failed look-up neither creates nor remembers an agent."""
    agents, learnt = Agents(), Learnt()
    agents.fail = True
    who = identity(agents, learnt)
    with pytest.raises(LettaUnavailable):
        await who.agent_of(REF)
    agents.fail = False
    assert agents.created == 0
    assert await who.agent_of(REF) == "agent-1"


@pytest.mark.anyio
@pytest.mark.parametrize("fails", [False, True], ids=["lists nothing", "lists nothing, then fails"])
async def test_a_letta_whose_list_is_late_is_asked_for_one_agent(fails: bool) -> None:
    """An agent that was made is the caller's from then on, whether or not the list has it."""
    agents, learnt = Agents(), Learnt()
    agents.lists = False
    agents.fail_after_creating = fails
    who = identity(agents, learnt)
    got: list[str] = []
    for _ in range(9):
        try:
            got.append(await who.agent_of(REF))
        except LettaUnavailable:
            agents.fail = False
    assert set(got) == {"agent-1"}
    assert agents.created == 1
    assert agents.deleted == []


@pytest.mark.anyio
async def test_an_agent_is_learnt_though_its_asker_is_gone() -> None:
    """A caller who hangs up while the agent is made leaves none behind that nobody knows."""
    agents, scope = Agents(), anyio.CancelScope()

    class Slow(Learnt):
        async def learn_agent(self, ref: AgentRef, agent_id: str) -> None:
            scope.cancel()
            await anyio.lowlevel.checkpoint()
            await super().learn_agent(ref, agent_id)

    learnt = Slow()
    with scope:
        await identity(agents, learnt).agent_of(REF)
    assert scope.cancelled_caught
    assert learnt.agents == {REF.lane: "agent-1"}
