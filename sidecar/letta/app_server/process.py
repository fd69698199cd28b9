"""The Letta Code App Server as a child of this process: found, started, watched and ended.

Theory of operation. The server lives in its own folder, which one process owns at a time (a
file lock). It is started in a new session, so a terminal's Ctrl-C does not reach it before the
outbox is empty, and it is made to end with this process (`dies_with_parent`). A server that was
left behind nevertheless is recognized by the path of its token file in its command line, and is
ended before another is started: two servers must not write one agent's memory.

Its model is an OpenAI-compatible endpoint, given to `start`. The server reads that endpoint's URL
and key from a file, which is written before each start.
"""

import ctypes
import fcntl
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Final, cast

import aiohttp
import anyio
import anyio.abc
import anyio.to_thread

from sidecar.errors import LettaUnavailable
from sidecar.private import make_directory
from sidecar.untrusted import MALFORMED

DIES_WITH_PARENT: Final = Path(__file__).with_name("dies_with_parent.py")
START_S: Final = 60.0
"""A server that does not answer within this time of its start is ended and counts as failed."""
_STOP_S: Final = 5.0
_LOOK_EVERY_S: Final = 0.05
_GLIBC_MIN: Final = (2, 28)
_PROVIDER: Final = "openai-compatible"
_SAID_CHARS: Final = 300
_HTTP_OK: Final = 200


def why_not(program: Path) -> str:
    """Return why the App Server can't run on this machine; empty when it can."""
    if not program.is_file():
        return f"it is not installed: there is no {program}; `make app-server` installs it"
    if not os.access(program, os.X_OK):
        return f"{program} may not be executed"
    if shutil.which("git") is None:
        return "it needs git, which is not installed"
    libc = _glibc()
    if libc is not None and libc < _GLIBC_MIN:
        return f"it needs glibc 2.28 or later; this machine has {libc[0]}.{libc[1]}"
    return ""


def _glibc() -> tuple[int, int] | None:
    """Return the version of glibc; None where another libc is in its place."""
    try:
        version = ctypes.CDLL(None).gnu_get_libc_version
    except (OSError, AttributeError):
        return None
    version.restype = ctypes.c_char_p
    major, minor = cast("bytes", version()).decode().split(".")[:2]
    return int(major), int(minor)


