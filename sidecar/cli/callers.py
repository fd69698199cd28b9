"""`sidecar forget` and `sidecar export`: what is stored of one caller, or of all."""

import contextlib
import os
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from sidecar import environment
from sidecar.cli import reach, show
from sidecar.cli.arguments import check_value
from sidecar.errors import JournalError

if TYPE_CHECKING:
    from sidecar.jobs.forget import Forgotten
    from sidecar.journal.erasure import Erasure
    from sidecar.journal.reports import CallRow, Reports

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Caller = Annotated[
    str,
    typer.Option(
        help="tel:+12025550100, id:NAME (the identity in a token, or the name on the page),"
        " caller:ID (from your backend), or the key that `calls show` prints (8 characters are"
        " enough); - reads it from standard input."
    ),
]
Tenant = Annotated[str, typer.Option(help="Tenant of the caller.")]
_KEY_CHARS = 32
_FEWEST_CHARS = 8
_OR_ITS_KEY = "; for calls stored under it, use the key that `calls show` prints"
_NOT_ONE = {
    "withheld": "carriers send this for a withheld number: it identifies nobody",
    "no_number": "this is not a phone number",
    "extension": "a number with an extension identifies nobody",
    "invalid": "no country has such a number",
    "ambiguous": "two countries have such a number: write it with + and its country code",
    "no_region": "write the number with + and its country code",
}


def caller_key_of(said: str, tenant: str, region: str | None) -> str:
    """Return the key of the caller that was named.

    Raises:
        BadParameter: the name has none of the accepted forms, or does not identify one caller.
    """
    from sidecar.access import phone  # noqa: PLC0415
    from sidecar.model import caller_key  # noqa: PLC0415

    if said == "-":
        said = _first_line()
    said = said.strip()
    kind, colon, name = said.partition(":")
    if not colon and len(said) <= _KEY_CHARS and all(c in "0123456789abcdef" for c in said):
        if len(said) == _KEY_CHARS:
            return said
        if len(said) >= _FEWEST_CHARS and (key := _key_beginning(said)):
            return key
    if kind == "tel" or (not colon and said.startswith("+")):
        number = phone.read(name or said, region=region)
        if not number.e164:
            raise typer.BadParameter(_NOT_ONE[number.why] + _OR_ITS_KEY)
        return caller_key(tenant, f"tel:{number.e164}")
    if kind in {"id", "caller"} and name:
        if phone.stands_for_nobody(name):
            raise typer.BadParameter(_NOT_ONE["withheld"] + _OR_ITS_KEY)
        try:
            return caller_key(tenant, f"{kind}:{name}")
        except UnicodeEncodeError:
            raise typer.BadParameter("this is not valid UTF-8") from None
    raise typer.BadParameter("write tel:NUMBER, id:NAME, caller:ID or the caller's key")


def _key_beginning(said: str) -> str:
    """Return the one caller key that begins with `said`, as in `calls list`; empty: none does.

    Raises:
        BadParameter: several do.
    """
    found: list[str] = []
    with contextlib.suppress(JournalError):
        found = reach.reading(lambda journal: journal.caller_keys(said))
    if len(found) > 1:
        raise typer.BadParameter(f"several callers' keys begin with this: {', '.join(found[:5])}")
    return found[0] if found else ""


def _first_line() -> str:
    """Return the first line of standard input.

    Raises:
        BadParameter: there is none, or it can't be the name of a caller.
    """
    try:
        line = sys.stdin.readline(environment.TEXT_LIMIT_CHARS + 1).strip()
        check_value(line)
    except (OSError, ValueError, AttributeError):  # closed, or no text
        raise typer.BadParameter("standard input has no line that names a caller") from None
    return line


