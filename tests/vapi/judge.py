"""Judges bodies by VAPI's own types. Run by the interpreter of `.vapi-types-venv`, never by ours.

Reads from standard input a JSON list of ``{"name", "type", "body"}``, where `type` is
``module:Class`` below `vapi.types`; writes a JSON object of complaints by name.

The SDK's models accept any unknown field, any word in an enumeration, and Python's names of fields
in place of those of the wire; their own deserialiser checks nothing. So a body is validated by
pydantic, and the result is then compared with the input: a word outside an enumeration, and a field
that no type declares by this name, are complaints as well.
"""

import importlib
import json
import sys
import typing
from collections.abc import Iterator

import pydantic


def complaints(type_name: str, body: object) -> list[str]:
    """Return what is wrong with a body; empty when nothing is."""
    module, _, name = type_name.partition(":")
    declared = getattr(importlib.import_module(f"vapi.types.{module}"), name)
    try:
        read = pydantic.TypeAdapter(declared).validate_python(body)
    except pydantic.ValidationError as error:
        return [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
    return list(_walked(read, body, ""))


def _walked(value: object, sent: object, path: str) -> Iterator[str]:
    if isinstance(value, pydantic.BaseModel) and isinstance(sent, dict):
        fields = typing.cast("dict[str, object]", sent)
        declared = {f.alias or name: (name, f) for name, f in type(value).model_fields.items()}
        for key, raw in fields.items():
            if key not in declared:
                yield f"{path}{key}: no field of {type(value).__name__}"
                continue
            name, field = declared[key]
            words = set(_words(field.annotation))
            if isinstance(raw, str) and words and raw not in words:
                yield f"{path}{key}: {raw!r} is no word of {sorted(words)[:8]}"
            yield from _walked(getattr(value, name), raw, f"{path}{key}.")
    elif isinstance(value, list) and isinstance(sent, list):
        read, given = typing.cast("list[object]", value), typing.cast("list[object]", sent)
        for number, (one, raw) in enumerate(zip(read, given, strict=True)):
            yield from _walked(one, raw, f"{path}{number}.")


def _words(annotation: object) -> Iterator[str]:
    """Return the words of an enumeration, which the SDK writes as `Literal[…] | Any`."""
    if typing.get_origin(annotation) is typing.Literal:
        yield from (word for word in typing.get_args(annotation) if isinstance(word, str))
    elif typing.get_origin(annotation) in {typing.Union, typing.Annotated}:
        inner = typing.get_args(annotation)
        if str not in inner:
            for one in inner:
                yield from _words(one)


def main() -> None:
    """Judge the bodies from standard input."""
    asked = json.load(sys.stdin)
    json.dump({one["name"]: complaints(one["type"], one["body"]) for one in asked}, sys.stdout)


if __name__ == "__main__":
    main()
