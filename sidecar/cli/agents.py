"""`sidecar agents`: the Letta agents that remember callers."""

import difflib
from typing import TYPE_CHECKING, Annotated

import typer

from sidecar.cli import reach, show
from sidecar.cli.arguments import Commands
from sidecar.errors import ConfigError

if TYPE_CHECKING:
    from sidecar.letta.move import Move

app = Commands(help="The Letta agents that remember callers.", no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
AgentId = Annotated[str, typer.Argument(help="Id from `agents list` or `agents create`.")]


@app.command("list")
def list_agents(
    *,
    tenant: Annotated[str, typer.Option(help="Only agents of this tenant.")] = "",
    as_json: Json = False,
) -> None:
    """List the Letta agents that the sidecar created, oldest first."""
    import anyio  # noqa: PLC0415

    from sidecar.cli.at_letta import list_agents as listed  # noqa: PLC0415

    found = anyio.run(listed, tenant)
    if as_json:
        show.as_json(found)
        return
    show.table(
        ["agent", "name", "created (UTC)"],
        [[a.agent_id, a.name, show.moment(a.created_at_s)] for a in found],
        empty="no agents yet: the first call of a caller creates one",
    )


@app.command("create")
def create_agent(
    name: Annotated[str, typer.Argument(help="Its name in Letta.")],
    *,
    tenant: Annotated[str, typer.Option(help="Tenant of the agent.")] = "default",
    as_json: Json = False,
) -> None:
    """Create an agent that can digest transcripts, and print its id."""
    import anyio  # noqa: PLC0415

    from sidecar.cli.at_letta import create_agent as created  # noqa: PLC0415

    agent_id = anyio.run(created, name, tenant)
    if as_json:
        show.as_json({"agent_id": agent_id})
    else:
        show.say(agent_id)


@app.command("show")
def show_agent(agent_id: AgentId, *, as_json: Json = False) -> None:
    """Print the memory blocks of an agent, as Letta has them now."""
    import anyio  # noqa: PLC0415

    from sidecar.cli.at_letta import show_agent as shown  # noqa: PLC0415

    blocks = anyio.run(shown, agent_id)
    if as_json:
        show.as_json(list(blocks))
        return
    for block in blocks:
        limit = f" of {block.limit_chars}" if block.limit_chars else ""
        access = ", read-only" if block.read_only else ""
        show.say(f"[{block.label}] {len(block.value)}{limit} characters{access}")
        if block.description:
            show.say(f"  # {block.description}")
        for line in block.value.splitlines():
            show.say(f"  {line}")


@app.command("diff")
def diff_agent(agent_id: AgentId, *, as_json: Json = False) -> None:
    """Compare the sidecar's last copy (-) with what Letta has now (+).

    Exit code 0 when they are the same, 1 when they differ or there is no copy.
    """
    import anyio  # noqa: PLC0415

    from sidecar.cli.at_letta import show_agent as shown  # noqa: PLC0415
    from sidecar.memory.store import DirectoryStore  # noqa: PLC0415

    copy = anyio.run(DirectoryStore(reach.data_dir() / "snapshots").load, agent_id)
    if copy is None:
        raise reach.NotThere(f"the sidecar has no copy of {agent_id} yet")
    now = {block.label: block.value for block in anyio.run(shown, agent_id)}
    then = {block.label: block.value for block in copy.blocks}
    changed = {
        label: list(
            difflib.unified_diff(
                then.get(label, "").splitlines(),
                now.get(label, "").splitlines(),
                f"{label}, read {show.moment(copy.read_at_s)} UTC",
                f"{label}, now",
                lineterm="",
            )
        )
        for label in sorted({*then, *now})
        if then.get(label) != now.get(label)
    }
    if as_json:
        show.as_json({"agent_id": agent_id, "read_at_s": copy.read_at_s, "changed": changed})
    elif not changed:
        show.say(f"unchanged since {show.moment(copy.read_at_s)} UTC")
    for lines in () if as_json else changed.values():
        for line in lines:
            show.say(line)
    if changed:
        raise typer.Exit(1)


@app.command("move")
def move(
    agent_id: Annotated[str, typer.Argument(help="Id from `agents list`.")] = "",
    *,
    to: Annotated[
        str,
        typer.Option(
            help="embedded, app-server (of this machine), cloud, or a URL: ws://… of an App"
            " Server, http(s)://… of a REST server. Keys come from the settings."
        ),
    ],
    source: Annotated[
        str, typer.Option("--from", help="Likewise; default: the Letta in the settings.")
    ] = "",
    every: Annotated[
        bool, typer.Option("--all", help="All agents that the sidecar created.")
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", help="Move; without it, nothing is changed.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Move agents to another Letta: by agent file (.af) where both support it, else block by block.

    Without --yes it only prints what would be done. The source keeps its agents, and a second move
    finds what the first one created. Exit code 1: an agent was skipped, because the two now differ,
    or because its caller has another agent there.
    """
    import anyio  # noqa: PLC0415

    from sidecar.cli.at_letta import move_agents  # noqa: PLC0415

    if bool(agent_id) == every:
        raise typer.BadParameter("name an agent, or use --all")
    for option, place in (("--to", to), ("--from", source)):
        _check_place(option, place)
    if reach.is_running():
        raise typer.BadParameter(
            "a sidecar is running on this data directory and would go on changing the agents:"
            " stop it"
        )

    async def moved() -> "list[Move]":
        return await move_agents(agent_id, source, to, really=yes)

    moves = anyio.run(moved)
    if as_json:
        show.as_json(moves)
    else:
        show.table(
            ["agent, and there", "name", "how", ">characters", "state"],
            [
                [
                    f"{m.agent_id}\n{m.target_id or '-'}",
                    m.name,
                    m.how,
                    str(sum(chars for _, chars in m.blocks)),
                    m.state,
                ]
                for m in moves
            ],
            empty="no agents to move",
        )
        if not yes and any(m.state == "to move" for m in moves):
            show.say("nothing was changed; add --yes to move")
    if any(m.state in {"differs", "taken"} for m in moves):
        raise typer.Exit(1)


def _check_place(option: str, place: str) -> None:
    """Check the name of a Letta; an empty one means the Letta of the settings.

    Raises:
        BadParameter: it names no Letta.
        ConfigError: the settings are wrong, or have no key for it.
    """
    settings = reach.settings()
    try:
        if place:
            settings.at(place)
    except ConfigError as error:
        field, remedy = error.fields[0]
        if field:
            raise
        raise typer.BadParameter(remedy, param_hint=option) from None
