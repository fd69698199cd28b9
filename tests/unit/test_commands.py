"""Commands into calls of any replica, in virtual time: the right call takes each, once."""

from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from sidecar.calls.commands import CallCommands
from sidecar.errors import JournalError, SeveralCalls
from sidecar.journal.elsewhere import Commanded
from tests.unit.test_calls import CallsBench, Ear
from tests.unit.test_successors import Fleet

pytestmark = pytest.mark.unit


class Replica:
    """A replica's commands, and the calls that it has.

    Args:
        bench: Its calls.
    """

    def __init__(self, bench: CallsBench) -> None:
        self.calls = bench
        self.superseded: list[tuple[str, Commanded]] = []
        self.commands = CallCommands(
            bench.journal,
            live=lambda: bench.calls.live,
            superseded=lambda key, one: self.superseded.append((key, one)),
        )
        self.give = self.commands.give
        self.look = self.commands.look

    async def opened(self, call_id: str) -> Ear:
        _, ear = await self.calls.open(call_id)
        return ear


def fleet(test: Callable[[Replica, Replica], Awaitable[None]]) -> None:
    """Run a test with two replicas on one journal."""

    async def body(here: CallsBench, there: CallsBench) -> None:
        await test(Replica(here), Replica(there))

    Fleet().run(body)


def test_a_call_of_another_replica_takes_what_was_asked_here() -> None:
    """Guidance, words to say and a hang-up reach a call that another replica has, once."""

    async def body(here: Replica, there: Replica) -> None:
        ear = await there.opened("c1")
        assert await here.give("c1", "guide", "Be brief.")
        assert await here.give("c1", "say", "Hello.")
        assert await here.give("c1", "hang-up", "")
        assert ear.asked == []
        for _ in range(3):
            await there.look()
            await here.look()
        assert ear.asked == [("guide", "Be brief."), ("say", "Hello."), ("hang-up", "")]

    fleet(body)


def test_guidance_follows_a_call_over_replicas() -> None:
    """A replica that has a call besides, or only later, follows all its guidance."""

    async def body(here: Replica, there: Replica) -> None:
        ear = await here.opened("c1")
        await here.give("c1", "guide", "Be brief.")
        assert ear.asked == [("guide", "Be brief.")], "not only at the next look"
        await there.look()
        later = await there.opened("c1")
        await here.give("c1", "guide", "Speak French.")
        await there.look()
        assert sorted(later.asked) == [("guide", "Be brief."), ("guide", "Speak French.")]
        await here.look()
        await there.look()
        assert ear.asked == [("guide", "Be brief."), ("guide", "Speak French.")]
        assert len(later.asked) == 2

    fleet(body)


def test_what_is_taken_here_is_not_asked_of_others() -> None:
    """Words for a call of this replica are said at once, and by no other one."""

    async def body(here: Replica, there: Replica) -> None:
        ear = await here.opened("c1")
        assert await here.give("c1", "say", "Hello.")
        assert ear.asked == [("say", "Hello.")]
        await there.look()
        await here.look()
        assert len(ear.asked) == 1

    fleet(body)


def test_words_that_equal_guidance_are_said() -> None:
    """What the agent was told to follow can be said as well, also from another replica."""

    async def body(here: Replica, there: Replica) -> None:
        ear = await there.opened("c1")
        for command in ("guide", "say"):
            assert await here.give("c1", command, "One moment.")
            await there.look()
        assert ear.asked == [("guide", "One moment."), ("say", "One moment.")]

    fleet(body)


def test_a_hang_up_waits_for_who_has_the_call() -> None:
    """A replica that has a call only in the journal, from a dead one, leaves its hang-up there."""

    async def body(here: Replica, there: Replica) -> None:
        await there.opened("c1")
        key = there.calls.calls.live[0].key
        assert await here.give("c1", "hang-up", "")
        assert await there.calls.journal.passed_on(after=0, opened=[], live=[]) == []
        taken = await there.calls.journal.passed_on(after=0, opened=[], live=[key])
        assert [one.command for one in taken] == ["hang-up"]

    fleet(body)


def test_a_call_that_is_silent_here_goes_on_elsewhere() -> None:
    """A replica that heard nothing of a call ends it for itself alone, if another has opened it."""

    async def body(here: Replica, there: Replica) -> None:
        await here.opened("c1")
        first = here.calls.calls.live[0]
        ear = await there.opened("c1")
        await here.give("c1", "guide", "Be brief.")
        await first.close("silence", here=True)
        assert [one.key for one in await here.calls.live_calls()] == [first.key]
        await there.look()
        assert ear.asked == [("guide", "Be brief.")]

    fleet(body)


def test_a_name_of_several_calls_is_refused_wherever_they_are() -> None:
    """An ambiguous beginning commands no call, and the error names those that it fits."""

    async def body(here: Replica, there: Replica) -> None:
        await there.opened("call-1")
        await there.opened("call-2")
        with pytest.raises(SeveralCalls) as refused:
            await here.give("call", "hang-up", "")
        assert "call-1" in str(refused.value.hint)
        assert "call-2" in str(refused.value.hint)
        assert not await here.give("nobody", "hang-up", "")

    fleet(body)


def test_a_call_here_is_guided_while_the_journal_fails() -> None:
    """Where the others can't be reached, the calls of this replica take commands as ever."""

    async def body(here: Replica, _: Replica) -> None:
        ear = await here.opened("c1")

        async def fails(*_: object, **__: object) -> None:
            raise JournalError("the disk is gone", hint="")

        here.calls.journal.pass_on = fails  # type: ignore[method-assign, assignment]
        here.calls.journal.live_elsewhere = fails  # type: ignore[method-assign, assignment]
        assert await here.give("c1", "guide", "Be brief.")
        assert ear.asked == [("guide", "Be brief.")]
        with pytest.raises(JournalError):
            await here.give("c2", "guide", "Be brief.")

    fleet(body)


def test_a_further_reply_is_known_at_other_replicas_that_have_the_call() -> None:
    """What supersedes a reply reaches each replica that has the call, once, and no later one."""

    async def body(here: Replica, there: Replica) -> None:
        await here.opened("c1")
        await there.opened("c2")
        key = here.calls.calls.live[0].key
        asked = Commanded(key, "supersede", "2 5")
        asked = replace(asked, n=await here.calls.journal.pass_on(asked))
        for _ in range(2):
            await here.look()
            await there.look()
        assert here.superseded == [(key, asked)]
        await there.opened("c1")
        await there.look()
        assert there.superseded == []

    fleet(body)
