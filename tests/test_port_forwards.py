"""Ports that lead from here to a daemon's side, and back: many connections, none of which harms another."""

from __future__ import annotations

import contextlib
import hashlib
import random
import stat
import sys
from typing import TYPE_CHECKING

import pytest
import trio
from cancelling import cancel_at_each_await
from daemons import open_daemon
from peers import echo, free_port, hash_all, listening, receive_all, receive_exactly, reset, serving
from process_tools import living_tasks, until
from proxied_world import CoreWorld, core_world

import sandd
from sandd import DaemonGone, RequestRefused, TransferError, wire
from sandd._core import jobs, port_forwards, port_requests, sockets
from sandd.testing import DOWN, UP

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="Unix sockets")

WAYS = ["forward", "reverse"]


def open_port(
    way: str, worker: sandd.Daemon, port: int
) -> AbstractAsyncContextManager[tuple[str, int]]:
    """A way to the port on loopback: all in one machine, so both ways lead there."""
    return worker.forward_port(port) if way == "forward" else worker.reverse_port(port)


async def no_jobs(world: CoreWorld) -> None:
    """Return when the daemon holds none."""
    await until(lambda: not world.core._table.jobs)


@pytest.mark.parametrize("way", WAYS)
async def test_whoever_connects_talks_to_the_other_side(way: str) -> None:
    """Both ways, each direction with its own end; and nothing listens any more behind the block."""
    data = random.Random(1).randbytes(2_500_000)
    async with core_world() as world, serving(echo) as port:
        async with open_port(way, world.worker, port) as (host, bound):
            assert host == "127.0.0.1"
            async with await trio.open_tcp_stream(host, bound) as stream:
                async with trio.open_nursery() as nursery:

                    @nursery.start_soon
                    async def _() -> None:
                        await stream.send_all(data)
                        await stream.send_eof()

                    assert await receive_all(stream) == data
        with pytest.raises(OSError, match="all attempts"):
            await trio.open_tcp_stream(host, bound)
        await no_jobs(world)


@pytest.mark.parametrize("way", WAYS)
async def test_through_a_real_daemon(way: str) -> None:
    """The same with a daemon that is a process."""
    async with (
        sandd.open_controller(port=0) as controller,
        open_daemon(controller.url),
        serving(echo) as port,
    ):
        worker = await controller.wait_for_daemon("worker-1")
        async with open_port(way, worker, port) as (host, bound):
            async with await trio.open_tcp_stream(host, bound) as stream:
                await stream.send_all(b"said")
                assert await receive_exactly(stream, 4) == b"said"


@pytest.mark.parametrize("way", WAYS)
async def test_two_hundred_connections_at_once(way: str) -> None:
    """Each gets its own answer; all are open at the same time."""
    async with core_world() as world, serving(echo) as port:
        async with (
            open_port(way, world.worker, port) as (host, bound),
            trio.open_nursery() as nursery,
        ):
            all_open, opened = trio.Event(), 0

            async def talk(number: int) -> None:
                nonlocal opened
                async with await trio.open_tcp_stream(host, bound) as stream:
                    said = f"{number:04}".encode()
                    await stream.send_all(said)
                    assert await receive_exactly(stream, 4) == said
                    opened += 1
                    if opened == 200:
                        all_open.set()
                    await all_open.wait()
                    await stream.send_all(said)
                    await stream.send_eof()
                    assert await receive_all(stream) == said

            for number in range(200):
                nursery.start_soon(talk, number)
        await no_jobs(world)


