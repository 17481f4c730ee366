"""A daemon's jobs and files at each level are what they are without, but for whose they are, and where."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TYPE_CHECKING

import pytest
import trio
from daemons import open_daemon
from isolation_world import CONFINED, EACH_LEVEL, missing, needs
from standing_daemon import standing_daemon
from trusted_files import trusted_directory

if sys.platform == "win32":
    pytest.skip("POSIX only", allow_module_level=True)

import sandd
from sandd.wire import IsolationLevel, Outcome

if TYPE_CHECKING:
    from collections.abc import Iterator

    from standing_daemon import StandingDaemon


@pytest.fixture(scope="module", params=EACH_LEVEL)
def daemon(
    request: pytest.FixtureRequest, _own_temporary_directory: None
) -> Iterator[StandingDaemon]:
    """One of each level."""
    with trusted_directory() as workspaces:
        options = ("--isolation", str(request.param), "--require-isolation")
        where = ("--workspaces", str(workspaces / "w"), "--isolation-read", str(workspaces / "r"))
        with standing_daemon(arguments=(*options, *where)) as daemon:
            yield daemon


async def test_a_command_is_at_home_in_its_workspace(daemon: StandingDaemon) -> None:
    """HOME, TMPDIR and the working directory are there; of the daemon's environment little passes."""
    async with daemon.worker() as worker:
        script = "pwd; echo $HOME; cd; pwd; cd $TMPDIR; pwd; id -u; umask; env"
        home, named, again, temporary, uid, umask, *env = (
            await worker.run(script, env={"MARK": "1"})
        ).stdout.splitlines()
        assert home == named == again
        assert home.endswith("/default")
        assert temporary == f"{home}/tmp"
        assert int(uid) >= 60_000
        assert umask == "0077"
        assert "MARK=1" in env
        assert not any(each.startswith(("PYTHON", "PYTEST", "SANDD_STATE")) for each in env)


async def test_a_command_ends_as_it_would(daemon: StandingDaemon) -> None:
    """Its exit code, what it does on SIGTERM, and its input are its own."""
    async with daemon.worker() as worker:
        result = await worker.run("cat; exit 7", input="given")
        assert (result.exit_code, result.stdout) == (7, "given")
        script = "trap 'echo asked; exit 9' TERM; echo ready; while :; do sleep 0.01; done"
        async with worker.open_process(script, stdin=False) as process:
            assert await process.stdout.receive_some() == b"ready\n"
            await process.signal("TERM")
            assert await process.stdout.receive_some() == b"asked\n"
            assert (await process.wait()).exit_code == 9


async def test_a_command_that_runs_out_of_time_has_its_grace(daemon: StandingDaemon) -> None:
    """The program gets SIGTERM first, whatever it is wrapped in."""
    async with daemon.worker() as worker:
        script = "trap 'sleep 0.3; echo asked; exit 9' TERM; while :; do sleep 0.01; done"
        with pytest.raises(sandd.CommandTimeout) as caught:
            await worker.run(script, timeout=0.5, kill_grace=20)
        assert caught.value.result is not None
        assert caught.value.result.stdout == "asked\n"


async def test_what_can_not_be_started_is_told(daemon: StandingDaemon) -> None:
    """No such program, a directory that it may not enter, or another user: nothing ran."""
    async with daemon.worker() as worker:
        for command, options in (
            (["no-such-program"], {}),
            (["/no/such/program"], {}),
            (["true"], {"cwd": "/no/such/directory"}),
            (["true"], {"cwd": "/root"}),
            (["true"], {"user": "root"}),
            (["true"], {"user": "nobody"}),
        ):
            with pytest.raises(sandd.SpawnFailed):
                await worker.run(command, **options)  # type: ignore[arg-type] # a mix
        uid = (await worker.run("id -u")).stdout.strip()
        assert (await worker.run("id -u", user=uid)).stdout.strip() == uid
        assert (await worker.run("pwd", cwd="tmp")).stdout.strip().endswith("/default/tmp")


