"""Percentiles, and the table for people."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, cast

Figures: TypeAlias = dict[str, Any]
"""Numbers by name, with the unit in the name; a dict inside is a row."""


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value with at least `share` of all up to it (nearest rank), or NaN."""
    if not values:
        return math.nan
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def latency(values_s: Sequence[float], *, prefix: str = "") -> Figures:
    """Return p50 and p99 in milliseconds, and the number of values."""
    return {
        f"{prefix}p50_ms": milliseconds(percentile(values_s, 0.50)),
        f"{prefix}p99_ms": milliseconds(percentile(values_s, 0.99)),
        "samples": len(values_s),
    }


def milliseconds(seconds: float) -> float:
    """Return milliseconds to the hundredth."""
    return round(seconds * 1000, 2)


def table(key: str, figures: Figures) -> str:
    """Return the figures of one part: a line for each row, a column for each name."""
    rows: dict[str, Mapping[str, object]] = {
        name: cast("Mapping[str, object]", value)
        for name, value in figures.items()
        if isinstance(value, Mapping)
    }
    own = {name: value for name, value in figures.items() if name not in rows}
    lines = [key, "=" * len(key)]
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    if rows:
        cells = [["", *columns]]
        cells += [[name, *(_shown(row.get(c)) for c in columns)] for name, row in rows.items()]
        widths = [max(len(line[n]) for line in cells) for n in range(len(columns) + 1)]
        for line in cells:
            rest = [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
            lines.append("  ".join([line[0].ljust(widths[0]), *rest]))
    if own:
        lines.append("  ".join(f"{name} {_shown(value)}" for name, value in own.items()))
    return "\n".join(lines)


def _shown(value: object) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int | float) else str(value)
