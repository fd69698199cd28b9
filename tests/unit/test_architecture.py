"""ARCHITECTURE.md shows the real tree, and each rule in it has a guard."""

import ast
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sidecar.app.from_settings import build_llm
from sidecar.config.load import load
from sidecar.demo.model import DemoModel
from tests.documents import ROOT, names_in

pytestmark = pytest.mark.unit

PICTURE = (ROOT / "ARCHITECTURE.md").read_text()
CONTRACTS: list[dict[str, Any]] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"][
    "importlinter"
]["contracts"]
ROOMS = frozenset(
    f"sidecar.{path.stem}"
    for path in (ROOT / "sidecar").iterdir()
    if path.suffix == ".py" or (path / "__init__.py").exists()
) - {"sidecar.__init__"}
PACKAGES = frozenset(room for room in ROOMS if (ROOT / room.replace(".", "/")).is_dir())
CLOCKS_AND_IO = frozenset(
    {"anyio", "asyncio", "aiohttp", "apsw", "os", "socket", "sqlite3", "time", "websockets"}
)


@dataclass(frozen=True)
class Room:
    """A row of the table.

    Attributes:
        modules: The modules that the row is about, by import name, or a path outside the package.
        must_not: The row's "must not", or empty.
    """

    modules: tuple[str, ...]
    must_not: str


def rooms() -> Iterator[Room]:
    """Every row of "Where things are"."""
    table = PICTURE.split("\n| room |", 1)[1].split("\n\n", 1)[0]
    for line in table.splitlines()[2:]:
        named, _, must_not = (cell.strip() for cell in line.strip("|").split(" | "))
        paths = [path.rstrip("/").removesuffix(".py") for path in re.findall(r"`([^`]+)`", named)]
        inside = paths[0].startswith("sidecar/")
        modules = [f"sidecar.{path.removeprefix('sidecar/')}" for path in paths]
        yield Room(tuple(modules if inside else paths), must_not.strip(" |"))


TABLE = {room.modules[0]: room for room in rooms()}


def within(module: str, places: list[str]) -> bool:
    return any(module == place or module.startswith(f"{place}.") for place in places)


def layers() -> list[list[str]]:
    """The lines of the first contract from the top, each with its modules."""
    return [line.split(" | ") for line in CONTRACTS[0]["layers"]]


def may_not_import(source: str, target: str) -> bool:
    """Whether a contract fails where `source` imports `target`."""
    for contract in CONTRACTS:
        match contract["type"]:
            case "layers":
                line_of = {room: at for at, line in enumerate(layers()) for room in line}
                of = {room: room for room in line_of}
                above, below = of.get(source), of.get(target)
                if above and below and above != below and line_of[below] <= line_of[above]:
                    return True
            case "forbidden":
                if within(source, contract["source_modules"]) and within(
                    target, contract["forbidden_modules"]
                ):
                    return True
            case "independence":
                modules = contract["modules"]
                if source != target and within(source, modules) and within(target, modules):
                    return True
            case other:
                raise ValueError(other)
    return False


def siblings(package: str, *names: str) -> list[tuple[str, str]]:
    modules = [f"{package}.{name}" for name in names]
    return [(one, other) for one in modules for other in modules if one != other]


def each(sources: tuple[str, ...], targets: frozenset[str]) -> list[tuple[str, str]]:
    return [(source, target) for source in sources for target in sorted(targets - {*sources})]