async def test_a_session_has_its_terminal(daemon: StandingDaemon) -> None:
    """It is its tenant's, has the size that was asked for, and Ctrl-C reaches who is in the foreground."""
    async with (
        daemon.worker() as worker,
        worker.open_session(
            "stty size; echo x > /dev/tty; trap 'echo caught; exit 4' INT; echo ready; while :; do sleep 0.1; done",
            rows=33,
            cols=44,
        ) as session,
    ):
        seen = b""
        while b"ready" not in seen:
            seen += await session.receive_some()
        assert b"33 44" in seen
        await session.send_all(b"\x03")
        async for chunk in session:
            seen += chunk
        assert b"caught" in seen
        assert (await session.wait()).exit_code == 4


async def test_files_are_those_of_the_workspace(daemon: StandingDaemon) -> None:
    """What a client writes is there for its commands, as theirs; and the other way round."""
    async with daemon.worker() as worker:
        await worker.path("from-client").write_text("hello")
        script = "cat from-client; echo; stat -c '%u %a' from-client . ; id -u; echo there > from-command"
        text, *owners, uid = (await worker.run(script)).stdout.split()
        assert text == "hello"
        assert owners[0] == owners[2] == uid
        assert await worker.path("from-command").read_text() == "there\n"
        home = (await worker.run("pwd")).stdout.strip()
        assert await worker.path(f"{home}/from-command").read_text() == "there\n"
        names = [each.name for each in await worker.path(".").iterdir()]
        assert {"from-client", "from-command", "tmp"} <= set(names)


async def test_files_elsewhere_are_out_of_reach(daemon: StandingDaemon) -> None:
    """By their paths, by dots, by links that commands make, and by /proc."""
    async with daemon.worker() as worker:
        await worker.run("ln -sf /etc/passwd link; ln -sfn / all; ln -sfn /proc/self/root magic")
        for path in (
            *("/etc/passwd", "../../../../etc/passwd", "link", "all/etc/passwd"),
            *("magic/etc/passwd", "/proc/self/root/etc/passwd", str(daemon.process.state_dir)),
        ):
            with pytest.raises(PermissionError):
                await worker.path(path).read_bytes()
        for path in ("/etc/abuse", "all/tmp/abuse", "../abuse", "magic/tmp/abuse"):
            with pytest.raises(PermissionError):
                await worker.path(path).write_bytes(b"x")


async def test_the_state_directory_is_for_nobody_else(daemon: StandingDaemon) -> None:
    """Tenants' users may pass through it; but for a lock, which is empty, they can open nothing there."""
    state = daemon.process.state_dir
    open_to_others = [each for each in os.listdir(state) if (state / each).stat().st_mode & 0o077]
    assert open_to_others in ([], ["lock"])
    assert (state / "lock").stat().st_size == 0


