"""The REST adapter reports truly when the real Letta server dies, freezes or loses Redis."""

import time
from collections.abc import AsyncIterator
from contextlib import suppress
from functools import partial

import anyio
import pytest

from sidecar.errors import LettaUnavailable, NotAccepted, OutcomeUnknown
from sidecar.letta.port import Finding, Letta, Post
from sidecar.letta.rest.letta import RestLetta
from tests.contract.letta_worlds import (
    RealWorld,
    new_agent,
    new_post,
    takes_nothing,
    until_running,
    value_of,
)
from tests.letta_server.stack import LettaStack

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.real_letta,
    pytest.mark.anyio,
]

SETTLE_S = 60.0


@pytest.fixture
async def world(letta_server: LettaStack) -> AsyncIterator[RealWorld]:
    opened = RealWorld(letta_server)
    yield opened
    await opened.release_model()
    await opened.aclose()


async def delivered(letta: Letta, post: Post) -> None:
    """Post as the relay does: look up what is unknown, and post only what is absent."""
    with anyio.fail_after(SETTLE_S):
        finding: Finding | None = None
        while finding != "found":
            try:
                finding = await letta.find(post)
                if finding == "absent":
                    await letta.post(post)
                    return
            except (LettaUnavailable, NotAccepted, OutcomeUnknown):
                pass
            await anyio.sleep(0.2)


async def test_a_batch_survives_a_server_killed_over_it(
    world: RealWorld, letta_server: LettaStack
) -> None:
    """A run that died with its server counts as running until the cut-off, then as absent."""
    # While the server is down, nothing is posted, and a read reports Letta unavailable.
    # The dead run's lock in Redis would refuse the batch for 300 s, so Redis is emptied here.
    agent_id = await new_agent(world)
    post = await new_post(world, agent_id, "[[remember human: Saw it die]]")
    other_agent_id = await new_agent(world)
    other = await new_post(world, other_agent_id)
    await world.stall_model()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(partial(lost_post, world.letta, post))
        await until_running(world.letta, post)
        letta_server.kill_letta()
    await world.release_model()
    try:
        await takes_nothing(world.letta, other_agent_id, other)
    finally:
        letta_server.start_letta()
    assert await world.letta.find(post) == "running"
    age_s = time.time() - post.first_sent_at_s
    later = RestLetta(world.base_url, letta_server.api_key, run_cutoff_s=age_s / 2)
    world.opened.append(later)
    assert await later.find(post) == "absent"
    with pytest.raises(NotAccepted) as refused:
        await later.post(post)
    assert refused.value.busy
    letta_server.stop_redis()
    letta_server.start_redis()
    await delivered(later, post)
    assert await world.copies(post) == 1
    assert (await value_of(later, agent_id)).count("Saw it die") == 1
    await delivered(later, other)
    assert await world.copies(other) == 1


async def lost_post(letta: Letta, post: Post) -> None:
    with pytest.raises(OutcomeUnknown) as unknown:
        await letta.post(post)
    assert not unknown.value.over


async def test_a_frozen_server_keeps_nobody_waiting(
    world: RealWorld, letta_server: LettaStack
) -> None:
    """A hanging server costs each request its deadline; what it took is found once it resumes."""
    agent_id = await new_agent(world)
    post = await new_post(world, agent_id)
    hasty = RestLetta(world.base_url, letta_server.api_key, read_timeout_s=0.5, post_timeout_s=1.0)
    world.opened.append(hasty)
    letta_server.pause_letta()
    try:
        with anyio.fail_after(SETTLE_S):  # it answers nothing, so only a deadline can end these
            with pytest.raises(LettaUnavailable):
                await hasty.read_blocks(agent_id)
            with pytest.raises(OutcomeUnknown):
                await hasty.post(post)
    finally:
        letta_server.resume_letta()
    await delivered(world.letta, post)
    assert await world.copies(post) == 1


async def test_a_batch_survives_the_loss_of_redis(
    world: RealWorld, letta_server: LettaStack
) -> None:
    """A post without Redis stores nothing, and no look-up finds it; later it is stored once."""
    agent_id = await new_agent(world)
    post = await new_post(world, agent_id)
    letta_server.stop_redis()
    try:
        with pytest.raises((OutcomeUnknown, NotAccepted)):
            await world.letta.post(post)
        with suppress(LettaUnavailable):
            assert await world.letta.find(post) == "absent"
        assert await world.copies(post) == 0
    finally:
        letta_server.start_redis()
    await delivered(world.letta, post)
    assert await world.copies(post) == 1
