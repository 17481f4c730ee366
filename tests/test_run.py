"""`Daemon.run` with a real daemon: what a command gets, what comes back, and what is left (nothing)."""

from __future__ import annotations

import errno
import hashlib
import math
import os
import random
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio
from process_tools import root_only, until
from standing_daemon import StandingDaemon, standing_daemon

import sandd
from sandd import CommandFailed, CommandTimeout, Outcome, SpawnFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import Marker

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="these commands are POSIX shell")

MB = 1_000_000
GET_GOING = 2.0
"""Seconds for a command to come to its first words before its time is up: mostly it takes some milliseconds."""

# A shell that ignores TERM, with a child, a grandchild, one in a session of its own and one that
# forked twice. It says "planted" when all are there.
TREE = (
    "trap '' TERM; sleep 60 & (sleep 60; :) & setsid sleep 60 & "
    "(setsid sh -c 'sleep 60 & sleep 60' &) ; echo planted; sleep 60; :"
)


@pytest.fixture(scope="module")
def daemon(_own_temporary_directory: None) -> Iterator[StandingDaemon]:
    """The daemon that the tests of this module share."""
    with standing_daemon(env={"SANDD_SECRET": "s3cret", "PLAIN": "kept", "BOTH": "old"}) as daemon:
        yield daemon


async def planted(marker: Marker, size: int = 1) -> None:
    """Wait until that many processes have the marker."""
    await until(lambda: len(marker.processes()) >= size)


# ---- output -------------------------------------------------------------------------------------


async def test_a_hundred_megabytes_through_a_pipeline_are_counted(daemon: StandingDaemon) -> None:
    """The shell runs pipelines, and a backslash in the text reaches it as it is."""
    async with daemon.worker() as worker:
        result = await worker.run("head -c 100000000 /dev/zero | tr '\\0' x | wc -c")

        assert result.stdout.strip() == "100000000"
        assert result.success


async def test_twenty_megabytes_of_input_arrive_whole(daemon: StandingDaemon) -> None:
    """All of `input` reaches stdin, then the end of file."""
    data = random.Random(1).randbytes(20 * MB)
    program = "import sys,hashlib;print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())"
    async with daemon.worker() as worker:
        result = await worker.run(["python3", "-c", program], input=data)

        assert result.stdout.strip() == hashlib.sha256(data).hexdigest()


async def test_forty_megabytes_of_output_arrive_whole(daemon: StandingDaemon) -> None:
    """Output within `max_output` is byte for byte what was written."""
    program = "import sys,random;sys.stdout.buffer.write(random.Random(2).randbytes(40_000_000))"
    async with daemon.worker() as worker:
        result = await worker.run([sys.executable, "-c", program], max_output=50 * MB)

        assert result.stdout_bytes == random.Random(2).randbytes(40 * MB)
        assert (result.truncated, result.stdout_total) == (False, 40 * MB)


async def test_input_and_output_flow_at_the_same_time(daemon: StandingDaemon) -> None:
    """A filter that answers while it reads doesn't deadlock, however full both directions are."""
    data = random.Random(3).randbytes(10 * MB)
    async with daemon.worker() as worker:
        result = await worker.run(["cat"], input=data)

        assert result.stdout_bytes == data


async def test_a_command_that_floods_both_streams_without_reading_input_does_not_deadlock(
    daemon: StandingDaemon,
) -> None:
    """Output is taken while input is stuck, and input that nobody reads is no error."""
    script = "head -c 3000000 /dev/zero; head -c 3000000 /dev/zero >&2; exit 3"
    async with daemon.worker() as worker:
        result = await worker.run(script, input=bytes(5 * MB))

        assert (result.exit_code, result.stdout_total, result.stderr_total) == (3, 3 * MB, 3 * MB)


