"""How a command reaches the journal: it reads it itself, and changes it through a sidecar.

While a sidecar runs on the data directory, a change is requested from it
(`sidecar/channels/admin.py`). When none does, the command opens the journal itself, for itself
alone: on a database that other sidecars use, it is refused.
"""

import json
import time
from collections.abc import Callable, Coroutine, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from sidecar.call_names import calls_named, several
from sidecar.errors import JournalLocked, SidecarError
from sidecar.untrusted import MALFORMED

if TYPE_CHECKING:
    from sidecar.config.settings import Settings
    from sidecar.journal.port import Journal
    from sidecar.journal.reports import CallRow, Reports

T = TypeVar("T")

_REQUEST_S: Final = 310.0
_LOOK_S: Final = 5.0
_LEASE_ENDS_S: Final = 6.0
_OTHER_JSON: Final = (KeyError, TypeError, AttributeError)


class CommandRefused(SidecarError):
    """The running sidecar refused the request; nothing was changed unless the message says so."""


class NoneRuns(CommandRefused):
    """No sidecar runs on this data directory."""


def data_dir() -> Path:
    """Return the data directory the settings name; it may not have been made yet.

    Raises:
        ConfigError: a setting is wrong, or no directory exists or can be made there.
    """
    return _directory_of(settings())


def _directory_of(settings: "Settings") -> Path:
    from sidecar.private import refuse_no_directory  # noqa: PLC0415

    directory = settings.data_dir.expanduser()
    refuse_no_directory(directory)
    return directory


def settings() -> "Settings":
    """Return the settings.

    Raises:
        ConfigError: a setting is wrong.
    """
    from sidecar.config.load import load  # noqa: PLC0415

    return load()


class NotThere(SidecarError):
    """Nothing has the name that was given, or several things do."""


async def only_call(journal: "Reports", name: str) -> "CallRow":
    """Return the one call of the journal that a name matches, by the rules of `calls_named`.

    Raises:
        NotThere: none does, or several do.
    """
    keys = calls_named(name, await journal.call_keys())
    found = await journal.call_row(only_one(keys, name))
    if found is None:
        raise NotThere(f"no call matches {name}", hint="see `sidecar calls list`")
    return found


def only_one(keys: Sequence[str], name: str) -> str:
    """Return the only one of the calls that match a name.

    Raises:
        NotThere: there is none, or there are several.
    """
    if not keys:
        raise NotThere(f"no call matches {name}", hint="see `sidecar calls list`")
    if len(keys) > 1:
        raise NotThere(f"several calls match {name}", hint=f"choose one: {several(keys)}")
    return keys[0]


def reading(
    own: "Callable[[Reports], Coroutine[Any, Any, T]]", ours: "Settings | None" = None
) -> T:
    """Read from the journal; a sidecar may be running.

    Args:
        own: What to read. Nothing else runs on its loop: it may block.
        ours: Settings as loaded; None: load them.

    Raises:
        NoJournal: there is none.
        JournalError: it can't be read.
    """
    import anyio  # noqa: PLC0415

    ours = ours or settings()
    return anyio.run(_with_reports, ours, _directory_of(ours), own)


async def _with_reports(
    settings: "Settings", directory: Path, own: "Callable[[Reports], Coroutine[Any, Any, T]]"
) -> T:
    from sidecar.app.journal import opened_reports, place_of  # noqa: PLC0415

    async with opened_reports(place_of(settings, directory)) as reports:
        return await own(reports)


def changing(
    path: str,
    own: "Callable[[Journal], Coroutine[Any, Any, T]]",
    *,
    read: Callable[[dict[str, Any]], T],
    body: object = None,
) -> T:
    """Change the journal: here if no sidecar runs, else through the one that does.

    Args:
        path: Path of the running sidecar's route.
        own: What to do with a journal of our own.
        read: Turns the route's answer into what `own` returns.
        body: JSON for the route.

    Raises:
        JournalError: there is no journal, or it failed, or a sidecar elsewhere writes to it.
        CommandRefused: the running sidecar refused it, or does not answer.
    """
    import anyio  # noqa: PLC0415

    ours = settings()
    directory = _directory_of(ours)
    try:
        return anyio.run(_with_journal, ours, directory, own)
    except JournalLocked as locked:
        try:
            return read(ask(directory, path, body))
        except NoneRuns:
            if ours.journal_url is None:
                raise
            raise locked from None  # it names who writes, on whatever machine


async def _with_journal(
    settings: "Settings", directory: Path, own: "Callable[[Journal], Coroutine[Any, Any, T]]"
) -> T:
    from sidecar.app.journal import opened_journal  # noqa: PLC0415

    # One that was killed leaves its lease on a database; one that runs here is asked at once.
    wait_s = 0.0 if (directory / "control.json").exists() else _LEASE_ENDS_S
    async with opened_journal(
        settings, directory, clock=time.time, existing=True, wait_s=wait_s
    ) as journal:
        return await own(journal)


def ask(directory: Path, path: str, body: object = None) -> dict[str, Any]:
    """POST to the running sidecar and return its answer.

    Raises:
        CommandRefused: it refused, or does not answer.
    """
    status, answer = _request(directory, path, json.dumps(body or {}).encode())
    if status != HTTPStatus.OK:
        said = str(answer.get("error", f"the running sidecar answered {status}"))
        raise CommandRefused(said, hint=str(answer.get("hint", "")))
    return answer


def ask_readiness(directory: Path) -> dict[str, Any]:
    """Return what `/readyz` of the sidecar on this data directory says.

    Raises:
        CommandRefused: none runs, or it does not answer.
    """
    return _request(directory, "/readyz", None, budget_s=_LOOK_S)[1]


def is_running() -> bool:
    """Return whether a sidecar runs on the data directory of the settings."""
    try:
        ask_readiness(data_dir())
    except CommandRefused:
        return False
    return True


def _request(
    directory: Path, path: str, body: bytes | None, *, budget_s: float = _REQUEST_S
) -> tuple[int, dict[str, Any]]:
    """Ask the running sidecar; returns the status and the JSON of its answer.

    Raises:
        CommandRefused: none runs, or it does not answer.
    """
    import http.client  # noqa: PLC0415 - slow to load
    from urllib.parse import urlsplit  # noqa: PLC0415

    try:
        control = cast("dict[str, str]", json.loads((directory / "control.json").read_text()))
        where = urlsplit(control["url"])
        connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=budget_s)
        headers = {"Authorization": f"Bearer {control['token']}"}
        try:
            connection.request("GET" if body is None else "POST", path, body, headers)
            answer = connection.getresponse()
            return answer.status, cast("dict[str, Any]", json.loads(answer.read()))
        finally:
            connection.close()
    except FileNotFoundError:
        raise NoneRuns(
            f"no sidecar answers on {directory}",
            hint="start one there, or wait until it is up",
        ) from None
    except (OSError, http.client.HTTPException, *MALFORMED, *_OTHER_JSON) as error:
        raise CommandRefused(
            f"a sidecar has the journal open and does not answer: {type(error).__name__}",
            hint="wait for it to start or stop, or run this as the user it runs as",
        ) from None
