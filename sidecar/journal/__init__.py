"""The durable record: turns in order, and what of them Letta has."""