async def test_interleaved_streams_stay_apart_and_whole(daemon: StandingDaemon) -> None:
    """Each of stdout and stderr has its own bytes, all and in order."""
    program = (
        "import sys\n"
        "for i in range(20000):\n"
        "    sys.stdout.write(f'out {i}\\n'); sys.stdout.flush()\n"
        "    sys.stderr.write(f'err {i}\\n')\n"
    )
    async with daemon.worker() as worker:
        result = await worker.run([sys.executable, "-c", program])

        assert result.stdout == "".join(f"out {i}\n" for i in range(20000))
        assert result.stderr == "".join(f"err {i}\n" for i in range(20000))


async def test_bytes_are_exact_and_text_replaces_what_is_no_utf8(daemon: StandingDaemon) -> None:
    """Every byte value comes back in ``stdout_bytes``; ``stdout`` never fails to decode."""
    async with daemon.worker() as worker:
        result = await worker.run(["cat"], input=bytes(range(256)))

        assert result.stdout_bytes == bytes(range(256))
        assert result.stdout == bytes(range(256)).decode("utf-8", "replace")


async def test_text_input_is_sent_as_utf8(daemon: StandingDaemon) -> None:
    """A str of any script survives the round trip."""
    text = "naïve 日本語 🚀\n" * 1000
    async with daemon.worker() as worker:
        assert (await worker.run("cat", input=text)).stdout == text


@pytest.mark.parametrize(
    ("size", "limit"), [(100, 0), (100, 1), (100, 99), (100, 100), (3 * MB, 1001), (3 * MB, MB)]
)
async def test_output_beyond_the_limit_keeps_head_and_tail(
    daemon: StandingDaemon, size: int, limit: int
) -> None:
    """Of more than `max_output` bytes the first and the last half are kept, and totals stay exact."""
    pattern = f"(bytes(i * 7 % 251 for i in range(251)) * {size // 251 + 1})[:{size}]"
    produced: bytes = eval(pattern)
    program = (
        f"import sys; d = {pattern};sys.stdout.buffer.write(d); sys.stderr.buffer.write(d[::-1])"
    )
    async with daemon.worker() as worker:
        result = await worker.run([sys.executable, "-c", program], max_output=limit)

    head, tail = limit - limit // 2, limit // 2
    note = b"\n... %d bytes omitted ...\n" % (size - limit) if size > limit else b""
    for kept, whole in (
        (result.stdout_bytes, produced),
        (result.stderr_bytes, produced[::-1]),
    ):
        assert kept == whole[:head] + note + whole[size - tail :]
    assert (result.stdout_total, result.stderr_total) == (size, size)
    assert result.truncated == (size > limit)


# ---- input --------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [None, "", b""], ids=repr)
async def test_no_input_is_end_of_file_at_once(
    daemon: StandingDaemon, given: str | bytes | None
) -> None:
    """A command that waits for input sees its end, and never hangs."""
    async with daemon.worker() as worker:
        assert (await worker.run("cat; echo done", input=given)).stdout == "done\n"


async def test_input_left_unread_is_no_error(daemon: StandingDaemon) -> None:
    """EPIPE on stdin is the command's good right: its own exit code is what counts."""
    async with daemon.worker() as worker:
        result = await worker.run("exec <&-; echo bye; sleep 0.3; exit 4", input=bytes(5 * MB))

        assert (result.stdout, result.exit_code) == ("bye\n", 4)


async def test_input_of_which_only_the_beginning_is_read(daemon: StandingDaemon) -> None:
    """What was read is a prefix of what was sent."""
    async with daemon.worker() as worker:
        result = await worker.run("head -c 5", input=b"01234" + bytes(2 * MB))

        assert result.stdout == "01234"
        assert result.success


# ---- how it ends --------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [0, 1, 2, 127, 255])
async def test_exit_code_is_the_commands_own(daemon: StandingDaemon, code: int) -> None:
    """Whatever a program exits with is told, and only 0 is success."""
    async with daemon.worker() as worker:
        result = await worker.run(["sh", "-c", f"exit {code}"])

        assert (result.exit_code, result.success) == (code, code == 0)
        assert (result.signal, result.outcome) == (None, Outcome.EXITED)


