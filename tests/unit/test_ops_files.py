"""The ops files set only what sidecar and worker read, and agree with what both do."""

import re
import shlex
import subprocess
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml

from sidecar.config.load import load
from sidecar.config.settings import Settings, environment_names
from sidecar.errors import ConfigError
from sidecar.livekit import LinkSettings
from tests.dockerfile import ROOT, instructions, stages
from tests.variables import worker_names

pytestmark = pytest.mark.unit

OPS = ROOT / "ops"
STAGES = stages()
TOKEN = "t" * 44
GIVEN = {
    "SIDECAR_LINK_TOKEN": TOKEN,
    "LIVEKIT_URL": "wss://livekit.example",
    "LIVEKIT_API_KEY": "key",
    "LIVEKIT_API_SECRET": "secret",
}
"""Values for what an operator must set."""
SYSTEM = {"PATH", "HOME", "PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED"}
SECRETS = {
    name
    for field, names in environment_names().items()
    if "Secret" in str(Settings.model_fields[field].annotation)
    for name in names
}
PATHS = {"/livez", "/readyz", "/metrics"}
"""Requested from a running sidecar in e2e/test_shipping.py."""


def interpolated(value: object, given: Mapping[str, str]) -> str:
    """Return a value of a compose file with its variables filled in, as compose does."""

    def fill(match: re.Match[str]) -> str:
        name, how, rest = match[1], match[2], match[3]
        if given.get(name):
            return given[name]
        assert how != ":?", f"compose stops: {name}: {rest}"
        return rest if how == ":-" else ""

    return re.sub(r"\$\{(\w+)(?:(:-|:\?)([^}]*))?\}", fill, str(value))


def compose() -> dict[str, Any]:
    return dict(yaml.safe_load((OPS / "compose.yaml").read_text()))


def of_compose(name: str, given: Mapping[str, str] = GIVEN) -> dict[str, str]:
    """The environment of a compose service, including its image's."""
    service = compose()["services"][name]
    said = {key: interpolated(value, given) for key, value in service["environment"].items()}
    return STAGES[name].env | said


def manifests() -> dict[str, dict[str, Any]]:
    text = (OPS / "kubernetes/voice-agent.yaml").read_text()
    return {document["kind"]: document for document in yaml.safe_load_all(text)}


def pod() -> dict[str, Any]:
    return dict(manifests()["StatefulSet"]["spec"]["template"]["spec"])


def container(name: str) -> dict[str, Any]:
    everything = [*pod()["initContainers"], *pod()["containers"]]
    return next(one for one in everything if one["name"] == name)


def of_pod(name: str) -> dict[str, str]:
    """The environment of a container, including its image's, without optional secret keys."""
    found = dict(STAGES[name].env)
    for entry in container(name)["env"]:
        if "value" in entry:
            found[entry["name"]] = entry["value"]
            continue
        key = entry["valueFrom"]["secretKeyRef"]
        assert key["name"] == "voice-agent"
        assert key["key"] == entry["name"]
        if not key.get("optional"):
            found[entry["name"]] = GIVEN[entry["name"]]
    return found


