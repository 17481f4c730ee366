"""The daemon as a program: how it starts, how it is stopped at any moment, and how it says what is wrong."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio
from conftest import ProcessEntry, descendants, kill
from daemons import daemon_environment, open_daemon, running_daemon
from forked_python import PythonProcess, run_python
from patience import fail_after_calm
from proc_files import handles, seconds_of_calm
from process_tools import at_once, linux_only, posix_only, root_only, until, until_sync
from standing_daemon import reserved_port

import sandd
from sandd import Outcome, wire
from sandd._core import daemon_program, reception
from sandd._core.daemon_options import DaemonOptions
from sandd._core.limits import Limits
from sandd._core.processes import posix
from sandd._core.streams import VIEWER_WINDOW_BYTES
from sandd.testing import open_fault_proxy

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from conftest import Marker

pytestmark = posix_only

LIMIT = 90.0
"""Seconds of calm for all that happens in one test."""
HELD_UP = 7.0
"""Seconds of calm that no stop takes; a daemon that something holds up ends after 8."""
REFUSING = "ws://127.0.0.1:9/ws"
"""Where nobody listens."""


def run_daemon(
    *arguments: str, env: dict[str, str] | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """A daemon that ends by itself."""
    return run_python(
        [sys.executable, "-m", "sandd.daemon", *arguments],
        env=daemon_environment(env),
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )


@contextlib.contextmanager
def started(*arguments: str, home: Path) -> Iterator[subprocess.Popen[str]]:
    """A daemon that is told to stop."""
    command = [sys.executable, "-m", "sandd.daemon", *arguments, "--state-dir", str(home / "state")]
    with subprocess.Popen(
        command,
        env=daemon_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def start(*arguments: str, **env: str) -> subprocess.Popen[bytes]:
    """A daemon whose log is a pipe, and who has its options from where the test says."""
    return PythonProcess(
        [sys.executable, "-m", "sandd.daemon", *arguments],
        env=daemon_environment(env),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


# ---- options, as the program sees them -----------------------------------------------------------


@pytest.mark.parametrize("arguments", [["-m", "sandd.daemon"], ["-m", "sandd", "daemon"]])
def test_version(arguments: list[str]) -> None:
    """``--version`` prints it and exits 0, as a module and as a command."""
    done = subprocess.run(
        [sys.executable, *arguments, "--version"],
        env=daemon_environment(),
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, f"sandd {sandd.__version__}\n", "")


CRASHING = """
import sys
async def crash(*_, **__):
    raise RuntimeError("a defect with sdj_" + 40 * "a")
