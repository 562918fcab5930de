"""What this fuseoverlay runs on, for reports of bugs."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Iterator

import trio

# Before pyfuse3: the extension has to be found first.
from fuseoverlay.native import extension


def lines() -> Iterator[str]:
    """Versions of what we are made of, one a line, and whether the extension can be loaded."""
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
    # Asked of pyfuse3, the linker looks in the libraries that it has brought.
    version = ctypes.CDLL(pyfuse3.__file__).fuse_pkgversion
    version.restype = ctypes.c_char_p
    return f"pyfuse3 {pyfuse3.__version__}, libfuse {version().decode()}"
