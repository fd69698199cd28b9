"""The only rooms that know how a Letta is spoken to."""