import {module}
{module}.{function} = crash
import {main}
sys.exit({main}.main({arguments}))
"""


@pytest.mark.parametrize(
    ("main", "module", "function", "arguments"),
    [
        ("sandd.daemon", "sandd._core.daemon_program", "run_daemon", ["-s", REFUSING]),
        ("sandd.standalone.main", "sandd.standalone.program", "run_controller", ["--port", "0"]),
    ],
    ids=["daemon", "controller"],
)
def test_a_defect_is_told_as_a_line_of_the_log(
    main: str, module: str, function: str, arguments: list[str]
) -> None:
    """One object, where the log is JSON, without what looks like a secret; and an exit code of its own."""
    done = subprocess.run(
        [
            *(sys.executable, "-c"),
            CRASHING.format(
                main=main,
                module=module,
                function=function,
                arguments=[*arguments, "--log-format", "json"],
            ),
        ],
        env=daemon_environment(),
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    line = json.loads(done.stderr)
    assert (done.returncode, line["event"], line["level"]) == (70, "crashed", "error")
    assert "RuntimeError: a defect with [redacted]" in line["exception"]


def test_a_bad_option_is_told_before_the_rest_is_loaded() -> None:
    """Neither trio nor what speaks WebSocket: both take their time."""
    program = (
        "import sys, sandd.daemon\n"
        "assert sandd.daemon.main(['--server-url', 'http://h']) == 2\n"
        "print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=daemon_environment(), capture_output=True, text=True
    )
    loaded = set(done.stdout.split())
    assert "sandd._core.daemon_options" in loaded
    assert not {"trio", "trio_websocket", "sandd._core.daemon_program"} & loaded


@pytest.mark.parametrize(
    ("arguments", "env", "words"),
    [
        ([], {}, "--server-url ws://HOST:PORT/ws"),
        (["-s", "http://h"], {}, "'http://h' is not usable"),
        (["-s", REFUSING, "--nonsense"], {}, "--nonsense"),
        (["-s", REFUSING, "-d", "a b"], {}, "daemon id 'a b'"),
        (["-s", REFUSING, "-l", "x"], {}, "label 'x'"),
        (["-s", REFUSING], {"SANDD_LOG_LEVEL": "loud"}, "'loud'"),
        (["-s", REFUSING, "--config", "/no/such.toml"], {}, "/no/such.toml"),
        (["-s", REFUSING, "--token-file", "/no/such"], {}, "/no/such"),
        (["-s", REFUSING, "--state-dir", "/dev/null/x"], {}, "/dev/null/x"),
        (["-s", "wss://u:p@h/ws"], {}, "user name"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_a_bad_option_is_one_line_and_exit_2(
    arguments: list[str], env: dict[str, str], words: str, tmp_path: Path
) -> None:
    """No traceback, nothing on stdout, nothing started."""
    env = {"XDG_STATE_HOME": str(tmp_path)} | env
    done = run_daemon(*arguments, env=env)
    lines = [line for line in done.stderr.splitlines() if " info " not in line]
    assert (done.returncode, done.stdout, len(lines)) == (2, "", 1), done.stderr
    assert lines[0].startswith("python -m sandd.daemon: error: ")
    assert words in lines[0]


def test_a_state_directory_has_one_daemon(tmp_path: Path) -> None:
    """The second exits 2 and says what to do; the first goes on."""
    with running_daemon(REFUSING, "first", arguments=["--reconnect-max", "5"]) as first:
        first.wait_for_log_sync("dial_failed")
        done = run_daemon("-s", REFUSING, "-d", "x", "--state-dir", str(first.state_dir))
        assert done.returncode == 2
        assert "belongs to another running daemon" in done.stderr
        assert first.exit_code is None


async def test_configured_by_a_file_the_environment_and_options(tmp_path: Path) -> None:
    """A real daemon under an id, labels and a token from three places."""
    (tmp_path / "token").write_text("s3cret\n")
    with fail_after_calm(LIMIT):
        async with sandd.open_controller(port=0, token="s3cret") as controller:
            config = tmp_path / "daemon.toml"
            config.write_text(
                f'server_url = "{controller.url.removesuffix("/ws")}"\n'
                f'token_file = "{tmp_path / "token"}"\nlabels = ["from=file"]\ndaemon_id = "file"\n'
            )
            process = start(
                *("--log-format", "json"),
                SANDD_CONFIG=str(config),
                SANDD_DAEMON_ID="from-env",
                XDG_STATE_HOME=str(tmp_path),
            )
            try:
                worker = await controller.wait_for_daemon("from-env")
                assert dict(worker.info.labels) == {"from": "file"}
                assert (tmp_path / "sandd" / "daemons" / "from-env" / "lock").exists()
            finally:
                process.terminate()
                _, log = await trio.to_thread.run_sync(process.communicate)
            assert process.returncode == 0
            events = [json.loads(line)["event"] for line in log.splitlines()]
            assert events[0] == "started"
            assert events[-1] == "stopped"
            assert b"s3cret" not in log


@posix_only
async def test_stopped_while_the_machine_does_not_say_what_it_can_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A daemon with limits begins by asking its spawner, which may be long in coming up."""
    asked = trio.Event()

    async def never(_host: object, _limits: Limits) -> tuple[str, ...]:
        asked.set()
        await trio.sleep_forever()
        return ()

    monkeypatch.setattr(posix.PosixProcessHost, "unheld", never)
    options = DaemonOptions(
        "ws://127.0.0.1:9/ws", state_dir=tmp_path, limits=Limits(memory_bytes=2**30)
    )
    with fail_after_calm(LIMIT):
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def be_a_daemon() -> None:
                await daemon_program.run_daemon(options, version="1", stop_requested=lambda: False)

            await asked.wait()
            signal.raise_signal(signal.SIGTERM)


