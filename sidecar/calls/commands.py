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

LOOK_EVERY_S: Final = 0.5
PASS_ON_S: Final = 2.0


class CallCommands:
    """Passes commands on to the channels of live calls, and to the replicas that have them.

    Guidance reaches the same call at other replicas within `LOOK_EVERY_S` or so, also one that has
    the call only later; words to say and a hang-up are taken by one of them.

    Args:
        journal: Of all replicas.
        live: The calls that are live at this one.
        superseded: Called with the key of a live call, and a `supersede` for it.
    """

    def __init__(
        self,
        journal: Elsewhere,
        *,
        live: Callable[[], Sequence[LiveCall]],
        superseded: Callable[[str, Commanded], None] = lambda _key, _one: None,
    ) -> None:
        self._journal = journal
        self._live = live
        self._superseded = superseded
        self._seen = 0  # every command up to this one was seen, for the calls in `_known`
        self._known: set[LiveCall] = set()

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
            JournalError: no call of this replica is named so, and the others' can't be read.
        """
        here = self._by_key()
        keys = {key: live.key for key, live in here.items()}
        found = _named(name, keys) or _named(name, await self._journal.live_elsewhere())
        if not found:
            return False
        live = here.get(found)
        if live is None:
            return await self._journal.pass_on(Commanded(found, command, text)) > 0
        _take(live, command, text)
        if command == "guide":
            # This replica has the call, and has taken it; others may have it besides.
            with anyio.move_on_after(PASS_ON_S), suppress(JournalError):
                await self._journal.pass_on(Commanded(found, command, text))
        return True

    def _by_key(self) -> Mapping[str, LiveCall]:
        """One that goes on with another is found by that one's key as well."""
        live = self._live()
        return {one.call.key: one for one in live} | {one.key: one for one in live}

    async def run(self) -> None:
        """Give the calls of this replica what others were asked for them, until cancelled."""
        while True:
            await anyio.sleep(LOOK_EVERY_S)
            with suppress(JournalError):  # the calls' own turns fail as well, and say so
                await self.look()

    async def look(self) -> None:
        """Give the calls of this replica what others were asked for them since the last look.

        Raises:
            JournalError: it can't be read; a later look gives it.
        """
        here = self._by_key()
        stored = {one for one in here.values() if one.stored}
        opened = [one.call.key for one in stored - self._known]
        passed_on = await self._journal.passed_on(after=self._seen, opened=opened, live=set(here))
        self._known = stored
        for one in passed_on:
            self._seen = max(self._seen, one.n)
            found = here.get(one.call)
            if found is None:
                continue
            if one.command == "supersede":
                self._superseded(found.key, one)
            elif one.command != "guide" or one.text.strip() not in found.guidance.pieces:
                _take(found, one.command, one.text)


def _named(name: str, keys: Mapping[str, str]) -> str:
    """Return the key of the one live call of that name, or nothing."""
    found = list(dict.fromkeys(keys[one] for one in calls_named(name, keys)))
    if len(found) > 1:
        raise SeveralCalls("several live calls are named so", hint=f"say which: {several(found)}")
    return "".join(found)


def _take(live: LiveCall, command: Command, text: str) -> None:
    match command:
        case "guide":
            live.guide(text)
        case "say":
            live.say(text)
        case "hang-up":
            live.hang_up()
