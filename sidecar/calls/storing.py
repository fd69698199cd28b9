"""From a live call into the journal: its turns, the call itself, and whether the journal works."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Final

import anyio

from sidecar import telemetry
from sidecar.calls.call import LiveCall
from sidecar.calls.records import Records
from sidecar.errors import CallError, HeardElsewhere, JournalError
from sidecar.journal.record import Record
from sidecar.model import TURN_SECONDS, Turn, prompt_of
from sidecar.telemetry import Emit
from sidecar.tracing import CONVERSATION, TEXT, Tracer

ELSEWHERE_S: Final = 0.5
"""How often a call looks whether the sidecar that has the call of its room has got further."""


class Storing:
    """Stores live calls and their turns.

    Args:
        journal: Where they go.
        records: Which call writes the record of a room.
        on_stored: Called with a call that is now stored.
        emit: Where events go.
        tracer: Makes spans.

    Attributes:
        error: Why turns can't be stored at present; empty while they can.
    """

    def __init__(
        self,
        journal: Record,
        records: Records,
        *,
        on_stored: Callable[[LiveCall], None],
        emit: Emit,
        tracer: Tracer,
    ) -> None:
        self.error = ""
        self._journal = journal
        self._records = records
        self._on_stored = on_stored
        self._emit = emit
        self._tracer = tracer
        self._unrefused: dict[str, None] = {}

    async def record(self, live: LiveCall, turns: Sequence[Turn]) -> None:
        """Make turns of a live call durable; drop them where the caller did not agree.

        Where another call writes the record, this returns when that record has reached these turns.
        """
        while turns := await self._records.own(live, turns):
            if not live.may_be_stored:
                self._records.reached(live, turns)
                self._emit(telemetry.turns_not_kept, call=live.key, turns=len(turns))
                return
            self._look_for_gap(live, turns)
            try:
                if not await self._append(live, turns):
                    self._records.reached(live, turns)
                    self._emit(telemetry.turns_not_kept, call=live.key, turns=len(turns))
                    return
            except HeardElsewhere as error:
                # As `Records.own` does for a call of this process.
                self._records.reached_elsewhere(live, error, await self._journal.turns(error.key))
                await anyio.sleep(ELSEWHERE_S)
                continue
            except CallError:
                raise  # the turn is at fault, not the journal
            except JournalError as error:
                self.failed(error)
                raise
            self._recorded(live, turns)
            return

    def _look_for_gap(self, live: LiveCall, turns: Sequence[Turn]) -> None:
        for turn in turns:
            if turn.seq:
                if live.last_seq and turn.seq > live.last_seq + 1:
                    self._emit(
                        telemetry.turn_seq_gap,
                        call=live.key,
                        expected=live.last_seq + 1,
                        got=turn.seq,
                    )
                live.last_seq = max(live.last_seq, turn.seq)

    def _recorded(self, live: LiveCall, turns: Sequence[Turn]) -> None:
        self.error = ""
        self._records.reached(live, turns)
        live.turns += len(turns)
        for turn in turns:
            self._say_recorded(live, turn)

    def _say_recorded(self, live: LiveCall, turn: Turn) -> None:
        """Report that a turn is stored, and what was measured for it."""
        self._emit(
            telemetry.turn_recorded,
            call=live.key,
            speaker=turn.speaker,
            chars=len(turn.text),
            pii_text=turn.text,
        )
        measured = {name: turn.metrics[name] for name in TURN_SECONDS if name in turn.metrics}
        if measured:
            self._emit(telemetry.turn_measured, call=live.key, **measured)
        if prompt := prompt_of(turn.metrics):
            served, age_s, wait_s = prompt
            self._emit(
                telemetry.prompt_served,
                call=live.key,
                version="",
                served=served,
                age_s=age_s,
                wait_s=wait_s,
            )

    async def _append(self, live: LiveCall, turns: Sequence[Turn]) -> bool:
        """Store turns, each with the span it belongs to: its channel's own, or that of storing it.

        A call that retention has erased meanwhile is stored again.

        Returns:
            False when the call turns out to be one that the caller refused, or that was erased
            with its caller.
        """
        await self.store_call(live)
        if not live.may_be_stored:
            return False
        parents = [turn.traceparent or live.traceparent for turn in turns]
        about = {
            CONVERSATION: live.call.call_id,
            "sidecar.turns": len(turns),
            TEXT: "\n".join(f"{turn.speaker}: {turn.text}" for turn in turns),
        }
        with self._tracer.start(
            "store turns", parent=parents[0], links=parents[1:], attributes=about
        ) as span:
            traced = [replace(t, traceparent=t.traceparent or span.traceparent) for t in turns]
            try:
                await self._journal.append(traced)
            except HeardElsewhere:  # this replica was taken for gone, and another job has the call
                live.stored, live.elsewhere_until_lost = False, True
                raise
            except CallError as error:
                if error.code == "refused":  # the caller said so to another replica
                    live.may_be_stored = False
                    live.refused_s = min(live.refused_s, live.opened_at_s)
                    return False
                if error.code != "unknown_call":
                    raise
                live.stored = False  # erased since it was stored
                await self.store_call(live)
                if not live.may_be_stored:
                    return False
                await self._journal.append(traced)
        return True

    async def store_call(self, live: LiveCall) -> None:
        """Store a call, unless it is stored already or another call writes its record.

        A call that goes on with another is stored in that one, and so is what follows. Nothing is
        stored of a call that was erased with its caller.

        Raises:
            HeardElsewhere: another sidecar has the call that it would go on with.
        """
        if live.may_be_stored and not live.stored and self._records.is_writer(live):
            room = live.heard[0] if live.heard else ""
            call = replace(live.call, key=live.key, room=room)
            try:
                live.call = await self._journal.open_call(call, continues=live.before)
            except CallError as error:
                if error.code != "erased":
                    raise
                live.may_be_stored = False
                self._emit(telemetry.erased_call_refused, call=live.key)
                return
            refused_meanwhile = not live.may_be_stored
            if live.call.consent == "no":
                live.refused_s = min(live.refused_s, live.opened_at_s)
                live.may_be_stored = False
            live.stored = True
            self._on_stored(live)
            if refused_meanwhile:
                await self.refuse([live.call.key])

    async def refuse(self, keys: Iterable[str]) -> None:
        """Mark stored calls as refused by their caller; those that are not stored, not at all.

        What can't be written now is written by `try_again`.
        """
        self._unrefused.update(dict.fromkeys(keys))
        for key in list(self._unrefused):
            try:
                await self._journal.refuse(key)
            except JournalError as error:
                self.failed(error)
                return
            self._unrefused.pop(key, None)

    def failed(self, error: JournalError) -> None:
        """A write failed: turns can't be stored until one succeeds."""
        self.error = f"{type(error).__name__}: {error.message}"
        self.emit_failed(error)

    def emit_failed(self, error: JournalError) -> None:
        """Emit that an operation of the journal failed."""
        self._emit(
            telemetry.journal_failed,
            error=f"{type(error).__name__}: {error.message}",
            hint=error.hint,
        )

    async def try_again(self) -> None:
        """Write the refusals that could not be written, and test whether turns can be stored.

        Without a live call nothing else would show that they can.
        """
        await self.refuse([])
        if self.error:
            try:
                await self._journal.try_write()
            except JournalError:
                return
            self.error = ""
