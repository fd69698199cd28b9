"""Fixtures for every test."""

pytest_plugins = ["tests.letta_server.fixtures", "tests.app_server.fixtures"]
