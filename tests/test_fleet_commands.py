"""The commands about daemons and jobs, as programs, with a controller and daemons that are programs, too."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
from controllers import SECONDS, ControllerProcess, next_line, running_controller
from daemons import DaemonProcess, daemon_environment, running_daemon
from forked_python import PythonProcess
from process_tools import until_sync
from tmux import needs_tmux, running_tmux

import sandd

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from conftest import Marker

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="these programs are POSIX")


@pytest.fixture(scope="module")
def controller(_own_temporary_directory: None) -> Iterator[ControllerProcess]:
    """One for all of these tests, with two daemons."""
    with running_controller() as controller:
        with (
            running_daemon(controller.url, "worker-1", labels={"env": "prod", "n": "1"}),
            running_daemon(controller.url, "worker-2", labels={"env": "test", "n": "2"}),
        ):
            controller.wait_for_daemon("worker-1")
            controller.wait_for_daemon("worker-2")
            yield controller


def start(controller: ControllerProcess, command: str, daemon_id: str = "worker-1") -> str:
    """A detached job; its name."""
    done = controller.run_command("exec", "--detach", daemon_id, "--", "sh", "-c", command)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()


def the_job(controller: ControllerProcess, name: str) -> dict[str, Any]:
    """What ``sandd jobs`` says of it."""
    daemon_id, _, job_id = name.partition("/")
    (found,) = [
        each for each in controller.objects("jobs", daemon_id, "--json") if each["id"] == job_id
    ]
    return found


# ---- sandd ps -----------------------------------------------------------------------------------


def test_ps_lists_the_daemons(controller: ControllerProcess) -> None:
    """In a table, whose columns stand under each other, without colours where no terminal is."""
    done = controller.run_command("ps")
    assert (done.returncode, done.stderr) == (0, "")
    header, first, second = done.stdout.splitlines()
    assert header.split() == ["DAEMON", "STATE", "PLATFORM", "VERSION", "CONNECTED", "LABELS"]
    assert header.index("LABELS") == first.index("env=prod,n=1") == second.index("env=test,n=2")
    assert first.split()[:4] == [
        "worker-1",
        "online",
        f"{sys.platform}/{first.split()[2].split('/')[1]}",
        sandd.__version__,
    ]
    assert second.startswith("worker-2  online")
    assert "\x1b" not in done.stdout


@pytest.mark.parametrize(
    ("choice", "found"),
    [
        (["--label", "env=prod"], ["worker-1"]),
        (["-l", "env=prod", "-l", "n=2"], []),
        (["--match", "*-2"], ["worker-2"]),
        (["-m", "worker-*", "-l", "n=1"], ["worker-1"]),
        (["-m", "nobody"], []),
    ],
    ids=" ".join,
)
def test_ps_lists_those_that_are_chosen(
    choice: list[str], found: list[str], controller: ControllerProcess
) -> None:
    """By labels, all of which have to fit, and by id; as JSON, a line for each."""
    assert [each["id"] for each in controller.objects("ps", "--json", *choice)] == found
    lines = controller.run_command("ps", *choice).stdout.splitlines()[1:]
    assert [line.split()[0] for line in lines] == found


def test_ps_goes_on_with_what_changes(controller: ControllerProcess) -> None:
    """Without a terminal: a line for each daemon, then for each that comes, is away, or is gone; until Ctrl-C."""
    with (
        controller.running_command("ps", "-w", "--match", "guest") as table,
        controller.running_command("ps", "-w", "--match", "guest", "--json") as lines,
    ):
        assert next_line(table).split()[0] == "DAEMON"
        seen = []
        with controller.daemon("guest", labels={"a": "b"}):
            line = next_line(table)
            assert line.split()[:2] == ["guest", "online"]
            assert line.endswith("  a=b\n")
            seen.append(json.loads(next_line(lines)))
        assert next_line(table).split()[:2] == ["guest", "gone"]
        seen.append(json.loads(next_line(lines)))
        assert [(each["id"], each["state"]) for each in seen] == [
            ("guest", "online"),
            ("guest", "gone"),
        ]
        for process in (table, lines):
            process.send_signal(signal.SIGINT)
            assert process.communicate(timeout=SECONDS) == ("", "")
            assert process.returncode == 130


def test_ps_tells_who_is_away(controller: ControllerProcess) -> None:
    """A daemon that was killed may come back: it stays in the list."""
    with controller.running_command("ps", "-w", "--match", "killed", "--json") as watching:
        with controller.daemon("killed") as daemon:
            assert json.loads(next_line(watching))["state"] == "online"
            daemon.kill()
            assert json.loads(next_line(watching))["state"] == "away"
    assert [each["state"] for each in controller.objects("ps", "--json", "-m", "killed")] == [
        "away"
    ]


@needs_tmux
def test_ps_is_a_live_view_at_a_terminal(controller: ControllerProcess, tmp_path: Path) -> None:
    """It changes in its place, and after Ctrl-Z and Ctrl-C the terminal is as it was."""
    with running_tmux(tmp_path, env=controller.env, columns=110) as tmux:
        before = tmux.modes()
        tmux.run("echo earlier")
        tmux.type(f"{sys.executable} -m sandd ps -w", "Enter")
        tmux.wait_for(r"(?s)DAEMON +STATE.*worker-1 +online.*worker-2 +online.*2 online")
        assert (tmux.ask("alternate_on"), tmux.ask("cursor_flag")) == ("1", "0")
        with controller.daemon("guest"):
            tmux.wait_for(r"(?s)guest +online.*worker-1 +online.*3 online")
            assert len(re.findall("DAEMON", tmux.visible())) == 1
        tmux.wait_for(r"(?s)\A((?!guest).)*2 online")

        tmux.type("C-z")
        tmux.wait_for_prompt()
        assert "Stopped" in tmux.screen()
        assert (tmux.ask("alternate_on"), tmux.ask("cursor_flag")) == ("0", "1")
        tmux.type("fg", "Enter")
        tmux.wait_for(r"(?s)worker-1 +online.*2 online")
        assert tmux.ask("alternate_on") == "1"

        tmux.type("C-c")
        tmux.wait_for_prompt()
        assert (tmux.ask("alternate_on"), tmux.ask("cursor_flag")) == ("0", "1")
        assert tmux.modes() == before
        assert "earlier" in tmux.screen()
        assert tmux.run("echo code $?").strip() in ("code 0", "code 130")


@needs_tmux
def test_a_live_view_follows_the_size_of_its_window(
    controller: ControllerProcess, tmp_path: Path
) -> None:
    """Narrower: nothing is wrapped; and what changes is shown after that, too. Also where COLUMNS is exported."""
    with running_tmux(tmp_path, env=controller.env | {"COLUMNS": "110"}, columns=110) as tmux:
        tmux.type(f"{sys.executable} -m sandd ps -w", "Enter")
        tmux.wait_for(r"(?s)worker-1 +online.*worker-2 +online.*2 online")
        with controller.daemon("guest"):
            tmux.wait_for(r"(?s)guest +online.*worker-1 +online.*3 online")
            tmux.resize(80, 30)
            tmux.wait_for(r"(?s)guest +online.*3 online")
        tmux.wait_for(r"(?s)\A((?!guest).)*2 online")
        tmux.type("C-c")
        tmux.wait_for_prompt()


def test_a_live_view_on_a_terminal_without_a_size(controller: ControllerProcess) -> None:
    """As a fresh one is that expect or a CI runner has made: it is shown as on an ordinary one."""
    ours, theirs = os.openpty()
    with PythonProcess(
        [sys.executable, "-m", "sandd", "ps", "-w"],
        env=daemon_environment(controller.env | {"TERM": "xterm"}),
        stdin=theirs,
        stdout=theirs,
        stderr=subprocess.DEVNULL,
    ) as process:
        os.close(theirs)
        shown = b""
        while b"2 online" not in shown:
            assert select.select([ours], [], [], SECONDS)[0], shown
            shown += os.read(ours, 65_536)
        assert b"worker-1" in shown
        process.terminate()
        while select.select([ours], [], [], SECONDS)[0]:
            try:
                if not os.read(ours, 65_536):
                    break
            except OSError:  # EIO: it has ended
                break
    os.close(ours)
    assert process.returncode == 143


@needs_tmux
def test_a_live_view_that_is_killed_in_good_order_restores_the_terminal(
    controller: ControllerProcess, tmp_path: Path
) -> None:
    """By SIGTERM, too; and its exit code says so."""
    with running_tmux(tmp_path, env=controller.env) as tmux:
        tmux.type(f"{sys.executable} -m sandd ps -w & fg; echo code=$?", "Enter")
        tmux.wait_for(r"worker-1 +online")
        tmux.type("C-z")
        tmux.wait_for_prompt()
        tmux.type("kill %1; fg; echo code=$?", "Enter")
        tmux.wait_for(r"\ncode=143")
        tmux.wait_for_prompt()
        assert (tmux.ask("alternate_on"), tmux.ask("cursor_flag")) == ("0", "1")


# ---- sandd jobs ---------------------------------------------------------------------------------


def test_jobs_of_all_daemons(controller: ControllerProcess) -> None:
    """What runs and what has ended, by daemon; the same of one daemon; and as JSON."""
    running = start(controller, "sleep 600")
    ended = start(controller, "exit 3", "worker-2")
    until_sync(lambda: the_job(controller, ended)["state"] == "ended", within=SECONDS)
    try:
        done = controller.run_command("jobs")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.splitlines()[0].split() == ["JOB", "STATE", "AGE", "HELD", "COMMAND"]
        assert re.search(
            rf"^{re.escape(running)} +running +\d+s +detached +sh -c sleep 600$", done.stdout, re.M
        )
        assert re.search(rf"^{re.escape(ended)} +exit 3 +\d+s +sh -c exit 3$", done.stdout, re.M)
        one = controller.run_command("jobs", "worker-2").stdout
        assert ended in one
        assert running not in one
        told = the_job(controller, ended)
        assert (told["exit_code"], told["outcome"], told["detached"]) == (3, "exited", True)
        assert told["command"] == ["sh", "-c", "exit 3"]
        assert the_job(controller, running)["exit_code"] is None
    finally:
        done = controller.run_command("forget", running, ended)
    assert sorted(done.stdout.split()) == sorted([running, ended])


def test_a_daemon_that_does_not_answer_delays_no_other(controller: ControllerProcess) -> None:
    """It is listed as what it is: away, or silent; and the others' jobs are there in time."""
    job = start(controller, "exit 0")
    with controller.daemon("slow") as slow, controller.daemon("absent") as absent:
        slow.signal(signal.SIGSTOP)
        absent.kill()
        controller.wait_for_daemon("absent", "away")
        try:
            begun = time.monotonic()
            done = controller.run_command("jobs", "--timeout", "1")
            took = time.monotonic() - begun
            assert (done.returncode, done.stderr) == (0, "")
            assert job in done.stdout
            assert re.search(r"^slow/\? +\(no answer\)$", done.stdout, re.M)
            assert re.search(r"^absent/\? +\(away\)$", done.stdout, re.M)
            assert took < 15  # the daemon is to be given up after 45
            told = controller.objects("jobs", "--json", "--timeout", "1")
            assert {"daemon": "slow", "id": None, "unanswered": "no answer"} in told
            assert {"daemon": "absent", "id": None, "unanswered": "away"} in told
            alone = controller.run_command("jobs", "slow", "--timeout", "0.5")
            assert alone.returncode == 125
            assert "slow did not say which jobs it has: no answer" in alone.stderr
        finally:
            slow.signal(signal.SIGCONT)
    controller.run_command("forget", job)


