"""JSON in which no name occurs twice."""


class NamedTwice(ValueError):
    """A name occurs twice in one JSON object: one of its values would be lost."""


def named_once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Return an object's members; for `json.loads(object_pairs_hook=…)`.

    Raises:
        NamedTwice: one would be lost.
    """
    if len({name for name, _ in pairs}) < len(pairs):
        raise NamedTwice
    return dict(pairs)
