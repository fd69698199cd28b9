"""Shipped for tests: fakes that pass the suites of the real parts, faults, strategies."""
