"""What a service manager hears, on a real socket, from a program that it has started."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import pytest
import trio
import trio.testing
from controllers import running_controller
from daemons import running_daemon

from sandd._core.service_manager import MAX_STATUS, ServiceManager, open_service_manager

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there are no such sockets")

SECONDS: Final = 40.0
"""For what takes one or two: the machine may be busy."""


class Listener:
    """A service manager's end."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.settimeout(SECONDS)
        self._socket.bind(f"\0{address[1:]}" if address.startswith("@") else address)

    def next(self) -> str:
        """The next datagram."""
        return self._socket.recv(4096).decode()

    def until(self, beginning: str) -> str:
        """The first that begins so, and those before it are passed over."""
        while not (heard := self.next()).startswith(beginning):
            pass
        return heard

    def all(self) -> list[str]:
        """What has come so far."""
        self._socket.setblocking(False)
        found = []
        try:
            while True:
                found.append(self.next())
        except BlockingIOError:
            self._socket.settimeout(SECONDS)
            return found

    def is_silent(self, seconds: float) -> bool:
        """Whether nothing comes for so long."""
        return not select.select([self._socket], [], [], seconds)[0]

    def close(self) -> None:
        """Hear no more."""
        self._socket.close()


@contextmanager
def listening(name: str = "notify") -> Iterator[Listener]:
    """One at a path, or at an abstract name."""
    with (
        tempfile.TemporaryDirectory() as directory
    ):  # short: such a path has 107 characters at most
        address = name if name.startswith("@") else f"{directory}/{name}"
        listener = Listener(address)
        try:
            yield listener
        finally:
            listener.close()


def variables(address: str, **more: str) -> dict[str, str]:
    """An environment that asks."""
    return {"NOTIFY_SOCKET": address, "PATH": "/bin", **more}


@pytest.mark.parametrize(
    "name",
    [
        "notify",
        pytest.param(
            "@sandd-test",
            marks=pytest.mark.skipif(sys.platform != "linux", reason="abstract names are Linux'"),
        ),
    ],
)
def test_what_is_told_is_heard(name: str) -> None:
    """In systemd's words, and with the clock that it asks for; wherever its socket is."""
    if name.startswith("@"):
        name = f"{name}-{os.getpid()}"  # of one name there is one on a machine
    with listening(name) as listener:
        environment = variables(listener.address)
        with open_service_manager(environment, 1) as manager:
            manager.ready()
            before = time.monotonic_ns() // 1000
            manager.reloading()
            manager.stopping()
        assert listener.next() == "READY=1"
        told, clock = listener.next().splitlines()
        assert told == "RELOADING=1"
        assert before <= int(clock.removeprefix("MONOTONIC_USEC=")) <= time.monotonic_ns() // 1000
        assert listener.next() == "STOPPING=1"


def test_its_variables_are_for_nobody_else() -> None:
    """Whatever they say, they are gone: commands are not what it asks about."""
    with listening() as listener:
        asked = variables(listener.address, WATCHDOG_USEC="1", WATCHDOG_PID="1")
        for environment in (asked, {**asked, "NOTIFY_SOCKET": ""}):
            with open_service_manager(environment, 1):
                assert environment == {"PATH": "/bin"}


