"""`sidecar outbox`: batches on their way to Letta, and those that were given up."""

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sidecar.call_names import short_id
from sidecar.cli import reach, show
from sidecar.cli.arguments import Commands
from sidecar.journal.states import OPEN_STATES

if TYPE_CHECKING:
    from sidecar.journal.dead_letters import DeadLetters
    from sidecar.journal.reports import BatchRow, JournalCounts, LaneStatus, Reports
    from sidecar.model import Turn

app = Commands(help="Batches on their way to Letta, and dead letters.", no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_SHOWN_CHARS = 8


@app.command("list")
def list_outbox(
    *,
    limit: Annotated[int, typer.Option(help="How many batches at most.", min=1)] = 100,
    as_json: Json = False,
) -> None:
    """List the lanes with undelivered turns, and the dead letters.

    `outbox show` prints each in full.
    """
    now_s = time.time()

    async def read(
        journal: "Reports",
    ) -> "tuple[JournalCounts, list[LaneStatus], list[BatchRow], list[BatchRow]]":
        dead = await journal.batches(states=("dead",), limit=limit)
        under_way = await journal.batches(states=OPEN_STATES, limit=limit)
        return await journal.counts(), await journal.lanes(), dead, under_way

    counts, lanes, dead, under_way = reach.reading(read)
    if as_json:
        show.as_json({"counts": counts, "lanes": lanes, "open": under_way, "dead": dead})
        return
    show.say(f"{counts.undelivered} turns undelivered, {counts.dead_batches} dead letters")
    show.table(
        ["lane", "state", ">pending", ">try", "oldest", "last error"],
        [
            [
                short_id(lane.lane),
                lane.state,
                str(lane.pending),
                str(lane.attempt),
                show.span(None if lane.oldest_s is None else now_s - lane.oldest_s),
                lane.error,
            ]
            for lane in lanes
        ],
        empty="nothing is waiting",
    )
    show.table(
        ["batch", "call", ">turns", "dead for", "why"],
        [
            [
                batch.batch_id[:_SHOWN_CHARS],
                short_id(batch.call),
                str(batch.turns),
                show.span(None if batch.ended_s is None else now_s - batch.ended_s),
                batch.error,
            ]
            for batch in dead
        ],
        empty="no dead letters",
    )


@app.command("show")
def show_batch(
    batch: Annotated[
        str, typer.Argument(help="Id of a batch or of a lane, or its first characters.")
    ],
    *,
    as_json: Json = False,
) -> None:
    """Print one batch with its turns, or the state of one lane."""

    async def read(
        journal: "Reports",
    ) -> "tuple[tuple[BatchRow, tuple[Turn, ...]] | None, list[LaneStatus]]":
        return await journal.batch(batch), await journal.lanes()

    found, lanes = reach.reading(read)
    lanes = [lane for lane in lanes if _is_named(lane, batch)]
    if found is None and len(lanes) == 1:
        _show_lane(lanes[0], as_json=as_json)
        return
    if found is None:
        raise reach.NotThere(
            f"no batch or lane begins with {batch}, or more than one does",
            hint="see `sidecar outbox list`",
        )
    row, turns = found
    if as_json:
        show.as_json({"batch": row, "turns": turns})
        return
    show.say(f"{row.batch_id}  {row.state}, {row.attempt} tries")
    show.say(f"part {row.part} of {row.call}")
    show.say(f"sealed {show.moment(row.sealed_at_s)} UTC")
    show.say(f"lane   {row.lane}")
    show.say(f"error  {row.error or '-'}\n")
    for turn in turns:
        show.say(f"{turn.speaker:6}  " + turn.text.replace("\n", "\n" + " " * 8))


def _is_named(lane: "LaneStatus", name: str) -> bool:
    return name in {lane.lane, lane.agent_id} or short_id(lane.lane).startswith(name)


def _show_lane(lane: "LaneStatus", *, as_json: bool) -> None:
    if as_json:
        show.as_json({"lane": lane})
        return
    show.say(f"lane   {lane.lane}")
    show.say(f"agent  {lane.agent_id or 'not known yet'}")
    show.say(f"state  {lane.state}, {lane.attempt} tries, {lane.pending} turns pending")
    show.say(f"oldest {show.moment(lane.oldest_s)} UTC")
    show.say(f"error  {lane.error or '-'}")


@app.command("replay")
def replay(
    batches: Annotated[
        list[str] | None, typer.Argument(help="Ids of dead letters, from `outbox list`.")
    ] = None,
    *,
    every: Annotated[bool, typer.Option("--all", help="All dead letters.")] = False,
    as_json: Json = False,
) -> None:
    """Put dead letters back into their lanes. Letta is first asked whether it has them already."""
    _change("replay", batches, every=every, as_json=as_json)


@app.command("drop")
def drop(
    batches: Annotated[
        list[str] | None, typer.Argument(help="Ids of dead letters, from `outbox list`.")
    ] = None,
    *,
    every: Annotated[bool, typer.Option("--all", help="All dead letters.")] = False,
    as_json: Json = False,
) -> None:
    """Drop dead letters for good: Letta never gets them; retention erases the transcript."""
    _change("drop", batches, every=every, as_json=as_json)


async def _dead(journal: "Reports") -> list[str]:
    """Return the ids of all dead letters, oldest first."""
    return [row.batch_id for row in await journal.batches(states=("dead",), limit=-1)]


def _change(verb: str, names: list[str] | None, *, every: bool, as_json: bool) -> None:
    """Replay or drop dead letters.

    Raises:
        Exit: 1 when one of the batches was not a dead letter.
        BadParameter: neither batches nor `--all` were named, or both.
    """
    if bool(names) == every:
        raise typer.BadParameter("name dead letters, or use --all")
    dead = reach.reading(_dead)
    wanted = dead if every else [_full(name, dead) for name in names or ()]
    done = {
        batch: batch in dead and _change_one(verb, batch)
        for batch in show.each(wanted, f"{verb} of {len(wanted)}")
    }
    if as_json:
        show.as_json(
            {
                "done": [b for b, d in done.items() if d],
                "not": [b for b, d in done.items() if not d],
            }
        )
    else:
        for batch, changed in done.items():
            show.say(f"{batch}  {_PAST[verb] if changed else 'is not a dead letter'}")
        if not done:
            show.say("no dead letters")
    if not all(done.values()):
        raise typer.Exit(1)


_PAST = {"replay": "replayed", "drop": "dropped"}


def _full(name: str, dead: list[str]) -> str:
    """Return the id of the one dead letter that begins with `name`; if none does, the name.

    Raises:
        NotThere: several do.
    """
    found = [batch for batch in dead if batch.startswith(name)]
    if len(found) > 1 and name not in found:
        raise reach.NotThere(
            f"several dead letters begin with {name}", hint=f"choose one: {', '.join(found[:5])}"
        )
    return found[0] if len(found) == 1 else name


def _change_one(verb: str, batch: str) -> bool:
    async def own(journal: "DeadLetters") -> bool:
        step = journal.replay if verb == "replay" else journal.drop
        return await step(batch, now_s=time.time())

    def read(answer: dict[str, Any]) -> bool:
        return bool(answer["done"])

    return reach.changing(f"/admin/outbox/{batch}/{verb}", own, read=read)
