"""Every command that a document shows is run here unchanged, or checked and proven elsewhere.

A block of shell commands is either played, line by line, in a home directory of its own
(`PLAYED`), or each of its lines is in `KNOWN`, as it needs an engine, root, an account or half an
hour. Known lines are checked against the files they name, and name the test or script that runs
the real thing. Any other block or line fails.
"""

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer.main
import yaml

from sidecar.cli import app
from tests.console_page import opened
from tests.dockerfile import stages
from tests.documents import ROOT, Fence, commands, fences, spoken
from tests.ports import free_port
from tests.sidecar_process import SidecarProcess, eventually, get
from tests.unit.test_docs import names_in
from tests.unit.test_ops_files import compose, manifests, pod, unit_file

pytestmark = pytest.mark.e2e

BIN = ROOT / ".venv/bin"
OURS = ("SIDECAR_", "LETTA_", "LLM_", "OPENAI_", "LIVEKIT_", "VAPI_", "VOICE_", "COVERAGE", "XDG_")


# Commands that are not run here, and how they are checked instead.


def sidecar_words(words: list[str]) -> None:
    """Check that the words after `sidecar` are an existing command with existing options."""
    command = typer.main.get_command(app)
    options = {option for parameter in command.params for option in parameter.opts}
    for word in words:
        if word.startswith("--"):
            assert word.partition("=")[0] in options, f"no option {word}: {words}"
        elif inside := getattr(command, "commands", None):
            assert word in inside, f"no command {word}: sidecar {words}"
            command = inside[word]
            options |= {option for parameter in command.params for option in parameter.opts}


