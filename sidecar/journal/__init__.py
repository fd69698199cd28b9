"""The durable record: turns in order, and which of them Letta has digested."""

from typing import Final

JOURNAL_FILE: Final = "journal.db"
"""Name of the journal's file in the data directory."""
