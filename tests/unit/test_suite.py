"""Every test states its promise and its layer; the guard reads source text and runs nothing."""

import ast
import re
from collections.abc import Iterator, Sequence

import pytest

from tests.documents import ROOT

pytestmark = pytest.mark.unit

LAYERS = {"unit", "contract", "e2e", "chaos"}
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def faults_of(source: str, layer: str) -> list[str]:
    """What is wrong with a module's tests in the folder of a layer, as `name: why`, in order."""
    module = ast.parse(source)
    own = [
        node.value
        for node in module.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark"
    ]
    return [
        f"{test.name}: {why}"
        for test, marks in _tests(module.body, own)
        for why in (_fault_of_layer(marks, layer), _fault_of_promise(test))
        if why
    ]


def _tests(
    body: Sequence[ast.stmt], marks: Sequence[ast.expr]
) -> Iterator[tuple[ast.FunctionDef | ast.AsyncFunctionDef, set[str]]]:
    for node in body:
        if isinstance(node, ast.ClassDef) and node.name.startswith("Test"):
            yield from _tests(node.body, [*marks, *node.decorator_list])
        elif isinstance(node, ast.If | ast.Try | ast.With):
            inside = [part for part in ast.iter_child_nodes(node) if isinstance(part, ast.stmt)]
            yield from _tests(inside, marks)
        elif isinstance(node, FUNCTIONS) and node.name.startswith("test"):
            named = (part for mark in (*marks, *node.decorator_list) for part in ast.walk(mark))
            attributes = (part for part in named if isinstance(part, ast.Attribute))
            yield node, {a.attr for a in attributes if ast.unparse(a.value) == "pytest.mark"}


def _fault_of_layer(marks: set[str], layer: str) -> str:
    layers = marks & LAYERS
    if layers != {layer}:
        return f"marked {sorted(layers)} in the folder {layer}"
    if "real_letta" in marks and layer == "unit":
        return "a unit test needs no real Letta"
    return ""


def _fault_of_promise(test: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    promise = ast.get_docstring(test) or ""
    if not promise:
        return "no docstring"
    one = " ".join(promise.split())
    if "\n\n" in promise or re.search(r"[.!?] [A-Z]", one) or not one.endswith("."):
        return "its docstring is not one sentence"
    return ""


def test_every_test_states_one_promise_and_one_layer() -> None:
    """Each test has a docstring of one sentence, and only the mark of its own folder's layer."""
    faults = [
        f"{path.relative_to(ROOT)}::{fault}"
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        for fault in faults_of(path.read_text(), path.parent.name)
    ]
    assert faults == []


def test_no_test_hides_where_pytest_does_not_look() -> None:
    """No function named like a test is in a module where pytest does not look for it."""
    hidden = [
        f"{path.relative_to(ROOT)}::{node.name}"
        for path in sorted((ROOT / "tests").rglob("*.py"))
        if not path.name.startswith("test_")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, FUNCTIONS) and node.name.startswith("test_")
    ]
    assert hidden == []


@pytest.mark.parametrize(
    ("marks", "docstring", "why"),
    [
        ("pytest.mark.unit", "It holds.", ""),
        ("[pytest.mark.unit, pytest.mark.anyio]", "It holds: a, b.", ""),
        ("pytest.mark.e2e", "It holds.", "marked ['e2e'] in the folder unit"),
        ("[pytest.mark.e2e, pytest.mark.unit]", "It holds.", "marked ['e2e', 'unit']"),
        ("pytest.mark.anyio", "It holds.", "marked [] in the folder unit"),
        ("[pytest.mark.unit, pytest.mark.real_letta]", "It holds.", "needs no real Letta"),
        ("pytest.mark.unit", "", "no docstring"),
        ("pytest.mark.unit", "It holds. So does this.", "not one sentence"),
        ("pytest.mark.unit", "It holds", "not one sentence"),
        ("pytest.mark.unit", "It holds.\n\nMore of it.", "not one sentence"),
    ],
)
def test_the_guard_sees_each_fault(marks: str, docstring: str, why: str) -> None:
    """A sound test has no fault, and each fault is named, in a class and under a condition, too."""
    test = f"async def test_it(self):\n    {docstring!r}\n"
    indented = "".join(f"    {line}\n" for line in test.splitlines())
    for body in (test, f"class TestIt:\n{indented}", f"if LINUX:\n{indented}"):
        found = faults_of(f"pytestmark = {marks}\n{body}", "unit")
        assert len(found) == bool(why)
        assert all(fault.startswith("test_it: ") and why in fault for fault in found)
