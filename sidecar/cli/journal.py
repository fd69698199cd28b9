"""`sidecar journal`: where the journal is, its version, and its way to another engine."""

from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from sidecar.cli import reach, show
from sidecar.cli.arguments import Commands

if TYPE_CHECKING:
    from sidecar.app.journal import JournalStatus

app = Commands(help="Where the journal is, its version, and a copy of it.", no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_PLACE = "A file, a data directory, or postgresql://…"


@app.command()
def status(*, as_json: Json = False) -> None:
    """Print where the journal is, the version of its tables, and who writes to it."""
    found = _status()
    if as_json:
        show.as_json(found)
        return
    show.say(f"{found.engine}  {found.place}")
    show.say(f"schema  {_schema(found)}")
    for writer in found.writers or ("nobody",):
        show.say(f"writer  {writer}")


@app.command()
def migrate(*, as_json: Json = False) -> None:
    """Bring the journal's tables to this version; a start of the sidecar does the same.

    On PostgreSQL a sidecar of the version before goes on working on the new tables.
    """
    import anyio  # noqa: PLC0415

    from sidecar.app.journal import migrate  # noqa: PLC0415

    before = _status()
    anyio.run(partial(migrate, reach.settings(), reach.data_dir()))
    after = _status()
    if as_json:
        show.as_json({"before": before.schema, "after": after.schema})
    else:
        show.say(f"schema {before.schema} -> {after.schema}")


@app.command()
def copy(
    source: Annotated[str, typer.Argument(help=_PLACE, metavar="FROM")],
    target: Annotated[str, typer.Argument(help=_PLACE, metavar="TO")],
    *,
    as_json: Json = False,
) -> None:
    """Copy a whole journal into a new one, of the same engine or of another.

    Stop the sidecar first. A copy that was interrupted goes on where it was; nothing opens it
    before it is whole. At the end every row is compared with its source. A password belongs into
    ~/.pgpass or PGPASSWORD: what stands on a command line, other users can see.
    """
    import anyio  # noqa: PLC0415

    from sidecar.app.journal_copy import copy_journal, place_named  # noqa: PLC0415

    places = place_named(source, "FROM"), place_named(target, "TO")
    with show.progress() as progress:
        copied = anyio.run(
            partial(copy_journal, reach.settings(), reach.data_dir(), *places, progress=progress)
        )
    if as_json:
        show.as_json({"copied": copied.written, "rows": copied.rows})
        return
    for table, rows in copied.rows.items():
        show.say(f"{table:11} {rows:9} rows, {copied.written[table]} copied now")
    show.say(f"{places[1]} has every row of {places[0]}")


def _status() -> "JournalStatus":
    from sidecar.app.journal import place_of, status_of  # noqa: PLC0415

    return status_of(place_of(reach.settings(), reach.data_dir()))


def _schema(found: "JournalStatus") -> str:
    if found.schema == 0:
        return "none yet"
    if found.schema < found.newest:
        return f"{found.schema}; `sidecar journal migrate` brings it to {found.newest}"
    return str(found.schema)
