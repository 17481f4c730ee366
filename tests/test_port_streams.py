"""Connections made from a daemon's side: as sockets are, exactly once across cuts, and gone when they should be."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import random
import socket
import sys
from typing import TYPE_CHECKING

import pytest
import trio
import trio.lowlevel
import trio.testing
from daemons import open_daemon
from peers import echo, free_port, hash_all, listening, receive_all, receive_exactly, reset, serving
from process_tools import until
from proxied_world import CoreWorld, core_world

import sandd
from sandd import RemoteStream, RequestRefused, TransferError, wire
from sandd._core import port_requests, port_streams, sockets
from sandd.testing import DOWN, UP

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="Unix sockets")


@contextlib.asynccontextmanager
async def joined(world: CoreWorld) -> AsyncIterator[tuple[RemoteStream, trio.SocketStream]]:
    """A connection through the daemon, and its peer's end."""
    async with listening() as (listener, port):
        ours = await world.worker.open_tcp_stream("127.0.0.1", port)
        theirs = await listener.accept()
        async with theirs:
            try:
                yield ours, theirs
            finally:
                ours.abort()


async def no_jobs(world: CoreWorld) -> None:
    """Return when the daemon holds none."""
    await until(lambda: not world.core._table.jobs)


async def clog(stream: trio.abc.SendStream) -> int:
    """Send until nothing goes any more; about how much that was."""
    sent = 0

    async def send() -> None:
        nonlocal sent
        while True:
            await stream.send_all(bytes(50_000))
            sent += 50_000

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        # Everybody between here and the peer is in this thread.
        await trio.testing.wait_all_tasks_blocked(0.1)
        nursery.cancel_scope.cancel()
    return sent


async def clog_socket(stream: trio.SocketStream) -> None:
    """Send until not a single byte goes any more: trio calls a socket full long before it is."""
    refused = 0
    with socket.socket(fileno=os.dup(stream.socket.fileno())) as plain:
        plain.setblocking(False)
        while refused < 4:
            try:
                plain.send(bytes(50_000))
            except BlockingIOError:
                refused += 1
                await trio.testing.wait_all_tasks_blocked(0.02)
            else:
                refused = 0


async def test_a_connection_carries_both_ways() -> None:
    """What is sent arrives, what is answered comes back, and each direction ends by itself."""
    async with core_world() as world, serving(echo) as port:
        stream = await world.worker.open_tcp_stream("127.0.0.1", port)
        async with stream:
            await stream.send_all(b"said")
            assert await receive_exactly(stream, 4) == b"said"
            await stream.send_all(b"and more")
            await stream.send_eof()
            assert await receive_all(stream) == b"and more"
            assert await stream.receive_some() == b""
        await no_jobs(world)


