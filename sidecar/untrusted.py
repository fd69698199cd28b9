"""JSON from outside: from callers' platforms, workers, pages, models, and what stands in their place."""

from typing import Final

import msgspec

MALFORMED: Final = (msgspec.DecodeError, ValueError, RecursionError)
"""What reading it raises, with msgspec or with json: no JSON, no UTF-8, a wrong type, nested too deep.

Each reader of such JSON catches all of these: one alone lets a hostile body through as a fault.
"""
