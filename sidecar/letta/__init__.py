"""The only package that knows how to talk to a Letta."""
