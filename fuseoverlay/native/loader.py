"""Loads the extension. Import this before pyfuse3.

The extension puts a filter between /dev/fuse and libfuse (docs/native.md).
"""

from __future__ import annotations

import os
import sys
from types import ModuleType
from typing import Final


def _load() -> tuple[ModuleType | None, str]:
    """The extension or None, and why there is none."""
    if os.environ.get("FUSEOVERLAY_NATIVE") == "0":
        return None, "turned off by FUSEOVERLAY_NATIVE=0"
    flags = sys.getdlopenflags()
    # The dynamic linker must find its `fuse_session_mount` before libfuse's.
    sys.setdlopenflags(os.RTLD_NOW | os.RTLD_GLOBAL)
    try:
        import fuseoverlay.native._native as extension
    except ModuleNotFoundError:
        return None, "not built"
    except ImportError as exc:
        return None, str(exc)
    finally:
        sys.setdlopenflags(flags)
    return extension, ""


#: Whether pyfuse3 was imported first, and so has found libfuse's own `fuse_session_mount`.
is_late: Final = "pyfuse3" in sys.modules
#: The extension or None, and why there is none, for people.
module, absence = _load()
