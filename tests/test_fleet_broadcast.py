"""``sandd run`` as a program: what many daemons print, line by line, and what became of it."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import sys
import time
from typing import TYPE_CHECKING

import pytest
import trio
from controllers import (
    SECONDS,
    ControllerProcess,
    next_line,
    peak_memory,
    running_controller,
)
from daemons import open_daemon, running_daemon, start_daemon
from process_tools import linux_only, until_sync
from tmux import needs_tmux, running_tmux

import sandd
from sandd.command_line.stopping import Stop
from sandd.fleet import broadcasting
from sandd.fleet.broadcasting import Broadcast
from sandd.fleet.outcomes import Ending, Verdict
from sandd.fleet.output import Output

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from conftest import Marker

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="these programs are POSIX")

MIB = 1024 * 1024


@pytest.fixture(scope="module")
def controller(_own_temporary_directory: None) -> Iterator[ControllerProcess]:
    """One for all of these tests, with two daemons."""
    with running_controller() as controller:
        with (
            running_daemon(controller.url, "a", labels={"env": "prod", "n": "1"}),
            running_daemon(controller.url, "worker-2", labels={"env": "prod", "n": "2"}),
        ):
            controller.wait_for_daemon("a")
            controller.wait_for_daemon("worker-2")
            yield controller


# ---- what is printed ----------------------------------------------------------------------------


def test_each_line_has_its_daemon(controller: ControllerProcess) -> None:
    """stdout on stdout, stderr on stderr, the last line too where it has no newline; and a summary."""
    done = controller.run_command(
        *("run", "-e", "WORD=hello", "-w", "/", "--"),
        *("sh", "-c", r'echo $WORD; echo from $PWD >&2; printf "no newline"'),
    )
    assert done.returncode == 0
    assert sorted(done.stdout.splitlines()) == [
        "a        | hello",
        "a        | no newline",
        "worker-2 | hello",
        "worker-2 | no newline",
    ]
    *lines, summary = done.stderr.splitlines()
    assert sorted(lines) == ["a        | from /", "worker-2 | from /"]
    assert summary == "sandd: 2 ok"


def test_lines_come_as_they_are_printed(controller: ControllerProcess, tmp_path: Path) -> None:
    """Not when all is over."""
    gate = tmp_path / "gate"
    script = f"echo begun; until test -e {gate}; do sleep 0.05; done; echo done"
    with controller.running_command("run", "--", "sh", "-c", script) as process:
        assert {next_line(process), next_line(process)} == {
            "a        | begun\n",
            "worker-2 | begun\n",
        }
        assert process.poll() is None
        gate.touch()
        output, errors = process.communicate(timeout=SECONDS)
        assert sorted(output.splitlines()) == ["a        | done", "worker-2 | done"]
        assert (process.returncode, errors) == (0, "sandd: 2 ok\n")


def test_lines_are_never_torn(controller: ControllerProcess) -> None:
    """However many there are at once, and in whatever pieces they are written."""
    program = (
        "import os, sys\n"
        "text = b''.join(b'%d %s\\n' % (n, bytes([97 + n % 26]) * (n * 7 % 300)) for n in range(5000))\n"
        "for start in range(0, len(text), 1013): os.write(1, text[start:start+1013])\n"
    )
    with controller.running_command("run", "--", sys.executable, "-c", program) as process:
        # The pipe is full, and is emptied by crumbs: whoever writes has to wait in the middle of it.
        assert process.stdout is not None
        time.sleep(2)
        output = b""
        while crumb := os.read(process.stdout.fileno(), 5000):
            output += crumb
        assert process.wait(SECONDS) == 0
    got: dict[str, list[str]] = {"a": [], "worker-2": []}
    for line in output.decode().splitlines():
        daemon_id, bar, text = line.partition("| ")
        assert bar
        got[daemon_id.strip()].append(text)
    expected = [f"{n} {chr(97 + n % 26) * (n * 7 % 300)}" for n in range(5000)]
    assert got == {"a": expected, "worker-2": expected}


def test_json_has_a_line_for_each_line_and_each_end(controller: ControllerProcess) -> None:
    """All of it on stdout; what is no UTF-8 is replaced; the summary stays on stderr."""
    script = r'printf "\303\244\377\nb"; echo err >&2; exit $((N - 1))'
    done = controller.run_command(
        "run", "--json", "-m", "worker-*", "-e", "N=4", "--", "sh", "-c", script
    )
    assert done.returncode == 1
    told = [json.loads(line) for line in done.stdout.splitlines()]
    *lines, ended = told
    assert sorted((each["stream"], each["line"]) for each in lines) == [
        ("stderr", "err"),
        ("stdout", "b"),
        ("stdout", "\xe4\N{REPLACEMENT CHARACTER}"),
    ]
    assert {(each["event"], each["daemon"]) for each in lines} == {("line", "worker-2")}
    assert {key: ended[key] for key in ("event", "daemon", "ok", "verdict", "exit_code")} == {
        "event": "ended",
        "daemon": "worker-2",
        "ok": False,
        "verdict": "failed",
        "exit_code": 3,
    }
    assert done.stderr == "sandd: 0 ok, 1 failed\nsandd: failed (exit 3): worker-2\n"


@needs_tmux
def test_colours_are_for_terminals(controller: ControllerProcess, tmp_path: Path) -> None:
    """Each daemon has its own; what a command switches on ends with its line; NO_COLOR is heeded."""
    with running_tmux(tmp_path, env=controller.env) as tmux:
        command = f"{sys.executable} -m sandd run -- printf 'x\\033[31mred\\n'"
        plain = tmux.run(f"NO_COLOR=1 {command}")
        assert "worker-2 | xred" in plain
        shown = tmux._do("capture-pane", "-e", "-p", "-t", "0")
        # tmux says what is switched off before the next character that is without it.
        assert len(re.findall(r"x\x1b\[31mred\n\x1b\[39m", shown)) == 2
        assert shown.count("\x1b[") == 4
        tmux.run(command)
        shown = tmux._do("capture-pane", "-e", "-p", "-t", "0")
        prefixes = dict(re.findall(r"\x1b\[(\d+)m(a|worker-2) +\|", shown))
        assert len(prefixes) == 2, shown


# ---- what becomes of it ---------------------------------------------------------------------------


def test_all_must_succeed(controller: ControllerProcess) -> None:
    """One that fails makes it 1; the summary counts, and names who failed."""
    done = controller.run_command("run", "--", "sh", "-c", 'test "${PWD%x}" && exit 3')
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "sandd: 0 ok, 2 failed\nsandd: failed (exit 3): a, worker-2\n"


def test_a_command_that_is_not_there(controller: ControllerProcess) -> None:
    """Said once, with those who lack it."""
    done = controller.run_command("run", "-l", "n=1", "--", "no-such-program-here")
    assert (done.returncode, done.stdout) == (1, "")
    assert re.match(
        r"sandd: 0 ok, 1 failed\nsandd: failed \(.*no-such-program-here.*\): a\n$", done.stderr
    )


def test_nobody_is_chosen(controller: ControllerProcess) -> None:
    """125 and a line that says who was looked for; nothing was run, so nothing failed."""
    done = controller.run_command("run", "-l", "env=none", "-m", "w*", "--", "true")
    assert (done.returncode, done.stdout) == (125, "")
    assert re.fullmatch(
        r"sandd: no daemon matches --label env=none --match w\*, of \d+ that there are; nothing was run\n",
        done.stderr,
    )
    done = controller.run_command("run", "-l", "env=prod")
    assert done.returncode == 2
    assert "which command?" in done.stderr


def test_a_time_out_is_each_daemon_s_own(controller: ControllerProcess, marker: Marker) -> None:
    """Who is done in time is done; the others are killed, and named."""
    with controller.daemon("slow", env={"SLOW": "1"} | dict([marker])) as daemon:
        done = controller.run_command(
            "run", "--timeout", "1.5", "--", "sh", "-c", 'echo on; test -z "$SLOW" || sleep 60'
        )
        assert not [
            each
            for each in marker.processes()
            if each.parent not in (daemon.pid, 0)
            and each.pid != daemon.pid
            and "sleep" in each.describe()
        ]
    assert done.returncode == 1
    assert done.stderr == "sandd: 2 ok, 1 timed out\nsandd: timed out: slow\n"
    assert done.stdout.count("on\n") == 3


def test_who_is_lost_is_told(controller: ControllerProcess) -> None:
    """A daemon that was killed and started anew has lost its command; whether that ran to its end, nobody knows."""
    with controller.daemon("mortal") as daemon:
        with controller.running_command(
            "run", "-m", "mortal", "--", "sh", "-c", "echo on; sleep 60"
        ) as process:
            assert next_line(process) == "mortal | on\n"
            daemon.kill()
            another = start_daemon(controller.url, "mortal")
            with another._put_away_at_the_end():
                output, errors = process.communicate(timeout=SECONDS)
                assert another._stop_if_running()
                another.wait_sync()
        assert (process.returncode, output) == (1, "")
        assert errors.endswith("sandd: 0 ok, 1 lost\nsandd: lost: mortal\n")


def test_who_is_away_is_waited_for_and_that_is_said(controller: ControllerProcess) -> None:
    """With a time-out for so long; and it takes nobody's turn."""
    with controller.daemon("absent") as absent:
        absent.kill()
        controller.wait_for_daemon("absent", "away")
    done = controller.run_command("run", "--concurrency", "1", "--timeout", "3", "--", "echo", "on")
    assert done.returncode == 1
    assert done.stdout.count("on\n") == 2
    assert "[absent is away; waiting for it]\n" in done.stderr
    assert done.stderr.endswith(
        "sandd: 2 ok, 1 timed out\nsandd: timed out (away, never started): absent\n"
    )


