"""Processes of Python programs that have imported what they need before they are started.

A process that imports once and forks saves each start its imports: a second of a sidecar's, twenty
of a real Letta's. What is started is a process of its own in all else: its environment, directory
and files are given, its `__main__` is run anew, and signals reach it alone. Where the start itself
is meant, start the command.

usage: python warm.py SOCKET-FD MODULE... [OPTION...]

An option, which begins with two hyphens, is for the imports: it stays in `sys.argv`.
"""

import array
import gc
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import IO, Any, TypeAlias

START_S = 240.0
LARGEST = 1 << 17
NAMES = ("stdin", "stdout", "stderr", "ended")


class WarmProcess:
    """A started process, with what the tests use of `subprocess.Popen`.

    Attributes:
        pid: Of the process.
        returncode: None while it runs, so far as `poll` or `wait` has seen.
    """

    def __init__(self, pid: int, ended: socket.socket) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._ended = ended
        self._lock = threading.Lock()

    def poll(self) -> int | None:
        """Return its exit code, or None while it runs."""
        try:
            return self.wait(0.0)
        except subprocess.TimeoutExpired:
            return None

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end.

        Returns:
            Its exit code; that of a signal is negative.

        Raises:
            subprocess.TimeoutExpired: it still runs.
        """
        with self._lock:
            if self.returncode is None:
                self._ended.settimeout(timeout)
                try:
                    said = self._ended.recv(16)
                except (TimeoutError, BlockingIOError):
                    raise subprocess.TimeoutExpired(str(self.pid), timeout or 0.0) from None
                self._ended.close()
                self.returncode = int(said or b"-9")  # nothing is said where all were killed
            return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)


Process: TypeAlias = subprocess.Popen[bytes] | WarmProcess
"""One that was started by its command, or warm."""


class Warm:
    """A process that has imported modules, and forks. All that it started ends with it.

    Args:
        modules: What it imports; then options that these read, as `--option`.
        python: The interpreter.
        env: Of the imports; that of a started process is given at its start.
        log: Where the imports write.
    """

    def __init__(
        self,
        modules: Sequence[str],
        *,
        python: str = sys.executable,
        env: Mapping[str, str] | None = None,
        log: IO[bytes] | None = None,
    ) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(START_S)
        self._lock = threading.Lock()
        with theirs:
            self._process = subprocess.Popen(
                [python, str(Path(__file__)), str(theirs.fileno()), *modules],
                pass_fds=[theirs.fileno()],
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._socket = ours

    def start(
        self,
        program: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: str | Path | None = None,
        stdin: int | IO[Any] | None = None,
        stdout: int | IO[Any] | None = None,
        stderr: int | IO[Any] | None = None,
    ) -> WarmProcess:
        """Start a program in a session of its own.

        Args:
            program: The path of a file, or a module as after `python -m`; then its arguments.
            env: Its whole environment.
            cwd: Its directory; None: this process's.
            stdin: As for `subprocess.Popen`, but no `PIPE`; None: nothing can be read or written.
            stdout: Likewise.
            stderr: Likewise.
        """
        os.umask(umask := os.umask(0))
        asked = {"program": program, "env": {**env}, "cwd": str(cwd or Path.cwd()), "umask": umask}
        ended, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, Path(os.devnull).open("r+b") as nothing:
            files = [
                (file if isinstance(file, int) else (nothing if file is None else file).fileno())
                for file in (stdin, stdout, stderr)
            ]
            rights = array.array("i", [*files, theirs.fileno()])
            with self._lock:
                self._socket.sendmsg(
                    [json.dumps(asked).encode()],
                    [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)],
                )
                pid = int(self._socket.recv(16) or 0)
        if not pid:
            raise RuntimeError("the process that starts others has ended")
        return WarmProcess(pid, ended)

    def run(
        self,
        program: Sequence[str],
        *,
        env: Mapping[str, str],
        stdin: str = "",
        stderr: int | None = None,
        timeout: float,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program to its end, as `subprocess.run` does with `capture_output`.

        Args:
            program: As for `start`.
            env: As for `start`.
            stdin: What it can read.
            stderr: Where it writes errors; None: they are returned.
            timeout: In seconds.

        Raises:
            subprocess.TimeoutExpired: it had not ended by then, and was killed.
        """
        with (
            tempfile.TemporaryFile("w+") as given,
            tempfile.TemporaryFile("w+") as out,
            tempfile.TemporaryFile("w+") as err,
        ):
            given.write(stdin)
            given.seek(0)
            errors = err if stderr is None else stderr
            process = self.start(program, env=env, stdin=given, stdout=out, stderr=errors)
            try:
                code = process.wait(timeout)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
            said: list[str] = []
            for file in (out, err):
                file.seek(0)
                said.append(file.read())
        return subprocess.CompletedProcess(list(program), code, *said)

    def close(self) -> None:
        """End it, and with `kill -9` what it started."""
        self._socket.close()
        self._process.wait(START_S)


