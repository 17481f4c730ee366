"""The fault proxy breaks what it is asked to break, to the byte, and nothing else."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from sandd.testing import DOWN, UP, Direction, Ending, FaultProxy, open_fault_proxy
from sandd.testing.fault_proxy import BUFFER_BYTES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

LIMIT = 10.0
DATA = random.Random(1).randbytes(100_000)

both_ways = pytest.mark.parametrize("direction", [UP, DOWN], ids=["up", "down"])


class Target:
    """Who the proxy stands before: a listener that takes connections one by one."""

    def __init__(self, listener: trio.SocketListener) -> None:
        self.listener = listener
        self.port = listener.socket.getsockname()[1]

    async def dial(self, proxy: FaultProxy) -> Ends:
        """A connection through the proxy."""
        count = proxy.accepted
        near = await trio.open_tcp_stream("127.0.0.1", proxy.port)
        far = await self.listener.accept()
        await proxy.wait_accepted(count + 1)
        return Ends(near, far)


class Ends:
    """Both ends of a connection through the proxy."""

    def __init__(self, near: trio.SocketStream, far: trio.SocketStream) -> None:
        self.near, self.far = near, far

    def ends_of(self, direction: Direction) -> tuple[trio.SocketStream, trio.SocketStream]:
        """(sender, receiver) of that direction."""
        return (self.near, self.far) if direction is UP else (self.far, self.near)

    async def __aenter__(self) -> Ends:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.near.socket.close()
        self.far.socket.close()


@contextlib.asynccontextmanager
async def proxied(**options: Any) -> AsyncIterator[tuple[FaultProxy, Target]]:
    """A proxy and its target; bounded in time."""
    with trio.fail_after(LIMIT):
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        async with listener, open_fault_proxy(Target(listener).port, **options) as proxy:
            yield proxy, Target(listener)


async def read_exactly(stream: trio.SocketStream, count: int) -> bytes:
    """So many bytes; fewer at an end."""
    data = b""
    while len(data) < count and (more := await stream.receive_some(count - len(data))):
        data += more
    return data


async def read_out(stream: trio.SocketStream) -> tuple[bytes, str]:
    """Everything, and how it ended: "end" or "reset"."""
    data = bytearray()
    try:
        while more := await stream.receive_some(65536):
            data += more
    except trio.BrokenResourceError:
        return bytes(data), "reset"
    return bytes(data), "end"


async def send_until_broken(stream: trio.SocketStream) -> None:
    """Send as long as it goes."""
    with pytest.raises(trio.BrokenResourceError):  # noqa: PT012 - whichever is the one
        while True:
            await stream.send_all(DATA)


def reset(stream: trio.SocketStream) -> None:
    """Close by RST."""
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.socket.close()


# ---- without a fault ----------------------------------------------------------------------------


async def test_without_a_fault_a_pair_through_it_keeps_trios_contract() -> None:
    """Bytes, order, half-closing, back-pressure and breaking are those of a TCP connection."""
    async with proxied() as (proxy, target):

        async def pair() -> tuple[trio.SocketStream, trio.SocketStream]:
            ends = await target.dial(proxy)
            return ends.near, ends.far

        # No clogged pair: what the kernels hold, the proxy may take at any moment.
        await trio.testing.check_half_closeable_stream(pair, None)


@both_ways
async def test_a_reset_is_passed_on_behind_what_came_before_it(direction: Direction) -> None:
    """As it would be by a network: bytes, and then the reset."""
    async with proxied() as (proxy, target), await target.dial(proxy) as ends:
        sender, receiver = ends.ends_of(direction)
        await sender.send_all(DATA[:5000])
        await proxy.wait_passed(5000, direction)
        reset(sender)
        assert await read_out(receiver) == (DATA[:5000], "reset")
        assert proxy.cuts == 0


async def test_where_nobody_listens_who_dials_is_reset() -> None:
    """The proxy takes the place of a machine that has no such service."""
    async with proxied() as (proxy, target):
        await target.listener.aclose()
        async with await trio.open_tcp_stream("127.0.0.1", proxy.port) as near:
            assert await read_out(near) == (b"", "reset")
        assert (proxy.accepted, proxy.connections) == (0, 0)


async def test_it_holds_a_bounded_number_of_bytes() -> None:
    """A receiver that stops is felt by the sender; all of it arrives once the receiver goes on."""
    async with proxied(buffer_bytes=50_000) as (proxy, target):
        async with await target.dial(proxy) as ends:
            (connection,) = proxy._connections
            sent = 0

            async def send() -> None:
                nonlocal sent
                for _ in range(150):
                    await ends.near.send_all(DATA)
                    sent += len(DATA)
                await ends.near.send_eof()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(send)
                before = -1
                while before != (before := sent):  # until nothing moves any more
                    await trio.sleep(0.2)
                    assert connection.lanes[UP]._held <= 50_000
                assert sent < 150 * len(DATA)
                assert await read_out(ends.far) == (DATA * 150, "end")


async def test_a_proxy_that_is_left_closes_everything() -> None:
    """Both sides see an end; an exception of the block comes out as itself, with the seed beside it."""
    with trio.fail_after(LIMIT):
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        target = Target(listener)
        with pytest.raises(KeyError) as caught:  # noqa: PT012 - the block is what is tested
            async with open_fault_proxy(f"127.0.0.1:{target.port}", seed=77) as proxy:
                ends = await target.dial(proxy)
                raise KeyError("ours")
        async with listener, ends:
            assert await read_out(ends.near) == (b"", "end")
            assert await read_out(ends.far) == (b"", "end")
        assert "seed 77" in caught.value.__notes__[0]


async def test_it_says_what_it_is() -> None:
    """The seed, the numbers, and where to dial; it is made by `open_fault_proxy` alone."""
    async with proxied(seed=5) as (proxy, target), await target.dial(proxy):
        assert f"-> 127.0.0.1:{target.port}, seed 5: 1 open of 1 accepted, 0 cut" in repr(proxy)
        assert proxy.url == f"ws://{proxy.address}/ws" == f"ws://127.0.0.1:{proxy.port}/ws"
    async with proxied() as (one, _), proxied() as (other, _):
        assert one.seed != other.seed
    with pytest.raises(TypeError, match="open_fault_proxy"):
        FaultProxy()


# ---- cuts ---------------------------------------------------------------------------------------


@both_ways
@pytest.mark.parametrize("position", [1, 2, 4095, 65536, 65537, 99_999])
async def test_cut_after_lets_exactly_so_many_bytes_arrive(
    direction: Direction, position: int
) -> None:
    """Not one more and not one less, and then a reset; both ends of the connection see it."""
    async with proxied() as (proxy, target), await target.dial(proxy) as ends:
        sender, receiver = ends.ends_of(direction)
        proxy.cut_after(position, direction)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_until_broken, sender)
            assert await read_out(receiver) == (DATA[:position], "reset")
        assert (proxy.passed[direction], proxy.cuts) == (position, 1)


@both_ways
async def test_an_orderly_close_is_one_for_both_ends(direction: Direction) -> None:
    """In the middle of what is said, but with FIN: neither end sees a reset."""
    async with proxied() as (proxy, target), await target.dial(proxy) as ends:
        sender, receiver = ends.ends_of(direction)
        proxy.cut_after(1234, direction, Ending.CLOSE)
        await sender.send_all(DATA)
        await sender.send_eof()
        assert await read_out(receiver) == (DATA[:1234], "end")
        await receiver.send_eof()
        assert await read_out(sender) == (b"", "end")


@both_ways
async def test_half_closed_at_a_byte_the_other_way_goes_on(direction: Direction) -> None:
    """The receiver sees an end, the sender nothing, whatever it says; and the answer arrives."""
    async with proxied() as (proxy, target), await target.dial(proxy) as ends:
        sender, receiver = ends.ends_of(direction)
        proxy.cut_after(1000, direction, Ending.HALF_CLOSE)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sender.send_all, DATA * 100)
            assert await read_out(receiver) == (DATA[:1000], "end")
        await receiver.send_all(b"go on")
        assert await read_exactly(sender, 5) == b"go on"
        assert (proxy.connections, proxy.cuts) == (1, 1)


@both_ways
async def test_half_close_now(direction: Direction) -> None:
    """On every open connection, once; what was on its way is lost."""
    async with proxied() as (proxy, target), await target.dial(proxy) as ends:
        sender, receiver = ends.ends_of(direction)
        proxy.blackhole(direction)
        await sender.send_all(b"lost")
        proxy.half_close(direction)
        proxy.half_close(direction)
        assert await read_out(receiver) == (b"", "end")
        assert proxy.cuts == 1
        await receiver.send_all(b"heard")
        assert await read_exactly(sender, 5) == b"heard"


async def test_cut_now_ends_every_open_connection_and_no_later_one() -> None:
    """It says how many there were."""
    async with proxied() as (proxy, target):
        async with await target.dial(proxy) as one, await target.dial(proxy) as two:
            assert proxy.cut() == 2
            for stream in (one.near, one.far, two.near, two.far):
                assert await read_out(stream) == (b"", "reset")
        async with await target.dial(proxy) as ends:
            await ends.near.send_all(b"through")
            assert await read_exactly(ends.far, 7) == b"through"
        assert proxy.cuts == 2


async def test_positions_are_counted_over_all_connections() -> None:
    """Whichever carries the byte is cut, and the count goes on with the next one."""
    async with proxied() as (proxy, target):
        for position in (1500, 1600, 5000):
            proxy.cut_at(position, UP)
        async with await target.dial(proxy) as spared, await target.dial(proxy) as one:
            await spared.near.send_all(DATA[:1000])
            assert await read_exactly(spared.far, 1000) == DATA[:1000]
            await one.near.send_all(DATA[:600])
            assert await read_out(one.far) == (DATA[:500], "reset")
            async with await target.dial(proxy) as two:
                await two.near.send_all(DATA[:600])
                assert await read_out(two.far) == (DATA[:100], "reset")
            assert proxy.passed[UP] == 1600
            proxy.forget_cuts()
            await spared.near.send_all(DATA[:9000])
            assert await read_exactly(spared.far, 9000) == DATA[:9000]
        with pytest.raises(ValueError, match="past"):
            proxy.cut_at(1600, UP)


async def test_each_connection_is_cut_at_its_own_byte() -> None:
    """Those that are open and those to come, until the cuts are forgotten."""
    async with proxied() as (proxy, target):
        async with await target.dial(proxy) as ends:
            await ends.far.send_all(DATA[:5])
            assert await read_exactly(ends.near, 5) == DATA[:5]
            proxy.cut_each_at(10, DOWN)
            await ends.far.send_all(DATA[5:100])
            assert await read_out(ends.near) == (DATA[5:10], "reset")
        for _ in range(3):
            async with await target.dial(proxy) as ends:
                await ends.far.send_all(DATA[:100])
                assert await read_out(ends.near) == (DATA[:10], "reset")
        proxy.forget_cuts()
        async with await target.dial(proxy) as ends:
            await ends.far.send_all(DATA[:100])
            assert await read_exactly(ends.near, 100) == DATA[:100]
        with pytest.raises(ValueError, match="byte 0"):
            proxy.cut_each_at(0, DOWN)


async def test_random_positions_come_from_the_seed() -> None:
    """The same seed, the same positions, in order and within the bounds; another seed, others."""
    drawn = []
    for seed in (1, 1, 2):
        async with proxied(seed=seed) as (proxy, _):
            drawn.append(proxy.cut_at_random(50, UP, within=1000))
    assert drawn[0] == drawn[1] != drawn[2]
    assert drawn[0] == sorted(set(drawn[0]))
    assert drawn[0][0] >= 1
    assert drawn[0][-1] <= 1000


async def test_flapping_cuts_again_and_again() -> None:
    """Until it is cancelled."""
    async with proxied() as (proxy, target), trio.open_nursery() as nursery:
        nursery.start_soon(proxy.flap, 0.01, Ending.CLOSE)
        for _ in range(5):
            async with await target.dial(proxy) as ends:
                assert await read_out(ends.near) == (b"", "end")
        nursery.cancel_scope.cancel()
    assert proxy.cuts == 5


# ---- silence and refusal ------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["both", "up", "down"])
async def test_a_black_hole_holds_everything_until_it_is_released(way: str) -> None:
    """Bytes and ends alike, that way; the other way nothing is changed. Then all of it, in order."""
    directions = {"both": (), "up": (UP,), "down": (DOWN,)}[way]
    async with proxied() as (proxy, target):
        proxy.blackhole(*directions)
        for opened in ("before", "after"):
            async with await target.dial(proxy) as ends:
                if opened == "after":
                    proxy.blackhole(*directions)
                for direction in Direction:
                    sender, receiver = ends.ends_of(direction)
                    await sender.send_all(b"one ")
                    await sender.send_all(b"two")
                    await sender.send_eof()
                    if direction in (directions or Direction):
                        with trio.move_on_after(0.05) as scope:
                            await receiver.receive_some()
                        assert scope.cancelled_caught
                    else:
                        assert await read_out(receiver) == (b"one two", "end")
                proxy.release(*directions)
                for direction in directions or Direction:
                    _, receiver = ends.ends_of(direction)
                    assert await read_out(receiver) == (b"one two", "end")


async def test_a_black_hole_may_spare_new_connections() -> None:
    """As when one route is lost: what was said on the old one arrives late, or never."""
    async with proxied() as (proxy, target), await target.dial(proxy) as old:
        proxy.blackhole(spare_new=True)
        await old.near.send_all(b"late")
        async with await target.dial(proxy) as new:
            await new.near.send_all(b"soon")
            assert await read_exactly(new.far, 4) == b"soon"
            proxy.release()
            assert await read_exactly(old.far, 4) == b"late"


async def test_not_even_a_reset_comes_out_of_a_black_hole() -> None:
    """Who was in there hears of it when it is released."""
    async with proxied() as (proxy, target), await target.dial(proxy) as ends:
        proxy.blackhole()
        reset(ends.near)
        with trio.move_on_after(0.05) as scope:
            await ends.far.receive_some()
        assert scope.cancelled_caught
        proxy.release()
        assert await read_out(ends.far) == (b"", "reset")


async def test_refused_until_accepted_again() -> None:
    """What is open is reset, and so is who dials."""
    async with proxied() as (proxy, target):
        async with await target.dial(proxy) as ends:
            proxy.refuse()
            assert await read_out(ends.near) == (b"", "reset")
        async with await trio.open_tcp_stream("127.0.0.1", proxy.port) as near:
            assert await read_out(near) == (b"", "reset")
        proxy.accept()
        async with await target.dial(proxy):
            await proxy.wait_accepted(2)
            assert proxy.connections == 1


async def test_redirected_it_goes_elsewhere() -> None:
    """With the connections to come."""
    async with proxied() as (proxy, _), proxied() as (_, other):
        proxy.redirect(f"127.0.0.1:{other.port}")
        async with await other.dial(proxy) as ends:
            await ends.near.send_all(b"here")
            assert await read_exactly(ends.far, 4) == b"here"


# ---- slow lines ---------------------------------------------------------------------------------


async def test_latency_delays_each_byte_once_and_keeps_the_order(
    mock_clock: trio.testing.MockClock,
) -> None:
    """A second piece right behind the first is not delayed twice; drawn by lot, none overtakes another."""
    async with proxied(latency=2.0) as (proxy, target), await target.dial(proxy) as ends:
        (connection,) = proxy._connections
        lane = connection.lanes[UP]

        async def until_held(count: int) -> None:
            while lane._held != count:
                await trio.lowlevel.checkpoint()

        await ends.near.send_all(b"first")
        await until_held(5)
        mock_clock.jump(0.5)
        await ends.near.send_all(b"second")
        await until_held(11)
        mock_clock.jump(1.25)
        await trio.testing.wait_all_tasks_blocked()
        assert proxy.passed[UP] == 0
        mock_clock.jump(0.25)
        assert await read_exactly(ends.far, 5) == b"first"
        await trio.testing.wait_all_tasks_blocked()
        assert proxy.passed[UP] == 5
        mock_clock.jump(0.5)
        assert await read_exactly(ends.far, 6) == b"second"
        await until_held(0)
        proxy.latency = (1.0, 2.0)  # none is handed on before all were sent
        for number in range(50):
            await ends.near.send_all(bytes([number]))
            await until_held(number + 1)
            mock_clock.jump(0.01)
        mock_clock.jump(2.0)
        assert await read_exactly(ends.far, 50) == bytes(range(50))


async def test_bandwidth_is_shared_by_all_connections() -> None:
    """Twice 5,000 bytes at 50,000 a second take a fifth of a second; the other way is as free as ever."""
    async with proxied(bandwidth=50_000) as (proxy, target):
        async with await target.dial(proxy) as one, await target.dial(proxy) as two:
            started = trio.current_time()
            for ends in (one, two):
                await ends.near.send_all(DATA[:5000])
            for ends in (one, two):
                assert await read_exactly(ends.far, 5000) == DATA[:5000]
            assert 0.18 <= trio.current_time() - started < 10.0
            proxy.bandwidth = None
            await one.near.send_all(DATA[:50_000])
            assert await read_exactly(one.far, 50_000) == DATA[:50_000]


@pytest.mark.parametrize("size", [1, 3, (1, 9)], ids=["1", "3", "1 to 9"])
async def test_slices_go_out_one_by_one(size: int | tuple[int, int]) -> None:
    """Whatever was sent at once comes in small pieces, and whole."""
    async with proxied(slice_bytes=size) as (proxy, target), await target.dial(proxy) as ends:
        await ends.near.send_all(DATA[:2000])
        pieces = []
        while sum(map(len, pieces)) < 2000:
            pieces.append(await ends.far.receive_some(1000))
        assert b"".join(pieces) == DATA[:2000]
        # A receiver that had to wait for the processor reads some of them together.
        assert len(pieces) > 20


async def test_an_idle_connection_is_closed_and_a_busy_one_is_not() -> None:
    """As by a load balancer: a word either way keeps it."""
    async with proxied(idle_limit=1.2) as (proxy, target):
        async with await target.dial(proxy) as ends:
            for number in range(6):
                sender, receiver = ends.ends_of(UP if number % 2 else DOWN)
                await trio.sleep(0.3)
                await sender.send_all(b"x")
                assert await read_exactly(receiver, 1) == b"x"
            silent_since = trio.current_time()
            assert await read_out(ends.near) == (b"", "end")
            assert trio.current_time() - silent_since >= 1.0
        assert proxy.cuts == 1


def test_the_bound_is_known() -> None:
    """What a test may count on to be held by the proxy itself."""
    assert BUFFER_BYTES == 65536
