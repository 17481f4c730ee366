"""What networks do to a connection, injected between a daemon and its controller: the same results come out.

Black holes, refusals and cuts at every place of a conversation are in test_reconnect.py.
"""

from __future__ import annotations

import contextlib
import random
import statistics
import sys
from typing import TYPE_CHECKING, Any, Final

import pytest
import trio
from process_tools import read_line, until
from proxied_world import LIMIT, core_world, world
from raw_peer import Op, RawPeer, frame, raw_client, raw_server, shake_hands
from standing_daemon import StandingDaemon, standing_daemon

import sandd
from sandd import DaemonState, wire
from sandd._core import dialer, link, transport
from sandd.testing import DOWN, UP, Direction, Ending, open_daemon_cores

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from sandd.testing import FakeProcess


pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="these commands are POSIX shell")

DATA: Final = random.Random(21).randbytes(600_000)


@pytest.fixture(scope="module")
def daemon(_own_temporary_directory: None) -> Iterator[StandingDaemon]:
    """The daemon that the tests of this module share."""
    with standing_daemon() as daemon:
        yield daemon


# ---- ends ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", [UP, DOWN], ids=["up", "down"])
@pytest.mark.parametrize("ending", Ending, ids=lambda ending: ending.name.lower())
async def test_any_ending_in_the_middle_of_a_frame_is_resumed_exactly(
    daemon: StandingDaemon, ending: Ending, direction: Direction, tmp_path: Path
) -> None:
    """Reset, closed or half-closed among the bytes of a stream: dialled again, nothing lost, nothing twice."""
    async with world(daemon) as it:
        for position in (150_001, 97_001):
            it.proxy.cut_after(position, direction, ending)
            result = await it.worker.run(f"echo x >> {tmp_path}/ran; cat", input=DATA)
            assert result.stdout_bytes == DATA
        assert it.proxy.accepted == 3
        assert (tmp_path / "ran").read_text() == "x\nx\n"


async def test_a_new_dial_takes_the_place_of_a_link_that_is_not_yet_known_to_be_dead(
    daemon: StandingDaemon, tmp_path: Path
) -> None:
    """The old one is superseded at once, and what it still carries has no effect when it comes out."""
    async with world(daemon, heartbeat=0.1, dead_after=4.0) as it:
        script = f"echo x >> {tmp_path}/ran; cat"
        async with (
            it.controller.open_events() as events,
            it.worker.open_process(script) as process,
        ):
            await process.stdin.send_all(b"before\n")
            assert await read_line(process.stdout) == b"before"
            it.proxy.blackhole(DOWN, spare_new=True)
            # The daemon hears nothing from here on; its controller will three seconds longer.
            await trio.sleep(3.0)
            it.proxy.blackhole(UP, spare_new=True)
            await process.stdin.send_all(b"during\n")
            assert await read_line(process.stdout) == b"during"
            assert [(await anext(events)).kind] == ["resumed"], "nobody had found it to be away"
            it.proxy.release()
            await process.stdin.send_all(b"after\n")
            assert await read_line(process.stdout) == b"after"
            with trio.move_on_after(0.2):
                pytest.fail((await anext(events)).kind)
        assert it.proxy.accepted == 2
        assert (tmp_path / "ran").read_text() == "x\n"


# ---- idle connections ---------------------------------------------------------------------------


async def test_heartbeats_carry_a_connection_through_a_proxy_that_cuts_idle_ones(
    daemon: StandingDaemon,
) -> None:
    """With a word more often than the proxy's patience it stays up; with fewer it doesn't, and comes back."""
    async with world(daemon, heartbeat=0.1, dead_after=5.0, faults={"idle_limit": 1.5}) as it:
        await trio.sleep(4.0)
        assert (it.proxy.accepted, it.proxy.cuts) == (1, 0)
    async with world(daemon, heartbeat=2.0, dead_after=5.0, faults={"idle_limit": 0.3}) as it:
        await it.proxy.wait_accepted(2)
        assert (await it.worker.run("echo on")).stdout == "on\n"


