"""A real pseudo-terminal: what raw mode changes, and what of it is shared with others."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import pytest
import trio

termios = pytest.importorskip("termios", reason="there are no such terminals")
fcntl = pytest.importorskip("fcntl", reason="there are no such terminals")

from sandd import NoTerminal  # noqa: E402
from sandd.terminal import posix  # noqa: E402 - where it can be imported
from sandd.terminal.local import LocalTerminal, open_terminal  # noqa: E402
from sandd.terminal.posix import PosixTerminal  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def pair() -> Iterator[tuple[int, int]]:
    """Both ends of a pseudo-terminal: the emulator's, and the programs'."""
    master, slave = os.openpty()
    yield master, slave
    for descriptor in (master, slave):
        try:
            os.close(descriptor)
        except OSError:
            pass  # the test has


@pytest.fixture
def device(pair: tuple[int, int]) -> Iterator[PosixTerminal]:
    """The programs' end."""
    device = PosixTerminal(pair[1], pair[1])
    yield device
    device.close()


def flags(descriptor: int) -> int:
    """Those of the open file description."""
    return int(fcntl.fcntl(descriptor, fcntl.F_GETFL))


def modes(descriptor: int) -> list[Any]:
    """Of the terminal."""
    return list(termios.tcgetattr(descriptor))


def test_raw_mode_is_cfmakeraw(pair: tuple[int, int], device: PosixTerminal) -> None:
    """No key means anything, nothing is echoed or translated; and then all is as it was, bit by bit."""
    before = modes(pair[1])
    device.remember()
    device.make_raw()
    made = modes(pair[1])
    assert not made[0] & (termios.ICRNL | termios.IXON | termios.ISTRIP | termios.BRKINT)
    assert not made[1] & termios.OPOST
    assert not made[3] & (termios.ICANON | termios.ECHO | termios.ISIG | termios.IEXTEN)
    assert made[6][termios.VMIN] in (1, b"\x01")
    device.restore()
    assert modes(pair[1]) == before


def test_the_description_that_others_share_stays_blocking(
    pair: tuple[int, int], device: PosixTerminal
) -> None:
    """Ours is another one; whoever holds the terminal beside us finds it as it was."""
    before = flags(pair[1])
    assert not before & os.O_NONBLOCK
    for own in (device._input, device._output):
        assert own != pair[1]
        assert flags(own) & os.O_NONBLOCK
    device.make_raw()
    assert flags(pair[1]) == before


async def test_keys_come_as_they_are(pair: tuple[int, int], device: PosixTerminal) -> None:
    """Ctrl-C, Ctrl-D and Ctrl-Z among them; what was typed before is not lost."""
    os.write(pair[0], b"early\r")
    device.make_raw()
    os.write(pair[0], b"\x03\x04\x1a\r\xff")
    received = b""
    with trio.fail_after(5):
        while len(received) < 11:
            received += await device.receive()
    assert received in (b"early\r\x03\x04\x1a\r\xff", b"early\n\x03\x04\x1a\r\xff")


async def test_a_slow_terminal_is_shown_everything(
    pair: tuple[int, int], device: PosixTerminal
) -> None:
    """Far more than fits is sent, nobody reads for a while, and not a byte is missing."""
    device.make_raw()
    data = os.urandom(300_000)
    received = bytearray()
    async with trio.open_nursery() as nursery:
        sent = trio.Event()

        async def send() -> None:
            await device.send(data)
            sent.set()

        nursery.start_soon(send)
        await trio.sleep(0.05)
        assert not sent.is_set()
        while len(received) < len(data):
            await trio.lowlevel.wait_readable(pair[0])
            received += os.read(pair[0], 1000)
        with trio.fail_after(5):
            await sent.wait()
    assert received == data


async def test_a_closed_window_is_the_end(pair: tuple[int, int], device: PosixTerminal) -> None:
    """Nothing more is typed; nothing that is done to it then fails."""
    device.make_raw()
    os.close(pair[0])
    with trio.fail_after(5):
        assert await device.receive() == b""
        await device.send(b"x" * 100_000)
    device.restore()
    assert device.size() in ((0, 0), (24, 80))


def test_sizes_are_the_terminal_s(pair: tuple[int, int], device: PosixTerminal) -> None:
    """Rows and columns in this order."""
    termios.tcsetwinsize(pair[0], (33, 77))
    assert device.size() == (33, 77)


def test_what_is_no_terminal_can_t_be_opened() -> None:
    """And leaves nothing open."""
    reading, writing = os.pipe()
    with pytest.raises(NoTerminal, match="can't be opened: it has no name here"):
        PosixTerminal(reading, writing)
    os.close(reading)
    os.close(writing)


def test_a_terminal_that_may_not_be_opened(
    pair: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after ``su``: it says why; the one that could be opened is closed."""

    def open_first(name: str, access: int, opened: list[int] = [], real: Any = os.open) -> int:  # noqa: B006
        if opened:
            raise PermissionError(13, "Permission denied", name)
        opened.append(real(name, access))
        return opened[0]

    monkeypatch.setattr(posix.os, "open", open_first)
    with pytest.raises(NoTerminal, match=r"can't be opened: .*Permission denied"):
        PosixTerminal(pair[1], pair[1])


def test_the_program_s_terminal_is_put_back_whatever_happens(
    pair: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if all of trio is torn down with the terminal raw."""
    before = modes(pair[1])
    with os.fdopen(pair[1], "r", closefd=False) as stream:
        monkeypatch.setattr(sys, "stdin", stream)
        monkeypatch.setattr(sys, "stdout", stream)
        try:
            with open_terminal() as terminal:
                assert isinstance(terminal, LocalTerminal)
                terminal._enter()
                assert modes(pair[1]) != before
                raise RuntimeError("torn down")
        except RuntimeError:
            pass
    assert modes(pair[1]) == before
