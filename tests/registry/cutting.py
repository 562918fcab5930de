"""A proxy between a client and a real registry, which breaks connections."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
from collections.abc import Iterator


class Cutting:
    """Passes bytes on. The n-th connection that sends a request of the method `method` is broken
    after the n-th of `budgets` bytes from the client; None, and all later ones, live."""

    def __init__(self, target: str, method: bytes, budgets: list[int]) -> None:
        host, port = target.split(":")
        self._target = (host, int(port))
        self._method = method
        self._budgets = budgets
        self.broken = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.host = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def close(self) -> None:
        """End all connections."""
        self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                thread = threading.Thread(target=self._serve, args=(client,))
                self._threads.append(thread)
                thread.start()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.create_connection(self._target) as server, contextlib.suppress(OSError):
            self._pass(client, server)

    def _pass(self, client: socket.socket, server: socket.socket) -> None:
        left: int | None = None
        with selectors.DefaultSelector() as ready:
            ready.register(client, selectors.EVENT_READ)
            ready.register(server, selectors.EVENT_READ)
            while True:
                for key, _ in ready.select(20):
                    data = key.fileobj.recv(1 << 16)  # type: ignore[union-attr]
                    if not data:
                        return
                    if key.fileobj is server:
                        client.sendall(data)
                        continue
                    if left is None and data.startswith(self._method) and self._budgets:
                        left = self._budgets.pop(0)
                    server.sendall(data if left is None else data[:left])
                    if left is not None:
                        left -= len(data)
                        if left <= 0:
                            self.broken += 1
                            return


@contextlib.contextmanager
def cutting(target: str, method: bytes, *budgets: int) -> Iterator[Cutting]:
    """A running proxy."""
    proxy = Cutting(target, method, [*budgets])
    try:
        yield proxy
    finally:
        proxy.close()