async def test_heartbeats_are_messages_and_no_websocket_pings() -> None:
    """So a proxy that answers or swallows pings of WebSocket takes nothing from us."""
    seen: list[tuple[int, wire.Control | wire.Unknown]] = []
    done = trio.Event()

    def control(message: wire.Control) -> bytes:
        return frame(Op.BINARY, b"".join(wire.encode_control(0, message)), mask=False)

    async def controller(peer: RawPeer) -> None:
        await shake_hands(peer, subprotocol=wire.SUBPROTOCOL)
        await peer.send(control(wire.Challenge(bytes(32), "c")))
        await peer.read_frame()
        await peer.send(control(wire.Welcome(1, 0.05, 5.0)))
        while len(seen) < 5:
            op, payload = await peer.read_frame()
            message = wire.decode_control(next(wire.decode_frames(payload)))
            seen.append((op, message))
            assert isinstance(message, wire.Ping)
            await peer.send(control(wire.Pong(message.number)))
        done.set()
        await peer.is_closed()

    with trio.fail_after(LIMIT):
        async with raw_server(controller) as url, open_daemon_cores(url, 1):
            await done.wait()
    assert seen == [(Op.BINARY, wire.Ping(number)) for number in range(1, 6)]


# ---- slow lines ---------------------------------------------------------------------------------


@pytest.mark.parametrize("slices", [1, (1, 3000)], ids=["1", "1 to 3000"])
async def test_sliced_into_pieces_it_is_the_same(
    daemon: StandingDaemon, slices: int | tuple[int, int]
) -> None:
    """However TCP cuts the bytes into segments, down to single ones, handshakes included."""
    size = 500 if slices == 1 else len(DATA)
    async with world(daemon, faults={"slice_bytes": slices, "seed": 22}) as it:
        for _ in range(2):
            result = await it.worker.run("cat; echo err >&2; exit 3", input=DATA[:size])
            assert result.stdout_bytes == DATA[:size]
            assert (result.stderr, result.exit_code) == ("err\n", 3)
            it.proxy.cut()
        assert it.proxy.accepted >= 2


async def test_coalesced_into_bursts_it_is_the_same(daemon: StandingDaemon) -> None:
    """A line that gives nothing for a while, and then all of it at once."""
    async with world(daemon) as it, trio.open_nursery() as nursery:

        @nursery.start_soon
        async def stutter() -> None:
            while True:
                it.proxy.blackhole()
                await trio.sleep(0.03)
                it.proxy.release()
                await trio.sleep(0.002)

        async with it.worker.open_process(["cat"]) as process:
            for number in range(8):
                await process.stdin.send_all(b"%d\n" % number)
                assert await read_line(process.stdout) == b"%d" % number
        assert (await it.worker.run("cat", input=DATA)).stdout_bytes == DATA
        assert it.proxy.accepted == 1
        nursery.cancel_scope.cancel()


async def test_late_and_unsteady_it_is_the_same(daemon: StandingDaemon) -> None:
    """Latency that varies from piece to piece changes the time it takes, and nothing else."""
    async with world(daemon, faults={"latency": (0.0, 0.02), "seed": 23}) as it:
        results: dict[int, str] = {}

        async def run(number: int) -> None:
            results[number] = (await it.worker.run(f"echo {number}")).stdout

        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(run, number)
        assert results == {number: f"{number}\n" for number in range(20)}
        assert (await it.worker.run("cat", input=DATA)).stdout_bytes == DATA


# ---- peers that don't read, and that don't answer -----------------------------------------------


