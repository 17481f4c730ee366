"""What is raised in the body of a context manager of ours comes out of it, and takes everything along."""

from __future__ import annotations

import sys
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import pytest
from process_tools import living_tasks, until
from standing_daemon import StandingDaemon, standing_daemon

import sandd
from sandd.testing import open_daemon_cores, open_fault_proxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from conftest import Marker

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="these commands are POSIX shell")

TREE: Final = "trap '' TERM; setsid sleep 60 & echo planted; sleep 60; :"


@pytest.fixture(scope="module")
def daemon(_own_temporary_directory: None) -> Iterator[StandingDaemon]:
    """The daemon that all of them share."""
    with standing_daemon() as daemon:
        yield daemon


@asynccontextmanager
async def attached(
    worker: sandd.Daemon, _controller: sandd.Controller, **options: Any
) -> AsyncIterator[None]:
    """A block inside another one on the same job, which it takes over."""
    async with worker.open_process(TREE, **options) as process:
        async with worker.attach_process(process.job_id, takeover=True, kill_grace=0):
            yield


MANAGERS: Final[dict[str, Callable[..., AbstractAsyncContextManager[object]]]] = {
    "open_controller": lambda *_, **__: sandd.open_controller(port=0),
    "open_events": lambda _worker, controller, **_: controller.open_events(),
    "open_process": lambda worker, _controller, **options: worker.open_process(TREE, **options),
    "attach_process": attached,
    "open_fault_proxy": lambda _worker, controller, **_: open_fault_proxy(controller.address),
    "open_daemon_cores": lambda _worker, controller, **_: open_daemon_cores(controller.url, 3),
}


class Mine(BaseException):
    """Nothing that anybody else would raise or catch."""


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: KeyError("mine"), id="error"),
        pytest.param(lambda: Mine("mine"), id="base exception"),
        pytest.param(
            lambda: ExceptionGroup("mine", [KeyError("one"), ValueError("two")]), id="group"
        ),
    ],
)
@pytest.mark.parametrize("name", MANAGERS)
async def test_an_exception_in_the_body_comes_out_as_itself(
    daemon: StandingDaemon, marker: Marker, name: str, make: Callable[[], BaseException]
) -> None:
    """The same object, with nothing added; the remote side is cleaned up, and the connection works on."""
    error = make()
    async with daemon.controller() as controller:
        worker = await controller.wait_for_daemon("worker-1")
        await worker.run("true")
        tasks = living_tasks()
        with pytest.raises(type(error)) as caught:  # noqa: PT012 - the block is what is tested
            async with MANAGERS[name](worker, controller, env=dict([marker]), kill_grace=0):
                if name.endswith("process"):
                    await until(lambda: len(marker.processes()) == 3)
                raise error
        assert caught.value is error
        assert (error.__cause__, error.__context__) == (None, None)
        # A proxy tells of itself there, so that a test that fails can be repeated.
        noted = getattr(error, "__notes__", [])
        assert all(name == "open_fault_proxy" and "FaultProxy" in note for note in noted)
        assert marker.processes() == []
        assert controller.statistics().jobs == 0
        assert (await worker.run("echo well")).stdout == "well\n"
        await until(lambda: living_tasks() == tasks)