@pytest.mark.parametrize("name", ["KILL", "TERM", "SEGV", "USR1"])
async def test_death_by_a_signal_is_told_by_name_and_negative_code(
    daemon: StandingDaemon, name: str
) -> None:
    """A command killed by signal N has the exit code -N."""
    async with daemon.worker() as worker:
        result = await worker.run(f"ulimit -c 0; kill -{name} $$")

        assert result.exit_code == -signal.Signals[f"SIG{name}"]
        assert (result.signal, result.outcome) == (f"SIG{name}", Outcome.SIGNALED)
        assert not result.success


async def test_duration_is_the_time_from_spawn_to_exit(daemon: StandingDaemon) -> None:
    """Seconds as a float, and milliseconds as an int."""
    async with daemon.worker() as worker:
        result = await worker.run("sleep 0.2")

        assert 0.2 <= result.duration < 5
        assert result.duration_ms == round(result.duration * 1000)


async def test_check_raises_with_the_whole_result(daemon: StandingDaemon) -> None:
    """With ``check=True`` a bad end is CommandFailed, which says how and has the output."""
    async with daemon.worker() as worker:
        with pytest.raises(CommandFailed, match=r"exit code 3.*why") as caught:
            await worker.run("echo out; echo why >&2; exit 3", check=True)
        assert (caught.value.result.stdout, caught.value.result.exit_code) == ("out\n", 3)
        with pytest.raises(CommandFailed, match="SIGKILL"):
            await worker.run("kill -9 $$", check=True)
        beyond = r"ended with SIG\w+, as it went beyond its limit output_bytes=10: ''"
        with pytest.raises(CommandFailed, match=beyond):
            await worker.run("yes", limits=sandd.Limits(output_bytes=10), check=True)

        assert (await worker.run("true", check=True)).success


async def test_a_background_child_that_holds_the_pipe_does_not_hold_the_result(
    daemon: StandingDaemon, marker: Marker
) -> None:
    """The result comes within the drain grace, says so, and the child is swept away."""
    async with daemon.worker() as worker:
        started = trio.current_time()
        result = await worker.run("sleep 100 & echo on my way", env=dict([marker]))

        assert trio.current_time() - started < 5
        assert (result.stdout, result.exit_code) == ("on my way\n", 0)
        assert result.pipes_held
        assert marker.processes() == []


async def test_a_background_child_without_our_pipes_is_not_waited_for(
    daemon: StandingDaemon, marker: Marker
) -> None:
    """The result comes at once, and the child is swept away all the same."""
    async with daemon.worker() as worker:
        result = await worker.run("sleep 100 >/dev/null 2>&1 & echo hi", env=dict([marker]))

        assert (result.stdout, result.pipes_held) == ("hi\n", False)
        assert marker.processes() == []


@pytest.mark.parametrize(
    "script",
    [
        "setsid sleep 60 & sleep 0.1",
        "(setsid sh -c 'sleep 60 & sleep 60' >/dev/null 2>&1 &) ; sleep 0.1",
        "(trap '' TERM HUP; setsid setsid nohup sleep 60 >/dev/null 2>&1 &)",
    ],
    ids=["setsid", "double-fork", "nohup"],
)
async def test_nobody_escapes_a_command_that_ended_by_itself(
    daemon: StandingDaemon, marker: Marker, script: str
) -> None:
    """A session of its own, or a second fork, doesn't save a process from the end of its job."""
    async with daemon.worker() as worker:
        await worker.run(script, env=dict([marker]))

        assert marker.processes() == []


# ---- time-outs ----------------------------------------------------------------------------------


async def test_timeout_kills_a_tree_that_ignores_sigterm(
    daemon: StandingDaemon, marker: Marker
) -> None:
    """CommandTimeout has what was printed, tells that it ran, and nothing of the tree is left."""
    async with daemon.worker() as worker:
        with pytest.raises(CommandTimeout, match=r"within 2\.0 s") as caught:
            await worker.run(TREE, env=dict([marker]), timeout=GET_GOING, kill_grace=0.3)

        assert marker.processes() == []
    assert isinstance(caught.value, TimeoutError)
    assert caught.value.started is True
    result = caught.value.result
    assert result is not None
    assert result.stdout == "planted\n"
    assert (result.outcome, result.signal) == (Outcome.TIMED_OUT, "SIGKILL")
    assert result.duration >= GET_GOING


