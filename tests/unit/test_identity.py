"""Caller → tenant → agent."""

import hashlib
import re
from collections.abc import Sequence

import anyio
import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from typing_extensions import override

from sidecar.access.callers import IdentityRules, resolve
from sidecar.channels.vapi.bodies import about
from sidecar.cli.callers import caller_key_of
from sidecar.errors import LettaUnavailable, Rejected
from sidecar.letta.identity import Identity
from sidecar.letta.port import AgentSpec, FoundAgent
from sidecar.model import AgentRef, CallerHints, caller_key
from sidecar.telemetry import Telemetry
from sidecar.wire.bounds import bounded_hints
from sidecar.wire.frames import CallOpen, hints_of
from sidecar.worker.livekit.caller import hints_of_person, person_of

pytestmark = [pytest.mark.unit, pytest.mark.backend("asyncio", "trio")]

RULES = IdentityRules()
NUMBERS = ("+12025550100", "+12025550101", "+442079460018", "+4915112345678")
NAMES = (
    *("ada", "alice1002", "bob1002", "user-2025550147", "8656696", "7", "web-1", "+12025550100"),
    *("anna", "privateer@x.example", "guest-4f3a91c2", "anonymous-20471"),
)
NOBODIES = (
    *("anonymous", "Unknown Caller", "+8656696", "+7378742833", "+0000000000", " "),
    *("tel:8656696", "sip:0000000000@host", "000-000-0000", "%2B8656696", "anonymous.invalid"),
    *("sip_8656696", "sip_0000000000", "sip_192.168.1.5", "sip_Unknown@host", "SIP_anonymous"),
    *("user-unknown", "anonymous1", "Unbekannt", "guest", "sip-anonymous", "caller_anonymous_2"),
    *("Inconnu", "Número privado", "+919876543210", "+12345678901"),
)
spellings = st.sampled_from(
    [
        "{0}",
        " {0} ",
        "sip:{0}@pbx.example",
        "tel:{0}",
        "{0};ext=12",
        "{0};ext=34",
        "sip:{0}@pbx.example;extension=12",
        "sip:{0}@pbx.example?ext=12",
        "{0} x12",
        "a{0}",
        "{0}a",
        "\u202a{0}",
        "\uff0b{0}",
        "sip:{0}@anonymous.invalid",
    ]
)
raw_phones = st.one_of(
    st.builds(str.format, spellings, st.sampled_from(NUMBERS)),
    st.builds(str.removeprefix, st.sampled_from(NUMBERS), st.just("+")),
    st.sampled_from([*NOBODIES, *NAMES, "", "7378742833", "192.168.1.5", "sip:alice1002@pbx"]),
    st.text("+0123456789 ()-.;extab", max_size=18),
)
raw_names = st.one_of(
    st.sampled_from([*NOBODIES, *NAMES, *NUMBERS, ""]), st.text(st.characters(codec="utf-8"))
)
regions = st.sampled_from([None, "US", "GB", "DE"])
plain = re.compile(r"(?:sip:|tel:)?(\+?[0-9][0-9 ().-]*)(?:@pbx\.example)?")


def key_of(hints: CallerHints, region: str | None, tenant: str = "t") -> str:
    return resolve(tenant, hints, IdentityRules(default_region=region)).caller_key


def from_livekit(raw: str) -> CallerHints:
    seen = hints_of_person(person_of("sip_1", {"sip.phoneNumber": raw}, sip=True))
    return hints_of(CallOpen("c", "livekit", bounded_hints(seen), 0.0))


def from_vapi(raw: str) -> CallerHints:
    call = {"id": "1", "type": "inboundPhoneCall", "customer": {"number": raw}}
    return about({"call": call}, trust_web=False).hints


def from_shell(raw: str, region: str | None) -> str:
    try:
        return caller_key_of(f"tel:{raw}", "t", region)
    except typer.BadParameter:
        return ""


@given(raw_phones, regions)
def test_a_number_has_one_key_from_each_channel(raw: str, region: str | None) -> None:
    """LiveKit's bridge, VAPI and the command line give a carrier's text the same caller key."""
    keys = {
        key_of(CallerHints(phone=raw), region),
        key_of(from_livekit(raw), region),
        key_of(from_vapi(raw), region),
        from_shell(raw, region),
    }
    assert len(keys) == 1


