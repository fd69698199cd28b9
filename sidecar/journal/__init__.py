"""The durable record: turns in order, and what of them Letta has."""

from typing import Final

JOURNAL_FILE: Final = "journal.db"
"""Its name in the data directory."""