async def test_without_an_id_it_has_a_lasting_one(tmp_path: Path) -> None:
    """Host name and suffix, the same after a restart."""
    seen = []
    with fail_after_calm(LIMIT):
        async with sandd.open_controller(port=0) as controller:
            for _ in range(2):
                async with controller.open_events() as events:
                    process = start("-s", controller.url, XDG_STATE_HOME=str(tmp_path))
                    seen.append((await anext(events)).daemon_id)
                    process.terminate()
                    await trio.to_thread.run_sync(process.communicate)
    assert seen[0] == seen[1]
    assert re.fullmatch(r".+-[0-9a-f]{6}", seen[0])


# ---- who it may be ------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [None, "wrong"])
async def test_a_refused_token_ends_the_daemon_with_the_reason(
    given: str | None, tmp_path: Path
) -> None:
    """Exit code 1, what to look at on stderr, and the token in nobody's log."""
    arguments: Sequence[str] = ()
    if given is not None:
        (tmp_path / "token").write_text(given)
        arguments = ["--token-file", str(tmp_path / "token")]
    with fail_after_calm(LIMIT):
        async with sandd.open_controller(port=0, token="s3cret") as controller:
            async with open_daemon(controller.url, arguments=arguments) as daemon:
                assert await daemon.wait() == 1
                assert "refused: the daemon's token is missing or wrong" in daemon.log
                assert "--token-file" in daemon.log
                assert "s3cret" not in daemon.log
                assert "Traceback" not in daemon.log
            assert controller.daemons() == []


async def test_the_right_token_lets_it_in(tmp_path: Path) -> None:
    """White space around it in the file doesn't count; jobs don't see where it is."""
    (tmp_path / "token").write_text("  s3cret \n")
    arguments = ["--token-file", str(tmp_path / "token")]
    with fail_after_calm(LIMIT):
        async with sandd.open_controller(port=0, token=b"s3cret") as controller:
            async with open_daemon(
                controller.url, arguments=arguments, env={"SANDD_TOKEN_FILE": "/elsewhere"}
            ):
                worker = await controller.wait_for_daemon("worker-1")
                result = await worker.run("env")
                assert "SANDD_TOKEN_FILE" not in result.stdout


def address_beyond_loopback() -> str | None:
    """An address of this machine that is not loopback, if it has one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        with contextlib.suppress(OSError):
            probe.connect(("192.0.2.1", 9))  # sends nothing: only the route is looked up
            return str(probe.getsockname()[0])
    return None


@pytest.mark.parametrize("insecure", [False, True])
async def test_a_daemon_from_beyond_loopback_needs_a_token(
    insecure: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Through the machine's own address, with a real daemon: refused and told why, or let in on purpose."""
    host = address_beyond_loopback()
    if host is None or host.startswith("127."):
        pytest.skip("this machine has no other address")
    with fail_after_calm(LIMIT):
        async with sandd.open_controller("0.0.0.0", 0, insecure=insecure) as controller:
            assert ("daemons_need_no_token" in caplog.text) is insecure
            port = controller.address.rpartition(":")[2]
            url = f"ws://{host}:{port}/ws"
            async with open_daemon(url, arguments=["--insecure"]) as daemon:
                await daemon.wait_for_log("connection_is_not_secure")
                if insecure:
                    worker = await controller.wait_for_daemon("worker-1")
                    assert (await worker.run("echo in")).stdout == "in\n"
                else:
                    assert await daemon.wait() == 1
                    assert "insecure=True" in daemon.log