def test_jobs_of_a_daemon_that_is_not_there(controller: ControllerProcess) -> None:
    """Exit code 125, and whom somebody may have meant."""
    done = controller.run_command("jobs", "worker-11")
    assert (done.returncode, done.stdout) == (125, "")
    assert done.stderr == "sandd: no daemon 'worker-11'; did you mean 'worker-1' or 'worker-2'?\n"


# ---- sandd logs ---------------------------------------------------------------------------------


def test_logs_are_what_is_kept(controller: ControllerProcess) -> None:
    """stdout on stdout and stderr on stderr, byte by byte; 0, though the job still runs; and again the same."""
    job = start(controller, r"printf 'a\000\377b\n'; echo err >&2; sleep 600")
    until_sync(
        lambda: [each["end"] for each in the_job(controller, job)["kept"].values()] == [5, 4],
        within=SECONDS,
    )
    for _ in range(2):
        done = controller.run_command("logs", job, text=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"a\0\xffb\n", b"err\n")
    assert the_job(controller, job)["state"] == "running"
    controller.run_command("forget", job)


def test_logs_are_followed_to_the_end(controller: ControllerProcess, tmp_path: Path) -> None:
    """Everything arrives as it comes, and the exit code is the job's."""
    gate = tmp_path / "gate"
    job = start(
        controller, f"echo first; until test -e {gate}; do sleep 0.05; done; echo last; exit 7"
    )
    with controller.running_command("logs", "-f", job.partition("/")[2][:-2]) as following:
        assert next_line(following) == "first\n"
        gate.touch()
        assert following.communicate(timeout=SECONDS) == ("last\n", "")
        assert following.returncode == 7
    # It has ended by now; the end is told again, and nothing was taken away.
    done = controller.run_command("logs", "--follow", job)
    assert (done.returncode, done.stdout) == (7, "first\nlast\n")
    assert controller.run_command("logs", job).returncode == 0
    controller.run_command("forget", job)


