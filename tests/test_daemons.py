"""The tests' own way to start real daemons: it can be relied on, and hides no trouble."""

from __future__ import annotations

import signal
import sys

import pytest
import trio
from daemons import open_daemon, running_daemon

from sandd import DaemonState, open_controller

UNREACHABLE = "ws://127.0.0.1:9/ws"
"""The discard port: nobody listens."""

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="SIGTERM can't be handled there")


@posix_only
async def test_open_daemon_starts_one_and_stops_it() -> None:
    """It has the id, labels and environment asked for; it is gone in good order afterwards."""
    async with open_controller(port=0) as controller:
        async with open_daemon(
            controller.url, "some-id", labels={"k": "v"}, env={"COLOUR": "green"}
        ) as daemon:
            with trio.fail_after(30):
                worker = await controller.wait_for_daemon("some-id")
            assert worker.info.labels == {"k": "v"}
            assert (await worker.run("echo $COLOUR")).stdout == "green\n"
            assert daemon.exit_code is None
            assert daemon.state_dir.is_dir()
            assert "connected" in await daemon.wait_for_log("connected")
        assert worker.state is DaemonState.GONE
    assert daemon.exit_code == 0
    assert not daemon.home.exists()
    assert "stopped" in daemon.log


@posix_only
def test_our_own_options_do_not_reach_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a developer has set for daemons of their own changes no test."""
    monkeypatch.setenv("SANDD_LABELS", "not a label")
    monkeypatch.setenv("SERVER_URL", "not a url")
    with running_daemon(UNREACHABLE, arguments=["--log-format", "json"]) as daemon:
        assert '"event": "dial_failed"' in daemon.wait_for_log_sync("dial_failed")


def test_a_daemon_that_ends_unasked_fails_the_test() -> None:
    """Even if the test itself saw nothing of it; the failure shows the daemon's log."""
    with pytest.raises(AssertionError, match=r"ended by itself(?s:.)*--server-url 'nonsense'"):
        with running_daemon("nonsense") as daemon:
            daemon._process.wait(30)


def test_an_end_that_was_waited_for_is_no_failure() -> None:
    """Whoever asks how it ended knows that it has."""
    with running_daemon("nonsense") as daemon:
        assert daemon.wait_sync() == 2


async def test_an_end_that_does_not_come_in_time_is_told() -> None:
    """The bound is the caller's, and what the daemon logged is shown."""
    async with open_daemon(UNREACHABLE) as daemon:
        await daemon.wait_for_log("dial_failed")
        with pytest.raises(AssertionError, match=r"did not end within 0.01 s(?s:.)*dial_failed"):
            await daemon.wait(0.01)


@posix_only
async def test_a_daemon_that_was_killed_is_no_failure() -> None:
    """`kill` and `stop` end it within the block."""
    async with open_daemon(UNREACHABLE) as daemon:
        daemon.kill()
        assert daemon.exit_code == -signal.SIGKILL
    async with open_daemon(UNREACHABLE) as daemon:
        await daemon.wait_for_log("dial_failed")
        assert await daemon.stop() == 0


async def test_a_failing_test_shows_the_log() -> None:
    """The body's exception comes out as itself, with the log as a note, and nothing stays."""

    async def fail() -> None:
        async with open_daemon(UNREACHABLE) as daemon:
            await daemon.wait_for_log("started")
            raise LookupError

    with pytest.raises(LookupError) as caught:
        await fail()
    assert "started" in caught.value.__notes__[0]
