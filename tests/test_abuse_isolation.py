"""Abuse by a tenant's command of another tenant, and of the daemon, on a machine that they share.

All attempts of one level are made by one script, whose report the tests look at; and each has a control, that what is
tried is possible for whoever may.
"""

from __future__ import annotations

import os
import stat
import sys
import tempfile
from typing import TYPE_CHECKING

import pytest
import trio
from attrs import frozen
from isolation_world import EACH_LEVEL, needs, open_world

if sys.platform == "win32":
    pytest.skip("POSIX only", allow_module_level=True)

from sandd.wire import IsolationLevel

if TYPE_CHECKING:
    from pathlib import Path

SECRET = "the-victims-secret"
ATTEMPTS = r"""
try() { name=$1; shift; if out=$(eval "$*" 2>&1); then echo "$name: yes $out"; else echo "$name: no"; fi; }
try read_file 'cat "$V/secret"'
try read_by_root 'cat "/proc/self/root$V/secret"'
try read_by_their_root 'cat "/proc/$P/root$V/secret"'
try read_by_their_cwd 'cat "/proc/$P/cwd/secret"'
try read_by_link 'ln -sf "$V/secret" link && cat link'
try read_by_dots 'cat "../$(basename "$V")/secret"'
try read_open_file 'cat /proc/$P/fd/9'
try list_workspace 'ls -A "$V"'
try write_file 'echo broken > "$V/secret"'
try new_file 'echo new > "$V/new"'
try replace_workspace 'mv "$V" "$V.old"'
try hard_link 'ln "$V/secret" hard && cat hard'
try environ 'tr "\0" "\n" < /proc/$P/environ | grep .'
try memory 'head -c 1 /proc/$P/mem'
try maps 'head -c 1 /proc/$P/maps'
try kill 'kill -9 $P'
try kill_daemon 'kill -9 $D'
try daemon_environ 'tr "\0" "\n" < /proc/$D/environ | grep .'
try read_state 'cat "$S/tenants.json"'
try list_state 'ls -A "$S" | grep -v workspaces'
try write_state 'echo x > "$S/x"'
try their_temporary 'ls -A "$V/tmp"'
try shadow 'cat /etc/shadow'
try as_root 'test "$(id -u)" = 0'
try other_groups 'id -G | grep " "'
try capabilities 'grep "^Cap[IPEA][a-z]*:" /proc/self/status | grep -v 0000000000000000'
try privileges_by_program 'grep "^NoNewPrivs:.0" /proc/self/status'
try write_system 'echo x > /etc/sandd-abuse || echo x > /usr/sandd-abuse'
try make_namespace 'unshare -m true'
try own_file 'echo mine > mine && cat mine'
try own_temporary 'echo mine > "$TMPDIR/mine" && cat "$TMPDIR/mine"'
try devices 'cat /dev/null && head -c 1 /dev/urandom > /dev/null && echo all'
try own_process 'sleep 60 & kill $! && echo killed'
try own_environ 'tr "\0" "\n" < /proc/$$/environ | grep HOME='
"""
"""V: the victim's workspace, P: its process, D: the daemon, S: its state directory."""

DENIED = [
    *("read_file", "read_by_root", "read_by_their_root", "read_by_their_cwd", "read_by_link"),
    *("read_by_dots", "read_open_file", "list_workspace", "write_file", "new_file"),
    *("replace_workspace", "hard_link", "environ", "memory", "maps", "kill", "kill_daemon"),
    *("daemon_environ", "read_state", "list_state", "write_state", "their_temporary", "shadow"),
    *("as_root", "other_groups", "capabilities", "privileges_by_program", "write_system"),
]
ALLOWED = ["own_file", "own_temporary", "devices", "own_process", "own_environ"]
"""What a command needs; were these denied as well, the rest would say nothing."""


@frozen
class Report:
    """What came of the attempts, and what the victim is like afterwards."""

    attempts: dict[str, str]
    victim_lives: bool
    secret: str
    files: frozenset[str]


async def attempt(level: IsolationLevel, abuser: str = "abuser") -> Report:
    """Have one tenant try all of it on another, or on itself."""
    async with open_world(level) as world:
        victim = world.workspace("victim")
        hold = f"umask 0; echo {SECRET} > secret; exec 9< secret; echo ready; exec sleep 60"
        async with world.running("victim", hold) as child:
            where = {
                "V": victim,
                "P": child.pid,
                "D": os.getpid(),
                "S": world.isolation.workspaces.directory.parent,
            }
            told = "".join(f"{name}='{value}'\n" for name, value in where.items())
            status, output = await world.run(abuser, told + ATTEMPTS)
            assert status.code == 0, output
            lines = [line.partition(": ") for line in output.splitlines() if ": " in line]
            return Report(
                attempts={name: result for name, _, result in lines},
                victim_lives=not child.has_exited,
                secret=secret_of(victim),
                files=frozenset(os.listdir(victim)),
            )


