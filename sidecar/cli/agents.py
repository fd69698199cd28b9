"""`sidecar agents`: the Letta agents that remember callers."""

import difflib
from typing import Annotated

import typer

from sidecar.cli import reach, show

app = typer.Typer(help="The Letta agents that remember callers.", no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="For programs.")]
AgentId = Annotated[str, typer.Argument(help="As `agents list` or `agents create` printed it.")]


@app.command("list")
def list_agents(
    *,
    tenant: Annotated[str, typer.Option(help="Only this tenant's.")] = "",
    as_json: Json = False,
) -> None:
    """List the agents at Letta that this product made, oldest first."""
    import anyio  # noqa: PLC0415

    from sidecar.serve import list_agents as listed  # noqa: PLC0415

    found = anyio.run(listed, tenant)
    if as_json:
        show.as_json(found)
        return
    show.table(
        ["agent", "name", "created (UTC)"],
        [[a.agent_id, a.name, show.moment(a.created_at_s)] for a in found],
        empty="no agents yet: the first call of a caller makes one",
    )


@app.command("create")
def create_agent(
    name: Annotated[str, typer.Argument(help="Shown in Letta.")],
    *,
    tenant: Annotated[str, typer.Option(help="Whose agent it is.")] = "default",
    as_json: Json = False,
) -> None:
    """Make an agent fit to digest transcripts, and print its id."""
    import anyio  # noqa: PLC0415

    from sidecar.serve import create_agent as created  # noqa: PLC0415

    agent_id = anyio.run(created, name, tenant)
    if as_json:
        show.as_json({"agent_id": agent_id})
    else:
        show.say(agent_id)


@app.command("show")
def show_agent(agent_id: AgentId, *, as_json: Json = False) -> None:
    """Print the memory blocks of an agent, as Letta has them now."""
    import anyio  # noqa: PLC0415

    from sidecar.serve import show_agent as shown  # noqa: PLC0415

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
    """Compare the copy the sidecar kept last (-) with what Letta has now (+).

    Exit code 0 when they are the same, 1 when they differ or there is no copy.
    """
    import anyio  # noqa: PLC0415

    from sidecar.memory.store import DirectoryStore  # noqa: PLC0415
    from sidecar.serve import show_agent as shown  # noqa: PLC0415

    kept = anyio.run(DirectoryStore(reach.data_dir() / "snapshots").load, agent_id)
    if kept is None:
        raise reach.NotThere(f"the sidecar has kept no copy of {agent_id} yet")
    now = {block.label: block.value for block in anyio.run(shown, agent_id)}
    then = {block.label: block.value for block in kept.blocks}
    changed = {
        label: list(
            difflib.unified_diff(
                then.get(label, "").splitlines(),
                now.get(label, "").splitlines(),
                f"{label}, read {show.moment(kept.read_at_s)} UTC",
                f"{label}, now",
                lineterm="",
            )
        )
        for label in sorted({*then, *now})
        if then.get(label) != now.get(label)
    }
    if as_json:
        show.as_json({"agent_id": agent_id, "read_at_s": kept.read_at_s, "changed": changed})
    elif not changed:
        show.say(f"the same since {show.moment(kept.read_at_s)} UTC")
    for lines in () if as_json else changed.values():
        for line in lines:
            show.say(line)
    if changed:
        raise typer.Exit(1)