# ---- stopped ------------------------------------------------------------------------------------


@linux_only
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["TERM", "INT"])
def test_stopped_at_any_moment_of_its_start_it_exits_0(
    number: signal.Signals, tmp_path: Path
) -> None:
    """From the moment Python has come to our first lines, through imports and dialling, without a traceback."""
    took = None
    for step in range(STARTS):
        with started("-s", REFUSING, "-d", "x", "--reconnect-max", "5", home=tmp_path) as process:
            # Not SIGINT's: Python itself has one from the start.
            until_sync(lambda: handles(process.pid, signal.SIGTERM))
            begun = time.monotonic()
            if took is None:  # the first one shows how long a start takes
                assert process.stdout is not None
                while "dial_failed" not in process.stdout.readline():
                    pass
                took = time.monotonic() - begun
            else:
                time.sleep(
                    took * (step - random.random()) / (STARTS - 2)
                )  # other moments in each run
            process.send_signal(number)
            output, _ = process.communicate(timeout=LIMIT)
            assert process.returncode == 0, output
            assert "Traceback" not in output


@linux_only
def test_stopped_again_and_again_it_still_exits_0(tmp_path: Path) -> None:
    """An impatient supervisor's second, tenth and hundredth signal change nothing."""
    with started("-s", REFUSING, "-d", "x", home=tmp_path) as process:
        assert process.stdout is not None
        while "dial_failed" not in process.stdout.readline():
            pass
        while process.poll() is None:
            process.send_signal(random.choice([signal.SIGTERM, signal.SIGINT]))
            time.sleep(0.001)
        assert process.returncode == 0, process.stdout.read()


async def test_stopped_while_it_dials_what_never_answers() -> None:
    """Neither a TCP connection without an answer nor half a handshake holds it up."""
    with fail_after_calm(LIMIT), socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen(1)
        url = f"ws://127.0.0.1:{mute.getsockname()[1]}/ws"
        async with open_daemon(url) as daemon:
            peer, _ = await trio.to_thread.run_sync(mute.accept)
            with peer:
                started = seconds_of_calm()
                assert await daemon.stop() == 0
                assert seconds_of_calm() - started < HELD_UP


async def test_stopped_while_the_controller_does_not_answer_the_hello() -> None:
    """A controller that takes the connection and then says nothing is no reason to stay."""
    with fail_after_calm(LIMIT):
        async with (
            sandd.open_controller(port=0) as controller,
            open_fault_proxy(controller.address) as proxy,
        ):
            proxy.blackhole()
            async with open_daemon(proxy.url) as daemon:
                await proxy.wait_accepted(1)
                started = seconds_of_calm()
                assert await daemon.stop() == 0
                assert seconds_of_calm() - started < HELD_UP


@pytest.mark.parametrize(
    ("number", "stubborn"),
    [(signal.SIGTERM, True), (signal.SIGINT, False)],
    ids=["TERM", "INT"],
)
async def test_stopped_with_jobs_running_it_tells_how_they_ended(
    number: signal.Signals, stubborn: bool, marker: Marker
) -> None:
    """They have a grace to clean up in, their last words arrive, and nothing of them is left."""
    polite = "trap 'echo cleaned; exit 4' TERM; echo on; sleep 60 & wait"
    scripts = [polite, *(["trap '' TERM; setsid sleep 60 & echo on; sleep 60"] * stubborn)]
    results: list[sandd.CommandResult] = []
    with fail_after_calm(LIMIT):
        async with sandd.open_controller(port=0) as controller:
            async with open_daemon(controller.url) as daemon:
                worker = await controller.wait_for_daemon("worker-1")
                async with trio.open_nursery() as nursery:

                    async def run(script: str) -> None:
                        results.append(await worker.run(script, env=dict([marker])))

                    for script in scripts:
                        nursery.start_soon(run, script)
                    await until(lambda: len(marker.processes()) >= (5 if stubborn else 2))
                    daemon.signal(number)
                    started = seconds_of_calm()
                    assert await daemon.wait() == 0
                    # A second less than their grace, which is for those alone who need it.
                    assert stubborn or seconds_of_calm() - started < 4
            assert marker.processes() == []
    assert (results[0].stdout, results[0].exit_code) == ("on\ncleaned\n", 4)
    assert [(each.stdout, each.signal) for each in results[1:]] == [("on\n", "SIGKILL")] * stubborn
    assert {each.outcome for each in results} == {Outcome.CANCELLED}


