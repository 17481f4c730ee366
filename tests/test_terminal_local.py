"""The order of things at a terminal, on one that is made up: raw while it should be, and never afterwards."""

from __future__ import annotations

import io
import os
import signal
import sys
from typing import TYPE_CHECKING

import pyte
import pytest
import trio
import trio.lowlevel
import trio.testing
from attrs import define, field

from sandd import NoTerminal
from sandd.terminal.local import LocalTerminal, Size, open_terminal

if TYPE_CHECKING:
    from collections.abc import Callable

HAS_JOB_CONTROL = hasattr(signal, "SIGCONT")


@define(eq=False, slots=False)
class FakeDevice:
    """Notes what is done to it."""

    in_foreground: bool = True
    raw: bool = False
    done: list[str] = field(factory=list)
    shown: bytearray = field(factory=bytearray)
    stuck: bool = False
    sizes: tuple[int, int] = (24, 80)
    on_restore: Callable[[], None] = lambda: None

    def remember(self) -> None:
        """Note it."""
        self.done.append("remember")

    def make_raw(self) -> None:
        """Note it."""
        self.done.append("raw")
        self.raw = True

    def restore(self) -> None:
        """Note it, and do what the test wants to happen at that moment."""
        self.on_restore()
        self.done.append("restore")
        self.raw = False

    def size(self) -> Size:
        """As the test says."""
        return Size(*self.sizes)

    async def receive(self) -> bytes:
        """Nobody types."""
        await trio.sleep_forever()
        raise AssertionError

    async def send(self, data: bytes) -> None:
        """Show it, unless it is stuck: then half of it, and wait."""
        await trio.lowlevel.checkpoint()
        if self.stuck:
            self.shown += data[: len(data) // 2]
            await trio.sleep_forever()
        self.shown += data

    def close(self) -> None:
        """Note it."""
        self.done.append("close")


@pytest.fixture
def device() -> FakeDevice:
    """A terminal's inside."""
    return FakeDevice()


@pytest.fixture
def terminal(device: FakeDevice) -> LocalTerminal:
    """A terminal."""
    return LocalTerminal(device)


async def test_raw_as_long_as_the_block(device: FakeDevice, terminal: LocalTerminal) -> None:
    """Its modes are taken before, and put back at the end; once more changes nothing."""
    async with terminal.raw_mode():
        assert device.raw
        assert device.done == ["remember", "raw"]
    assert device.done == ["remember", "raw", "restore"]
    terminal.restore()
    assert device.done == ["remember", "raw", "restore"]


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), SystemExit(3)])
async def test_every_exception_puts_it_back(
    error: BaseException, device: FakeDevice, terminal: LocalTerminal
) -> None:
    """And comes out as itself."""
    with pytest.raises(type(error)) as raised:
        async with terminal.raw_mode():
            raise error
    assert raised.value is error
    assert not device.raw


async def test_being_cancelled_puts_it_back(device: FakeDevice, terminal: LocalTerminal) -> None:
    """As SIGTERM does it."""
    with trio.CancelScope() as scope:
        async with terminal.raw_mode():
            scope.cancel()
            await trio.sleep_forever()
    assert not device.raw


async def test_an_interrupted_restoring_is_done_again(
    device: FakeDevice, terminal: LocalTerminal
) -> None:
    """Ctrl-C just then is raised, but afterwards."""
    interrupts = [KeyboardInterrupt(), KeyboardInterrupt()]

    def interrupt() -> None:
        if interrupts:
            raise interrupts.pop()

    device.on_restore = interrupt
    with pytest.raises(KeyboardInterrupt):
        async with terminal.raw_mode():
            pass
    assert not interrupts
    assert not device.raw


async def test_what_a_program_left_on_is_undone_before(
    device: FakeDevice, terminal: LocalTerminal
) -> None:
    """While the terminal still takes sequences as they are, and although we were cancelled."""
    with trio.CancelScope() as scope:
        async with terminal.raw_mode():
            await terminal.show(b"\x1b[?1049h\x1b[?25l")
            device.on_restore = lambda: device.shown.extend(b"(restored)")
            scope.cancel()
            await trio.sleep_forever()

    assert device.shown == b"\x1b[?1049h\x1b[?25l\x1b[?25h\x1b[?1049l(restored)"


