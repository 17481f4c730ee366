"""Consoles of Windows, on this machine: the host, the terminal and its streams around a console that is made up."""

from __future__ import annotations

import errno
import os
import queue
import signal
import sys
import threading
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from process_tools import read_all, request, until

from sandd._core._errors import SpawnFailed
from sandd._core.limits import Usage
from sandd._core.processes import Child, ExitStatus, ProcessHost, TreeUsage, windows_terminal
from sandd._core.processes.thread_handoff import ThreadHandoff
from sandd._core.processes.windows import open_windows_process_host
from sandd._core.processes.windows_terminal import (
    CONSOLE_DRAIN_SECONDS,
    HANDOFF_BYTES,
    READ_BYTES,
    ConsoleTerminal,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from sandd._core.processes import SpawnRequest
    from sandd._core.processes.interface import TerminalSize

PIECE = 32 * 1024
"""What the library gives at a time, at most."""


class FakeConsole:
    """A console whose program is the test. `show`, `exit` and `end` are what it does."""

    def __init__(self) -> None:
        self.pid = 4711
        self.shown: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self.typed: list[str] = []
        self.sizes: list[tuple[int, int]] = []
        self.reads = 0
        self.is_closed = threading.Event()
        self.is_deaf = False
        """`interrupt` does nothing: a read that never comes back."""
        self.takes_input = threading.Event()
        self.takes_input.set()
        self.is_broken = False
        self.writing = threading.Lock()
        self.code: int | None = None
        self.exited = trio.Event()
        self.is_waited_for = False
        self.is_stubborn = False
        """It can't be killed."""

    # -- as a program

    def show(self, data: bytes) -> None:
        """Write to the console."""
        self.shown.put(data)

    def end(self) -> None:
        """What some consoles tell when their last process has gone."""
        self.shown.put(None)

    def exit(self, code: int) -> None:
        """The process ends; the console does not."""
        if self.code is None:
            self.code = code
            self.exited.set()

    # -- as a `Console`

    def read(self) -> bytes:
        """The next piece."""
        data = self.shown.get()
        if data is None:
            raise EOFError
        self.reads += 1
        return data

    def write(self, text: str) -> None:
        """Note what is typed, once it is taken."""
        assert self.writing.acquire(blocking=False), "two write at once"
        try:
            self.takes_input.wait()
            if self.is_broken:
                raise OSError(errno.EPIPE, "broken")
            self.typed.append(text)
        finally:
            self.writing.release()

    def resize(self, rows: int, cols: int) -> None:
        """Note the size; as the real one, fail where nobody is there."""
        self.sizes.append((rows, cols))
        if self.is_broken:
            raise OSError(errno.EIO, "broken")

    def has_exited(self) -> bool:
        """Whether it has."""
        assert not self.is_waited_for
        return self.code is not None

    async def wait_exited(self) -> int:
        """Its code."""
        assert not self.is_waited_for
        self.is_waited_for = True
        await self.exited.wait()
        assert self.code is not None
        return self.code

    def terminate(self) -> None:
        """Kill it alone."""
        assert not self.is_waited_for
        self.exit(1)

    def interrupt(self) -> None:
        """End the read."""
        if not self.is_deaf:
            self.shown.put(None)

    def close(self) -> None:
        """Note it."""
        assert not self.is_closed.is_set()
        self.is_closed.set()


class FakeJob:
    """The Job Object of the one process in a console."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.adopted = 0
        self.is_closed = False

    def adopt(self, pid: int) -> None:
        """Note it; the real one refuses a process that has exited."""
        if self.world.refusal is not None:
            raise self.world.refusal
        self.adopted = pid

    def terminate(self) -> None:
        """Kill the process."""
        if not self.world.console.is_stubborn:
            self.world.console.exit(1)

    def active_processes(self) -> int:
        """One, until it has exited."""
        return int(self.world.console.code is None)

    def usage(self) -> TreeUsage:
        """Of that one."""
        return TreeUsage(0.5, 1000, self.active_processes())

    def used(self) -> tuple[Usage, str]:
        """By that one; no limit was reached."""
        return Usage(0.5, 1000), ""

    def close(self) -> None:
        """Kill what is left."""
        self.is_closed = True


class World:
    """One console at a time, and what was asked of this machine."""

    def __init__(self) -> None:
        self.console = FakeConsole()
        self.jobs: list[FakeJob] = []
        self.asked: list[tuple[list[str], TerminalSize, str | None, Mapping[str, str]]] = []
        self.failure: Exception | None = None
        self.refusal: OSError | None = None
        self.may_open = threading.Event()
        self.may_open.set()
        self.is_opening = threading.Event()

    def open_console(
        self, argv: list[str], size: TerminalSize, cwd: str | None, env: Mapping[str, str]
    ) -> FakeConsole:
        """As `OpenConsole`, in a thread."""
        self.asked.append((argv, size, cwd, env))
        self.is_opening.set()
        self.may_open.wait()
        if self.failure is not None:
            raise self.failure
        return self.console

    def create_job(self) -> FakeJob:
        """The next one."""
        self.jobs.append(FakeJob(self))
        return self.jobs[-1]


@pytest.fixture
async def world() -> World:
    """The machine."""
    return World()


@pytest.fixture
async def host(world: World) -> AsyncIterator[ProcessHost]:
    """A host on that machine; at its end nothing is left of it."""
    async with open_windows_process_host(
        create_job=world.create_job, open_console=world.open_console
    ) as host:
        yield host
    assert all(job.is_closed for job in world.jobs)


def wanted(*argv: str, **options: object) -> SpawnRequest:
    """A program in a terminal of 24 rows and 80 columns."""
    return request(*(argv or ("cmd.exe",)), **{"terminal": (24, 80), **options})


async def spawn(host: ProcessHost) -> tuple[Child, ConsoleTerminal]:
    """A child with its terminal."""
    child = await host.spawn(wanted())
    assert isinstance(child.terminal, ConsoleTerminal)
    return child, child.terminal


async def finish(child: Child, console: FakeConsole, code: int = 0) -> None:
    """Let it exit, and let go of it."""
    console.exit(code)
    await child.wait_exited()
    await child.release()
    child.close_pipes()
    await until(console.is_closed.is_set)


# ---- start ----------------------------------------------------------------------------------------


async def test_a_program_is_started_in_a_console_of_that_size(
    host: ProcessHost, world: World
) -> None:
    """With its arguments, directory and environment; it is adopted, and has two streams and a terminal."""
    size = (24, 0xFFFF)
    child = await host.spawn(wanted("a b", "c", terminal=size, cwd=b"/tmp", env={b"X": b"1"}))
    ((argv, size, cwd, env),) = world.asked
    assert (argv, size, cwd, env["X"]) == (["a b", "c"], (24, 32767), "/tmp", "1")
    assert child.pid == world.jobs[0].adopted == 4711
    assert child.stdin is not None
    assert child.stderr is None
    assert "4711" in repr(child.terminal)
    await finish(child, world.console)


@pytest.mark.parametrize(
    ("failure", "number", "filename"),
    [
        (SpawnFailed(errno.ENOSYS, "terminals need pywinpty"), errno.ENOSYS, None),
        (FileNotFoundError(errno.ENOENT, "no such"), errno.ENOENT, "cmd.exe"),
        (NotADirectoryError(errno.ENOTDIR, "no dir"), errno.ENOTDIR, "/nowhere"),
        (ValueError("embedded null character"), errno.EINVAL, "cmd.exe"),
    ],
    ids=["missing-library", "missing-program", "directory", "nul"],
)
async def test_what_cannot_be_started_is_told(
    host: ProcessHost, world: World, failure: Exception, number: int, filename: str | None
) -> None:
    """errno and the name of what was at fault; and what to do, where something can be done."""
    world.failure = failure
    with pytest.raises(SpawnFailed) as caught:
        await host.spawn(wanted(cwd=b"/nowhere"))
    assert (caught.value.errno, caught.value.filename) == (number, filename)
    assert not world.jobs


async def test_a_process_that_no_job_object_takes_is_ended(host: ProcessHost, world: World) -> None:
    """It runs by then; so it is killed, and its console is closed."""
    world.refusal = OSError(errno.EACCES, "Access is denied")
    with pytest.raises(SpawnFailed) as caught:
        await host.spawn(wanted())
    assert (caught.value.errno, caught.value.filename) == (errno.EACCES, "cmd.exe")
    assert world.console.code == 1
    assert world.console.is_closed.is_set()


async def test_a_program_that_has_ended_before_it_was_adopted_is_none_that_failed(
    host: ProcessHost, world: World
) -> None:
    """Its output and its code are told as any other's."""
    world.console.show(b"done\r\n")
    world.console.exit(3)
    world.refusal = OSError(errno.EACCES, "Access is denied")
    child = await host.spawn(wanted())
    assert await child.wait_exited() == ExitStatus(3, None)
    assert await read_all(child.stdout) == b"done\r\n"
    await finish(child, world.console)


async def test_cancelled_while_windows_starts_it_nothing_is_left(world: World) -> None:
    """The start can't be taken back, so it is waited for, and then it is a child as any other."""
    world.may_open.clear()
    async with open_windows_process_host(
        create_job=world.create_job, open_console=world.open_console
    ) as host:
        async with trio.open_nursery() as nursery:

            async def start() -> None:
                child = await host.spawn(wanted())
                child.close_pipes()
                await trio.lowlevel.checkpoint()

            nursery.start_soon(start)
            await until(world.is_opening.is_set)
            nursery.cancel_scope.cancel()
            world.may_open.set()
        assert world.jobs[0].adopted == 4711
    assert world.console.code == 1
    await until(world.console.is_closed.is_set)


# ---- output ---------------------------------------------------------------------------------------


async def test_output_is_complete_and_in_order_before_its_end(
    host: ProcessHost, world: World
) -> None:
    """Whatever was shown before the exit, however it is cut; here the console tells its end itself."""
    child, terminal = await spawn(host)
    pieces = [os.urandom(size) for size in (1, PIECE, 7, PIECE, 3000) * 20]
    for piece in pieces:
        world.console.show(piece)
        world.console.show(b"")  # as a read that was in vain
    world.console.exit(0)
    world.console.end()
    with trio.fail_after(CONSOLE_DRAIN_SECONDS):
        assert await read_all(terminal.output) == b"".join(pieces)
    assert await terminal.output.receive_some() == b""
    assert terminal.output.receive_nowait(1) == b""
    await finish(child, world.console)


async def test_what_comes_late_after_the_exit_is_kept_and_silence_is_the_end(
    host: ProcessHost, world: World
) -> None:
    """Each sign of life begins the silence anew; a console that never tells its end has one all the same."""
    child, terminal = await spawn(host)
    assert terminal.output.receive_nowait(10) is None
    world.console.exit(0)
    await child.wait_exited()
    start = trio.current_time()
    for number in range(3):
        await trio.sleep(CONSOLE_DRAIN_SECONDS * 0.6)
        world.console.show(b"%d" % number)
        with trio.fail_after(CONSOLE_DRAIN_SECONDS):
            assert await terminal.output.receive_some() == b"%d" % number
    last = trio.current_time()
    with trio.fail_after(CONSOLE_DRAIN_SECONDS * 3):
        assert await terminal.output.receive_some() == b""
    assert trio.current_time() - last >= CONSOLE_DRAIN_SECONDS * 0.99
    assert last - start > CONSOLE_DRAIN_SECONDS
    # What comes behind the end is nobody's, and holds no thread.
    world.console.show(b"too late")
    await until(world.console.is_closed.is_set)
    assert await terminal.output.receive_some() == b""
    await finish(child, world.console)


async def test_output_does_not_end_while_the_process_lives(host: ProcessHost, world: World) -> None:
    """However silent it is."""
    child, terminal = await spawn(host)
    with trio.move_on_after(CONSOLE_DRAIN_SECONDS * 1.5) as scope:
        await terminal.output.receive_some()
    assert scope.cancelled_caught
    world.console.show(b"here")
    assert await terminal.output.receive_some(3) == b"her"
    assert terminal.output.receive_nowait(3) == b"e"
    await finish(child, world.console)


async def test_a_reader_that_waits_at_the_exit_gets_the_end(
    host: ProcessHost, world: World
) -> None:
    """It began to wait when there was no end in sight."""
    child, terminal = await spawn(host)
    got: list[bytes] = []

    async def read() -> None:
        got.append(await terminal.output.receive_some())

    with trio.fail_after(CONSOLE_DRAIN_SECONDS * 3):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await trio.testing.wait_all_tasks_blocked()
            world.console.exit(0)
    assert got == [b""]
    await finish(child, world.console)


async def test_a_reader_that_is_slow_stops_the_thread(host: ProcessHost, world: World) -> None:
    """So what lies here is bounded; and silence counts from when that was taken."""
    child, terminal = await spawn(host)
    count = HANDOFF_BYTES // PIECE
    data = os.urandom(PIECE * count * 3)
    for position in range(0, len(data), PIECE):
        world.console.show(data[position : position + PIECE])
    await until(lambda: world.console.reads == count + 1)
    world.console.exit(0)
    await trio.sleep(CONSOLE_DRAIN_SECONDS * 1.5)
    assert world.console.reads == count + 1
    assert f"of {HANDOFF_BYTES} bytes" in repr(terminal.output.handoff)
    assert await read_all(terminal.output) == data
    await finish(child, world.console)


async def test_a_read_takes_no_more_than_it_was_asked_to(host: ProcessHost, world: World) -> None:
    """By default a frame's worth."""
    child, terminal = await spawn(host)
    for _ in range(8):
        world.console.show(b"x" * PIECE)
    await until(lambda: world.console.reads == 8)
    await trio.sleep(0.01)
    assert len(await terminal.output.receive_some()) == READ_BYTES
    assert len(await terminal.output.receive_some(PIECE + 1)) == PIECE + 1
    await finish(child, world.console)


async def test_a_defect_of_the_library_ends_the_output(
    host: ProcessHost, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is logged, and costs this session's output alone."""

    def fail() -> bytes:
        raise RuntimeError("a panic in there")

    monkeypatch.setattr(world.console, "read", fail)
    child, terminal = await spawn(host)
    assert await terminal.output.receive_some() == b""
    await finish(child, world.console)


# ---- input ----------------------------------------------------------------------------------------


async def test_input_is_text_and_a_character_may_come_in_two_parts(
    host: ProcessHost, world: World
) -> None:
    """What is no UTF-8 comes as a replacement character."""
    child, terminal = await spawn(host)
    euro = "€".encode()
    await terminal.input.send_all(b"a" + euro[:1])
    await terminal.input.send_all(euro[1:2])
    await terminal.input.send_all(memoryview(euro[2:] + b"b"))
    await terminal.input.send_all(b"\xff")
    assert world.console.typed == ["a", "€b", "\ufffd"]
    await terminal.input.wait_send_all_might_not_block()
    await terminal.input.aclose()
    await terminal.output.aclose()
    await terminal.input.send_all(b"still open")
    await finish(child, world.console)


async def test_input_that_nobody_takes_waits_and_can_be_cancelled(
    host: ProcessHost, world: World
) -> None:
    """Nothing overtakes it, not even then."""
    child, terminal = await spawn(host)
    world.console.takes_input.clear()
    with trio.move_on_after(0.05) as scope:
        await terminal.input.send_all(b"first")
    assert scope.cancelled_caught
    async with trio.open_nursery() as nursery:
        nursery.start_soon(terminal.input.send_all, b"second")
        await trio.testing.wait_all_tasks_blocked()
        world.console.takes_input.set()
    assert world.console.typed == ["first", "second"]
    await finish(child, world.console)


async def test_input_for_nobody_is_a_broken_stream(host: ProcessHost, world: World) -> None:
    """As on any pipe."""
    child, terminal = await spawn(host)
    world.console.is_broken = True
    with pytest.raises(trio.BrokenResourceError):
        await terminal.input.send_all(b"x")
    assert terminal.signal(signal.SIGINT)  # finds nobody, and that is no error
    await finish(child, world.console)


# ---- size and signals -----------------------------------------------------------------------------


async def test_the_window_has_another_size(host: ProcessHost, world: World) -> None:
    """Within what a console can have; a failure is none, and after the exit nobody is asked."""
    child, terminal = await spawn(host)
    terminal.resize(50, 132)
    terminal.resize(70000, 70000)
    world.console.is_broken = True
    terminal.resize(1, 1)
    assert world.console.sizes == [(50, 132), (32767, 32767), (1, 1)]
    world.console.exit(0)
    await child.wait_exited()
    terminal.resize(2, 2)
    await finish(child, world.console)
    terminal.resize(3, 3)
    assert len(world.console.sizes) == 3


async def test_an_interrupt_is_ctrl_c_typed(host: ProcessHost, world: World) -> None:
    """By the terminal or by the child; nothing else can be sent, and after the end not even that."""
    child, terminal = await spawn(host)
    assert terminal.signal(signal.SIGINT)
    await until(lambda: world.console.typed == ["\x03"])
    child.signal(signal.SIGINT)
    await until(lambda: world.console.typed == ["\x03"] * 2)
    assert not terminal.signal(signal.SIGTERM)
    child.signal(signal.SIGTERM)
    assert await child.wait_exited() == ExitStatus(1, None)
    assert not terminal.signal(signal.SIGINT)
    await finish(child, world.console)


# ---- end ------------------------------------------------------------------------------------------


async def test_kill_types_ctrl_c_then_ends_the_job(host: ProcessHost, world: World) -> None:
    """Who minds it ends within the grace, with a code of its own; else all of it is terminated."""
    child, _ = await spawn(host)
    with trio.fail_after(5):
        await child.kill(grace=0.1)
    assert world.console.typed == ["\x03"]
    assert await child.wait_exited() == ExitStatus(1, None)
    assert world.jobs[0].is_closed
    await finish(child, world.console)

    world.console = FakeConsole()
    child, _ = await spawn(host)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: child.kill(grace=60))
        await until(lambda: world.console.typed == ["\x03"])
        world.console.exit(7)
    assert await child.wait_exited() == ExitStatus(7, None)
    await finish(child, world.console)


async def test_kill_and_close_do_not_wait_for_a_read_that_never_comes_back(
    host: ProcessHost, world: World
) -> None:
    """Nor for what can't be typed; the thread goes when it can, and takes the console along."""
    child, terminal = await spawn(host)
    world.console.is_deaf = True
    world.console.takes_input.clear()
    with trio.fail_after(5):
        await child.kill(grace=0.05)
        child.close_pipes()
        child.close_pipes()
    assert not world.console.is_closed.is_set()
    with pytest.raises(trio.ClosedResourceError):
        await terminal.output.receive_some()
    with pytest.raises(trio.ClosedResourceError):
        await terminal.input.send_all(b"x")
    world.console.takes_input.set()
    world.console.show(b"at last")
    await until(world.console.is_closed.is_set)


async def test_leaving_the_host_does_not_wait_for_threads_that_are_stuck(world: World) -> None:
    """Reading and typing may hang in there for ever."""
    world.console.is_deaf = True
    world.console.takes_input.clear()
    with trio.fail_after(5):
        async with open_windows_process_host(
            create_job=world.create_job, open_console=world.open_console
        ) as host:
            child, terminal = await spawn(host)
            terminal.signal(signal.SIGINT)
            await trio.testing.wait_all_tasks_blocked()
    assert child.has_exited
    child.close_pipes()
    world.console.takes_input.set()
    world.console.end()
    await until(world.console.is_closed.is_set)


async def test_leaving_the_host_gives_up_a_process_that_cannot_be_killed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After its time, and without waiting for its exit code."""
    monkeypatch.setattr("sandd._core.processes.windows.LEAVE_SECONDS", 0.1)
    world.console.is_stubborn = True
    with trio.fail_after(5):
        async with open_windows_process_host(
            create_job=world.create_job, open_console=world.open_console
        ) as host:
            child, _ = await spawn(host)
    assert not child.has_exited
    child.close_pipes()
    await until(world.console.is_closed.is_set)


async def test_close_wakes_whoever_waits(host: ProcessHost, world: World) -> None:
    """A reader, a sender, and the thread that waits for room."""
    child, terminal = await spawn(host)
    for _ in range(HANDOFF_BYTES // PIECE + 3):
        world.console.show(b"x" * PIECE)
    await until(lambda: world.console.reads > HANDOFF_BYTES // PIECE)
    world.console.takes_input.clear()

    async def send() -> None:
        with trio.fail_after(5), pytest.raises(trio.ClosedResourceError):
            await terminal.input.send_all(b"x")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        await trio.testing.wait_all_tasks_blocked()
        child.close_pipes()
        await until(world.console.is_closed.is_set)
    world.console.takes_input.set()
    await finish(child, world.console)

    world.console = FakeConsole()
    child, terminal = await spawn(host)

    async def read() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await terminal.output.receive_some()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        child.close_pipes()
    await finish(child, world.console)


async def test_cancelled_at_any_await_the_streams_go_on(host: ProcessHost, world: World) -> None:
    """No byte is lost by a read that was given up, and none is typed by a send that had not begun."""
    child, terminal = await spawn(host)
    world.console.show(b"kept")
    await until(lambda: world.console.reads == 1)
    await trio.sleep(0.01)
    with trio.CancelScope() as scope:
        scope.cancel()
        await terminal.output.receive_some()
    assert scope.cancelled_caught
    assert await terminal.output.receive_some() == b"kept"
    with trio.move_on_after(0.01):
        await terminal.output.receive_some()
    with trio.CancelScope() as scope:
        scope.cancel()
        await terminal.input.send_all(b"never")
    assert scope.cancelled_caught
    world.console.show(b"more")
    assert await terminal.output.receive_some() == b"more"
    assert world.console.typed == []
    with trio.move_on_after(0.01) as scope:
        await child.wait_exited()
    assert scope.cancelled_caught
    await finish(child, world.console)


def test_a_thread_whose_trio_has_ended_is_told_so() -> None:
    """It would wait for room for ever."""

    async def make() -> ThreadHandoff:
        return ThreadHandoff(2)

    handoff = trio.run(make)
    assert handoff.put(b"xx")  # lay there, and told nobody
    assert not handoff.put(b"xx")


async def test_real_consoles_exist_on_windows_only() -> None:
    """Elsewhere the default says so, instead of failing somewhere deep."""
    async with open_windows_process_host() as host:
        with pytest.raises(NotImplementedError, match="Windows only"):
            await host.spawn(wanted())
    assert sys.platform != "win32"


def test_the_end_is_found_before_the_runner_gives_up() -> None:
    """Or each session would be told as one whose pipes somebody else holds."""
    from sandd._core import runner

    assert windows_terminal.CONSOLE_DRAIN_SECONDS < runner.DRAIN_SECONDS
