"""The one place where any exception caused by a malformed image becomes an ImageError.

Known faults of images are checked where they are read and reported in words of their own. This is
for the rest, of which there is always some: libraries that parse untrusted data raise all kinds of
exceptions.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Final

from fuseoverlay.errors import FuseOverlayError, ImageError

#: These do not blame the image, but the store, the machine or the installation.
_NOT_THE_IMAGE: Final = (FuseOverlayError, OSError, ImportError)
_ADVICE: Final = (
    "the image is damaged, or made in a way that is not supported: get it again, or have skopeo or "
    "podman convert it"
)


@contextlib.contextmanager
def malformed(where: object) -> Iterator[None]:
    """Turn exceptions caused by the content of the image at `where` into ImageError.

    An ImageError without a place gets this one; one without a hint gets the likeliest.
    """
    try:
        yield
    except ImageError as exc:
        if exc.where is None:
            exc.where = where
        if exc.hint is None:
            exc.hint = _ADVICE
        raise
    except _NOT_THE_IMAGE:
        raise
    except MemoryError as exc:
        # Everything that is read is bounded, so what exceeds the memory is unusual enough to
        # report.
        raise ImageError(
            "there is not enough memory to read this image",
            where=where,
            hint="let it have more, or use another image",
        ) from exc
    except Exception as exc:
        raise ImageError(
            f"malformed image: {type(exc).__name__}: {str(exc)[:200]}",
            where=where,
            hint="if other programs can read it, please report this",
        ) from exc
