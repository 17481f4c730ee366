"""`sandd.aio`: cancelling goes across and waits for what it kills; nothing is lost by it, and nothing left."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING

import anyio
import anyio.abc
import pytest
from aio_world import aio_threads, aio_worker, read_until, until
from daemons import running_daemon
from process_tools import until_sync
from standing_daemon import LIMIT, StandingDaemon, standing_daemon

import sandd
from sandd._core.aio import blocks, calls

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator
    from pathlib import Path

    from conftest import Marker

    from sandd import aio
    from sandd._core.promise import Promise

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="these commands are POSIX shell")

TREE = "trap '' TERM; setsid sleep 60 & (sleep 60; :) & echo planted; sleep 60; :"
"""A tree that minds no SIGTERM, one of it in a session of its own."""


@pytest.fixture(scope="module")
def daemon(_own_temporary_directory: None) -> Iterator[StandingDaemon]:
    """The daemon that the tests of this module share."""
    with standing_daemon() as daemon:
        yield daemon


# ---- on any backend -----------------------------------------------------------------------------


@pytest.mark.anyio
async def test_cancelling_waits_until_the_tree_is_gone(
    daemon: StandingDaemon, marker: Marker
) -> None:
    """As in trio: when the scope is left, nothing of it runs any more."""
    async with aio_worker(daemon) as worker:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(run_tree, worker, marker)
                await until(lambda: len(marker.processes()) > 3)
                scope.cancel()
        assert not marker.processes()
        assert await worker.jobs() == []


async def run_tree(worker: aio.Daemon, marker: Marker) -> None:
    """Run it to its end, which is far away."""
    await worker.run(TREE, env=dict([marker]), kill_grace=0.2)


@pytest.mark.anyio
async def test_a_call_that_is_cancelled_before_it_begins_does_nothing(
    daemon: StandingDaemon, tmp_path: Path
) -> None:
    """Nothing is sent; but what closes something closes it."""
    async with aio_worker(daemon) as worker, worker.open_process("cat; echo end") as process:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await worker.run(f"touch {tmp_path}/ran")
        with anyio.CancelScope() as scope:
            scope.cancel()
            async with worker.open_process(f"touch {tmp_path}/ran"):
                pytest.fail("it was opened")
        with anyio.CancelScope() as scope:
            scope.cancel()
            await process.stdin.aclose()
        assert await process.stdout.receive() == b"end\n"
        assert await worker.path(tmp_path).iterdir() == []


@pytest.mark.anyio
async def test_an_exception_in_a_block_ends_its_tree(
    daemon: StandingDaemon, marker: Marker
) -> None:
    """It comes out as itself, when the tree is gone."""

    async def fail(error: BaseException) -> None:
        async with worker.open_process(TREE, env=dict([marker]), kill_grace=0.1) as process:
            await read_until(process.stdout, b"planted\n")
            raise error

    async with aio_worker(daemon) as worker:
        for error in (KeyError("mine"), asyncio.CancelledError(), SystemExit(3)):
            with pytest.raises(type(error)) as caught:
                await fail(error)
            assert caught.value is error
            assert not marker.processes()
        with anyio.move_on_after(0) as scope:
            scope.deadline = anyio.current_time() + 0.5
            await fail_never(worker, marker)
        assert scope.cancelled_caught
        assert not marker.processes()


async def fail_never(worker: aio.Daemon, marker: Marker) -> None:
    """Hold the tree until cancelled."""
    async with worker.open_process(TREE, env=dict([marker]), kill_grace=0.1):
        await anyio.sleep_forever()


@pytest.mark.anyio
async def test_cancelled_receiving_loses_nothing(daemon: StandingDaemon) -> None:
    """Wherever the cancellation meets the bytes: each of them comes once, and in order."""
    script = "i=0; while [ $i -lt 1500 ]; do echo $i; i=$((i + 1)); done"
    received = b""
    cancelled = attempts = 0
    async with aio_worker(daemon) as worker, worker.open_process(script) as process:
        while True:
            attempts += 1
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as tasks:
                    if attempts % 2:  # the others are let be: a busy machine would get nowhere
                        tasks.start_soon(cancel_soon, scope, attempts % 7)
                    try:
                        received += await process.stdout.receive(16)
                    except anyio.EndOfStream:
                        break
                    finally:
                        tasks.cancel_scope.cancel()
            cancelled += scope.cancelled_caught
            assert process.offsets["stdout"] == len(received)
    assert received == b"".join(b"%d\n" % number for number in range(1500))
    assert cancelled > 0


async def cancel_soon(scope: anyio.CancelScope, hundred_microseconds: int) -> None:
    """Cancel it in about the time that receiving takes."""
    await anyio.sleep(hundred_microseconds / 10_000 if hundred_microseconds else 0)
    scope.cancel()


def cancel_when_done(scope: anyio.CancelScope, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cancel the next call when it is done in the trio thread, which this loop hasn't heard of yet."""
    plain = calls.arrival

    async def arrival(promise: Promise[object]) -> None:
        monkeypatch.setattr(calls, "arrival", plain)
        until_sync(lambda: promise.done)
        scope.cancel()
        await plain(promise)

    monkeypatch.setattr(calls, "arrival", arrival)