async def test_timeout_lets_the_command_clean_up(daemon: StandingDaemon) -> None:
    """SIGTERM comes first: what is printed in the grace is kept."""
    script = "trap 'echo cleaned; exit 9' TERM; sleep 60 & wait"
    async with daemon.worker() as worker:
        with pytest.raises(CommandTimeout) as caught:
            await worker.run(script, timeout=GET_GOING)

    assert caught.value.result is not None
    assert (caught.value.result.stdout, caught.value.result.exit_code) == ("cleaned\n", 9)


async def test_no_grace_is_sigkill_at_once(daemon: StandingDaemon) -> None:
    """``kill_grace=0`` gives the command no time."""
    async with daemon.worker() as worker:
        with pytest.raises(CommandTimeout) as caught:
            await worker.run("trap '' TERM; sleep 60", timeout=0.2, kill_grace=0)

    assert caught.value.result is not None
    assert caught.value.result.signal == "SIGKILL"
    assert caught.value.result.duration < 30  # it didn't sleep to its end


@pytest.mark.parametrize("grace", [math.inf, 3601, -1, math.nan])
async def test_a_grace_is_bounded(daemon: StandingDaemon, grace: float) -> None:
    """Leaving a job waits for its kill and can't be cancelled, so there is no endless grace."""
    async with daemon.worker() as worker:
        with pytest.raises(ValueError, match="kill_grace"):
            await worker.run("true", kill_grace=grace)


async def test_a_command_within_its_timeout_is_not_disturbed(daemon: StandingDaemon) -> None:
    """A time-out that doesn't strike changes nothing; infinity is none."""
    async with daemon.worker() as worker:
        for timeout in (20, math.inf, None):
            assert (await worker.run("echo hi", timeout=timeout)).stdout == "hi\n"


async def test_idle_timeout_strikes_only_in_silence(daemon: StandingDaemon) -> None:
    """Each byte of either stream gives the command its full idle time again."""
    script = (
        "for i in 1 2 3 4 5 6; do sleep 0.5; echo $i >&$((i % 2 + 1)); done; echo quiet; sleep 60"
    )
    async with daemon.worker() as worker:
        with pytest.raises(CommandTimeout) as caught:
            await worker.run(script, idle_timeout=2.0)

    result = caught.value.result
    assert result is not None
    assert (result.stdout, result.stderr) == ("2\n4\n6\nquiet\n", "1\n3\n5\n")
    assert result.duration >= 5.0


async def test_output_that_waits_for_its_reader_is_no_silence_of_the_command(
    daemon: StandingDaemon,
) -> None:
    """A command that writes as fast as we take it never runs out of idle time."""
    async with daemon.worker() as worker:
        result = await worker.run("head -c 60000000 /dev/zero", idle_timeout=1.0, max_output=10)

        assert result.stdout_total == 60 * MB


# ---- what can't be run --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "options", "number", "name"),
    [
        (["no-such-program-here"], {}, errno.ENOENT, "no-such-program-here"),
        (["/no/such/program"], {}, errno.ENOENT, "/no/such/program"),
        (["/etc/passwd"], {}, errno.EACCES, "/etc/passwd"),
        (["/"], {}, errno.EACCES, "/"),
        (["true"], {"cwd": "/no/such/dir"}, errno.ENOENT, "/no/such/dir"),
        (["true"], {"cwd": "/etc/passwd"}, errno.ENOTDIR, "/etc/passwd"),
        ("true", {"cwd": "/no/such/dir"}, errno.ENOENT, "/no/such/dir"),
        (["true", "x" * 200_000], {}, errno.E2BIG, "true"),
        (["true"], {"env": {"X": "x" * 200_000}}, errno.E2BIG, "true"),
    ],
    ids=[
        "missing",
        "missing-path",
        "not-executable",
        "directory",
        "no-cwd",
        "cwd-is-a-file",
        "shell-no-cwd",
        "long-argument",
        "long-variable",
    ],
)
async def test_what_cannot_be_started_is_an_os_error(
    daemon: StandingDaemon,
    command: str | list[str],
    options: dict[str, Any],
    number: int,
    name: str,
) -> None:
    """SpawnFailed has the daemon's errno and the file's name, and the connection lives."""
    async with daemon.worker() as worker:
        with pytest.raises(SpawnFailed) as caught:
            await worker.run(command, **options)

        assert caught.value.errno == number
        assert isinstance(caught.value, OSError)
        assert caught.value.filename == name
        assert name in str(caught.value)
        assert (await worker.run("echo on")).stdout == "on\n"


