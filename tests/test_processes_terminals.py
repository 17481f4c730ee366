"""Our end of a pseudo-terminal: what is shown, what is typed, and the two ways in which it ends."""

from __future__ import annotations

import errno
import os
import signal
import sys
import termios
import tty
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import pytest
import trio
import trio.testing
from process_tools import PYTHON, posix_only, read_all, read_line

if sys.platform == "win32":
    pytest.skip("POSIX terminals", allow_module_level=True)

from sandd._core.processes import terminals
from sandd._core.processes.terminals import PosixTerminal, open_terminal

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

pytestmark = posix_only

SIZE: Final = (24, 80)


class OtherEnd:
    """The terminal itself, as a program has it."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def show(self, data: bytes) -> None:
        """Write all of it."""
        while data:
            data = data[os.write(self.descriptor, data) :]

    def size(self) -> tuple[int, int]:
        """Rows and columns."""
        size = os.get_terminal_size(self.descriptor)
        return size.lines, size.columns

    def close(self) -> None:
        """As an exit does."""
        if self.descriptor != -1:
            os.close(self.descriptor)
            self.descriptor = -1


def opened(*, keeps_slave: bool) -> tuple[PosixTerminal, OtherEnd]:
    """A terminal that changes nothing of what it is given."""
    terminal, slave = open_terminal(SIZE, keeps_slave=keeps_slave)
    tty.setraw(slave)
    return terminal, OtherEnd(slave)


@pytest.fixture(params=[False, True], ids=["end-by-eio", "keeps-slave"])
async def ends(request: pytest.FixtureRequest) -> AsyncIterator[tuple[PosixTerminal, OtherEnd]]:
    """Both ends of a terminal as Linux has it, and of one as macOS needs it."""
    terminal, other = opened(keeps_slave=request.param)
    yield terminal, other
    terminal.close()
    other.close()


@pytest.fixture
async def kept() -> AsyncIterator[tuple[PosixTerminal, OtherEnd]]:
    """Both ends of one as macOS needs it."""
    terminal, other = opened(keeps_slave=True)
    yield terminal, other
    terminal.close()
    other.close()


async def reads(terminal: PosixTerminal, into: list[bytes]) -> None:
    """One read."""
    into.append(await terminal.output.receive_some())


# ---- output, and its end --------------------------------------------------------------------------


async def test_everything_is_read_before_the_end(ends: tuple[PosixTerminal, OtherEnd]) -> None:
    """Also what was written just before the exit; and from then on there is the end, whoever asks."""
    terminal, other = ends
    data = os.urandom(1 << 16)

    def write() -> None:
        other.show(data)
        other.close()

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, write)
            got = b""
            while len(got) < len(data):
                got += await terminal.output.receive_some()
            terminal.process_exited()
        assert got == data
        for _ in range(2):
            assert await terminal.output.receive_some() == b""
            assert terminal.output.receive_nowait(1) == b""


async def test_what_is_unread_at_the_exit_is_read_after_it(
    ends: tuple[PosixTerminal, OtherEnd],
) -> None:
    """In parts of the size asked for, and then the end."""
    terminal, other = ends
    other.show(b"last words")
    other.close()
    terminal.process_exited()
    assert await terminal.output.receive_some(4) == b"last"
    assert terminal.output.receive_nowait(100) == b" words"
    with trio.fail_after(5):
        assert await read_all(terminal.output) == b""


async def test_a_terminal_that_is_kept_ends_after_the_exit_only(
    kept: tuple[PosixTerminal, OtherEnd],
) -> None:
    """Nobody else having it open says nothing."""
    terminal, other = kept
    other.show(b"x")
    other.close()
    assert await terminal.output.receive_some() == b"x"
    assert terminal.output.receive_nowait(1) is None
    with trio.move_on_after(0.05) as scope:
        await terminal.output.receive_some()
    assert scope.cancelled_caught
    terminal.process_exited()
    assert terminal.output.receive_nowait(1) == b""


async def test_an_exit_between_two_reads_ends_the_second(
    kept: tuple[PosixTerminal, OtherEnd],
) -> None:
    """It doesn't wait for more behind a read that took all: there is nothing of which the kernel could tell."""
    terminal, other = kept
    other.show(b"x")
    assert await terminal.output.receive_some() == b"x"
    terminal.process_exited()
    with trio.fail_after(5):
        assert await terminal.output.receive_some() == b""


