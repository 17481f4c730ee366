"""The job that somebody means, looked for on daemons that are real."""

from __future__ import annotations

import signal
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio
from daemons import open_daemon

import sandd
from sandd.command_line import finding_jobs
from sandd.command_line.choosing import JobName, NoSuchJob
from sandd.command_line.finding_jobs import find_job
from sandd.command_line.stopping import Failure

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from daemons import DaemonProcess

SECONDS = 40.0


@asynccontextmanager
async def two_daemons() -> AsyncIterator[tuple[sandd.Controller, DaemonProcess]]:
    """A controller with the daemons "one" and "two", and the former's process."""
    async with (
        sandd.open_controller(port=0, heartbeat=0.05, dead_after=0.5) as controller,
        open_daemon(controller.url, "one") as one,
        open_daemon(controller.url, "two"),
    ):
        with trio.fail_after(SECONDS):
            await controller.wait_for_daemon("one")
            await controller.wait_for_daemon("two")
        yield controller, one


async def find(controller: sandd.Controller, text: str, *, sessions: bool = False) -> str:
    """The whole name of what is meant."""
    with trio.fail_after(SECONDS):
        daemon, job = await find_job(controller, JobName.parse(text), sessions=sessions)
        return f"{daemon.id}/{job.job_id}"


async def test_a_job_is_found_wherever_it_is() -> None:
    """By its daemon, or on any; among sessions only where one is needed, and then it is said what it is."""
    async with two_daemons() as (controller, _):
        one, two = controller.daemon("one"), controller.daemon("two")
        async with (
            one.open_process(["sleep", "100"], job_id="build-1"),
            two.open_process(["sleep", "100"], job_id="build-2"),
            two.open_session(["sleep", "100"], job_id="build-shell"),
        ):
            assert await find(controller, "one/b") == "one/build-1"
            assert await find(controller, "build-2") == "two/build-2"
            assert await find(controller, "build", sessions=True) == "two/build-shell"
            with pytest.raises(NoSuchJob, match="may be any of these on"):
                await find(controller, "build")
            with pytest.raises(NoSuchJob, match="two/build-2 has no terminal: it is a command"):
                await find(controller, "build-2", sessions=True)
            with pytest.raises(NoSuchJob, match=r"no session 'x' on \w+, \w+; these there are:"):
                await find(controller, "x", sessions=True)
            with pytest.raises(Failure, match="no daemon 'three'; there are one, two"):
                await find(controller, "three/x")


async def test_daemons_that_do_not_answer_keep_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """What others have is found; where nothing is, it is said who has not been heard."""
    monkeypatch.setattr(finding_jobs, "ASK_SECONDS", 0.5)
    async with two_daemons() as (controller, one):
        async with controller.daemon("two").open_process(["sleep", "100"], job_id="mine"):
            one.signal(signal.SIGSTOP)
            for _ in range(2):  # it hasn't been missed yet; then it has
                assert await find(controller, "mine") == "two/mine"
                with pytest.raises(NoSuchJob, match=r"\nnot asked, or without an answer: one$"):
                    await find(controller, "x")
                with trio.fail_after(SECONDS):
                    async with controller.open_events() as events:
                        while controller.daemon("one").state is not sandd.DaemonState.AWAY:
                            await anext(events)
            one.signal(signal.SIGCONT)


async def test_without_daemons_there_are_no_jobs() -> None:
    """And that is what is said."""
    async with sandd.open_controller(port=0) as controller:
        with pytest.raises(Failure, match="no daemon is connected"):
            await find_job(controller, JobName.parse("x"))