@pytest.mark.parametrize("size", [900_000, 1_500_000, 9_000_000])
async def test_too_many_arguments_are_e2big_wherever_the_limit_is_met(
    daemon: StandingDaemon, size: int
) -> None:
    """A long list is refused by our own limit or by the kernel, in the same words."""
    async with daemon.worker() as worker:
        with pytest.raises(SpawnFailed) as caught:
            await worker.run(["true", *["y" * 1000] * (size // 1000), "x" * 140_000])

        assert caught.value.errno == errno.E2BIG
        assert (await worker.run("echo on")).stdout == "on\n"


async def test_hundreds_of_kilobytes_of_arguments_arrive(daemon: StandingDaemon) -> None:
    """What the kernel takes, we take."""
    words = [f"{i:0>999}" for i in range(600)]
    async with daemon.worker() as worker:
        result = await worker.run(
            ["sh", "-c", 'echo $#; printf "%s" "$@" | sha256sum', "x", *words]
        )

    digest = hashlib.sha256("".join(words).encode()).hexdigest()
    assert result.stdout.split() == ["600", digest, "-"]


@pytest.mark.parametrize("user", ["no-such-user", "", "9" * 30, "-1", "٣", "a/b:c"], ids=repr)
async def test_an_unknown_user_is_refused_by_name(daemon: StandingDaemon, user: str) -> None:
    """Nothing runs as somebody who doesn't exist, and the connection isn't so much as touched."""
    async with daemon.controller() as controller:
        worker = await controller.wait_for_daemon("worker-1")
        connected_at = worker.info.connected_at
        with pytest.raises(SpawnFailed, match="no such user") as caught:
            await worker.run("id", user=user)

        assert (caught.value.errno, caught.value.filename) == (errno.EINVAL, user)
        assert (await worker.run("echo on")).stdout == "on\n"
        assert worker.info.connected_at == connected_at


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("", {}),
        (b"", {}),
        ([], {}),
        ([""], {}),
        ("echo \0", {}),
        (["echo", "a\0b"], {}),
        ("true", {"env": {"A": "b\0"}}),
        ("true", {"env": {"A\0": "b"}}),
        ("true", {"env": {"": "b"}}),
        ("true", {"env": {"A=B": "c"}}),
        ("true", {"cwd": "/tmp\0"}),
        ("true", {"user": "root\0"}),
        ("true", {"timeout": -1}),
        ("true", {"timeout": math.nan}),
        ("true", {"idle_timeout": -0.1}),
        ("true", {"kill_grace": -1}),
        ("true", {"max_output": -1}),
    ],
    ids=repr,
)
async def test_arguments_that_mean_nothing_are_value_errors(
    daemon: StandingDaemon, command: Any, options: dict[str, Any]
) -> None:
    """They are refused on the spot: nothing is sent, nothing runs."""
    async with daemon.controller() as controller:
        worker = await controller.wait_for_daemon("worker-1")
        with pytest.raises(ValueError, match=r"\w"):
            await worker.run(command, **options)

        assert controller.statistics().jobs_started == 0


@pytest.mark.parametrize(
    ("command", "options"),
    [
        (None, {}),
        (7, {}),
        ([1, 2], {}),
        (["echo", None], {}),
        ("true", {"env": {"A": 1}}),
        ("true", {"input": 7}),
        ("true", {"input": ["a"]}),
        ("true", {"user": 0}),
    ],
    ids=repr,
)
async def test_arguments_of_the_wrong_type_are_type_errors(
    daemon: StandingDaemon, command: Any, options: dict[str, Any]
) -> None:
    """A command is text, bytes, or a list of such; nothing is sent of anything else."""
    async with daemon.controller() as controller:
        worker = await controller.wait_for_daemon("worker-1")
        with pytest.raises(TypeError):
            await worker.run(command, **options)

        assert controller.statistics().jobs_started == 0


async def test_what_is_no_text_is_named(daemon: StandingDaemon) -> None:
    """A path is no command: it has to stand in a list, lest a blank in it be the shell's to read."""
    async with daemon.worker() as worker:
        for command in (7, Path("/bin/true")):
            with pytest.raises(TypeError, match=r"the command is .*; it must be a text"):
                await worker.run(command)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="the command has 8080 in it; it must be a text"):
            await worker.run(["serve", 8080])  # type: ignore[list-item]
        with pytest.raises(TypeError, match="env has the value 8080; it must be a text"):
            await worker.run("serve", env={"PORT": 8080})  # type: ignore[dict-item]
        with pytest.raises(TypeError, match="cwd is 7; it must be a text"):
            await worker.run("true", cwd=7)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"cwd is <sandd.RemotePath .*, its str\(\)"):
            await worker.run("true", cwd=worker.path("/"))  # type: ignore[arg-type]


