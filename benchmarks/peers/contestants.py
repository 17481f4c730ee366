"""Who takes part: ours, what the system itself needs, and those of the peers that can be had here."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from benchmarks.openssh import find_sshd
from benchmarks.peers import packages
from benchmarks.peers.drivers import Answer, open_driver
from benchmarks.peers.local import Local, RawTls
from benchmarks.peers.openssh import open_openssh_peer

if TYPE_CHECKING:
    from collections.abc import Iterator

OURS, FLOOR, ORIGINAL, ORIGINAL_AT_ONCE = "ours", "floor", "original", "original, at once"
ASYNCSSH, OPENSSH, STOCK = "asyncssh", "OpenSSH", "trio-websocket"
OURS_BARE = "ours, bare daemon"
OURS_TLS, RAW_TLS = "ours, TLS", "raw TLS copy"
STOCK_HEARTBEAT = 20.0
"""Seconds between two of its daemons' heartbeats: as ours have it."""
WARM_UP = 20
"""Commands that each runs before anything is measured."""


class Contestant(Protocol):
    """Somebody who can be asked to do a work."""

    name: str

    def ask(self, work: str, **arguments: Any) -> Answer:
        """What came of it."""


def missing() -> dict[str, str]:
    """Who can't take part here, and why."""
    reasons = {
        name: f"{packages.REQUIREMENTS[name]} is not installed in {packages.DIRECTORY}"
        for name in (ORIGINAL, ASYNCSSH)
        if packages.find(name) is None
    }
    if find_sshd() is None:
        reasons[OPENSSH] = "no sshd here"
    return reasons


@contextmanager
def open_contestants(*names: str) -> Iterator[list[Contestant]]:
    """Those of them that can be had, each with one daemon or server that has run a few commands."""
    absent = missing()
    with ExitStack() as stack:
        yield [
            _open(name, stack)
            for name in names
            if (ORIGINAL if name == ORIGINAL_AT_ONCE else name) not in absent
        ]


def _open(name: str, stack: ExitStack) -> Contestant:
    if name == FLOOR:
        return Local()
    if name == RAW_TLS:
        return RawTls()
    if name == OPENSSH:
        ssh = stack.enter_context(open_openssh_peer())
        assert ssh is not None, "sshd is here, and doesn't let us in"
        return ssh
    module, *arguments = {
        OURS: ["ours"],
        OURS_BARE: ["ours", "--bare"],
        OURS_TLS: ["ours", "--tls"],
        ORIGINAL: ["original"],
        ORIGINAL_AT_ONCE: ["original", "--at-once"],
        ASYNCSSH: ["asyncssh_client"],
    }[name]
    package = ORIGINAL if module == "original" else ASYNCSSH if name == ASYNCSSH else None
    driver = stack.enter_context(open_driver(name, module, *arguments, package=package))
    if package == ORIGINAL:
        driver.ask("connect")
    driver.ask("exec", count=WARM_UP)
    return driver


@contextmanager
def open_crowds(daemons: int, *names: str, bare: bool = False) -> Iterator[list[Contestant]]:
    """Those of them that can be had, each with so many daemons, which dial when it is asked to `connect`.

    Ours that are `bare` do as little as the others': they only say what a daemon says that has nothing to do. So do
    those of OURS_BARE.
    """
    commands = {
        OURS: ["ours_many", str(daemons), *(["--bare"] if bare else [])],
        OURS_BARE: ["ours_many", str(daemons), "--bare"],
        ORIGINAL: ["original", "--daemons", str(daemons)],
        STOCK: ["stock", str(daemons), str(STOCK_HEARTBEAT)],
    }
    absent = missing()
    with ExitStack() as stack:
        yield [
            stack.enter_context(
                open_driver(name, *commands[name], package=name if name == ORIGINAL else None)
            )
            for name in names
            if name not in absent
        ]
