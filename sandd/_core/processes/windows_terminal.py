"""A job's terminal on Windows: a pseudo-console, whose calls block, behind streams whose calls don't.

A pseudo-console takes and gives text, and knows no signals but Ctrl-C, which is typed. Reading it is a thread's
business, one for each session: nothing on Windows can wait for it together with other things. It hands over
what it has read through a bounded queue, so a reader that is slow makes it stop.

That the process has exited ends nothing in there: what the program wrote may still be on its way through the
console, and older consoles never tell an end. So output ends where the console says so, or
`CONSOLE_DRAIN_SECONDS` after the last sign of life.

It runs wherever trio does, given a `Console`; that is how its logic is tested elsewhere.
"""

from __future__ import annotations

import codecs
import contextlib
import math
import signal
import threading
from typing import TYPE_CHECKING, Final, Protocol

import trio

from sandd._core.logs import get_logger
from sandd._core.processes.interface import ReceivesNowait, Terminal
from sandd._core.processes.thread_handoff import ThreadHandoff

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import TypeAlias

    from sandd._core.processes.interface import TerminalSize

CONSOLE_DRAIN_SECONDS: Final = 0.5
"""After the exit, how long a console may stay silent before its output has ended. It paints within some
hundredths of a second, so this allows for a machine that is busy; and it is less than what the runner waits
for pipes that somebody else holds (`runner.DRAIN_SECONDS`), or each session would seem to be such a case."""
HANDOFF_BYTES: Final = 256 * 1024
"""Read from the console and not yet taken by the job: as much as a job's pipe holds."""
READ_BYTES: Final = 128 * 1024
"""Taken in one turn, where the caller names no limit."""
MAX_SIDE: Final = 32767
"""Rows or columns of a console: a COORD has 16 bits with a sign."""
CTRL_C: Final = "\x03"

log = get_logger("processes")


class Console(Protocol):
    """A pseudo-console in which a process runs; see `windows_pywinpty` for the real one."""

    @property
    def pid(self) -> int:
        """The process that was started in it."""

    def read(self) -> bytes:
        """Wait for output, and return it; b"" where there is none after all.

        Raises:
            EOFError: there will be no more.
        """

    def write(self, text: str) -> None:
        """Type it; waits while nobody takes it. Raises OSError when nobody ever will."""

    def resize(self, rows: int, cols: int) -> None:
        """Its window has another size from now on. Raises OSError where that can't be done."""

    def has_exited(self) -> bool:
        """Whether the process has. Not to be asked any more once `wait_exited` was called."""

    async def wait_exited(self) -> int:
        """Wait for the process to exit; its exit code. To be called once, whatever happens."""

    def terminate(self) -> None:
        """Kill the process. Not to be asked any more once `wait_exited` was called."""

    def interrupt(self) -> None:
        """Have `read`, in whatever thread, come back soon. Never waits."""

    def close(self) -> None:
        """Hang up and let go of it; it may wait for the process. Nobody reads any more."""


if TYPE_CHECKING:
    OpenConsole: TypeAlias = Callable[
        [list[str], TerminalSize, str | None, Mapping[str, str]], Console
    ]
    """Start a program in a new console, of that size, in that directory, with that environment. Blocks.

    Raises:
        SpawnFailed: consoles can't be had on this machine, and what to do about it.
        OSError, ValueError: this one can't be started; `filename` is what it failed on, if anything.
    """


class ConsoleTerminal(Terminal):
    """A console from outside, with its two streams. `close` closes all of it, and never waits.

    Args:
        console: belongs to this object from now on, but for its process.
        nursery: has to live as long as this does.
    """

    def __init__(self, console: Console, nursery: trio.Nursery) -> None:
        self._console = console
        self._nursery = nursery
        self._typing = trio.CapacityLimiter(1)
        """Whoever types. A thread that is left alone with its text keeps the place: nothing overtakes it."""
        self.is_closed = False
        self.has_exited = False
        self.input = ConsoleInput(self)
        self.output = ConsoleOutput()
        threading.Thread(
            target=_read_to_the_end,
            args=(console, self.output.handoff),
            name=f"sandd console of {console.pid}",
            daemon=True,  # a console that never lets go must not keep the daemon from ending
        ).start()

    def __repr__(self) -> str:
        return f"<ConsoleTerminal of {self._console.pid}>"

    def resize(self, rows: int, cols: int) -> None:
        if not self.is_closed and not self.has_exited:
            with contextlib.suppress(OSError):
                self._console.resize(*console_size((rows, cols)))

    def signal(self, number: int) -> bool:
        """Ctrl-C is typed, for whoever reads the console; there is nothing else that could be sent."""
        if number != signal.SIGINT or self.is_closed or self.has_exited:
            return False
        self._nursery.start_soon(self._type_break)
        return True

    async def _type_break(self) -> None:
        with contextlib.suppress(OSError):
            await self.type(CTRL_C)

    async def type(self, text: str) -> None:
        """Have a thread type it. Cancelling leaves that alone, with what it has not yet typed."""
        await trio.to_thread.run_sync(
            self._console.write, text, abandon_on_cancel=True, limiter=self._typing
        )

    def process_exited(self) -> None:
        """The first process has ended. What it has written may still be on its way."""
        self.has_exited = True
        self.output.process_exited()

    def close(self) -> None:
        """Hang up, and end whoever waits for it. The thread that reads does what may take time."""
        if not self.is_closed:
            self.is_closed = True
            self.output.close()
            self.input.close()
            self._console.interrupt()


