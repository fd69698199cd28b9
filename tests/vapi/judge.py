"""Judges bodies by VAPI's own types. Run by the interpreter of `.vapi-types-venv`, never by ours.

Reads from standard input a JSON list of ``{"name", "type", "body"}``, where `type` is
``module:Class`` below `vapi.types`; writes a JSON object of complaints by name.

The SDK's models accept any unknown field, any word in an enumeration, and Python's names of fields
in place of those of the wire; their own deserialiser checks nothing. So a body is validated by
pydantic, and the result is then compared with the input: a word outside an enumeration, and a field
that no type declares by this name, are complaints as well.
"""

import functools
import importlib
import json
import sys
import typing
from collections.abc import Iterable, Iterator

import pydantic
from pydantic.fields import FieldInfo


def judge_of(type_names: Iterable[str]) -> type[pydantic.BaseModel]:
    """Return a model with one field for each of these types, by its name.

    One model: each of VAPI's types reaches some two thousand others, which are built once here. The
    SDK builds each of them when its module is imported.
    """
    base: typing.Any = importlib.import_module("vapi.core.pydantic_utilities")
    base.UniversalBaseModel.model_config["defer_build"] = True
    base.update_forward_refs = _left_for_later
    declared: dict[str, typing.Any] = {}
    for type_name in type_names:
        module, _, name = type_name.partition(":")
        found = getattr(importlib.import_module(f"vapi.types.{module}"), name)
        declared[_field(type_name)] = (found, None)
    return pydantic.create_model("Judge", **declared)


def _left_for_later(*_: object, **__: object) -> None:
    """Do not build a type when its module is imported."""


def _field(type_name: str) -> str:
    return type_name.replace(":", "__")


def complaints(judge: type[pydantic.BaseModel], type_name: str, body: object) -> list[str]:
    """Return what is wrong with a body; empty when nothing is."""
    field = _field(type_name)
    try:
        read = judge.model_validate({field: body})
    except pydantic.ValidationError as error:
        return [f"{'.'.join(map(str, e['loc'][1:]))}: {e['msg']}" for e in error.errors()]
    return list(_walked(getattr(read, field), body, ""))


def _walked(value: object, sent: object, path: str) -> Iterator[str]:
    if isinstance(value, pydantic.BaseModel) and isinstance(sent, dict):
        fields = typing.cast("dict[str, object]", sent)
        declared = _declared(type(value))
        for key, raw in fields.items():
            if key not in declared:
                yield f"{path}{key}: no field of {type(value).__name__}"
                continue
            name, annotation = declared[key]
            words = set(_words(annotation))
            if isinstance(raw, str) and words and raw not in words:
                yield f"{path}{key}: {raw!r} is no word of {sorted(words)[:8]}"
            yield from _walked(getattr(value, name), raw, f"{path}{key}.")
    elif isinstance(value, list) and isinstance(sent, list):
        read, given = typing.cast("list[object]", value), typing.cast("list[object]", sent)
        for number, (one, raw) in enumerate(zip(read, given, strict=True)):
            yield from _walked(one, raw, f"{path}{number}.")


@functools.cache
def _declared(model: type[pydantic.BaseModel]) -> dict[str, tuple[str, object]]:
    """Return the name and the annotation of each field, by its name on the wire.

    `model_fields` alone does not know the alias of a field whose type was imported after its class.
    """
    hints = typing.get_type_hints(model, include_extras=True)
    declared: dict[str, tuple[str, object]] = {}
    for name, field in model.model_fields.items():
        about = (one for one in typing.get_args(hints[name]) if isinstance(one, FieldInfo))
        alias = field.alias or next((one.alias for one in about if one.alias), name)
        declared[alias] = (name, hints[name])
    return declared


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
    judge = judge_of({one["type"] for one in asked})
    found = {one["name"]: complaints(judge, one["type"], one["body"]) for one in asked}
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
