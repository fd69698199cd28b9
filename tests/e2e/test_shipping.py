"""What is shipped runs as its user runs it: the wheel in a new environment, the image in its root.

These processes can't use the checkout: they are started elsewhere, with the installed package.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from sidecar.testing.fake_sidecar import FakeSidecar
from sidecar.wire.frames import Memory
from tests.dockerfile import ROOT, Image, built, rights_missing, stages
from tests.livekit_room.caller import calling
from tests.livekit_room.server import LiveKitServer
from tests.livekit_room.worker import voice_worker
from tests.ports import free_port
from tests.sidecar_process import SidecarProcess, eventually, get
from tests.unit.test_ops_files import PATHS

pytestmark = pytest.mark.e2e

UV = str(ROOT / ".venv/bin/uv")
STAGES = stages()
TOKEN = "a-token-of-this-test-and-of-it-alone"


def done(*command: str | Path, cwd: Path = ROOT, env: Mapping[str, str] | None = None) -> str:
    """Run to the end, which must succeed, and return the output."""
    ended = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert ended.returncode == 0, (command, ended.stdout, ended.stderr)
    return ended.stdout


@pytest.fixture(scope="module")
def outside() -> Iterator[Path]:
    """A directory outside the checkout that other users can enter, unlike pytest's own."""
    directory = Path(tempfile.mkdtemp(prefix="shipped-"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(scope="module")
def wheel(outside: Path) -> Path:
    """The wheel, as `make dist` builds it."""
    build = re.search(
        r"^\t@(\$\(BIN\)/uv build .*)$", (ROOT / "Makefile").read_text(), re.MULTILINE
    )
    assert build is not None
    command = build[1].replace("$(BIN)", str(ROOT / ".venv/bin"))
    words = [str(outside / "dist") if word == "dist" else word for word in command.split()]
    done(*words)
    (found,) = (outside / "dist").glob("*.whl")
    return found


def locked(outside: Path, wheel: Path, lock: str) -> Path:
    """Return an environment like the image's: a lock file, then the wheel."""
    venv = outside / f"of-{lock}"
    python = venv / "bin/python"
    requirements = ROOT / f"requirements/{lock}.txt"
    done(UV, "venv", "--quiet", "--relocatable", "--python", sys.executable, venv)
    install = (UV, "pip", "install", "--quiet", "--python", python)
    done(*install, "--require-hashes", "-r", requirements)
    done(*install, "--no-deps", "--no-index", wheel)
    return venv


def test_the_wheel_holds_all_that_runs_and_nothing_else(wheel: Path) -> None:
    """The wheel has every file of the package, such as static files, SQL and the type marker."""
    listed = done("git", "ls-files", "--cached", "--others", "--exclude-standard", "sidecar")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    ours = {name for name in names if ".dist-info/" not in name}
    assert ours == {path for path in listed.splitlines() if (ROOT / path).is_file()}
    assert {"sidecar/journal/sqlite/schema.sql", "sidecar/py.typed"} <= ours
    assert "sidecar/channels/console/static/index.html" in ours
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


class Installed(SidecarProcess):
    """The installed command, started in an empty directory outside the checkout."""

    def __init__(self, venv: Path, directory: Path) -> None:
        super().__init__(
            directory / "data", command=(str(venv / "bin/sidecar"), "run"), cwd=directory
        )


@pytest.fixture(scope="module")
def installed(outside: Path, wheel: Path) -> Path:
    """A new environment with the wheel, its extra `server` and their dependencies."""
    return clean(outside / "clean", f"{wheel}[server]")


def clean(venv: Path, package: str) -> Path:
    """Return a new environment with a package and its dependencies, as a user gets it."""
    done(sys.executable, "-m", "venv", "--without-pip", venv)
    done(UV, "pip", "install", "--quiet", "--python", venv / "bin/python", package)
    return venv


def test_pip_install_and_sidecar_run(installed: Path, tmp_path: Path) -> None:
    """With the extra `server`, `sidecar run` serves its page outside the checkout."""
    with Installed(installed, tmp_path) as sidecar:
        assert sidecar.readiness()["ready"] is True
        status, page = get(f"{sidecar.url}/")
        assert status == 200
        linked = re.findall(r"(?:src|href)=\"(/?[\w./-]+\.(?:js|css|svg))\"", page)
        assert linked
        for path in linked:
            assert get(f"{sidecar.url}/{path.removeprefix('/')}")[0] == 200, path
    where = "import sidecar, sys; print(sidecar.__file__)"
    said = done(installed / "bin/python", "-c", where, cwd=tmp_path)
    assert Path(said.strip()).is_relative_to(installed)
    assert (tmp_path / "data/journal.db").is_file()


def test_the_installed_command_says_its_version(installed: Path, tmp_path: Path) -> None:
    """`sidecar --version` is the version in pyproject.toml."""
    said = done(installed / "bin/sidecar", "--version", cwd=tmp_path)
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None
    assert said == f"sidecar {version[1]}\n"


@pytest.fixture(scope="module")
def base(outside: Path, wheel: Path) -> Path:
    """A new environment with only the wheel, as for a LiveKit worker."""
    return clean(outside / "base", str(wheel))


def test_a_workers_environment_has_nothing_of_the_sidecars(base: Path, tmp_path: Path) -> None:
    """Without the extra, only those packages of `server` are there that livekit-agents needs."""
    looked = (
        "import json; from importlib.metadata import distributions; "
        "print(json.dumps({d.name.lower().replace('_', '-'): d.requires or []"
        " for d in distributions()}))"
    )
    there: dict[str, list[str]] = json.loads(done(base / "bin/python", "-c", looked, cwd=tmp_path))
    assert {"letta-voice-sidecar", "livekit-agents", "websockets"} <= there.keys()
    absent = {"apsw", "letta-client", "pydantic-settings", "starlette", "structlog", "uvicorn"}
    assert not absent & there.keys()
    ours = [line for line in there["letta-voice-sidecar"] if "extra ==" not in line]
    assert not [line for line in ours if line.startswith(("typer", "rich", "prometheus"))]


def test_the_command_in_a_workers_environment_names_the_extra(base: Path, tmp_path: Path) -> None:
    """Without the extra, any `sidecar` command prints one line with the remedy and exits with 2."""
    for words in ((), ("run",), ("--version",), ("check", "--json")):
        for command in ((str(base / "bin/sidecar"),), (str(base / "bin/python"), "-m", "sidecar")):
            ended = subprocess.run(
                [*command, *words],
                cwd=tmp_path,
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            assert ended.returncode == 2
            assert ended.stdout == ""
            (line,) = ended.stderr.splitlines()
            assert "pip install 'letta-voice-sidecar[server]'" in line


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.anyio
async def test_a_worker_without_the_sidecars_packages_takes_a_call(
    base: Path, tmp_path: Path
) -> None:
    """With only the wheel, the worker to copy remembers a caller and its turns are acked."""
    fact = '<memory-a>\n<block label="human">\nName: Ada\n</block>\n</memory-a>'
    sidecar = FakeSidecar(
        memory_of=lambda call: Memory(
            call=call, text=fact, version="1", read_at_s=0.0, served="fresh", newest=True
        )
    )
    home = tmp_path / "worker"
    home.mkdir()
    shutil.copy(ROOT / "voice_worker.py", home)
    shutil.copy(ROOT / "tests/livekit_room/parts.py", home / "speech_parts.py")
    async with (
        LiveKitServer().serving() as server,
        sidecar.serving() as link_url,
        voice_worker(
            server,
            link_url,
            tmp_path,
            python=base / "bin/python",
            program=home / "voice_worker.py",
            env={"VOICE_PARTS": "speech_parts:scripted"},
        ) as worker,
    ):
        worker.will_hear("alone", "what is my name")
        async with calling(server.url, "alone", "sip_alone", phone="+12025550100") as caller:
            job = await server.call_agent("alone")
            await caller.until(lambda: len(caller.heard) >= 2, 100.0)
            await caller.until_agent_is_silent(for_s=0.8)
            await caller.say("what is my name")
            await caller.until(lambda: len(caller.heard) >= 3, 100.0)
            await caller.until_agent_is_silent()
        await sidecar.until(lambda: job in sidecar.closed, 60.0)
    assert "Ada" in caller.heard[1]
    assert "Ada" in caller.heard[2]
    assert "what is my name" in sidecar.texts(job)
    assert any("Name: Ada" in str(prompt) for prompt in worker.prompts("alone"))


@pytest.fixture(autouse=True)
def rights(request: pytest.FixtureRequest) -> None:
    if "image" not in request.node.name:
        return
    if missing := rights_missing():
        assert not os.environ.get("CI"), f"CI tries the image: {missing}"
        pytest.skip(missing)


def answers(url: str) -> bool:
    try:
        return get(url)[0] == 200
    except OSError:
        return False


@pytest.mark.slow
def test_the_image_serves_from_a_read_only_root(outside: Path) -> None:
    """The image serves as its user with only volumes writable, from a healthy start to a drain."""
    # The health check fails before the start and after the end, and succeeds in between. The
    # paths that Kubernetes probes and Prometheus scrapes are there.
    stage = STAGES["sidecar"]
    (outside / "image").mkdir()
    with Image(stage, built(outside / "image", lock="run")) as image:
        code, written = image.run(stage.command)
        assert code == 2
        assert "SIDECAR_LINK_TOKEN" in written
        env = {"SIDECAR_LINK_TOKEN": TOKEN, "SIDECAR_PORT": str(free_port())}
        code, written = image.run(stage.health, env)
        assert code == 1, written
        url = f"http://127.0.0.1:{env['SIDECAR_PORT']}"
        process = image.start(stage.command, env)
        try:
            eventually(lambda: answers(f"{url}/readyz"), within_s=120)
            assert image.run(stage.health, env) == (0, "ready\n")
            assert {path: get(f"{url}{path}")[0] for path in PATHS} == dict.fromkeys(PATHS, 200)
            assert get(f"{url}/")[0] == 404  # the page is served on loopback only
        finally:
            process.terminate()
            log, _ = process.communicate(timeout=120)
        assert process.returncode == 0
        assert '"event": "drained"' in log
        assert TOKEN not in log
        assert image.run(stage.health, env)[0] == 1
        for volume in image.volumes.values():
            files = [path for path in volume.rglob("*") if path.is_file()]
            assert all(path.stat().st_mode & 0o077 == 0 for path in files)
        assert (image.volumes["/data"] / "state/journal.db").is_file()
        for at in ("/", "/opt/sidecar", "/etc", "/tmp"):
            assert image.run(["touch", f"{at}/x"])[0] != 0


@pytest.mark.slow
def test_the_worker_image_starts_from_a_read_only_root(outside: Path, wheel: Path) -> None:
    """With a writable /tmp and spool, the worker loads its models, is healthy and stops."""
    stage = STAGES["worker"]
    (_, (source,), target) = stage.copies[0]
    env = {
        "SIDECAR_LINK_TOKEN": TOKEN,
        "LIVEKIT_URL": "ws://127.0.0.1:9",  # nobody listens there, so it keeps trying
        "LIVEKIT_API_KEY": "key",
        "LIVEKIT_API_SECRET": "a secret of this test, and of it alone",
    }
    venv = locked(outside, wheel, "speech")
    # Its health is asked at a fixed port, which another worker of this machine may have.
    with Image(stage, venv, {target: ROOT / source}, own_network=True) as image:
        assert image.run(stage.health)[0] != 0
        process = image.start(stage.command, env, tmp=True)
        log: list[str] = []

        def read() -> None:
            assert process.stdout is not None
            with process.stdout as lines:
                log.extend(lines)

        reading = threading.Thread(target=read, daemon=True)
        reading.start()
        try:
            eventually(lambda: image.run(stage.health)[0] == 0, within_s=180)
            # Each process that will answer calls has loaded its models.
            eventually(lambda: any("process initialized" in line for line in log), within_s=180)
        finally:
            process.terminate()
            process.wait(60)
            reading.join(10)
        assert process.returncode == 0, "".join(log)[-3000:]
        assert not [line for line in log if "Read-only file system" in line]
