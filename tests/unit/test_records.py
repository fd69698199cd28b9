"""Several calls that hear the same caller: two jobs in one room, in virtual time."""

from collections.abc import Awaitable, Callable

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.calls import LiveCall
from sidecar.model import Turn
from tests.unit.test_calls import ADA, BOB, CallsBench, Ear, virtual

pytestmark = pytest.mark.unit


async def joined(
    bench: CallsBench, name: str, *, room: str = "RM_1", hints: object = ADA, owner: str = ""
) -> LiveCall:
    return await bench.calls.open(
        "t",
        name,
        channel="livekit",
        hints=hints,  # type: ignore[arg-type]
        opened_at_s=0.0,
        owner=owner or f"worker of {name}",
        listener=Ear(),
        room=room,
    )


def heard(live: LiveCall, at_s: float, text: str = "") -> Turn:
    """One utterance in a job's own call, with an id of that job and the same words in both."""
    return Turn(live.key, f"{live.key} {at_s:g}", 0, "caller", text or f"words {at_s:g}", at_s)


async def stored(bench: CallsBench) -> list[str]:
    rows = await bench.journal.calls(limit=50)
    return sorted([t.text for row in rows for t in await bench.journal.turns(row.call.key)])


def test_two_jobs_in_a_room_are_one_record() -> None:
    """What both jobs hear is stored once, in the call that opened first, and both have memory."""

    async def body(bench: CallsBench) -> None:
        one, two = await joined(bench, "J1"), await joined(bench, "J2")
        async with anyio.create_task_group() as tasks:
            for at_s in (1.0, 2.0, 3.0):
                tasks.start_soon(two.record, [heard(two, at_s)])
                await anyio.sleep(0.1)
                await one.record([heard(one, at_s)])
        await one.close("hung up", at_s=4.0)
        await two.close("hung up", at_s=4.0)
        assert await stored(bench) == ["words 1", "words 2", "words 3"]
        assert [row.call.key for row in await bench.journal.calls(limit=9)] == [one.key]
        assert bench.telemetry.counts["call_recorded_elsewhere"] == 1
        assert two.agent_id == one.agent_id is not None

    virtual(body)


def lost(bench: CallsBench, live: LiveCall) -> Callable[[], Awaitable[None]]:
    async def lose() -> None:
        bench.calls.orphan(live.owner)

    return lose


@pytest.mark.parametrize("how", ["closed", "lost"])
def test_the_other_job_takes_over_without_loss_or_doubling(how: str) -> None:
    """When the first job is gone, the second's call stores what is missing and what follows."""

    async def body(bench: CallsBench) -> None:
        one, two = await joined(bench, "J1"), await joined(bench, "J2")
        await one.record([heard(one, 1.0)])
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(two.record, [heard(two, 0.9, "words 1"), heard(two, 2.0)])
            await anyio.sleep(5.0)
            assert await stored(bench) == ["words 1"]
            if how == "closed":
                await one.close("job ended", at_s=1.5)
            else:
                bench.calls.orphan(one.owner)
        await two.record([heard(two, 3.0)])
        assert await stored(bench) == ["words 1", "words 2", "words 3"]
        again = await joined(bench, "J1", owner=one.owner)
        async with anyio.create_task_group() as tasks:  # it returns with its unsent turns
            tasks.start_soon(again.record, [heard(again, 2.0), heard(again, 4.0)])
            await anyio.sleep(1.0)
            await two.close("hung up", at_s=3.5)
        assert await stored(bench) == ["words 1", "words 2", "words 3", "words 4"]

    virtual(body)


def test_an_utterance_that_both_settled_is_not_doubled_by_its_time() -> None:
    """The same words at nearly the same time are one utterance, as jobs' clocks differ."""

    async def body(bench: CallsBench) -> None:
        one, two = await joined(bench, "J1"), await joined(bench, "J2")
        await one.record([heard(one, 10.0, "yes, please")])
        await two.record([heard(two, 10.2, "yes, please")])
        bench.calls.orphan(one.owner)
        await two.record([heard(two, 30.0, "yes, please")])
        assert await stored(bench) == ["yes, please", "yes, please"]

    virtual(body)


@pytest.mark.parametrize(
    ("room", "hints", "owner"),
    [("RM_2", ADA, "w2"), ("RM_1", BOB, "w2"), ("", ADA, "w2"), ("RM_1", ADA, "worker of J1")],
)
def test_another_room_caller_or_call_of_the_same_job_has_its_own_record(
    room: str, hints: object, owner: str
) -> None:
    """Another room, another caller or the same worker makes a separate record."""

    async def body(bench: CallsBench) -> None:
        one = await joined(bench, "J1")
        two = await joined(bench, "J2", room=room, hints=hints, owner=owner)
        await one.record([heard(one, 9.0)])
        await two.record([heard(two, 1.0)])
        assert await stored(bench) == ["words 1", "words 9"]
        assert bench.telemetry.counts["call_recorded_elsewhere"] == 0

    virtual(body)


def test_what_a_dead_second_job_left_is_stored_only_where_the_first_had_not_come() -> None:
    """A spool of the second job waits while the first records, then adds what is missing."""

    async def body(bench: CallsBench) -> None:
        one, two = await joined(bench, "J1"), await joined(bench, "J2")
        left = [heard(two, 1.0), heard(two, 2.0), heard(two, 3.0)]
        bench.calls.orphan(two.owner)

        async def restored() -> bool:
            return await bench.restore("J2", left, room="RM_1")

        await one.record([heard(one, 2.0)])
        assert not await restored()
        await one.record([heard(one, 1.0)])
        await one.close("job ended", at_s=2.5)
        assert await restored()
        assert await stored(bench) == ["words 1", "words 2", "words 3"]

    virtual(body)


STEPS = st.lists(st.sampled_from(["J1", "J2", "say", "leave J1", "leave J2"]), max_size=14)


@settings(max_examples=60, deadline=None)
@given(STEPS)
def test_whoever_comes_and_goes_each_word_is_stored_once(steps: list[str]) -> None:
    """However two jobs join, leave and return, every word that either heard is stored once."""

    async def body(bench: CallsBench) -> None:
        live: dict[str, LiveCall] = {}
        said: set[str] = set()
        waiting: dict[str, list[Turn]] = {"J1": [], "J2": []}

        async def hand_over(name: str, call: LiveCall) -> None:
            """Send in order, as the link does, and send unacked turns again after a reconnect."""
            while waiting[name] and live.get(name) is call:
                turns = list(waiting[name])
                await call.record(turns)
                if live.get(name) is call:
                    del waiting[name][: len(turns)]

        async with anyio.create_task_group() as tasks:
            for n, step in enumerate([*steps, "J1", "J2", "leave J2"], start=1):
                if step == "say" and live:
                    said.add(f"words {n}")
                    for name, call in live.items():
                        waiting[name].append(heard(call, float(n)))
                        tasks.start_soon(hand_over, name, call)
                elif step in waiting and step not in live:
                    live[step] = await joined(bench, step)
                    tasks.start_soon(hand_over, step, live[step])
                elif step.startswith("leave") and step[6:] in live:
                    bench.calls.orphan(live.pop(step[6:]).owner)
                await anyio.sleep(0.1)
            tasks.cancel_scope.cancel()
        assert await stored(bench) == sorted(said)

    virtual(body)