async def test_nothing_is_sent_where_nothing_was_left_on(
    device: FakeDevice, terminal: LocalTerminal
) -> None:
    """A session that ended well leaves no trace."""
    async with terminal.raw_mode():
        await terminal.show(b"\x1b[31mbye\x1b[m\r\n")
    assert device.shown == b"\x1b[31mbye\x1b[m\r\n"


async def test_a_stuck_terminal_is_put_back_in_time(
    device: FakeDevice, terminal: LocalTerminal, autojump_clock: trio.testing.MockClock
) -> None:
    """What it can't be told within a second it isn't told; its modes need no waiting."""
    async with terminal.raw_mode():
        await terminal.show(b"\x1b[?25l")
        device.stuck = True
        began = trio.current_time()
    assert trio.current_time() - began <= 1
    assert not device.raw


async def test_a_sequence_that_was_cut_is_ended(
    device: FakeDevice, terminal: LocalTerminal, autojump_clock: trio.testing.MockClock
) -> None:
    """Or the rest of the screen would be taken for a title."""
    async with terminal.raw_mode():
        device.stuck = True
        with trio.move_on_after(1):
            await terminal.show(b"\x1b]0;a long title\x07")
        device.stuck = False
    assert device.shown.endswith(b"\x1b]0;a lo\x1b\\")


async def test_our_own_lines_stand_alone(device: FakeDevice, terminal: LocalTerminal) -> None:
    """In raw mode with carriage returns, and apart from what the program shows."""
    async with terminal.raw_mode():
        await terminal.say("[one]\n[two]")
    await terminal.say("[three]")
    assert device.shown == b"\r\n[one]\r\n[two]\r\n[three]\n"


async def test_our_own_lines_leave_a_full_screen_as_it_is(
    device: FakeDevice, terminal: LocalTerminal
) -> None:
    """At the bottom; what the program paints next goes where it meant it to go, in its own colours."""
    screen = pyte.Screen(40, 6)
    emulator = pyte.ByteStream(screen)
    device.sizes = (6, 40)
    async with terminal.raw_mode():
        await terminal.show(b"\x1b[?1049h\x1b[H\x1b[31mtop\x1b[2;1Hsecond")
        await terminal.say("[it has gone, and that takes more words than fit]\n[one]")
        await terminal.show(b" goes on")
        emulator.feed(bytes(device.shown))
        lines = [line.rstrip() for line in screen.display]
    assert lines == [
        *("top", "second goes on", ""),
        *("[it has gone, and that takes more words", "than fit]", "[one]"),
    ]
    assert screen.buffer[1][8].fg == "red"
    assert not screen.buffer[1][8].reverse
    assert screen.buffer[5][0].reverse