@pytest.mark.parametrize(
    ("said", "remedy"),
    [
        ("+15550100", "no country has such a number"),
        ("tel:2025550100", "with [+] and its country code"),
        ("tel:+12025550100 x12", "an extension identifies nobody"),
        ("tel:alice1002", "not a phone number"),
        ("tel:+8656696", "it identifies nobody"),
        ("id:anonymous", "it identifies nobody"),
        ("caller:Unknown Caller", "it identifies nobody"),
        ("id:\udcff", "not valid UTF-8"),
        ("+\udcff", "not a phone number"),
        ("ada", "write tel:NUMBER"),
    ],
)
def test_the_command_line_says_why_a_caller_is_none(said: str, remedy: str) -> None:
    """A caller text that names nobody is refused with the reason."""
    with pytest.raises(typer.BadParameter, match=remedy):
        caller_key_of(said, "t", None)


@given(raw_phones, raw_phones, regions)
def test_two_callers_are_one_only_by_one_number(one: str, other: str, region: str | None) -> None:
    """Two texts share a caller key only if they spell the same number."""
    first, second = (key_of(CallerHints(phone=raw), region) for raw in (one, other))
    if first and first == second:
        digits: set[str] = set()
        for raw in (one, other):
            shape = plain.fullmatch(raw.strip())
            assert shape, "a number is a number from its first to its last character"
            digits.add("".join(re.findall("[0-9]", shape[1]))[-9:])
        assert len(digits) == 1


def named(kind: str, name: str) -> CallerHints:
    return CallerHints(caller=name) if kind == "caller" else CallerHints(identity=name)


@given(raw_names, raw_names, st.sampled_from(["caller", "identity"]))
def test_two_names_are_never_one_caller(one: str, other: str, kind: str) -> None:
    """Two different ids never share a caller key, and one that names nobody has no key."""
    first, second = (key_of(named(kind, raw), None) for raw in (one, other))
    if first and second:
        assert (first == second) == (one == other)
    for raw, key in ((one, first), (other, second)):
        if raw in NOBODIES or not raw.strip():
            assert not key
        if raw in NAMES:
            assert key == caller_key("t", f"{'id' if kind == 'identity' else kind}:{raw}")


@given(raw_names, raw_phones, st.sampled_from(["caller", "identity"]), regions)
def test_a_name_is_never_a_numbers_owner(
    name: str, raw: str, kind: str, region: str | None
) -> None:
    """A chosen name never gets the caller key of a number, nor a number that of another tenant."""
    number = key_of(CallerHints(phone=raw), region)
    assert not number or number != key_of(named(kind, name), region)
    assert not number or number != key_of(CallerHints(phone=raw), region, tenant="u")


def test_a_plain_numbers_key_is_what_it_was() -> None:
    """The caller key of a number in E.164 is the same in every release."""
    key = hashlib.sha256(b"t\0tel:+12025550100").hexdigest()[:32]
    assert key_of(CallerHints(phone="+12025550100"), None) == key
    assert key_of(CallerHints(phone="(202) 555-0100"), "US") == key


@pytest.mark.parametrize(
    ("hints", "why"),
    [
        (CallerHints(), "no_hint"),
        (CallerHints(phone="anonymous"), "withheld"),
        (CallerHints(phone="+8656696"), "withheld"),
        (CallerHints(caller="unknown"), "withheld"),
        (CallerHints(identity=" "), "withheld"),
        (CallerHints(phone="2025550100"), "no_region"),
        (CallerHints(phone="+15550100"), "invalid"),
        (CallerHints(phone="+12025550100;ext=12"), "extension"),
        (CallerHints(phone="sip:alice1002@pbx"), "no_number"),
    ],
)
def test_who_cannot_be_resolved_has_nobodys_memory(hints: CallerHints, why: str) -> None:
    """A missing or unusable hint leads to no agent, and the reason is given without the number."""
    found = resolve("t", hints, RULES)
    assert not found.ref.known
    assert found.ref.lane == "t/nobody"
    assert found.why == why
    fixed = resolve("t", hints, IdentityRules(agent_id="agent-1"))
    assert (fixed.caller_key, fixed.why) == ("", "" if why == "no_hint" else why)


def test_who_stands_for_nobody_leaves_the_word_to_the_next_hint() -> None:
    """A hint such as `anonymous` names nobody, so that the number after it is used."""
    assert key_of(CallerHints(caller="anonymous", phone="+12025550100"), None) == key_of(
        CallerHints(phone="+12025550100"), None
    )
    mapped = IdentityRules(agent_map={"anonymous": "agent-1", "+15550100": "agent-2"})
    for hints in (CallerHints(identity="anonymous"), CallerHints(identity="+15550100")):
        assert resolve("t", hints, mapped).ref.agent_id is None


