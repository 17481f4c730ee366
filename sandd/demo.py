"""``sandd demo``: a controller, a daemon and real work on one machine, shown and checked step by step.

Everything here is public API; whatever a step says about its outcome it has verified. The commands
are Python programs of a few lines, so that they are the same on every platform.
"""

from __future__ import annotations

import hashlib
import os
import random
import secrets
import shlex
import signal
import subprocess
import sys
import tempfile
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio
from attrs import define, field, frozen
from rich.console import Console
from rich.table import Table
from rich.text import Text

import sandd
from sandd._core.logs import printable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

START_SECONDS: Final = 20.0
"""For the daemon to dial in: half a second, or much more on a machine that is busy."""
STEP_SECONDS: Final = 30.0
"""For any one step, each of which takes a second or two."""
STOP_SECONDS: Final = 12.0
"""For the daemon to end after SIGTERM; it gives itself 8."""

# ---- what the daemon is asked to run --------------------------------------------------------------

# Counts primes, block by block: first, end, block.
PRIMES: Final = """
import sys, time
first, end, block = map(int, sys.argv[1:])
for start in range(first, end, block):
    numbers = range(max(start, 2), start + block)
    count = sum(all(n % d for d in range(2, int(n**0.5) + 1)) for n in numbers)
    print(f"{start:>5} to {start + block - 1}: {count} primes", flush=True)
    time.sleep(0.12)
"""

PACK: Final = "import sys, zlib; sys.stdout.buffer.write(zlib.compress(sys.stdin.buffer.read(), 1))"
UNPACK: Final = "import sys, zlib; sys.stdout.buffer.write(zlib.decompress(sys.stdin.buffer.read()))"

# Ignores SIGTERM, starts another of its kind, every second one in a session of its own:
# this program, marker, how many more.
TREE: Final = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
program, marker, more = sys.argv[1], sys.argv[2], int(sys.argv[3])
if more:
    argv = [sys.executable, "-c", program, program, marker, str(more - 1)]
    subprocess.Popen(argv, start_new_session=more % 2 == 0)