async def test_our_own_lines_go_where_stderr_goes(
    device: FakeDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To a file, if it is one; a file that fails is nobody's trouble."""
    terminal = LocalTerminal(device, notices_on_terminal=False)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    async with terminal.raw_mode():
        await terminal.say("[one]")
    assert sys.stderr.getvalue() == "[one]\n"
    assert device.shown == b""
    monkeypatch.setattr(sys, "stderr", None)
    await terminal.say("[two]")


async def test_lines_do_not_mix(device: FakeDevice, terminal: LocalTerminal) -> None:
    """A line of ours waits until the output before it is shown, all of it."""
    release = trio.Event()
    plain_send = device.send

    async def slow_send(data: bytes) -> None:
        await plain_send(data[:3])
        await release.wait()
        await plain_send(data[3:])

    device.send = slow_send  # type: ignore[method-assign]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(terminal.show, b"output")
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(terminal.say, "[line]")
        await trio.testing.wait_all_tasks_blocked()
        assert device.shown == b"out"
        release.set()
    assert device.shown == b"output[line]\n"


async def test_size_is_never_nothing(device: FakeDevice, terminal: LocalTerminal) -> None:
    """A terminal that doesn't know has the usual size."""
    assert terminal.size == (24, 80)
    device.sizes = (0, 0)
    assert terminal.size == (24, 80)
    device.sizes = (50, 132)
    assert terminal.size == (50, 132)


@pytest.mark.skipif(not HAS_JOB_CONTROL, reason="there is no SIGWINCH")
async def test_a_size_is_told_when_it_changes(
    device: FakeDevice, terminal: LocalTerminal, nursery: trio.Nursery
) -> None:
    """At once if it has changed already, else with the signal."""
    told: list[Size] = []

    async def follow() -> None:
        known = Size(24, 80)
        while True:
            known = await terminal.next_size(known)
            told.append(known)

    device.sizes = (25, 80)
    async with terminal.raw_mode():
        nursery.start_soon(follow)
        await trio.testing.wait_all_tasks_blocked()
        assert told == [(25, 80)]
        device.sizes = (26, 80)
        signal.raise_signal(signal.SIGWINCH)
        with trio.fail_after(5):
            while len(told) < 2:
                await trio.lowlevel.checkpoint()
        assert told == [(25, 80), (26, 80)]
    nursery.cancel_scope.cancel()


@pytest.mark.skipif(not HAS_JOB_CONTROL, reason="there is no job control")
@pytest.mark.parametrize("in_foreground", [True, False])
async def test_going_on_makes_it_raw_again(
    in_foreground: bool, device: FakeDevice, terminal: LocalTerminal
) -> None:
    """After a stop that nobody saw coming, with the modes that were taken before it; and tells the size.

    In the background it is left alone: it is somebody else's.
    """
    async with terminal.raw_mode():
        device.raw, device.in_foreground = False, in_foreground
        device.done.clear()
        signal.raise_signal(signal.SIGCONT)
        if in_foreground:
            with trio.fail_after(5):
                assert await terminal.next_size(Size(24, 80)) == (24, 80)
        await trio.testing.wait_all_tasks_blocked()
        assert device.done == (["raw"] if in_foreground else [])


@pytest.mark.skipif(not HAS_JOB_CONTROL, reason="there is no job control")
async def test_stopping_gives_the_terminal_back_before(
    device: FakeDevice, terminal: LocalTerminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of our group is stopped, by a signal that has its default then; the modes of afterwards count."""
    stopped: list[tuple[int, int]] = []

    def killpg(group: int, number: int) -> None:
        assert device.done == ["remember", "raw", "restore"]
        assert signal.getsignal(number) is signal.SIG_DFL
        stopped.append((group, number))

    monkeypatch.setattr(os, "killpg", killpg)
    async with terminal.raw_mode():
        terminal.suspend()
        assert stopped == [(0, signal.SIGTSTP)]
        assert signal.getsignal(signal.SIGTSTP) is not signal.SIG_DFL
        assert device.done == ["remember", "raw", "restore", "remember", "raw"]


@pytest.mark.skipif(not HAS_JOB_CONTROL, reason="there is no job control")
async def test_going_on_in_the_background_waits_for_the_foreground(
    device: FakeDevice, terminal: LocalTerminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After ``bg`` the terminal is the shell's, after ``fg`` ours."""

    def killpg(_group: int, _number: int) -> None:
        device.in_foreground = False

    monkeypatch.setattr(os, "killpg", killpg)
    async with terminal.raw_mode():
        terminal.suspend()
        assert not device.raw
        device.in_foreground = True
        signal.raise_signal(signal.SIGCONT)
        with trio.fail_after(5):
            await terminal.next_size(Size(24, 80))
        assert device.raw
        assert device.done == ["remember", "raw", "restore", "remember", "raw"]


@pytest.mark.parametrize(
    ("stdin", "stdout", "named"), [(False, True, "stdin"), (True, False, "stdout")]
)
def test_without_a_terminal_there_is_a_clear_error(
    stdin: bool, stdout: bool, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which of the two it is, and what to use instead."""

    class Stream(io.StringIO):
        def __init__(self, is_terminal: bool) -> None:
            super().__init__()
            self._is_terminal = is_terminal

        def isatty(self) -> bool:
            return self._is_terminal

    monkeypatch.setattr(sys, "stdin", Stream(stdin))
    monkeypatch.setattr(sys, "stdout", Stream(stdout))
    with pytest.raises(NoTerminal, match=f"{named} is not a terminal"):
        with open_terminal():
            pytest.fail("it was opened")
    monkeypatch.setattr(sys, named, None)
    with pytest.raises(NoTerminal, match=f"{named} is not a terminal"):
        with open_terminal():
            pytest.fail("it was opened")
