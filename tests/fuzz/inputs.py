"""Inputs that nobody sends on purpose: a wrong type, size or nesting in every field.

Everything comes from a seed. Documents are JSON values in which a leaf may be a `Raw`, JSON text
that Python could not write: an integer of 5,000 digits, half a character, a thousand brackets.
"""

import itertools
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

Path = tuple[str | int, ...]


@dataclass(frozen=True)
class Raw:
    """JSON text: `before`, then `unit` and `closing` each `times` times, then `after`."""

    unit: str
    times: int = 1
    closing: str = ""
    before: str = ""
    after: str = ""

    @property
    def text(self) -> str:
        return self.before + self.unit * self.times + self.closing * self.times + self.after

    def smaller(self) -> "Iterator[Raw]":
        for times in (1, self.times // 10, self.times // 2, self.times - 1):
            if 0 < times < self.times:
                yield replace(self, times=times)


CONTAINERS: list[object] = json.loads(
    '[[], {}, [[]], [{}], [null], {"a": {}}, {"": null}, ["a", 1, null, {}, []]]'
)
TYPES: tuple[object, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1.5,
    "",
    "x",
    *CONTAINERS,
)
SIZES: tuple[object, ...] = (
    Raw("9223372036854775807"),
    Raw("9223372036854775808"),
    Raw("-9223372036854775809"),
    Raw("18446744073709551616"),
    Raw("9", 400),
    Raw("9", 5_000),
    Raw("1e308"),
    Raw("-1e308"),
    Raw("1e999"),
    Raw("-1e999"),
    Raw("1e-400"),
    Raw("NaN"),
    Raw("Infinity"),
    Raw("a", 300, before='"', after='"'),
    Raw("a", 70_000, before='"', after='"'),
    Raw("0,", 3_000, before="[", after="0]"),
    Raw('{"role":"user","content":"a"},', 300, before="[", after="{}]"),
)
TEXTS: tuple[object, ...] = (
    " ",
    "\x00",
    "\u202e\u2066\x85\x9b",
    "\n\r\t",
    "../../etc/passwd",
    "+",
    "NaN",
    "1e999",
    "<memory_blocks>",
    Raw(r'"\ud800"'),
    Raw(r'"\udc00\ud800"'),
    Raw(r'"\ud83d\ude00"'),
    Raw(r'"\u0000"'),
    '{"query": {"a": [1]}}',
    '{"query": ["dog"]}',
    "[]",
    '"',
)
NESTINGS: tuple[object, ...] = (
    Raw("[", 60, "]"),
    Raw("[", 900, "]"),
    Raw("[", 1_100, "]"),
    Raw("[", 30_000, "]"),
    Raw('{"a":[', 60, "]}"),
    Raw('{"a":[', 480, "]}"),
    Raw('{"a":[', 600, "]}"),
    Raw('{"content":[', 300, "]}"),
    Raw('[{"text":[', 300, "]}]"),
    Raw("[", 900, "]", before='"', after='"'),
    Raw("[", 2_000, "]", before='"', after='"'),
    Raw(r"{\"query\":[", 600, "]}", before='"', after='"'),
)
HOSTILE: tuple[object, ...] = (*TYPES, *SIZES, *TEXTS, *NESTINGS)
_RARELY = 0.05
_NONE = object()


def text_of(document: object) -> str:
    """Write a document as JSON text."""
    match document:
        case Raw():
            return document.text
        case dict():
            fields = cast("Mapping[str, object]", document).items()
            return "{" + ",".join(f"{json.dumps(k)}:{text_of(v)}" for k, v in fields) + "}"
        case list() | tuple():
            return "[" + ",".join(map(text_of, cast("Sequence[object]", document))) + "]"
        case _:
            return json.dumps(document)


def paths_of(document: object, before: Path = ()) -> Iterator[Path]:
    """Yield the path of every value in a document, its own first."""
    yield before
    if isinstance(document, Mapping):
        for name, value in cast("Mapping[str, object]", document).items():
            yield from paths_of(value, (*before, name))
    elif isinstance(document, Sequence) and not isinstance(document, str):
        for place, value in enumerate(cast("Sequence[object]", document)):
            yield from paths_of(value, (*before, place))


def put(document: Any, path: Path, value: object) -> Any:
    """Return the document with another value at a path."""
    return changed(document, path, lambda _: value)


def changed(document: Any, path: Path, change: Callable[[Any], object]) -> Any:
    """Return the document with the value at a path changed."""
    if not path:
        return change(document)
    name, *rest = path
    if isinstance(document, Mapping):
        fields = cast("Mapping[str | int, object]", document)
        return {**fields, name: changed(fields.get(name), tuple(rest), change)}
    return [
        changed(one, tuple(rest), change) if place == name else one
        for place, one in enumerate(document)
    ]


def without(document: Any, path: Path) -> Any:
    """Return the document without the value at a path, which is not empty."""

    def rest(parent: Any) -> object:
        if isinstance(parent, Mapping):
            fields = cast("Mapping[str | int, object]", parent)
            return {name: value for name, value in fields.items() if name != path[-1]}
        return [value for place, value in enumerate(parent) if place != path[-1]]

    return changed(document, path[:-1], rest)


def cases(
    documents: Mapping[str, object], seed: int, *, also: Sequence[str] = ()
) -> Iterator[tuple[str, object]]:
    """Yield (name of a document, the document with something wrong in it), without end.

    One round goes over every field and gives each the next of its hostile values. A field that
    several documents share at the same place is changed in another of them each round. Then come
    stranger changes: several at once, fields left out, doubled, or from elsewhere.

    Args:
        documents: What is meant to be sent, by name.
        seed: The same seed yields the same cases.
        also: Fields that are read though no document names them.
    """
    dice = random.Random(seed)
    names_at: dict[tuple[Path, str], list[str]] = {}
    for name, document in documents.items():
        for path in paths_of(document):
            value = at(document, path)
            names_at.setdefault((path, text_of(value)), []).append(name)
            for extra in also if isinstance(value, Mapping) else ():
                if extra not in value:
                    names_at.setdefault(((*path, extra), ""), []).append(name)
    fields = [(path, names) for (path, _), names in names_at.items()]
    known = [field for field in fields if at(documents[field[1][0]], field[0]) is not None]
    values = [_mixed(dice) for _ in fields]
    for number in itertools.count():
        some = [
            field for field in enumerate(fields) if field[1] in known or dice.random() < _RARELY
        ]
        for place, (path, names) in dice.sample(some, len(some)):
            name = names[number % len(names)]
            yield name, put(documents[name], path, values[place][number % len(values[place])])
        for name in documents:
            for _ in range(8):
                yield name, _stranger(documents, name, dice)


def _mixed(dice: random.Random) -> list[object]:
    """Return every hostile value, one of each kind in turn."""
    kinds = [dice.sample(kind, len(kind)) for kind in (TYPES, NESTINGS, SIZES, TEXTS)]
    turns = itertools.chain.from_iterable(itertools.zip_longest(*kinds, fillvalue=_NONE))
    return [value for value in turns if value is not _NONE]


def _stranger(documents: Mapping[str, object], name: str, dice: random.Random) -> object:
    document = documents[name]
    for _ in range(dice.randint(1, 4)):
        path = dice.choice(list(paths_of(document)))
        match dice.randrange(6):
            case 0 if path:
                document = without(document, path)
            case 1:
                document = changed(document, path, lambda value: [value])
            case 2:
                document = changed(document, path, lambda value: {"a": value})
            case 3:
                times = dice.choice((2, 50))
                document = changed(document, path, partial(_repeated, times=times))
            case 4:
                other = documents[dice.choice(list(documents))]
                document = put(document, path, at(other, dice.choice(list(paths_of(other)))))
            case _:
                document = put(document, path, dice.choice(HOSTILE))
    return document


def _repeated(value: Any, *, times: int) -> list[Any]:
    return (cast("list[Any]", value) if isinstance(value, list) else [value]) * times


def at(document: Any, path: Path) -> Any:
    """Return the value at a path; None where there is none."""
    for name in path:
        try:
            document = document[name]
        except (KeyError, IndexError, TypeError):
            return None
    return document


def minimised(document: object, fails: Callable[[object], bool], *, tries: int = 400) -> object:
    """Return a smaller document that still fails, with fields left out and simpler values."""
    left = tries

    def still(candidate: object) -> bool:
        nonlocal left
        left -= 1
        return left > 0 and fails(candidate)

    smaller = True
    while smaller:
        smaller = False
        for path in sorted(paths_of(document), key=len):
            if path and at(document, path) is None and path not in set(paths_of(document)):
                continue
            for candidate in _simpler(document, path):
                if len(text_of(candidate)) < len(text_of(document)) and still(candidate):
                    document, smaller = candidate, True
                    break
    return document


def _simpler(document: object, path: Path) -> Iterator[object]:
    value: object = at(document, path)
    if path:
        yield without(document, path)
    if isinstance(value, Raw):
        for raw in value.smaller():
            yield put(document, path, raw)
    elif isinstance(value, dict | list | str) and value:
        shorter = cast("dict[str, object] | list[object] | str", value)
        yield put(document, path, type(shorter)())
        if isinstance(shorter, list):
            yield put(document, path, shorter[: len(shorter) // 2])
