"""The error boundary of the handlers, and the log of their requests."""

from __future__ import annotations

import errno
import functools
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

# Before pyfuse3: the extension has to be found first.
from fuseoverlay.native import extension  # noqa: F401  # isort: skip

import pyfuse3
from pyfuse3 import EntryAttributes, FUSEError, RequestContext, StatvfsData

from fuseoverlay.fuse import requestlog
from fuseoverlay.fuse.wire import Request

log = logging.getLogger("fuseoverlay")


class Counting(Protocol):
    """A class that handlers are methods of."""

    #: How many handlers are at work.
    under_way: int


S = TypeVar("S", bound=Counting)
P = ParamSpec("P")
R = TypeVar("R")
Handler = Callable[Concatenate[S, P], Coroutine[Any, Any, R]]


def handler(function: Handler[S, P, R]) -> Handler[S, P, R]:
    """The error boundary: let out nothing but FUSEError, and log requests at level DEBUG."""
    name = function.__name__

    @functools.wraps(function)
    async def bounded(self: S, *args: P.args, **kwargs: P.kwargs) -> R:
        self.under_way += 1
        try:
            answer = await function(self, *args, **kwargs)
        except FUSEError as exc:
            code = exc.errno
        except OSError as exc:
            code = exc.errno or errno.EIO
        except Exception:
            log.exception("bug in %s%s", name, _readable(args))
            code = errno.EIO
        else:
            if log.isEnabledFor(logging.DEBUG):
                log.debug("%s%s = %s", name, _readable(args), _answer(answer))
            return answer
        finally:
            self.under_way -= 1
        if log.isEnabledFor(logging.DEBUG):
            log.debug("%s%s = %s", name, _readable(args), errno.errorcode.get(code, code))
        raise FUSEError(code)

    bounded.is_bounded = True  # type: ignore[attr-defined]
    return bounded  # type: ignore[return-value]  # the kinds of self are the same


def _readable(args: tuple[Any, ...]) -> str:
    return "(" + ", ".join(_argument(arg) for arg in args) + ")"


def _argument(arg: object) -> str:
    if isinstance(arg, bytes | memoryview):
        return f"{len(arg)} bytes" if len(arg) > 64 else repr(bytes(arg))
    if isinstance(arg, Request):
        return f"{arg.ino}, uid={arg.uid} gid={arg.gid} pid={arg.pid}"
    if isinstance(arg, RequestContext):
        return f"uid={arg.uid} gid={arg.gid} pid={arg.pid}"
    if isinstance(arg, EntryAttributes):
        return f"ino={arg.st_ino} mode={arg.st_mode:o} size={arg.st_size}"
    if isinstance(arg, pyfuse3.FileInfo):
        return f"fh={arg.fh}"
    if isinstance(arg, pyfuse3.SetattrFields | pyfuse3.ReaddirToken | StatvfsData):
        return type(arg).__name__
    return repr(arg)


def _answer(answer: object) -> str:
    if isinstance(answer, tuple):
        return _readable(answer)
    if isinstance(answer, EntryAttributes) and not answer.st_ino:
        return requestlog.ABSENT
    return _argument(answer) if answer is not None else "ok"
