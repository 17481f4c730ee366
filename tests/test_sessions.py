"""Sessions end to end: a terminal on a real daemon, held, left, taken over, looked on at and cut off."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import sys
from random import Random
from typing import TYPE_CHECKING, Final

import pytest
import trio
from another_agent import another_agent
from process_tools import PATIENCE, read_line, until
from screens import Person, in_foreground
from standing_daemon import LIMIT, StandingDaemon, standing_daemon

import sandd
from sandd import JobState, JobTaken, OutputGap, RequestRefused, SpawnFailed
from sandd.testing import DOWN, UP, FaultProxy, open_fault_proxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from conftest import Marker

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="these programs are POSIX")

BASH: Final = ["bash", "--norc", "--noprofile"]
PROMPT: Final = {"PS1": "ready> "}
MANY: Final = 200
CUTS: Final = 500 if os.environ.get("HYPOTHESIS_PROFILE") == "deep" else 25
"""Of one session's connection, at random bytes."""


@pytest.fixture(scope="module")
def daemon(_own_temporary_directory: None) -> Iterator[StandingDaemon]:
    """The daemon that the tests of this module share; each leaves it without a job."""
    with standing_daemon() as daemon:
        yield daemon


@contextlib.asynccontextmanager
async def relayed(
    daemon: StandingDaemon, within: float = LIMIT
) -> AsyncIterator[tuple[sandd.Daemon, FaultProxy]]:
    """The daemon, and the relay between it and a fresh controller."""
    with trio.fail_after(within):
        async with (
            sandd.open_controller(port=0) as controller,
            open_fault_proxy(int(controller.address.rpartition(":")[2]), port=daemon.port) as relay,
        ):
            worker = await controller.wait_for_daemon("worker-1")
            yield worker, relay
            relay.forget_cuts()
            assert await worker.jobs() == []


async def read_until(session: sandd.Session, text: bytes) -> bytes:
    """What it shows up to that text, which must come."""
    shown = b""
    while text not in shown:
        chunk = await session.receive_some()
        assert chunk, shown
        shown += chunk
    return shown


async def read_to_end(session: sandd.Session) -> bytes:
    """Everything it shows."""
    shown = bytearray()
    while chunk := await session.receive_some():
        shown += chunk
    return bytes(shown)


# ---- a terminal ---------------------------------------------------------------------------------


async def test_a_session_is_a_terminal_of_its_own(daemon: StandingDaemon) -> None:
    """Controlling terminal, size, type, environment, directory; all three descriptors are it."""
    script = (
        "tty; stty size; echo $TERM $GREETING; pwd; test -t 0 && test -t 1 && test -t 2 && echo all; "
        "echo into it > /dev/tty; ps -o tpgid=,pid= -p $$"
    )
    async with daemon.worker() as worker:
        async with worker.open_session(
            script, rows=31, cols=97, term="vt100", cwd="/", env={"GREETING": "hello"}
        ) as session:
            shown = (await read_to_end(session)).decode().splitlines()
            status = await session.wait()
    assert shown[0].startswith("/dev/")
    assert shown[1:6] == ["31 97", "vt100 hello", "/", "all", "into it"]
    foreground, pid = shown[6].split()
    assert foreground == pid  # it is in the foreground of its own session
    assert (status.exit_code, status.outcome) == (0, sandd.Outcome.EXITED)


async def test_the_default_is_the_login_shell(daemon: StandingDaemon) -> None:
    """As the user database has it; interactive, since it has a terminal."""
    import pwd

    shell = pwd.getpwuid(os.geteuid()).pw_shell
    async with daemon.worker() as worker, worker.open_session() as session:
        await session.send_all(b"echo shell=$0 options=$-; exit 7\r")
        shown = await read_to_end(session)
        assert f"shell={shell} options=".encode() in shown
        assert (await session.wait()).exit_code == 7


