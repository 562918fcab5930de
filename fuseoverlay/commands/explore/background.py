"""Work beside the screen, in threads that nobody waits for at the end."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

from textual.app import App
from textual.message import Message

from fuseoverlay.errors import FuseOverlayError, describe, printable

#: What the threads are called.
NAME = "explore"

T = TypeVar("T")


class Done(Message):
    """Work is done: `then` is to be called."""

    def __init__(self, then: Callable[[], None]) -> None:
        super().__init__()
        self.then = then


def start(
    app: App[None], work: Callable[[], T], then: Callable[[T], None], failed: Callable[[str], None]
) -> None:
    """Have another thread do the work. The app calls `then` with the result when it gets `Done`, or
    `failed` with what is wrong: FuseOverlayError and OSError."""

    def post(message: Done) -> None:
        # The screen may be gone.
        with contextlib.suppress(RuntimeError):
            app.post_message(message)

    def run() -> None:
        try:
            result = work()
        except FuseOverlayError as exc:
            text = str(exc)
            post(Done(lambda: failed(text)))
        except OSError as exc:
            text = f"{printable(exc.filename)}: " if exc.filename else ""
            text += describe(exc)
            post(Done(lambda: failed(text)))
        except BaseException as exc:  # noqa: BLE001 - the app raises it
            error = exc
            post(Done(lambda: _raise(error)))
        else:
            post(Done(lambda: then(result)))

    threading.Thread(target=run, name=NAME, daemon=True).start()


def _raise(error: BaseException) -> None:
    raise error
