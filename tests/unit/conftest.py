"""Fixtures of the unit tests."""

import pytest

from sidecar.testing.fake_sidecar import FakeSidecar


@pytest.fixture
def sidecar() -> FakeSidecar:
    """The far end of a worker's link; `serving()` starts it on a port."""
    return FakeSidecar()