@pytest.mark.parametrize("way", WAYS)
async def test_more_connections_than_there_may_be_wait(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are served when others have ended."""
    monkeypatch.setattr(port_forwards, "MAX_CONNECTIONS", 2)
    async with core_world() as world, serving(echo) as port:
        async with open_port(way, world.worker, port) as (host, bound):
            streams = [await trio.open_tcp_stream(host, bound) for _ in range(4)]
            for stream in streams:
                await stream.send_all(b"x")
            assert [await receive_exactly(stream, 1) for stream in streams[:2]] == [b"x", b"x"]
            with trio.move_on_after(0.2) as patience:
                await streams[2].receive_some()
            assert patience.cancelled_caught
            for stream in streams:
                await stream.send_eof()
                assert await receive_all(stream) in (b"", b"x")
                await stream.aclose()


@pytest.mark.parametrize("way", WAYS)
async def test_a_connection_that_is_refused_is_reset(
    way: str, caplog: pytest.LogCaptureFixture
) -> None:
    """At once, and logged; the next one, once somebody listens, is served."""
    port = free_port()
    async with core_world() as world, open_port(way, world.worker, port) as (host, bound):
        async with await trio.open_tcp_stream(host, bound) as stream:
            with pytest.raises(trio.BrokenResourceError):
                await stream.receive_some()
        await until(lambda: "connection_broke" in caplog.text)
        assert "Connection refused" in caplog.text
        assert f"target=127.0.0.1:{port}" in caplog.text
        listener = (await trio.open_tcp_listeners(port, host="127.0.0.1"))[0]
        async with listener, await trio.open_tcp_stream(host, bound) as stream:
            async with await listener.accept() as peer:
                await peer.send_all(b"here")
                assert await receive_exactly(stream, 4) == b"here"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("who", ["caller", "callee"])
async def test_a_break_breaks_the_other_end_and_no_other(way: str, who: str) -> None:
    """A reset of either end is a reset at the other, and never an end; its neighbour goes on."""
    async with core_world() as world, listening() as (listener, port):
        async with open_port(way, world.worker, port) as (host, bound):
            ends = []
            for _ in range(2):
                caller = await trio.open_tcp_stream(host, bound)
                ends.append((caller, await listener.accept()))
            (caller, callee), (calm_caller, calm_callee) = ends
            broken, other = (caller, callee) if who == "caller" else (callee, caller)
            await broken.send_all(b"before")
            assert await receive_exactly(other, 6) == b"before"
            await reset(broken)
            with pytest.raises(trio.BrokenResourceError):
                await receive_all(other)
            await calm_caller.send_all(b"calm")
            assert await receive_exactly(calm_callee, 4) == b"calm"
            for stream in (other, calm_caller, calm_callee):
                await stream.aclose()
        await no_jobs(world)


@pytest.mark.parametrize("way", WAYS)
async def test_a_server_that_answers_early_is_heard(way: str) -> None:
    """It says all it has and leaves in mid-question, as HTTP servers do: the answer arrives whole."""
    answer = random.Random(2).randbytes(1_500_000)

    async def answer_early(stream: trio.SocketStream) -> None:
        await stream.receive_some(10)
        await stream.send_all(answer)
        await stream.send_eof()
        while len(await stream.receive_some()) > 0:
            pass
        await stream.aclose()

    async with core_world() as world, serving(answer_early) as port:
        async with open_port(way, world.worker, port) as (host, bound):
            async with (
                await trio.open_tcp_stream(host, bound) as stream,
                trio.open_nursery() as nursery,
            ):

                @nursery.start_soon
                async def ask() -> None:
                    with contextlib.suppress(trio.BrokenResourceError):
                        for _ in range(100):
                            await stream.send_all(b"a question that nobody needs to hear")
                        await stream.send_eof()

                assert await receive_all(stream) == answer
        await no_jobs(world)


@pytest.mark.parametrize("way", WAYS)
async def test_leaving_the_block_ends_its_connections(way: str) -> None:
    """Both ends of each are told that it broke; an exception of the body comes out as itself."""
    async with core_world() as world, listening() as (listener, port):
        error = ValueError("mine")
        with pytest.raises(ValueError, match="mine") as caught:  # noqa: PT012 - the block is what is tested
            async with open_port(way, world.worker, port) as (host, bound):
                caller = await trio.open_tcp_stream(host, bound)
                callee = await listener.accept()
                await caller.send_all(b"said")
                assert await receive_exactly(callee, 4) == b"said"
                raise error
        assert caught.value is error
        for stream in (caller, callee):
            async with stream:
                with pytest.raises(trio.BrokenResourceError):
                    await stream.receive_some()
        await no_jobs(world)


@pytest.mark.parametrize("way", WAYS)
async def test_cuts_lose_nothing(way: str) -> None:
    """Several of them in mid-transfer, in both directions at once."""
    data = random.Random(3).randbytes(4_000_000)
    digest = hashlib.sha256(data).hexdigest()
    async with core_world() as world, serving(echo) as port:
        async with open_port(way, world.worker, port) as (host, bound):
            async with (
                await trio.open_tcp_stream(host, bound) as stream,
                trio.open_nursery() as nursery,
            ):

                @nursery.start_soon
                async def send() -> None:
                    await stream.send_all(data)
                    await stream.send_eof()

                @nursery.start_soon
                async def cut() -> None:
                    for number in range(6):
                        await until(lambda: world.core.is_live)
                        before = world.proxy.cuts
                        world.proxy.cut_after(150_000 + 7_777 * number, (UP, DOWN)[number % 2])
                        await until(lambda before=before: world.proxy.cuts > before)

                assert await hash_all(stream) == digest
        await no_jobs(world)


@pytest.mark.parametrize("way", WAYS)
async def test_connections_begin_while_the_daemon_is_away(way: str) -> None:
    """They are served on its return, with all that was said meanwhile."""
    async with core_world() as world, serving(echo) as port:
        async with open_port(way, world.worker, port) as (host, bound):
            world.proxy.refuse()
            await until(lambda: world.worker.state is not sandd.DaemonState.ONLINE)
            async with await trio.open_tcp_stream(host, bound) as stream:
                await stream.send_all(b"said")
                await trio.sleep(0.1)
                world.proxy.accept()
                assert await receive_exactly(stream, 4) == b"said"


@posix_only
@pytest.mark.parametrize("way", WAYS)
async def test_unix_sockets_at_both_ends(way: str, tmp_path: Path) -> None:
    """Paths instead of ports; the one that is made is for this user alone, and gone at the end."""
    served, made = tmp_path / "served", tmp_path / "made"
    with trio.socket.socket(trio.socket.AF_UNIX) as unix:
        await unix.bind(str(served))
        unix.listen()
        async with core_world() as world, trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, echo, [trio.SocketListener(unix)])
            if way == "forward":
                port = world.worker.forward_port(remote_path=served, local_path=made)
            else:
                port = world.worker.reverse_port(local_path=served, remote_path=made)
            async with port as bound:
                assert bound == (str(made), 0)
                assert stat.S_IMODE(made.stat().st_mode) == 0o600
                async with await trio.open_unix_socket(made) as stream:
                    await stream.send_all(b"said")
                    await stream.send_eof()
                    assert await receive_all(stream) == b"said"
            assert not made.exists()
            nursery.cancel_scope.cancel()


@posix_only
async def test_a_path_that_somebody_else_took_is_left_alone(tmp_path: Path) -> None:
    """What is there at the end is removed only if it is what was made."""
    made = tmp_path / "made"
    async with core_world() as world:
        async with world.worker.forward_port(1, local_path=made):
            made.unlink()
            made.write_text("another's")
        assert made.read_text() == "another's"
        with pytest.raises(OSError, match="in use"):
            async with world.worker.forward_port(1, local_path=made):
                pass


@pytest.mark.parametrize("way", WAYS)
async def test_an_address_that_is_taken(way: str) -> None:
    """Whoever can't listen says so at once, as a local socket would."""
    async with core_world() as world, listening() as (_, taken):
        if way == "forward":
            with pytest.raises(OSError, match="in use") as caught:
                async with world.worker.forward_port(1, local_port=taken):
                    pass
            assert not isinstance(caught.value, TransferError)
        else:
            with pytest.raises(TransferError, match="in use") as caught:
                async with world.worker.reverse_port(1, remote_port=taken):
                    pass
            assert isinstance(caught.value, OSError)
            assert caught.value.filename == f"127.0.0.1:{taken}"
        await no_jobs(world)


async def test_arguments_that_make_no_sense() -> None:
    """They are refused before anything is done."""
    async with core_world() as world:
        for bad in (
            world.worker.forward_port(0),
            world.worker.forward_port(65536),
            world.worker.forward_port(1, remote_path="/there"),
            world.worker.forward_port(1, local_port=-1),
            world.worker.forward_port(1, local_port=1, local_path="/here"),
            world.worker.reverse_port(1, remote_host=""),
            world.worker.reverse_port(1, remote_path="/\0"),
        ):
            with pytest.raises(ValueError, match=r"must|either"):
                await bad.__aenter__()
        for bad in (world.worker.forward_port(), world.worker.reverse_port()):
            with pytest.raises(TypeError, match=r"must be a whole number, or say \w+_path"):
                await bad.__aenter__()
        assert not world.core._table.jobs


async def test_where_there_are_no_unix_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows: refused, whichever end it would be at."""
    monkeypatch.setattr(sockets, "HAS_UNIX_SOCKETS", False)
    async with core_world() as world:
        for port in (
            world.worker.forward_port(1, local_path="/here"),
            world.worker.reverse_port(local_path="/here"),
            world.worker.reverse_port(1, remote_path="/there"),
        ):
            with pytest.raises(RequestRefused, match="no Unix sockets"):
                await port.__aenter__()


# ---- what only a listener on the daemon's side can do ----------------------------------------------


async def test_a_daemon_that_leaves_ends_a_reverse_port() -> None:
    """The block learns that nobody listens any more."""
    async with core_world() as world:
        with pytest.raises(DaemonGone):  # noqa: PT012 - the block is what is tested
            async with world.worker.reverse_port(1):
                await world.core.leave()
                await trio.sleep_forever()


async def test_a_new_agent_gets_the_port_of_one_that_died() -> None:
    """What that one left listening is ended for it; one whose agent is there is not."""
    port = free_port()
    async with core_world() as world, serving(echo) as echoing:
        async with world.worker.reverse_port(1, remote_port=port):
            async with sandd.open_controller(port=0) as another:
                world.proxy.redirect(another.address)
                world.proxy.cut()
                worker = await another.wait_for_daemon(world.worker.id)
                async with worker.reverse_port(echoing, remote_port=port) as (host, bound):
                    async with await trio.open_tcp_stream(host, bound) as stream:
                        await stream.send_all(b"said")
                        assert await receive_exactly(stream, 4) == b"said"
                    with pytest.raises(TransferError, match="in use"):
                        await worker.reverse_port(1, remote_port=port).__aenter__()


async def test_a_connection_that_nobody_comes_for_is_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its client is away for too long; then it is, and the listener is still there."""
    monkeypatch.setattr(port_requests, "CLAIM_SECONDS", 0.0)
    async with core_world() as world, serving(echo) as port:
        async with world.worker.reverse_port(port) as (host, bound):
            world.proxy.refuse()
            await until(lambda: not world.core.is_live)
            async with await trio.open_tcp_stream(host, bound) as stream:
                with pytest.raises(trio.BrokenResourceError), trio.fail_after(5):
                    await stream.receive_some()
            await until(lambda: len(world.core._table.jobs) == 1)
            monkeypatch.setattr(port_requests, "CLAIM_SECONDS", 60.0)
            world.proxy.accept()
            async with await trio.open_tcp_stream(host, bound) as stream:
                await stream.send_all(b"said")
                assert await receive_exactly(stream, 4) == b"said"


async def test_connections_that_nobody_comes_for_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest waits in the system's own queue, and is served when its client is back."""
    monkeypatch.setattr(port_requests, "MAX_UNCLAIMED", 3)
    async with core_world() as world, serving(echo) as port:
        async with world.worker.reverse_port(port) as (host, bound):
            world.proxy.refuse()
            await until(lambda: not world.core.is_live)
            streams = [await trio.open_tcp_stream(host, bound) for _ in range(8)]
            await until(lambda: len(world.core._table.jobs) == 4)
            await trio.sleep(0.1)
            assert len(world.core._table.jobs) == 4
            world.proxy.accept()
            for stream in streams:
                async with stream:
                    await stream.send_all(b"said")
                    assert await receive_exactly(stream, 4) == b"said"
        await no_jobs(world)


async def test_a_connection_that_there_is_no_room_for_is_reset(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The daemon holds as many jobs as it can: that costs this connection, and not the listener."""
    async with core_world() as world, serving(echo) as port:
        async with world.worker.reverse_port(port) as (host, bound):
            with monkeypatch.context() as patch:
                patch.setattr(jobs, "MAX_REQUESTS", 1)
                async with await trio.open_tcp_stream(host, bound) as stream:
                    with pytest.raises(trio.BrokenResourceError):
                        await stream.receive_some()
                assert "connection_turned_away" in caplog.text
            async with await trio.open_tcp_stream(host, bound) as stream:
                await stream.send_all(b"said")
                assert await receive_exactly(stream, 4) == b"said"


async def test_connections_wait_for_room_on_the_daemon(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is cut off meanwhile, with its listener, is reset."""
    monkeypatch.setattr(port_requests, "MAX_CONNECTIONS", 1)
    async with core_world() as world, serving(echo) as port:
        async with world.worker.reverse_port(port) as (host, bound):
            first = await trio.open_tcp_stream(host, bound)
            await first.send_all(b"said")
            assert await receive_exactly(first, 4) == b"said"
            second, third = [await trio.open_tcp_stream(host, bound) for _ in range(2)]
            await second.send_all(b"said")
            with trio.move_on_after(0.2) as patience:
                await second.receive_some()
            assert patience.cancelled_caught
            await first.aclose()
            assert await receive_exactly(second, 4) == b"said"
        for stream in (second, third):
            async with stream:
                with pytest.raises(trio.BrokenResourceError):
                    await stream.receive_some()
        await no_jobs(world)


async def test_a_listener_that_ends_resets_what_nobody_came_for() -> None:
    """Left while the daemon is away: on its return nothing listens, and nobody waits in vain."""
    async with core_world() as world:
        async with world.worker.reverse_port(1) as (host, bound):
            world.proxy.refuse()
            await until(lambda: not world.core.is_live)
            stream = await trio.open_tcp_stream(host, bound)
            await until(lambda: len(world.core._table.jobs) == 2)
        world.proxy.accept()
        async with stream:
            with pytest.raises(trio.BrokenResourceError):
                await stream.receive_some()
        await no_jobs(world)


# ---- cancelled -----------------------------------------------------------------------------------


@pytest.mark.parametrize("way", [*WAYS, "connection"])
async def test_cancelled_at_every_await_nothing_is_left(way: str) -> None:
    """No job, task or socket, at either end; and what is asked for next is served."""
    async with core_world(within=55) as world, serving(echo) as port:

        async def converse(stream: trio.abc.HalfCloseableStream) -> None:
            async with stream:
                await stream.send_all(b"said")
                assert await receive_exactly(stream, 4) == b"said"
                await stream.send_eof()
                assert await receive_all(stream) == b""

        async def call() -> None:
            if way == "connection":
                await converse(await world.worker.open_tcp_stream("127.0.0.1", port))
                return
            async with open_port(way, world.worker, port) as (host, bound):
                await converse(await trio.open_tcp_stream(host, bound))

        async def check() -> None:
            await no_jobs(world)
            await until(lambda: living_tasks() == tasks)
            assert world.controller.statistics().jobs == 0

        await call()
        await no_jobs(world)
        tasks = living_tasks()
        assert await cancel_at_each_await(call, check) > 5


# ---- beside others -------------------------------------------------------------------------------


async def test_a_stalled_connection_delays_nobody() -> None:
    """A bulk transfer whose reader has stopped: another connection, and a command, are as quick as before it."""

    async def flood(stream: trio.SocketStream) -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            async with stream:
                while True:
                    await stream.send_all(bytes(100_000))

    async with core_world() as world, serving(flood) as bulk, serving(echo) as port:
        async with (
            world.worker.forward_port(bulk) as (host, flooded),
            world.worker.forward_port(port) as (_, calm),
            await trio.open_tcp_stream(host, calm) as stream,
        ):

            async def others() -> float:
                """Seconds that they take."""
                began = trio.current_time()
                for _ in range(50):
                    await stream.send_all(b"x")
                    assert await stream.receive_some() == b"x"
                for _ in range(20):
                    assert (await world.worker.run("echo hello")).success
                return trio.current_time() - began

            undisturbed = await others()
            stalled = [await trio.open_tcp_stream(host, flooded) for _ in range(5)]
            passed = -1
            while passed <= 5 * wire.MIB or world.proxy.passed[UP] != passed:
                passed = world.proxy.passed[UP]
                await trio.sleep(0.2)
            assert passed > 5 * wire.MIB  # all of them are full, and stand
            # No more than the machine's moods: one that stood in the way would be waited for for ever.
            assert await others() < 5 * undisturbed + 2
            for each in stalled:
                await each.aclose()
        await no_jobs(world)
