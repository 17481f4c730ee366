"""``sandd top``, as a program, with a controller and daemons that are programs, too."""

from __future__ import annotations

import json
import re
import signal
import sys
from typing import TYPE_CHECKING

import pytest
from controllers import SECONDS, ControllerProcess, next_line, running_controller
from daemons import running_daemon
from process_tools import linux_only
from tmux import needs_tmux, running_tmux

import sandd
from sandd.cli import main

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="these programs are POSIX")

FAST = ("--interval", "0.3")
HEADER = ["DAEMON", "STATE", "CPU", "MEMORY", "LOAD", "JOBS", "IN/S", "OUT/S", "SPOOL", "LINK"]


@pytest.fixture(scope="module")
def controller(_own_temporary_directory: None) -> Iterator[ControllerProcess]:
    """One for all of these tests, with two daemons."""
    with running_controller() as controller:
        with (
            running_daemon(controller.url, "worker-1", labels={"env": "prod"}),
            running_daemon(controller.url, "worker-2", labels={"env": "test"}),
        ):
            controller.wait_for_daemon("worker-1")
            controller.wait_for_daemon("worker-2")
            yield controller


def test_once_it_is_a_table(controller: ControllerProcess) -> None:
    """Of daemons in the order that is asked for, with rates, and a sum below."""
    done = controller.run_command("top", "--once", "--sort", "link", *FAST)
    assert (done.returncode, done.stderr) == (0, "")
    header, *lines, summary = done.stdout.splitlines()
    assert header.split() == HEADER
    assert sorted(line.split()[0] for line in lines) == ["worker-1", "worker-2"]
    for line in lines:
        assert re.search(
            r" online +[\d.]+%? +\S+ +\S+ +\d+ +[\d.]+[BKM] +[\d.]+[BKM] +0B +\d", line
        )
    assert re.fullmatch(
        r"2 online, \d+ jobs running, \S+/s in, \S+/s out, controller up \d+s.*", summary
    )
    assert "\x1b" not in done.stdout


@linux_only
def test_with_jobs_it_tells_of_each(controller: ControllerProcess) -> None:
    """Of one daemon, or of those that are chosen: the busiest first; as JSON, with numbers in plain units."""
    token = controller.token_file.read_text().strip()
    with (
        sandd.connect(controller.url, token=token) as client,
        client.open_process("worker-1", ["sh", "-c", "while :; do :; done"]) as busy,
        client.open_process("worker-1", ["sh", "-c", "echo hello; exec sleep 300"]) as idle,
    ):
        names = [f"worker-1/{each.job_id}" for each in (busy, idle)]
        jobs = controller.objects("top", "worker-1", "--once", "--json", *FAST)
        assert [f"{each['daemon']}/{each['id']}" for each in jobs] == names
        first, second = jobs
        assert first["cpu_percent"] > second["cpu_percent"] >= 0
        assert first["cpu_seconds"] > 0
        assert (second["processes"], second["output_bytes"]) == (1, 6)
        assert second["rss_bytes"] > 100_000
        assert second["command"] == ["sh", "-c", "echo hello; exec sleep 300"]
        done = controller.run_command("top", "-j", "-1", "--label", "env=prod", "-s", "id", *FAST)
        header, *lines, _ = done.stdout.splitlines()
        assert header.split()[:3] == ["JOB", "STATE", "CPU"]
        assert {line.split()[0] for line in lines} == set(names)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--sort", "runtime"], "daemons have no runtime to sort by: id, cpu, memory, load"),
        (["-j", "--sort", "load"], "jobs have no load to sort by: id, cpu, memory, time"),
        (["--sort", "beauty"], "invalid choice: 'beauty'"),
        (["--interval", "0.1"], "'0.1' is no interval: 0.2 to 3600 seconds"),
        (["--interval", "nan"], "argument -i/--interval"),
    ],
)
def test_what_makes_no_sense_is_told(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anybody is asked: a key that isn't there for that, an interval that is none."""
    with pytest.raises(SystemExit) as caught:
        main(["top", *arguments])
    assert caught.value.code == 2
    assert told in capsys.readouterr().err


def test_without_a_terminal_it_goes_on_in_lines(controller: ControllerProcess) -> None:
    """A daemon that comes is there in a later round, one that is away tells nothing; until Ctrl-C."""
    with controller.running_command("top", "--json", "-m", "guest*", *FAST) as top:
        with controller.daemon("guest") as guest:
            while True:
                told = json.loads(next_line(top))
                assert (told["daemon"], told["state"]) == ("guest", "online")
                if told["cpus"] is not None and told["bytes_out_per_second"] is not None:
                    break
            guest.kill()
            while told["state"] == "online":
                told = json.loads(next_line(top))
            assert (told["state"], told["cpus"], told["unanswered"]) == ("away", None, "away")
        top.send_signal(signal.SIGINT)
        top.communicate(timeout=SECONDS)
        assert top.returncode == 130


def test_a_daemon_that_is_silent_delays_no_other(controller: ControllerProcess) -> None:
    """Once is once, though one of them never answers."""
    with controller.daemon("stopped") as stopped:
        stopped.signal(signal.SIGSTOP)
        try:
            told = controller.objects("top", "--once", "--json", "--timeout", "1", *FAST)
        finally:
            stopped.signal(signal.SIGCONT)
    by_id = {each["daemon"]: each for each in told}
    assert by_id["stopped"]["cpus"] is None
    assert by_id["stopped"]["unanswered"] in {"no answer", "away"}
    assert by_id["worker-1"]["cpus"] >= 1
    assert by_id["worker-1"]["cpu_percent"] is None or sys.platform == "linux"


@needs_tmux
def test_at_a_terminal_it_is_a_live_view(controller: ControllerProcess, tmp_path: Path) -> None:
    """It changes in its place: numbers come, daemons come and go; and then the terminal is as it was."""
    with running_tmux(tmp_path, env=controller.env, columns=120) as tmux:
        tmux.type(f"{sys.executable} -m sandd top -i 0.3", "Enter")
        tmux.wait_for(r"(?s)DAEMON +STATE +CPU.*worker-1 +online +[\d.]+.*2 online")
        assert (tmux.ask("alternate_on"), tmux.ask("cursor_flag")) == ("1", "0")
        with controller.daemon("guest"):
            tmux.wait_for(r"(?s)guest +online +[\d.]+.*worker-1 +online.*3 online")
            assert len(re.findall("DAEMON", tmux.visible())) == 1
        tmux.wait_for(r"(?s)\A((?!guest).)*2 online")
        tmux.type("C-c")
        tmux.wait_for_prompt()
        assert (tmux.ask("alternate_on"), tmux.ask("cursor_flag")) == ("0", "1")
