"""What live calls need of the journal: their turns stored, durably and in order."""

from collections.abc import Callable, Sequence
from typing import Protocol

from sidecar.journal.transcripts import Transcripts
from sidecar.model import AgentRef, Call, Turn


class Record(Transcripts, Protocol):
    """The durable record of calls and turns, a log for each call.

    Calls whose `ref` is not `known` are stored and never delivered: their turns count as digested.
    Writes take effect in the order in which the methods are called. Every method may raise
    `JournalError`; then nothing was stored.
    """

    @property
    def replica(self) -> str:
        """The name of this run of a sidecar in the journal.

        Another one once this replica was taken for gone: then no call is its own any more, until it
        opens it again.
        """
        ...

    digested: Callable[[AgentRef], None]
    """Set it to be called on the loop when another replica has settled a batch of that agent.

    It may fail to come: what has to be seen in any case is read from time to time.
    """

    async def open_call(
        self, call: Call, *, continues: str = "", lost_s: float | None = None
    ) -> Call:
        """Store a call and return it as stored; a repeated key returns the call stored first.

        A new call makes what is pending of its caller's earlier calls due at once: what was said
        first is delivered first (`Outbox.claim`).
        A call that was closed and is opened again is live again. Its `consent` is joined
        (`sidecar.model.joined_consent`). Opening it again never changes whose memory it belongs to:
        if the rules have given its caller another agent since, the call keeps its stored `ref` to
        the end, and likewise an empty `caller_key`.
        From here on the call belongs to this replica, at the `epoch` that is returned: what another
        one opened earlier, it can neither rewrite nor close.
        A new call with a `room` goes on with the call of that room and `caller_key` whose worker
        was lost less than `GOES_ON_S` seconds before, or whose replica is gone, unless that was
        ended: then it is its *successor*, and the other call is returned, with its own key. From
        then on both keys name that call, in every method. It counts as the successor's until it is
        opened again by another of its keys: only by the key that opened it last is it ended.

        Args:
            call: The call.
            continues: Key of a call that this replica has, and whose worker it knows to be lost:
                the one to go on with, if its room and caller are the same.
            lost_s: Its worker is gone already, and lived at this Unix time. The room of a stored
                call stays as it was, and so does who opened it last.

        Raises:
            CallError: the key is stored with another `caller_key` (`call_claimed`), or the call was
                erased with its caller (`erased`): nothing of it may be stored again.
            HeardElsewhere: another replica has the call that it would go on with, or has opened it
                for another of its jobs. Nothing was stored; try again later.
        """
        ...

    async def lose(self, lost: Sequence[tuple[str, int]], *, at_s: float) -> None:
        """Note that the workers of calls were lost, so that another replica can go on with these.

        Calls that were ended, or that another replica has opened since, stay as they are.

        Args:
            lost: Key and epoch of each call.
            at_s: Unix time.
        """
        ...

    async def refuse(self, key: str) -> None:
        """Mark a call as refused by its caller, whichever replica has it; unknown: do nothing.

        From then on no replica stores a turn in it.
        """
        ...

    async def in_room(self, room: str, *, caller_key: str) -> str | None:
        """Return the key of the call that a new one of this room and caller would go on with.

        Also if its worker is not known to be lost. None: there is none.
        """
        ...

    async def so_far(self, key: str, *, except_by: str, limit: int) -> tuple[Turn, ...]:
        """Return the newest turns of a call without those of one of its successors, in order.

        Args:
            key: Of the call.
            except_by: Key of that successor.
            limit: At most this many.
        """
        ...

    async def identify(self, call: Call) -> Call:
        """Give a stored call that has no caller the caller of `call`; return it as stored.

        For a channel whose first message about a call does not name the caller. A call whose `ref`
        is not `known` gets that of `call` as well, and what was said in it before is delivered with
        the rest. A call that already has a caller, or another agent, stays as it is.

        Raises:
            CallError: the call was never opened (`unknown_call`), or erased (`erased`).
        """
        ...

    async def append(self, turns: Sequence[Turn], *, left: bool = False) -> None:
        """Store turns, in the order given.

        Promises: on return they survive a crash of this process and of the host (fsynced); a
        turn whose (call, item_id) is stored already is dropped, so append may be repeated; all
        of `turns` or none of them are stored. A turn for a closed call is accepted as well. One of
        a successor is stored in the call that it goes on with, as `sidecar.model.succeeding_item`.
        Does not promise order between calls, or that Letta has seen anything.

        Args:
            turns: Of any calls.
            left: They are what a dead worker left, whoever has the call by now.

        Raises:
            CallError: a call was never opened (`unknown_call`), or its caller has said no
                (`refused`), or a turn can't be stored (`bad_value`): a text is not Unicode (a lone
                surrogate), or a `seq` is beyond `MAX_SEQ`.
            HeardElsewhere: another replica has the call of a room for another job.
        """
        ...

    async def rewrite(self, key: str, turns: Sequence[Turn], *, unchanged: int, epoch: int) -> int:
        """Replace the turns of a call after the first `unchanged` by these, in one step.

        For a channel that learns later what was really said. A turn in a batch never changes:
        when more than `unchanged` turns are in batches, nothing is changed.

        Args:
            key: Of the call.
            turns: What takes the place of the others.
            unchanged: How many stay.
            epoch: As `open_call` or `take_over` returned it.

        Returns:
            How many turns of the call, from its first, are in batches. More than `unchanged`:
            nothing was changed. A call that is never delivered has none in batches.

        Raises:
            CallError: as for `append`.
            TakenOver: another replica has opened the call since.
        """
        ...

    async def close_call(
        self,
        key: str,
        *,
        at_s: float,
        epoch: int | None,
        final: bool = False,
        ended: bool = True,
        if_lost: bool = False,
    ) -> None:
        """Mark a call as closed: what is pending of it is due at once. Repeating it is no error.

        Args:
            key: Of the call.
            at_s: Unix time.
            epoch: As `open_call` or `take_over` returned it, where only this replica takes it for
                ended; None: its channel has said so.
            final: Its channel has given its final account of it. That mark stays, even if the
                call is opened again.
            ended: Its worker has ended it: no other call goes on with it, unless another job has
                opened it since.
            if_lost: Leave it as it is if it was opened since its worker was lost (`lose`).

        Raises:
            CallError: the call was never opened (`unknown_call`).
            TakenOver: another replica has opened the call since.
        """
        ...

    async def take_over(self, *, first: bool = False) -> list[Call]:
        """Take the live calls whose replica is gone, and return them, oldest first.

        Their workers count as lost now.

        Args:
            first: At the start of a sidecar, when nobody has looked for an unknown time: they count
                as lost since their last word was stored.
        """
        ...

    async def retake(self, key: str) -> int | None:
        """Take a live call that this replica had under another name; return its epoch.

        Its worker is not lost, whatever another replica has noted. None: it has been closed
        meanwhile, or another job has opened it, or it was never stored.
        """
        ...

    async def is_live_elsewhere(self, key: str) -> bool:
        """Whether a call is live on another replica that is there, for the worker of this key."""
        ...

    async def recent(
        self, ref: AgentRef, *, caller_key: str, except_call: str, since_s: float, limit: int
    ) -> tuple[Turn, ...]:
        """Return the newest turns of this caller in other calls which Letta had not digested.

        Args:
            ref: Whose memory.
            caller_key: Only turns of calls of this caller; empty returns none.
            except_call: Key of the call that asks.
            since_s: Turns that Letta had digested before this Unix time are left out (they are in
                the snapshot).
            limit: At most this many, the newest, oldest first. Dead letters are included.
        """
        ...

    async def try_write(self) -> None:
        """Make a durable write that changes nothing: return if turns can be stored, else raise."""
        ...