async def test_stopped_beside_a_reader_that_does_not_read_it_says_goodbye() -> None:
    """Who reads gets all, who doesn't delays the end by no more than a moment, and both learn of it."""
    read: list[bytes] = []
    with fail_after_calm(LIMIT):
        async with (
            sandd.open_controller(port=0) as controller,
            open_daemon(controller.url) as daemon,
        ):
            worker = await controller.wait_for_daemon("worker-1")
            async with (
                worker.open_process("echo on; exec yes") as process,
                worker.attach_process(process.job_id, read_only=True) as viewer,
            ):
                while sum(map(len, read)) < 2 * VIEWER_WINDOW_BYTES:
                    read.append(await process.stdout.receive_some())
                daemon.terminate()
                started = seconds_of_calm()
                read += [chunk async for chunk in process.stdout]
                assert (await process.wait()).outcome is Outcome.CANCELLED
                assert await daemon.wait() == 0
                assert seconds_of_calm() - started < HELD_UP
                await until(lambda: worker.state is sandd.DaemonState.GONE)
                with pytest.raises((sandd.OutputGap, trio.BrokenResourceError)):
                    async for _ in viewer.stdout:
                        pass
    assert b"".join(read).startswith(b"on\ny\n")


async def test_stopped_while_away_with_jobs_running(marker: Marker) -> None:
    """Nobody is there to be told, and nothing is left."""
    with fail_after_calm(LIMIT):
        async with (
            sandd.open_controller(port=0) as controller,
            open_fault_proxy(controller.address) as proxy,
            open_daemon(proxy.url) as daemon,
            trio.open_nursery() as nursery,
        ):
            worker = await controller.wait_for_daemon("worker-1")
            nursery.start_soon(lambda: worker.run("sleep 60", env=dict([marker])))
            await until(marker.processes)
            proxy.refuse()
            await daemon.wait_for_log("dial_failed")
            assert await daemon.stop() == 0
            assert marker.processes() == []
            nursery.cancel_scope.cancel()


async def test_stopped_together_with_its_controller(marker: Marker) -> None:
    """Whoever of the two goes first, and however close: both end well, and soon."""
    source = random.Random(13)
    for _ in range(6):
        delay = source.uniform(-0.03, 0.03)
        with fail_after_calm(LIMIT), reserved_port() as port:
            async with (
                open_daemon(f"ws://127.0.0.1:{port}/ws") as daemon,
                trio.open_nursery() as stopping,
            ):

                async def stop() -> None:
                    await trio.sleep(max(0.0, delay))  # noqa: B023 - used within the iteration
                    daemon.terminate()

                async with sandd.open_controller(port=port) as controller:
                    worker = await controller.wait_for_daemon("worker-1")
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(lambda: worker.run("sleep 600", env=dict([marker])))  # noqa: B023
                        await until(marker.processes)
                        stopping.start_soon(stop)
                        await trio.sleep(max(0.0, -delay))
                        started = seconds_of_calm()
                        nursery.cancel_scope.cancel()
                assert seconds_of_calm() - started < HELD_UP
                assert await daemon.wait() == 0
                assert seconds_of_calm() - started < HELD_UP
        assert marker.processes() == []