def unit_file(name: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in (OPS / f"systemd/{name}.service").read_text().splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(key, []).append(value)
    return found


def of_unit(name: str) -> dict[str, str]:
    said = [part for line in unit_file(name)["Environment"] for part in shlex.split(line)]
    return dict(part.split("=", 1) for part in said)


def loaded(env: Mapping[str, str]) -> Settings:
    """The settings of an environment; raises where the sidecar would not start."""
    for name in env:
        assert name in SYSTEM or name in {
            n for names in environment_names().values() for n in names
        }
    return load({name: value for name, value in env.items() if name not in SYSTEM})


SIDECARS = {
    "compose": lambda: of_compose("sidecar"),
    "kubernetes": lambda: of_pod("sidecar"),
    "systemd": lambda: of_unit("voice-sidecar"),
}
WORKERS = {
    "compose": lambda: of_compose("worker"),
    "kubernetes": lambda: of_pod("worker"),
    "systemd": lambda: of_unit("voice-worker") | {"SIDECAR_LINK_TOKEN": ""},
}


@pytest.mark.parametrize("where", SIDECARS)
def test_the_sidecar_starts_with_what_the_file_sets(where: str) -> None:
    """The sidecar takes each variable with its value, and has a token if it isn't on loopback."""
    settings = loaded(SIDECARS[where]())
    assert settings.loopback or TOKEN in settings.tokens
    assert settings.loopback == (where == "systemd")


def test_the_container_does_not_start_without_a_token() -> None:
    """Without a token the image's settings are refused, and compose does not start."""
    with pytest.raises(ConfigError, match="SIDECAR_LINK_TOKEN"):
        loaded(STAGES["sidecar"].env)
    with pytest.raises(AssertionError, match="compose stops: SIDECAR_LINK_TOKEN"):
        of_compose("sidecar", {})


@pytest.mark.parametrize("where", WORKERS)
def test_the_worker_reads_each_variable_it_is_given(where: str) -> None:
    """Each variable of a worker is one that the worker reads."""
    assert set(WORKERS[where]()) - SYSTEM <= worker_names()


@pytest.mark.parametrize("where", WORKERS)
def test_worker_and_sidecar_find_each_other(where: str) -> None:
    """The worker's link has the sidecar's port and token, and both use the same spool."""
    settings, link = loaded(SIDECARS[where]()), LinkSettings.of(WORKERS[where]())
    host = {"compose": "sidecar", "kubernetes": "127.0.0.1", "systemd": "127.0.0.1"}[where]
    assert link.url == f"ws://{host}:{settings.port}/link"
    assert (link.token or "") in {*settings.tokens, ""}
    assert bool(link.token) == bool(settings.tokens)
    assert link.spool_dir == settings.spool


def test_a_second_replica_is_as_the_first_with_a_directory_of_its_own() -> None:
    """In compose a second sidecar has the first one's settings and name, and its own data."""
    services = compose()["services"]
    first, second = services["sidecar"], services["sidecar-2"]
    for same in ("image", "build", "environment", "stop_grace_period", "read_only", "cap_drop"):
        assert first[same] == second[same]
    assert second["profiles"] == services["postgres"]["profiles"] == ["replicas"]
    assert second["networks"] == {"default": {"aliases": ["sidecar"]}}
    assert set(first["volumes"]) & set(second["volumes"]) == {"spool:/spool"}
    assert not second["ports"]
    settings = loaded(
        of_compose(
            "sidecar",
            {
                **GIVEN,
                "SIDECAR_JOURNAL_URL": "postgresql://sidecar:p@postgres/journal",
                "SIDECAR_SECRET": "s" * 32,
            },
        )
    )
    assert settings.journal_url is not None
    database = services["postgres"]["environment"]
    assert (database["POSTGRES_USER"], database["POSTGRES_DB"]) == ("sidecar", "journal")


def test_pods_are_updated_and_evicted_one_by_one() -> None:
    """Where there are several pods, no update and no drain of nodes takes two at a time."""
    budget = manifests()["PodDisruptionBudget"]["spec"]
    labels = manifests()["StatefulSet"]["spec"]["template"]["metadata"]["labels"]
    assert budget["maxUnavailable"] == 1
    assert budget["selector"]["matchLabels"].items() <= labels.items()
    assert "updateStrategy" not in manifests()["StatefulSet"]["spec"], "RollingUpdate, by default"


def test_the_spool_is_one_volume_for_both() -> None:
    """In compose and in the pod, worker and sidecar mount the same volume for the spool."""
    spool = STAGES["worker"].env["SIDECAR_SPOOL_DIR"]
    assert Path(spool).parent.as_posix() in STAGES["worker"].volumes
    services = compose()["services"]
    for mounted in (services["sidecar"]["volumes"], services["worker"]["volumes"]):
        assert "spool:/spool" in mounted
    for name in ("sidecar", "worker"):
        mounts = {m["mountPath"]: m["name"] for m in container(name)["volumeMounts"]}
        assert mounts["/spool"] == "spool"
    claims = manifests()["StatefulSet"]["spec"]["volumeClaimTemplates"]
    assert {"data", "spool"} == {claim["metadata"]["name"] for claim in claims}
    assert unit_file("voice-worker")["User"] == unit_file("voice-sidecar")["User"]


def test_what_is_kept_lies_on_a_volume() -> None:
    """The data directory and the spool are on volumes, not in a container's own layer."""
    settings = loaded(STAGES["sidecar"].env | GIVEN)
    for path in (settings.data_dir, settings.spool):
        assert any(path.is_relative_to(volume) for volume in STAGES["sidecar"].volumes)
    assert unit_file("voice-sidecar")["StateDirectory"] == ["voice-sidecar"]
    assert of_unit("voice-sidecar")["SIDECAR_DATA_DIR"] == "/var/lib/voice-sidecar"


def test_the_ports_are_the_sidecars_and_the_workers() -> None:
    """Published, exposed and probed ports are those that sidecar and worker listen on."""
    port = loaded(STAGES["sidecar"].env | GIVEN).port
    assert STAGES["sidecar"].ports == (port,)
    assert compose()["services"]["sidecar"]["ports"] == [f"127.0.0.1:{port}:{port}"]
    named = {p["name"]: p["containerPort"] for p in container("sidecar")["ports"]}
    assert named == {"sidecar": port}
    annotations = manifests()["StatefulSet"]["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == str(port)
    service = manifests()["Service"]["spec"]["ports"]
    assert [(p["port"], p["targetPort"]) for p in service] == [(port, "sidecar")]
    health = {p["name"]: p["containerPort"] for p in container("worker")["ports"]}
    assert health == {"health": STAGES["worker"].ports[0]}
    assert f":{STAGES['worker'].ports[0]}/" in STAGES["worker"].health[2]


def test_probes_ask_for_paths_that_there_are() -> None:
    """Kubernetes probes and the scrape name routes of the sidecar."""
    sidecar = container("sidecar")
    probes = {name: sidecar[name]["httpGet"] for name in sidecar if name.endswith("Probe")}
    assert probes.keys() == {"startupProbe", "livenessProbe", "readinessProbe"}
    assert {probe["path"] for probe in probes.values()} <= PATHS
    assert {probe["port"] for probe in probes.values()} == {"sidecar"}
    assert probes["livenessProbe"]["path"] == "/livez"
    assert probes["readinessProbe"]["path"] == "/readyz"
    annotations = manifests()["StatefulSet"]["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/path"] in PATHS


def seconds(text: str) -> float:
    assert text.endswith("s")
    return float(text.removesuffix("s"))


def test_whoever_stops_them_waits_for_the_drain() -> None:
    """Each orchestrator waits longer before it kills than a drain may take."""
    worker_s = float(STAGES["worker"].command[-1])
    assert STAGES["worker"].command[-2] == "--drain-timeout"

    def drain_s(env: Mapping[str, str]) -> float:
        settings = loaded(env)
        assert settings.drain_calls_s > settings.orphan_s
        return settings.drain_calls_s + settings.drain_flush_s

    services = compose()["services"]
    assert seconds(services["sidecar"]["stop_grace_period"]) > drain_s(of_compose("sidecar")) + 10
    assert seconds(services["worker"]["stop_grace_period"]) > worker_s + 10
    assert "sidecar" in services["worker"]["depends_on"]
    both_s = worker_s + drain_s(of_pod("sidecar"))
    assert pod()["terminationGracePeriodSeconds"] > both_s + 10
    stop_s = float(unit_file("voice-sidecar")["TimeoutStopSec"][0])
    assert stop_s > drain_s(of_unit("voice-sidecar")) + 10
    assert float(unit_file("voice-worker")["TimeoutStopSec"][0]) > worker_s + 10
    assert unit_file("voice-worker")["ExecStart"][0].endswith(f"--drain-timeout {worker_s:g}")
    assert "voice-sidecar.service" in unit_file("voice-worker")["After"][0]


def test_the_sidecar_is_a_native_sidecar_container() -> None:
    """The sidecar starts before the worker and stops after it."""
    (sidecar,) = pod()["initContainers"]
    assert sidecar["name"] == "sidecar"
    assert sidecar["restartPolicy"] == "Always"
    assert manifests()["StatefulSet"]["spec"]["replicas"] == 1


def test_nothing_runs_as_root_or_writes_to_its_own_files() -> None:
    """Nothing runs as root, writes to its root file system or can gain privileges."""
    uid = int(STAGES["sidecar"].user.partition(":")[0])
    assert STAGES["sidecar"].user == STAGES["worker"].user
    assert uid > 0
    services = compose()["services"]
    for name in ("sidecar", "worker"):
        assert services[name]["read_only"] is True
        assert services[name]["cap_drop"] == ["ALL"]
        assert services[name]["security_opt"] == ["no-new-privileges:true"]
        closed = container(name)["securityContext"]
        assert closed["readOnlyRootFilesystem"] is True
        assert closed["allowPrivilegeEscalation"] is False
        assert closed["capabilities"] == {"drop": ["ALL"]}
    context = pod()["securityContext"]
    assert context["runAsNonRoot"] is True
    assert context["runAsUser"] == context["fsGroup"] == uid
    assert pod()["automountServiceAccountToken"] is False
    for name in ("voice-sidecar", "voice-worker"):
        assert unit_file(name)["ProtectSystem"] == ["strict"]
        assert unit_file(name)["NoNewPrivileges"] == ["yes"]
        assert unit_file(name)["CapabilityBoundingSet"] == [""]


def test_no_secret_is_written_down() -> None:
    """Secrets reach containers by reference only, and no layer of the image holds one."""
    assert len(SECRETS) > 8
    assert all(name in SECRETS for name in ("SIDECAR_LINK_TOKEN", "LETTA_API_KEY"))
    for word, rest in instructions():
        if word in {"ENV", "ARG"}:
            assert not SECRETS & set(re.findall(r"\w+", rest))
    for name in ("sidecar", "worker"):
        said = compose()["services"][name]["environment"]
        assert all(said[key].startswith(f"${{{key}:") for key in SECRETS & said.keys())
        entries = container(name)["env"]
        assert all("valueFrom" in entry for entry in entries if entry["name"] in SECRETS)
    for name in ("voice-sidecar", "voice-worker"):
        assert not SECRETS & of_unit(name).keys()


def let_into_the_image() -> list[str]:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    return [rule.removeprefix("!").rstrip("/") for rule in rules if rule.startswith("!")]


def test_the_image_is_built_from_what_is_named_and_nothing_else() -> None:
    """The image's sources exist and are let in by .dockerignore, and nothing else is."""
    let_in = let_into_the_image()
    copied = [
        source.rstrip("/")
        for stage in STAGES.values()
        for origin, sources, _ in stage.copies
        if not origin
        for source in sources
    ]
    assert sorted(let_in) == sorted(copied)
    for path in copied:
        assert (ROOT / path).exists()
    for excluded in (".env", ".git", ".venv", "ops/.env", "tests", "examples/vapi/.vapi.json"):
        assert not any(fnmatch(excluded, rule) for rule in let_in)


def locks() -> Iterator[str]:
    yield from re.findall(r"^ARG LOCK=(\w+)", (OPS / "Dockerfile").read_text(), re.MULTILINE)
    yield from re.findall(r"LOCK[=:] ?(\w+)", (OPS / "compose.yaml").read_text())


def test_dependencies_come_from_lock_files_with_hashes() -> None:
    """Each install in the image is from a lock file with hashes, or of a wheel built there."""
    installs = [
        line
        for word, rest in instructions()
        if word == "RUN"
        for line in rest.split("&&")
        if "pip install" in line
    ]
    assert len(installs) == 3
    for line in installs:
        assert "--require-hashes" in line or "--no-deps --no-index" in line
    named = set(locks())
    assert named == {"run", "speech", "postgres"}
    for lock in named:
        assert "--hash=sha256:" in (ROOT / f"requirements/{lock}.txt").read_text()


def test_metrics_are_prometheus_alone() -> None:
    """The network policy covers the pod and lets only chosen pods reach the sidecar's port."""
    policy = manifests()["NetworkPolicy"]["spec"]
    labels = manifests()["StatefulSet"]["spec"]["template"]["metadata"]["labels"]
    assert policy["podSelector"]["matchLabels"].items() <= labels.items()
    assert policy["policyTypes"] == ["Ingress"]
    (rule,) = policy["ingress"]
    assert [port["port"] for port in rule["ports"]] == ["sidecar"]
    assert all("podSelector" in peer and "namespaceSelector" in peer for peer in rule["from"])


def test_the_operators_own_files_stay_out_of_git() -> None:
    """`ops/.env`, which compose and the Kubernetes secret read, can't be committed by mistake."""
    done = subprocess.run(
        ["git", "check-ignore", "--quiet", "ops/.env"], cwd=ROOT, check=False, timeout=20
    )
    assert done.returncode == 0
