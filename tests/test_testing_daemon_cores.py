"""Daemons without processes: to a controller they are daemons, and there may be hundreds of them."""

from __future__ import annotations

import signal
from typing import Final

import pytest
import trio
import trio.testing
from process_tools import read_line, until
from raw_peer import RawPeer, raw_server

import sandd
from sandd import CommandTimeout, DaemonState, Outcome
from sandd.testing import (
    FakeProcess,
    FakeProcessHost,
    open_daemon_cores,
    open_fault_proxy,
)

LIMIT: Final = 25.0


async def test_cores_are_daemons_to_their_controller() -> None:
    """They have ids, labels and instances, run what they are asked to, and say goodbye when they leave."""
    with trio.fail_after(LIMIT):
        async with sandd.open_controller(port=0) as controller:
            labels = {"env": "test"}
            async with open_daemon_cores(controller.url, 3, prefix="c", labels=labels) as cores:
                await cores.wait_live()
                assert [daemon.id for daemon in controller.daemons(labels)] == ["c0", "c1", "c2"]
                assert [core.id for core in cores] == ["c0", "c1", "c2"]
                assert controller.daemon("c1").info.instance == cores[1].instance
                answers = await controller.broadcast("echo hello")
                assert [str(getattr(a, "stdout", a)) for a in answers.values()] == ["hello\n"] * 3
                assert [core.host.started for core in cores] == [1, 1, 1]
                assert repr(cores) == "<3 DaemonCores, 3 live>"
                assert repr(cores[0]).startswith(
                    "<DaemonCore 'c0' live, <FakeProcessHost, 0 running"
                )
                worker = controller.daemon("c0")
            assert worker.state is DaemonState.GONE
            assert controller.daemons() == []


async def test_cores_come_back_from_a_cut_with_their_jobs() -> None:
    """All at once, and nothing was started twice."""
    with trio.fail_after(LIMIT):
        async with (
            sandd.open_controller(port=0, max_handshakes_per_second=1000) as controller,
            open_fault_proxy(controller.address) as proxy,
            open_daemon_cores(proxy.url, 40) as cores,
            trio.open_nursery() as nursery,
        ):
            await cores.wait_live()
            answers: list[bytes] = []

            async def talk(daemon: sandd.Daemon) -> None:
                async with daemon.open_process(["cat"]) as process:
                    talking.append(process)
                    await cut.wait()
                    await process.stdin.send_all(b"still here\n")
                    answers.append(await read_line(process.stdout))

            cut = trio.Event()
            talking: list[sandd.Process] = []
            for daemon in controller.daemons():
                nursery.start_soon(talk, daemon)
            await until(lambda: len(talking) == 40)
            assert proxy.cut() == 40
            cut.set()
            await until(lambda: answers == [b"still here"] * 40, within=15)
            assert proxy.accepted == 80
            assert [core.host.started for core in cores] == [1] * 40


async def test_the_well_known_programs() -> None:
    """As a shell or on their own they do what their names say."""
    with trio.fail_after(LIMIT):
        async with (
            sandd.open_controller(port=0) as controller,
            open_daemon_cores(controller.url, 1),
        ):
            worker = await controller.wait_for_daemon("core-0")
            assert (await worker.run("true")).exit_code == 0
            assert (await worker.run(["false"])).exit_code == 1
            assert (await worker.run(" ")).exit_code == 0
            assert (await worker.run(["echo", "a", "b"])).stdout == "a b\n"
            assert (await worker.run("cat", input=b"x" * 300_000)).stdout_total == 300_000
            assert (await worker.run("sleep 0.01")).success
            unknown = await worker.run("make all")
            assert (unknown.exit_code, unknown.stderr) == (127, "make: not found\n")
            async with worker.open_process("cat", stdin=False) as process:
                assert (await process.wait()).success


async def test_a_program_of_ones_own_plays_the_jobs() -> None:
    """It sees arguments, input and signals; what it writes and returns is what the controller gets."""

    async def program(process: FakeProcess) -> int:
        if process.argv[0] == "crash":
            raise RuntimeError("a bug in the program")
        assert process.stdin is not None
        async for chunk in process.stdin:
            await process.stdout.send_all(chunk.upper())
            await process.stderr.send_all(b"%d" % len(process.signals))
        return 7

    with trio.fail_after(LIMIT):
        async with (
            sandd.open_controller(port=0) as controller,
            open_daemon_cores(controller.url, 1, program=program),
        ):
            worker = await controller.wait_for_daemon("core-0")
            async with worker.open_process(["loud"]) as process:
                await process.stdin.send_all(b"abc")
                assert await process.stdout.receive_some() == b"ABC"
                assert await process.stderr.receive_some() == b"0"
                await process.signal("USR1")
                await process.stdin.send_all(b"d")
                assert await process.stdout.receive_some() == b"D"
                await process.stdin.aclose()
                assert (await process.wait()).exit_code == 7
            async with worker.open_process(["loud"], stderr="merge") as process:
                await process.stdin.send_all(b"abc")
                await process.stdin.aclose()
                assert b"".join([chunk async for chunk in process.stdout]) == b"ABC0"
            assert (await worker.run(["crash"])).exit_code == 1


