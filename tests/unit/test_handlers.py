"""Every request handler is inside the error boundary."""

from __future__ import annotations

import errno
import inspect
import logging
from typing import Any
from unittest import mock

import pyfuse3
import pytest

from fuseoverlay.fuse import wire
from fuseoverlay.fuse.extended import ExtendedOperations
from fuseoverlay.fuse.operations import Operations

#: Handlers that touch nothing and so cannot fail.
QUIET = {"release", "releasedir"}
#: Requests that the kernel is told not to send again.
REFUSED = {"flush", "poll"}
#: Methods that pyfuse3 calls for no request, and those for requests that it does not know.
CALLBACKS = {"init", "stacktrace", "serve", "stop", "write_back"}


def _own_handlers() -> dict[str, Any]:
    """Our own public methods, without the callbacks."""
    return {
        name: function
        for name, function in {**vars(Operations), **vars(ExtendedOperations)}.items()
        if inspect.isfunction(function) and not name.startswith("_") and name not in CALLBACKS
    }


def _requests() -> set[str]:
    """Everything that pyfuse3 may call for a request."""
    return {
        name
        for name, function in vars(pyfuse3.Operations).items()
        if inspect.isfunction(function) and not name.startswith("_") and name not in CALLBACKS
    }


class _Broken:
    """An overlay whose every part fails in the same unexpected way."""

    def __init__(self, exception: BaseException) -> None:
        self.__dict__["exception"] = exception

    def __getattr__(self, name: str) -> Any:
        raise self.__dict__["exception"]


def _operations(exception: BaseException) -> ExtendedOperations:
    operations = ExtendedOperations.__new__(ExtendedOperations)
    operations._ov = _Broken(exception)  # type: ignore[assignment]
    operations._timeout = 1.0
    return operations


async def _call(operations: Operations, name: str) -> Any:
    function = getattr(operations, name)
    values: dict[str, Any] = {}
    for parameter in inspect.signature(function).parameters:
        if parameter == "ctx":
            values[parameter] = mock.Mock(uid=0, gid=0, pid=1, umask=0)
        elif parameter == "request":
            values[parameter] = wire.Request(0, 1, 2, 0, 0, 1)
        elif parameter == "body":
            values[parameter] = bytes(64)
        elif parameter in ("attr", "fields", "token"):
            values[parameter] = mock.Mock()
        elif parameter == "inode_list":
            values[parameter] = [(2, 1)]
        elif "name" in parameter or parameter in ("buf", "value", "target"):
            values[parameter] = b"name"
        else:
            values[parameter] = 2
    return await function(**values)


def test_there_are_handlers() -> None:
    assert {"lookup", "getattr", "read", "write", "create", "rename"} <= set(_own_handlers())
    extended = {served.function.__name__ for served in ExtendedOperations.handlers.values()}
    assert set(_own_handlers()) == extended | (set(_own_handlers()) & _requests())


@pytest.mark.parametrize("name", sorted(set(_own_handlers()) - QUIET - REFUSED - {"access"}))
@pytest.mark.parametrize("exception", [RuntimeError("broken"), KeyError(1), AssertionError()])
async def test_bug_becomes_eio_and_is_logged(
    name: str, exception: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    operations = _operations(exception)
    with caplog.at_level(logging.ERROR), pytest.raises(pyfuse3.FUSEError) as caught:
        await _call(operations, name)
    assert caught.value.errno == errno.EIO
    assert f"bug in {name}" in caplog.text
    assert type(exception).__name__ in caplog.text, "with a traceback"


@pytest.mark.parametrize("name", sorted(set(_own_handlers()) - QUIET - REFUSED - {"access"}))
async def test_oserror_becomes_its_errno(name: str, caplog: pytest.LogCaptureFixture) -> None:
    operations = _operations(OSError(errno.EDQUOT, "full"))
    with caplog.at_level(logging.INFO), pytest.raises(pyfuse3.FUSEError) as caught:
        await _call(operations, name)
    assert caught.value.errno == errno.EDQUOT
    assert caplog.text == "", "an answer, not a bug"


@pytest.mark.parametrize("name", sorted(_own_handlers()))
def test_handler_is_wrapped(name: str) -> None:
    function = _own_handlers()[name]
    assert getattr(function, "is_bounded", False), "add @handler"
    assert inspect.iscoroutinefunction(function)
    assert function.__name__ == name


@pytest.mark.parametrize("name", sorted(QUIET))
async def test_quiet_handlers_answer(name: str) -> None:
    assert await _call(_operations(RuntimeError()), name) is None


@pytest.mark.parametrize("name", sorted(REFUSED))
async def test_unwanted_requests_are_declined(name: str) -> None:
    with pytest.raises(pyfuse3.FUSEError) as caught:
        await _call(_operations(RuntimeError()), name)
    assert caught.value.errno == errno.ENOSYS


async def test_what_is_not_implemented_says_so() -> None:
    """pyfuse3 itself answers requests that Operations does not define."""
    for name in sorted(_requests() - set(_own_handlers())):
        with pytest.raises(pyfuse3.FUSEError) as caught:
            await _call(_operations(RuntimeError()), name)
        assert caught.value.errno in (errno.ENOSYS, errno.EOPNOTSUPP), name