async def test_the_size_follows(daemon: StandingDaemon) -> None:
    """The kernel tells whoever is in the foreground."""
    script = "trap 'stty size' WINCH; echo on; while :; do sleep 0.01; done"
    async with daemon.worker() as worker, worker.open_session(script) as session:
        await read_until(session, b"on\r\n")
        for rows, cols in ((10, 20), (50, 200), (1, 1), (65535, 65535)):
            await session.resize(rows, cols)
            await read_until(session, f"{rows} {cols}\r\n".encode())
        for rows, cols in ((0, 1), (1, 0), (65536, 1), (-1, 5)):
            with pytest.raises(ValueError, match="must be from 1 to"):
                await session.resize(rows, cols)


async def test_all_that_was_shown_arrives_then_the_end_then_the_status(
    daemon: StandingDaemon,
) -> None:
    """1 MiB right before the exit."""
    script = "stty -opost; head -c 1048576 /dev/zero | tr '\\0' x; exit 5"
    async with daemon.worker() as worker:
        async with worker.open_session(script) as session:
            assert await read_to_end(session) == b"x" * 1048576
            assert (await session.wait()).exit_code == 5


async def test_who_lets_go_of_the_terminal_may_come_back_to_it(daemon: StandingDaemon) -> None:
    """That nobody has it open is no end, as long as the program lives."""
    script = "exec < /dev/null > /dev/null 2>&1; sleep 0.3; exec > /dev/tty; echo back; exit 4"
    async with daemon.worker() as worker, worker.open_session(script) as session:
        assert await read_to_end(session) == b"back\r\n"
        assert (await session.wait()).exit_code == 4


async def test_keys_reach_whoever_they_are_meant_for(daemon: StandingDaemon) -> None:
    """Ctrl-C interrupts, Ctrl-Z stops, Ctrl-D is the end of input; signals go to the foreground, too."""
    async with daemon.worker() as worker:
        async with worker.open_session(BASH, env=PROMPT) as session, Person.at(session) as person:
            await person.sees("ready>")
            await person.types("sleep 1000; echo status=$?\r")
            await until(lambda: in_foreground(session.pid) == "sleep")
            await person.types("\x03")
            await until(lambda: in_foreground(session.pid) == "bash")
            await person.types("sleep 1001\r")
            await until(lambda: in_foreground(session.pid) == "sleep")
            await person.types("\x1a")
            await person.sees("Stopped")
            await person.types("fg\r")
            await until(lambda: in_foreground(session.pid) == "sleep")
            await session.signal("TERM")
            await person.sees("Terminated")
            await person.types("cat; echo after=$?\r")
            await until(lambda: in_foreground(session.pid) == "cat")
            await person.types("typed\r\x04")
            await person.sees("after=0")
            await person.types("\x04")
            await person.sees_end()
            assert (await session.wait()).exit_code == 0


async def test_ctrl_c_works_where_the_daemon_was_started_in_the_background() -> None:
    """A shell that isn't interactive has what it starts by & ignore SIGINT: our children don't."""
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with standing_daemon("background") as daemon:
            signal.signal(signal.SIGINT, previous)
            async with daemon.worker() as worker:
                async with worker.open_session("exec sleep 1000") as session:
                    await until(lambda: in_foreground(session.pid) == "sleep")
                    assert int(status_of(session.pid, "SigIgn"), 16) & 2 == 0
                    await session.send_all(b"\x03")
                    assert (await session.wait()).signal == "SIGINT"
    finally:
        signal.signal(signal.SIGINT, previous)


def status_of(pid: int, name: str) -> str:
    """One line of a process' status."""
    with open(f"/proc/{pid}/status") as file:
        return next(line.split()[1] for line in file if line.startswith(name))


async def test_what_cannot_be_started_is_a_typed_error(daemon: StandingDaemon) -> None:
    """As for any command; nothing ran."""
    async with daemon.worker() as worker:
        for command, options in (
            (["/nonexistent/program"], {}),
            (["no-such-program"], {}),
            (["true"], {"cwd": "/nonexistent"}),
            (["true"], {"user": "no-such-user"}),
        ):
            with pytest.raises(SpawnFailed):
                async with worker.open_session(command, **options):
                    pytest.fail("it was not started")
        for options in (
            {"rows": 0},
            {"cols": 70000},
            {"term": ""},
            {"term": "a\nb"},
            {"scrollback": -1},
        ):
            with pytest.raises(ValueError, match="must be"):
                async with worker.open_session(**options):
                    pytest.fail("that makes no sense")
        assert await worker.jobs() == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes somebody else")