def secret_of(workspace: Path) -> str:
    """What the victim keeps."""
    return (workspace / "secret").read_text().strip()


@pytest.fixture(scope="module", params=EACH_LEVEL)
def report(request: pytest.FixtureRequest, _own_temporary_directory: None) -> Report:
    """Of one level; made once."""
    return trio.run(attempt, request.param)


@pytest.mark.parametrize("name", DENIED)
def test_a_tenant_can_not(report: Report, name: str) -> None:
    """Read, change, signal or trace what is another tenant's, or the daemon's; nor become more than it is."""
    assert report.attempts[name] == "no"


@pytest.mark.parametrize("name", ALLOWED)
def test_a_tenant_can(report: Report, name: str) -> None:
    """What is its own is open to it, so the attempts that fail have failed for want of a right."""
    assert report.attempts[name].startswith("yes ")


@needs(IsolationLevel.USER)
async def test_who_tries_it_on_itself_can() -> None:
    """So these attempts fail for whose process it is, and for nothing else."""
    report = await attempt(IsolationLevel.USER, "victim")
    own = ["read_file", "read_by_root", "read_by_their_root", "read_by_their_cwd", "read_by_link"]
    own += ["read_by_dots", "read_open_file", "list_workspace", "write_file", "new_file"]
    own += ["environ", "maps", "kill", "their_temporary", "hard_link"]
    assert {name: report.attempts[name].split(" ")[0] for name in own} == dict.fromkeys(own, "yes")
    assert not report.victim_lives


def test_the_victim_notices_nothing(report: Report) -> None:
    """Its process goes on, and its files are as they were."""
    assert (report.victim_lives, report.secret) == (True, SECRET)
    assert report.files == {"secret", "tmp"}


@pytest.mark.parametrize("level", EACH_LEVEL[1:])
async def test_writes_end_at_the_workspace(level: IsolationLevel) -> None:
    """From Landlock on nothing outside is written, where everybody may write, /tmp and /dev/shm included."""
    text = "for each in /tmp /var/tmp /dev/shm; do echo x > $each/sandd-abuse-$$ 2>/dev/null; done; echo $$"
    async with open_world(level) as world:
        _, output = await world.run("abuser", text)
    name = f"sandd-abuse-{output.strip()}"
    assert not any(name in os.listdir(each) for each in ("/tmp", "/var/tmp", "/dev/shm"))


@pytest.mark.parametrize("level", EACH_LEVEL[1:])
async def test_abstract_sockets_of_others_are_out_of_reach(level: IsolationLevel) -> None:
    """They have no file whose mode would keep a tenant out: Landlock does, where it has scopes."""
    pytest.importorskip("sandd._core.processes.landlock")
    from sandd._core.processes import landlock

    if landlock.version() < landlock.SCOPES_VERSION:
        pytest.skip("this kernel's Landlock has no scopes")
    name = f"sandd-abuse-{os.getpid()}-{level}"
    listen = f"""exec /usr/bin/python3 -c '
import socket, time
one = socket.socket(socket.AF_UNIX); one.bind("\\0{name}"); one.listen(); print("ready", flush=True)
one.accept(); print("reached", flush=True); time.sleep(60)'"""
    connect = f"""/usr/bin/python3 -c '
import socket
socket.socket(socket.AF_UNIX).connect("\\0{name}")'"""
    async with open_world(level) as world, world.running("victim", listen):
        status, output = await world.run("abuser", connect)
        assert (status.code, "PermissionError" in output) == (1, True), output


@pytest.mark.parametrize("level", EACH_LEVEL)
async def test_nobody_is_traced(level: IsolationLevel) -> None:
    """ptrace(2) of another tenant's process, and of the daemon's, fails; of one's own child it doesn't."""
    text = """exec /usr/bin/python3 -c '
import ctypes, os, sys, time
libc = ctypes.CDLL(None, use_errno=True)
child = os.fork()
if not child:
    time.sleep(60)
for pid in (int(sys.argv[1]), int(sys.argv[2]), child):
    print(libc.ptrace(16, pid, 0, 0), flush=True)
os.kill(child, 9)' """
    async with open_world(level) as world, world.running("victim", "echo; exec sleep 60") as child:
        _, output = await world.run("abuser", f"{text} {child.pid} {os.getpid()}")
    assert output.split() == ["-1", "-1", "0"]