@pytest.mark.parametrize(
    ("command", "code"),
    [("kill -9 $$", 137), ("sleep 600", 143)],
)
def test_logs_have_the_exit_code_of_a_signal(
    command: str, code: int, controller: ControllerProcess
) -> None:
    """128 and its number, also of one that we have sent."""
    job = start(controller, command)
    with controller.running_command("logs", "-f", job) as following:
        if code == 143:
            assert controller.run_command("kill", job).stdout == f"{job}\n"
        assert following.communicate(timeout=SECONDS) == ("", "")
        assert following.returncode == code
    controller.run_command("forget", job)


def test_looking_on_ends_nothing(controller: ControllerProcess) -> None:
    """Ctrl-C at ``logs -f`` is for the looking on: the job runs, and so does a second reader."""
    job = start(controller, "echo on; sleep 600")
    with (
        controller.running_command("logs", "-f", job) as one,
        controller.running_command("logs", "-f", job) as other,
    ):
        assert next_line(one) == next_line(other) == "on\n"
        one.send_signal(signal.SIGINT)
        assert one.communicate(timeout=SECONDS) == ("", "")
        assert one.returncode == 130
        assert the_job(controller, job)["state"] == "running"
        assert other.poll() is None
        controller.run_command("kill", "--signal", "KILL", job)
        assert other.wait(SECONDS) == 137
    controller.run_command("forget", job)


