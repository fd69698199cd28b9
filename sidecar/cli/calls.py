"""`sidecar calls`: what was said, call by call, as the journal holds it."""

import textwrap
import time
from typing import TYPE_CHECKING, Annotated

import typer

from sidecar.call_names import short_id
from sidecar.cli import reach, show
from sidecar.cli.arguments import Commands

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sidecar.journal.reports import CallRow, Reports
    from sidecar.model import Turn

app = Commands(help="Past and live calls with their transcripts.", no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_LOOK_EVERY_S = 0.5
_INDENT = 18
_CALL_HELP = "The id that `calls list` shows, the full id, or the first characters of either."
_LIVE_HELP = "A live call: the id that `calls list --live` shows, or the full id."


@app.command("list")
def list_calls(
    *,
    limit: Annotated[int, typer.Option(help="How many calls, newest first.", min=1)] = 20,
    live: Annotated[bool, typer.Option("--live", help="Only calls that are live.")] = False,
    as_json: Json = False,
) -> None:
    """List the newest calls by short id; `calls show` and --json print the full id.

    Callers appear by their key in the journal, not by phone number.
    """
    rows = reach.reading(lambda journal: journal.calls(limit=limit, live=live))
    if as_json:
        show.as_json([_call(row) for row in rows])
        return
    show.table(
        ["call", "channel", "opened (UTC)", "lasted", ">turns", ">unsent", "caller"],
        [
            [
                short_id(row.call.key),
                row.call.channel,
                show.moment(row.call.opened_at_s),
                _lasted(row),
                str(row.turns),
                str(row.undelivered),
                row.call.caller_key[:8] or "-",
            ]
            for row in rows
        ],
        empty="no calls",
    )


@app.command("show")
def show_call(
    call: Annotated[str, typer.Argument(help=_CALL_HELP)],
    *,
    as_json: Json = False,
) -> None:
    """Print one call with its transcript."""

    async def read(journal: "Reports") -> "tuple[CallRow, tuple[Turn, ...]]":
        row = await reach.only_call(journal, call)
        return row, await journal.turns(row.call.key)

    row, turns = reach.reading(read)
    if as_json:
        show.as_json({**_call(row), "turns": turns})
        return
    show.say(f"{row.call.key}  {row.call.channel}  {show.moment(row.call.opened_at_s)} UTC")
    show.say(f"caller {row.call.caller_key or 'unknown'}")
    show.say(f"lane   {row.call.ref.lane}")
    show.say(f"consent {row.call.consent or 'not asked'}")
    show.say(f"{row.turns} turns, {row.undelivered} not yet delivered, {_lasted(row)}\n")
    for turn in turns:
        show.say(_line(turn))
        for line in _measured(turn):
            show.say(line)


@app.command("guide")
def guide(
    call: Annotated[str, typer.Argument(help=_LIVE_HELP)],
    text: Annotated[str, typer.Argument(help="What the agent should act on; it is not spoken.")],
    *,
    as_json: Json = False,
) -> None:
    """Give the voice agent of a live call guidance, in force from its next reply on."""
    _command(call, "guide", text, as_json=as_json)


@app.command("say")
def say(
    call: Annotated[str, typer.Argument(help=_LIVE_HELP)],
    text: Annotated[str, typer.Argument(help="What the agent says, word for word.")],
    *,
    as_json: Json = False,
) -> None:
    """Have the voice agent of a live call say something now."""
    _command(call, "say", text, as_json=as_json)


@app.command("hang-up")
def hang_up(
    call: Annotated[str, typer.Argument(help=_LIVE_HELP)], *, as_json: Json = False
) -> None:
    """End a live call."""
    _command(call, "hang-up", "", as_json=as_json)


def _command(call: str, command: str, text: str, *, as_json: bool) -> None:
    """Send a command to a live call, through the running sidecar.

    Raises:
        NotThere: the call is not live.
    """
    body = {"call": call, "command": command, "text": text}
    if not reach.ask(reach.data_dir(), "/admin/command", body)["done"]:
        raise reach.NotThere(f"no call {call} is live", hint="see `sidecar calls list --live`")
    if as_json:
        show.as_json({"done": True})
    else:
        show.say("Sent. The transcript shows the result.")


@app.command("tail")
def tail(
    call: Annotated[str, typer.Argument(help=f"Only this call. {_CALL_HELP}")] = "",
    *,
    since_s: Annotated[
        float, typer.Option(help="First print the turns of the last N seconds.")
    ] = 0.0,
    once: Annotated[bool, typer.Option("--once", help="Do not wait for more.")] = False,
    as_json: Json = False,
) -> None:
    """Follow what is being said in all calls, or in one, until Ctrl-C."""
    from_s = time.time() - since_s

    async def follow(journal: "Reports") -> None:
        key = (await reach.only_call(journal, call)).call.key if call else ""
        async for turn in _said_since(journal, from_s, once=once):
            if not key or turn.call == key:
                show.say(
                    show.json_line(turn) if as_json else f"{short_id(turn.call)}  {_line(turn, 28)}"
                )

    reach.reading(follow)


async def _said_since(journal: "Reports", from_s: float, *, once: bool) -> "AsyncIterator[Turn]":
    """Yield each turn stored from a Unix time on; with `once`, only those stored already."""
    import anyio  # noqa: PLC0415

    seen: set[tuple[str, str]] = set()
    while True:
        for appended_s, turn in await journal.turns_since(from_s):
            if (turn.call, turn.item_id) in seen:
                continue
            if appended_s > from_s:
                from_s = appended_s
                seen.clear()
            seen.add((turn.call, turn.item_id))
            yield turn
        if once:
            return
        await anyio.sleep(_LOOK_EVERY_S)


def _call(row: "CallRow") -> dict[str, object]:
    call = row.call
    return {
        "call": call.key,
        "short_id": short_id(call.key),
        "channel": call.channel,
        "caller_key": call.caller_key,
        "lane": call.ref.lane,
        "consent": call.consent,
        "opened_at_s": call.opened_at_s,
        "closed_at_s": call.closed_at_s,
        "turn_count": row.turns,
        "undelivered": row.undelivered,
    }


def _lasted(row: "CallRow") -> str:
    if row.call.closed_at_s is None:
        return "live"
    return show.span(row.call.closed_at_s - row.call.opened_at_s)


def _measured(turn: "Turn") -> list[str]:
    """Return lines with a turn's metrics and its prompt's memory, no wider than `show.WIDTH`."""
    from sidecar.model import TURN_SECONDS, prompt_of  # noqa: PLC0415

    figures = [
        f"{name} {turn.metrics[name]:.2f} s" for name in TURN_SECONDS if name in turn.metrics
    ]
    if prompt := prompt_of(turn.metrics):
        served, age_s, wait_s = prompt
        age = "" if age_s is None else f", {age_s:.1f} s old"
        figures.append(f"memory {served}{age}, waited {wait_s * 1e3:.0f} ms")
    indent = " " * _INDENT
    return textwrap.wrap(
        "; ".join(figures), show.WIDTH, initial_indent=indent, subsequent_indent=indent
    )


def _line(turn: "Turn", indent: int = _INDENT) -> str:
    cut = " [cut off]" if turn.interrupted else ""
    # Indented, so that no line of what was said looks like a line of the transcript.
    text = turn.text.replace("\n", "\n" + " " * indent)
    return f"{show.moment(turn.at_s)[11:]}  {turn.speaker:6}  {text}{cut}"