@needs(IsolationLevel.BWRAP)
async def test_bubblewrap_shows_nobody_else() -> None:
    """Neither files beside the system's nor processes beside its own are there to be seen."""
    async with open_world(IsolationLevel.BWRAP) as world:
        async with world.running("victim", "echo; exec sleep 60"):
            text = "ls /; echo /proc/[0-9]* | wc -w; ls -A /tmp; ls /root /home /var /run"
            _, output = await world.run("abuser", text)
            elsewhere = world.workspace("victim")
            assert await world.run("abuser", f"test -e {elsewhere}") == (
                await world.run("abuser", "false")
            )
    words = output.split()
    assert not {"root", "home", "srv", "boot"} & set(words)
    assert int(next(each for each in words if each.isdigit())) < 10


@needs(IsolationLevel.BWRAP)
async def test_what_confines_a_job_is_not_told_what_to_load() -> None:
    """A client's environment is that of its program, and not of bubblewrap, which is still outside; nor is it shown."""
    with tempfile.TemporaryDirectory(prefix="loaded-", dir="/tmp") as outside:
        os.chmod(outside, 0o777)
        env = {
            b"LD_DEBUG": b"files",
            b"LD_DEBUG_OUTPUT": os.fsencode(outside) + b"/by",
            b"GCONV_PATH": b"a-value-of-mine",
        }
        text = f"mkdir -p {outside}; ls -l /proc/self/fd; ls {outside}; cat /proc/[0-9]*/cmdline | tr '\\0' ' '; env"
        async with open_world(IsolationLevel.BWRAP) as world:
            status, output = await world.run("tenant", text, env=env)
        assert status.code == 0, output
        assert os.listdir(outside) == []
    assert "by." in output  # the loader of what runs inside has heard it
    assert output.count("a-value-of-mine") == 1
    assert "memfd" not in output


@needs(IsolationLevel.BWRAP)
async def test_a_link_in_place_of_tmp_shows_nothing() -> None:
    """At bubblewrap's level: what a tenant makes of its own directory decides nothing of what jobs see there."""
    with tempfile.TemporaryDirectory(prefix="elsewhere-", dir="/var/tmp") as elsewhere:
        os.chmod(elsewhere, 0o777)
        async with open_world(IsolationLevel.BWRAP) as world:
            status, output = await world.run(
                "tenant", f'rm -rf "$TMPDIR" && ln -s {elsewhere} "$TMPDIR"'
            )
            assert status.code == 0, output
            status, output = await world.run("tenant", "echo escaped > /tmp/file && cat /tmp/file")
        assert (status.code, output) == (0, "escaped\n")
        assert os.listdir(elsewhere) == []


@pytest.mark.parametrize("level", EACH_LEVEL)
async def test_nothing_survives_a_kill(level: IsolationLevel) -> None:
    """What has left its session, its parent and its environment is found, at every level."""
    text = """
    for each in 1 2 3; do
        (setsid env -i /bin/sh -c 'trap "" HUP TERM INT; (sleep 6543 &) ; exec sleep 6543' &)
    done
    echo ready; exec sleep 6543"""
    async with open_world(level) as world:
        child = await world.start("abuser", "/bin/sh", "-c", text)
        await child.stdout.receive_some()
        uid = world.isolation.workspaces.open("abuser").uid
        assert uid is not None
        while len(processes_of(uid)) < 4:
            await trio.sleep(0.01)
        child.close_pipes()
        await child.kill(grace=0)
        assert processes_of(uid) == []


def processes_of(uid: int) -> list[str]:
    """The command lines of all that run as that user."""
    found = []
    for name in filter(str.isdecimal, os.listdir("/proc")):
        try:
            if os.stat(f"/proc/{name}").st_uid == uid:
                with open(f"/proc/{name}/cmdline", "rb") as file:
                    line = file.read()
                if line:  # else it is a zombie
                    found.append(line.decode())
        except OSError:
            continue
    return found


@pytest.mark.parametrize("level", EACH_LEVEL)
async def test_a_workspace_is_its_tenants_alone(level: IsolationLevel) -> None:
    """Its mode and owner say so, and so does what is made there; tenants have a user each, and keep it."""
    async with open_world(level) as world:
        first, second = (world.isolation.workspaces.open(each) for each in ("a", "b"))
        assert first.uid != second.uid
        await world.run("a", "echo x > file; mkdir directory")
        for path, mode in ((first.path, 0o700), (first.path / "file", 0o600)):
            status = path.stat()
            assert (stat.S_IMODE(status.st_mode), status.st_uid) == (mode, first.uid)
