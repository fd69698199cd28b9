"""The command line. Imports are lazy: help is instant.

Commands that look (`calls`, `outbox list`, `export`) read the journal's file, even while a sidecar
runs. Commands that change (`outbox replay`, `forget`) ask the running sidecar to do it, or do it
here when none runs.

Exit codes: 0 done; 1 it failed, or what was asked for does not exist; 2 the configuration or the
command line is wrong, each field named, or the database that it names can't be used. With `--json`
an error is JSON as well.
"""

import errno
import os
import sys
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typing_extensions import override

from sidecar.cli import agents, backup, callers, calls, journal, memory, outbox, ready, show
from sidecar.cli.arguments import Commands
from sidecar.errors import ConfigError, JournalAway, JournalRefused, SidecarError
from sidecar.printable import printable

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_GROUPS = {
    "Run": ("run", "check", "ready"),
    "Inspect": ("calls", "memory", "doctor"),
    "Repair": ("outbox",),
    "Move": ("agents", "export", "backup", "journal"),
    "Erase": ("forget",),
}
_NOT_WRITTEN = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}
_NOT_USABLE = (JournalRefused, JournalAway)
_MARKS = {"ok": "ok", "warning": "warn", "bad": "BAD"}


class _InGroups(TyperGroup):
    """Lists the commands by their purpose; those that erase come last."""

    @override
    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names in the order of the groups."""
        return [name for names in _GROUPS.values() for name in names]

    @override
    def invoke(self, ctx: Any) -> Any:
        """Run a command; with --json, report wrong use as JSON as well."""
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            if "--json" in sys.argv:
                field = error.param.get_error_hint().strip("'") if error.param else ""
                wrong = {"field": field, "remedy": error.message}
                show.as_json({"error": error.format_message(), "hint": "", "fields": [wrong]})
            raise

    @override
    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write each group below its heading."""
        longest = max(map(len, self.commands))
        for heading, names in _GROUPS.items():
            with formatter.section(heading):
                formatter.write_dl(
                    [
                        (
                            name.ljust(longest),
                            self.commands[name].get_short_help_str(formatter.width - longest - 6),
                        )
                        for name in names
                    ]
                )


app = Commands(
    name="sidecar",
    cls=_InGroups,
    help="A voice agent that remembers its callers, without waiting for its memory.",
    epilog="Exit codes: 0 done; 1 failed or not found; 2 wrong configuration or command line.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich draws tables; loading it for help costs a tenth of a second
)
app.add_typer(calls.app, name="calls")
app.add_typer(outbox.app, name="outbox")
app.add_typer(agents.app, name="agents")
app.add_typer(memory.app, name="memory")
app.add_typer(journal.app, name="journal")
app.command()(callers.forget)
app.command()(callers.export)
app.command()(backup.backup)
app.command()(ready.ready)


def main() -> None:
    """Run the command line and exit."""
    # Nobody reads a stream that was closed: what is written to it is dropped.
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # escapes what the encoding lacks
            stream.reconfigure(errors="backslashreplace")
    try:
        _run_and_flush()
    except OSError as error:
        if error.errno not in _NOT_WRITTEN:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # else Python reports it again at exit
        sys.stderr.write(f"sidecar: the output can't be written: {error.strerror}\n")
        sys.exit(1)
    except SidecarError as error:
        wrong = isinstance(error, ConfigError)
        sys.stderr.write(printable(f"sidecar: {_message_of(error) if wrong else error}\n"))
        if "--json" in sys.argv:
            fields = [{"field": f, "remedy": r} for f, r in error.fields] if wrong else []
            show.as_json({"error": error.message, "hint": error.hint, "fields": fields})
        sys.exit(2 if wrong or isinstance(error, _NOT_USABLE) else 1)


def _run_and_flush() -> None:
    try:
        app()
    finally:
        sys.stdout.flush()


def _message_of(error: ConfigError) -> str:
    """Return what is wrong, with the remedy of each field that the message does not name."""
    unsaid = [f"\n  {field}: {fix}" for field, fix in error.fields if fix not in error.message]
    return error.message + "".join(unsaid)


def _version(asked: bool) -> None:
    """Print the version of the installed package and exit.

    Raises:
        Exit: the version was asked for.
    """
    if asked:
        from sidecar import __version__  # noqa: PLC0415 - read when asked for

        show.say(f"sidecar {__version__}")
        raise typer.Exit


@app.callback()
def root(
    *,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """A voice agent that remembers its callers, without waiting for its memory."""


@app.command()
def run(
    *,
    worker: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="Voice worker to start if LIVEKIT_URL is set; default: ./voice_worker.py",
        ),
    ] = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Start it again if it is killed.")
    ] = False,
    parent_fd: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> None:
    """Serve until SIGTERM or Ctrl-C, then drain; a second signal quits at once."""
    from sidecar.cli.restart import Child, Parent  # noqa: PLC0415

    if restart:
        command = [sys.executable, "-m", "sidecar", "run"]
        sys.exit(Parent([*command, "--worker", str(worker)] if worker else command).run())

    from sidecar.app.loop import run as run_on_loop  # noqa: PLC0415
    from sidecar.app.serve import serve  # noqa: PLC0415
    from sidecar.config.load import load  # noqa: PLC0415

    try:
        child = Child(parent_fd) if parent_fd is not None else None
    except (OSError, ValueError):
        raise typer.BadParameter("only `sidecar run --restart` passes --parent-fd") from None
    settings = load()
    if worker is None and Path("voice_worker.py").is_file():
        worker = Path("voice_worker.py")
    run_on_loop(serve, settings, worker, child)


@app.command()
def check(*, as_json: Json = False) -> None:
    """Check the settings and print those in force; exit 2 and name every wrong one."""
    from sidecar.cli import checks  # noqa: PLC0415
    from sidecar.config.load import load  # noqa: PLC0415

    settings = load()
    checks.usable(settings)
    checks.binds(settings)
    shown = settings.redacted() | checks.of_traces()
    if as_json:
        show.as_json(shown)
        return
    for name, value in shown.items():
        show.say(f"{name}={value}")


@app.command()
def doctor(*, as_json: Json = False) -> None:
    """Check this machine and all that the sidecar needs; print a fix for each problem.

    Exit code 1: a check failed; 2: a setting is wrong. Warnings alone exit 0.
    """
    from sidecar.cli import checks  # noqa: PLC0415
    from sidecar.cli.finding import Finding  # noqa: PLC0415
    from sidecar.config.load import load  # noqa: PLC0415

    wrong = False
    try:
        settings = load()
        checks.usable(settings)
        looked = checks.run(settings)
    except ConfigError as error:
        looked, wrong = checks.run_without_settings(error), True
    findings: list[Finding] = []
    for finding in show.as_they_come(looked, "checking"):
        findings.append(finding)
        if not as_json:
            show.say(f"{_MARKS[finding.verdict]:4}  {finding.what}: {finding.found}")
            if finding.fix:
                show.say(f"      fix: {finding.fix}")
    if as_json:
        show.as_json(findings)
    if wrong:
        raise typer.Exit(2)
    if any(finding.verdict == "bad" for finding in findings):
        raise typer.Exit(1)