ABOVE_WIRE = PACKAGES - {"sidecar.llm", "sidecar.wire"}
SIDECAR_ALONE = ABOVE_WIRE - {"sidecar.demo", "sidecar.worker"}
CHANNELS = ("admin", "console", "link", "vapi")
ADAPTERS = ("app_server", "embedded", "rest", "plug")
# For each "must not" of the table, the imports that would break it, or, if it is not about imports,
# the test that enforces it.
GUARDS: dict[str, list[tuple[str, str]] | str] = {
    "voice_worker": "unit/test_architecture.py::test_the_worker_to_copy_imports_the_public_path",
    "sidecar.model": each(("sidecar.model", "sidecar.errors"), CLOCKS_AND_IO | PACKAGES),
    "sidecar.printable": each(TABLE["sidecar.printable"].modules, PACKAGES),
    "sidecar.telemetry": "unit/test_architecture.py::test_otel_is_imported_inside_functions_alone",
    "sidecar.livekit": "unit/test_exports.py::test_the_public_path_holds_imports_and_no_code",
    "sidecar.wire": each(("sidecar.wire",), ABOVE_WIRE),
    "sidecar.worker": each(("sidecar.worker",), SIDECAR_ALONE),
    "sidecar.access": each(("sidecar.access",), frozenset({"sidecar.letta"})),
    "sidecar.llm": each(("sidecar.llm",), frozenset({"sidecar.channels"})),
    "sidecar.demo": "unit/test_architecture.py::test_no_demo_model_where_one_is_configured",
    "sidecar.config": each(
        tuple(PACKAGES - {"sidecar.app", "sidecar.cli", "sidecar.testing"}),
        frozenset({"sidecar.config"}),
    ),
    "sidecar.journal": each(
        ("sidecar.journal",), frozenset({"sidecar.memory", "sidecar.letta", "sidecar.calls"})
    ),
    "sidecar.letta": siblings("sidecar.letta", *ADAPTERS),
    "sidecar.memory": each(("sidecar.memory",), frozenset({"sidecar.journal"})),
    "sidecar.delivery": each(
        ("sidecar.delivery",),
        frozenset({"sidecar.memory", *(f"sidecar.letta.{name}" for name in ADAPTERS)}),
    ),
    "sidecar.calls": "unit/test_calls.py::test_opening_a_call_never_waits_for_letta",
    "sidecar.tools": each(("sidecar.tools",), frozenset({"sidecar.channels"})),
    "sidecar.http": each(("sidecar.http",), frozenset({"sidecar.calls", "sidecar.channels"})),
    "sidecar.channels": siblings("sidecar.channels", *CHANNELS),
    "sidecar.jobs": each(("sidecar.jobs",), frozenset({"sidecar.channels"})),
    "sidecar.app": each(tuple(PACKAGES - {"sidecar.cli"}), frozenset({"sidecar.app"})),
    "sidecar.testing": each(tuple(PACKAGES), frozenset({"sidecar.testing"})),
    "ops": "unit/test_ops_files.py::test_the_sidecar_starts_with_what_the_file_sets",
}


def test_the_layers_drawn_are_those_of_the_contract() -> None:
    """The picture of the layers is the first import contract, line by line."""
    (drawn,) = re.findall(r"^```text\n(__main__\n.*?)^```$", PICTURE, re.MULTILINE | re.DOTALL)
    joined = re.sub(r" \|\n +", " | ", drawn)
    lines = [[f"sidecar.{room}" for room in line.split(" | ")] for line in joined.splitlines()]
    assert lines == layers()
    assert sorted(room for line in lines for room in line) == sorted(ROOMS)


def test_the_table_names_every_room() -> None:
    """Each package and each top-level module has one row, and no row names a missing room."""
    named = [module for room in rooms() for module in room.modules if module.startswith("sidecar.")]
    assert sorted(named) == sorted(ROOMS)
    beside = [name for room in rooms() for name in room.modules if not name.startswith("sidecar.")]
    assert all((ROOT / name).exists() or (ROOT / f"{name}.py").exists() for name in beside)


def test_each_must_not_has_a_guard() -> None:
    """What the table forbids is enforced by an import contract, or by a test named here."""
    assert {name for name, room in TABLE.items() if room.must_not} == GUARDS.keys()
    imports = [pair for guard in GUARDS.values() if not isinstance(guard, str) for pair in guard]
    assert [pair for pair in imports if not may_not_import(*pair)] == []
    tests = [guard.split("::") for guard in GUARDS.values() if isinstance(guard, str)]
    assert [name for file, name in tests if name not in names_in(ROOT / "tests" / file)] == []


