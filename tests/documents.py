"""The documents, and the code blocks in them."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")]
_PART = re.compile(r"^#+ ([^\n]*)$|^( *)```([^\n`]*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Fence:
    """A code block.

    Attributes:
        document: Path from the root.
        heading: The last heading before it.
        language: The language that it names; empty if none.
        lines: Its lines without indentation, blank lines and comments; a line that ends in a
            backslash is one with the next.
    """

    document: str
    heading: str
    language: str
    lines: tuple[str, ...]

    @property
    def place(self) -> tuple[str, str]:
        return self.document, self.heading


def fences() -> Iterator[Fence]:
    """Every code block of every document except the command reference, which is generated."""
    for path in sorted(DOCUMENTS):
        document = path.relative_to(ROOT).as_posix()
        if document == "docs/cli.md":
            continue
        heading = ""
        for part in _PART.finditer(path.read_text()):
            if part[1] is not None:
                heading = part[1]
                continue
            joined = re.sub(r"\\\n *", "", part[4])
            lines = [re.sub(r"(^|\s+)#\s.*$", "", line.strip()) for line in joined.splitlines()]
            yield Fence(document, heading, part[3], tuple(line for line in lines if line))


def commands() -> Iterator[Fence]:
    """Every block of shell commands."""
    yield from (fence for fence in fences() if fence.language == "sh")


def spoken() -> Iterator[tuple[str, str]]:
    """Each `sidecar …` in running text, with its document."""
    for path in sorted(DOCUMENTS):
        text = re.sub(r"^ *```.*?^ *```$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
        for said in re.findall(r"`(sidecar [^`]+)`", text):
            yield path.relative_to(ROOT).as_posix(), " ".join(said.split())


def names_in(path: Path) -> set[str]:
    """Names of the tests in a file; tests of a class are listed with and without the class."""
    names: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef):
            named = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
            inside = {item.name for item in node.body if isinstance(item, named)}
            names |= inside | {f"{node.name}::{name}" for name in inside}
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(node.name)
    return names
