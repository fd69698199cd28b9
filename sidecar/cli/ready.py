"""`sidecar ready`: for a container's health check, and for a script that waits."""

from typing import Annotated

import typer

from sidecar.cli import reach, show


def ready(
    *, as_json: Annotated[bool, typer.Option("--json", help="Print what /readyz answers.")] = False
) -> None:
    """Exit with 0 if the sidecar on this data directory is ready, else with 1.

    Not ready: it is not running, does not answer within 5 s, is draining, or can't store turns. It
    is ready even while Letta is down.
    """
    directory = reach.data_dir()
    try:
        state = reach.ask_readiness(directory)
    except reach.CommandRefused:
        state = {"ready": False, "journal": f"no sidecar answers on {directory}"}
    if as_json:
        show.as_json(state)
    elif state.get("ready"):
        show.say("ready")
    else:
        draining = "draining" if state.get("draining") else str(state.get("journal"))
        show.say(f"not ready: {draining}")
    if not state.get("ready"):
        raise typer.Exit(1)
