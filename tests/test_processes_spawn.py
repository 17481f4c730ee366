"""Starting a process: what it gets, what it doesn't get, how its end is told, and how a start fails."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import resource
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from process_tools import (
    PATIENCE,
    PYTHON,
    close_pipes,
    finish,
    linux_only,
    request,
    root_only,
    run,
    shell,
    the_spawner,
    until,
)

from sandd._core._errors import SpawnFailed
from sandd._core.processes import ExitStatus, SpawnRequest, open_process_host, posix
from sandd._core.processes.pipes import PIPE_BYTES, OutputPipe, open_job_pipes
from sandd._core.processes.posix import MAX_REQUEST_BYTES
from sandd._core.processes.spawner_messages import Exited

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sandd._core.processes.interface import Answered

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX process trees")


# ---- its end --------------------------------------------------------------------------------------


@linux_only
async def test_who_asked_is_told_whether_others_were_answered_with_it() -> None:
    """Then each has a say once all have been told, whoever else asked; who waits in a task hears of it otherwise."""
    told: list[tuple[str, bool] | str] = []

    def ask(name: str) -> Answered:
        def say() -> None:
            told.append(name)

        def answered(alone: bool) -> Callable[[], None] | None:
            told.append((name, alone))
            return None if alone else say

        return answered

    async with open_process_host() as host:
        assert isinstance(host, posix.PosixProcessHost)
        asked = request("/bin/true")
        link = await host.keeper.wait_link()
        children = []
        one, other = ask("one"), ask("other")
        for number, answered in enumerate((one, other, one, None, one)):
            pipes = open_job_pipes(asked, may_grow=False)
            child = posix.PosixChild(1000 + number, asked.marker, link, pipes, answered)
            children.append(child)
            host._children[child.job] = child
        ends = [Exited(each.job, 0, None, True, started=(1, ())) for each in children]
        host._note(ends[:4])
        host._note(ends[4:])
        for child in children:
            assert child.ended == ExitStatus(code=0, signal=None)
            child.close_pipes()
    at_once = [("one", False), ("other", False), ("one", False)]
    assert told == [*at_once, "one", "other", ("one", True)]


@pytest.mark.parametrize("code", [0, 1, 3, 127, 255])
async def test_exit_code_is_the_real_one(code: int) -> None:
    """The code passed to exit(2) is told, and no signal."""
    async with open_process_host() as host:
        outcome = await run(host, shell(f"exit {code}"))
    assert outcome.status == ExitStatus(code=code, signal=None)


@pytest.mark.parametrize("name", ["TERM", "KILL", "SEGV", "INT", "PIPE", "USR1"])
async def test_signal_is_the_real_one(name: str) -> None:
    """A death by signal is told as that signal, and no code."""
    async with open_process_host() as host:
        outcome = await run(host, shell(f"kill -{name} $$"))
    assert outcome.status == ExitStatus(code=None, signal=signal.Signals[f"SIG{name}"])


async def test_exit_status_is_told_to_any_number_of_waiters_at_any_time() -> None:
    """All that wait before, and all that ask after the exit and the release, get the status."""
    statuses = []
    async with open_process_host() as host:
        child = await host.spawn(shell("read line; exit 7"))
        assert child.stdin is not None

        async def wait() -> None:
            statuses.append(await child.wait_exited())

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            await child.stdin.send_all(b"\n")
        await child.release()
        await wait()
        await close_pipes(child)
    assert statuses == [ExitStatus(7, None)] * 4


async def test_exit_is_told_while_a_grandchild_holds_the_pipe() -> None:
    """The direct child's exit and the end of its pipes are two things."""
    async with open_process_host() as host:
        child = await host.spawn(shell("sleep 1000 & echo started"))
        with trio.fail_after(PATIENCE):
            assert await child.wait_exited() == ExitStatus(0, None)
        assert await child.stdout.receive_some() == b"started\n"
        with trio.move_on_after(0.05) as scope:
            await child.stdout.receive_some()
        assert scope.cancelled_caught
        await child.release(sweep=True)
        assert await child.stdout.receive_some() == b""
        await close_pipes(child)