def test_logs_end_when_nobody_reads_on(controller: ControllerProcess) -> None:
    """As in ``sandd logs -f JOB | head``: quietly."""
    job = start(controller, "yes")
    with controller.running_command("logs", "-f", job) as following:
        assert next_line(following) == "y\n"
        assert following.stdout is not None
        following.stdout.close()
        assert following.wait(SECONDS) == 128 + signal.SIGPIPE
        assert following.stderr is not None
        assert following.stderr.read() == ""
    controller.run_command("forget", job)


def test_what_is_not_kept_any_more_is_told(controller: ControllerProcess) -> None:
    """Of a command that somebody holds, and reads: the others get what is left, and what comes from now on."""
    script = "yes | head -c 2000000; sleep 600"
    with controller.running_command("exec", "worker-1", "--", "sh", "-c", script) as holder:
        assert holder.stdout is not None
        assert len(holder.stdout.read(2_000_000)) == 2_000_000
        (job,) = [
            each
            for each in controller.objects("jobs", "worker-1", "--json")
            if each["state"] == "running"
        ]
        # What has been read is acknowledged now and then.
        base = job["kept"]["stdout"]["base"]
        assert base > 1_000_000
        told = f"[the first {base} bytes of its stdout are not kept any more: whoever holds it has "
        done = controller.run_command("logs", job["id"])
        assert done.returncode == 0
        assert done.stderr.startswith(told)
        assert len(done.stdout) == 2_000_000 - base


