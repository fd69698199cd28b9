"""The content of ops/Dockerfile, and its stages run without an engine.

`Image` makes a root file system of this machine's parts in a mount namespace, read-only except for
the stage's volumes, and runs a command there as the stage's user without any capability. This is
what `docker run --read-only --cap-drop ALL` does, with this machine's kernel and network. `built`
runs the instructions of the build stage in such a root. Both use this machine's Python and
libraries; the base image itself is not tested.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

ROOT = Path(__file__).parents[1]
_ROOT = """
set -eu
root=$1 prefix=$2; shift 2
mount -t tmpfs -o mode=0755 image "$root"
for part in bin lib lib64 usr etc dev proc; do
  if [ -L "/$part" ]; then cp -P "/$part" "$root/"; continue; fi
  [ -d "/$part" ] || continue
  mkdir "$root/$part"; mount --rbind "/$part" "$root/$part"
done
mkdir -p "$root$prefix" "$root/tmp"
mount --bind "$prefix" "$root$prefix"
while [ "$1" != -- ]; do
  mkdir -p "$root$2"; mount --bind "$1" "$root$2"; shift 2
done
shift
"""
_BUILD = """
exec chroot "$root" "$@"
"""
_RUN = """
user=$1; shift
for at in "$root/usr" "$root/etc" "$root$prefix" "$root/opt/sidecar"; do
  mountpoint -q "$at" && mount -o remount,ro,bind "$at"
done
mount -o remount,ro "$root"
exec chroot "$root" /usr/bin/setpriv --reuid="$user" --regid="$user" --clear-groups \\
  --no-new-privs --bounding-set=-all --inh-caps=-all -- "$@"
"""


@dataclass
class Stage:
    """One stage of the Dockerfile, with the values that it inherits.

    Attributes:
        name: The name after `AS`.
        env: Its `ENV`, with the inherited ones.
        command: Its `CMD`.
        health: The command of its `HEALTHCHECK`.
        user: Its `USER`.
        volumes: Its `VOLUME`.
        ports: Its `EXPOSE`.
        copies: (from stage or "", sources, target) of each own `COPY`.
        runs: Its own `RUN` lines.
    """

    name: str
    base: str
    env: dict[str, str] = field(default_factory=dict[str, str])
    command: tuple[str, ...] = ()
    health: tuple[str, ...] = ()
    user: str = ""
    volumes: tuple[str, ...] = ()
    ports: tuple[int, ...] = ()
    copies: list[tuple[str, tuple[str, ...], str]] = field(
        default_factory=list[tuple[str, tuple[str, ...], str]]
    )
    runs: list[str] = field(default_factory=list[str])


def instructions(path: Path = ROOT / "ops" / "Dockerfile") -> list[tuple[str, str]]:
    """Return the instructions in order: the word, and the rest of it on one line."""
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    found = [line.strip().partition(" ") for line in joined.splitlines() if line.strip()]
    return [(word.upper(), rest.strip()) for word, _, rest in found]


def stages() -> dict[str, Stage]:
    """Return the stages by name in the file's order; the last is the one built by default."""
    found: dict[str, Stage] = {}
    stage = Stage("", "")
    for word, rest in instructions():
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            parent = found.get(base, Stage("", ""))
            stage = replace(parent, name=name, base=base, env=dict(parent.env), copies=[], runs=[])
            found[name] = stage
        else:
            _take(stage, word, rest)
    return found


def _take(stage: Stage, word: str, rest: str) -> None:
    match word:
        case "ENV":
            stage.env |= dict(part.split("=", 1) for part in shlex.split(rest))
        case "CMD":
            stage.command = tuple(json.loads(rest))
        case "HEALTHCHECK":
            stage.health = tuple(json.loads(rest.partition("CMD ")[2]))
        case "USER":
            stage.user = rest
        case "VOLUME":
            stage.volumes += tuple(json.loads(rest))
        case "EXPOSE":
            stage.ports = tuple(int(port) for port in rest.split())
        case "COPY":
            *sources, target = shlex.split(rest)
            origin = next((s.removeprefix("--from=") for s in sources if s.startswith("--")), "")
            paths = tuple(source for source in sources if not source.startswith("--"))
            stage.copies.append((origin, paths, target))
        case "RUN":
            stage.runs.append(rest)
        case _:
            pass