def test_exit_status_has_exactly_one_side() -> None:
    """Nobody can make a status that is both or neither."""
    with pytest.raises(ValueError, match="code or a signal"):
        ExitStatus(None, None)
    with pytest.raises(ValueError, match="code or a signal"):
        ExitStatus(0, 9)


# ---- its streams ----------------------------------------------------------------------------------


async def test_streams_are_separate_and_complete() -> None:
    """stdin arrives, stdout and stderr come back apart, each with its end."""
    async with open_process_host() as host:
        child = await host.spawn(shell("cat; echo problem >&2"))
        assert child.stdin is not None
        await child.stdin.send_all(b"what was written")
        outcome = await finish(child)
    assert (outcome.stdout, outcome.stderr) == (b"what was written", b"problem\n")


async def test_merged_stderr_keeps_the_order_of_writing() -> None:
    """With merge_stderr both come by stdout, and there is no stderr."""
    async with open_process_host() as host:
        child = await host.spawn(shell("echo 1; echo 2 >&2; echo 3", merge_stderr=True))
        assert child.stderr is None
        outcome = await finish(child)
    assert outcome.stdout == b"1\n2\n3\n"


async def test_without_stdin_the_child_reads_the_end_at_once() -> None:
    """stdin=False is /dev/null."""
    async with open_process_host() as host:
        child = await host.spawn(shell("cat; echo done", stdin=False))
        assert child.stdin is None
        outcome = await finish(child)
    assert outcome.stdout == b"done\n"


async def test_output_beyond_any_pipe_arrives_whole() -> None:
    """Ten MiB come through, in reads of up to 256 KiB where asked for."""
    async with open_process_host() as host:
        child = await host.spawn(request("head", "-c", str(10 << 20), "/dev/zero"))
        total = largest = 0
        while chunk := await child.stdout.receive_some(256 * 1024):
            total += len(chunk)
            largest = max(largest, len(chunk))
        await finish(child)
    assert total == 10 << 20
    assert 65536 < largest <= 256 * 1024


async def test_writing_to_a_child_that_has_exited_is_a_broken_stream() -> None:
    """EPIPE is trio's BrokenResourceError, and nothing else suffers."""
    async with open_process_host() as host:
        child = await host.spawn(shell("exit 0"))
        await child.wait_exited()
        assert child.stdin is not None
        with pytest.raises(trio.BrokenResourceError):
            await child.stdin.send_all(b"too late")
        assert (await finish(child)).status == ExitStatus(0, None)


# ---- what it gets ---------------------------------------------------------------------------------


async def test_arguments_and_environment_are_exact_bytes() -> None:
    """Invalid UTF-8, newlines and empty words reach the program as they are; nothing is added."""
    words = [b"\xff\xfe", b"two\nlines", b"", b"\xc3\x28"]
    program = "import os, sys; print([os.fsencode(w) for w in sys.argv[1:]], dict(os.environb))"
    env = {b"ODD": b"\x80\xff", b"SANDD_JOB": b"m"}
    wanted = SpawnRequest(
        argv=(PYTHON.encode(), b"-I", b"-S", b"-c", program.encode(), *words), env=env, marker=b"m"
    )
    async with open_process_host() as host:
        outcome = await run(host, wanted)
    arguments, _, environment = outcome.stdout.decode().strip().partition("] ")
    assert eval(arguments + "]") == words
    seen = eval(environment)
    seen.pop(b"LC_CTYPE", None)  # Python's own doing (PEP 538)
    assert seen == env