def test_the_owners_word_goes_before_the_rules() -> None:
    """A named agent comes first, then the map's, then the fixed one, then the caller's own."""
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
    """An identity that reads like a phone number gets no memory of the number's owner."""
    rules = IdentityRules(agent_map={"+12025550100": "agent-of-the-number", "ada": "agent-of-ada"})
    for identity in ("+12025550100", "+1 202 555 0100", "sip:+12025550100@pbx"):
        found = resolve("t", CallerHints(identity=identity), rules)
        assert found.ref.agent_id is None
    assert resolve("t", CallerHints(identity="ada"), rules).ref.agent_id == "agent-of-ada"


def test_one_tenants_map_is_not_anothers() -> None:
    """With several tenants, an entry of one tenant's map matches no caller of another."""
    rules = IdentityRules(
        one_tenant=False, agent_map={"t/+12025550100": "agent-1", "t/ada": "agent-2"}
    )
    hints = CallerHints(phone="+12025550100"), CallerHints(caller="ada")
    assert [resolve("t", one, rules).ref.agent_id for one in hints] == ["agent-1", "agent-2"]
    assert [resolve("u", one, rules).ref.agent_id for one in hints] == [None, None]
    assert resolve("u", CallerHints(caller="t/ada"), rules).ref.agent_id is None


def test_a_worker_of_many_tenants_names_no_agent() -> None:
    """Where tenants share a Letta, an agent id from a worker is ignored."""
    rules = IdentityRules(one_tenant=False)
    found = resolve("t", CallerHints(agent_id="agent-of-another", identity="x"), rules)
    assert found.ref.agent_id is None


def test_a_lane_names_its_reference() -> None:
    """A lane's name can be turned back into the reference that it was made from."""
    for ref in (AgentRef("t", agent_id="agent-1"), AgentRef("t", caller_key="k"), AgentRef("t")):
        assert AgentRef.of_lane(ref.lane) == ref


class Agents:
    """A Letta's agents, with a pause in each request and switches to make requests fail."""

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

    async def learn_agent(self, ref: AgentRef, agent_id: str, *, instead_of: str = "") -> str:
        if self.agents.get(ref.lane, instead_of) == instead_of:
            self.agents[ref.lane] = agent_id
        return self.agents[ref.lane]


REF = AgentRef("t", caller_key="k")


def identity(agents: Agents, learnt: Learnt, rules: IdentityRules = RULES) -> Identity:
    return Identity(
        agents,  # type: ignore[arg-type]
        learnt,
        rules=rules,
        emit=Telemetry(strict=True).emit,
    )


@pytest.mark.anyio
async def test_two_calls_of_a_new_caller_at_once_create_one_agent() -> None:
    """Ten calls of a new caller at the same moment create and share one agent."""
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
    """Two sidecars that create an agent at the same moment keep only one, and both use it."""
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


@given(st.lists(st.integers(0, 6), min_size=9, max_size=40))
def test_replicas_agree_on_an_agent_that_stays(pauses: list[int]) -> None:
    """Replicas that create an agent at the same moment end with one that none of them deletes."""

    async def main() -> None:
        left = list(pauses)

        async def pause() -> None:
            for _ in range(left.pop() if left else 0):
                await anyio.lowlevel.checkpoint()

        class Uneven(Agents):
            @override
            async def find_agents(self, tags: Sequence[str]) -> Sequence[FoundAgent]:
                await pause()
                return await super().find_agents(tags)

            @override
            async def create_agent(self, spec: AgentSpec) -> str:
                agent_id = await super().create_agent(spec)
                await pause()
                return agent_id

            @override
            async def delete_agent(self, agent_id: str) -> None:
                await pause()
                await super().delete_agent(agent_id)

        agents, learnt = Uneven(), Learnt()

        async def call(who: Identity) -> None:
            await who.agent_of(REF)

        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(call, identity(agents, learnt))
        assert learnt.agents[REF.lane] in {agent.agent_id for agent in agents.found}

    anyio.run(main)


@pytest.mark.anyio
async def test_a_caller_with_an_agent_is_found_by_all_tags_and_never_by_name() -> None:
    """An agent of another tenant is not the caller's, even with the same caller key and name."""
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
    """A failed look-up neither creates nor stores an agent."""
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
    """An agent that was created is used from then on, even if the list doesn't show it."""
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
    """A new agent is stored even if the caller hangs up while it is created."""
    agents, scope = Agents(), anyio.CancelScope()

    class Slow(Learnt):
        @override
        async def learn_agent(self, ref: AgentRef, agent_id: str, *, instead_of: str = "") -> str:
            scope.cancel()
            await anyio.lowlevel.checkpoint()
            return await super().learn_agent(ref, agent_id, instead_of=instead_of)

    learnt = Slow()
    with scope:
        await identity(agents, learnt).agent_of(REF)
    assert scope.cancelled_caught
    assert learnt.agents == {REF.lane: "agent-1"}
