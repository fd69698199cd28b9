"""The link's protocol as JSON Schema, for workers in other languages: made from the frames.

`link.schema.json` beside this file is what `text` returns; `make link-schema` writes it anew.
"""

import inspect
import json
from pathlib import Path
from typing import Any, Final

import msgspec

from sidecar.wire.frames import SUBPROTOCOL, FromSidecar, FromWorker, SpoolFrame

FILE: Final = Path(__file__).with_name("link.schema.json")
_CHOICES: Final = {"from_worker": FromWorker, "from_sidecar": FromSidecar, "spooled": SpoolFrame}
_CLASS: Final = "class:{name}"
_ABOUT: Final = (
    "One frame of the link between a voice worker and the sidecar: a JSON object in a WebSocket"
    " text frame. docs/link-protocol.md says what the two ends promise. A reader ignores a frame"
    " of another type, and a field that is not named here."
)


def link_schema() -> dict[str, Any]:
    """Return the schema (draft 2020-12), which takes any one frame.

    Its definitions are named by the protocol, not by our classes: each frame by its `type`;
    `from_worker` and `from_sidecar`, the frames of each end; `spooled`, a line of a spool file.
    """
    unions, shapes = msgspec.json.schema_components(_CHOICES.values(), ref_template=_CLASS)
    names = {name: _name(name, shape) for name, shape in shapes.items()}
    definitions: dict[str, Any] = {
        # Without OpenAPI's `discriminator`, which strict validators do not know.
        choice: {"anyOf": union["anyOf"]}
        for choice, union in zip(_CHOICES, unions, strict=True)
    }
    for name, shape in shapes.items():
        about = {"title": names[name], "description": inspect.cleandoc(shape["description"])}
        definitions[names[name]] = shape | about
    written = json.dumps(definitions)
    for name, named in names.items():
        written = written.replace(f'"{_CLASS.format(name=name)}"', f'"#/$defs/{named}"')
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:letta-sidecar:{SUBPROTOCOL}",
        "title": SUBPROTOCOL,
        "description": _ABOUT,
        "anyOf": [{"$ref": "#/$defs/from_worker"}, {"$ref": "#/$defs/from_sidecar"}],
        "$defs": json.loads(written),
    }


def _name(name: str, shape: dict[str, Any]) -> str:
    """Return what the protocol calls a frame, or an object in one."""
    kind = shape["properties"].get("type")
    return kind["enum"][0] if kind else name.lower()


def text() -> str:
    """Return the schema as the file holds it."""
    return json.dumps(link_schema(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