def python_of_the_image() -> Path:
    """Return the prefix of a Python of the version that the Dockerfile names.

    If this machine has none, it is the prefix of the running Python.
    """
    version = next(r for _, r in instructions() if r.startswith("PYTHON=")).removeprefix("PYTHON=")
    pyenv = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser() / "versions"
    candidates = [f"python{version}", *sorted(pyenv.glob(f"{version}.*/bin/python"))]
    for program in (*candidates, sys.executable):
        if shutil.which(program) is None:
            continue
        done = subprocess.run(
            [program, "-c", "import sys; print(sys.base_prefix)"],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
        if done.returncode == 0:
            return Path(done.stdout.strip())
    msg = "unreachable: the running Python runs"
    raise AssertionError(msg)


def rights_missing() -> str:
    """Return what is missing to make such a root here; empty if nothing is."""
    probe = ["unshare", "--net", "--mount", "sh", "-c", "mount -t tmpfs none /mnt"]
    if (
        os.geteuid()
        or subprocess.run(probe, check=False, capture_output=True, timeout=20).returncode
    ):
        return "to try the image without an engine takes root, and namespaces of mounts and network"
    return ""


def built(directory: Path, *, lock: str) -> Path:
    """Run the stage `build` in its own root; returns its /opt/sidecar.

    Args:
        directory: Holds what the stage writes to /opt, /src and /dist; it is kept.
        lock: The build argument LOCK.
    """
    stage = stages()["build"]
    for name in ("root", "opt", "src", "dist"):
        (directory / name).mkdir()
    for _, sources, target in stage.copies:
        for source in sources:
            to = directory / "src" / target / (Path(source).name if target == "./" else "")
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, to, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / source, to)
    prefix = python_of_the_image()
    env = {
        k: v for k, v in os.environ.items() if k.startswith("PIP_") or k.lower().endswith("_proxy")
    }
    env |= stage.env | {"PATH": f"{prefix}/bin:/usr/bin:/bin", "HOME": "/tmp", "LOCK": lock}
    binds = [part for at in ("opt", "src", "dist") for part in (str(directory / at), f"/{at}")]
    for run in stage.runs:
        done = subprocess.run(
            [
                *("unshare", "--mount", "sh", "-c", _ROOT + _BUILD, "image"),
                *(str(directory / "root"), str(prefix), *binds, "--"),
                *("/usr/bin/env", "--ignore-environment", "--chdir=/src"),
                *(f"{name}={value}" for name, value in env.items()),
                *("sh", "-ec", run),
            ],
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, (run, done.stdout[-2000:], done.stderr[-2000:])
    return directory / "opt/sidecar"


_LOOPBACK = """
import fcntl, socket, struct, sys
SIOCSIFFLAGS, IFF_UP = 0x8914, 1
fcntl.ioctl(socket.socket(), SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", IFF_UP))
print("up", flush=True)
sys.stdin.read()
"""
"""Brings up the loopback interface of a new network, and stays until its input ends."""


class Image:
    """A stage, ready to run commands in it.

    Args:
        stage: Its environment, user and volumes are used.
        venv: A virtual environment made at /opt/sidecar, or one that is relocatable.
        copied: Files of the checkout, by their paths in the stage.
        own_network: Its ports are its own, as in a container; nothing outside is reached.
    """

    def __init__(
        self,
        stage: Stage,
        venv: Path,
        copied: Mapping[str, Path] | None = None,
        *,
        own_network: bool = False,
    ) -> None:
        self._stage = stage
        self._own_network = own_network
        self._network: subprocess.Popen[bytes] | None = None
        self._venv = venv
        home = re.search(r"^home = (.+)/bin$", (venv / "pyvenv.cfg").read_text(), re.MULTILINE)
        assert home is not None
        self._prefix = home[1]
        self._copied = dict(copied or {})
        self._directory = Path(tempfile.mkdtemp(prefix="image-"))
        self.volumes = {at: self._directory / f"volume{at}" for at in stage.volumes}

    def __enter__(self) -> Self:
        self._directory.chmod(0o755)
        (self._directory / "root").mkdir()
        uid = int(self._stage.user.partition(":")[0])
        for path in self.volumes.values():
            path.mkdir(parents=True, mode=0o700)
            os.chown(path, uid, uid)
        for at, source in self._copied.items():
            directory = self._directory / f"copied{Path(at).parent}"
            directory.mkdir(parents=True, exist_ok=True)
            directory.chmod(0o755)
            shutil.copy(source, directory)
        if self._own_network:
            self._network = subprocess.Popen(
                ["unshare", "--net", sys.executable, "-c", _LOOPBACK],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            assert self._network.stdout is not None
            assert self._network.stdout.readline() == b"up\n"
        return self

    def __exit__(self, *_: object) -> None:
        if self._network is not None:
            self._network.communicate(timeout=20)  # its input ends, and so does it
        shutil.rmtree(self._directory)

    def start(
        self, command: Sequence[str], env: Mapping[str, str] | None = None, *, tmp: bool = False
    ) -> "subprocess.Popen[str]":
        """Start a command in it; its standard output has the standard errors as well.

        Args:
            command: As in `CMD`.
            env: Added to the stage's own, as by `docker run --env`.
            tmp: Give it a writable /tmp, as `docker run --tmpfs /tmp` does.
        """
        binds = [(str(self._venv), "/opt/sidecar")]
        binds += [(str(path), at) for at, path in self.volumes.items()]
        binds += [
            (f"{self._directory}/copied{Path(at).parent}", str(Path(at).parent))
            for at in self._copied
        ]
        if tmp:
            scratch = self._directory / "tmp"
            scratch.mkdir(exist_ok=True)
            scratch.chmod(0o1777)
            binds.append((str(scratch), "/tmp"))
        inside = {"PATH": "/usr/bin:/bin"} | self._stage.env | dict(env or {})
        inside["PATH"] = inside["PATH"].replace("$PATH", "/usr/bin:/bin")
        network = f"--net=/proc/{self._network.pid}/ns/net" if self._network else ""
        return subprocess.Popen(
            [
                *(("nsenter", network) if network else ()),
                *("unshare", "--mount", "sh", "-c", _ROOT + _RUN, "image"),
                *(str(self._directory / "root"), self._prefix),
                *(part for bind in binds for part in bind),
                *("--", self._stage.user.partition(":")[0]),
                *("/usr/bin/env", "--ignore-environment"),
                *(f"{name}={value}" for name, value in inside.items()),
                *command,
            ],
            cwd="/",
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, command: Sequence[str], env: Mapping[str, str] | None = None) -> tuple[int, str]:
        """Run a command in it to its end; returns its exit code and its whole output."""
        process = self.start(command, env)
        written, _ = process.communicate(timeout=150)
        return process.returncode, written