class FolderLock:
    """The lock on the folder of one App Server; its holder may start a server there.

    The folder is made if it is absent. The lock is released when its process ends, in any way.
    """

    def __init__(self, folder: Path) -> None:
        make_directory(folder)
        self._path = folder / "lock"
        self._descriptor: int | None = None

    async def take(self, within_s: float) -> bool:
        """Wait until the lock is ours, at most `within_s`; return whether it is."""
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        with anyio.move_on_after(within_s):
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError:
                    await anyio.sleep(_LOOK_EVERY_S)
                else:
                    self._descriptor = descriptor
                    return True
        os.close(descriptor)
        return False

    def release(self) -> None:
        """Release the lock. Safe to call twice."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


class AppServerProcess:
    """One App Server; `start`, then `watch`, then `aclose`.

    Args:
        program: The `letta` of PyPI's `letta` 0.32 or later.
        folder: The server's folder, 0700; its lock has to be held.

    Attributes:
        url: Where it listens, the same over restarts.
        token: The bearer token it asks for; new with each `AppServerProcess`.
    """

    def __init__(self, program: Path, folder: Path) -> None:
        self._program = program
        self._folder = folder
        self._home = folder / "home"
        self._token_file = folder / "token"
        self._log = folder / "server.log"
        self._process: anyio.abc.Process | None = None
        self._port = _free_port()
        self.url = f"ws://127.0.0.1:{self._port}"
        self.token = secrets.token_urlsafe(32)

    async def start(self, *, model_url: str, model_key: str) -> None:
        """Start the server and return when it answers; one that runs is left alone.

        Args:
            model_url: Base URL of the OpenAI-compatible endpoint that its agents run on.
            model_key: Key of that endpoint.

        Raises:
            LettaUnavailable: it can't run here, ended, or did not answer in time.
        """
        if self._process is not None and self._process.returncode is None:
            return
        why = why_not(self._program)
        if why:
            raise LettaUnavailable(why)
        try:
            await anyio.to_thread.run_sync(self._prepare, model_url, model_key)
            await self._spawn()
        except OSError as error:
            raise LettaUnavailable(
                f"it can't be started: {error.strerror or type(error).__name__}"
            ) from error
        try:
            await self._until_ready()
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self.aclose()
            raise

    async def watch(self) -> None:
        """Wait for the end of the server; never returns.

        Raises:
            LettaUnavailable: it has ended, or was not started.
        """
        if self._process is None:
            raise LettaUnavailable("the App Server does not run")
        code = await self._process.wait()
        raise LettaUnavailable(f"the App Server ended with {code}", hint=f"see {self._log}")

    async def aclose(self) -> None:
        """End the server and wait until it is gone. Safe to call twice."""
        process, self._process = self._process, None
        with suppress(FileNotFoundError):
            (self._folder / "server.json").unlink()
        if process is None:
            return
        for sign in (signal.SIGTERM, signal.SIGKILL):
            # Processes that it started are in its group, and may outlive it.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, sign)
            with anyio.move_on_after(_STOP_S):
                await process.wait()
                return

    def _prepare(self, model_url: str, model_key: str) -> None:
        for folder in (self._folder, self._home, self._home / "work"):
            make_directory(folder)
        end_leftovers(self._token_file)
        write_private(self._token_file, self.token)
        self._name_model(model_url, model_key)

    def _name_model(self, url: str, key: str) -> None:
        """Write the server's settings of its model, as `letta connect openai-compatible` does.

        That command would show the key to everybody who can list this machine's processes.
        """
        now = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())
        provider = {
            "id": f"local-provider-{_PROVIDER}",
            "name": _PROVIDER,
            "provider_type": _PROVIDER,
            "provider_category": "byok",
            "auth": {"type": "api", "key": key},
            "base_url": url,
            "created_at": now,
            "updated_at": now,
        }
        path = self._home / ".letta/lc-local-backend/providers/auth.json"
        make_directory(path.parent)
        write_private(path, json.dumps({"version": 1, "providers": {_PROVIDER: provider}}))

    async def _spawn(self) -> None:
        listening = ["--listen", self.url, "--ws-auth", "capability-token"]
        command = [str(self._program), "server", "--backend", "local", *listening]
        with await anyio.to_thread.run_sync(_private, self._log) as log:
            self._process = await anyio.open_process(
                [*_dying_with_parent(), *command, "--ws-token-file", str(self._token_file)],
                env=self._environ(),
                cwd=self._home / "work",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    async def _until_ready(self) -> None:
        assert self._process is not None
        try:
            with anyio.fail_after(START_S):
                async with aiohttp.ClientSession() as session:
                    while not await _answers(session, f"http://127.0.0.1:{self._port}/readyz"):
                        if self._process.returncode is not None:
                            raise LettaUnavailable(
                                f"it ended with {self._process.returncode}: {self._said()}"
                            )
                        await anyio.sleep(_LOOK_EVERY_S)
        except TimeoutError as error:
            raise LettaUnavailable(f"it did not answer in {START_S:g} s: {self._said()}") from error
        where = {"url": self.url, "pid": self._process.pid}
        write_private(self._folder / "server.json", json.dumps(where))

    def _said(self) -> str:
        """Return the end of its log; before the server is ready, that holds no transcript."""
        try:
            return self._log.read_text(errors="replace").strip()[-_SAID_CHARS:] or "it said nothing"
        except OSError:
            return "it said nothing"

    def _environ(self) -> dict[str, str]:
        inherited = {
            name: os.environ[name] for name in ("PATH", "LANG", "TZ") if name in os.environ
        }
        return inherited | {
            "DISABLE_AUTOUPDATER": "1",
            "DO_NOT_TRACK": "1",
            "HOME": str(self._home),
            "LETTA_CODE_TELEM": "0",
            "LETTA_DISABLE_CRON_SCHEDULER": "1",
            "LETTA_DISABLE_LSP_DOWNLOAD": "1",
            "LETTA_HOME": str(self._home / ".letta"),
            "LETTA_SKIP_KEYCHAIN_CHECK": "1",
            "NO_PROXY": "127.0.0.1,localhost",
        }


def running(folder: Path) -> tuple[str, str] | None:
    """Return URL and token of the server that another process runs in a folder, once it is ready.

    Returns:
        None when none is ready there.
    """
    try:
        where = cast("Mapping[str, Any]", json.loads((folder / "server.json").read_text()))
        return str(where["url"]), (folder / "token").read_text()
    except (OSError, *MALFORMED, KeyError, TypeError):
        return None


def write_private(path: Path, text: str) -> None:
    """Write a file that only this user can read, all of it or nothing."""
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)
    with _private(new) as file:
        file.write(text.encode())
    new.replace(path)


def end_leftovers(token_file: Path) -> int:
    """End every process that has this token file in its command line; returns how many.

    Blocking, a few seconds at most.
    """
    ended = [pid for pid, words in _command_lines() if str(token_file) in words]
    ended = [pid for pid in ended if pid != os.getpid()]
    for pid in ended:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
    deadline_s = time.monotonic() + _STOP_S
    while time.monotonic() < deadline_s and any(_is_there(pid) for pid in ended):
        time.sleep(_LOOK_EVERY_S)
    return len(ended)


def _command_lines() -> list[tuple[int, Sequence[str]]]:
    found: list[tuple[int, Sequence[str]]] = []
    if sys.platform == "linux":
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal():
                with suppress(OSError):
                    raw = (entry / "cmdline").read_bytes()
                    found.append((int(entry.name), os.fsdecode(raw).split("\0")))
        return found
    shown = subprocess.run(
        ["/bin/ps", "-axww", "-o", "pid=,command="], check=False, capture_output=True, text=True
    )
    for line in shown.stdout.splitlines():
        pid, _, command = line.strip().partition(" ")
        found.append((int(pid), command.split(" ")))
    return found


def _is_there(pid: int) -> bool:
    """Whether a process runs; one that only waits to be reaped does not."""
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except ProcessLookupError:
        return False
    except OSError:
        return sys.platform != "linux"
    return state not in {"Z", "X"}


def _dying_with_parent() -> list[str]:
    return [sys.executable, "-SE", str(DIES_WITH_PARENT), str(os.getpid())]


def _private(path: Path) -> IO[bytes]:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    return os.fdopen(os.open(path, flags, 0o600), "wb")


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


async def _answers(session: aiohttp.ClientSession, url: str) -> bool:
    try:
        with anyio.fail_after(2.0):
            async with session.get(url) as answer:
                return answer.status == _HTTP_OK
    except (aiohttp.ClientError, OSError, TimeoutError):
        return False