print("up", flush=True)
time.sleep(600)
"""

# Counts the processes that have the text of stdin on their command line.
COUNT: Final = """
import os, subprocess, sys
marker, lines = sys.stdin.read(), []
if os.path.isdir("/proc/self"):
    for name in filter(str.isdecimal, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/cmdline", "rb") as file:
                lines.append(file.read().decode(errors="replace"))
        except OSError:
            pass
else:
    ask = ["ps", "-axww", "-o", "command="]
    if sys.platform == "win32":
        ask = ["powershell", "-NoProfile", "-Command", "(Get-CimInstance Win32_Process).CommandLine"]
    lines = subprocess.run(ask, capture_output=True, text=True, check=True).stdout.splitlines()
print(sum(marker in line for line in lines))
"""

# Writes numbered lines, at some MB a second: how many.
LINES: Final = """
import hashlib, sys, time
for number in range(int(sys.argv[1])):
    digest = hashlib.sha256(b"%d" % number).hexdigest()
    sys.stdout.buffer.write(b"%07d %s\\n" % (number, digest.encode()))
    if number % 500 == 0:
        time.sleep(0.01)
"""


def python(program: str, *arguments: str) -> list[str]:
    """The command that runs one of these."""
    return [sys.executable, "-c", program, *arguments]


def pipeline(*commands: list[str]) -> str:
    """Commands for the shell, each one's output the next one's input."""
    quote = subprocess.list2cmdline if sys.platform == "win32" else shlex.join
    return " | ".join(quote(command) for command in commands)


# ---- what is shown --------------------------------------------------------------------------------


class CheckFailed(Exception):  # noqa: N818 - not an error of the program: what it was written to find
    """Something that the demo was about to claim is not so."""


def check(holds: bool, claim: str) -> None:
    """Insist on it."""
    if not holds:
        raise CheckFailed(f"this should be so, and is not: {claim}")


@frozen
class Outcome:
    """How one step went."""

    title: str
    said: str
    seconds: float
    held: bool


class Screen:
    """What the user sees: colours where there is a terminal, plain lines elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def title(self, text: str) -> None:
        """A new step."""
        self._console.print()
        self._line(Text(text, "bold"))

    def explain(self, text: str) -> None:
        """What it is about to do, and what it makes sure of."""
        self._line(Text(f"  {text}"))

    def output(self, source: str, text: str, style: str) -> None:
        """A line that a remote command printed."""
        self._line(Text.assemble("    ", (f"{source:<8}", style), " ", printable(text)))

    def event(self, text: str, style: str = "yellow") -> None:
        """Something happened meanwhile."""
        self._line(Text(f"    * {text}", style))

    def outcome(self, outcome: Outcome) -> None:
        """What came of the step."""
        word, style = ("ok", "bold green") if outcome.held else ("FAILED", "bold red")
        self._line(Text.assemble("  ", (word, style), f": {outcome.said}"))

    def summary(self, outcomes: list[Outcome]) -> None:
        """All of it once more, as a table."""
        table = Table("step", "what was seen", Text("seconds", justify="right"), "", box=None)
        for each in outcomes:
            word = Text("ok", "green") if each.held else Text("FAILED", "bold red")
            table.add_row(each.title, printable(each.said), f"{each.seconds:.1f}", word)
        self._console.print()
        self._console.print(table)

    def _line(self, text: Text) -> None:
        # A line stays a line, whatever its length: a terminal can wrap it, and a file should not.
        self._console.print(text, soft_wrap=True)


# ---- the connection, and how it breaks ------------------------------------------------------------


@define(eq=False)
class Relay:
    """A TCP relay between daemon and controller that can cut the connections through it."""

    _host: str
    _port: int
    url: str = ""
    """Where the daemon is to dial."""
    _open: set[trio.CancelScope] = field(factory=set)

    @classmethod
    @asynccontextmanager
    async def listen(cls, controller: sandd.Controller) -> AsyncIterator[Relay]:
        """Relay to the controller while the block lasts."""
        host, _, port = controller.address.rpartition(":")
        relay = cls(host, int(port))
        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(
                partial(trio.serve_tcp, relay._relay, 0, host="127.0.0.1")
            )
            relay.url = f"ws://127.0.0.1:{listeners[0].socket.getsockname()[1]}/ws"
            yield relay
            nursery.cancel_scope.cancel()

    def cut(self) -> None:
        """Close every connection at once; whatever is on its way in either direction is lost."""
        for scope in self._open:
            scope.cancel()

    async def _relay(self, near: trio.SocketStream) -> None:
        try:
            async with near, await trio.open_tcp_stream(self._host, self._port) as far:
                async with trio.open_nursery() as nursery:
                    self._open.add(nursery.cancel_scope)
                    try:
                        nursery.start_soon(self._forward, near, far, nursery.cancel_scope)
                        await self._forward(far, near, nursery.cancel_scope)
                    finally:
                        self._open.discard(nursery.cancel_scope)
        except OSError:
            pass  # the controller doesn't listen any more

    async def _forward(
        self, source: trio.SocketStream, sink: trio.SocketStream, pair: trio.CancelScope
    ) -> None:
        try:
            while data := await source.receive_some(65536):
                await sink.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        pair.cancel()


@asynccontextmanager
async def local_daemon(url: str, directory: Path, ender: Ender) -> AsyncIterator[Path]:
    """A daemon as a child process; the file with its log. It is gone when the block is left."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SANDD_")}
    command = [sys.executable, "-m", "sandd.daemon", "--server-url", url, "--daemon-id", "demo"]
    command += ["--state-dir", str(directory / "state"), "--reconnect-max", "0.5"]
    log = directory / "daemon.log"
    # In a group of its own: a Ctrl-C is ours, and we end the daemon in good order.
    group = {"creationflags": 0x200} if sys.platform == "win32" else {"start_new_session": True}
    with log.open("wb") as file:
        process = await trio.lowlevel.open_process(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file, **group
        )
    try:
        with ender.watching(process):
            yield log
    finally:
        process.terminate()
        with trio.CancelScope(shield=True):
            with trio.move_on_after(STOP_SECONDS):
                await process.wait()
            if process.returncode is None:
                process.kill()
                await process.wait()