async def test_a_stream_passes_trios_own_suite(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that trio wants of a stream whose directions end one by one."""
    monkeypatch.setattr(wire.ConnectSpec, "window", wire.ACK_EVERY_BYTES)  # soon full
    monkeypatch.setattr(sockets, "DRAIN_SECONDS", 0.2)
    async with core_world(90) as world, listening() as (listener, port):
        for buffer in (socket.SO_RCVBUF, socket.SO_SNDBUF):  # those who connect have them, too
            listener.socket.setsockopt(socket.SOL_SOCKET, buffer, 65536)

        async def make() -> tuple[RemoteStream, trio.SocketStream]:
            ours = await world.worker.open_tcp_stream("127.0.0.1", port)
            return ours, await listener.accept()

        async def make_clogged() -> tuple[RemoteStream, trio.SocketStream]:
            ours, theirs = await make()
            await clog(ours)
            await clog_socket(theirs)
            return ours, theirs

        await trio.testing.check_half_closeable_stream(make, make_clogged)
        await no_jobs(world)


async def test_a_connection_of_a_real_daemon() -> None:
    """The same with a daemon that is a process."""
    async with (
        sandd.open_controller(port=0) as controller,
        open_daemon(controller.url),
        serving(echo) as port,
    ):
        worker = await controller.wait_for_daemon("worker-1")
        data = random.Random(1).randbytes(3_000_000)
        async with (
            await worker.open_tcp_stream("localhost", port) as stream,
            trio.open_nursery() as n,
        ):

            @n.start_soon
            async def _() -> None:
                await stream.send_all(data)
                await stream.send_eof()

            assert await receive_all(stream) == data


@posix_only
async def test_a_connection_to_a_unix_socket(tmp_path: Path) -> None:
    """A path instead of a port."""
    path = tmp_path / "socket"
    with trio.socket.socket(trio.socket.AF_UNIX) as unix:
        await unix.bind(str(path))
        unix.listen()
        async with core_world() as world, trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, echo, [trio.SocketListener(unix)])
            async with await world.worker.open_unix_stream(path) as stream:
                await stream.send_all(b"said")
                assert await receive_exactly(stream, 4) == b"said"
            nursery.cancel_scope.cancel()


# ---- no connection -------------------------------------------------------------------------------


async def test_a_refused_connection_is_the_fitting_error() -> None:
    """It is what a local socket would raise, and says whom it speaks of."""
    async with core_world() as world:
        port = free_port()
        with pytest.raises(ConnectionRefusedError) as caught:
            await world.worker.open_tcp_stream("127.0.0.1", port)
        assert isinstance(caught.value, TransferError)
        assert caught.value.filename == f"127.0.0.1:{port}"
        assert caught.value.errno == errno.ECONNREFUSED
        with pytest.raises(ConnectionRefusedError, match=f"localhost:{port}"):
            await world.worker.open_tcp_stream("localhost", port)
        await no_jobs(world)


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a..b", "x" * 100])
async def test_a_name_that_means_nothing_is_an_unreachable_host(host: str) -> None:
    """getaddrinfo's numbers are no errnos; so it gets one, and the text says what happened."""
    async with core_world() as world:
        with pytest.raises(OSError, match="can't be looked up") as caught:
            await world.worker.open_tcp_stream(host, 1)
        assert caught.value.errno == errno.EHOSTUNREACH
        assert isinstance(caught.value, TransferError)


async def test_a_host_that_does_not_answer_is_a_time_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a bound of ours: the system's own would be minutes."""
    monkeypatch.setattr(sockets, "CONNECT_SECONDS", 0.1)
    async with core_world() as world:

        async def connect(*_: object) -> None:
            await trio.sleep_forever()

        monkeypatch.setattr(trio, "open_tcp_stream", connect)
        with pytest.raises(TimeoutError, match=r"no answer within 0\.1 seconds"):
            await world.worker.open_tcp_stream("127.0.0.1", 1)
        await no_jobs(world)


@posix_only
async def test_unix_sockets_that_can_not_be_reached(tmp_path: Path) -> None:
    """No file, no socket, nobody there, and a path that fits no address: each its own error."""
    (tmp_path / "file").write_text("")
    async with core_world() as world:
        for name, expected in (
            ("none", FileNotFoundError),
            ("file", ConnectionRefusedError),
            ("x" * 200, OSError),
        ):
            with pytest.raises(expected) as caught:
                await world.worker.open_unix_stream(tmp_path / name)
            assert isinstance(caught.value, TransferError)
            assert caught.value.filename == str(tmp_path / name)
        await no_jobs(world)


async def test_a_machine_without_unix_sockets_declines(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Windows does."""
    monkeypatch.setattr(sockets, "HAS_UNIX_SOCKETS", False)
    async with core_world() as world:
        with pytest.raises(RequestRefused, match="no Unix sockets"):
            await world.worker.open_unix_stream("/there")


async def test_a_daemon_has_so_many_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """One more is refused; once another has ended there is room again."""
    monkeypatch.setattr(port_requests, "MAX_CONNECTIONS", 1)
    async with core_world() as world, serving(echo) as port:
        stream = await world.worker.open_tcp_stream("127.0.0.1", port)
        with pytest.raises(RequestRefused, match="1 connections, and takes no more"):
            await world.worker.open_tcp_stream("127.0.0.1", port)
        await stream.aclose()
        await no_jobs(world)
        async with await world.worker.open_tcp_stream("127.0.0.1", port) as stream:
            await stream.wait_send_all_might_not_block()


async def test_arguments_that_make_no_sense() -> None:
    """They are refused here, before anybody is asked."""
    async with core_world() as world:
        for host, port in (("", 1), ("x" * 256, 1), ("here", 0), ("here", 65536)):
            with pytest.raises(ValueError, match="must"):
                await world.worker.open_tcp_stream(host, port)
        for host, port in (("here", "80"), (None, 80)):
            with pytest.raises(TypeError, match="must be"):
                await world.worker.open_tcp_stream(host, port)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="must be the path"):
            await world.worker.open_unix_stream("")


# ---- ends and breaks -----------------------------------------------------------------------------


async def test_a_reset_is_no_end() -> None:
    """Who receives gets what came before, and then that it broke; so does who sends."""
    async with core_world() as world, joined(world) as (ours, theirs):
        await theirs.send_all(b"before")
        assert await receive_exactly(ours, 3) == b"bef"
        await reset(theirs)
        assert await receive_exactly(ours, 3) == b"ore"
        for _ in range(2):
            with pytest.raises(trio.BrokenResourceError) as caught:
                await ours.receive_some()
            assert isinstance(caught.value.__cause__, ConnectionResetError)
        with pytest.raises(trio.BrokenResourceError):
            await ours.send_all(b"more")


async def test_a_reset_that_sending_meets_first_is_no_end() -> None:
    """The system tells it once: the end that receiving finds behind it is not taken for the peer's."""
    async with core_world() as world, joined(world) as (ours, theirs):
        await clog(ours)  # so the daemon is in the midst of sending
        await reset(theirs)
        with pytest.raises(trio.BrokenResourceError):
            await receive_all(ours)


async def test_what_a_peer_said_before_it_left_is_whole() -> None:
    """It ends well although what we go on sending gets nowhere, as with a server that answers early."""
    async with core_world() as world, joined(world) as (ours, theirs):
        answer = random.Random(2).randbytes(3_000_000)
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def _() -> None:
                with contextlib.suppress(trio.BrokenResourceError):
                    while True:
                        await ours.send_all(b"on and on")
                        await trio.lowlevel.checkpoint()

            @nursery.start_soon
            async def _() -> None:
                await theirs.send_all(answer)
                await theirs.send_eof()
                await trio.sleep(0.1)
                await theirs.aclose()

            assert await receive_all(ours) == answer
            await ours.wait_ended()
        with pytest.raises(trio.BrokenResourceError, match="has ended"):
            await ours.send_all(b"more")
        assert await ours.receive_some() == b""


async def test_closing_delivers_what_was_sent() -> None:
    """All of it, and a clean end, although the peer begins to read only then."""
    async with core_world() as world, joined(world) as (ours, theirs):
        data = random.Random(3).randbytes(1_000_000)
        await ours.send_all(data)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ours.aclose)
            await trio.sleep(0.1)
            assert await receive_all(theirs) == data
        await theirs.aclose()
        await no_jobs(world)


async def test_closing_delivers_to_a_peer_that_has_said_all() -> None:
    """Its end is no reason to leave out what it has still to hear."""
    async with core_world() as world, joined(world) as (ours, theirs):
        await theirs.send_eof()
        assert await receive_all(ours) == b""
        await ours.send_all(b"said")
        await ours.aclose()
        assert await receive_all(theirs) == b"said"
        await theirs.aclose()
        await no_jobs(world)


@pytest.mark.skipif(sys.platform != "linux", reason="others don't tell what a peer has taken")
async def test_closing_soon_ends_a_peer_that_goes_on_talking() -> None:
    """As a socket that is closed does; but not before all that was sent has been taken."""
    async with core_world() as world, joined(world) as (ours, theirs):
        data = random.Random(4).randbytes(900_000)
        ended: list[float] = []

        async def talk() -> None:
            with contextlib.suppress(trio.BrokenResourceError):
                while True:
                    await theirs.send_all(b"on and on")
                    await trio.sleep(0.01)
            ended.append(trio.current_time())

        await ours.send_all(data)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(talk)
            nursery.start_soon(ours.aclose)
            await trio.sleep(sockets.DRAIN_SECONDS + 0.5)
            assert not ended, "the system holds what the peer has not taken"
            assert await receive_exactly(theirs, len(data)) == data
            taken = trio.current_time()
        assert ended[0] - taken < wire.ConnectSpec.kill_grace / 2
        await no_jobs(world)


async def test_closing_by_force_resets() -> None:
    """Whoever cancels it doesn't wait; the peer is not told that all was said when it hasn't heard it."""
    async with core_world() as world, joined(world) as (ours, theirs):
        world.proxy.blackhole()
        await ours.send_all(b"never said")
        await trio.aclose_forcefully(ours)
        world.proxy.cut()
        world.proxy.release()
        with pytest.raises(trio.BrokenResourceError):
            await receive_all(theirs)
        await no_jobs(world)


async def test_closing_while_the_daemon_is_away_has_a_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It waits for a while, and no longer; the daemon then resets the connection."""
    monkeypatch.setattr(port_streams, "CLOSE_SECONDS", 0.2)
    async with core_world() as world, joined(world) as (ours, theirs):
        world.proxy.refuse()
        await until(lambda: world.worker.state is not sandd.DaemonState.ONLINE)
        await ours.send_all(b"never said")
        with trio.fail_after(5):
            await ours.aclose()
        world.proxy.accept()
        with pytest.raises(trio.BrokenResourceError):
            await receive_all(theirs)
        await no_jobs(world)


async def test_closing_ends_whoever_waits() -> None:
    """A task in the midst of receiving, or of sending, is told so."""
    async with core_world() as world, joined(world) as (ours, _theirs):

        async def send() -> None:
            with pytest.raises(trio.ClosedResourceError):  # noqa: PT012 - in one of the rounds
                while True:
                    await ours.send_all(bytes(1_000_000))

        async def receive() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await ours.receive_some()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            nursery.start_soon(receive)
            await trio.sleep(0.3)
            await trio.aclose_forcefully(ours)
        assert "closed" in repr(ours)


async def test_a_peer_that_does_not_read_holds_back_its_sender() -> None:
    """What is on the way is bounded: by the buffers here, there, and of the system."""
    async with core_world() as world, joined(world) as (ours, theirs):
        sent = await clog(ours)
        (job,) = world.core._table.jobs.values()
        assert job.input.received - job.input.consumed <= 1 << 20
        held = ours._handle.job.input
        assert held.end - held.floor <= 1 << 20
        system = 8_000_000  # its buffers, both ends'; they grow as they like
        assert sent < system
        await clog(theirs)
        assert job.outputs[3].memory_bytes <= 1 << 20


# ---- cuts ----------------------------------------------------------------------------------------


async def test_cuts_lose_nothing_in_either_direction() -> None:
    """Ten of them in mid-transfer, both ways at once: every byte once, in order, and then the ends."""
    data = random.Random(4).randbytes(6_000_000)
    digest = hashlib.sha256(data).hexdigest()
    async with core_world() as world, joined(world) as (ours, theirs):

        async def say(stream: trio.abc.HalfCloseableStream) -> None:
            for start in range(0, len(data), 50_000):
                await stream.send_all(data[start : start + 50_000])
            await stream.send_eof()

        async def hear(stream: trio.abc.ReceiveStream) -> None:
            assert await hash_all(stream) == digest

        async def cut() -> None:
            for number in range(10):
                await until(lambda: world.core.is_live)
                before = world.proxy.cuts
                world.proxy.cut_after(100_000 + 7_777 * number, (UP, DOWN)[number % 2])
                await until(lambda before=before: world.proxy.cuts > before)

        async with trio.open_nursery() as nursery:
            for stream in (ours, theirs):
                nursery.start_soon(say, stream)
                nursery.start_soon(hear, stream)
            nursery.start_soon(cut)
        await ours.aclose()
        await no_jobs(world)


async def test_a_connection_waits_for_its_daemon() -> None:
    """Asked for while it is away, it is made on its return."""
    async with core_world() as world, serving(echo) as port:
        world.proxy.refuse()
        await until(lambda: world.worker.state is not sandd.DaemonState.ONLINE)
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def _() -> None:
                async with await world.worker.open_tcp_stream("127.0.0.1", port) as stream:
                    await stream.send_all(b"said")
                    assert await receive_exactly(stream, 4) == b"said"

            await trio.testing.wait_all_tasks_blocked()
            world.proxy.accept()


async def test_a_daemon_that_leaves_breaks_its_connections() -> None:
    """On both sides: nobody waits for what will never come."""
    async with core_world() as world, joined(world) as (ours, theirs):
        await theirs.send_all(b"said")
        assert await receive_exactly(ours, 4) == b"said"
        await world.core.leave()
        with pytest.raises(trio.BrokenResourceError) as caught:
            await ours.receive_some()
        assert isinstance(caught.value.__cause__, sandd.DaemonGone)
        with pytest.raises(sandd.DaemonGone):
            await world.worker.open_tcp_stream("127.0.0.1", 1)


async def test_a_controller_that_closes_ends_its_connections() -> None:
    """They are no jobs that outlive it; the peer sees a reset."""
    async with listening() as (listener, port):
        async with core_world() as world:
            ours = await world.worker.open_tcp_stream("127.0.0.1", port)
            theirs = await listener.accept()
        async with theirs:
            with pytest.raises(trio.BrokenResourceError):
                await theirs.receive_some()
        with pytest.raises(trio.BrokenResourceError):
            await ours.send_all(b"said")
