"""`ServiceManager`: whoever has started this program and wants to hear how it is, as systemd does. Mostly nobody.

It is told by datagrams (sd_notify(3)): that we are ready, reload, end; and, while the event loop turns, that it does.
The variables by which it asks are taken out of the environment: what we start is not what it asks about.
"""

from __future__ import annotations

import contextlib
import socket
import sys
import time
from typing import TYPE_CHECKING, Final

import trio
from attrs import define

from sandd._core.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, MutableMapping

ADDRESS: Final = "NOTIFY_SOCKET"
WATCHDOG: Final = "WATCHDOG_USEC"
WATCHED: Final = "WATCHDOG_PID"
PINGS: Final = 3
"""Within the time that it waits for one: two may be late, as on a machine that has much to do."""
LOOK_SECONDS: Final = 5.0
"""Between two looks at what there is to show, where no watchdog asks more often."""
MAX_STATUS: Final = 300
"""Characters: a line for a person."""

log = get_logger("service")


@define(eq=False)
class ServiceManager:
    """Tells it, and never fails: nobody is served worse because it doesn't listen."""

    _socket: socket.socket | None = None
    """Connected; None: nobody wants to hear."""
    watchdog_seconds: float | None = None
    """Without a word for so long we are taken for hung, and killed."""
    _shown: str = ""
    _owed: str = ""
    """What it couldn't be told of our state, being behind with reading: without that it would wait, and kill us."""

    def __repr__(self) -> str:
        who = "nobody" if self._socket is None else self._socket.getpeername()
        return f"<ServiceManager {who!r}, watchdog {self.watchdog_seconds}>"

    def ready(self) -> None:
        """It may go on: we do what we are for; also after a reload."""
        self._tell_state("READY=1")

    def reloading(self) -> None:
        """What follows, until `ready`, is a reload."""
        # CLOCK_MONOTONIC tells it which of its requests this answers.
        self._tell_state(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """We are about to end."""
        self._tell_state("STOPPING=1")

    async def attend(self, status: Callable[[], str]) -> None:
        """Ping its watchdog, and show it what `status` says, for ever. Each ping has waited for the event loop."""
        if self._socket is None:
            await trio.sleep_forever()
        pause = LOOK_SECONDS
        if self.watchdog_seconds is not None:
            pause = min(pause, self.watchdog_seconds / PINGS)
        while True:
            if self._owed:
                self._tell_state(self._owed)
            self._show(status())
            if self.watchdog_seconds is not None:
                self._tell("WATCHDOG=1")
            await trio.sleep(pause)

    def _show(self, status: str) -> None:
        status = " ".join(status.split())[:MAX_STATUS]  # a line more would be an assignment
        if status != self._shown and self._tell(f"STATUS={status}"):
            self._shown = status

    def _tell_state(self, state: str) -> None:
        self._owed = "" if self._tell(state) else state

    def _tell(self, what: str) -> bool:
        """False: it couldn't be told."""
        if self._socket is None:
            return True
        try:
            self._socket.send(what.encode())
        except OSError as error:  # it has gone, or is behind with reading
            log.debug("service_manager_not_told", what=what, error=str(error))
            return False
        return True


NOBODY: Final = ServiceManager()
"""Where no program asks."""


@contextlib.contextmanager
def open_service_manager(
    environment: MutableMapping[str, str], pid: int
) -> Iterator[ServiceManager]:
    """Who has asked by these variables to hear of process `pid`; they are gone from there at once."""
    address = environment.pop(ADDRESS, "")
    watchdog, watched = environment.pop(WATCHDOG, ""), environment.pop(WATCHED, "")
    if not address or sys.platform == "win32":
        yield NOBODY
        return
    with contextlib.ExitStack() as stack:
        try:
            own = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
            own.setblocking(False)
            own.connect(f"\0{address[1:]}" if address.startswith("@") else address)
        except (OSError, ValueError) as error:
            log.warning("service_manager_not_reached", address=address, error=str(error))
            yield NOBODY
            return
        yield ServiceManager(own, _seconds(watchdog) if watched in ("", str(pid)) else None)


def _seconds(microseconds: str) -> float | None:
    if not (microseconds.isascii() and microseconds.isdecimal() and len(microseconds) < 16):
        return None
    return int(microseconds) / 1e6 or None
