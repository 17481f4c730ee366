"""The agent's own link: what it says to whom, and when it says what nobody waits for."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from scripted import control, drain, event

from sandd import wire
from sandd._core.client_job import AttachState
from sandd._core.local_link import LATE_SECONDS, JobHandle, LocalLink
from sandd._core.router import DaemonLink, Router
from sandd.wire import Outcome

SPEC = wire.CommandSpec(argv=(b"true",), stdin=False)
EXITED = wire.Exited(0, None, Outcome.EXITED, 1.0, pid=7)


class World:
    """A link, its router, and the router's end of a daemon's connection."""

    def __init__(self) -> None:
        self.router = Router()
        self.link = LocalLink(self.router, wake=lambda _: None, blame=lambda *_: None)
        self.daemon: DaemonLink = self.router.add_daemon("d", "here")
        self.link.flush()

    def start(self, **options: Any) -> tuple[JobHandle, int]:
        """A job, and the channel that the daemon has of it."""
        handle = self.link.open("d", SPEC, **options)
        *_, (channel, message) = drain(self.daemon.scheduler)
        assert isinstance(message, wire.Attach)
        return handle, channel

    def end(self, channel: int) -> None:
        """The daemon says that the job has ended."""
        self.router.receive(self.daemon, control(channel, wire.Attached()))
        self.router.receive(self.daemon, event(channel, 0, EXITED))
        self.link.flush()

    @property
    def ends(self) -> list[str]:
        """The jobs that the daemon is told to end and forget."""
        return [m.job_id for _, m in drain(self.daemon.scheduler) if isinstance(m, wire.End)]


@pytest.fixture
def world() -> World:
    """One daemon, online."""
    return World()


async def test_farewells_go_together_a_little_later(
    world: World, autojump_clock: trio.testing.MockClock
) -> None:
    """To jobs that have ended: nobody waits, and each by itself would take the processor from the next job."""
    started = [world.start() for _ in range(3)]
    for handle, channel in started:
        world.end(channel)
        assert handle.complete
        handle.forget()
        assert handle.closed
    assert world.link.job_count == 0
    assert world.ends == []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.link.run)
        await trio.sleep(LATE_SECONDS / 2)
        assert world.ends == []
        await trio.sleep(LATE_SECONDS)
        nursery.cancel_scope.cancel()
    assert sorted(world.ends) == sorted(handle.job.id for handle, _ in started)
    assert all(handle.job.state is AttachState.CLOSED for handle, _ in started)
    assert not world.link.client.jobs


def test_a_farewell_is_said_once(world: World) -> None:
    """However often the job is forgotten."""
    handle, channel = world.start()
    world.end(channel)
    handle.forget()
    handle.forget()
    world.link.flush(late=True)
    assert world.ends == [handle.job.id]


def test_what_may_yet_run_is_taken_back_at_once(world: World) -> None:
    """A job that has not ended, be its daemon there or away."""
    handle, _ = world.start()
    handle.forget()
    world.link.flush(late=True)
    assert world.ends == [handle.job.id]
    world.router.remove_daemon(world.daemon, wire.DaemonState.AWAY)
    waiting = world.link.open("d", SPEC)
    waiting.forget()
    assert waiting.job not in world.link.client.jobs


def test_an_id_of_ones_own_is_free_again_in_order(world: World) -> None:
    """Its farewell goes before whatever is started under it next."""
    handle, channel = world.start(job_id="mine")
    world.end(channel)
    handle.forget()
    world.link.open("d", SPEC, job_id="mine")
    heard = [type(message) for _, message in drain(world.daemon.scheduler)]
    assert heard == [wire.End, wire.Attach]


@pytest.mark.parametrize("how", ["request", "attach", "close"])
def test_who_could_tell_the_difference_brings_farewells_along(world: World, how: str) -> None:
    """A request that lists jobs, an attach to one, and the end of the link itself."""
    handle, channel = world.start()
    world.end(channel)
    handle.forget()
    match how:
        case "request":
            world.link.open("d", wire.JobsSpec())
        case "attach":
            world.link.attach(
                "d", "other", role=wire.Role.OWNER, takeover=False, since={}, kill_grace=1.0
            )
        case "close":
            world.link.close()
    assert handle.job.id in world.ends


def test_a_request_comes_behind_the_farewells_before_it(world: World) -> None:
    """However many: what was left is not there any more for who asks what there is."""
    started = [world.start() for _ in range(300)]
    for handle, channel in started:
        world.end(channel)
        handle.forget()
    drain(world.daemon.scheduler)
    world.link.open("d", wire.JobsSpec())
    said = [message for _, message in drain(world.daemon.scheduler)]
    assert [type(message) for message in said] == [*[wire.End] * 300, wire.Attach]
