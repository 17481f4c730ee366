"""`fetch_statistics`: the controller's own figures, for whoever asks, in whatever process."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from peers_with_credentials import guarded, operator_token
from process_tools import living_tasks, until
from scripted import control, drain

import sandd
import sandd.aio
from sandd import wire
from sandd._core.client import Client
from sandd._core.directory import Directory
from sandd._core.job_link import JobLink
from sandd.testing.daemon_cores import open_daemon_cores

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from sandd._core.client_job import ClientJob


@asynccontextmanager
async def world() -> AsyncIterator[tuple[sandd.Controller, sandd.Controller]]:
    """A controller with a daemon, and the same one seen from elsewhere."""
    async with (
        sandd.open_controller(port=0, operator_token="secret") as host,
        open_daemon_cores(host.url, 1) as cores,
    ):
        await cores.wait_live()
        async with sandd.connect_controller(host.url, token="secret") as remote:
            yield host, remote


async def test_the_controllers_figures_are_the_same_from_everywhere() -> None:
    """What one client did is told to the other; what is its own stays its own."""
    async with world() as (host, remote):
        await remote.daemon("core-0").run("echo hello")
        here, there = await host.fetch_statistics(), await remote.fetch_statistics()
        for told in (here, there, host.statistics()):
            assert (told.total_jobs_started, told.total_jobs_running) == (1, 0)
            assert told.total_jobs_ended == {"exited": 1}
            assert told.bytes_to_clients is not None
            assert told.bytes_to_clients > 0
            assert told.operators == 1
            assert told.uptime is not None
            assert told.uptime > 0
            assert told.controller_loop_lag is not None
        assert (here.jobs_started, there.jobs_started) == (0, 1)
        assert (here.daemons_online, there.daemons_online) == (1, 1)
        assert remote.statistics().total_jobs_started is None


async def test_a_tenants_operator_is_told_of_its_tenant(tmp_path: Path) -> None:
    """Not of others', and not of the program."""
    async with guarded(tmp_path) as host:
        token = await operator_token(host, "someone", tenant="acme", role="viewer")
        async with sandd.connect_controller(host.url, token=token.text) as acme:
            told = await acme.fetch_statistics()
            assert (told.total_jobs_started, told.total_jobs_ended) == (None, None)
            assert (told.operators, told.uptime, told.controller_loop_lag) == (None, None, None)


async def test_a_question_outlives_a_cut() -> None:
    """What was asked before the link broke, or while there is none, is asked again on the next one."""
    async with world() as (host, remote):
        pumps = [each.pump for each in host._service.desk.operators.values()]  # type: ignore[attr-defined]
        for pump in pumps:
            pump.close("a cut")
        with trio.fail_after(30):
            told = await remote.fetch_statistics()
        assert told.operators == 1


async def test_a_question_that_is_taken_back_is_no_harm() -> None:
    """Nothing is left of it, and the next one is answered."""
    async with world() as (_, remote):
        tasks = living_tasks()
        with trio.move_on_after(0) as scope:
            await remote.fetch_statistics()
        assert scope.cancelled_caught
        assert (await remote.fetch_statistics()).operators == 1
        await until(lambda: living_tasks() == tasks)


class SilentLink(JobLink):
    """A link to a controller that never answers."""

    def flush(self, *, late: bool = False) -> None:
        """Nothing goes out."""

    def blame(self, channel: int, job: ClientJob | None, error: sandd.ProtocolError) -> None:
        """Nothing comes, either."""


async def test_nobody_waits_for_a_controller_that_is_closed() -> None:
    """Whoever still asks is told so, and whoever asks later."""
    link = SilentLink(Directory())

    async def ask() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await link.fetch_statistics()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        link.close()
    await ask()


def test_synchronous_code_fetches_them_too() -> None:
    """From a `Server`, and from a client of it; a controller that isn't there is a TimeoutError."""
    with (
        sandd.Server(port=0, operator_token="secret") as server,
        sandd.connect(server.url, token="secret") as client,
    ):
        assert (server.fetch_stats().operators, client.fetch_stats().operators) == (1, 1)
        with pytest.raises(TimeoutError, match="within 0 s"):
            client.fetch_stats(timeout=0)


def test_asyncio_fetches_them_too() -> None:
    """As the trio API does."""

    async def program() -> int | None:
        async with sandd.aio.open_controller(port=0) as controller:
            return (await controller.fetch_statistics()).operators

    assert asyncio.run(program()) == 0


def test_an_unanswered_question_goes_out_on_the_next_link() -> None:
    """The latest, once; one that was answered doesn't."""
    client = Client()
    client.ask_statistics()
    number = client.ask_statistics()
    drain(client.scheduler)
    client.link_down()
    assert drain(client.scheduler) == [(0, wire.AskStatistics(number))]
    client.receive(control(0, wire.Statistics(number)))
    client.link_down()
    assert drain(client.scheduler) == []
