"""Moving an agent between two Lettas: what is there already is not made a second time."""

import pytest

from sidecar.letta.digest_agent import spec_of_caller
from sidecar.letta.move import plan
from sidecar.letta.port import AgentSpec
from sidecar.testing.fake_letta import FakeLetta

pytestmark = [pytest.mark.unit, pytest.mark.anyio]


def unix_s() -> float:
    return 1_800_000_000.0


@pytest.mark.parametrize("extra", [(), ("vip",)], ids=["ours alone", "a tag of the owner's"])
async def test_a_caller_who_has_an_agent_there_gets_no_second_one(extra: tuple[str, ...]) -> None:
    """The caller's agent at the target is found, whatever tags the owner gave the one here."""
    source, target = FakeLetta(clock=unix_s), FakeLetta(clock=unix_s)
    spec = spec_of_caller("acme", "k1")
    here = AgentSpec(spec.name, spec.system, spec.blocks, (*spec.tags, *extra))
    await source.create_agent(here)
    there = await target.create_agent(spec)
    (agent,) = await source.find_agents(spec.tags)
    move = await plan(source, target, agent)
    assert (move.state, move.target_id) == ("taken", there)
