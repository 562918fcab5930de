"""The one place where whatever a malformed image leads to becomes an ImageError.

What is known to go wrong in images is checked where it is read, and said in its own words.
This is for the rest, of which there is always some: libraries that read what strangers
wrote raise whatever they like.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Final

from fuseoverlay.errors import FuseOverlayError, ImageError

#: These say nothing about the image: the store, the machine, the installation.
_NOT_THE_IMAGE: Final = (FuseOverlayError, OSError, ImportError)
_ADVICE: Final = (
    "the image is damaged, or made in a way that is not supported: get it again, or have skopeo or "
    "podman convert it"
)


@contextlib.contextmanager
def malformed(where: object) -> Iterator[None]:
    """Turn what the content of the image at `where` has led to into ImageError.

    An ImageError that names no place gets this one, and one without advice the likeliest.
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
        # All that is read has a bound: what exceeds the memory that there is, is odd enough.
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