@pytest.mark.anyio
async def test_what_was_received_too_late_comes_next(
    daemon: StandingDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cancellation meets a call that is done there already, and not here."""
    async with aio_worker(daemon) as worker, worker.open_process("cat") as process:
        await process.stdin.send(b"hello")
        with anyio.CancelScope() as scope:
            cancel_when_done(scope, monkeypatch)
            await process.stdout.receive()
        assert scope.cancelled_caught
        assert process.offsets["stdout"] == 0
        assert await process.stdout.receive(2) == b"he"
        assert await process.stdout.receive() == b"llo"
        assert process.offsets["stdout"] == 5


@pytest.mark.anyio
async def test_what_was_opened_too_late_is_not_left_open(
    daemon: StandingDaemon,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    anyio_backend_name: str,
) -> None:
    """A new job ends, detached or not; a connection, a file are closed; one that was attached to goes on."""
    (tmp_path / "file").write_text("x")
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(anyio.abc.SocketAttribute.local_port)
    async with listener, aio_worker(daemon) as worker:
        job_id = f"there-{anyio_backend_name}"
        async with worker.open_process("sleep 60", detach=True, job_id=job_id):
            pass

        async def detached_process() -> None:
            async with worker.open_process("sleep 60", detach=True):
                pytest.fail("it was opened")

        async def detached_session() -> None:
            async with worker.open_session("sleep 60", detach=True):
                pytest.fail("it was opened")

        async def attached() -> None:
            async with worker.attach_process(job_id):
                pytest.fail("it was attached to")

        async def reader() -> None:
            await worker.path(tmp_path / "file").open_read()

        async def writer() -> None:
            await worker.path(tmp_path / "file").open_write()

        async def connection() -> None:
            await worker.open_tcp_stream("127.0.0.1", port)

        link = worker._inner._link
        for open_it in (detached_process, detached_session, attached, reader, writer, connection):
            with anyio.CancelScope() as scope:
                cancel_when_done(scope, monkeypatch)
                await open_it()
            assert scope.cancelled_caught
            await until(lambda: link.job_count == 0)
            (job,) = await worker.jobs()
            assert (job.job_id, job.state.value, job.owned) == (job_id, "running", False)
        assert await worker.path(tmp_path / "file").read_text() == "x"
        await worker.forget(job_id)


@pytest.mark.anyio
async def test_cancelled_steps_of_an_iterator_lose_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An event that comes when nobody waits any more comes next."""
    with anyio.fail_after(LIMIT):
        async with (
            sandd.aio.open_controller(port=0) as controller,
            controller.open_events() as events,
        ):
            with running_daemon(controller.url):  # not before somebody listens
                with anyio.CancelScope() as scope:
                    cancel_when_done(scope, monkeypatch)
                    await anext(events)
                assert scope.cancelled_caught
                assert (await anext(events)).kind == "connected"


@pytest.mark.anyio
async def test_closing_ends_what_others_wait_for(daemon: StandingDaemon, marker: Marker) -> None:
    """Calls that are under way when the controller closes are told so, and their trees end."""
    told: list[BaseException] = []

    async def run() -> None:
        try:
            await run_tree(worker, marker)
        except anyio.ClosedResourceError as error:
            told.append(error)

    async with anyio.create_task_group() as tasks:
        async with aio_worker(daemon) as worker:
            for _ in range(3):
                tasks.start_soon(run)
            await until(lambda: len(marker.processes()) > 11)
        assert not marker.processes()
    assert len(told) == 3
    with pytest.raises(anyio.ClosedResourceError, match="closed"):
        await worker.run("true")


@pytest.mark.anyio
async def test_a_block_whose_controller_is_closed_is_left_in_peace(daemon: StandingDaemon) -> None:
    """Nothing is left to be done there, and leaving says nothing."""
    left: list[str] = []
    entered, closed = anyio.Event(), anyio.Event()

    async def hold() -> None:
        async with (
            worker.open_process("sleep 60") as process,
            worker.open_session("sleep 60") as session,
            worker.forward_port(80) as port,
        ):
            entered.set()
            await closed.wait()
            await process.stdin.aclose()
            await session.aclose()
            with pytest.raises(OSError, match=r"attempts failed|refused"):
                await anyio.connect_tcp(*port)
            left.append("in peace")

    async with anyio.create_task_group() as tasks:
        async with aio_worker(daemon) as worker:
            tasks.start_soon(hold)
            await entered.wait()
        closed.set()
    assert left == ["in peace"]


@pytest.mark.anyio
async def test_cancelled_while_it_opens_a_controller_is_not_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither it nor its thread."""
    plain = blocks.arrival
    threads: list[int] = []

    async def arrival(promise: Promise[object]) -> None:
        threads.append(len(aio_threads()))
        scope.cancel()
        await plain(promise)

    monkeypatch.setattr(blocks, "arrival", arrival)
    with anyio.CancelScope() as scope:
        async with sandd.aio.open_controller(port=0):
            pytest.fail("it was opened")
    assert threads[0] == 1
    assert aio_threads() == []


# ---- asyncio itself -----------------------------------------------------------------------------


def test_cancelling_an_asyncio_task_kills_the_tree(daemon: StandingDaemon, marker: Marker) -> None:
    """Task.cancel, asyncio.timeout and wait_for: each waits until nothing of it runs any more."""

    async def fail_beside(call: Coroutine[None, None, None]) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(call)
            await until(lambda: len(marker.processes()) > 3)
            raise KeyError("mine")

    async def main() -> None:
        async with aio_worker(daemon) as worker:
            task = asyncio.create_task(run_tree(worker, marker))
            await until(lambda: len(marker.processes()) > 3)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert not marker.processes()
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(run_tree(worker, marker), 0.5)
            assert not marker.processes()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.5):
                    await run_tree(worker, marker)
            assert not marker.processes()
            assert asyncio.current_task().cancelling() == 0  # type: ignore[union-attr]
            with pytest.raises(ExceptionGroup) as caught:
                await fail_beside(run_tree(worker, marker))
            assert caught.group_contains(KeyError)
            assert not marker.processes()

    asyncio.run(main())


def test_a_second_cancel_stops_the_waiting(daemon: StandingDaemon, marker: Marker) -> None:
    """Not the killing; the controller's end waits for that."""

    async def main() -> None:
        async with aio_worker(daemon) as worker:
            task = asyncio.create_task(worker.run(TREE, env=dict([marker]), kill_grace=1.0))
            await until(lambda: len(marker.processes()) > 3)
            task.cancel()
            await asyncio.sleep(0.1)
            assert not task.done()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert marker.processes()
            assert (await worker.run("true")).success
        assert not marker.processes()

    asyncio.run(main())


def test_cancelled_twice_a_controller_closes_without_the_kill_graces(
    daemon: StandingDaemon, marker: Marker
) -> None:
    """The daemon has been told, and keeps them by itself, as after a second Ctrl-C in trio."""

    async def main() -> None:
        async with aio_worker(daemon) as worker:
            async with worker.open_process(TREE, env=dict([marker]), kill_grace=20.0) as process:
                await read_until(process.stdout, b"planted\n")
                await asyncio.sleep(60)

    async def cancel() -> None:
        task = asyncio.create_task(main())
        await until(lambda: len(marker.processes()) > 3)
        began = time.monotonic()
        for _ in range(3):  # the body; the wait for its tree; the wait for all of them
            task.cancel()
            await asyncio.sleep(0.2)
        with pytest.raises(asyncio.CancelledError):
            await task
        assert time.monotonic() - began < 10.0
        assert aio_threads() == []

    asyncio.run(cancel())
    for entry in marker.processes():
        with contextlib.suppress(ProcessLookupError):
            os.kill(entry.pid, signal.SIGKILL)


def test_several_loops_share_a_controller(daemon: StandingDaemon) -> None:
    """Each call is answered in the loop that it was made in."""
    results: list[str] = []

    def elsewhere(worker: aio.Daemon) -> None:
        async def run() -> str:
            return (await worker.run("echo elsewhere")).stdout

        results.extend([asyncio.run(run()), anyio.run(run, backend="trio")])

    async def main() -> None:
        async with aio_worker(daemon) as worker:
            threads = [threading.Thread(target=elsewhere, args=(worker,)) for _ in range(4)]
            for thread in threads:
                thread.start()
            while any(thread.is_alive() for thread in threads):
                assert (await worker.run("echo here")).stdout == "here\n"
            for thread in threads:
                thread.join()

    asyncio.run(main())
    assert results == ["elsewhere\n"] * 8


@pytest.mark.filterwarnings("ignore:coroutine:RuntimeWarning")
def test_a_loop_that_is_closed_under_a_call_leaves_nothing(
    daemon: StandingDaemon, marker: Marker, caplog: pytest.LogCaptureFixture
) -> None:
    """Its tasks are garbage: once they are collected, the tree is gone, and the thread."""
    waits = threading.Event()

    async def main() -> None:
        async with sandd.aio.open_controller(port=daemon.port) as controller:
            worker = await controller.wait_for_daemon("worker-1")
            async with worker.open_process(TREE, env=dict([marker]), kill_grace=0.1) as process:
                await read_until(process.stdout, b"planted\n")
                waits.set()
                await process.wait()

    loop = asyncio.new_event_loop()
    task = loop.create_task(main())
    while not waits.is_set():
        loop.run_until_complete(asyncio.sleep(0.01))
    assert not task.done()
    loop.close()
    del task
    gc.collect()
    until_sync(lambda: not aio_threads())
    until_sync(lambda: not marker.processes())
    assert "Task was destroyed but it is pending" in caplog.text