def make_target(words: list[str]) -> None:
    """Check that `make -n` knows the target."""
    done = subprocess.run(
        ["make", "-n", *words], cwd=ROOT, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr


def after(words: list[str], option: str) -> list[str]:
    """The values given to an option, as `--name value`."""
    return [words[n + 1] for n, word in enumerate(words) if word == option]


def docker(words: list[str]) -> None:
    """Check that the named files, stages, profiles, services and volumes exist."""
    for path in after(words, "-f"):
        assert (ROOT / path).is_file(), path
    if words[0] == "build":
        assert set(after(words, "--target")) <= set(stages())
        for argument in after(words, "--build-arg"):
            name, _, value = argument.partition("=")
            assert name == "LOCK"
            assert (ROOT / f"requirements/{value}.txt").is_file()
        assert (ROOT / words[-1]).is_dir()
    elif words[0] == "run":
        mounted = {mount.partition(":")[2] for mount in after(words, "-v")}
        assert mounted == set(stages()["sidecar"].volumes)
        assert [port.split(":")[-1] for port in after(words, "-p")] == ["8377"]
    else:
        assert words[0] == "compose"
        services = compose()["services"]
        profiles = {name for service in services.values() for name in service.get("profiles", ())}
        assert set(after(words, "--profile")) <= profiles
        if "exec" in words:
            service, program, *rest = words[words.index("exec") + 1 :]
            assert service in services
            assert program == "sidecar"
            sidecar_words(rest)


def kubectl(words: list[str]) -> None:
    """Check that the named files, secret, pod and container exist."""
    for path in after(words, "-f"):
        assert (ROOT / path).is_file(), path
    if words[0] == "create":
        assert words[1:4] == ["secret", "generic", "voice-agent"]
        assert words[4] == "--from-env-file=ops/.env"
    if words[0] == "exec":
        assert words[1] == f"{manifests()['StatefulSet']['metadata']['name']}-0"
        containers = [*pod()["initContainers"], *pod()["containers"]]
        assert set(after(words, "-c")) <= {container["name"] for container in containers}
        _, program, *rest = words[words.index("--") :]
        assert program == "sidecar"
        sidecar_words(rest)


def systemctl(words: list[str]) -> None:
    """Check that the named units exist."""
    units = [word for word in words[1:] if not word.startswith("--")]
    assert all((ROOT / f"ops/systemd/{unit}.service").is_file() for unit in units)


def service_user(words: list[str]) -> None:
    """Check that the created user is the one that the units run as."""
    assert [words[-1]] == unit_file("voice-sidecar")["User"]


def venv_of_the_unit(words: list[str]) -> None:
    """Check that the installed environment is the one that the unit starts."""
    (start,) = unit_file("voice-sidecar")["ExecStart"]
    assert start.startswith("/opt/voice-sidecar/bin/sidecar ")
    assert words


def extras(words: list[str]) -> None:
    """Check that the extras of the installed package exist."""
    (named,) = re.findall(r"letta-voice-sidecar\[([a-z,]+)\]", words[-1])
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(named.split(",")) <= set(project["optional-dependencies"])


def on_a_database(words: list[str]) -> None:
    """Check nothing but that there are words: the server's programs are run by the test."""
    assert words


def script_is_there(words: list[str]) -> None:
    assert (ROOT / words[0]).is_file()


@dataclass(frozen=True)
class Known:
    """A command that is not run here.

    Attributes:
        looked_at: Checks the words after the first, and fails if they can't be right.
        proven_by: The test below tests/, or the script, that runs the real thing.
    """

    looked_at: Callable[[list[str]], None]
    proven_by: str


_IMAGE = Known(docker, "e2e/test_shipping.py::test_the_image_serves_from_a_read_only_root")
_COMPOSE = Known(
    docker,
    "e2e/test_ops_linters.py::test_the_compose_file_fits_the_compose_specification",
)
_KUBECTL = Known(
    kubectl, "e2e/test_ops_linters.py::test_the_manifests_fit_the_schemas_of_kubernetes"
)
_SYSTEMCTL = Known(systemctl, "e2e/test_ops_linters.py::test_systemd_takes_the_units")
_PIP = "e2e/test_documented_commands.py::test_getting_started"


def all_there(paths: list[str]) -> None:
    assert all((ROOT / path).is_file() for path in paths)


KNOWN = {
    r"make test": Known(make_target, ".ci/run"),
    r"make setup-dev": Known(make_target, ".ci/run"),
    r"make check": Known(make_target, ".ci/run"),
    r"make docs": Known(make_target, "e2e/test_docs_site.py::test_the_site_builds_with_every_page"),
    r"make chaos KILLS=\d+": Known(
        make_target, "chaos/test_kills.py::test_nothing_is_lost_doubled_or_misordered"
    ),
    r"make slow": Known(make_target, "unit/test_forge_files.py"),
    r"make soak": Known(
        make_target, "chaos/test_soak.py::test_calls_with_faults_lose_nothing_and_are_measured"
    ),
    r"make bench": Known(make_target, "e2e/test_benchmarks.py"),
    r"make speech": Known(make_target, "e2e/test_speech.py"),
    r"python voice_worker\.py start": Known(
        script_is_there,
        "e2e/test_shipping.py::test_the_worker_image_starts_from_a_read_only_root",
    ),
    r"VAPI_API_KEY=\S+ python examples/vapi/assistant\.py https://\S+": Known(
        lambda words: script_is_there(words[1:]),
        "e2e/test_vapi_examples.py::test_the_script_creates_and_then_updates",
    ),
    r"sidecar agents move .*": Known(sidecar_words, "e2e/test_move.py"),
    r"pip install 'letta-voice-sidecar\[.*\]'": Known(
        extras, "e2e/test_shipping.py::test_pip_install_and_sidecar_run"
    ),
    r"(createdb|pg_dump|pg_restore) .*": Known(
        on_a_database, "e2e/test_postgres.py::test_a_restored_dump_is_a_journal"
    ),
    r"sidecar journal copy .*": Known(
        sidecar_words, "e2e/test_postgres.py::test_a_journal_moves_from_the_file_and_back"
    ),
    r"\.venv/bin/python -m pytest .*": Known(lambda words: all_there(words[2:]), ".ci/run"),
    r"docker (build|run) .*": _IMAGE,
    r"docker compose .*": _COMPOSE,
    r"kubectl .*": _KUBECTL,
    r"systemctl .*": _SYSTEMCTL,
    r"useradd .*": Known(service_user, "unit/test_ops_files.py"),
    r"python3 -m venv /opt/voice-sidecar": Known(venv_of_the_unit, _PIP),
    r'/opt/voice-sidecar/bin/pip install "\$\(echo dist/\*\.whl\)\[server\]"': Known(
        venv_of_the_unit, _PIP
    ),
}


def known(line: str) -> Known | None:
    return next((how for form, how in KNOWN.items() if re.fullmatch(form, line)), None)


# Commands that are run.


class Shell:
    """Plays blocks as a person at a terminal in the checkout would, in a home of its own.

    Paths of the machine that a document names lie below the home. A command that serves until it is
    stopped is started, seen to be ready, and stopped.
    """

    def __init__(self, home: Path, checkout: Path = ROOT) -> None:
        self.home = home
        self.checkout = checkout
        self.env = {k: v for k, v in os.environ.items() if not k.startswith(OURS)}
        self.env |= {
            "HOME": str(home),
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "SIDECAR_PORT": str(free_port()),
        }
        for place in ("var/backups", "etc/systemd/system", "opt"):
            (home / place).mkdir(parents=True)

    @property
    def data(self) -> Path:
        return self.home / ".local/state/letta-sidecar"

    def play(self, document: str, heading: str) -> str:
        """Play every line below a heading, each of which must succeed; return the output."""
        found = [fence for fence in commands() if fence.place == (document, heading)]
        assert found, f"{document} shows no commands below {heading}"
        return "".join(self.line(line) for fence in found for line in fence.lines)

    def line(self, line: str) -> str:
        if how := known(line):
            words = shlex.split(line)
            how.looked_at(words[1:])
            return ""
        here = re.sub(r"(?<=[\s=])/(var|etc|opt)/", rf"{self.home}/\1/", line).replace(
            "…", "example"
        )
        if here.startswith("export "):
            return self._export(here)
        if re.search(r"(^|/)sidecar run$|^make run$", here):
            return self._serve(here)
        done = self._run(here)
        assert done.returncode == 0, (here, done.stdout, done.stderr)
        return done.stdout

    def _run(self, line: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-ec", line],
            cwd=self.checkout,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )

    def _export(self, line: str) -> str:
        done = self._run(f"{line}; env -0")
        assert done.returncode == 0, (line, done.stderr)
        given = dict(entry.split("=", 1) for entry in done.stdout.split("\0") if "=" in entry)
        self.env |= given
        return ""

    def _serve(self, line: str) -> str:
        process = subprocess.Popen(
            ["bash", "-c", f"exec {line}"],
            cwd=self.checkout,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        url = f"http://127.0.0.1:{self.env['SIDECAR_PORT']}/readyz"

        def up() -> bool:
            assert process.poll() is None, process.communicate()[0]
            try:
                return get(url)[0] == 200
            except OSError:
                return False

        try:
            eventually(up, within_s=60, saying=line)
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            written, _ = process.communicate(timeout=30)
        return written


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


@pytest.fixture
def upstreams(shell: Shell) -> Iterator[Mapping[str, str]]:
    """Stand-ins for a Letta and a language model, by their base URLs."""
    ports = {"letta_server": str(free_port()), "openai_server": str(free_port())}
    running = [
        subprocess.Popen(
            [sys.executable, "-m", f"sidecar.testing.{name}", "--port", port],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for name, port in ports.items()
    ]

    def listening(port: str) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", int(port))) == 0

    try:
        for port in ports.values():
            eventually(lambda port=port: listening(port))
        shell.env |= {
            "LETTA_BASE_URL": f"http://127.0.0.1:{ports['letta_server']}",
            "LLM_BASE_URL": f"http://127.0.0.1:{ports['openai_server']}/v1",
        }
        yield ports
    finally:
        for process in running:
            process.terminate()
            process.wait(10)


def test_the_readme(shell: Shell) -> None:
    """`make run` of a checkout serves the page without a key."""
    assert "/#" in shell.play("README.md", "Two commands")


@pytest.mark.usefixtures("upstreams")
def test_making_it_real(shell: Shell) -> None:
    """With a model and a Letta configured, check, doctor and run agree that both are real."""
    written = shell.play("docs/getting-started.md", "Make it real")
    assert "real:" in written
    assert "DEMO" not in written


def all_but_ours(directory: Path) -> Path:
    """Make a directory of the packages that are installed here, the sidecar's own left out."""
    directory.mkdir()
    for found in Path(sysconfig.get_path("purelib")).iterdir():
        if not re.match(r"_*(editable|letta_voice_sidecar)", found.name):
            (directory / found.name).symlink_to(found)
    return directory


def test_getting_started(tmp_path: Path) -> None:
    """The wheel is built, installed by pip into a new environment, and its sidecar serves."""
    # What it depends on is there already; tests/e2e/test_shipping.py installs that as well.
    checkout = tmp_path / "checkout"
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=20,
    ).stdout.splitlines()
    for name in listed:
        if (ROOT / name).is_file():
            (checkout / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, checkout / name)
    (checkout / ".venv").symlink_to(ROOT / ".venv")
    shell = Shell(tmp_path / "home", checkout)
    shell.env["PATH"] = os.environ["PATH"]  # so that only the installed `sidecar` is found
    shell.env["PIP_NO_COMPILE"] = "1"  # a start compiles what it needs
    shell.env["PYTHONPATH"] = str(all_but_ours(tmp_path / "installed"))
    assert "page " in shell.play("docs/getting-started.md", "As a package")
    Shell(tmp_path / "another").play("docs/getting-started.md", "From a checkout")


def test_configuration(shell: Shell) -> None:
    """`sidecar check` prints the settings, for people and for programs."""
    assert "SIDECAR_PORT=" in shell.play("docs/configuration.md", "Configuration")


@pytest.mark.usefixtures("upstreams")
def test_the_vapi_example(shell: Shell) -> None:
    """The commands of the VAPI example start a sidecar with its two secrets."""
    shell.play("examples/vapi/README.md", "From nothing to a ringing phone")


def test_livekit(shell: Shell) -> None:
    """A worker's variables can be set as shown."""
    shell.play("docs/livekit.md", "LiveKit")
    assert {"LIVEKIT_URL", "LIVEKIT_API_KEY", "LIVEKIT_API_SECRET"} <= shell.env.keys()


def test_installing_the_units(shell: Shell) -> None:
    """The systemd commands put each file in its place, and the one with secrets is 0600."""
    shell.play("docs/deploy.md", "systemd")
    assert (shell.home / "etc/voice-sidecar/env").stat().st_mode & 0o777 == 0o600
    assert f"-/{'etc/voice-sidecar/env'}" in unit_file("voice-sidecar")["EnvironmentFile"]
    installed = {path.name for path in (shell.home / "etc/systemd/system").iterdir()}
    assert installed == {"voice-sidecar.service", "voice-worker.service"}


def test_operations(shell: Shell) -> None:
    """The operators' commands work: triage, backup, upgrade, restore and erasure of a caller."""
    document = "docs/operations.md"
    shell.data.parent.mkdir(parents=True)

    def look(*words: str) -> str:
        return shell.line(shlex.join(["sidecar", *words]))

    with SidecarProcess(shell.data) as sidecar:
        with opened(sidecar) as page:
            page.call("ada")
            page.say("I keep a parrot called Barnaby the Ninth")
            page.hang_up()
        eventually(lambda: sidecar.undelivered() == 0)
        assert "0 turns undelivered" in shell.play(document, "A bad night")
        backed_up = next(f for f in commands() if f.place == (document, "Back up and restore"))
        assert "MB" in shell.line(backed_up.lines[0])
        assert "ready" in shell.play(document, "Upgrade and roll back")
        shell.play(document, "Erase a caller")
    assert "Barnaby" in look("export")
    (shell.data / "journal.db").write_bytes(b"a disk that lies")
    restore = [f for f in commands() if f.place == (document, "Back up and restore")][1]
    for line in restore.lines:
        shell.line(line)
    assert "Barnaby" in look("export")
    with SidecarProcess(shell.data) as sidecar:
        assert sidecar.readiness()["ready"] is True


# Every block is played.

PLAYED = {
    ("README.md", "Two commands"),
    ("docs/getting-started.md", "From a checkout"),
    ("docs/getting-started.md", "As a package"),
    ("docs/getting-started.md", "Make it real"),
    ("docs/configuration.md", "Configuration"),
    ("docs/livekit.md", "LiveKit"),
    ("docs/deploy.md", "systemd"),
    ("docs/operations.md", "A bad night"),
    ("docs/operations.md", "Back up and restore"),
    ("docs/operations.md", "Upgrade and roll back"),
    ("docs/operations.md", "Erase a caller"),
    ("examples/vapi/README.md", "From nothing to a ringing phone"),
}
OTHER = {
    r"cp \.env\.example ops/\.env": ROOT / ".env.example",
}
"""Lines of unplayed blocks that need only a file."""


def id_of(fence: Fence) -> str:
    return f"{fence.document}: {fence.heading}"


@pytest.mark.parametrize("fence", list(commands()), ids=id_of)
def test_every_command_is_run_or_known(fence: Fence) -> None:
    """Each line of a block that is not played is a known command that passes its check."""
    for line in fence.lines:
        if how := known(line):
            how.looked_at(shlex.split(line)[1:])
            file, _, test = how.proven_by.partition("::")
            path = ROOT / file if file.startswith(".") else ROOT / "tests" / file
            assert path.is_file()
            assert not test or test in names_in(path)
        elif fence.place not in PLAYED:
            needed = next((path for form, path in OTHER.items() if re.fullmatch(form, line)), None)
            assert needed is not None, f"nobody runs this, and nobody knows it: {line}"
            assert needed.exists()


def test_every_block_that_is_played_is_there() -> None:
    """Every block in the list of played ones exists, and a test above plays it."""
    assert {fence.place for fence in commands()} >= PLAYED
    source = Path(__file__).read_text()
    for document, heading in PLAYED:
        assert source.count(f'"{heading}"') >= 2, (document, heading)


def test_every_block_says_what_it_is() -> None:
    """Every block of code has a known language, so that no command is overlooked."""
    languages = {fence.language for fence in fences()}
    assert languages <= {"sh", "python", "text", "json", "yaml", "javascript"}


def test_every_command_in_running_text_exists() -> None:
    """Each `sidecar …` in running text is an existing command with existing options."""
    said = list(spoken())
    assert len(said) > 15
    for document, command in said:
        words = command.partition("|")[0].split()[1:]
        try:
            sidecar_words(words)
        except AssertionError as error:
            raise AssertionError(f"{document}: {error}") from None


def test_every_alert_has_a_row_in_the_operators_page() -> None:
    """The operators' page has a row for each alert."""
    page = (ROOT / "docs/operations.md").read_text()
    for file in (ROOT / "ops").glob("prometheus-alerts*.yaml"):
        for rule in yaml.safe_load(file.read_text())["groups"][0]["rules"]:
            assert f"| `{rule['alert']}` |" in page
