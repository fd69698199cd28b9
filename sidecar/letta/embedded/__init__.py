"""A small Letta built into the sidecar, for a first run without an account and for tests."""