@linux_only
async def test_killed_it_leaves_nothing(marker: Marker) -> None:
    """SIGKILL can't be handled, and yet every job dies with the daemon, escapees too, within a second."""
    script = "trap '' TERM HUP; setsid sleep 60 & (setsid sh -c 'sleep 60 & sleep 60' &); sleep 60"
    with fail_after_calm(LIMIT):
        async with sandd.open_controller(port=0) as controller, trio.open_nursery() as nursery:
            async with open_daemon(controller.url) as daemon:
                worker = await controller.wait_for_daemon("worker-1")
                nursery.start_soon(lambda: worker.run(script, env=dict([marker])))
                await until(lambda: len(marker.processes()) >= 6)
                spawner = children_of(daemon.pid)
                with at_once():
                    daemon.kill()
                    await until(lambda: not marker.processes())
                await until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in spawner))
            nursery.cancel_scope.cancel()


def children_of(pid: int) -> list[int]:
    """Direct children, by the kernel's list."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


# ---- the other side -----------------------------------------------------------------------------

STARTS = 9 if os.environ.get("HYPOTHESIS_PROFILE") == "deep" else 5
"""How often a test stops one that starts, each time at another moment."""
ORPHANS = 10_000 if os.environ.get("HYPOTHESIS_PROFILE") == "deep" else 1_000
"""One after the other, so that few are alive at a time."""
LEAVE_ORPHANS = f"i=0; while [ $i -lt {ORPHANS} ]; do (:&); i=$((i+1)); done; exit 6"


def zombies(ancestor: int) -> list[ProcessEntry]:
    """Those below a process, wherever they are."""
    return [entry for entry in descendants(ancestor) if entry.state == "Z"]


@linux_only
@root_only
async def test_as_process_1_it_reaps_every_orphan_and_tells_every_status(tmp_path: Path) -> None:
    """Those of its jobs, and those of others in its container, while commands run: not one zombie stays."""
    if shutil.which("unshare") is None or shutil.which("nsenter") is None:
        pytest.skip("needs unshare(1) and nsenter(1)")
    alone = ["unshare", "--pid", "--fork", "--mount-proc"]
    if (await trio.run_process([*alone, "true"], check=False, capture_stderr=True)).returncode:
        pytest.skip("may not make a PID namespace")
    with trio.fail_after(50):
        async with sandd.open_controller(port=0) as controller:
            options = ["-s", controller.url, "-d", "first", "--state-dir", str(tmp_path / "state")]
            process = subprocess.Popen(  # noqa: ASYNC220 - it is waited for by polling
                [*alone, sys.executable, "-m", "sandd.daemon", *options],
                env=daemon_environment(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            try:
                worker = await controller.wait_for_daemon("first")
                (daemon,) = [
                    each for each in descendants(os.getpid()) if each.parent == process.pid
                ]
                assert (await worker.run("readlink /proc/1/exe; echo $PPID")).stdout.startswith("/")
                outcomes: list[int] = []

                async def leave_orphans() -> None:
                    outcomes.append((await worker.run(LEAVE_ORPHANS)).exit_code)

                async def leave_orphans_to_process_1() -> None:
                    # As `docker exec` does: nobody of ours is their parent.
                    inside = ["nsenter", "--target", str(daemon.pid), "--pid", "--mount"]
                    done = await trio.run_process([*inside, "sh", "-c", LEAVE_ORPHANS], check=False)
                    outcomes.append(done.returncode)

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(leave_orphans)
                    nursery.start_soon(leave_orphans_to_process_1)
                    codes = []
                    while len(outcomes) < 2 or len(codes) < 100:
                        result = await worker.run(f"(setsid true &); exit {len(codes) % 200}")
                        codes.append(result.exit_code)
                assert outcomes == [6, 6]
                assert codes == [number % 200 for number in range(len(codes))]
                await until(lambda: not zombies(process.pid), within=15)
                os.kill(daemon.pid, signal.SIGTERM)
                await until(lambda: process.poll() is not None, within=15)
                assert process.returncode == 0
            finally:
                for each in descendants(process.pid):
                    kill(each.pid)
                kill(process.pid)
                process.wait()


async def test_an_unreachable_controller_is_retried_until_it_is_there() -> None:
    """The daemon may be started first."""
    with fail_after_calm(LIMIT), reserved_port() as port:
        url = f"ws://127.0.0.1:{port}/ws"
        async with open_daemon(url, arguments=["--reconnect-max", "0.1"]) as daemon:
            log = await daemon.wait_for_log("dial_failed")
            assert "Connection refused" in log
            async with sandd.open_controller(port=port) as controller:
                worker = await controller.wait_for_daemon("worker-1")
                assert (await worker.run("echo on")).stdout == "on\n"


async def test_something_else_on_the_controllers_port_is_retried() -> None:
    """A proxy that isn't ready, or a wrong port: the daemon says what it met, and tries on."""
    answers = {
        "404": b"HTTP/1.1 404 Not Found\r\ncontent-length: 9\r\n\r\nnot here\n",
        "200": b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
        "ssh": b"SSH-2.0-OpenSSH_9.6\r\n",
        "tls": b"\x15\x03\x01\x00\x02\x02\x46",
        "close": b"",
    }
    answer = b""
    tries = 0

    async def serve(stream: trio.SocketStream) -> None:
        nonlocal tries
        with contextlib.suppress(trio.BrokenResourceError):
            await stream.receive_some()
            await stream.send_all(answer)
        tries += 1

    with fail_after_calm(LIMIT):
        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(trio.serve_tcp, serve, 0)
            port = listeners[0].socket.getsockname()[1]
            async with open_daemon(
                f"ws://127.0.0.1:{port}/ws", arguments=["--reconnect-max", "0.1"]
            ) as daemon:
                for kind, answer in answers.items():  # noqa: B007 - `serve` gives it
                    before, failed = tries, daemon.log.count("dial_failed")
                    await until(lambda: tries >= before + 3)  # noqa: B023 - used within the iteration
                    await until(lambda: daemon.log.count("dial_failed") >= failed + 2)  # noqa: B023
                    assert "Traceback" not in daemon.log, kind
            nursery.cancel_scope.cancel()