# In the process that forks


def _next(control: socket.socket) -> dict[str, Any] | None:
    """Serve until the other side is closed, or, in a started process, return what it is to do."""
    running: dict[int, tuple[int, int]] = {}
    with selectors.DefaultSelector() as ready:
        ready.register(control, selectors.EVENT_READ)
        while True:
            for key, _ in ready.select():
                if key.fd in running:
                    pid, ended = running.pop(key.fd)
                    _, status = os.waitpid(pid, 0)
                    ready.unregister(key.fd)
                    os.close(key.fd)
                    with suppress(OSError):  # nobody waits for it any more
                        os.write(ended, str(os.waitstatus_to_exitcode(status)).encode())
                    os.close(ended)
                    continue
                raw, files, _, _ = socket.recv_fds(control, LARGEST, len(NAMES))
                if not raw:
                    for pid, _ in running.values():
                        os.kill(pid, signal.SIGKILL)
                    return None
                pid = os.fork()
                if not pid:
                    for at, (_, ended) in running.items():
                        os.close(at)
                        os.close(ended)
                    return {**json.loads(raw), **dict(zip(NAMES, files, strict=True))}
                for file in files[:-1]:
                    os.close(file)
                at = os.pidfd_open(pid)
                running[at] = (pid, files[-1])
                ready.register(at, selectors.EVENT_READ)
                control.send(str(pid).encode())


def _become(asked: Mapping[str, Any]) -> None:
    os.setsid()
    os.close(asked["ended"])
    for number, name in enumerate(NAMES[:-1]):
        os.dup2(asked[name], number)
        os.close(asked[name])
    os.environ.clear()
    os.environ.update(asked["env"])
    os.umask(asked["umask"])
    os.chdir(asked["cwd"])
    unbuffered = bool(os.environ.get("PYTHONUNBUFFERED"))
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - to the very end
    for name, number in (("stdout", 1), ("stderr", 2)):
        file = open(number, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        file.reconfigure(
            write_through=unbuffered,
            line_buffering=number == 2 or file.isatty(),
            errors="backslashreplace" if number == 2 else "strict",
        )
        setattr(sys, name, file)
        setattr(sys, f"__{name}__", file)
    program, *_ = sys.argv = asked["program"]
    if program.endswith(".py"):
        runpy.run_path(program, run_name="__main__")
    else:
        sys.path.insert(0, "")
        runpy.run_module(program, run_name="__main__", alter_sys=True)


def main() -> None:
    """Import, and then start what is asked for."""
    descriptor, *words = sys.argv[1:]
    modules = [word for word in words if not word.startswith("--")]
    del sys.path[0]  # where this file is: what it imports is installed
    with socket.socket(fileno=int(descriptor)) as control:
        for module in modules:
            import_module(module)
        if threading.active_count() > 1:
            raise SystemExit("an import has started a thread, which a fork would lose")
        gc.freeze()  # so that a fork shares what was imported
        asked = _next(control)
    if asked is not None:
        _become(asked)


if __name__ == "__main__":
    main()
