"""Letta Cloud and the classic server, by letta-client."""
