"""A small Letta of our own, for a first run without an account and for tests."""
