"""`sidecar ready`: what a container's health check and a script that waits ask."""

from typing import Annotated

import typer

from sidecar.cli import reach, show


def ready(
    *, as_json: Annotated[bool, typer.Option("--json", help="What /readyz says.")] = False
) -> None:
    """Tell whether the sidecar of this data directory is ready: exit code 0, else 1.

    Not ready: none runs, it does not answer within 5 s, it drains, or it can't store turns. A
    Letta that is away is no reason.
    """
    directory = reach.data_dir()
    try:
        state = reach.ask_readiness(directory)
    except reach.Refused:
        state = {"ready": False, "journal": f"no sidecar answers for {directory}"}
    if as_json:
        show.as_json(state)
    elif state.get("ready"):
        show.say("ready")
    else:
        draining = "it drains" if state.get("draining") else str(state.get("journal"))
        show.say(f"not ready: {draining}")
    if not state.get("ready"):
        raise typer.Exit(1)