async def test_another_user_has_the_terminal(daemon: StandingDaemon) -> None:
    """Who owns it, its environment, and job control; what it may not run is a typed error."""
    async with daemon.worker() as worker:
        script = "id -un; stat -c %U $(tty); echo $USER; exec sleep 1000"
        async with worker.open_session(script, user="nobody", cwd="/") as session:
            await read_until(session, b"nobody\r\nnobody\r\nnobody\r\n")
            await until(lambda: in_foreground(session.pid) == "sleep")
            await session.send_all(b"\x03")
            assert (await session.wait()).signal == "SIGINT"
        with pytest.raises(SpawnFailed):
            async with worker.open_session(["no-such-program"], user="nobody", cwd="/"):
                pytest.fail("it was not started")


# ---- leaving it ---------------------------------------------------------------------------------


async def test_leaving_ends_background_and_foreground(
    daemon: StandingDaemon, marker: Marker
) -> None:
    """Stopped jobs, those that ignore the hang-up, those in sessions of their own: none is left."""
    async with daemon.worker() as worker:
        async with (
            worker.open_session(BASH, env={**PROMPT, **dict([marker])}, kill_grace=0.5) as session,
            Person.at(session) as person,
        ):
            await person.sees("ready>")
            await person.types("sleep 1000 & setsid sleep 1001 & (trap '' HUP; sleep 1002; :) &\r")
            await person.types("sleep 1003\r")
            await until(lambda: in_foreground(session.pid) == "sleep")
            await person.types("\x1a")
            await person.sees("Stopped")
            await person.types("sleep 1004\r")
            await until(lambda: in_foreground(session.pid) == "sleep")
            await until(lambda: len(marker.processes()) >= 7)
        assert marker.processes() == []
        assert (await session.wait()).outcome is sandd.Outcome.CANCELLED
        with pytest.raises(trio.BrokenResourceError):
            await session.send_all(b"late")


async def test_who_minds_a_hang_up_can_clean_up(daemon: StandingDaemon, marker: Marker) -> None:
    """HUP first, to the whole tree; what exits by itself then isn't killed."""
    script = "trap 'echo bye; exit 3' HUP; echo on; read x"
    async with daemon.worker() as worker:
        async with worker.open_session(script, env=dict([marker])) as session:
            await read_until(session, b"on\r\n")
            async with worker.attach_session(session.job_id, read_only=True) as viewer:
                await session.aclose()
                assert (await read_to_end(viewer)).endswith(b"bye\r\n")
                assert (await viewer.wait()).exit_code == 3
        assert (await session.wait()).exit_code == 3
        with pytest.raises(trio.ClosedResourceError):
            await session.receive_some()


async def test_the_exit_of_the_shell_ends_what_it_left(
    daemon: StandingDaemon, marker: Marker
) -> None:
    """A background job that holds the terminal open delays the end by a bound, and ends with it."""
    async with daemon.worker() as worker:
        async with worker.open_session(
            "set -m; sleep 1000 & exit 4", env=dict([marker])
        ) as session:
            with trio.fail_after(PATIENCE):
                await read_to_end(session)
                status = await session.wait()
            assert (status.exit_code, status.pipes_held) == (4, True)
        assert marker.processes() == []