async def test_program_is_looked_up_in_the_childs_own_path(tmp_path: Path) -> None:
    """A name without a slash is found in PATH of the request, not in the daemon's."""
    program = tmp_path / "only-here"
    program.write_text("#!/bin/sh\necho found")
    program.chmod(0o755)
    async with open_process_host() as host:
        outcome = await run(host, request("only-here", env={b"PATH": os.fsencode(tmp_path)}))
    assert outcome.stdout == b"found\n"


async def test_working_directory_is_the_one_asked_for(tmp_path: Path) -> None:
    """The child starts in cwd, also where its name is no UTF-8; by default where the daemon is."""
    odd = os.path.join(os.fsencode(tmp_path), b"od\xffd")
    os.mkdir(odd)
    async with open_process_host() as host:
        assert (await run(host, request("pwd", cwd=odd))).stdout == odd + b"\n"
        assert (await run(host, request("pwd"))).stdout == os.getcwdb() + b"\n"


async def test_child_leads_a_session_and_group_of_its_own() -> None:
    """pid, process group and session are one number."""
    program = "import os; print(os.getpid(), os.getpgrp(), os.getsid(0))"
    async with open_process_host() as host:
        child = await host.spawn(request(PYTHON, "-c", program))
        outcome = await finish(child)
    assert outcome.stdout.split() == [str(child.pid).encode()] * 3


@linux_only
async def test_child_inherits_no_descriptor_but_the_standard_ones() -> None:
    """0, 1 and 2 are open in the child, and ls's own directory."""
    keep = os.open("/dev/null", os.O_RDONLY)
    os.set_inheritable(keep, True)
    try:
        async with open_process_host() as host:
            others = [await host.spawn(shell("read line")) for _ in range(3)]
            outcome = await run(host, request("ls", "/proc/self/fd"))
            for child in others:
                await finish(child)
    finally:
        os.close(keep)
    assert outcome.stdout.split() == [b"0", b"1", b"2", b"3"]


@linux_only
@pytest.mark.parametrize("setting", ["ignored", "blocked"])
async def test_signals_are_default_in_the_child_whatever_the_daemon_has(setting: str) -> None:
    """A daemon started with & ignores SIGINT; its children don't, and block nothing."""
    host_program = f"""
import signal, trio
from sandd._core.processes import SpawnRequest, open_process_host
signals = {{signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGPIPE, signal.SIGUSR1}}
if {setting == "ignored"}:
    for number in signals:
        signal.signal(number, signal.SIG_IGN)
else:
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
async def main():
    async with open_process_host() as host:
        argv = (b"grep", b"-E", b"^Sig(Blk|Ign)", b"/proc/self/status")
        env = {{b"PATH": b"/bin:/usr/bin"}}
        child = await host.spawn(SpawnRequest(argv=argv, env=env, marker=b"m"))
        async for chunk in child.stdout:
            print(chunk.decode(), end="")
        await child.wait_exited()
        await child.release()
trio.run(main)
"""
    async with open_process_host() as host:
        outcome = await run(host, request(PYTHON, "-c", host_program))
    assert outcome.stderr == b""
    # Two that the C library keeps to itself, and that posix_spawn(3) leaves ignored.
    internal = (1 << 31) | (1 << 32)
    masks = [int(line.split()[1], 16) & ~internal for line in outcome.stdout.splitlines()]
    assert masks == [0, 0]


async def test_ctrl_c_works_in_a_child_of_a_daemon_in_the_background() -> None:
    """signal(SIGINT) ends a program that does nothing about it."""
    async with open_process_host() as host:
        # No shell: dash catches SIGINT and may miss one that comes while it forks.
        child = await host.spawn(request("sleep", "1000"))
        child.signal(signal.SIGINT)
        outcome = await finish(child)
    assert outcome.status == ExitStatus(None, signal.SIGINT)


