"""Waiting for requests: no task starves, and no request is missed."""

from __future__ import annotations

import os

import trio
import trio.testing

from fuseoverlay.fuse import turns


def test_other_tasks_get_a_turn_while_requests_keep_coming() -> None:
    async def main() -> None:
        low = turns.LowLevel()
        read_end, write_end = os.pipe()
        os.write(write_end, b"always readable")
        others = 0

        async def other() -> None:
            nonlocal others
            while True:
                others += 1
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(other)
            for _ in range(100):
                await low.wait_readable(read_end)
            nursery.cancel_scope.cancel()
        assert 2 <= others <= 20
        os.close(read_end)
        os.close(write_end)

    trio.run(main)


def test_waiting_ends_with_the_next_request() -> None:
    async def main() -> None:
        low = turns.LowLevel()
        read_end, write_end = os.pipe()
        served: list[bytes] = []

        async def serve() -> None:
            while len(served) < 3:
                await low.wait_readable(read_end)
                served.append(os.read(read_end, 1))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            for letter in (b"a", b"b", b"c"):
                await trio.testing.wait_all_tasks_blocked()
                os.write(write_end, letter)
        assert served == [b"a", b"b", b"c"]
        os.close(read_end)
        os.close(write_end)

    trio.run(main)


def test_a_thread_is_waited_for_with_and_without_a_turn() -> None:
    async def main() -> None:
        low = turns.LowLevel()
        requests, ask = os.pipe()
        done = os.eventfd(0)
        os.write(ask, b"first")
        await low.wait_readable(requests)
        os.read(requests, 5)
        os.eventfd_write(done, 1)
        await low.wait_for_thread(done)
        os.eventfd_read(done)
        os.write(ask, b"another")
        served = False

        async def serve() -> None:
            nonlocal served
            await low.wait_readable(requests)
            served = True
            os.eventfd_write(done, 1)

        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(serve)
                await low.wait_for_thread(done)
        assert served
        for fd in (requests, ask, done):
            os.close(fd)

    trio.run(main)


def test_the_lock_lets_one_in_and_hands_over_when_he_leaves() -> None:
    async def main() -> None:
        lock = turns.Lock()
        inside: list[int] = []
        most = 0

        async def worker(number: int) -> None:
            nonlocal most
            async with lock:
                inside.append(number)
                most = max(most, len(inside))
                await trio.lowlevel.checkpoint()
                inside.remove(number)

        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                for number in range(5):
                    nursery.start_soon(worker, number)
                nursery.start_soon(worker, 5)
        assert most == 1
        assert not inside

    trio.run(main)


def test_a_cancelled_worker_gives_the_lock_back() -> None:
    async def main() -> None:
        lock = turns.Lock()
        with trio.move_on_after(0.01):
            async with lock:
                await trio.sleep_forever()
        with trio.fail_after(10):
            async with lock:
                pass

    trio.run(main)
