"""What is done in one place is done in no second one; the guard reads source text."""

import ast
from collections.abc import Callable, Iterator
from functools import cache

import pytest

from tests.documents import ROOT

pytestmark = pytest.mark.unit

STAND_INS = "sidecar/testing/"


def compares_a_secret(node: ast.AST) -> bool:
    """`compare_digest`, under whichever module."""
    return isinstance(node, ast.Attribute | ast.Name) and named(node) == "compare_digest"


def reads_a_bearer_token(node: ast.AST) -> bool:
    """The scheme's name as a text of its own; a header that is sent is an f-string."""
    return text_of(node).strip().lower() == "bearer"


def reads_or_writes_events(node: ast.AST) -> bool:
    """The field or the last event of a chat stream."""
    if isinstance(node, ast.JoinedStr):
        return any(reads_or_writes_events(part) for part in node.values)
    return text_of(node).startswith("data:") or "[DONE]" in text_of(node)


def reads_a_variable(node: ast.AST) -> bool:
    """One variable of the environment, not the environment handed on whole."""
    match node:
        case ast.Subscript(value=of, ctx=ast.Load()):
            return ast.unparse(of) in {"environ", "os.environ"}
        case ast.Attribute(value=of, attr="get" | "pop" | "setdefault"):
            return ast.unparse(of) in {"environ", "os.environ"}
        case ast.Attribute(attr="getenv"):
            return True
        case _:
            return False


def builds_forgetting(node: ast.AST) -> bool:
    """A `Forgetting` made of its parts."""
    return isinstance(node, ast.Call) and named(node.func) == "Forgetting"


def opens_the_journal(node: ast.AST) -> bool:
    """The SQLite journal opened by its path."""
    return isinstance(node, ast.Attribute) and ast.unparse(node) == "SqliteJournal.open"


def named(node: ast.AST) -> str:
    return getattr(node, "attr", getattr(node, "id", ""))


def text_of(node: ast.AST) -> str:
    if not isinstance(node, ast.Constant):
        return ""
    value = node.value
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


ONE_OF_EACH: list[tuple[Callable[[ast.AST], bool], set[str]]] = [
    # A token, the tenants' tokens by their digests, and VAPI's signatures.
    (
        compares_a_secret,
        {"sidecar/bearer.py", "sidecar/access/bearer.py", "sidecar/access/door.py"},
    ),
    (reads_a_bearer_token, {"sidecar/bearer.py"}),
    (
        reads_or_writes_events,
        {
            "sidecar/llm/reader.py",
            "sidecar/llm/writer.py",
            "sidecar/llm/passing.py",  # which frames need no reading
            "sidecar/letta/rest/requests.py",  # Letta's own events, which are no chat
            "sidecar/channels/vapi/passed.py",  # a `data:` URL
        },
    ),
    (
        reads_a_variable,
        {
            "sidecar/environment.py",
            "sidecar/app/loop.py",  # sets libuv's
            "sidecar/letta/app_server/process.py",  # passes PATH on to a child
            "voice_worker.py",  # to copy: it imports the public path alone
        },
    ),
    (builds_forgetting, {"sidecar/app/from_settings.py"}),
    (opens_the_journal, {"sidecar/app/journal.py"}),
]


def sources() -> Iterator[tuple[str, str]]:
    """Each file of the product with its path from the root."""
    for path in [ROOT / "voice_worker.py", *sorted((ROOT / "sidecar").rglob("*.py"))]:
        name = path.relative_to(ROOT).as_posix()
        if not name.startswith(STAND_INS):
            yield name, path.read_text()


def does(what: Callable[[ast.AST], bool], source: str) -> bool:
    """Whether a file's code does it."""
    return any(map(what, code_of(source)))


@cache
def code_of(source: str) -> list[ast.AST]:
    """Return what a file is made of, without docstrings and the texts in f-strings."""
    tree = ast.parse(source)
    said = {
        part
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr | ast.Expr)
        for part in ast.iter_child_nodes(node)
        if isinstance(part, ast.Constant)
    }
    return [node for node in ast.walk(tree) if node not in said]


@pytest.mark.parametrize(
    ("what", "places"), ONE_OF_EACH, ids=lambda one: getattr(one, "__name__", "")
)
def test_it_is_done_where_it_belongs_and_nowhere_else(
    what: Callable[[ast.AST], bool], places: set[str]
) -> None:
    """Exactly the files listed above do it."""
    assert {name for name, source in sources() if does(what, source)} == places


@pytest.mark.parametrize(
    ("what", "second"),
    [
        (
            compares_a_secret,
            "from hmac import compare_digest as same\nsecrets.compare_digest(a, b)",
        ),
        (reads_a_bearer_token, "token = header.removeprefix('Bearer ')"),
        (reads_a_bearer_token, "if scheme.lower() == b'bearer': ..."),
        (reads_or_writes_events, "if line.startswith('data:'): ..."),
        (reads_or_writes_events, "await send(b'data: [DONE]\\n\\n')"),
        (reads_or_writes_events, "await send(f'data: {frame}\\n\\n')"),
        (reads_a_variable, "os.environ.get('SIDECAR_X')"),
        (reads_a_variable, "os.environ['SIDECAR_X']"),
        (reads_a_variable, "os.getenv('SIDECAR_X')"),
        (builds_forgetting, "forget.Forgetting(journal)"),
        (opens_the_journal, "async with SqliteJournal.open(path) as journal: ..."),
    ],
)
def test_a_second_one_is_seen(what: Callable[[ast.AST], bool], second: str) -> None:
    """The guard recognizes a second one in each of its usual forms."""
    assert does(what, second)


@pytest.mark.parametrize(
    ("what", "other"),
    [
        (reads_a_bearer_token, "headers = {'Authorization': f'Bearer {token}'}"),
        (reads_or_writes_events, '"""data: of a caller."""'),
        (reads_a_variable, "load(os.environ)"),
    ],
)
def test_what_is_no_second_one_is_left_alone(what: Callable[[ast.AST], bool], other: str) -> None:
    """A token that is sent, a docstring and a whole environment count for nothing."""
    assert not does(what, other)
