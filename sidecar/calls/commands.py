"""Commands into live calls, wherever they are: guidance, words to say, a hang-up."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Final

import anyio

from sidecar.call_names import calls_named, several
from sidecar.calls.call import LiveCall
from sidecar.errors import JournalError, SeveralCalls
from sidecar.journal.elsewhere import Commanded, Elsewhere
from sidecar.model import Command

LOOK_EVERY_S: Final = 1.0


class Commands:
    """Passes commands on to the channels of live calls, and to the replicas that have them.

    Args:
        journal: Of all replicas.
        live: The calls that are live at this one.
    """

    def __init__(self, journal: Elsewhere, *, live: Callable[[], Sequence[LiveCall]]) -> None:
        self._journal = journal
        self._live = live

    async def give(self, name: str, command: Command, text: str) -> bool:
        """Have a live call take a command. Only its transcript shows the effect.

        Args:
            name: Of the call, as `calls_named` reads it.
            command: What to do.
            text: The guidance, or the words to say.

        Returns:
            False when no live call is named so.

        Raises:
            SeveralCalls: several live calls are named so.
            JournalError: the other replicas' calls can't be read, and none here is named so.
        """
        here = self._by_name()
        found = list(dict.fromkeys(here[one].key for one in calls_named(name, here)))
        if not found:
            found = calls_named(name, await self._journal.live_elsewhere())
        if len(found) > 1:
            raise SeveralCalls(
                "several live calls are named so", hint=f"say which: {several(found)}"
            )
        if not found:
            return False
        if live := here.get(found[0]):
            _take(live, command, text)
            return True
        return await self._journal.pass_on(Commanded(found[0], command, text))

    def _by_name(self) -> Mapping[str, LiveCall]:
        """One that goes on with another is found by that one's name as well."""
        live = self._live()
        return {one.call.key: one for one in live} | {one.key: one for one in live}

    async def run(self) -> None:
        """Give the calls of this replica what others were asked for them, until cancelled."""
        while True:
            await anyio.sleep(LOOK_EVERY_S)
            with suppress(JournalError):  # the calls' own turns fail as well, and say so
                await self._take_passed_on()

    async def _take_passed_on(self) -> None:
        passed_on = await self._journal.passed_on()
        here = self._by_name() if passed_on else {}
        for one in passed_on:
            if live := here.get(one.call):
                _take(live, one.command, one.text)


def _take(live: LiveCall, command: Command, text: str) -> None:
    match command:
        case "guide":
            live.guide(text)
        case "say":
            live.say(text)
        case "hang-up":
            live.hang_up()