def test_which_job_is_meant(controller: ControllerProcess) -> None:
    """A beginning that fits several lists them; one that fits none says which there are."""
    jobs = [start(controller, "exit 0"), start(controller, "exit 0", "worker-2")]
    done = controller.run_command("logs", jobs[0].partition("/")[2][0])
    if done.returncode == 125:  # their ids begin alike by chance only
        assert all(each in done.stderr for each in jobs)
    done = controller.run_command("logs", "no-such-job")
    assert (done.returncode, done.stdout) == (125, "")
    assert "there is no job 'no-such-job'" in done.stderr
    for job in jobs:
        assert job in done.stderr
    assert controller.run_command("logs", "worker-1/").stderr.endswith(
        "'worker-1/' names no job: DAEMON/ID, or the beginning of an id\n"
    )
    controller.run_command("forget", *jobs)


# ---- sandd kill, sandd forget -------------------------------------------------------------------


def test_kill_ends_trees(controller: ControllerProcess, marker: Marker) -> None:
    """Several at once, those that ignore SIGTERM too, with what they have started; what they wrote stays."""
    script = "trap '' TERM; echo on; sleep 600 & setsid sleep 600 & sleep 600"
    with controller.daemon("victim", env=dict([marker])) as daemon:
        jobs = [start(controller, script, "victim") for _ in range(2)]
        # The daemon and its spawner have it, too.
        until_sync(lambda: len(marker.processes()) >= 2 + 2 * 4, within=SECONDS)
        done = controller.run_command("kill", "--grace", "0.5", *jobs)
        assert (done.returncode, done.stderr) == (0, "")
        assert sorted(done.stdout.split()) == sorted(jobs)
        assert _of_jobs(marker, daemon) == 0
        assert controller.run_command("logs", "-f", jobs[0]).stdout == "on\n"
        assert the_job(controller, jobs[0])["outcome"] == "cancelled"


def _of_jobs(marker: Marker, daemon: DaemonProcess) -> int:
    """Processes that are neither the daemon nor its spawner."""
    return sum(each.pid != daemon.pid and each.parent != daemon.pid for each in marker.processes())


def test_one_that_can_not_be_found_keeps_no_other_from_its_end(
    controller: ControllerProcess,
) -> None:
    """It is told, with exit code 125; the other one is killed all the same."""
    job = start(controller, "sleep 600")
    done = controller.run_command("kill", "worker-1/nothing", job)
    assert (done.returncode, done.stdout) == (125, f"{job}\n")
    assert "no job 'nothing' on worker-1" in done.stderr
    assert the_job(controller, job)["state"] == "ended"
    done = controller.run_command("forget", job, "worker-3/x")
    assert (done.returncode, done.stdout) == (125, f"{job}\n")
    assert "no daemon 'worker-3'; did you mean" in done.stderr
    assert controller.run_command("forget", job).returncode == 125


def test_a_signal_of_one_s_choice(controller: ControllerProcess) -> None:
    """It comes first; what has no such name is told before anything is done."""
    job = start(controller, "trap 'echo got it; exit 5' USR1; echo on; sleep 600 & wait")
    with controller.running_command("logs", "-f", job) as following:
        assert next_line(following) == "on\n"
        done = controller.run_command("kill", "-s", "usr1", job)
        assert (done.returncode, done.stdout) == (0, f"{job}\n")
        assert following.communicate(timeout=SECONDS) == ("got it\n", "")
        assert following.returncode == 5
    done = controller.run_command("kill", "-s", "NOTHING", job)
    assert done.returncode == 2
    assert "'NOTHING' is not the name of a signal" in done.stderr
    controller.run_command("forget", job)


def test_forget_ends_what_runs(controller: ControllerProcess) -> None:
    """And then nothing is known of it."""
    job = start(controller, "sleep 600")
    done = controller.run_command("forget", job)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{job}\n", "")
    assert job not in controller.run_command("jobs").stdout
