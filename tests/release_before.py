"""The release before this version, from its wheel, with the packages that this one is locked to."""

import atexit
import functools
import tempfile
import zipfile
from pathlib import Path

from tests.sidecar_process import IMPORTED, without_settings
from tests.warm import Warm

(WHEEL,) = Path(__file__).parent.joinpath("releases").glob("*.whl")
VERSION = WHEEL.name.split("-")[1]


@functools.cache
def unpacked() -> Path:
    """Return a directory from which Python imports it."""
    directory = tempfile.TemporaryDirectory(prefix="release-before-")
    atexit.register(directory.cleanup)
    with zipfile.ZipFile(WHEEL) as wheel:
        wheel.extractall(directory.name)
    return Path(directory.name)


@functools.cache
def warm() -> Warm:
    """Return what starts its `sidecar`, and its workers, without their imports."""
    started = Warm(IMPORTED, env=without_settings() | {"PYTHONPATH": str(unpacked())})
    atexit.register(started.close)
    return started
