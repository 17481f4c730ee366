"""This machine's terminal while a session has it: raw, and put back on every way out.

What differs between platforms is in a `Device` (`posix`, `windows`); all order is here:

- Raw mode lasts as long as the block of `LocalTerminal.raw_mode`, and ends before anything else is waited
  for: the session's end, the controller's farewell. `restore` doesn't wait, and may be said any number
  of times; whoever opened the terminal says it once more when all of trio is over.
- A signal to stop us (SIGTERM, SIGHUP, ...) is not handled here: `shell` turns it into a cancellation, which
  leaves the block like any exception.
- SIGTSTP puts the terminal back before we stop. SIGCONT makes it raw again, after a SIGSTOP too, which nobody
  can see coming; but only where we are in the foreground: else the terminal is the shell's.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import textwrap
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

import trio

from sandd._core._errors import NoTerminal
from sandd._core.interrupts import protected_context
from sandd._core.nurseries import open_unwrapping_nursery
from sandd.terminal.modes import Modes

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

LAST_WORDS_SECONDS: Final = 1.0
"""What a terminal that shows nothing any more gets for the sequences that undo modes: raw mode ends then."""
LOOK_SECONDS: Final = 0.25
"""Between two looks at the size, where no signal tells of its change."""


class Size(NamedTuple):
    """Of a terminal, in characters."""

    rows: int
    columns: int


class Device(Protocol):
    """A terminal, as a platform has it. Nothing here keeps order; that is `LocalTerminal`'s."""

    @property
    def in_foreground(self) -> bool:
        """The terminal is ours to change, and not a shell's that has stopped us."""

    def remember(self) -> None:
        """Take its modes now for those to be put back."""

    def make_raw(self) -> None:
        """Every key is a byte to read, and every byte is shown as it is."""

    def restore(self) -> None:
        """The modes as they were remembered. Doesn't wait; does nothing if the terminal has gone."""

    def size(self) -> Size:
        """Rows and columns; 0 where it doesn't know."""

    async def receive(self) -> bytes:
        """What was typed; b"" when the terminal has gone."""

    async def send(self, data: bytes) -> None:
        """Show all of it, and wait for as long as that takes. Nothing happens if the terminal has gone."""

    def close(self) -> None:
        """Give back what was opened."""


