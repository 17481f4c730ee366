"""The host for Windows, on this machine: real processes, and a Job Object made of a process group."""

from __future__ import annotations

import errno
import os
import signal
import sys
from typing import TYPE_CHECKING

import pytest
import trio
from process_tools import (
    PYTHON,
    close_pipes,
    finish,
    is_alive,
    linux_only,
    read_line,
    request,
    run,
    shell,
    until,
)

from sandd import wire
from sandd._core import spawn_requests
from sandd._core._errors import SpawnFailed
from sandd._core.job import Job as JobOfSpec
from sandd._core.limits import NO_LIMITS, Limits, Usage
from sandd._core.processes import ExitStatus, ProcessHost, SpawnRequest, TreeUsage
from sandd._core.processes.process_table import all_processes
from sandd._core.processes.windows import (
    WindowsProcessHost,
    command_line,
    open_windows_process_host,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = linux_only


class GroupJobObject:
    """What Windows' kernel does for a Job Object, done with a session; see `JobObject`."""

    made: list[GroupJobObject] = []  # noqa: RUF012 - emptied by the fixture

    def __init__(self) -> None:
        self.leader = 0
        self.is_closed = False
        self.limits = NO_LIMITS
        self.made.append(self)

    def hold(self, limits: Limits) -> None:
        """What it is to be held to."""
        self.limits = limits

    def used(self) -> tuple[Usage, str]:
        """As if it had used its processes up, if those are limited."""
        return Usage(1.5, 4096), "" if self.limits.processes is None else "processes"

    def adopt(self, pid: int) -> None:
        """The group to be."""
        self.leader = pid

    def members(self) -> list[int]:
        """The living processes in it."""
        return [
            process.pid
            for process in all_processes()
            if process.session == self.leader and not process.is_dead
        ]

    def terminate(self) -> None:
        """Kill them."""
        for pid in self.members():
            os.kill(pid, signal.SIGKILL)

    def active_processes(self) -> int:
        """How many there are."""
        return len(self.members())

    def usage(self) -> TreeUsage:
        """What would be told of them."""
        return TreeUsage(0.5, 1000, len(self.members()))

    def close(self) -> None:
        """Kill what is left."""
        self.is_closed = True
        if self.leader:
            self.terminate()


async def open_in_session(argv: list[str], **options: object) -> trio.Process:
    """Instead of a suspended process: one in a session of its own."""
    return await trio.lowlevel.open_process(argv, start_new_session=True, **options)  # type: ignore[call-overload, no-any-return]


@pytest.fixture
async def host() -> AsyncIterator[ProcessHost]:
    """The host with these stand-ins."""
    GroupJobObject.made.clear()
    async with open_windows_process_host(
        open_process=open_in_session, create_job=GroupJobObject
    ) as host:
        yield host
    assert all(job.is_closed for job in GroupJobObject.made)


async def test_status_and_streams_are_the_real_ones(host: ProcessHost) -> None:
    """Exit code, output, and arguments as text."""
    outcome = await run(host, shell("cat; echo problem >&2; exit 3"))
    assert outcome.status == ExitStatus(3, None)
    assert outcome.stderr == b"problem\n"
    merged = await host.spawn(shell("echo 1; echo 2 >&2", merge_stderr=True, stdin=False))
    assert merged.stdin is None
    assert merged.stderr is None
    assert (await finish(merged)).stdout == b"1\n2\n"


async def test_its_pipes_are_closed_at_once(host: ProcessHost) -> None:
    """All there are, and it hears of it."""
    for merged in (False, True):
        child = await host.spawn(shell("cat", merge_stderr=merged))
        assert child.terminal is None
        child.close_pipes()
        child.close_pipes()
        with pytest.raises(trio.ClosedResourceError):
            await child.stdout.receive_some()
        with trio.fail_after(5):
            assert await child.wait_exited() == ExitStatus(0, None)
        await child.release()


async def test_kill_asks_then_ends_the_whole_job(host: ProcessHost) -> None:
    """Ctrl-Break first (SIGINT here); after the grace everything in the Job Object is terminated."""
    child = await host.spawn(shell("trap '' INT; sleep 1000 & echo ready; read line; read line"))
    assert await read_line(child.stdout) == b"ready"
    members = GroupJobObject.made[0].members()
    assert len(members) == 2
    with trio.fail_after(5):
        await child.kill(grace=0.1)
    assert not any(map(is_alive, members))
    assert await child.wait_exited() == ExitStatus(None, signal.SIGKILL)
    await child.kill(grace=5)
    await child.release()
    await close_pipes(child)


async def test_kill_returns_early_where_the_asking_was_enough(host: ProcessHost) -> None:
    """A program that ends on Ctrl-Break keeps its own exit code."""
    program = """
import signal, sys, time
signal.signal(signal.SIGINT, lambda *_: sys.exit(4))
print("ready", flush=True)
time.sleep(1000)
"""
    child = await host.spawn(request(PYTHON, "-c", program))
    assert await read_line(child.stdout) == b"ready"
    with trio.fail_after(5):
        await child.kill(grace=60)
    assert await child.wait_exited() == ExitStatus(4, None)
    await close_pipes(child)


async def test_kill_goes_on_when_cancelled_and_can_be_hurried(host: ProcessHost) -> None:
    """A later call with a shorter grace shortens it."""
    child = await host.spawn(shell("trap '' INT; echo ready; read line; read line"))
    assert await read_line(child.stdout) == b"ready"
    with trio.move_on_after(0.05) as scope:
        await child.kill(grace=1000)
    assert scope.cancelled_caught
    with trio.fail_after(5):
        await child.kill(grace=0.05)
    assert not is_alive(child.pid)
    await close_pipes(child)


async def test_release_sweeps_or_leaves_alone(host: ProcessHost) -> None:
    """With sweep nothing is left; without, the rest lives as long as the host."""
    child = await host.spawn(shell("sleep 1000 & read line"))
    with pytest.raises(RuntimeError, match="has not exited"):
        await child.release()
    assert child.stdin is not None
    await child.stdin.aclose()
    await child.wait_exited()
    assert await host.measure([child.pid, 1]) == {child.pid: TreeUsage(0.5, 1000, 1)}
    assert await host.measure([]) == {}
    await child.release(sweep=False)
    assert await host.measure([child.pid]) == {}
    assert GroupJobObject.made[0].active_processes() == 1
    await close_pipes(child)
    swept = await host.spawn(shell("sleep 1000 & echo ready"))
    await swept.wait_exited()
    await swept.release()
    assert GroupJobObject.made[1].active_processes() == 0
    await close_pipes(swept)


async def test_signals_are_ctrl_break_or_the_end(host: ProcessHost) -> None:
    """INT is Ctrl-Break, everything else ends the tree, and what is no signal is refused."""
    for number, expected in (
        (signal.SIGINT, ExitStatus(None, signal.SIGINT)),
        (signal.SIGTERM, ExitStatus(None, signal.SIGKILL)),
    ):
        child = await host.spawn(request("sleep", "1000"))
        child.signal(number)
        assert (await finish(child)).status == expected
        child.signal(number)
        with pytest.raises(ValueError, match="no signal"):
            child.signal(0)


@pytest.mark.parametrize(
    ("options", "number", "filename"),
    [
        ({"argv": (b"/no/such",)}, errno.ENOENT, "/no/such"),
        ({"cwd": b"/etc/passwd"}, errno.ENOTDIR, "/etc/passwd"),
        ({"user": "root"}, errno.EINVAL, "root"),
        ({"argv": (b"/bin/echo", b"a\0b")}, errno.EINVAL, "/bin/echo"),
    ],
)
async def test_failed_start_is_told(
    host: ProcessHost, options: dict[str, object], number: int, filename: str
) -> None:
    """errno and the name of what was at fault."""
    fields: dict[str, object] = {"argv": (b"/bin/echo",), "env": {}, "marker": b"m", **options}
    with pytest.raises(SpawnFailed) as caught:
        await host.spawn(SpawnRequest(**fields))  # type: ignore[arg-type]
    assert (caught.value.errno, caught.value.filename) == (number, filename)


async def test_process_that_no_job_object_takes_never_runs(
    host: ProcessHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is killed while it is suspended, and its pipes are closed."""

    def refuse(self: GroupJobObject, pid: int) -> None:
        raise OSError(errno.EACCES, "Access is denied")

    monkeypatch.setattr(GroupJobObject, "adopt", refuse)
    with pytest.raises(SpawnFailed) as caught:
        await host.spawn(shell("read line"))
    assert caught.value.errno == errno.EACCES


async def test_a_kernel_that_refuses_costs_one_tree_and_no_other(
    host: ProcessHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then closing the Job Object ends what is in it."""
    other = await host.spawn(shell("read line; exit 3"))
    child = await host.spawn(shell("sleep 1000 & sleep 1000"))
    _, job = GroupJobObject.made
    terminate = job.terminate

    def refuse() -> None:
        if not job.is_closed:
            raise OSError(errno.EACCES, "Access is denied")
        terminate()

    monkeypatch.setattr(job, "terminate", refuse)
    child.signal(signal.SIGTERM)
    assert not child.has_exited
    with trio.fail_after(5):
        await child.kill(grace=0)
    await until(lambda: not job.members())
    await close_pipes(child)
    assert other.stdin is not None
    await other.stdin.send_all(b"on\n")
    assert (await finish(other)).status == ExitStatus(3, None)


async def test_leaving_the_host_ends_everything() -> None:
    """Whatever runs is dead after the block, and an exception comes out as itself."""
    error = KeyError("mine")
    children = []

    async def fail() -> None:
        async with open_windows_process_host(
            open_process=open_in_session, create_job=GroupJobObject
        ) as host:
            child = await host.spawn(shell("trap '' INT TERM; sleep 1000 & echo ready; read line"))
            children.append(child)
            assert await read_line(child.stdout) == b"ready"
            assert "returncode None" in repr(child)
            raise error

    with pytest.raises(KeyError) as caught:
        await fail()
    assert caught.value is error
    assert not is_alive(children[0].pid)
    await close_pipes(children[0])


async def test_a_mistake_of_ours_surfaces() -> None:
    """A task of the host that crashes cancels the body, and its exception is what comes out."""
    error = RuntimeError("a mistake of ours")

    async def crash() -> None:
        raise error

    with trio.fail_after(5), pytest.raises(RuntimeError) as caught:  # noqa: PT012 - the block is what is tested
        async with open_windows_process_host(
            open_process=open_in_session, create_job=GroupJobObject
        ) as host:
            assert isinstance(host, WindowsProcessHost)
            host.nursery.start_soon(crash)
            await trio.sleep_forever()
    assert caught.value is error


def test_a_text_for_the_shell_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """``cmd`` takes off the outer quotes alone; other programs find backslashes before inner ones."""
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("COMSPEC", r"C:\Windows\system32\cmd.exe")
    argv = [part.decode() for part in spawn_requests.shell_argv(b'echo "a b" & dir')]
    assert command_line(argv) == r'C:\Windows\system32\cmd.exe /d /s /c "echo "a b" & dir"'
    assert command_line(["a b.exe", "c", 'say "hi"']) == r'"a b.exe" c "say \"hi\""'


def test_names_of_variables_know_no_case(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is given takes the place of the daemon's, however it is written."""
    spec = wire.CommandSpec((b"x",), env={b"Path": b"mine"})
    job = JobOfSpec(("default", "1"), b"", spec)
    monkeypatch.setattr(spawn_requests, "base_environment", lambda: {b"PATH": b"its"})
    for platform, expected in (
        ("win32", {b"PATH": b"mine"}),
        ("linux", {b"PATH": b"its", b"Path": b"mine"}),
    ):
        monkeypatch.setattr(sys, "platform", platform)
        wanted = spawn_requests.spawn_request(job, spec, "i")
        environment = {**wanted.base, **wanted.env}
        del environment[b"SANDD_JOB"]
        assert environment == expected


async def test_real_job_objects_exist_on_windows_only() -> None:
    """Elsewhere the defaults say so, instead of failing somewhere deep."""
    async with open_windows_process_host() as host:
        with pytest.raises(NotImplementedError, match="Windows only"):
            await host.spawn(shell("echo ran"))
    async with open_windows_process_host(open_process=open_in_session) as host:
        with pytest.raises(NotImplementedError, match="Windows only"):
            await host.spawn(shell("exit"))
    assert sys.platform != "win32"


async def test_limits_are_the_job_objects_to_hold(host: ProcessHost) -> None:
    """What it can't hold is said, or a reason to start nothing; what was used is told when its tree is gone."""
    limits = Limits(processes=3, open_files=20, wall=9.0, output_bytes=7)
    assert await host.unheld(limits) == ("open_files",)
    with pytest.raises(SpawnFailed, match="can't be held to open_files"):
        await host.spawn(shell("true", limits=limits, must_hold=True))
    child = await host.spawn(shell("true", limits=limits))
    assert GroupJobObject.made[-1].limits == limits
    assert child.unheld == ("open_files",)
    assert child.limit == ""
    await finish(child)
    assert (child.used, child.limit) == (Usage(1.5, 4096), "processes")
