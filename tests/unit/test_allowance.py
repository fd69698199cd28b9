"""Bytes held for peers, for each one and for all of them."""

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.channels.link.allowance import Allowance

pytestmark = pytest.mark.unit

MOVES = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 40), st.booleans()), max_size=60)


@given(MOVES)
def test_what_is_held_is_bounded_and_nobody_waits_for_another(
    moves: list[tuple[int, int, bool]],
) -> None:
    """A peer holds at most its limit and one more piece; a peer that holds nothing may go on."""
    shared = Allowance(100)
    peers = [Allowance(50, shared) for _ in range(4)]
    taken: list[list[int]] = [[] for _ in peers]
    for who, size, gives_back in moves:
        peer = peers[who]
        if gives_back and taken[who]:
            peer.give_back(taken[who].pop())
        elif not peer.spent:
            peer.take(size)
            taken[who].append(size)
        assert [sum(pieces) for pieces in taken] == [one.taken_bytes for one in peers]
        assert sum(map(sum, taken)) == shared.taken_bytes
        assert all(one.taken_bytes <= 50 + 40 for one in peers)
        assert shared.taken_bytes <= 100 + len(peers) * 40
        assert not any(one.spent for one in peers if not one.taken_bytes)
    for peer in peers:
        peer.give_back()
    assert shared.taken_bytes == 0


def test_room_is_had_when_another_peer_gives_back() -> None:
    """A peer that waits for the shared limit goes on when another peer gives room back."""

    async def give_and_wait() -> None:
        shared = Allowance(10)
        one, two = Allowance(100, shared), Allowance(100, shared)
        one.take(8)
        two.take(8)
        assert two.spent
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(two.room)
            await anyio.wait_all_tasks_blocked()
            one.give_back(8)
        assert not two.spent

    anyio.run(give_and_wait)