def test_what_may_be_imported_is_not_taken_for_forbidden() -> None:
    """The reading of the contracts above permits imports that no contract forbids."""
    assert not may_not_import("sidecar.cli", "sidecar.app")
    assert not may_not_import("sidecar.channels.vapi", "sidecar.calls")
    assert not may_not_import("sidecar.delivery", "sidecar.letta.port")
    assert may_not_import("sidecar.calls", "sidecar.channels")


def test_every_channel_and_every_letta_is_kept_apart() -> None:
    """A package or module in channels/, and a package in letta/, is in its kind's contract."""
    apart = {
        contract["name"]: contract["modules"] for contract in CONTRACTS if "modules" in contract
    }

    def missing(package: str, contract: str, *, packages_alone: bool) -> set[str]:
        inside = [
            path
            for path in (ROOT / package).iterdir()
            if (path / "__init__.py").exists()
            or (path.suffix == ".py" and path.stem != "__init__" and not packages_alone)
        ]
        return {f"{package.replace('/', '.')}.{path.stem}" for path in inside} - {*apart[contract]}

    assert not missing("sidecar/channels", "Channels do not know each other", packages_alone=False)
    assert not missing(
        "sidecar/letta", "Letta's adapters do not know each other", packages_alone=True
    )


def test_a_module_that_says_it_is_pure_is_held_to_it() -> None:
    """Each module whose docstring says "Pure" is in the contract for pure files."""
    (pure,) = (contract for contract in CONTRACTS if contract["name"].startswith("Pure files"))
    says = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in (ROOT / "sidecar").rglob("*.py")
        if re.search(r"\bPure\b", ast.get_docstring(ast.parse(path.read_text())) or "")
    }
    assert len(says) > 40
    assert says - {*pure["source_modules"]} == set()


def imports_of(path: Path) -> Iterator[tuple[str, bool]]:
    """Each module that a file imports, and whether the import runs when the file is imported."""
    tree = ast.parse(path.read_text())
    late = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        or (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node not in late) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module, node not in late
            yield from ((f"{node.module}.{alias.name}", node not in late) for alias in node.names)


def test_the_worker_to_copy_imports_the_public_path() -> None:
    """`voice_worker.py` imports LiveKit and the worker's public API, and none of the policy."""
    allowed = ["os", "livekit", "sidecar.livekit", "sidecar.worker.livekit"]
    named = [module for module, _ in imports_of(ROOT / "voice_worker.py")]
    assert [module for module in named if not within(module, allowed)] == []


def test_otel_is_imported_inside_functions_alone() -> None:
    """Importing a module never imports OpenTelemetry: only a function that makes traces does."""
    early = [
        path.name
        for path in (ROOT / "sidecar").rglob("*.py")
        if path != ROOT / "sidecar/otel.py"
        for module, at_once in imports_of(path)
        if at_once and within(module, ["sidecar.otel", "opentelemetry"])
    ]
    assert early == []


@pytest.mark.parametrize("name", ["LLM_BASE_URL", "LLM_API_KEY", "OPENAI_API_KEY"])
def test_no_demo_model_where_one_is_configured(name: str) -> None:
    """The demo model is built only if neither a model's URL nor a key is configured."""
    value = "http://llm.example/v1" if name.endswith("URL") else "sk-1"
    assert not isinstance(build_llm(load({name: value})), DemoModel)
    assert isinstance(build_llm(load({})), DemoModel)


def test_one_word_is_one_class() -> None:
    """No two classes that ship have the same name, private and nested ones included."""
    places: dict[str, list[str]] = {}
    for path in [ROOT / "voice_worker.py", *sorted((ROOT / "sidecar").rglob("*.py"))]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(str(path.relative_to(ROOT)))
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def test_a_name_says_what_it_holds() -> None:
    """No file, class or function that ships is named manager, handler, helper or utils."""
    vague = re.compile(r"(?:manager|handler|helper|util)s?$", re.IGNORECASE)
    named = [
        (path.name, name)
        for path in sorted((ROOT / "sidecar").rglob("*.py"))
        for name in (
            path.stem,
            *(
                node.name
                for node in ast.walk(ast.parse(path.read_text()))
                if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            ),
        )
    ]
    assert [one for one in named if vague.search(one[1])] == []