async def test_a_controller_that_asks_for_years_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No number of seconds that the wire can carry is too long for a timer; stopping ends the wait."""
    monkeypatch.setattr(reception, "DRAIN_RETRY_SECONDS", wire.MAX_SECONDS)
    with fail_after_calm(LIMIT), reserved_port() as port:
        async with open_daemon(f"ws://127.0.0.1:{port}/ws") as daemon:
            async with sandd.open_controller(port=port) as controller:
                await controller.wait_for_daemon("worker-1")
            log = await daemon.wait_for_log("controller_left")
            assert re.search(r"retry_in=1\d{9}\.", log)
            assert await daemon.stop() == 0
            assert "Traceback" not in daemon.log


async def test_a_jobs_environment_has_nothing_of_the_daemons_options() -> None:
    """Not the URL, not the file of the token: only the marker by which a job is known."""
    env = {"SANDD_LABELS": "a=b", "SANDD_CONFIG": "", "SANDD_ANYTHING": "x", "OTHER": "kept"}
    with fail_after_calm(LIMIT):
        async with sandd.open_controller(port=0) as controller:
            async with open_daemon(controller.url, env=env):
                worker = await controller.wait_for_daemon("worker-1")
                result = await worker.run(["env"])
    names = {line.partition("=")[0] for line in result.stdout.splitlines()}
    assert {name for name in names if name.startswith("SANDD")} == {"SANDD_JOB"}
    assert "OTHER" in names
    assert os.environ.get("PATH", "") in result.stdout
