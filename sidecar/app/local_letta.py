"""The Letta of a machine for which none is configured: our own App Server, or the embedded one.

Theory of operation. The App Server is used where it can run: real agents whose memory is a git
repository on this machine. Otherwise the embedded Letta is used, and `note` says why. Memory is
never moved automatically: once agents live in one of the two, that one is used until the operator
changes it (`SIDECAR_LETTA`, `sidecar agents move`). An App Server that holds agents and does not
start is *away*, like any Letta that is down: calls go on, the journal stores what is said, and the
start is retried until it succeeds.

Commands share the server of a running sidecar; when none runs, they start their own.
"""

import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread

from sidecar.config.settings import Settings
from sidecar.errors import ConfigError, LettaUnavailable
from sidecar.letta.app_server.local import USED, LocalAppServer
from sidecar.letta.app_server.process import (
    AppServerProcess,
    FolderLock,
    running,
    why_not,
)
from sidecar.letta.embedded.letta import EmbeddedLetta
from sidecar.letta.embedded.store import has_agents
from sidecar.letta.port import Letta
from sidecar.llm.port import Llm
from sidecar.llm.served import served

_LOCK_S: Final = 20.0
_LOOK_EVERY_S: Final = 0.1
_SETTING: Final = "SIDECAR_LETTA"


@dataclass(frozen=True, slots=True)
class OpenLetta:
    """A Letta to work with.

    Attributes:
        letta: The Letta itself.
        demo: It is the embedded one.
        note: What the operator should know about the choice; empty: nothing.
        run_server: Runs its server, and raises when that ends; call it again each time, for as
            long as `letta` is used. None: there is no server to run.
    """

    letta: Letta
    demo: bool = False
    note: str = ""
    run_server: Callable[[], Awaitable[None]] | None = None


@asynccontextmanager
async def opened_locally(
    settings: Settings, directory: Path, *, llm: Llm, patient: bool, say: Callable[[str], None]
) -> AsyncGenerator[OpenLetta]:
    """Open the Letta of this machine; its server, if any, ends with the context.

    Args:
        settings: As loaded.
        directory: The data directory.
        llm: The model for its agents; not closed here.
        patient: Wait for the App Server even if agents live in it already. A sidecar that is
            started again does not, because it serves callers meanwhile; a command does, because it
            has nothing else to do.
        say: Called with a text about what it waits for.

    Raises:
        ConfigError: the App Server is asked for by name and can't run, or another process has it.
        LettaError: the embedded Letta's file can't be opened; or an App Server that agents live
            in was waited for and does not start.
    """
    folder = directory / "app-server"
    async with AsyncExitStack() as stack:
        note = await anyio.to_thread.run_sync(why_embedded, settings, directory)
        if not note:
            try:
                app_server = _opened_app_server(settings, folder, llm=llm, patient=patient, say=say)
                found = await stack.enter_async_context(app_server)
            except LettaUnavailable as error:
                note = f"the App Server did not start: {error.message}"
                if settings.letta == "app-server":
                    raise _asked_for(note) from error
                if (folder / USED).exists():
                    raise
            else:
                yield found
                return
        letta = await EmbeddedLetta.open(directory / "letta.db", llm=llm)
        stack.push_async_callback(letta.aclose)
        yield OpenLetta(letta, demo=True, note=note)


def why_embedded(settings: Settings, directory: Path) -> str:
    """Return why the embedded Letta is used; empty if the App Server should be tried. Blocking.

    Raises:
        ConfigError: the App Server is asked for by name and can't run here.
    """
    if settings.letta == "embedded":
        return f"{_SETTING}=embedded"
    used = (directory / "app-server" / USED).exists()
    why = why_not(settings.app_server_program)
    if settings.letta == "app-server":
        if why and not used:
            raise _asked_for(f"the App Server can't run here: {why}")
        return ""
    if used:
        return ""
    if has_agents(directory / "letta.db"):
        return (
            f"the callers of {directory} are remembered in it; to change to the App Server:"
            " `sidecar agents move --all --to app-server`"
        )
    return why and f"the App Server can't run here: {why}"


def why_away(settings: Settings) -> str:
    """Return why the App Server can't be started on this machine; empty when it can."""
    return why_not(settings.app_server_program)


def _asked_for(what: str) -> ConfigError:
    remedy = f"mend that, or set {_SETTING}=auto or embedded"
    return ConfigError(f"{_SETTING}=app-server: {what}", fields=((_SETTING, remedy),))


@asynccontextmanager
async def _opened_app_server(
    settings: Settings, folder: Path, *, llm: Llm, patient: bool, say: Callable[[str], None]
) -> AsyncGenerator[OpenLetta]:
    """Open an App Server: the one of another process of ours, or one that is started here.

    Raises:
        LettaUnavailable: it was waited for and does not start.
        ConfigError: another process holds its folder and has no server ready.
    """

    def on(url: str, token: str) -> LocalAppServer:
        return LocalAppServer(
            url,
            token,
            folder,
            model_name=llm.name,
            read_timeout_s=settings.read_timeout_s,
            post_timeout_s=settings.post_timeout_s,
            reflect=settings.reflect,
        )

    async with AsyncExitStack() as stack:
        lock = FolderLock(folder)
        stack.callback(lock.release)
        if not await lock.take(0.0):
            shared = await _running_elsewhere(folder, lock)
            if shared is not None:
                letta = on(*shared)
                stack.push_async_callback(letta.aclose)
                yield OpenLetta(letta)
                return
        key = secrets.token_urlsafe(32)
        model_url = await stack.enter_async_context(served(llm, key=key))
        program = settings.app_server_program
        process = AppServerProcess(program, folder)
        stack.push_async_callback(process.aclose)

        async def run_server() -> None:
            try:
                await process.start(model_url=model_url, model_key=key)
                await process.watch()
            except LettaUnavailable as error:
                raise LettaUnavailable("the App Server is away", hint=str(error)) from error

        note = ""
        if patient or not (folder / USED).exists():
            say("starting the Letta App Server of this machine ...")
            await process.start(model_url=model_url, model_key=key)
        elif why := why_not(program):
            note = f"AWAY, {why}; calls go on, and what is said is kept for it"
        letta = on(process.url, process.token)
        stack.push_async_callback(letta.aclose)
        yield OpenLetta(letta, note=note, run_server=run_server)


async def _running_elsewhere(folder: Path, lock: FolderLock) -> tuple[str, str] | None:
    """Wait for the URL and token of another process's server; None if this process gets the lock.

    Raises:
        ConfigError: neither happened within the time a server takes to start.
    """
    with anyio.move_on_after(_LOCK_S):
        while True:
            if (shared := await anyio.to_thread.run_sync(running, folder)) is not None:
                return shared
            if await lock.take(_LOOK_EVERY_S):
                return None
    raise ConfigError(
        f"another process holds {folder} and its App Server is not ready",
        fields=(("SIDECAR_DATA_DIR", "wait for that process, or name another directory"),),
    )