def test_no_more_than_so_many_at_once(controller: ControllerProcess, tmp_path: Path) -> None:
    """With --concurrency 1 they take turns."""
    lock = tmp_path / "lock"
    script = f"mkdir {lock} && sleep 0.3 && rmdir {lock}"
    assert (
        controller.run_command(
            "run", "--concurrency", "1", "-l", "env=prod", "--", "sh", "-c", script
        ).returncode
        == 0
    )
    assert controller.run_command("run", "-l", "env=prod", "--", "sh", "-c", script).returncode == 1
    assert controller.run_command("run", "--concurrency", "0", "--", "true").returncode == 2


# ---- when it is ended -------------------------------------------------------------------------------


def test_a_signal_ends_it_everywhere(controller: ControllerProcess, marker: Marker) -> None:
    """With all the process trees, before it has ended itself: as by Ctrl-C, and as when it is terminated."""
    script = "trap '' TERM INT; sleep 60 & echo on; wait; sleep 60"
    codes = {signal.SIGINT: 130, signal.SIGTERM: 143}
    with contextlib.ExitStack() as stack:
        begun = []
        for number in codes:  # side by side, as each waits for the grace of its trees
            own = marker._replace(value=f"{marker.value}-{number}")
            variable = f"{own.name}={own.value}"
            command = ("run", "-l", "env=prod", "-e", variable, "--", "sh", "-c", script)
            process = stack.enter_context(controller.running_command(*command))
            begun.append((process, number, own))
        for process, number, own in begun:
            assert "on" in next_line(process) + next_line(process)
            assert len(own.processes()) == 4
            process.send_signal(number)
        for process, number, own in begun:
            process.communicate(timeout=SECONDS)
            assert process.returncode == codes[number]
            assert not own.processes()


