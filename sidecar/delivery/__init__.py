"""From the journal to Letta: every turn, once and in order."""
