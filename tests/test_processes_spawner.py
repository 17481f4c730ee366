"""The spawner as a process: small, isolated, a good process 1's child, and honest about its limits."""

from __future__ import annotations

import array
import itertools
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from process_tools import (
    PYTHON,
    linux_only,
    request,
    root_only,
    run,
    shell,
    the_spawner,
    until,
    until_sync,
)

if sys.platform == "win32":
    pytest.skip("POSIX process trees", allow_module_level=True)

import sandd
from sandd._core.processes import limit_keeper, open_process_host, process_table, spawner_link
from sandd._core.processes import spawner as spawner_module
from sandd._core.processes.exit_watch import WaitStatus, peek
from sandd._core.processes.job_trees import Tree
from sandd._core.processes.spawner_messages import (
    Exited,
    Failed,
    Gone,
    Ready,
    Spawn,
    Started,
    decode_all,
    encode,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = linux_only

SELF = str(Path(sandd.__file__).parents[1])


def test_spawner_imports_the_standard_library_only() -> None:
    """Neither our dependencies nor any __init__ of ours is imported in it."""
    program = f"""
import sys
for name in "sandd", "sandd._core", "sandd._core.processes":
    sys.modules[name] = package = type(sys)(name)
package.__path__ = [{SELF!r} + "/sandd/_core/processes"]
import sandd._core.processes.spawner
ours = {{
    *("control_groups", "culling", "exit_watch", "job_trees", "launcher", "process_table"),
    *("child_limits", "limit_cells", "limit_groups", "limit_keeper", "quick_fork"),
    *("exec_lock", "forked_launch", "landlock", "program_search", "readiness", "spawner"),
    *("named_tuples", "spawner_messages"),
}}
for name in sys.modules:
    top, _, rest = name.partition(".")
    if top == "sandd":
        assert getattr(sys.modules[name], "__file__", None) is None or name.split(".")[-1] in ours, name
    else:
        assert top in sys.stdlib_module_names or top.startswith("_"), name
"""
    subprocess.run([PYTHON, "-I", "-S", "-c", program], check=True)


TOO_LONG_TO_IMPORT = {
    "typing": "as long as Python needs to start",
    "re": "half of that, and it comes with others: typing, locale, string, ...",
    "socket": "with its enums and selectors, a third of it; _socket is all that is needed",
    "selectors": "comes with socket and subprocess; there is epoll",
    "subprocess": "with locale, threading and what is above: as long as Python; there is posix_spawn",
    "threading": "there is one thread",
    "dataclasses": "with inspect, ast and more: twice as long as Python",
    "inspect": "comes with dataclasses",
    "logging": "nobody reads it",
    "json": "there is marshal",
    "pathlib": "with what it imports, as long as Python; there is os.path",
    "tempfile": "with shutil, random and what they import, likewise",
    "site": "looks for packages, and has none to find",
}
"""What a spawner has no need of, and why that matters: each daemon starts one, and again when it has died."""


def test_a_spawner_loads_little() -> None:
    """From its start to its end, where there was no job, it imports nothing that would double its start."""
    if "COVERAGE_PROCESS_CONFIG" in os.environ:
        pytest.skip("coverage is in the spawner, too, with all that it imports")
    program = f"{spawner_link._BOOT}print(*sys.modules)"
    ours, theirs = socket.socketpair()
    with theirs:
        ours.close()
        directory = os.path.dirname(spawner_link.__file__)
        command = [PYTHON, "-I", "-S", "-c", program, directory, str(theirs.fileno())]
        done = subprocess.run(
            [*command, str(os.getpid()), "-1"],
            pass_fds=[theirs.fileno()],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    loaded = set(done.stdout.split())
    assert "sandd._core.processes.spawner" in loaded
    found = {name: why for name, why in TOO_LONG_TO_IMPORT.items() if name in loaded}
    assert not found


async def test_spawner_is_small_and_named() -> None:
    """Below 16 MB resident, and ps shows what it is."""
    async with open_process_host() as host:
        for _ in range(20):
            await run(host, shell("true"))
        spawner = await the_spawner()
        status = _read(f"/proc/{spawner}/status")
        (resident,) = [line for line in status.splitlines() if line.startswith("VmRSS")]
    assert int(resident.split()[1]) < 16_000 or "COVERAGE_PROCESS_CONFIG" in os.environ
    assert status.startswith("Name:\tsandd-spawner\n")


def test_spawner_starts_from_a_zip(tmp_path: Path) -> None:
    """The daemon ships as a zipapp: no file of ours needs to be one on disk."""
    archive = tmp_path / "app.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in Path(sandd.__file__).parent.rglob("*.py"):
            file.write(path, path.relative_to(SELF))
    program = """
import trio
from sandd._core.processes import SpawnRequest, open_process_host
import sandd
assert ".zip" in sandd.__file__
async def main():
    async with open_process_host() as host:
        child = await host.spawn(SpawnRequest(argv=(b"/bin/echo", b"zipped"), env={}, marker=b"m"))
        print((await child.stdout.receive_some()).decode(), end="")
        print(await child.wait_exited())
        await child.release()
trio.run(main)
"""
    outcome = subprocess.run(
        [PYTHON, "-c", program],
        env={**os.environ, "PYTHONPATH": str(archive)},
        cwd=tmp_path,
        capture_output=True,
        check=False,
    )
    assert outcome.stderr == b""
    assert outcome.stdout == b"zipped\nExitStatus(code=0, signal=None)\n"


def test_spawner_prints_nothing_and_ends_with_status_0() -> None:
    """A host's whole life leaves nothing on the daemon's stderr."""
    program = """
import trio
from sandd._core.processes import SpawnRequest, open_process_host
async def main():
    async with open_process_host() as host:
        env = {b"PATH": b"/bin:/usr/bin"}
        child = await host.spawn(SpawnRequest(argv=(b"sleep", b"1000"), env=env, marker=b"m"))
trio.run(main)
"""
    outcome = subprocess.run([PYTHON, "-X", "dev", "-c", program], capture_output=True, check=True)
    assert (outcome.stdout, outcome.stderr) == (b"", b"")


@root_only
def test_tree_with_processes_beyond_our_power_is_given_up() -> None:
    """What has become root's is not ours to kill: kill() returns all the same, and says who lives."""
    if shutil.which("setpriv") is None:
        pytest.skip("needs setpriv(1)")
    program = """
import logging, os, sys, trio
logging.basicConfig(stream=sys.stdout, format="%(message)s")
from sandd._core.processes import ChildLost, SpawnRequest, open_process_host
job = "import os, time; os.setresuid(0, 0, 0); print(os.getpid(), flush=True); time.sleep(1000)"
async def main():
    async with open_process_host() as host:
        argv = (sys.executable.encode(), b"-c", job.encode())
        child = await host.spawn(SpawnRequest(argv=argv, env={}, marker=b"m"))
        print((await child.stdout.receive_some()).decode(), end="", flush=True)
        await child.kill(grace=0)
        try:
            await child.wait_exited()
        except ChildLost as error:
            print("lost", flush=True)
trio.run(main)
"""
    capabilities = "+dac_read_search,+setuid"
    process = subprocess.Popen(
        [
            *("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"),
            *(f"--inh-caps={capabilities}", f"--ambient-caps={capabilities}"),
            *(PYTHON, "-c", program),
        ],
        stdout=subprocess.PIPE,
        cwd=SELF,
    )
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    started = time.monotonic()
    try:
        warning, lost, *_ = process.stdout.read().splitlines()
        process.wait()
        assert b"processes_survived" in warning
        assert str(pid).encode() in warning
        assert lost == b"lost"
        assert time.monotonic() - started < 60  # it sleeps for a thousand
    finally:
        os.kill(pid, signal.SIGKILL)
        process.stdout.close()


@root_only
def test_works_as_process_1_and_reaps_what_falls_to_it() -> None:
    """In a PID namespace of its own: statuses are right and no zombie stays, of jobs or of others."""
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare(1)")
    program = """
import os, subprocess, sys, time, trio
from sandd._core.processes import SpawnRequest, lost_trees, open_process_host
lost_trees.REAP_SECONDS = 0.05
assert os.getpid() == 1
def zombies():
    return [p for p in lost_trees._children() if p.is_dead]
async def run(host, script):
    env = {b"PATH": b"/bin:/usr/bin"}
    child = await host.spawn(SpawnRequest(argv=(b"/bin/sh", b"-c", script), env=env, marker=b"m"))
    status = await child.wait_exited()
    await child.release()
    return status
async def main():
    async with open_process_host() as host:
        own = subprocess.Popen(["sh", "-c", "setsid sh -c 'true & true & sleep 0.1' & exit 5"])
        statuses = [await run(host, b"(setsid true &); exit %d" % n) for n in range(40)]
        assert [s.code for s in statuses] == list(range(40)), statuses
        assert own.wait() == 5
        with trio.fail_after(5):
            await trio.sleep(0.3)
            while zombies():
                await trio.sleep(0.01)
    print("fine")
trio.run(main)
"""
    outcome = subprocess.run(
        # In a session of its own, as a container's process 1 is: by that it knows its own child.
        ["unshare", "--pid", "--fork", "--mount-proc", "setsid", PYTHON, "-c", program],
        capture_output=True,
        cwd=SELF,
        check=False,
    )
    if b"unshare failed" in outcome.stderr:
        pytest.skip("may not make a PID namespace")
    assert outcome.stderr == b""
    assert outcome.stdout == b"fine\n"


async def test_thousands_of_orphans_disturb_nobody() -> None:
    """A job that leaves thousands of dead orphans behind costs no status and no zombie."""
    script = "i=0; while [ $i -lt 2000 ]; do (:&); i=$((i+1)); done; exit 6"
    async with open_process_host() as host:
        spawner = await the_spawner()
        outcome = await run(host, request("/bin/sh", "-c", script))
        assert outcome.status.code == 6
        await until(lambda: _read(f"/proc/{spawner}/task/{spawner}/children") == "")


def _read(path: str) -> str:
    return Path(path).read_text()


# ---- its reports ----------------------------------------------------------------------------------


@pytest.fixture
def spawner(
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[tuple[spawner_module.Spawner, socket.socket]]:
    """One that has not been started, in this process, and the daemon's end of its socket."""
    brand = resource.getrlimit(process_table._RLIMIT_LOCKS)  # which it sets for its children
    ours, theirs = socket.socketpair()
    alarm, ring = os.pipe()
    os.set_blocking(alarm, False)
    monkeypatch.setattr(spawner_module, "_open_child_alarm", lambda: alarm)
    theirs.setblocking(False)
    one = spawner_module.Spawner(theirs, os.getpid())
    with ours, theirs:
        yield one, ours
    os.close(alarm)
    os.close(ring)
    one._readiness.close()
    one._trees._children.close()  # type: ignore[attr-defined]
    if one._daemon_pidfd is not None:
        os.close(one._daemon_pidfd)
    resource.setrlimit(process_table._RLIMIT_LOCKS, brand)


def test_reports_that_a_stopped_daemon_does_not_read_wait(
    spawner: tuple[spawner_module.Spawner, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are kept, the spawner does not block, and once there is room it sends the rest."""
    one, daemon = spawner
    wanted: list[bool] = []
    monkeypatch.setattr(one._readiness, "want_room", lambda _, is_wanted: wanted.append(is_wanted))
    count = 20_000
    for number in range(count):
        one._say(Exited(number, 0, None, True))
    one._flush()
    assert one._outgoing
    assert wanted == [True]
    buffer = bytearray()
    seen: list[int] = []
    while one._outgoing or len(seen) < count:
        buffer += daemon.recv(1 << 16)
        seen += [report.job for report in decode_all(buffer)]  # type: ignore[union-attr]
        one._flush()
    assert seen == list(range(count))
    assert wanted == [True, False]


def test_who_dies_during_a_look_is_looked_for_in_the_next(
    spawner: tuple[spawner_module.Spawner, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its SIGCHLD is all that tells, and a look takes none that came when it had begun."""
    one, _ = spawner
    alarm, ring = os.pipe()
    os.set_blocking(alarm, False)
    monkeypatch.setattr(one, "_child_died", alarm)
    looks = [[(4711, WaitStatus(0, None))], []]

    def look() -> list[tuple[int, WaitStatus]]:
        os.write(ring, b"\0")  # somebody else dies when the others have been looked at
        return looks.pop(0)

    monkeypatch.setattr(one._watch, "ended", look)
    os.write(ring, b"\0")
    one._hear_alarm()
    one._look_after_children(True)
    assert os.read(alarm, 10)
    os.close(alarm)
    os.close(ring)


def test_report_to_a_dead_daemon_ends_the_service(
    spawner: tuple[spawner_module.Spawner, socket.socket],
) -> None:
    """EPIPE is the same as the end of the socket."""
    one, daemon = spawner
    daemon.close()
    one._say(Exited(1, 0, None, True))
    one._flush()
    assert not one._is_linked


def test_what_is_over_when_it_has_begun_is_told_in_the_same_turn(
    spawner: tuple[spawner_module.Spawner, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Start and end go in one report, though no SIGCHLD has been heard of yet."""
    one, daemon = spawner
    real_launch = limit_keeper.launch
    pids: list[int] = []

    def launch(asked: Spawn, env: dict[bytes, bytes], descriptors: list[int]) -> int:
        pid = real_launch(asked, env, descriptors)
        until_sync(lambda: peek(pid) is not None)
        pids.append(pid)
        return pid

    monkeypatch.setattr(limit_keeper, "launch", launch)
    with open(os.devnull, "wb") as output:
        one._start(SPAWN, [output.fileno()])
    one._look_after_children(True)
    (exited,) = decode_all(bytearray(daemon.recv(1 << 16)))
    assert exited[:4] == Exited(7, 3, None, True)[:4]
    assert isinstance(exited, Exited)
    assert exited.started == (pids[0], ())


SPAWN = Spawn(7, (b"/bin/sh", b"-c", b"exit 3"), {}, b"x", None, None, False, True, False, {})


@pytest.mark.parametrize(("count", "goes"), [(1, [1]), (2, [1, 1]), (4, [3, 1]), (14, [11, 2, 1])])
def test_ends_that_one_look_finds_are_told_in_few_goes(
    spawner: tuple[spawner_module.Spawner, socket.socket],
    monkeypatch: pytest.MonkeyPatch,
    count: int,
    goes: list[int],
) -> None:
    """Of a crowd, about ten at a time; the last one by itself, as it is none any more."""
    one, daemon = spawner
    with open(os.devnull, "wb") as output:
        for number in range(count):
            one._start(SPAWN._replace(job=number), [output.fileno()])
    for pid in [*one._by_leader]:
        until_sync(lambda pid=pid: peek(pid) is not None)
    flushes: list[int] = []
    real_flush = one._flush

    def flush() -> None:
        flushes.append(len(decode_all(bytearray(one._outgoing))))
        real_flush()

    monkeypatch.setattr(one, "_flush", flush)
    one._look_after_children(True)
    assert flushes == goes
    told = decode_all(bytearray(daemon.recv(1 << 16)))
    assert sorted(each[0] for each in told) == [*range(count)]
    assert {each[1:4] for each in told} == {(3, None, True)}


@pytest.mark.parametrize(
    ("running", "begun", "seconds", "served"),
    [(0, 0, 0.0, 1), (9, 0, 0.0, 1), (0, 1, 0.0, 8), (9, 2, 0.0, 8), (0, 2, 0.008, 3)],
)
def test_requests_are_served_in_a_row_in_a_crowd_only(
    spawner: tuple[spawner_module.Spawner, socket.socket],
    monkeypatch: pytest.MonkeyPatch,
    running: int,
    begun: int,
    seconds: float,
    served: int,
) -> None:
    """By itself, a command's end is looked for first, whatever else runs on; and a crowd's wait no longer than so."""
    one, daemon = spawner
    one._jobs = {-number: started(-number, 1) for number in range(running + begun)}
    one._held = {number: (1e9, job) for number, job in [*one._jobs.items()][running:]}
    clock = itertools.count()
    slow = SimpleNamespace(monotonic=lambda: 1 + next(clock) * seconds)
    monkeypatch.setattr(spawner_module, "time", slow)

    def serve(request: Spawn, descriptors: list[int], is_complete: bool) -> bool:
        job = one._jobs[request.job] = started(request.job, 1)
        one._held[job.number] = 1e9, job
        for descriptor in descriptors:
            os.close(descriptor)
        return is_complete

    monkeypatch.setattr(one, "_serve_start", serve)
    with open(os.devnull, "wb") as output:
        for number in range(1, 12):
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [output.fileno()]))]
            daemon.sendmsg([encode(SPAWN._replace(job=number), descriptors=1)], rights)
    assert one._serve_requests()
    assert [each for each in one._jobs if each > 0] == [*range(1, served + 1)]


def started(number: int, leader: int) -> spawner_module.Job:
    """A job that runs."""
    return spawner_module.Job(number, Tree(leader, b"marker", 0, None), signal.SIGTERM)


def test_report_of_a_start_waits_for_more_but_nothing_else_does(
    spawner: tuple[spawner_module.Spawner, socket.socket],
) -> None:
    """Held for a millisecond at most; what else is to be told of the same job takes it along, and goes behind it."""
    one, _ = spawner
    before = time.monotonic()
    one._say_later(started(1, 4711), spawner_module.START_REPORT_SECONDS)
    until, _ = one._held[1]
    assert before <= until - spawner_module.START_REPORT_SECONDS <= time.monotonic()
    assert one._seconds_to_next_step(until - 0.0004) == pytest.approx(0.0004)
    one._say_later(started(2, 4712), spawner_module.START_REPORT_SECONDS)
    one._say(Failed(3, 2, "no such file", None))
    one._say(Gone(1, ()))
    told = decode_all(bytearray(one._outgoing))
    assert [(type(each), each[0]) for each in told] == [(Failed, 3), (Started, 1), (Gone, 1)]
    one._release_starts(until)
    assert [*one._held] == [2]
    one._release_starts(until + 1)
    assert one._seconds_to_next_step(until) is None
    assert decode_all(bytearray(one._outgoing))[3:] == [Started(2, 4712)]


def test_report_of_a_start_goes_out_wherever_the_millisecond_ends(
    spawner: tuple[spawner_module.Spawner, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also between two looks at the clock; else a job that prints nothing isn't known until it ends."""
    one, daemon = spawner
    clock = itertools.count()
    slow = SimpleNamespace(
        monotonic=lambda: next(clock) * 0.6 * spawner_module.START_REPORT_SECONDS
    )

    def start() -> bool:
        if one._link.recv(1):
            one._say_later(started(1, 4711), spawner_module.START_REPORT_SECONDS)
        else:
            one._is_linked = False
        return False

    monkeypatch.setattr(one, "_serve_requests", start)
    monkeypatch.setattr(one, "_cull_everything", lambda: None)
    monkeypatch.setattr(spawner_module, "_become_subreaper", lambda: False)
    monkeypatch.setattr(spawner_module, "time", slow)
    service = threading.Thread(target=one.run)
    service.start()
    try:
        daemon.settimeout(5)
        buffer = bytearray(daemon.recv(1 << 16))
        (ready,) = decode_all(buffer)
        assert isinstance(ready, Ready)
        assert ready.group is None
        daemon.send(b"!")
        buffer += daemon.recv(1 << 16)
        assert list(decode_all(buffer)) == [Started(1, 4711)]
    finally:
        daemon.shutdown(socket.SHUT_WR)
        service.join(5)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(2, "x", b"/bin/x"), Failed(1, 2, os.strerror(2), "/bin/x")),
        (OSError(2, "x", b"/cwd"), Failed(1, 2, os.strerror(2), "/cwd")),
        (OSError(1, "x", b"/cwd"), Failed(1, 1, "can't become uid 7", None)),
        (OSError(1, "x"), Failed(1, 1, "can't become uid 7", None)),
        (OSError(1, "x", b"/bin/x"), Failed(1, 1, os.strerror(1), "/bin/x")),
        (ValueError("embedded null byte"), Failed(1, 22, "embedded null byte", None)),
        (MemoryError(), Failed(1, 22, "MemoryError", None)),
    ],
    ids=["program", "cwd", "user, old Python", "user", "setuid program", "nul", "no text"],
)
def test_failures_are_told_apart(error: Exception, expected: Failed) -> None:
    """Popen's errors become errno, text and the name of what was at fault."""
    wanted = Spawn(1, (b"x",), {}, b"m", b"/cwd", (7, 7, ()), True, False, False, None)
    assert spawner_module._failure(wanted, error) == expected