class LocalTerminal:
    """The terminal this program was started from. Made by `open_terminal`."""

    def __init__(self, device: Device, *, notices_on_terminal: bool = True) -> None:
        self._device = device
        self._notices_on_terminal = notices_on_terminal
        self._modes = Modes()
        self._raw = False
        self._kept_raw = False
        """Whether `_raw` is to be made true again when we go on after having been stopped."""
        self._showing = trio.Lock()
        self._was_cut = False
        """Something was shown in part only: the terminal may be in the middle of a sequence."""
        self._size_changed = trio.Event()

    @property
    def size(self) -> Size:
        """As it is now; 24 rows of 80 where the terminal doesn't know."""
        rows, columns = self._device.size()
        return Size(rows, columns) if rows and columns else Size(24, 80)

    @property
    def is_raw(self) -> bool:
        """What is shown needs a carriage return with each line feed."""
        return self._raw

    async def receive(self) -> bytes:
        """What was typed, as soon as it is; b"" when the terminal has gone."""
        return await self._device.receive()

    async def show(self, data: bytes) -> None:
        """Show all of it; takes as long as the terminal does."""
        async with self._showing:
            self._modes.feed(data)
            await self._send(data)

    async def say(self, text: str) -> None:
        """A line of our own, on a line of its own: on the terminal if stderr is one, else on stderr.

        Where a program has all of the screen it is at the bottom, until that is painted anew.
        """
        if not self._notices_on_terminal:
            await trio.to_thread.run_sync(_print, text)
            return
        async with self._showing:
            await self._send(self._notice(text).encode("utf-8", "replace"))

    @protected_context
    async def raw_mode(self) -> AsyncIterator[None]:
        """The terminal is raw while the block lasts, and we follow its signals; then it is as it was."""
        with contextlib.ExitStack() as stack:
            signals = None
            if sys.platform != "win32":
                signals = stack.enter_context(
                    trio.open_signal_receiver(signal.SIGWINCH, signal.SIGTSTP, signal.SIGCONT)
                )
            try:
                async with open_unwrapping_nursery() as nursery:
                    nursery.start_soon(self._follow, signals)
                    self._enter()
                    try:
                        yield
                    finally:
                        await self._undo_modes()
                        self.restore()
                        nursery.cancel_scope.cancel()
            finally:
                self.restore()

    def restore(self) -> None:
        """Put the terminal's modes back, if they aren't; Ctrl-C meanwhile is raised afterwards."""
        interrupt: KeyboardInterrupt | None = None
        while self._raw:
            try:
                self._device.restore()
                self._raw = False
            except KeyboardInterrupt as error:
                interrupt = error
        if interrupt is not None:
            raise interrupt

    def suspend(self) -> None:
        """Stop this program, and whoever waits for it, as Ctrl-Z does; returns when it goes on.

        Meanwhile the terminal is as it was.
        """
        if sys.platform != "win32":
            # All of the group, as the key would: a script that has started us is not to wait for us.
            self._stop(lambda: os.killpg(0, signal.SIGTSTP))

    async def next_size(self, known: Size) -> Size:
        """The size, as soon as it is another one, or we went on after having been stopped."""
        while self.size == known:
            with trio.move_on_after(float("inf") if _HAS_SIGNALS else LOOK_SECONDS):
                await self._size_changed.wait()
            if self._size_changed.is_set():
                break
        self._size_changed = trio.Event()
        await trio.lowlevel.checkpoint()
        return self.size

    @contextlib.contextmanager
    def _closing(self) -> Iterator[LocalTerminal]:
        try:
            yield self
        finally:
            try:
                self.restore()
            finally:
                self._device.close()

    async def _follow(self, signals: AsyncIterator[int] | None) -> None:
        if sys.platform == "win32" or signals is None:
            return
        async for number in signals:
            if number == signal.SIGTSTP:
                self._stop(lambda: signal.raise_signal(signal.SIGTSTP))
            elif number == signal.SIGCONT:
                self._go_on()
            else:
                self._size_changed.set()

    def _stop(self, stop: Callable[[], None]) -> None:
        if sys.platform == "win32":
            return
        self._kept_raw = self._raw
        self.restore()
        # Not SIGSTOP: where there is no shell to continue us, this one is ignored.
        previous = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        try:
            stop()
        finally:
            signal.signal(signal.SIGTSTP, previous)
        self._go_on()  # SIGCONT comes, too; but not if we were not stopped

    def _enter(self) -> None:
        # In the background this stops us, as it does any program; then SIGCONT finds `_raw` true.
        self._device.remember()
        self._raw = True  # before it is: an interrupt between the two costs nothing
        self._device.make_raw()

    def _go_on(self) -> None:
        """We run again, and perhaps in the foreground; whatever the shell has made of the terminal."""
        if not self._device.in_foreground:
            return
        if self._kept_raw:
            self._kept_raw = False
            self._enter()  # the person may have changed a mode
        elif self._raw:
            self._device.make_raw()
        self._size_changed.set()

    async def _undo_modes(self) -> None:
        """Undo what the session's program has left on; for a terminal that is stuck, not for ever."""
        undo = self._modes.reset()
        if self._was_cut:
            undo = b"\x1b\\" + undo  # ends a string, and is nothing elsewhere
        if undo and self._device.in_foreground:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + LAST_WORDS_SECONDS):
                await self._device.send(undo)

    def _notice(self, text: str) -> str:
        if not self._raw:
            return f"{text}\n"
        if not self._modes.in_alternate_screen:
            return "\r\n".join(["", *text.splitlines(), ""])
        rows, columns = self.size
        lines = [part for line in text.splitlines() for part in textwrap.wrap(line, columns)]
        shown = [
            f"\x1b[{row};1H\x1b[K{line}"
            for row, line in enumerate(lines[-rows:], max(rows - len(lines), 0) + 1)
        ]
        # Cursor, colours and origin are the program's again afterwards.
        return f"\x1b7\x1b[?6l\x1b[0;7m{''.join(shown)}\x1b8"

    async def _send(self, data: bytes) -> None:
        self._was_cut = True
        await self._device.send(data)
        self._was_cut = False


_HAS_SIGNALS: Final = hasattr(signal, "SIGWINCH")


@contextlib.contextmanager
def open_terminal() -> Iterator[LocalTerminal]:
    """The terminal of stdin and stdout, as it was when the block is left.

    Raises:
        NoTerminal: one of the two is none.
    """
    for name, stream in (("stdin", sys.stdin), ("stdout", sys.stdout)):
        if stream is None or not stream.isatty():
            raise NoTerminal(
                f"{name} is not a terminal; a session needs one at both ends "
                "(a command alone needs none: sandd exec without -t, or Daemon.run)"
            )
    device: Device
    if sys.platform == "win32":
        from sandd.terminal.windows import WindowsConsole

        device = WindowsConsole()
    else:
        from sandd.terminal.posix import PosixTerminal

        device = PosixTerminal(sys.stdin.fileno(), sys.stdout.fileno())
    notices_on_terminal = sys.stderr is not None and sys.stderr.isatty()
    with LocalTerminal(device, notices_on_terminal=notices_on_terminal)._closing() as terminal:
        yield terminal


def _print(text: str) -> None:
    with contextlib.suppress(OSError, AttributeError):  # nobody reads it, or there is no stderr
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()