async def test_a_fake_process_can_be_killed() -> None:
    """By signal, by time-out and by leaving its block; it ends by that signal."""
    with trio.fail_after(LIMIT):
        async with (
            sandd.open_controller(port=0) as controller,
            open_daemon_cores(controller.url, 1) as cores,
        ):
            worker = await controller.wait_for_daemon("core-0")
            for name in ("TERM", "KILL", "INT"):
                async with worker.open_process("sleep 60") as process:
                    await process.signal(name)
                    assert (await process.wait()).signal == f"SIG{name}"
            with pytest.raises(CommandTimeout) as caught:
                await worker.run("sleep 60", timeout=0.5)  # within which it has to start
            assert caught.value.result is not None
            assert caught.value.result.outcome is Outcome.TIMED_OUT
            async with worker.open_process("cat"):
                assert cores[0].host.running == 1
            await until(lambda: cores[0].host.running == 0)


async def test_a_core_that_leaves_tells_how_its_jobs_ended() -> None:
    """As a daemon does after SIGTERM."""
    results = []
    with trio.fail_after(LIMIT):
        async with sandd.open_controller(port=0) as controller, trio.open_nursery() as nursery:
            async with open_daemon_cores(controller.url, 1) as cores:
                worker = await controller.wait_for_daemon("core-0")

                @nursery.start_soon
                async def run() -> None:
                    results.append(await worker.run("sleep 60"))

                await until(lambda: cores[0].host.running == 1)
        assert results[0].outcome is Outcome.CANCELLED


async def test_a_reader_that_has_gone_ends_a_fake_process() -> None:
    """As by SIGPIPE."""
    request_of_none: list[FakeProcess] = []

    async def program(process: FakeProcess) -> int:
        request_of_none.append(process)
        while True:
            await process.stdout.send_all(b"y\n")

    async with trio.open_nursery() as nursery:
        host = FakeProcessHost(nursery, program)
        child = await host.spawn(_request())
        await host.begun(child)
        assert await child.stdout.receive_some() == b"y\n"
        child.close_pipes()
        status = await child.wait_exited()
        assert status.signal == signal.SIGPIPE
        assert child.has_exited
        with pytest.raises(ValueError, match="1000"):
            child.signal(1000)
        await child.kill(grace=0)
        await child.release()


def _request() -> object:
    from sandd._core.processes import SpawnRequest

    return SpawnRequest(argv=(b"yes",), env={}, marker=b"m", stdin=False)


async def test_an_exception_of_the_block_comes_out_as_itself() -> None:
    """And nothing of the cores is left."""
    with trio.fail_after(LIMIT):
        async with sandd.open_controller(port=0) as controller:
            with pytest.raises(KeyError, match="ours"):  # noqa: PT012 - the block is what is tested
                async with open_daemon_cores(controller.url, 5) as cores:
                    await cores.wait_live()
                    raise KeyError("ours")


# ---- what a daemon is told ----------------------------------------------------------------------


async def test_a_daemon_obeys_who_tells_it_when_to_come_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Of a 503 with a Retry-After the seconds count, whatever its own patience is."""
    dials: list[float] = []

    async def busy(peer: RawPeer) -> None:
        await peer.read_head()
        dials.append(trio.current_time())
        await peer.send(b"HTTP/1.1 503 Busy\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n")
        await peer.is_closed()

    with trio.fail_after(LIMIT):
        async with raw_server(busy) as url:
            async with open_daemon_cores(url, 1, reconnect_max=0.01):
                await until(lambda: len(dials) == 2)
    # Within a quarter beyond it, if the machine has time for us.
    assert 1.0 <= dials[1] - dials[0] < 4.0


async def test_a_herd_is_let_in_at_the_rate_and_delays_no_command() -> None:
    """Eighty at once, at 100 a second: orderly, all of them, and a command is answered meanwhile."""
    with trio.fail_after(LIMIT):
        async with sandd.open_controller(port=0, max_handshakes_per_second=100) as controller:
            async with open_daemon_cores(controller.url, 1, prefix="first-"):
                worker = await controller.wait_for_daemon("first-0")
                await trio.sleep(0.05)  # its place is free again
                async with (
                    controller.open_events() as events,
                    open_daemon_cores(controller.url, 80) as cores,
                ):
                    took, came = [], []
                    async with trio.open_nursery() as nursery:

                        @nursery.start_soon
                        async def watch() -> None:
                            while len(came) < 80:
                                assert (await anext(events)).kind == "connected"
                                came.append(trio.current_time())

                        while len(came) < 80:
                            started = trio.current_time()
                            assert (await worker.run("echo on")).stdout == "on\n"
                            took.append(trio.current_time() - started)
                    assert cores.live >= 79
    assert came[-1] - came[0] >= (80 - 25) / 100 - 0.1
    assert len(took) >= 5
    assert sorted(took)[len(took) // 2] < 5.0