def forget(
    *,
    caller: Caller,
    tenant: Tenant = "default",
    yes: Annotated[
        bool, typer.Option("--yes", help="Erase; without it, nothing is changed.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Erase a caller everywhere: journal, dead letters, spool, copies, Letta.

    Without --yes it only prints what would be erased. With --yes it erases, then searches every
    file of the sidecar for what the caller said. Exit code 1: something could not be erased.
    """
    import msgspec  # noqa: PLC0415

    from sidecar.cli.at_letta import forget_caller  # noqa: PLC0415
    from sidecar.jobs.forget import Forgotten  # noqa: PLC0415

    key = caller_key_of(caller, tenant, reach.settings().default_region)

    async def own(journal: "Erasure") -> Forgotten:
        return await forget_caller(journal, tenant, key, really=yes)

    def read(answer: dict[str, Any]) -> Forgotten:
        return msgspec.convert(answer, Forgotten)

    body = {"tenant": tenant, "caller_key": key, "really": yes}
    with show.busy("erasing, and searching every file" if yes else "counting"):
        report = reach.changing("/admin/forget", own, read=read, body=body)
    if as_json:
        show.as_json(asdict(report))
    else:
        _print(report)
    if report.traces or len(report.left) > 1:
        raise typer.Exit(1)


def _print(report: "Forgotten") -> None:
    show.say(f"caller {report.caller_key}")
    show.say("erased:" if report.done else "would be erased (add --yes to erase):")
    for count, what in (
        (report.calls, "calls"),
        (report.turns, "turns"),
        (report.undelivered, "of these undelivered: Letta never gets them"),
        (report.dead_letters, "dead letters"),
        (report.spool_files, "spool files"),
        (len(report.agents), "Letta agents of this caller only, with blocks and messages"),
        (report.conversations, "conversations with Letta agents that others use as well"),
        (
            report.tombstones,
            "calls whose late words will be dropped, known by a hash that identifies nobody",
        ),
    ):
        show.say(f"  {count:6}  {what}")
    if not report.done:
        return
    show.say(f"searched {report.files} files for {report.searched} pieces of what was said:")
    show.say("  none found" if not report.traces else "  FOUND in:")
    for path in report.traces:
        show.say(f"  {path}")
    show.say("not erased here:")
    for text in report.left:
        show.say(f"  {text}")


def export(
    *,
    caller: Annotated[str, typer.Option(help="Only calls of this caller; as for `forget`.")] = "",
    call: Annotated[str, typer.Option(help="Only this call.")] = "",
    tenant: Tenant = "default",
    out: Annotated[
        Path | None, typer.Option(help="Write to this new file (0600), not to standard output.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write calls with their transcripts as JSON, one call per line, oldest first.

    The calls are JSON with or without --json; with --out it prints the summary as JSON, too.
    """
    key = ""
    if caller:
        key = caller_key_of(caller, tenant, reach.settings().default_region)

    async def chosen(journal: "Reports") -> "list[CallRow]":
        if call:
            return [await reach.only_call(journal, call)]
        return (await journal.calls(limit=-1, caller_key=key))[::-1]

    rows = reach.reading(chosen)
    if out is None:
        reach.reading(lambda journal: _export(journal, rows, sys.stdout))
        return
    try:
        descriptor = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise typer.BadParameter(f"{out} can't be made: {error.strerror}") from None
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        shown = show.each(rows, "exporting")
        reach.reading(lambda journal: _export(journal, shown, file))
    if as_json:
        show.as_json({"calls": len(rows), "out": str(out)})
    else:
        show.say(f"{len(rows)} calls in {out}")


async def _export(journal: "Reports", rows: "Iterable[CallRow]", file: TextIO) -> None:
    for row in rows:
        exported = row.call
        line = {
            "call": exported.key,
            "channel": exported.channel,
            "caller_key": exported.caller_key,
            "consent": exported.consent,
            "opened_at_s": exported.opened_at_s,
            "closed_at_s": exported.closed_at_s,
            "exported_at_s": round(time.time(), 3),
            "turns": await journal.turns(exported.key),
        }
        file.write(show.json_line(line) + "\n")