async def test_a_detached_session_goes_on_and_shows_its_scrollback(
    daemon: StandingDaemon, marker: Marker
) -> None:
    """For an agent that comes later, too; its end is kept with it."""
    async with daemon.worker() as worker:
        async with worker.open_session(
            BASH, env={**PROMPT, **dict([marker])}, detach=True, job_id="mine"
        ) as session:
            await read_until(session, b"ready> ")
            await session.send_all(b"echo be''fore\r")
            await read_until(session, b"before\r\n")
            offset = session.offset
    async with daemon.worker() as worker:
        (job,) = await worker.jobs()
        assert (job.terminal, job.detached, job.owned) == (True, True, False)
        async with worker.attach_session("mine") as session:
            assert (await read_until(session, b"before\r\n")).count(b"echo be''fore") == 1
            await session.send_all(b"echo af''ter\r")
            await read_until(session, b"after\r\n")
        async with worker.attach_session("mine", since=offset) as session:
            shown = await read_until(session, b"after\r\n")
            assert b"before" not in shown
            assert shown.count(b"echo af''ter") == 1
            await session.send_all(b"exit 6\r")
            assert (await session.wait()).exit_code == 6
        assert (await worker.jobs())[0].state is JobState.ENDED
        async with worker.attach_session("mine") as session:
            assert b"exit" in await read_to_end(session)
            assert (await session.wait()).exit_code == 6
        await worker.forget("mine")


async def test_of_a_session_that_was_left_the_scrollback_is_kept(daemon: StandingDaemon) -> None:
    """It never waits for a reader; who comes sees the newest of it, and what is missing is told."""
    script = (
        "stty -opost; read x; i=0; while [ $i -lt 3000 ]; do echo line-$i-...................; "
        "i=$((i+1)); done; echo done; read x"
    )
    async with daemon.worker() as worker:
        async with worker.open_session(
            script, detach=True, job_id="left", scrollback=5000
        ) as session:
            await session.send_all(b"go\n")
        whole = sum(len(f"line-{number}-...................\n") for number in range(3000))
        await until_kept(worker, "left", whole + len("done\n"))
        async with worker.attach_session("left") as session:
            shown = await read_until(session, b"done\n")
            assert len(shown) == 5000
            assert shown.splitlines()[1:][-3:] == [
                b"line-2998-...................", b"line-2999-...................", b"done"
            ]  # fmt: skip
        async with worker.attach_session("left", since=0) as session:
            with pytest.raises(OutputGap) as gap:
                await session.receive_some()
            assert gap.value.start == 0
            assert len(await read_until(session, b"done\n")) == session.offset - gap.value.end
        await worker.forget("left")


async def until_kept(worker: sandd.Daemon, job_id: str, end: int) -> None:
    """Wait until the session has shown so many bytes."""
    while not any(j.kept["stdout"].end >= end for j in await worker.jobs() if j.job_id == job_id):
        await trio.sleep(0.01)


async def test_a_session_in_use_waits_for_its_reader(daemon: StandingDaemon) -> None:
    """As a terminal does, whose window can't keep up: nothing is dropped while somebody is there."""
    count = 3_000_000
    script = f"stty -opost; head -c {count} /dev/zero | tr '\\0' x; echo end"
    async with daemon.worker() as worker, worker.open_session(script) as session:
        await trio.sleep(0.5)
        (job,) = await worker.jobs()
        assert job.kept["stdout"].end < count
        assert await read_to_end(session) == b"x" * count + b"end\n"


# ---- several people -----------------------------------------------------------------------------


async def test_viewers_see_all_and_change_nothing(daemon: StandingDaemon) -> None:
    """Several at once, from where they like."""
    async with daemon.worker() as worker, worker.open_session(BASH, env=PROMPT) as session:
        await read_until(session, b"ready> ")
        async with (
            worker.attach_session(session.job_id, read_only=True) as one,
            worker.attach_session(session.job_id, read_only=True, since=session.offset) as two,
        ):
            await session.send_all(b"echo se''en by all\r")
            for viewer in (one, two):
                shown = await read_until(viewer, b"seen by all\r\n")
                assert (b"ready> " in shown.partition(b"echo")[0]) == (viewer is one)
                for attempt in (
                    viewer.send_all(b"x"), viewer.resize(5, 5), viewer.signal("INT"), viewer.detach(),
                    viewer.wait_send_all_might_not_block(),
                ):  # fmt: skip
                    with pytest.raises(RequestRefused, match="read_only=True"):
                        await attempt
        await session.send_all(b"exit 2\r")
        assert (await session.wait()).exit_code == 2