# ---- where and as whom --------------------------------------------------------------------------


async def test_a_list_is_executed_without_a_shell(daemon: StandingDaemon) -> None:
    """Arguments arrive as they are, whatever a shell would make of them."""
    words = ["$HOME", "a b", "*", ";", "'", '"', "\\", "", "\n", "ü"]
    async with daemon.worker() as worker:
        result = await worker.run(["printf", "%s|", *words])

        assert result.stdout == "".join(f"{word}|" for word in words)


async def test_paths_and_bytes_are_taken_as_words(daemon: StandingDaemon, tmp_path: Path) -> None:
    """`os.PathLike` and bytes, which need not be UTF-8, are good in a command, `cwd` and `env`."""
    odd = os.fsencode(tmp_path) + b"/\xff\xfe"
    os.mkdir(odd)
    async with daemon.worker() as worker:
        result = await worker.run([Path("/bin/pwd")], cwd=odd)
        assert result.stdout_bytes == odd + b"\n"
        assert (await worker.run(b"echo \xff")).stdout_bytes == b"\xff\n"
        result = await worker.run("printf %s $A", env={"A": os.fsdecode(b"\xfe")})
        assert result.stdout_bytes == b"\xfe"
        assert (await worker.run(["pwd"], cwd=tmp_path)).stdout == f"{tmp_path}\n"


async def test_environment_is_merged_over_the_daemons(daemon: StandingDaemon) -> None:
    """Variables are added and replaced, the others kept, and the daemon's own options are not there."""
    async with daemon.worker() as worker:
        result = await worker.run("env", env={"NEW": "1", "BOTH": "new", "EMPTY": ""})

    variables = dict(line.split("=", 1) for line in result.stdout.splitlines())
    assert variables["NEW"] == "1"
    assert variables["BOTH"] == "new"
    assert variables["EMPTY"] == ""
    assert variables["PLAIN"] == "kept"
    assert {name for name in variables if name.startswith("SANDD_")} == {"SANDD_JOB"}
    assert "s3cret" not in result.stdout


@root_only
async def test_user_is_who_the_command_runs_as(daemon: StandingDaemon, marker: Marker) -> None:
    """Its uid, gid, groups and home are that user's; and so is what is killed of it."""
    import pwd

    nobody = pwd.getpwnam("nobody")
    async with daemon.worker() as worker:
        for user in ("nobody", str(nobody.pw_uid)):
            result = await worker.run("id -u; id -g; echo $HOME $USER", user=user, cwd="/")
            assert result.stdout.split() == [
                str(nobody.pw_uid),
                str(nobody.pw_gid),
                nobody.pw_dir,
                nobody.pw_name,
            ]
        with pytest.raises(CommandTimeout):
            await worker.run(
                TREE, user="nobody", env=dict([marker]), timeout=GET_GOING, kill_grace=0.1
            )
        assert marker.processes() == []


