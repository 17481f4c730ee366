"""Which daemon a command gets, and what a person is told who has named one that isn't there."""

from __future__ import annotations

import argparse
import signal
from typing import TYPE_CHECKING

import pytest
import trio
from daemons import open_daemon

import sandd
from sandd.command_line.reaching import describe_absence, find_daemon, reach_daemon
from sandd.command_line.stopping import Failure, Stop

if TYPE_CHECKING:
    from conftest import Marker

SECONDS = 30.0


@pytest.mark.parametrize(
    ("asked", "known", "waited", "told"),
    [
        pytest.param(
            "worker-3",
            ["db", "worker-2"],
            0.0,
            "no daemon 'worker-3'; did you mean 'worker-2'?",
            id="close",
        ),
        pytest.param(
            "worker",
            ["worker-1", "worker-2", "web"],
            0.0,
            "no daemon 'worker'; did you mean 'worker-1' or 'worker-2'?",
            id="two-that-are-close",
        ),
        pytest.param("db", ["a", "web"], 0.0, "no daemon 'db'; there are a, web", id="far"),
        pytest.param(
            "x",
            [f"worker-{n}" for n in range(10)],
            0.0,
            "no daemon 'x'; there are worker-0, worker-1, worker-2, worker-3, worker-4, worker-5, worker-6, "
            "worker-7 and 2 more",
            id="many",
        ),
        pytest.param(
            "x", [], 0.0, "no daemon 'x': none is connected to this controller", id="none-at-all"
        ),
        pytest.param(
            "x",
            [],
            1.5,
            "no daemon 'x' within 1.5 s (--wait): none is connected to this controller",
            id="waited-for",
        ),
    ],
)
def test_whom_somebody_may_have_meant(
    asked: str, known: list[str], waited: float, told: str
) -> None:
    """Those whose ids are close, or else those there are; not hundreds of them."""
    assert describe_absence(asked, known, waited) == told


async def test_an_unknown_daemon_is_waited_for_only_if_that_was_said() -> None:
    """At once without `wait`; in vain with a short one; and with a longer one as soon as it is there."""
    async with sandd.open_controller(port=0) as controller:
        with pytest.raises(Failure, match="no daemon 'w': none is connected"):
            with trio.fail_after(SECONDS):
                await find_daemon(controller, "w", wait=0.0)
        with pytest.raises(Failure, match=r"no daemon 'w' within 0\.1 s \(--wait\)"):
            await find_daemon(controller, "w", wait=0.1)
        async with open_daemon(controller.url, "w"):
            with trio.fail_after(SECONDS):
                daemon = await find_daemon(controller, "w", wait=2 * SECONDS)
            assert (daemon.id, daemon.state) == ("w", sandd.DaemonState.ONLINE)
            with pytest.raises(Failure, match="no daemon 'v'; there are w"):
                await find_daemon(controller, "v", wait=0.0)


async def test_a_daemon_that_is_away_is_there() -> None:
    """Nothing is waited for: what is asked of it waits."""
    async with sandd.open_controller(port=0, heartbeat=0.05, dead_after=0.5) as controller:
        async with open_daemon(controller.url, "w") as process:
            with trio.fail_after(SECONDS):
                await controller.wait_for_daemon("w")
                process.signal(signal.SIGSTOP)
                async with controller.open_events() as events:
                    while controller.daemon("w").state is not sandd.DaemonState.AWAY:
                        await anext(events)
                daemon = await find_daemon(controller, "w", wait=0.0)
            assert daemon.state is sandd.DaemonState.AWAY
            process.signal(signal.SIGCONT)


async def test_a_daemon_of_our_own(marker: Marker, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is gone with the block, and nobody else can take its place: the two share a secret."""
    monkeypatch.setenv(*marker)
    monkeypatch.setenv("SANDD_TOKEN_FILE", "none")
    options = argparse.Namespace(local=True)
    with trio.fail_after(SECONDS):
        async with reach_daemon(options, "mine", Stop()) as (controller, daemon):
            assert (daemon.id, controller.daemon("mine").id) == ("mine", "mine")
            result = await daemon.run(["printenv", marker.name])
            assert result.stdout.strip() == marker.value
            async with open_daemon(controller.url, "other") as other:
                await other.wait_for_log("refused")
                assert await other.wait() != 0
            assert [each.id for each in controller.daemons()] == ["mine"]
    assert not marker.processes()


async def test_the_end_of_our_own_daemon_is_told(
    marker: Marker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits for one that won't come back."""
    monkeypatch.setenv(*marker)

    async def kill_it() -> None:
        stop = Stop()
        async with reach_daemon(argparse.Namespace(local=True), "mine", stop):
            assert stop._child is not None
            stop._child.kill()
            await trio.sleep_forever()

    with trio.fail_after(SECONDS), pytest.raises(Failure, match="the daemon has ended, with -9"):
        await kill_it()