async def test_original_limit_of_open_files_is_restored_in_children() -> None:
    """The daemon may have raised its soft NOFILE; a child sees what there was before."""
    host_program = """
import resource, trio
from sandd._core.processes import SpawnRequest, open_process_host, raise_open_files_limit
async def main():
    assert raise_open_files_limit() == raise_open_files_limit() == 333
    print(resource.getrlimit(resource.RLIMIT_NOFILE)[0], flush=True)
    async with open_process_host() as host:
        argv = (b"/bin/sh", b"-c", b"ulimit -Sn; ulimit -Hn")
        child = await host.spawn(SpawnRequest(argv=argv, env={}, marker=b"m"))
        async for chunk in child.stdout:
            print(chunk.decode(), end="")
        await child.wait_exited()
        await child.release()
trio.run(main)
"""
    script = f'ulimit -Sn 333; exec "{PYTHON}" -c "$0"'
    async with open_process_host() as host:
        outcome = await run(host, request("/bin/sh", "-c", script, host_program))
    assert outcome.stderr == b""
    raised, soft, hard = map(int, outcome.stdout.split())
    assert raised == min(65_536, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    assert soft == 333
    assert hard == resource.getrlimit(resource.RLIMIT_NOFILE)[1]


@root_only
@pytest.mark.parametrize("user", ["nobody", "65534"])
async def test_user_sets_uid_gid_and_groups(user: str) -> None:
    """A name or a number of the user database brings that user's ids, all of them."""
    async with open_process_host() as host:
        outcome = await run(host, shell("id -u; id -g; id -G; id -ru", user=user))
    assert outcome.stdout.split() == [b"65534"] * 4


@root_only
async def test_unknown_uid_gets_a_group_that_owns_nothing() -> None:
    """A uid outside the user database runs, and never with the daemon's own groups."""
    async with open_process_host() as host:
        outcome = await run(host, shell("id -u; id -g; id -G", user="54321"))
    assert outcome.stdout.split() == [b"54321", b"65534", b"65534"]


async def test_users_that_cannot_be_looked_up_keep_no_threads_from_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A directory of users that hangs delays those jobs alone: not who looks up a host, for one."""
    answer = threading.Event()

    def hang(user: str) -> None:
        answer.wait(30)

    monkeypatch.setattr(posix, "resolve_user", hang)
    async with open_process_host() as host, trio.open_nursery() as nursery:
        for _ in range(50):  # more than trio has threads to give
            nursery.start_soon(host.spawn, shell("true", user="somebody"))
        await trio.testing.wait_all_tasks_blocked()
        try:
            with trio.fail_after(PATIENCE):
                assert await trio.to_thread.run_sync(os.getpid) == os.getpid()
        finally:
            nursery.cancel_scope.cancel()
            answer.set()


AS_NOBODY = [
    *("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"),
    # The interpreter may be in root's home.
    *("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"),
]


# ---- how a start fails ----------------------------------------------------------------------------


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    """A directory with things that can't be run."""
    (tmp_path / "not-executable").write_text("#!/bin/sh\n")
    (tmp_path / "no-format").write_bytes(b"\x00\x01\x02\x03")
    (tmp_path / "no-format").chmod(0o755)
    (tmp_path / "no-interpreter").write_text("#!/no/such/shell\n")
    (tmp_path / "no-interpreter").chmod(0o755)
    (tmp_path / "file").touch()
    return tmp_path


@root_only
def test_cwd_works_where_the_daemon_stands_where_it_may_not_be(tmp_path: Path) -> None:
    """As after ``sudo -u nobody`` in root's home: nobody could go back there."""
    program = """
import ctypes  # what a fork needs: where this Python is, nobody may not look
import os
from sandd._core.processes.launcher import launch
from sandd._core.processes.spawner_messages import Spawn
os.setgroups([]); os.setgid(65534); os.setuid(65534)
for cwd in (b"/", b"/no/such"):
    request = Spawn(1, (b"sh", b"-c", b"pwd -P"), {}, b"m", cwd, None, False, True, False, None)
    try:
        os.waitpid(launch(request, {}, [1]), 0)
    except OSError as error:
        print(error.errno, error.filename)
"""
    tmp_path.chmod(0o700)
    ran = subprocess.run(
        [PYTHON, "-c", program],
        cwd=tmp_path,
        env={"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.stdout, ran.stderr) == (f"/\n{errno.ENOENT} /no/such\n", "")


@pytest.mark.parametrize(
    ("program", "number"),
    [
        ("no-such-program-anywhere", errno.ENOENT),
        ("{bad}/no-such", errno.ENOENT),
        ("{bad}/no-interpreter", errno.ENOENT),
        ("{bad}/not-executable", errno.EACCES),
        ("{bad}", errno.EACCES),
        ("{bad}/no-format", errno.ENOEXEC),
        ("{bad}/file/below", errno.ENOTDIR),
    ],
)
async def test_program_that_cannot_run_is_told_with_its_name(
    bad: Path, program: str, number: int
) -> None:
    """errno, text and file name of the machine; and the next spawn works."""
    path = program.format(bad=bad)
    async with open_process_host() as host:
        with pytest.raises(SpawnFailed) as caught:
            await host.spawn(request(path))
        assert (caught.value.errno, caught.value.filename) == (number, path)
        assert caught.value.strerror == os.strerror(number)
        assert (await run(host, shell("echo fine"))).stdout == b"fine\n"


@pytest.mark.parametrize(
    ("cwd", "number"), [("no-such", errno.ENOENT), ("file", errno.ENOTDIR), ("x" * 300, 36)]
)
async def test_bad_working_directory_is_told_with_its_name(
    bad: Path, cwd: str, number: int
) -> None:
    """The file name of the error is the directory, not the program."""
    async with open_process_host() as host:
        with pytest.raises(SpawnFailed) as caught:
            await host.spawn(shell("echo ran", cwd=os.fsencode(bad / cwd)))
        assert caught.value.filename == str(bad / cwd)
        if number != 36:  # ENAMETOOLONG has another number elsewhere
            assert caught.value.errno == number
        assert (await run(host, shell("echo fine"))).stdout == b"fine\n"


@pytest.mark.parametrize("size", [200_000, MAX_REQUEST_BYTES + 1, 20 << 20])
async def test_arguments_beyond_the_kernels_limit_are_told(size: int) -> None:
    """E2BIG, whether the kernel said so or it was not even asked."""
    async with open_process_host() as host:
        with pytest.raises(SpawnFailed) as caught:
            await host.spawn(request("/bin/echo", b"x" * size))
        assert (caught.value.errno, caught.value.filename) == (errno.E2BIG, "/bin/echo")
        assert (await run(host, shell("echo fine"))).stdout == b"fine\n"


@linux_only
async def test_arguments_just_below_the_kernels_limit_arrive() -> None:
    """A message far beyond the socket's buffer goes through whole: 1.5 MB in 12 words."""
    words = [b"%06d" % n * 20_000 for n in range(12)]
    program = (
        "import os, sys, hashlib;"
        "print(hashlib.md5(b''.join(map(os.fsencode, sys.argv[1:]))).hexdigest())"
    )
    async with open_process_host() as host:
        outcome = await run(host, request(PYTHON, "-c", program, *words))
        assert outcome.stdout.decode().strip() == hashlib.md5(b"".join(words)).hexdigest()
        large = await run(host, request("env", env={b"LARGE": b"y" * 120_000}))
        assert b"LARGE=" + b"y" * 120_000 in large.stdout


@pytest.mark.parametrize(
    "options",
    [
        {"argv": (b"/bin/echo", b"a\0b")},
        {"env": {b"A=B": b"C"}},
        {"env": {b"NUL": b"\0"}},
        {"cwd": b"/\0"},
    ],
    ids=["nul in argument", "equals in name", "nul in value", "nul in cwd"],
)
async def test_what_no_program_can_be_given_is_told(options: dict[str, object]) -> None:
    """EINVAL with a text, instead of a crash anywhere."""
    fields: dict[str, object] = {"argv": (b"/bin/echo",), "env": {}, "marker": b"m", **options}
    async with open_process_host() as host:
        with pytest.raises(SpawnFailed) as caught:
            await host.spawn(SpawnRequest(**fields))  # type: ignore[arg-type]
        assert caught.value.errno == errno.EINVAL
        assert caught.value.strerror
        assert (await run(host, shell("echo fine"))).stdout == b"fine\n"


@pytest.mark.parametrize("user", ["no-such-user-here", "4294967295", "-1", "a\0b", "٣"])
async def test_unknown_user_is_told(user: str) -> None:
    """EINVAL, a clear text, and the user as file name."""
    async with open_process_host() as host:
        with pytest.raises(SpawnFailed, match="no such user") as caught:
            await host.spawn(shell("echo ran", user=user))
        assert (caught.value.errno, caught.value.filename) == (errno.EINVAL, user)


@root_only
async def test_user_that_may_not_be_become_is_told() -> None:
    """Without privilege another user is EPERM with a clear text, and nothing ran."""
    host_program = """
import trio
from sandd._core._errors import SpawnFailed
from sandd._core.processes import SpawnRequest, open_process_host
async def main():
    async with open_process_host() as host:
        for user in "root", "nobody", "65534":
            try:
                child = await host.spawn(
                    SpawnRequest(argv=(b"/bin/sh", b"-c", b"id -u"), env={}, marker=b"m", user=user)
                )
            except SpawnFailed as error:
                print(error.errno, error.strerror)
            else:
                print((await child.stdout.receive_some()).decode(), end="")
                await child.wait_exited()
                await child.release()
trio.run(main)
"""
    async with open_process_host() as host:
        outcome = await run(host, request(*AS_NOBODY, PYTHON, "-c", host_program))
    assert outcome.stdout.splitlines() == [b"1 can't become uid 0", b"65534", b"65534"], outcome


async def test_environments_have_a_base_that_is_told_once() -> None:
    """What is a request's own goes before it; another base, or another spawner, gets all of it again."""
    one, other = {b"BASE": b"one", b"PATH": os.environb[b"PATH"]}, {b"BASE": b"other"}

    def with_base(base: dict[bytes, bytes], **env: bytes) -> SpawnRequest:
        words = (b"/bin/sh", b"-c", b"echo $BASE $OWN")
        extra = {name.encode(): value for name, value in env.items()}
        return SpawnRequest(argv=words, env=extra, marker=b"m", base=base)

    async with open_process_host() as host:
        for base, env, expected in [
            (one, {}, b"one\n"),
            (one, {"OWN": b"own"}, b"one own\n"),
            (one, {"BASE": b"mine"}, b"mine\n"),
            (one, {}, b"one\n"),
            (other, {}, b"other\n"),
            (one, {"OWN": b"own"}, b"one own\n"),
        ]:
            assert (await run(host, with_base(base, **env))).stdout == expected
        os.kill(await the_spawner(), signal.SIGKILL)
        await until(lambda: host.keeper.link is None)  # type: ignore[attr-defined]
        assert (await run(host, with_base(one))).stdout == b"one\n"


@linux_only
async def test_the_pipe_of_a_busy_program_grows() -> None:
    """Most commands say little; one that fills what a pipe holds by default gets four times as much."""
    size = fcntl.F_GETPIPE_SZ
    async with open_process_host() as host:
        child = await host.spawn(
            shell("echo little; read line; head -c 1000000 /dev/zero", stdin=True)
        )
        descriptor = child.stdout._descriptor  # type: ignore[attr-defined]
        before = fcntl.fcntl(descriptor, size)
        assert await child.stdout.receive_some() == b"little\n"
        assert fcntl.fcntl(descriptor, size) == before
        assert child.stdin is not None
        await child.stdin.send_all(b"go\n")
        total = 0
        while chunk := await child.stdout.receive_some():
            total += len(chunk)
        assert total == 1_000_000
        assert before < fcntl.fcntl(descriptor, size) == PIPE_BYTES
        await child.wait_exited()
        await child.release()
        child.close_pipes()


async def test_no_descriptor_left_in_the_daemon_is_told() -> None:
    """EMFILE in the daemon is a typed error, costs nothing else, and passes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with open_process_host() as host:
        await run(host, shell("true"))
        lowest = os.dup(0)
        os.close(lowest)
        try:
            for spare in range(6):
                resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + spare, hard))
                with pytest.raises(SpawnFailed) as caught:
                    await host.spawn(shell("echo ran"))
                assert caught.value.errno == errno.EMFILE
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert (await run(host, shell("echo fine"))).stdout == b"fine\n"


@linux_only
async def test_no_descriptor_left_in_the_spawner_is_told() -> None:
    """EMFILE in the spawner is a typed error for that job; the others and the link live."""
    async with open_process_host() as host:
        await run(host, shell("true"))
        spawner = await the_spawner()
        in_use = len(os.listdir(f"/proc/{spawner}/fd"))
        hard = resource.prlimit(spawner, resource.RLIMIT_NOFILE)[1]
        waiting = await host.spawn(shell("read line; echo $line"))
        for spare in range(7):
            # From no room for the descriptors sent, over none for Popen's pipe, to none for a pidfd.
            resource.prlimit(spawner, resource.RLIMIT_NOFILE, (in_use + spare, hard))
            try:
                child = await host.spawn(shell("exit 5"))
            except SpawnFailed as error:
                assert error.errno == errno.EMFILE  # noqa: PT017 - both outcomes are right, see below
                assert spare < 6
            else:
                assert (await finish(child)).status == ExitStatus(5, None)
                assert spare > 0
        resource.prlimit(spawner, resource.RLIMIT_NOFILE, (hard, hard))
        assert waiting.stdin is not None
        await waiting.stdin.send_all(b"alive\n")
        assert (await finish(waiting)).stdout == b"alive\n"


@root_only
@linux_only
async def test_no_process_left_for_the_user_is_told() -> None:
    """EAGAIN of fork(2) is a typed error, and the link lives."""
    host_program = """
import os, resource, trio
from sandd._core._errors import SpawnFailed
from sandd._core.processes import SpawnRequest, open_process_host
from sandd._core.processes.process_table import own_children
async def main():
    async with open_process_host() as host:
        request = SpawnRequest(argv=(b"/bin/echo",), env={}, marker=b"m")
        child = await host.spawn(request)
        await child.wait_exited()
        await child.release()
        (spawner,) = own_children()
        resource.prlimit(spawner, resource.RLIMIT_NPROC, (1, 100))
        try:
            await host.spawn(request)
        except SpawnFailed as error:
            print(error.errno)
        resource.prlimit(spawner, resource.RLIMIT_NPROC, (100, 100))
        child = await host.spawn(request)
        print(await child.wait_exited())
        await child.release()
trio.run(main)
"""
    async with open_process_host() as host:
        outcome = await run(host, request(*AS_NOBODY, PYTHON, "-c", host_program))
    assert outcome.stdout.splitlines()[0] == str(errno.EAGAIN).encode()
    assert outcome.stdout.splitlines()[1] == b"ExitStatus(code=0, signal=None)"


async def test_closing_our_end_of_an_output_ends_who_waits_for_it() -> None:
    """The kernel doesn't tell of that, so it has to be said."""
    reading, writing = os.pipe()
    pipe = OutputPipe(reading, may_grow=False)

    async def wait() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await pipe.receive_some()

    try:
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait)
                await trio.testing.wait_all_tasks_blocked()
                pipe.close()
    finally:
        os.close(writing)