class ConsoleOutput(trio.abc.ReceiveStream, ReceivesNowait):
    """What the console shows, as UTF-8."""

    def __init__(self) -> None:
        self.handoff = ThreadHandoff(HANDOFF_BYTES)
        self._quiet_until = math.inf
        """Trio time of the end, if nothing comes any more."""
        self._has_exited = False
        self._is_closed = False

    def receive_nowait(self, max_bytes: int) -> bytes | None:
        if self._is_closed:
            raise trio.ClosedResourceError("this terminal was closed")
        data = self.handoff.take(max_bytes)
        if data:
            # Counted from here, not from its arrival: while it lay here, the thread may have had to wait.
            self._count_silence()
        elif data is None and trio.current_time() >= self._quiet_until:
            self.handoff.close()
            self.handoff.end()
            return b""
        return data

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        await trio.lowlevel.checkpoint_if_cancelled()
        while (data := self.receive_nowait(max_bytes or READ_BYTES)) is None:
            with trio.move_on_at(self._quiet_until):
                await self.handoff.changed()
        await trio.lowlevel.cancel_shielded_checkpoint()
        return data

    def process_exited(self) -> None:
        """From now on, silence is the end."""
        self._has_exited = True
        self._count_silence()
        self.handoff.wake()

    def _count_silence(self) -> None:
        if self._has_exited:
            self._quiet_until = trio.current_time() + CONSOLE_DRAIN_SECONDS

    def close(self) -> None:
        """Whoever waits for it gets `trio.ClosedResourceError`."""
        self._is_closed = True
        self.handoff.close()
        self.handoff.wake()

    async def aclose(self) -> None:
        """Nothing: the terminal is one for both directions, and closed as one."""
        await trio.lowlevel.checkpoint()


class ConsoleInput(trio.abc.SendStream):
    """What is typed there, in UTF-8; what is none comes as U+FFFD, for a console takes text only."""

    def __init__(self, terminal: ConsoleTerminal) -> None:
        self._terminal = terminal
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._sending: trio.CancelScope | None = None

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Type all of it, but for the beginning of a character whose end is yet to come."""
        await trio.lowlevel.checkpoint()
        if self._terminal.is_closed:
            raise trio.ClosedResourceError("this terminal was closed")
        text = self._decoder.decode(bytes(data))
        if not text:
            return
        with trio.CancelScope() as self._sending:
            try:
                await self._terminal.type(text)
            except OSError as error:
                raise trio.BrokenResourceError("nobody has the terminal open") from error
        if self._sending.cancelled_caught:
            raise trio.ClosedResourceError("this terminal was closed")

    async def wait_send_all_might_not_block(self) -> None:
        """Nothing: a console does not tell."""
        await trio.lowlevel.checkpoint()

    def close(self) -> None:
        """Whoever sends gets `trio.ClosedResourceError`."""
        if self._sending is not None:
            self._sending.cancel()

    async def aclose(self) -> None:
        """Nothing: that nobody types any more is no end of the terminal."""
        await trio.lowlevel.checkpoint()


class ConsoleProcess:
    """The process in a console, with as much of `trio.Process` as `WindowsChild` needs."""

    stderr: None = None

    def __init__(self, console: Console, nursery: trio.Nursery) -> None:
        self.pid = console.pid
        self.returncode: int | None = None
        self.terminal = ConsoleTerminal(console, nursery)
        self.stdin: trio.abc.SendStream = self.terminal.input
        self.stdout: trio.abc.ReceiveStream = self.terminal.output
        self._exited = trio.Event()
        self._watching = trio.CancelScope(shield=True)
        nursery.start_soon(self._watch, console)

    async def _watch(self, console: Console) -> None:
        # Shielded: whatever is being cancelled, its end must be heard of; `abandon` is what ends this.
        with self._watching:
            self.returncode = await console.wait_exited()
            self.terminal.process_exited()
            self._exited.set()

    async def wait(self) -> int:
        """Its exit code, once it has exited."""
        await self._exited.wait()
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Type Ctrl-C, whatever is asked for. A Ctrl-Break goes to those who share our console, and this has
        one of its own."""
        self.terminal.signal(signal.SIGINT)

    def abandon(self) -> None:
        """Stop waiting for a process that can't be ended."""
        self._watching.cancel()


def console_size(size: TerminalSize) -> TerminalSize:
    """As much of it as a console can have."""
    rows, cols = size
    return min(rows, MAX_SIDE), min(cols, MAX_SIDE)


def _read_to_the_end(console: Console, handoff: ThreadHandoff) -> None:
    try:
        while handoff.put(console.read()):
            pass
    except EOFError:
        pass
    except Exception:  # a defect of ours or of the library's: the output ends here
        log.exception("console_not_read", pid=console.pid)
    finally:
        handoff.end()
        # Here, because it may take as long as the process lives.
        console.close()