async def test_one_types_and_the_other_takes_over(daemon: StandingDaemon) -> None:
    """Only where it says so; the loser is told, and what it types no longer counts."""
    async with daemon.controller() as controller:
        worker = await controller.wait_for_daemon("worker-1")
        async with (
            another_agent(controller) as other,
            worker.open_session(BASH, env=PROMPT) as session,
        ):
            await read_until(session, b"ready> ")
            theirs = other.daemon("worker-1")
            with pytest.raises(RequestRefused, match="takeover=True"):
                async with theirs.attach_session(session.job_id):
                    pytest.fail("somebody holds it")
            async with theirs.attach_session(session.job_id, takeover=True) as taken:
                with pytest.raises(trio.BrokenResourceError) as broken:
                    await read_to_end(session)
                assert isinstance(broken.value.__cause__, JobTaken)
                with pytest.raises(trio.BrokenResourceError) as broken:
                    await session.send_all(b"echo mine\r")
                assert isinstance(broken.value.__cause__, JobTaken)
                with pytest.raises(JobTaken):
                    await session.wait()
                await taken.send_all(b"echo the''irs\r")
                shown = await read_until(taken, b"theirs\r\n")
                assert b"mine" not in shown
            assert (await taken.wait()).outcome is sandd.Outcome.CANCELLED


async def test_a_job_without_a_terminal_is_no_session(daemon: StandingDaemon) -> None:
    """It says so, and the job is as it was; the other way round is allowed."""
    async with daemon.worker() as worker:
        async with worker.open_process(["cat"], detach=True, job_id="pipes"):
            pass
        with pytest.raises(RequestRefused, match="no terminal"):
            async with worker.attach_session("pipes"):
                pytest.fail("it is no session")
        assert (await worker.jobs())[0].state is JobState.RUNNING
        await worker.forget("pipes")
        async with worker.open_session("echo shown; read x", detach=True, job_id="terminal"):
            pass
        async with worker.attach_process("terminal") as process:
            assert await read_line(process.stdout) == b"shown\r"
        await worker.kill("terminal")
        await worker.forget("terminal")


# ---- a network that breaks ----------------------------------------------------------------------


async def test_every_byte_and_every_key_arrives_once_whatever_breaks(
    daemon: StandingDaemon,
) -> None:
    """Cut anywhere, in mid-character too, while the program echoes: the transcript is as if nothing was."""
    cuts = Random(4)
    async with relayed(daemon, within=LIMIT + CUTS / 2) as (worker, relay):
        async with worker.open_session(["cat"]) as session:
            for number in range(CUTS):
                relay.cut_after(cuts.randint(1, 150), cuts.choice((UP, DOWN)))
                line = f"line {number} \N{SNOWMAN}\N{GRINNING FACE}"
                await session.send_all(f"{line}\n".encode())
                shown, expected = b"", f"{line}\r\n{line}\r\n".encode()
                while len(shown) < len(expected):
                    shown += await session.receive_some()
                assert shown == expected
            await session.send_all(b"\x04")
            assert (await session.wait()).exit_code == 0
        assert relay.accepted > CUTS / 4