async def test_nobody_asks_in_vain_behind_a_read_that_took_all(
    kept: tuple[PosixTerminal, OtherEnd], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither for more of the same, nor before it waits for the next."""
    terminal, other = kept
    steps: list[str] = []
    real_read, real_wait = os.read, trio.lowlevel.wait_readable

    def read(descriptor: int, size: int) -> bytes:
        steps.append("read")
        return real_read(descriptor, size)

    async def wait(descriptor: int) -> None:
        steps.append("wait")
        await real_wait(descriptor)

    monkeypatch.setattr(os, "read", read)
    monkeypatch.setattr(trio.lowlevel, "wait_readable", wait)
    got: list[bytes] = []
    other.show(b"first")
    await reads(terminal, got)
    assert steps == ["read"]
    other.show(b"second")
    await reads(terminal, got)
    assert got == [b"first", b"second"]
    assert steps[:2] == ["read", "wait"]


async def test_who_waits_at_the_exit_is_woken(kept: tuple[PosixTerminal, OtherEnd]) -> None:
    """There will be nothing to read, of which the kernel could tell."""
    terminal, _ = kept
    got: list[bytes] = []
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reads, terminal, got)
            await trio.testing.wait_all_tasks_blocked()
            terminal.process_exited()
    assert got == [b""]


async def test_who_types_at_the_exit_goes_on(kept: tuple[PosixTerminal, OtherEnd]) -> None:
    """It is woken with the reader, and there is still somebody who may read it."""
    terminal, other = kept
    tty.setraw(other.descriptor)
    data = b"x" * (1 << 20)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(terminal.input.send_all, data)
        await trio.testing.wait_all_tasks_blocked()
        terminal.process_exited()
        await trio.testing.wait_all_tasks_blocked()
        got = 0
        while got < len(data):
            got += len(await trio.to_thread.run_sync(os.read, other.descriptor, 1 << 16))
    assert got == len(data)


async def test_eio_is_the_end_and_wakes_who_waits() -> None:
    """Linux: the last one who had it open is gone, and so is the first process, in any order."""
    for exits_first in (True, False):
        terminal, other = opened(keeps_slave=False)
        got: list[bytes] = []
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(reads, terminal, got)
                await trio.testing.wait_all_tasks_blocked()
                for step in (terminal.process_exited, other.close)[:: 1 if exits_first else -1]:
                    assert got == []
                    step()
                    await trio.testing.wait_all_tasks_blocked()
        assert got == [b""]
        terminal.close()


async def test_a_terminal_that_nobody_has_open_may_be_opened_again() -> None:
    """While its first process lives that is no end, as when login(1) takes it over; typing goes on as well."""
    terminal, other = opened(keeps_slave=False)
    path = os.ttyname(other.descriptor)
    got: list[bytes] = []
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reads, terminal, got)
            await trio.testing.wait_all_tasks_blocked()
            other.close()
            await trio.sleep(0.1)
            assert got == []
            again = os.open(path, os.O_RDWR | os.O_NOCTTY)
            os.write(again, b"login: ")
        await terminal.output.aclose()
        assert got == [b"login: "]
        tty.setraw(again)
        await terminal.input.send_all(b"me")
        assert os.read(again, 10) == b"me"
        os.close(again)
        terminal.process_exited()
        assert await terminal.output.receive_some() == b""
    terminal.close()


async def test_an_error_that_is_no_end_is_raised(
    ends: tuple[PosixTerminal, OtherEnd], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Made up, since none is known."""
    terminal, _ = ends

    def fail(descriptor: int, size: int) -> bytes:
        raise OSError(errno.ENXIO, "gone")

    monkeypatch.setattr(terminals.os, "read", fail)
    with pytest.raises(OSError, match="gone"):
        terminal.output.receive_nowait(1)


async def test_an_empty_read_is_the_end(
    ends: tuple[PosixTerminal, OtherEnd], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As macOS tells it."""
    terminal, _ = ends
    monkeypatch.setattr(terminals.os, "read", lambda descriptor, size: b"")
    assert terminal.output.receive_nowait(1) == b""
    monkeypatch.undo()
    assert terminal.output.receive_nowait(1) == b""


async def test_close_ends_who_waits(ends: tuple[PosixTerminal, OtherEnd]) -> None:
    """And who comes later; twice is as good as once."""
    terminal, other = ends
    tty.setraw(other.descriptor)

    async def read() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await terminal.output.receive_some()

    async def write() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await terminal.input.send_all(b"x" * (1 << 20))

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            nursery.start_soon(write)
            await trio.testing.wait_all_tasks_blocked()
            terminal.close()
        terminal.close()
        await read()
        await write()
    with pytest.raises(trio.ClosedResourceError):
        await terminal.input.wait_send_all_might_not_block()
    with pytest.raises(trio.ClosedResourceError):
        terminal.input.send_nowait(b"x")
    with pytest.raises(trio.ClosedResourceError):
        terminal.output.receive_nowait(1)
    terminal.resize(1, 1)
    terminal.process_exited()
    assert not terminal.signal(signal.SIGINT)


async def test_reads_and_waits_can_be_cancelled(ends: tuple[PosixTerminal, OtherEnd]) -> None:
    """Nothing is lost by that."""
    terminal, other = ends
    with trio.move_on_after(0.01) as scope:
        await terminal.output.receive_some()
    assert scope.cancelled_caught
    other.show(b"kept")
    with trio.CancelScope() as scope:
        scope.cancel()
        await terminal.output.receive_some()
    assert scope.cancelled_caught
    assert await terminal.output.receive_some() == b"kept"


async def test_closing_one_direction_closes_nothing(ends: tuple[PosixTerminal, OtherEnd]) -> None:
    """The terminal is one."""
    terminal, other = ends
    await terminal.input.aclose()
    await terminal.output.aclose()
    await terminal.input.send_all(b"typed")
    assert os.read(other.descriptor, 100) == b"typed"
    other.show(b"shown")
    assert await terminal.output.receive_some() == b"shown"
    assert str(terminal.descriptor) in repr(terminal)


# ---- input ----------------------------------------------------------------------------------------


async def test_typing_to_who_does_not_read_waits_and_can_be_cancelled(
    ends: tuple[PosixTerminal, OtherEnd],
) -> None:
    """The terminal holds a little; what it took before is read all the same, and in order."""
    terminal, other = ends
    data = bytes(range(256)) * 4096
    with trio.move_on_after(0.1) as scope:
        await terminal.input.send_all(data)
    assert scope.cancelled_caught
    assert terminal.input.send_nowait(data) < len(data)  # mostly nothing
    got = os.read(other.descriptor, 1 << 16)
    assert 0 < len(got) < len(data)
    assert data.startswith(got)

    def read_on() -> None:
        os.set_blocking(other.descriptor, False)
        with suppress(BlockingIOError):
            os.read(other.descriptor, 1 << 16)

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(repeatedly, read_on)
            await terminal.input.wait_send_all_might_not_block()
            nursery.cancel_scope.cancel()


async def test_waiting_for_room_can_be_cancelled(ends: tuple[PosixTerminal, OtherEnd]) -> None:
    """Where there is none."""
    terminal, _ = ends
    scope = trio.CancelScope()
    with trio.fail_after(10):
        # The kernel carries on what it took by a worker of its own, and then there may be room once more.
        while not scope.cancelled_caught:
            with trio.move_on_after(0.05):
                await terminal.input.send_all(b"x" * (1 << 20))
            with trio.move_on_after(0.05) as scope:
                await terminal.input.wait_send_all_might_not_block()


async def repeatedly(do: Callable[[], None]) -> None:
    """Every few milliseconds."""
    while True:
        do()
        await trio.sleep(0.002)


async def test_typing_to_nobody_is_a_broken_stream_or_goes_nowhere() -> None:
    """Which of the two is the kernel's choice; it does not wait."""
    terminal, other = opened(keeps_slave=False)
    other.close()
    with trio.fail_after(5):
        try:
            await terminal.input.send_all(b"x")
        except trio.BrokenResourceError:
            pass
    terminal.close()


async def test_an_error_of_a_write_is_a_broken_stream(
    ends: tuple[PosixTerminal, OtherEnd], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As macOS tells that nobody is there."""
    terminal, _ = ends

    def fail(descriptor: int, data: memoryview) -> int:
        raise OSError(errno.EIO, "nobody")

    monkeypatch.setattr(terminals.os, "write", fail)
    with pytest.raises(trio.BrokenResourceError, match="nobody has"):
        await terminal.input.send_all(b"x")


# ---- size and signals -----------------------------------------------------------------------------


async def test_the_size_is_set_before_anybody_looks_and_later(
    ends: tuple[PosixTerminal, OtherEnd],
) -> None:
    """After the end it is nobody's, and no error."""
    terminal, other = ends
    assert other.size() == SIZE
    terminal.resize(0xFFFF, 132)
    assert other.size() == (0xFFFF, 132)
    other.close()
    terminal.process_exited()
    terminal.resize(1, 1)
    assert await read_all(terminal.output) == b""
    terminal.resize(2, 2)


FOREGROUND = """
import fcntl, os, signal, sys, termios, time
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
background = os.fork()
if background == 0:
    os.setpgid(0, 0)
    time.sleep(1000)
os.setpgid(background, background)
job = os.fork()
if job == 0:
    os.setpgid(0, 0)
    time.sleep(1000)
os.setpgid(job, job)
os.tcsetpgrp(0, job)
print("ready", flush=True)
_, status = os.waitpid(job, 0)
alive = os.waitpid(background, os.WNOHANG) == (0, 0)
os.kill(background, signal.SIGKILL)
os.waitpid(background, 0)
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
print(os.WTERMSIG(status), alive, flush=True)
"""
"""A session leader with one job in the foreground and one behind it."""


async def test_a_signal_goes_to_the_foreground(ends: tuple[PosixTerminal, OtherEnd]) -> None:
    """Not to the session's leader, nor to who is in the background; and then nobody is there."""
    terminal, other = ends
    assert not terminal.signal(signal.SIGUSR1)  # nobody leads a session in it
    program = await trio.lowlevel.open_process(
        [PYTHON, "-c", FOREGROUND], stdin=other.descriptor, stdout=other.descriptor
    )
    try:
        with trio.fail_after(10):
            assert await read_line(terminal.output) == b"ready"
            assert not terminal.signal(0x1000)  # no such signal
            assert terminal.signal(signal.SIGUSR1)
            assert await read_line(terminal.output) == b"%d True" % signal.SIGUSR1
            assert await program.wait() == 0
    finally:
        program.kill()
        with trio.CancelScope(shield=True):
            await program.wait()
    other.close()
    terminal.process_exited()
    assert await read_all(terminal.output) == b""
    assert not terminal.signal(signal.SIGUSR1)


async def test_who_is_not_ours_to_signal_is_not_signalled(
    ends: tuple[PosixTerminal, OtherEnd], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another user's program, which the spawner may yet reach."""
    terminal, _ = ends

    def refuse(group: int, number: int) -> None:
        raise PermissionError(errno.EPERM, "not yours")

    monkeypatch.setattr(terminals.os, "tcgetpgrp", lambda descriptor: 4711)
    monkeypatch.setattr(terminals.os, "killpg", refuse)
    assert not terminal.signal(signal.SIGTERM)


# ---- opening --------------------------------------------------------------------------------------


@pytest.mark.parametrize("keeps_slave", [False, True])
@pytest.mark.parametrize("step", ["openpty", "set_size", "dup", "set_blocking"])
async def test_a_terminal_that_cannot_be_opened_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, step: str, keeps_slave: bool
) -> None:
    """At whatever step; what fails before anything is open has nothing to close."""
    if step == "dup" and not keeps_slave:
        step = "openpty"
    before = set(os.listdir("/dev/fd"))

    def fail(*arguments: object) -> None:
        raise OSError(errno.EMFILE, "no more")

    with monkeypatch.context() as patch:
        patch.setattr(terminals if step == "set_size" else terminals.os, step, fail)
        with pytest.raises(OSError, match="no more"):
            open_terminal(SIZE, keeps_slave=keeps_slave)
    assert set(os.listdir("/dev/fd")) == before


async def test_no_end_of_a_terminal_is_inherited() -> None:
    """Or a job would hold another's."""
    terminal, slave = open_terminal(SIZE, keeps_slave=True)
    assert not os.get_inheritable(terminal.descriptor)
    assert not os.get_inheritable(slave)
    assert termios.tcgetattr(slave)[3] & termios.ICANON  # a terminal as any other
    os.close(slave)
    terminal.close()