@pytest.mark.parametrize("address", ["/nowhere/at/all", "vsock:2:1234", "@" + "x" * 200])
def test_one_that_is_not_there_harms_nothing(
    address: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged once, and what is told goes nowhere."""
    with open_service_manager(variables(address), 1) as manager:
        manager.ready()
    (record,) = caplog.records
    assert record.msg["event"] == "service_manager_not_reached"


def test_one_that_has_gone_or_does_not_read_harms_nothing() -> None:
    """Nothing waits for it, and nothing is raised."""
    with listening() as listener, open_service_manager(variables(listener.address), 1) as manager:
        for _ in range(10_000):  # more than any system keeps for it
            manager.ready()
        listener.close()
        manager.ready()


async def test_what_it_had_no_room_for_is_told_later(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """It would wait for READY=1 to the end of its patience, and kill a program that is well."""
    with listening() as listener, open_service_manager(variables(listener.address), 1) as manager:
        while manager._tell("full"):
            pass
        manager.ready()
        assert "READY=1" not in listener.all()
        with trio.move_on_after(12):
            await manager.attend(lambda: "well")
        assert listener.all() == ["READY=1", "STATUS=well"]


@pytest.mark.parametrize(
    ("microseconds", "pid", "seconds"),
    [
        ("3000000", "7", 3.0),
        ("3000000", "", 3.0),
        ("3000000", "8", None),
        ("0", "7", None),
        ("", "7", None),
        ("-5", "7", None),
        ("9" * 20, "7", None),
    ],
)
def test_a_watchdog_is_taken_for_what_it_says(
    microseconds: str, pid: str, seconds: float | None
) -> None:
    """Of this process, or it is another's; and a number, or it is none."""
    with listening() as listener:
        asked = variables(listener.address, WATCHDOG_USEC=microseconds, WATCHDOG_PID=pid)
        with open_service_manager(asked, 7) as manager:
            assert manager.watchdog_seconds == seconds


async def test_pings_come_while_the_loop_turns_and_a_status_when_it_changes(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Three in the time that it waits; each status is a line, however many lines it had."""
    with listening() as listener:
        asked = variables(listener.address, WATCHDOG_USEC="9000000")
        with open_service_manager(asked, 1) as manager, trio.move_on_after(8.5):
            texts = iter(["one", "one\nREADY=1\n", "x" * 1000])
            await manager.attend(lambda: next(texts))
        ping = "WATCHDOG=1"
        assert listener.all() == [
            *("STATUS=one", ping),
            *("STATUS=one READY=1", ping),
            *(f"STATUS={'x' * MAX_STATUS}", ping),
        ]


async def test_without_a_watchdog_there_are_no_pings(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """And nobody who doesn't listen is looked after at all."""
    with listening() as listener:
        with open_service_manager(variables(listener.address), 1) as manager:
            with trio.move_on_after(100):
                await manager.attend(lambda: "well")
        assert listener.all() == ["STATUS=well"]
    with trio.move_on_after(100) as waited:
        await ServiceManager().attend(lambda: pytest.fail("somebody looked"))
    assert waited.cancelled_caught


# ---- the programs -------------------------------------------------------------------------------


def test_both_programs_tell_how_they_are() -> None:
    """That they are ready, connected, and end; of the controller that it reloads; and their commands are not asked."""
    with listening() as of_controller, listening() as of_daemon:
        watchdog = {"WATCHDOG_USEC": "3000000"}
        asked = {"NOTIFY_SOCKET": of_controller.address, **watchdog}
        with running_controller(env=asked) as controller:
            assert of_controller.until("READY=1")
            with running_daemon(
                controller.url, env={"NOTIFY_SOCKET": of_daemon.address, **watchdog}
            ):
                assert of_daemon.until("READY=1")
                assert of_daemon.until(f"STATUS=connected to {controller.url}")
                assert of_daemon.until("WATCHDOG=1")
                controller.wait_for_daemon("worker-1")
                heard = of_controller.until(f"STATUS=serving at {controller.url}: 1 ")
                assert heard.endswith("1 daemons online, 0 away")
                done = controller.run_command("exec", "worker-1", "--", "env")
                assert done.returncode == 0
                assert "NOTIFY_SOCKET" not in done.stdout
                assert "WATCHDOG" not in done.stdout

                # A socket holds ten, and pings that nobody takes leave no room for what is to be heard.
                of_controller.all()
                controller.process.send_signal(signal.SIGHUP)
                assert of_controller.until("RELOADING=1\nMONOTONIC_USEC=")
                assert of_controller.until("READY=1")
                of_daemon.all()
            assert of_daemon.until("STOPPING=1")
        assert of_controller.until("STOPPING=1")


def test_a_program_that_hangs_pings_no_more() -> None:
    """So that its manager starts another; and it pings again where it was only held up."""
    with listening() as of_daemon:
        asked = {"NOTIFY_SOCKET": of_daemon.address, "WATCHDOG_USEC": "300000"}
        with running_daemon("ws://127.0.0.1:9/ws", env=asked) as daemon:
            assert of_daemon.until("WATCHDOG=1")
            daemon.signal(signal.SIGSTOP)
            _wait_until_stopped(daemon.pid)
            of_daemon.all()
            assert of_daemon.is_silent(seconds=0.5)  # five pings long
            daemon.signal(signal.SIGCONT)
            assert of_daemon.until("WATCHDOG=1")


def _wait_until_stopped(pid: int) -> None:
    give_up = time.monotonic() + SECONDS
    while time.monotonic() < give_up:
        shown = subprocess.run(
            ["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True
        )
        if shown.stdout.strip().startswith("T"):
            return
    pytest.fail("it was never stopped")