async def test_output_meanwhile_is_not_lost(daemon: StandingDaemon) -> None:
    """The program goes on while the daemon is away, and all of it is shown afterwards, once."""
    count = 4_000_000
    script = f"stty -opost; read x; yes 0123456 | head -c {count}; echo end"
    async with relayed(daemon) as (worker, relay):
        async with worker.open_session(script) as session:
            await session.send_all(b"go\n")
            shown = await read_until(session, b"go")
            relay.refuse()
            await until(lambda: worker.state is sandd.DaemonState.AWAY)
            await session.send_all(b"")
            await session.resize(11, 22)
            await trio.sleep(0.3)
            relay.accept()
            shown += await read_to_end(session)
            whole = hashlib.sha256(b"0123456\n" * (count // 8) + b"end\n").hexdigest()
            assert hashlib.sha256(shown[shown.index(b"0123") :]).hexdigest() == whole
            assert (await session.wait()).exit_code == 0


# ---- many ---------------------------------------------------------------------------------------


async def test_two_hundred_sessions_at_once_all_answer_and_leave_nothing(
    daemon: StandingDaemon, marker: Marker
) -> None:
    """On one daemon: each answers for itself; closing them leaves no process, no descriptor, no job."""
    async with daemon.worker(within=100.0) as worker:
        before = daemon.descriptors
        answered = 0
        all_answered, may_leave = trio.Event(), trio.Event()

        async def talk(number: int) -> None:
            nonlocal answered
            async with worker.open_session(["sh"], env={"PS1": "", **dict([marker])}) as session:
                await session.send_all(f"echo $(({number} + 1000))\r".encode())
                await read_until(session, f"\n{number + 1000}\r\n".encode())
                answered += 1
                if answered == MANY:
                    all_answered.set()
                await may_leave.wait()

        async with trio.open_nursery() as nursery:
            for number in range(MANY):
                nursery.start_soon(talk, number)
            await all_answered.wait()
            assert len(marker.processes()) >= MANY
            assert len(await worker.jobs()) == MANY
            may_leave.set()
        assert marker.processes() == []
        await until(lambda: daemon.descriptors <= before)
        assert await worker.jobs() == []


# ---- recorded -----------------------------------------------------------------------------------


def events_of(path: Path) -> list[tuple[str, str]]:
    """Code and data of the events of a recording."""
    _, *events = [json.loads(line) for line in path.read_text().splitlines()]
    return [(code, data) for _, code, data in events]


@pytest.mark.parametrize("with_input", [False, True])
async def test_a_recording_has_all_that_was_shown(
    daemon: StandingDaemon, tmp_path: Path, with_input: bool
) -> None:
    """Whoever reads it and when; sizes and the end as well, and what was typed if that was asked for."""
    path = tmp_path / "session.cast"
    async with daemon.worker() as worker:
        async with worker.open_session(
            ["cat"], rows=10, cols=40, record=path, record_input=with_input
        ) as session:
            await session.send_all("sn\N{SNOWMAN}w\r\x04".encode())
            await session.resize(20, 60)
            assert (await session.wait()).exit_code == 0
            shown = await read_to_end(session)
            assert session.recording_failure is None
        with pytest.raises(FileExistsError):
            async with worker.open_session(["cat"], record=path):
                pytest.fail("a recording is never overwritten")
        with pytest.raises(FileNotFoundError):
            async with worker.open_session(["cat"], record=tmp_path / "no" / "such"):
                pytest.fail("there is no such directory")
        assert await worker.jobs() == []
    header = json.loads(path.read_text().splitlines()[0])
    assert header["term"] == {"cols": 40, "rows": 10, "type": "xterm-256color"}
    assert (header["command"], header["title"]) == ("cat", "a session on worker-1")
    events = events_of(path)
    assert "".join(data for code, data in events if code == "o") == shown.decode()
    assert "".join(data for code, data in events if code == "i") == (
        "sn\N{SNOWMAN}w\r\x04" if with_input else ""
    )
    assert ("r", "60x20") in events
    assert events[-1] == ("x", "0")


async def test_a_recording_has_what_nobody_read(daemon: StandingDaemon, tmp_path: Path) -> None:
    """All of it, although the news of the end overtakes it."""
    count = 240_000  # within the ring: more would wait for a reader
    script = f"stty -opost; head -c {count} /dev/zero | tr '\\0' x; exit 4"
    async with daemon.worker() as worker:
        async with worker.open_session(script, record=tmp_path / "cast") as session:
            assert (await session.wait()).exit_code == 4
    events = events_of(tmp_path / "cast")
    assert sum(len(data) for code, data in events if code == "o") == count
    assert events[-1] == ("x", "4")


async def test_a_recording_of_a_session_that_is_ended_has_its_last_words(
    daemon: StandingDaemon, tmp_path: Path
) -> None:
    """Although nobody read them."""
    script = "trap 'echo bye; exit 3' HUP; echo on; read x"
    async with daemon.worker() as worker:
        async with worker.open_session(script, record=tmp_path / "cast") as session:
            await read_until(session, b"on\r\n")
    events = events_of(tmp_path / "cast")
    assert "".join(data for code, data in events if code == "o") == "on\r\nbye\r\n"
    assert events[-1] == ("x", "3")
