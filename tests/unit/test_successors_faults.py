"""A call that outlives its worker, where writes fail, sidecars wake late and callers say no."""

from collections.abc import Generator
from contextlib import contextmanager

import anyio
import pytest

from sidecar.errors import CallError, JournalError
from sidecar.model import Turn
from tests.unit.test_calls import BOB, CallsBench, virtual
from tests.unit.test_successors import (
    AFTER_S,
    NO,
    Fleet,
    first,
    lost,
    not_looking,
    opened,
    restored,
    said,
    slowed,
    taken_for_gone,
    transcripts,
)

pytestmark = pytest.mark.unit


async def consent(bench: CallsBench) -> str:
    """Return the consent of the only call that is stored."""
    (row,) = await bench.journal.calls(limit=9)
    return row.call.consent


@contextmanager
def refusals_fail(bench: CallsBench) -> Generator[None]:
    """Have the journal fail to mark a call as refused."""
    refuse = bench.journal.refuse

    async def fail(key: str) -> None:
        raise JournalError(f"away, and {key} with it")

    bench.journal.refuse = fail
    yield
    bench.journal.refuse = refuse


def test_a_no_on_coming_back_is_written() -> None:
    """A worker that opens its call again with a no has it marked, and no job stores any more."""

    async def body(here: CallsBench, there: CallsBench) -> None:
        await lost(here, "one")
        await anyio.sleep(AFTER_S)
        one, _ = await opened(there, "J1", NO)
        assert await consent(here) == "no"
        there.calls.orphan(one.owner)
        await anyio.sleep(AFTER_S)
        two, _ = await opened(here, "J2")
        await two.record([said(here, two, 1, "after the no")])
        assert await transcripts(here) == {"t/J1": ["one"]}

    Fleet().run(body)


def test_a_no_that_could_not_be_written_is_written_later() -> None:
    """A journal that is away for a moment forgets no refusal."""

    async def body(here: CallsBench, there: CallsBench) -> None:
        one, _ = await opened(here, "J1")
        await one.record([said(here, one, 1, "one")])
        with refusals_fail(here):
            await opened(here, "J1", NO)
        await anyio.sleep(10.0)
        assert await consent(here) == "no"
        here.calls.orphan(one.owner)
        await anyio.sleep(AFTER_S)
        two, _ = await opened(there, "J2")
        await two.record([said(there, two, 1, "after the no")])
        assert await transcripts(here) == {"t/J1": ["one"]}

    Fleet().run(body)


def test_a_call_refused_as_it_is_stored_is_closed_like_any() -> None:
    """Where the refusal can't be written at that moment, the call still ends with its worker."""

    async def body(bench: CallsBench) -> None:
        slowed(bench)
        with refusals_fail(bench):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(opened, bench, "J1")
                await anyio.sleep(0.5)
                await bench.calls.live[0].refuse()
        (one,) = bench.calls.live
        await one.close("hung up", at_s=bench.clock())
        await anyio.sleep(10.0)
        assert await bench.live_calls() == []
        assert await consent(bench) == "no"

    virtual(body)


def test_a_call_whose_next_job_hears_a_no_ends_with_that_job() -> None:
    """The lost call is closed when the caller who said no hangs up, and does not go on."""

    async def body(bench: CallsBench) -> None:
        await lost(bench, "one")
        await anyio.sleep(AFTER_S)
        two, _ = await opened(bench, "J2", NO)
        await two.close("hung up", at_s=bench.clock())
        assert await bench.live_calls() == []
        _, ear = await opened(bench, "J3")
        assert not (await first(ear)).continues

    virtual(body)


def test_words_that_waited_in_a_frozen_sidecar_are_stored_once() -> None:
    """A sidecar that wakes under another name stores nothing that another job has stored."""

    async def body(here: CallsBench, there: CallsBench) -> None:
        one, _ = await opened(here, "J1")
        await one.record([said(here, one, 1, "one")])
        with not_looking(here):
            await taken_for_gone(here)
            await anyio.sleep(2.6)
            two, _ = await opened(there, "J2")
            waited: list[Turn] = []
            for n in (2, 3):
                await anyio.sleep(AFTER_S)
                waited.append(said(here, one, n, f"word {n}"))
                await two.record([said(there, two, n, f"word {n}")])
            here.journal.renamed()
            await one.record(waited)
        assert await transcripts(here) == {"t/J1": ["one", "word 2", "word 3"]}

    Fleet().run(body)


def test_a_spool_with_the_id_of_anothers_call_is_refused() -> None:
    """What a file says of another caller under a known call's id is stored nowhere."""

    async def body(bench: CallsBench) -> None:
        await lost(bench, "one")
        await anyio.sleep(AFTER_S)
        await opened(bench, "J2")
        words = Turn("t/J1", "x", 9, "caller", "words of Bob", bench.clock())
        with pytest.raises(CallError) as refused:
            await bench.calls.restore(
                "t",
                "J1",
                channel="livekit",
                hints=BOB,
                opened_at_s=bench.clock(),
                turns=[words],
                room="RM_9",
                ended=True,
            )
        assert refused.value.code == "call_claimed"
        assert await transcripts(bench) == {"t/J1": ["one"]}

    virtual(body)


def test_a_jobs_own_words_at_another_sidecar_hide_none_of_its_later_ones() -> None:
    """What a dead worker said again, after it was heard elsewhere, is taken from its spool."""

    async def body(here: CallsBench, there: CallsBench) -> None:
        one, _ = await opened(there, "J1")
        await anyio.sleep(AFTER_S)
        two, _ = await opened(here, "J2")
        await anyio.sleep(AFTER_S)
        await one.record([said(there, one, 1, "yes")])
        await two.record([said(here, two, 1, "yes")])
        await anyio.sleep(1.0)
        again = said(there, one, 3, "yes")
        there.calls.orphan(one.owner)
        await anyio.sleep(30.0)
        here.calls.orphan(two.owner)
        await anyio.sleep(300.0)
        assert await restored(here, "J1", [again], opened_at_s=one.opened_at_s)
        assert await transcripts(here) == {"t/J1": ["yes", "yes"]}
        assert await here.live_calls() == []

    Fleet().run(body)


def test_a_call_that_is_lost_while_it_is_taken_again_is_closed() -> None:
    """After a partition a worker may die as its call is taken again: nothing stays open."""

    async def body(here: CallsBench, _there: CallsBench) -> None:
        one, _ = await opened(here, "J1")
        await one.record([said(here, one, 1, "one")])
        retake, begun = here.journal.retake, anyio.Event()

        async def slowly(key: str) -> int | None:
            begun.set()
            await anyio.sleep(0.5)
            return await retake(key)

        here.journal.retake = slowly
        await taken_for_gone(here)
        here.journal.renamed()
        await begun.wait()
        here.calls.orphan(one.owner)
        await anyio.sleep(600.0)
        assert await here.live_calls() == []

    Fleet().run(body)