# ---- many at once -------------------------------------------------------------------------------


async def test_a_thousand_at_once_all_succeed_and_leave_no_descriptor(
    daemon: StandingDaemon,
) -> None:
    """On one daemon, queued beyond its limit; its descriptors stay bounded and come back."""
    async with daemon.worker(45) as worker:
        before, most = daemon.descriptors, 0
        done = 0

        async def one(number: int) -> None:
            nonlocal done, most
            result = await worker.run(f"echo {number}; exit {number % 7}")
            assert (result.stdout, result.exit_code) == (f"{number}\n", number % 7)
            done += 1
            if done % 50 == 0:
                most = max(most, daemon.descriptors)

        async with trio.open_nursery() as nursery:
            for number in range(1000):
                nursery.start_soon(one, number)

        assert done == 1000
        assert most < before + 8 * 256
        await until(lambda: daemon.descriptors <= before)


async def test_commands_beyond_the_limit_wait_their_turn(marker: Marker) -> None:
    """With room for two at once the third starts when they end; its time counts from its start."""
    with standing_daemon(arguments=["--max-running", "2"]) as daemon:
        async with daemon.worker() as worker, trio.open_nursery() as nursery:
            results = []

            async def third() -> None:
                results.append(await worker.run("echo third"))

            async with trio.open_nursery() as holders:
                for _ in range(2):
                    holders.start_soon(lambda: worker.run("exec sleep 60", env=dict([marker])))
                await planted(marker, 2)
                nursery.start_soon(third)
                await trio.sleep(1.0)
                assert results == []
                let_go_at = trio.current_time()
                holders.cancel_scope.cancel()
            await until(lambda: results)

            assert results[0].stdout == "third\n"
            assert results[0].duration <= trio.current_time() - let_go_at


async def test_a_timeout_in_the_queue_means_not_started(marker: Marker) -> None:
    """A command that got no turn within its time-out is taken back: it never ran and never will."""
    with standing_daemon(arguments=["--max-running", "1"]) as daemon:
        async with daemon.worker() as worker:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lambda: worker.run("sleep 60", env=dict([marker])))
                await planted(marker)
                ran = daemon.process.home / "ran"
                with pytest.raises(CommandTimeout) as caught:
                    await worker.run(f"touch {ran}", timeout=0.2)
                assert caught.value.started is False
                nursery.cancel_scope.cancel()
            assert (await worker.run("echo next")).stdout == "next\n"
            assert not ran.exists()


async def test_one_command_that_floods_delays_no_other(daemon: StandingDaemon) -> None:
    """While one command pours out all it can, another is answered, and mostly within milliseconds."""
    async with daemon.worker() as worker, trio.open_nursery() as nursery:
        nursery.start_soon(lambda: worker.run("cat /dev/zero", max_output=1))
        await trio.sleep(0.2)
        took = []
        for _ in range(20):
            started = trio.current_time()
            await worker.run("echo hi")
            took.append(trio.current_time() - started)
        nursery.cancel_scope.cancel()

    assert (
        sorted(took)[10] < 5.0
    )  # on a machine that is busy, too; behind the flood it would be for ever


# ---- cancellation -------------------------------------------------------------------------------


async def check_cancel(
    daemon: StandingDaemon,
    marker: Marker,
    start: Callable[[sandd.Daemon], Any],
    ready: Callable[[], Any],
) -> None:
    """Cancel the call when `ready` returns; then nothing is left, and the daemon works on."""
    async with daemon.worker() as worker:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(start, worker)
                await ready()
                nursery.cancel_scope.cancel()
        assert not scope.cancelled_caught
        assert marker.processes() == []
        assert (await worker.run("echo well")).stdout == "well\n"
        assert worker._link.job_count == 0