async def test_transfers_are_the_tenants(
    daemon: StandingDaemon, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A tree that is uploaded is its tenant's, and comes back the same."""
    here = tmp_path_factory.mktemp("tree")
    await trio.to_thread.run_sync((here / "a").write_bytes, b"x" * 3_000_000)
    await trio.to_thread.run_sync((here / "b").mkdir)
    await trio.to_thread.run_sync((here / "b" / "c").write_bytes, b"y")
    back = tmp_path_factory.mktemp("back") / "tree"
    async with daemon.worker() as worker:
        await worker.upload(here, "tree")
        script = "find tree ! -user $(id -u) | wc -l; wc -c < tree/a; cat tree/b/c"
        assert (await worker.run(script)).stdout.split() == ["0", "3000000", "y"]
        await worker.download("tree", back)
        assert await trio.to_thread.run_sync((back / "b" / "c").read_bytes) == b"y"


async def test_unix_sockets_are_not_forwarded(daemon: StandingDaemon) -> None:
    """Whoever connects to one is the daemon, and not the tenant's user."""
    async with daemon.worker() as worker:
        with pytest.raises(sandd.RequestRefused, match="reaches no Unix sockets"):
            await worker.open_unix_stream("/run/some.socket")


async def test_a_request_may_raise_the_level_and_not_lower_it(daemon: StandingDaemon) -> None:
    """What was asked for is the least; the daemon says which levels there are."""
    async with daemon.worker() as worker:
        level = IsolationLevel(worker.info.isolation)
        assert set(worker.info.isolation_levels) >= {"none", str(level)}
        outside = "ls / > /dev/null 2>&1 && test -e /root && echo seen"
        lowest = await worker.run("id -u", isolation="none")
        assert int(lowest.stdout) >= 60_000
        for each in CONFINED:
            if missing(each) is None:
                result = await worker.run("id -u; echo /proc/[0-9]* | wc -w", isolation=each.value)
                uid, processes = result.stdout.split()
                assert uid == lowest.stdout.strip()
                assert (int(processes) < 10) is (IsolationLevel.BWRAP in (each, level))
        if level is not IsolationLevel.USER:
            assert (await worker.run(outside, isolation="user")).stdout == ""


async def test_a_job_that_is_killed_leaves_nothing(daemon: StandingDaemon) -> None:
    """Leaving the block ends all that it has started."""
    async with daemon.worker() as worker:
        script = "(setsid env -i sleep 6001 &); (setsid sleep 6001 &); echo ready; exec sleep 6001"
        async with worker.open_process(script, stdin=False, kill_grace=0) as process:
            assert await process.stdout.receive_some() == b"ready\n"
        assert not any("sleep 6001" in each for each in command_lines())


def command_lines() -> Iterator[str]:
    """Of all processes there are."""
    for name in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{name}/cmdline", "rb") as file:
            yield file.read().replace(b"\0", b" ").decode("utf-8", "replace")


async def test_outcomes_are_told_as_ever(daemon: StandingDaemon) -> None:
    """A program that a signal kills: as such, or as a shell tells it, where something is around it."""
    async with daemon.worker() as worker:
        result = await worker.run("kill -9 $$")
        if worker.info.isolation == "bwrap":
            assert (result.outcome, result.exit_code) == (Outcome.EXITED, 137)
        else:
            assert (result.outcome, result.signal) == (Outcome.SIGNALED, "SIGKILL")


@needs(IsolationLevel.LANDLOCK)
async def test_a_policy_and_its_lock_stand_on_top() -> None:
    """What it allows runs at the level that it asks for, where the tenant is at home, and starts nothing else."""
    with trusted_directory() as directory:
        policy = directory / "policy.toml"
        policy.write_text(
            """
            version = 1
            isolation = "landlock"
            exec_lock = "if available"
            [[rule]]
            name = "script"
            exe = "/bin/sh"
            shell = true
            argv = [{regex = ".*"}]
            force = true
            [files]
            write = ["/var/lib"]
            """
        )
        where = ("--workspaces", str(directory / "w"), "--policy", str(policy))
        async with sandd.open_controller(port=0) as controller:
            async with open_daemon(controller.url, "w", arguments=where):
                worker = await controller.wait_for_daemon("w")
                assert worker.info.isolation == "landlock"
                assert "bwrap" not in worker.info.isolation_levels
                script = "pwd; echo $HOME; echo x > /tmp/x || echo denied; /bin/true || echo locked"
                result = await worker.run(script)
                home = str(directory / "w" / "default")
                assert result.stdout.split() == [home, home, "denied", "locked"]
                # Granted files are reached as the tenant's user, and root's are not that.
                await worker.path(f"{home}/file").write_text("mine")
                with pytest.raises(PermissionError):
                    await worker.path(f"{directory}/file").write_text("root's")


@needs(IsolationLevel.BWRAP)
async def test_nothing_survives_a_daemon_that_is_killed() -> None:
    """Its jobs end with it, those in namespaces of their own included."""
    with trusted_directory() as directory:
        where = ("--workspaces", str(directory / "w"), "--isolation", "bwrap")
        async with sandd.open_controller(port=0) as controller:
            async with open_daemon(controller.url, "w", arguments=where) as daemon:
                worker = await controller.wait_for_daemon("w")
                script = "(setsid sleep 6002 &); echo ready; exec sleep 6002"
                with trio.move_on_after(30) as scope:
                    async with worker.open_process(script, stdin=False, detach=True) as process:
                        assert await process.stdout.receive_some() == b"ready\n"
                        daemon.kill()
                        while any("sleep 6002" in each for each in command_lines()):
                            await trio.sleep(0.01)
                        scope.cancel()  # nobody is to be waited for
                assert not any("sleep 6002" in each for each in command_lines())
