"""When somebody who waits for a daemon is told that it is away, and how long they wait."""

from __future__ import annotations

import sys
from contextlib import ExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from attrs import define
from controllers import SECONDS, next_line, running_controller

from sandd import DaemonState
from sandd.command_line.outages import Outages, minding_outages
from sandd.command_line.stopping import Failure

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from controllers import ControllerProcess


@define(eq=False, slots=False)
class FakeDaemon:
    """Comes and goes as the test says; its own controller, as far as that tells of it."""

    state: DaemonState = DaemonState.ONLINE
    id: str = "worker-1"

    def __attrs_post_init__(self) -> None:
        self._put, self._events = trio.open_memory_channel[None](100)
        self.said: list[str] = []

    def becomes(self, state: DaemonState) -> None:
        """Something happens to it."""
        self.state = state
        self._put.send_nowait(None)

    async def say(self, text: str) -> None:
        """Gather what is told of it."""
        await trio.lowlevel.checkpoint()
        self.said.append(text)

    @asynccontextmanager
    async def open_events(self) -> AsyncIterator[AsyncIterator[None]]:
        """They end when the controller closes."""
        async with self._events:
            yield self._events.__aiter__()

    def close(self) -> None:
        """Nothing happens any more."""
        self._put.close()

    @asynccontextmanager
    async def minded(self, wait: float | None = None, **settings: Any) -> AsyncIterator[Outages]:
        """Its outages."""
        async with minding_outages(self, self, wait=wait, say=self.say, **settings) as outages:
            yield outages


async def test_an_outage_is_told_once_and_its_end(autojump_clock: trio.testing.MockClock) -> None:
    """One line when it has lasted a moment, one when it is over; other events change nothing."""
    daemon = FakeDaemon()
    async with daemon.minded(meaning="it goes on there", after=0.5):
        daemon.becomes(DaemonState.AWAY)
        await trio.sleep(0.3)
        assert daemon.said == []
        daemon.becomes(DaemonState.AWAY)  # something happened to another daemon
        await trio.sleep(0.3)
        daemon.becomes(DaemonState.AWAY)
        await trio.sleep(60)
        assert daemon.said == ["[worker-1 is away; it goes on there]"]
        daemon.becomes(DaemonState.ONLINE)
        daemon.becomes(DaemonState.ONLINE)
        await trio.sleep(1)
        assert daemon.said[1:] == ["[worker-1 is back]"]


async def test_a_short_outage_is_not_worth_a_line(autojump_clock: trio.testing.MockClock) -> None:
    """Nor are many of them; of a lost daemon others tell."""
    daemon = FakeDaemon()
    async with daemon.minded(wait=2.0):
        for _ in range(5):
            daemon.becomes(DaemonState.AWAY)
            await trio.sleep(1.9)
            daemon.becomes(DaemonState.ONLINE)
            await trio.sleep(1.9)
        daemon.becomes(DaemonState.GONE)
        await trio.sleep(60)
        daemon.close()
        await trio.sleep(60)

    assert daemon.said == []


async def test_a_daemon_that_is_away_from_the_beginning(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """It is told, and waited for as long as it takes where nobody has said how long."""
    daemon = FakeDaemon(DaemonState.AWAY)
    async with daemon.minded():
        await trio.sleep(1.9)
        assert daemon.said == []
        await trio.sleep(24 * 3600)
    assert daemon.said == ["[worker-1 is away; waiting for it]"]


@pytest.mark.parametrize("wait", [0.0, 1.0, 100.0])
async def test_who_has_said_how_long_waits_no_longer(
    wait: float, autojump_clock: trio.testing.MockClock
) -> None:
    """For each outage anew; 0 is not at all."""
    daemon = FakeDaemon()
    began = trio.current_time()
    with pytest.raises(Failure) as caught:  # noqa: PT012 - in the middle of it
        async with daemon.minded(wait):
            for _ in range(3):
                if wait:
                    daemon.becomes(DaemonState.AWAY)
                    await trio.sleep(wait * 0.9)
                    daemon.becomes(DaemonState.ONLINE)
                await trio.sleep(1)
            began = trio.current_time()
            daemon.becomes(DaemonState.AWAY)
            await trio.sleep_forever()
    assert trio.current_time() - began == pytest.approx(wait)
    assert str(caught.value) == f"worker-1 is away, and was not back within {wait:g} s (--wait)"


async def test_what_has_begun_is_not_given_up(autojump_clock: trio.testing.MockClock) -> None:
    """Not in the middle of an outage either; and what that means is told in other words from then on."""
    daemon = FakeDaemon()
    heard: list[str] = []

    async def hear(text: str) -> None:
        await trio.lowlevel.checkpoint()
        heard.append(text)

    async with daemon.minded(3.0) as outages:
        daemon.becomes(DaemonState.AWAY)
        await trio.sleep(2.5)
        assert len(daemon.said) == 1
        outages.begun("it goes on", say=hear)
        await trio.sleep(10)
        daemon.becomes(DaemonState.ONLINE)
        await trio.sleep(10)
        daemon.becomes(DaemonState.AWAY)
        await trio.sleep(10)
    assert heard == ["[worker-1 is back]", "[worker-1 is away; it goes on]"]


# ---- the commands ---------------------------------------------------------------------------------

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="sends real signals")
COMMANDS = [
    "exec w -- true",
    "exec --detach w -- true",
    "logs w/x",
    "kill w/x",
    "forget w/x",
    "cp /etc/passwd w:",
    "forward -R w 0:1",
]


@pytest.fixture(scope="module")
def controller(_own_temporary_directory: None) -> Iterator[ControllerProcess]:
    """With a daemon that is away, and won't come back."""
    with running_controller() as controller, controller.daemon("w") as daemon:
        daemon.kill()
        controller.wait_for_daemon("w", "away")
        yield controller


@posix_only
def test_no_command_waits_in_silence(controller: ControllerProcess) -> None:
    """Whatever is asked of a daemon that is away: a line says what is waited for, where no terminal is, too."""
    with ExitStack() as stack:
        waiting = [
            stack.enter_context(controller.running_command(*each.split())) for each in COMMANDS
        ]
        for process in waiting:
            assert next_line(process, file="stderr") == "[w is away; waiting for it]\n"
            assert process.poll() is None
            process.terminate()
            assert process.wait(SECONDS) == 143


@posix_only
def test_no_command_waits_longer_than_it_was_told_to(controller: ControllerProcess) -> None:
    """And one that is about many daemons takes it for one that could not be reached."""
    with ExitStack() as stack:
        waiting = [
            stack.enter_context(controller.running_command(words[0], "--wait", "0.5", *words[1:]))
            for words in (*map(str.split, COMMANDS), ["run", "--", "true"])
        ]
        ends = [(process.communicate(timeout=SECONDS), process.returncode) for process in waiting]
    failure = "sandd: w is away, and was not back within 0.5 s (--wait)\n"
    assert ends[:-1] == [(("", failure), 125)] * len(COMMANDS)
    summary = "sandd: 0 ok, 1 timed out\nsandd: timed out (away, never started): w\n"
    assert ends[-1] == (("", summary), 1)