async def test_cancelled_before_it_began_runs_nothing(
    daemon: StandingDaemon, marker: Marker
) -> None:
    """In a scope that is cancelled already, not even the first message is sent."""
    async with daemon.controller() as controller:
        worker = await controller.wait_for_daemon("worker-1")
        with trio.move_on_after(0) as scope:
            await worker.run("sleep 60", env=dict([marker]))

        assert scope.cancelled_caught
        assert controller.statistics().jobs_started == 0


async def test_cancelled_while_it_runs_kills_the_whole_tree(
    daemon: StandingDaemon, marker: Marker
) -> None:
    """When the cancelled call is over, so are a TERM-proof shell, its children and its escapees."""
    await check_cancel(
        daemon,
        marker,
        lambda worker: worker.run(TREE, env=dict([marker]), kill_grace=0.2),
        lambda: planted(marker, 7),
    )


async def test_cancelled_during_its_output(daemon: StandingDaemon, marker: Marker) -> None:
    """In the middle of a flood, too."""
    await check_cancel(
        daemon,
        marker,
        lambda worker: worker.run("cat /dev/zero", env=dict([marker]), max_output=10),
        lambda: planted(marker),
    )


async def test_cancelled_with_input_pending(daemon: StandingDaemon, marker: Marker) -> None:
    """With most of the input still on our side, and nobody reading it on the other."""
    await check_cancel(
        daemon,
        marker,
        lambda worker: worker.run("sleep 60", env=dict([marker]), input=bytes(20 * MB)),
        lambda: planted(marker),
    )


async def test_cancelled_at_many_moments_leaves_nothing(
    daemon: StandingDaemon, marker: Marker
) -> None:
    """From before the Attach is sent until after the exit: whenever it strikes, nothing is left."""
    script = "setsid sleep 60 >/dev/null & echo hi; sleep 0.005; echo ho"
    async with daemon.worker() as worker:
        for milliseconds in [*range(25), *range(25, 60, 5)]:
            with trio.move_on_after(milliseconds / 1000):
                await worker.run(script, env=dict([marker]), kill_grace=0.1)
            assert marker.processes() == [], milliseconds
        assert (await worker.run("echo well")).stdout == "well\n"
        assert worker._link.job_count == 0


async def test_cancelled_after_any_number_of_turns_leaves_nothing(
    daemon: StandingDaemon, marker: Marker
) -> None:
    """Cancelled at each of its first checkpoints, one after the other."""
    async with daemon.worker() as worker:
        for turns in range(40):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lambda: worker.run("sleep 60", env=dict([marker])))
                for _ in range(turns):
                    await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()
            assert marker.processes() == [], turns
        assert worker._link.job_count == 0
        assert (await worker.run("echo well")).stdout == "well\n"


async def test_cancelled_together_two_hundred_leave_nothing(
    daemon: StandingDaemon, marker: Marker
) -> None:
    """A nursery full of commands ends in about the time of one."""
    async with daemon.worker() as worker:
        before = daemon.descriptors
        async with trio.open_nursery() as nursery:
            for _ in range(200):
                nursery.start_soon(lambda: worker.run("sleep 60", env=dict([marker])))
            await planted(marker, 200)
            started = trio.current_time()
            nursery.cancel_scope.cancel()

        assert trio.current_time() - started < 5
        assert marker.processes() == []
        await until(lambda: daemon.descriptors <= before)


async def test_a_failure_beside_it_ends_it_like_a_cancellation(
    daemon: StandingDaemon, marker: Marker
) -> None:
    """An error in a sibling task comes out, when the command's tree is gone."""
    async with daemon.worker() as worker:
        with pytest.raises(ExceptionGroup) as caught:  # noqa: PT012 - the nursery is what raises
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lambda: worker.run(TREE, env=dict([marker]), kill_grace=0.1))
                await planted(marker, 7)
                raise KeyError("ours")
        assert marker.processes() == []
    assert [type(error) for error in caught.value.exceptions] == [KeyError]
