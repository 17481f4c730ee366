"""A TCP proxy on loopback that breaks what passes through it, on demand and to the byte.

::

    async with open_fault_proxy(controller.address, seed=7) as proxy:
        async with open_daemon_cores(proxy.url):
            proxy.cut()                     # reset what is open; whoever dials again gets through
            proxy.cut_after(10, DOWN)       # ... when exactly 10 more bytes have gone that way
            proxy.blackhole()               # nothing passes, nothing breaks
            proxy.release()                 # ... and what was held arrives, as after a retransmission
            proxy.refuse()                  # reset what is open, and whoever dials, until `accept`
            proxy.slice_bytes = 1           # every byte a segment of its own

Nothing is lost or changed by itself: without a fault, bytes, ends and resets of either side reach the
other as they are. Whatever is drawn by lot comes from `seed`, which stands in the proxy's `repr` and
beside every exception that leaves the block.
"""

from __future__ import annotations

import contextlib
import heapq
import random
import secrets
import socket
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from sandd._core.nurseries import open_unwrapping_nursery
from sandd.testing._proxied import (
    DOWN,
    UP,
    Direction,
    Ending,
    Lane,
    ProxiedConnection,
    close_streams,
    wait_taken,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

__all__ = ["DOWN", "UP", "Direction", "Ending", "FaultProxy", "open_fault_proxy"]

BUFFER_BYTES: Final = 65536
"""What the proxy holds of each direction of a connection, unless told otherwise: one large read."""
SLICES_PER_SECOND: Final = 50
"""Under a limit of bandwidth, bytes come in so many portions: a modem is not a lorry."""


@contextlib.asynccontextmanager
async def open_fault_proxy(
    target: int | str,
    *,
    port: int = 0,
    seed: int | None = None,
    latency: float | tuple[float, float] = 0.0,
    bandwidth: float | None = None,
    slice_bytes: int | tuple[int, int] | None = None,
    idle_limit: float | None = None,
    buffer_bytes: int = BUFFER_BYTES,
) -> AsyncIterator[FaultProxy]:
    """A `FaultProxy` before `target` while the block lasts; it listens on 127.0.0.1.

    An exception of the block comes out as itself, with the proxy's state as a note.

    Args:
        target: a port of this machine, or ``HOST:PORT`` as in `Controller.address`.
        port: where it listens; 0 takes a free one, see `FaultProxy.url`.
        seed: of everything drawn by lot; by default a fresh one.
        latency: see `FaultProxy.latency`, and so on for those that have their name there.
        bandwidth: bytes per second.
        slice_bytes: bytes.
        idle_limit: seconds; a connection through which nothing passes for so long is closed.
        buffer_bytes: what it holds at most of each direction of a connection; besides, its kernel is
            told to hold no more (which is at least a few KiB). A receiver that stops is felt by the
            sender behind that much.

    Raises:
        OSError: the port can't be listened on.
    """
    proxy = FaultProxy._create(target, seed, idle_limit, buffer_bytes)
    proxy.latency, proxy.bandwidth, proxy.slice_bytes = latency, bandwidth, slice_bytes
    async with open_unwrapping_nursery() as nursery:
        listeners = await nursery.start(
            partial(trio.serve_tcp, proxy._serve, port, host="127.0.0.1", handler_nursery=nursery)
        )
        for listener in listeners:  # whoever is accepted has it from there
            listener.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        proxy.port = listeners[0].socket.getsockname()[1]
        try:
            yield proxy
        except BaseException as error:
            error.add_note(f"beside it: {proxy!r}")
            raise
        finally:
            nursery.cancel_scope.cancel()


class FaultProxy:
    """Carries bytes both ways between whoever dials `url` and the target. Made by `open_fault_proxy`."""

    def __init__(self) -> None:
        raise TypeError("use sandd.testing.open_fault_proxy()")

    @classmethod
    def _create(
        cls, target: int | str, seed: int | None, idle_limit: float | None, buffer_bytes: int
    ) -> FaultProxy:
        self = object.__new__(cls)
        self.seed = secrets.randbits(32) if seed is None else seed
        self.port = 0
        self.accepted = 0
        self.cuts = 0
        self.passed = dict.fromkeys(Direction, 0)
        self.redirect(target)
        self._random = random.Random(self.seed)
        self._idle_limit = idle_limit
        self._buffer_bytes = buffer_bytes
        self._refusing = False
        self._dark = set()
        self._cuts = {direction: [] for direction in Direction}
        self._cuts_of_each = {}
        self._free_at = dict.fromkeys(Direction, 0.0)
        self._connections = set()
        self._changed = trio.Event()
        return self

    seed: int
    """Of all that is drawn by lot."""
    port: int
    """Where it listens."""
    accepted: int
    """Connections taken so far; those that were refused don't count."""
    cuts: int
    """Connections it has cut so far, or half of them."""
    passed: dict[Direction, int]
    """Bytes handed on so far, over all connections."""
    latency: float | tuple[float, float]
    """Seconds from a byte's arrival until it is handed on; a pair: drawn between the two for each
    piece that arrives, in order all the same."""
    bandwidth: float | None
    """Bytes per second in each direction, over all connections; None: as fast as they come."""
    slice_bytes: int | tuple[int, int] | None
    """Bytes handed on at a time, each time as a TCP segment of its own (which a receiver that is slow
    may still read together); a pair: drawn between the two; None: as they come."""
    _target: tuple[str, int]
    _random: random.Random
    _idle_limit: float | None
    _buffer_bytes: int
    _refusing: bool
    _dark: set[Direction]
    """What new connections begin with."""
    _cuts: dict[Direction, list[tuple[int, Ending]]]
    """Heaps of positions in `passed`."""
    _cuts_of_each: dict[Direction, tuple[int, Ending]]
    _free_at: dict[Direction, float]
    """When the line has carried what was put on it."""
    _connections: set[ProxiedConnection]
    _changed: trio.Event

    def __repr__(self) -> str:
        host, port = self._target
        return (
            f"<FaultProxy {self.port} -> {host}:{port}, seed {self.seed}: {self.connections} open of "
            f"{self.accepted} accepted, {self.cuts} cut, {self.passed[UP]} bytes up, {self.passed[DOWN]} down>"
        )

    # -- what it knows

    @property
    def url(self) -> str:
        """Where a daemon dials: its ``--server-url``."""
        return f"ws://{self.address}/ws"

    @property
    def address(self) -> str:
        """``HOST:PORT`` it listens on."""
        return f"127.0.0.1:{self.port}"

    @property
    def connections(self) -> int:
        """Open now."""
        return len(self._connections)

    @property
    def cuts_ahead(self) -> int:
        """Positions asked for with `cut_at` and its like that no byte has reached yet."""
        return sum(map(len, self._cuts.values()))

    async def wait_accepted(self, count: int) -> None:
        """Return once `count` connections have been taken since the start."""
        while self.accepted < count:
            await self._changed.wait()

    async def wait_passed(self, count: int, direction: Direction) -> None:
        """Return once `count` bytes have gone that way since the start."""
        while self.passed[direction] < count:
            await self._changed.wait()

    # -- the end of connections

    def redirect(self, target: int | str) -> None:
        """From now on, connections go to this port of this machine, or ``HOST:PORT``."""
        host, _, port = target.rpartition(":") if isinstance(target, str) else ("", "", target)
        self._target = (host.strip("[]") or "127.0.0.1", int(port))

    def cut(self, ending: Ending = Ending.RESET) -> int:
        """End every open connection, now; returns how many there were."""
        for connection in list(self._connections):
            self._end(connection, ending)
        return len(self._connections)

    def half_close(self, direction: Direction) -> None:
        """On every open connection nothing more goes that way, which the receiver is told by an orderly end.

        The sender isn't told: what it still says is taken and thrown away. The other way goes on.
        """
        for connection in self._connections:
            self._half_close(connection.lanes[direction])

    def cut_after(self, count: int, direction: Direction, ending: Ending = Ending.RESET) -> None:
        """End the connection over which the `count`-th byte from now goes that way, just behind it."""
        self.cut_at(self.passed[direction] + count, direction, ending)

    def cut_at(self, position: int, direction: Direction, ending: Ending = Ending.RESET) -> None:
        """End the connection over which the `position`-th byte since the start goes that way.

        May be asked for many positions in advance. Exactly so many bytes reach the receiver, unless
        it has stopped reading.
        """
        if position <= self.passed[direction]:
            raise ValueError(f"{self.passed[direction]} bytes have gone that way, past {position}")
        heapq.heappush(self._cuts[direction], (position, ending))

    def cut_at_random(
        self, count: int, direction: Direction, *, within: int, ending: Ending = Ending.RESET
    ) -> list[int]:
        """`cut_at` as many positions among the next `within` bytes that way; returns them, in order."""
        first = self.passed[direction] + 1
        positions = sorted(self._random.sample(range(first, first + within), count))
        for position in positions:
            self.cut_at(position, direction, ending)
        return positions

    def cut_each_at(
        self, position: int, direction: Direction, ending: Ending = Ending.RESET
    ) -> None:
        """End every connection, those to come too, behind its own `position`-th byte that way."""
        if position < 1:
            raise ValueError(f"no connection can be cut behind byte {position}")
        self._cuts_of_each[direction] = (position, ending)

    def forget_cuts(self) -> None:
        """Cut nowhere that was asked for in advance."""
        self._cuts_of_each.clear()
        for cuts in self._cuts.values():
            cuts.clear()

    async def flap(self, every: float, ending: Ending = Ending.RESET) -> None:
        """Cut every so many seconds, until cancelled."""
        while True:
            await trio.sleep(every)
            self.cut(ending)

    # -- silence

    def blackhole(self, *directions: Direction, spare_new: bool = False) -> None:
        """Let nothing pass (that way, or either way), not even an end; connections open and stay open.

        `spare_new`: connections that are made from now on are not concerned.
        """
        for direction in directions or Direction:
            if not spare_new:
                self._dark.add(direction)
            for connection in self._connections:
                connection.lanes[direction].darken()

    def release(self, *directions: Direction) -> None:
        """Let pass again (that way, or either way), and first what was held."""
        for direction in directions or Direction:
            self._dark.discard(direction)
            for connection in self._connections:
                connection.lanes[direction].lighten()

    # -- refusal

    def refuse(self) -> None:
        """Reset what is open, and whoever dials from now on, until `accept`."""
        self._refusing = True
        self.cut()

    def accept(self) -> None:
        """Take connections again."""
        self._refusing = False

    # -- inside

    async def _serve(self, near: trio.SocketStream) -> None:
        """Carry one connection to its end."""
        if self._refusing:
            close_streams(near, reset=True)
            return
        try:
            far = await self._dial()
        except OSError:
            close_streams(near, reset=True)  # as the target itself does where nobody listens
            return
        except BaseException:
            close_streams(near, reset=False)
            raise
        if self._refusing:
            close_streams(near, far, reset=True)
            return
        connection = ProxiedConnection.between(near, far, dark=self._dark)
        self.accepted += 1
        for direction, lane in connection.lanes.items():
            lane.random = random.Random(f"{self.seed} {self.accepted} {direction.name}")
        self._connections.add(connection)
        self._tell()
        try:
            with connection.scope:
                await self._carry(connection)
            if connection.ending is Ending.CLOSE:
                await connection.part()
        finally:
            self._connections.discard(connection)
            close_streams(near, far, reset=connection.ending is Ending.RESET)
            self._tell()

    async def _dial(self) -> trio.SocketStream:
        host, _ = self._target
        far = trio.socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        try:
            # Before it connects: what has been offered to the other end can't be taken back.
            far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._buffer_bytes)
            await far.connect(self._target)
        except BaseException:
            far.close()
            raise
        return trio.SocketStream(far)

    async def _carry(self, connection: ProxiedConnection) -> None:
        async with trio.open_nursery() as watch:
            if self._idle_limit is not None:
                watch.start_soon(self._watch_idleness, connection, self._idle_limit)
            async with trio.open_nursery() as nursery:
                for lane in connection.lanes.values():
                    nursery.start_soon(self._take, lane)
                    nursery.start_soon(self._hand_on, connection, lane)
            watch.cancel_scope.cancel()

    async def _watch_idleness(self, connection: ProxiedConnection, limit: float) -> None:
        while connection.last_passed + limit > trio.current_time():  # noqa: ASYNC110 - each byte moves it
            await trio.sleep_until(connection.last_passed + limit)
        self._end(connection, Ending.CLOSE)

    async def _take(self, lane: Lane) -> None:
        """Read what is sent, as far as there is room for it."""
        while True:
            data: bytes | None
            room = await lane.wait_room(self._buffer_bytes)
            try:
                data = bytes(await lane.source.receive_some(room))
            except trio.BrokenResourceError:
                data = None
            delay = self.latency
            if isinstance(delay, tuple):
                delay = lane.random.uniform(*delay)
            lane.put(data, trio.current_time() + delay)
            if not data:
                return

    async def _hand_on(self, connection: ProxiedConnection, lane: Lane) -> None:
        """Send what was read, when it is due."""
        try:
            while (data := await lane.first()) is not None:
                if not data:
                    await lane.sink.send_eof()
                    return
                size = await self._wait_turn(lane, len(data))
                if lane.is_closed:
                    return
                ending = self._count(connection, lane, size)
                if ending is not None and ending is not Ending.HALF_CLOSE:
                    connection.darken()  # from here on nothing goes the other way, either
                await lane.sink.send_all(data[:size])
                lane.drop(size)
                if ending is not None:
                    await wait_taken(lane.sink)
                    self._end(connection, ending, lane)
                    await trio.lowlevel.checkpoint()  # which is where it ends, if all of it does
            await wait_taken(lane.sink)
            self._end(connection, Ending.RESET, by_peer=True)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            if not lane.is_closed:
                self._end(connection, Ending.RESET, by_peer=True)

    async def _wait_turn(self, lane: Lane, size: int) -> int:
        """How many of `size` bytes may go now, once any may."""
        direction = lane.direction
        while True:
            await lane.sink.wait_send_all_might_not_block()
            await lane.wait_light()
            if trio.current_time() >= self._free_at[direction]:
                break
            await trio.sleep_until(self._free_at[direction])
        if self.slice_bytes is not None:
            bounds = self.slice_bytes
            size = min(size, bounds if isinstance(bounds, int) else lane.random.randint(*bounds))
        if self.bandwidth is not None:
            size = min(size, max(1, int(self.bandwidth / SLICES_PER_SECOND)))
            self._free_at[direction] = trio.current_time() + size / self.bandwidth
        if self._cuts[direction]:
            size = min(size, self._cuts[direction][0][0] - self.passed[direction])
        position, _ = self._cuts_of_each.get(direction, (0, None))
        return min(size, position - lane.passed) if lane.passed < position else size

    def _count(self, connection: ProxiedConnection, lane: Lane, size: int) -> Ending | None:
        """So many bytes go now; the ending due behind them. Before they are sent, as others count too."""
        direction = lane.direction
        self.passed[direction] += size
        lane.passed += size
        connection.last_passed = trio.current_time()
        self._tell()
        ending = None
        cuts = self._cuts[direction]
        while cuts and cuts[0][0] == self.passed[direction]:
            ending = heapq.heappop(cuts)[1]
        position, ending_of_each = self._cuts_of_each.get(direction, (0, None))
        return ending_of_each if lane.passed == position else ending

    def _end(
        self,
        connection: ProxiedConnection,
        ending: Ending,
        lane: Lane | None = None,
        *,
        by_peer: bool = False,
    ) -> None:
        if ending is Ending.HALF_CLOSE:
            for each in [lane] if lane is not None else connection.lanes.values():
                self._half_close(each)
        elif connection.ending is None:
            connection.ending = ending
            connection.scope.cancel()
            self.cuts += not by_peer

    def _half_close(self, lane: Lane) -> None:
        if not lane.is_closed:
            self.cuts += 1
            lane.close()

    def _tell(self) -> None:
        changed, self._changed = self._changed, trio.Event()
        changed.set()
