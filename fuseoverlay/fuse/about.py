"""The versions of what this fuseoverlay runs on, for bug reports."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Iterator

import trio

# Before pyfuse3: the extension has to be found first.
from fuseoverlay.native import extension


def lines() -> Iterator[str]:
    """One version per line, then whether the extension can be loaded."""
    yield _libfuse()
    yield f"trio {trio.__version__}"
    yield f"Python {platform.python_version()}"
    system = os.uname()
    yield f"{system.sysname} {system.release} {system.machine}"
    absence = extension.absence()
    yield f"extension: not in effect ({absence})" if absence else "extension: built and loaded"


def _libfuse() -> str:
    """pyfuse3, and the libfuse that it was linked with."""
    try:
        import pyfuse3
    except ImportError as exc:
        return f"pyfuse3: {exc}"
    # Looked up through pyfuse3, so that the linker searches the libraries that pyfuse3 loaded.
    version = ctypes.CDLL(pyfuse3.__file__).fuse_pkgversion
    version.restype = ctypes.c_char_p
    return f"pyfuse3 {pyfuse3.__version__}, libfuse {version().decode()}"