def test_it_ends_when_nobody_reads_on(controller: ControllerProcess, marker: Marker) -> None:
    """As in ``sandd run -- yes | head``: quietly, and everywhere."""
    variable = f"{marker.name}={marker.value}"
    with controller.running_command(
        "run", "-l", "env=prod", "-e", variable, "--", "yes"
    ) as process:
        next_line(process)
        assert process.stdout is not None
        process.stdout.close()
        assert process.wait(SECONDS) == 128 + signal.SIGPIPE
        assert process.stderr is not None
        assert process.stderr.read() == ""
        assert not marker.processes()


@linux_only
def test_memory_is_bounded_however_much_they_print(
    controller: ControllerProcess, marker: Marker
) -> None:
    """Both with a reader that keeps up and with one that stops: then the commands wait."""
    variable = f"{marker.name}={marker.value}"
    endless = ["run", "-l", "env=prod", "-e", variable, "--", "yes"]
    with controller.running_command(*endless) as process:
        assert process.stdout is not None
        read = 0
        while read < 8 * MIB:
            read += len(process.stdout.read(MIB))
        time.sleep(2)  # the commands would have written gigabytes
        stopped = peak_memory(process.pid)
        while read < 24 * MIB:
            read += len(process.stdout.read(MIB))
        flowing = peak_memory(process.pid)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=SECONDS)
    assert stopped < 120 * MIB
    assert flowing < stopped + 16 * MIB
    until_sync(lambda: not marker.processes())


# ---- when a daemon doesn't come back ----------------------------------------------------------------


async def test_who_is_away_when_its_time_is_long_over_is_given_up(
    monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """With a time-out: what became of it is not known, and nobody waits a day to learn it."""
    monkeypatch.setattr(broadcasting, "OVERDUE_SECONDS", 0.2)
    monkeypatch.setattr(broadcasting, "KILL_GRACE", 0.1)
    options = argparse.Namespace(
        remote_command=["sh", "-c", "echo on; sleep 60"],
        cwd=None,
        env=[],
        user=None,
        isolation=None,
        limit=[],
        require_limits=False,
        timeout=0.5,
        wait=None,
        concurrency=None,
        json=True,
    )
    with trio.fail_after(SECONDS):
        async with sandd.open_controller(port=0, heartbeat=0.1, dead_after=0.5) as controller:
            async with open_daemon(controller.url, "w") as process:
                daemon = await controller.wait_for_daemon("w")
                output = Output(Stop())
                async with trio.open_nursery() as nursery:

                    async def freeze() -> None:
                        while b"on" not in capfdbinary.readouterr().out:
                            await trio.sleep(0.01)
                        process.signal(signal.SIGSTOP)

                    nursery.start_soon(freeze)
                    broadcast = Broadcast(options, [daemon], output)
                    endings = await broadcast.run(controller)
                process.signal(signal.SIGCONT)
    assert endings == {"w": Ending(Verdict.LOST, "away; how it ended is not known")}
