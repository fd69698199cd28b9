"""`sidecar memory`: what an agent learned, and from which call, if its Letta keeps that."""

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from sidecar.call_names import calls_named, short_id
from sidecar.cli import reach, show
from sidecar.cli.arguments import Commands
from sidecar.cli.callers import caller_key_of
from sidecar.errors import JournalError

if TYPE_CHECKING:
    from sidecar.journal.reports import Reports
    from sidecar.letta.changes import Change

app = Commands(help="What an agent learned, call by call.", no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
AgentId = Annotated[str, typer.Argument(help="Id from `agents list`; leave it out with --caller.")]
OfCaller = Annotated[
    str, typer.Option("--caller", help="The caller, in place of an agent; as for `forget`.")
]
Tenant = Annotated[str, typer.Option(help="Tenant of the caller.")]
Limit = Annotated[int, typer.Option(help="How many changes, newest first.", min=1, max=1000)]
_SHOWN = 8


@app.command("log")
def log(
    agent_id: AgentId = "",
    *,
    caller: OfCaller = "",
    tenant: Tenant = "default",
    limit: Limit = 20,
    as_json: Json = False,
) -> None:
    """List the changes to an agent's memory, newest first: the call, and the lines it changed.

    Only the App Server keeps this history; with any other Letta this says so and exits 1.
    """
    changes = _changes(_agent(agent_id, caller, tenant), limit)
    calls = _calls_of(changes)
    if as_json:
        show.as_json([_as_json(change, calls) for change in changes])
        return
    show.table(
        ["change", "when (UTC)", "call", "learned"],
        [
            [
                change.change_id[:_SHOWN],
                show.moment(change.at_s),
                _source(change, calls),
                "\n".join(_lines(change)) or "-",
            ]
            for change in changes
        ],
        empty="nothing has changed this agent's memory yet",
    )


@app.command("diff")
def diff(
    agent_id: AgentId = "",
    change: Annotated[str, typer.Argument(help="Id from `memory log`; default: the newest.")] = "",
    *,
    caller: OfCaller = "",
    tenant: Tenant = "default",
    call: Annotated[str, typer.Option(help="Everything that this call changed.")] = "",
    limit: Limit = 200,
    as_json: Json = False,
) -> None:
    """Print what one change, or one whole call, did to the blocks of an agent.

    With --caller, the only argument is the change.

    Exit code 1: no such change among the newest, or this Letta keeps no history.
    """
    if caller and not change:
        agent_id, change = "", agent_id
    changes = _changes(_agent(agent_id, caller, tenant), limit)
    calls = _calls_of(changes)
    if call:
        key = reach.only_one(calls_named(call, sorted(set(calls.values()))), call)
        found = [c for c in changes if calls.get(c.batch_id) == key]
    elif change:
        found = [c for c in changes if c.change_id.startswith(change)]
        found = found if len(found) == 1 else []
    else:
        found = list(changes[:1])
    if not found:
        raise reach.NotThere(
            f"no such change among the newest {limit}, or more than one begins with this",
            hint="see `sidecar memory log`",
        )
    if as_json:
        show.as_json([_as_json(one, calls) for one in found])
        return
    for one in reversed(found):  # the oldest first
        at = show.moment(one.at_s)
        show.say(f"{one.change_id[:_SHOWN]}  {at} UTC  {_source(one, calls)}")
        for edit in one.edits:
            show.say(f"[{edit.label}]")
            for line in edit.removed:
                show.say(f"- {line}")
            for line in edit.added:
                show.say(f"+ {line}")


def _agent(agent_id: str, caller: str, tenant: str) -> str:
    """Return the agent that was named, or the one that remembers the caller.

    Raises:
        BadParameter: neither was named, or both were.
        NotThere: no agent remembers the caller, or several do.
    """
    if bool(agent_id) == bool(caller):
        raise typer.BadParameter("name an agent, or a caller by --caller")
    if agent_id:
        return agent_id
    key = caller_key_of(caller, tenant, reach.settings().default_region)
    found: list[str] = []
    with contextlib.suppress(JournalError):
        found = reach.reading(lambda journal: journal.agents_of(key))
    if not found:  # as after a journal was lost, or before the first call was delivered
        import anyio  # noqa: PLC0415

        from sidecar.cli.at_letta import agents_of_caller  # noqa: PLC0415

        found = anyio.run(agents_of_caller, tenant, key)[:1]
    if not found:
        raise reach.NotThere("no agent remembers this caller", hint="see `sidecar agents list`")
    if len(found) > 1:
        raise reach.NotThere(
            "several agents remember this caller", hint=f"name one: {', '.join(found)}"
        )
    return found[0]


def _changes(agent_id: str, limit: int) -> "Sequence[Change]":
    import anyio  # noqa: PLC0415

    from sidecar.cli.at_letta import memory_changes  # noqa: PLC0415

    return anyio.run(memory_changes, agent_id, limit)


def _calls_of(changes: "Sequence[Change]") -> dict[str, str]:
    """Return the call of each batch that the journal still knows."""
    wanted = {change.batch_id for change in changes if change.batch_id}

    async def read(journal: "Reports") -> dict[str, str]:
        found = [await journal.batch(batch_id) for batch_id in wanted]
        return {one[0].batch_id: one[0].call for one in found if one is not None}

    try:
        return reach.reading(read)
    except JournalError:
        return {}  # the history is Letta's; without a journal it names the batches alone


def _source(change: "Change", calls: dict[str, str]) -> str:
    if not change.batch_id:
        return "no call"
    if call := calls.get(change.batch_id):
        return short_id(call)
    return f"batch {change.batch_id[:_SHOWN]}"


def _lines(change: "Change") -> list[str]:
    """Return the lines of a change, for each block the removed ones first."""
    lines: list[str] = []
    for edit in change.edits:
        lines += [f"{edit.label} - {line}" for line in edit.removed]
        lines += [f"{edit.label} + {line}" for line in edit.added]
    return lines


def _as_json(change: "Change", calls: dict[str, str]) -> dict[str, object]:
    return {
        "change": change.change_id,
        "at_s": change.at_s,
        "batch": change.batch_id or None,
        "call": calls.get(change.batch_id),
        "edits": list(change.edits),
    }
