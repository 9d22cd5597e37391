"""OpenCV, loaded when the first picture needs it: starting the service does not, and must not, depend on it."""

import functools
from types import ModuleType

from app.errors import DependencyMissing


@functools.cache
def load_opencv() -> ModuleType:
    """The module `cv2`; `DependencyMissing` where the machine lacks a library that it is linked with."""
    try:
        import cv2
    except ImportError as error:
        raise DependencyMissing(
            "OpenCV cannot be loaded: a library of the machine is missing. On Debian and Ubuntu, "
            "apt-get install libgl1 libglib2.0-0 brings it."
        ) from error
    return cv2