@pytest.mark.parametrize("direction", [UP, DOWN], ids=["daemon's", "controller's"])
async def test_a_window_of_zero_is_ended_by_the_writers_watchdog(
    direction: Direction, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A peer that is heard but takes no byte is given up, whoever it is; then everything arrives."""
    monkeypatch.setattr(link, "WRITE_STALL", 0.4)
    async with core_world(heartbeat=10.0, dead_after=20.0) as it:
        data, outputs = DATA[:200_000] * 2, []
        started = trio.current_time()
        it.proxy.blackhole(direction, spare_new=True)

        async def run() -> None:
            outputs.append((await it.worker.run("cat", input=data)).stdout_bytes)

        async with trio.open_nursery() as nursery:
            for _ in range(12):
                nursery.start_soon(run)
            if direction is DOWN:
                # The daemon hears nothing, not even of the end, and would find out by the silence.
                await until(lambda: it.worker.state is not DaemonState.ONLINE)
                it.proxy.cut()
            await it.proxy.wait_accepted(2)
            took = trio.current_time() - started
        assert outputs == [data] * 12
        assert 0.4 <= took < 15.0, "before anybody has been silent for too long"
        assert it.core.host.started == 12


@pytest.mark.parametrize("silent_at", ["handshake", "challenge", "welcome"])
async def test_a_controller_that_never_answers_is_dialled_again(
    silent_at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it waits for - the upgrade, the Challenge, the Welcome - a daemon doesn't wait for ever."""
    monkeypatch.setattr(dialer, "HANDSHAKE_SECONDS", 0.2)

    def connect(url: str, **options: Any) -> Any:
        # Only where it is the upgrade that never comes: else a busy machine might give up on that, too.
        return transport.connect(url, timeout=0.2 if silent_at == "handshake" else 10.0, **options)

    monkeypatch.setattr(dialer, "connect", connect)
    dials = 0

    async def mute(peer: RawPeer) -> None:
        nonlocal dials
        dials += 1
        if silent_at != "handshake":
            await shake_hands(peer, subprotocol=wire.SUBPROTOCOL)
        if silent_at == "welcome":
            challenge = wire.encode_control(0, wire.Challenge(bytes(32), "c"))
            await peer.send(frame(Op.BINARY, b"".join(challenge), mask=False))
        if silent_at == "handshake":
            await peer.is_closed()
        else:
            with contextlib.suppress(EOFError):  # at the end of the test it may be in mid-handshake
                await peer.read_close()

    with trio.fail_after(LIMIT):
        async with raw_server(mute) as url, open_daemon_cores(url, 1, reconnect_max=0.01) as cores:
            await until(lambda: dials >= 3)
            assert not cores[0].is_live


@contextlib.asynccontextmanager
async def deaf_daemon(controller: sandd.Controller, daemon_id: str) -> AsyncIterator[RawPeer]:
    """A daemon that is let in, and from then on reads nothing that its socket doesn't take by itself."""
    host, _, port = controller.address.rpartition(":")
    address = transport.ListenAddress(host, int(port))
    async with raw_client(address, subprotocol=wire.SUBPROTOCOL) as peer:
        hello = wire.encode_control(0, wire.Hello(1, daemon_id, "instance", 1))
        await peer.send(frame(Op.BINARY, b"".join(hello)))
        await controller.wait_for_daemon(daemon_id)
        yield peer


async def time_runs_while(worker: sandd.Daemon, is_so: Callable[[], bool]) -> float:
    """How long a command takes, the median of those run one after the other meanwhile."""
    took = []
    while is_so():
        started = trio.current_time()
        assert (await worker.run("echo on")).stdout == "on\n"
        took.append(trio.current_time() - started)
    return statistics.median(took)


async def test_a_daemon_that_never_reads_is_given_up_and_delays_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What waits for it is bounded, another daemon's commands take no longer, and it goes away."""
    monkeypatch.setattr(link, "WRITE_STALL", 1.0)
    async with core_world() as it, trio.open_nursery() as nursery:
        async with deaf_daemon(it.controller, "deaf"):
            deaf = it.controller.daemon("deaf")
            for _ in range(40):
                nursery.start_soon(lambda: deaf.run("cat", input=DATA))
            took = await time_runs_while(it.worker, lambda: deaf.state is DaemonState.ONLINE)
            assert (
                took < 5.0
            )  # the rest of a machine that is busy; behind the deaf one it would be for ever
        nursery.cancel_scope.cancel()


async def test_a_daemon_that_floods_delays_nobody() -> None:
    """Pings without end, 80,000 in a message: another daemon's commands have their turns in between."""
    ping = b"".join(wire.encode_control(0, wire.Ping(7)))
    flood = frame(Op.BINARY, ping * (wire.MAX_MESSAGE_BYTES // len(ping)))
    async with core_world() as it, trio.open_nursery() as nursery:
        async with deaf_daemon(it.controller, "flood") as peer:
            sent = 0

            @nursery.start_soon
            async def keep_sending() -> None:
                nonlocal sent
                while True:
                    await peer.send(flood)
                    sent += 1

            await until(lambda: sent)
            meanwhile = []
            for _ in range(10):
                before = sent
                assert (await it.worker.run("echo on")).stdout == "on\n"
                meanwhile.append(sent - before)
            # Counted in what floods, not in seconds: those are the machine's.
            assert statistics.median(meanwhile) < 10
            nursery.cancel_scope.cancel()


# ---- lines of a few kbit/s ------------------------------------------------------------------


async def test_a_hundred_jobs_share_a_slow_line() -> None:
    """All right results, and in between nobody is taken for dead."""
    async with core_world(faults={"bandwidth": 32_000, "buffer_bytes": 4_000}) as it:
        results: dict[int, str] = {}

        async def run(number: int) -> None:
            results[number] = (await it.worker.run(f"echo {number}")).stdout

        started = trio.current_time()
        async with trio.open_nursery() as nursery:
            for number in range(100):
                nursery.start_soon(run, number)
        assert results == {number: f"{number}\n" for number in range(100)}
        assert trio.current_time() - started >= it.proxy.passed[DOWN] / 32_000 - 0.5
        assert it.proxy.accepted == 1


async def play_bulk(process: FakeProcess) -> int:
    """``pour N`` writes so many bytes, ``count`` counts its input, and ``echo`` is itself."""
    match process.argv:
        case ("pour", size):
            await process.stdout.send_all(DATA[: int(size)])
        case ("count",):
            assert process.stdin is not None
            count = 0
            async for chunk in process.stdin:
                count += len(chunk)
            await process.stdout.send_all(b"%d" % count)
        case _:
            await process.stdout.send_all(b"on\n")
    return 0


@pytest.mark.parametrize("direction", [UP, DOWN], ids=["output", "input"])
async def test_bulk_on_a_slow_line_leaves_it_to_others_and_alive(direction: Direction) -> None:
    """Much output, or input, goes in small messages: another command is soon answered, and nobody seems dead."""
    size = 90_000
    line = {"bandwidth": 40_000, "buffer_bytes": 4_000}
    options = {"heartbeat": 0.4, "dead_after": 2.0}
    async with core_world(faults=line, program=play_bulk, **options) as it:
        meanwhile = []
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def transfer() -> None:
                if direction is UP:
                    result = await it.worker.run(["pour", str(size)])
                    assert result.stdout_bytes == DATA[:size]
                else:
                    result = await it.worker.run(["count"], input=DATA[:size])
                    assert result.stdout == str(size)
                nursery.cancel_scope.cancel()

            await it.proxy.wait_passed(it.proxy.passed[direction] + 15_000, direction)
            while True:
                before = it.proxy.passed[direction]
                assert (await it.worker.run("echo on")).stdout == "on\n"
                meanwhile.append(it.proxy.passed[direction] - before)
        assert it.proxy.accepted == 1, "it was never taken for dead"
        # A second's worth of the line, counted in bytes: a second may be the machine's.
        assert statistics.median(meanwhile) < line["bandwidth"]
