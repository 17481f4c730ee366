"""`sandd.aio` in programs that end: by Ctrl-C, without closing, in a forked child; and with a controller elsewhere."""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import anyio
import pytest
from aio_world import aio_threads, until
from daemons import daemon_environment, running_daemon
from forked_python import PythonProcess
from standing_daemon import LIMIT

import sandd

if TYPE_CHECKING:
    from conftest import Marker

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals, fork, POSIX shell")

PROGRAM = """
import asyncio, gc, os, subprocess, sys, threading
import anyio, sandd

DAEMON = [sys.executable, "-m", "sandd.daemon", "--log-level", "warning", "--daemon-id", "w"]

async def main():
    async with sandd.aio.open_controller(port=0) as controller:
        daemon = subprocess.Popen([*DAEMON, "--server-url", controller.url], start_new_session=True)
        try:
            worker = await controller.wait_for_daemon("w")
            await body(controller, worker)
        finally:
            daemon.terminate()
            daemon.wait()
            print("daemon ended", flush=True)
    print("closed", flush=True)

async def run(worker):
    await worker.run("trap '' TERM; echo; sleep 60; :", kill_grace=0.2)

def report():
    print("threads", [t.name for t in threading.enumerate() if t.name == "sandd.aio"], flush=True)
"""


def start(body: str, marker: Marker, *, anew: bool = False) -> subprocess.Popen[str]:
    """A program of its own, whose jobs have the marker; `anew` where what the interpreter does at its exit matters."""
    return PythonProcess(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", PROGRAM + body],
        env=daemon_environment(dict([marker])),
        any_program=not anew,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


INTERRUPTED = """
async def body(controller, worker):
    async with asyncio.TaskGroup() as tasks:
        for _ in range(3):
            tasks.create_task(run(worker))
        async with worker.open_process("echo planted; sleep 60; :") as process:
            await process.stdout.receive()
            print("planted", flush=True)
            await process.wait()

try:
    {run}
except* KeyboardInterrupt:
    print("interrupted", flush=True)
report()
"""


@pytest.mark.parametrize(
    "run", ["asyncio.run(main())", "anyio.run(main)", "anyio.run(main, backend='trio')"]
)
def test_ctrl_c_ends_all_in_good_order(run: str, marker: Marker) -> None:
    """KeyboardInterrupt comes out of asyncio.run, when trees, controller and thread are gone."""
    if "trio" in run:
        body = INTERRUPTED.replace("asyncio.TaskGroup()", "anyio.create_task_group()").replace(
            "tasks.create_task(run(worker))", "tasks.start_soon(run, worker)"
        )
    else:
        body = INTERRUPTED
    program = start(body.replace("{run}", run), marker)
    assert program.stdout is not None
    assert program.stdout.readline() == "planted\n"
    program.send_signal(signal.SIGINT)
    output, errors = program.communicate(timeout=40)
    assert output == "daemon ended\ninterrupted\nthreads []\n"
    assert (program.returncode, errors) == (0, "")
    assert not marker.processes()


def test_a_program_that_ends_without_closing_ends(marker: Marker) -> None:
    """The loop is gone with calls under way; at its exit the interpreter closes the controller."""
    body = """
kept = []
async def body(controller, worker):
    kept.append(worker)
    task = asyncio.ensure_future(run(worker))
    while worker._inner._link.job_count == 0:
        await asyncio.sleep(0.01)
    kept.append(task)
    print("runs", flush=True)
    loop.stop()
    await asyncio.sleep(60)

loop = asyncio.new_event_loop()
kept.append(loop.create_task(main()))
loop.run_forever()
print("stopped", flush=True)
"""
    program = start(body, marker, anew=True)
    output, _ = program.communicate(timeout=40)
    assert output.startswith("runs\nstopped\n")
    assert program.returncode == 0


def test_a_forked_child_has_no_controller(marker: Marker) -> None:
    """Calls there say so, its exit doesn't wait, and the parent's go on."""
    body = """
import atexit, time

async def body(controller, worker):
    pid = os.fork()
    if pid == 0:
        try:
            began = time.monotonic()
            asyncio._set_running_loop(None)  # the parent's
            try:
                asyncio.run(worker.run("true"))
            except anyio.ClosedResourceError as error:
                print("forked" in str(error), flush=True)
            atexit._run_exitfuncs()
            print(time.monotonic() - began < 5, flush=True)
        finally:
            os._exit(0)
    while os.waitpid(pid, os.WNOHANG)[0] == 0:
        await asyncio.sleep(0.01)
    print((await worker.run("echo parent")).stdout, end="", flush=True)

asyncio.run(main())
report()
"""
    program = start(body, marker)
    output, errors = program.communicate(timeout=40)
    expected = ["True", "True", "parent", "daemon ended", "closed", "threads []"]
    assert output.splitlines() == expected, errors
    assert (program.returncode, errors) == (0, "")


@pytest.mark.anyio
async def test_a_controller_elsewhere(marker: Marker) -> None:
    """`connect_controller` gives the same; a cancelled call there kills its tree; leaving keeps the daemon."""
    with (
        sandd.Server(port=0, operator_token="an operator's") as host,
        running_daemon(host.url, "worker-1"),
        anyio.fail_after(LIMIT),
    ):
        async with sandd.aio.connect_controller(host.url, token="an operator's") as controller:
            assert controller.url == host.url
            worker = await controller.wait_for_daemon("worker-1")
            assert (await worker.run("echo hello")).stdout == "hello\n"
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(run_marked, worker, marker)
                await until(lambda: bool(marker.processes()))
                tasks.cancel_scope.cancel()
            assert not marker.processes()
            assert controller.statistics().daemons_online == 1
        assert aio_threads() == []
        with pytest.raises(sandd.AuthenticationFailed):
            async with sandd.aio.connect_controller(host.url, token="another"):
                pytest.fail("it was let in")
        assert host.daemon_count() == 1


async def run_marked(worker: sandd.aio.Daemon, marker: Marker) -> None:
    """Something that takes long."""
    await worker.run("sleep 60; :", env=dict([marker]), kill_grace=0.1)


@pytest.mark.anyio
async def test_tokens_can_be_changed() -> None:
    """They count for connections from then on."""
    with anyio.fail_after(LIMIT):
        async with sandd.aio.open_controller(port=0, operator_token="old") as host:
            host.set_tokens(token="new", operator_token="new too")
            with pytest.raises(sandd.AuthenticationFailed):
                async with sandd.aio.connect_controller(host.url, token="old"):
                    pytest.fail("it was let in")
            async with sandd.aio.connect_controller(host.url, token="new too") as operator:
                assert operator.daemons() == []
