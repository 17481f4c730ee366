"""A daemon that is held to a policy, and whoever tries to get around that.

The abuse is tried on running daemons. Where it is the lock that holds, the kernel has to have one.
"""

from __future__ import annotations

import errno
import hashlib
import os
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio
from daemons import daemon_environment, open_daemon
from forked_python import copies
from process_tools import read_all, root_only
from trusted_files import trusted_directory, write_program

if sys.platform == "win32":
    pytest.skip("no daemon is held to a policy there", allow_module_level=True)

import sandd
from sandd import wire
from sandd._core.job import Job
from sandd._core.policy import gate as gate_module
from sandd._core.policy.gate import PolicyGate, open_gate
from sandd._core.policy.permits import Permit
from sandd._core.policy.reading import read_policy
from sandd._core.policy.rules import Argument, Literal, Policy, Rule
from sandd._core.processes import exec_lock, open_process_host

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from daemons import DaemonProcess

needs_lock = pytest.mark.skipif(
    exec_lock.unavailable() is not None, reason=f"no exec lock here: {exec_lock.unavailable()}"
)
HEAD = "version = 1\n"
ECHO, CAT, FALSE = (Path(f"/bin/{name}").read_bytes() for name in ("echo", "cat", "false"))
ANY = '[{ regex = "(?:.|\\n)*+", at_least = 0, at_most = 9 }]'


def rule(name: str, exe: str, argv: str = ANY, **options: object) -> str:
    """A rule's text; what is forced is what a careless author would write."""
    lines = [f"name = {name!r}", f"exe = {exe!r}", f"argv = {argv}"]
    lines += [f"{key} = {value}" for key, value in options.items()]
    return "[[rule]]\n" + "\n".join(lines) + "\n"


@asynccontextmanager
async def held_to(
    policy: str, home: Path, *, controllers: Path | None = None
) -> AsyncIterator[tuple[sandd.Daemon, DaemonProcess]]:
    """A daemon under the policy of that text."""
    file = home / "policy.toml"
    file.write_text(HEAD + policy)
    async with sandd.open_controller(port=0, policy=controllers) as controller:
        async with open_daemon(controller.url, arguments=["--policy", str(file)]) as process:
            with trio.fail_after(60):
                yield await controller.wait_for_daemon("worker-1"), process


async def deny(daemon: sandd.Daemon, command: Any, **options: Any) -> sandd.PolicyDenied:
    """What is raised for a command that is denied."""
    with pytest.raises(sandd.PolicyDenied) as caught:
        await daemon.run(command, **options)
    return caught.value


# ---- what is asked for --------------------------------------------------------------------------


async def test_what_no_rule_names_never_runs(tmp_path: Path) -> None:
    """Shell strings, terminals, other users, variables; and what is allowed runs among them."""
    text = rule("echo", "/bin/echo", '[{ regex = "[a-z]+" }]', env_allow='["CI"]')
    async with held_to(text, tmp_path) as (daemon, _):
        digest = read_policy((HEAD + text).encode(), name="").hash
        result = await daemon.run(["echo", "hi"], env={"CI": "1"})
        assert (result.exit_code, result.stdout) == (0, "hi\n")
        denied = await deny(daemon, "echo hi")
        assert denied.policy_hash == digest
        assert digest in str(denied)
        assert "a-z" not in str(denied)
        assert isinstance(denied, sandd.RequestRefused)
        await deny(daemon, ["echo", "HI"])
        await deny(daemon, ["/bin/sh", "-c", "echo hi"])
        await deny(daemon, ["echo", "hi"], user="root")
        await deny(daemon, ["echo", "hi"], cwd="/")
        for name in ("LD_PRELOAD", "PATH", "GIT_CONFIG_COUNT", "BASH_ENV", "TAR_OPTIONS", "ci"):
            await deny(daemon, ["echo", "hi"], env={name: "x"})
        with pytest.raises(sandd.PolicyDenied):
            async with daemon.open_session(["echo", "hi"]):
                pytest.fail("there is a terminal")
        with pytest.raises(sandd.PolicyDenied):
            async with daemon.open_process(["echo"]):
                pytest.fail("there is a process")
        assert (await daemon.run(["echo", "on"])).stdout == "on\n"


async def test_a_rule_and_its_policy_limit_what_they_allow(tmp_path: Path) -> None:
    """Whatever is asked for; by the daemon's policy and by the controller's, of each limit the least."""
    mine = "limits = { wall = 50 }\n" + rule(
        "sleep", "/bin/sleep", limits="{ wall = 40, nice = 7 }"
    )
    (tmp_path / "theirs.toml").write_text(
        HEAD + rule("sleep", "/bin/sleep", limits="{ wall = 0.2, open_files = 99 }")
    )
    async with held_to(mine, tmp_path, controllers=tmp_path / "theirs.toml") as (daemon, _):
        result = await daemon.run(["sleep", "100"], limits=sandd.Limits(wall=30.0, nice=3))
        assert result.limits == sandd.Limits(wall=0.2, nice=7, open_files=99)
        assert result.limit == "wall"


async def test_little_of_the_daemons_environment_passes(tmp_path: Path) -> None:
    """And PATH is the policy's; what a rule sets itself is set."""
    text = rule("env", "/usr/bin/env", "[]", env='{ GIT_CONFIG_NOSYSTEM = "1" }', force="true")
    async with held_to('path = "/bin"\n' + text, tmp_path) as (daemon, _):
        lines = (await daemon.run(["/usr/bin/env"])).stdout.splitlines()
        variables = dict(line.split("=", 1) for line in lines)
    assert variables["PATH"] == "/bin"
    assert variables["GIT_CONFIG_NOSYSTEM"] == "1"
    assert not [name for name in variables if name.startswith(("PYTHON", "LD_"))]
    assert {*variables} <= {
        *("PATH", "GIT_CONFIG_NOSYSTEM", "SANDD_JOB", "HOME", "USER", "LOGNAME", "SHELL"),
        *("LANG", "LANGUAGE", "TZ", "TMPDIR"),
        *(name for name in variables if name.startswith("LC_")),
    }


async def test_files_are_reached_where_they_are_granted_and_not_through_links(
    tmp_path: Path,
) -> None:
    """Neither by names nor by links, whoever made them; nor are transfers another way."""
    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir()
    outside.mkdir()
    (outside / "secret").write_text("s")
    (inside / "link").symlink_to(outside)
    (inside / "proc").symlink_to("/proc/self/root")
    text = f'[files]\nread = ["{tmp_path}/in"]\nwrite = ["{tmp_path}/in/w"]\n'
    (inside / "w").mkdir()
    async with held_to(text, tmp_path) as (daemon, _):
        await daemon.path(inside / "w" / "a").write_text("A")
        assert await daemon.path(inside / "w" / "a").read_text() == "A"
        assert (await daemon.download(inside / "w", tmp_path / "copy")).files == 1
        for path in (outside / "secret", inside / ".." / "out" / "secret", Path("in") / "w" / "a"):
            with pytest.raises(sandd.PolicyDenied):
                await daemon.path(path).read_text()
        for path in (inside / "link" / "secret", inside / "proc" / "etc" / "passwd"):
            with pytest.raises(PermissionError):
                await daemon.path(path).read_text()
        await daemon.path(inside / "w" / "new").symlink_to(str(outside))
        with pytest.raises(PermissionError):
            await daemon.path(inside / "w" / "new" / "x").write_text("X")
        with pytest.raises(PermissionError):
            await daemon.upload(inside / "w" / "a", inside / "w" / "new" / "y")
        with pytest.raises(sandd.PolicyDenied):
            await daemon.upload(inside / "w" / "a", inside / "b")
        with pytest.raises(sandd.PolicyDenied):
            await daemon.path(inside / "w" / "a").rename(inside / "a")
    assert sorted(path.name for path in outside.iterdir()) == ["secret"]
    assert not (inside / "a").exists()


async def test_ports_are_reached_where_they_are_granted(tmp_path: Path) -> None:
    """Neither forwards nor reverse ports are there without leave."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    text = f'[ports]\nconnect = ["127.0.0.1:{port}"]\n'
    async with listener, held_to(text, tmp_path) as (daemon, _):
        async with await daemon.open_tcp_stream("127.0.0.1", port) as stream:
            accepted = await listener.accept()
            await accepted.send_all(b"hello")
            assert await stream.receive_some(5) == b"hello"
            await accepted.aclose()
        for host, number in (("localhost", port), ("127.0.0.1", 1)):
            with pytest.raises(sandd.PolicyDenied):
                await daemon.open_tcp_stream(host, number)
        with pytest.raises(sandd.PolicyDenied):
            async with daemon.reverse_port(port):
                pytest.fail("it listens")


# ---- what the disk makes of it ------------------------------------------------------------------


@root_only
async def test_links_lead_no_command_elsewhere(tmp_path: Path) -> None:
    """A working directory or a path that is another by its links, or by what /proc is to somebody else."""
    work, outside = tmp_path / "work", tmp_path / "outside"
    work.mkdir()
    outside.mkdir()
    (outside / "secret").write_text("secret")
    (work / "fine").write_text("fine")
    (work / "link").symlink_to(outside)
    (work / "self").symlink_to("/proc/self/cwd")
    (work / "root").symlink_to("/proc/self/root")
    (work / "back").symlink_to(f"/proc/self/root{work}")
    text = rule("cat", "/bin/cat", f'[{{ beneath = "{work}" }}]', cwd_beneath=f'["{work}"]')
    text += rule("pwd", "/bin/pwd", "[]", cwd_beneath=f'["{work}"]')
    async with held_to(text, tmp_path) as (daemon, _):
        assert (await daemon.run(["cat", "fine"], cwd=str(work))).stdout == "fine"
        assert (await daemon.run(["cat", str(work / "none")])).exit_code == 1
        await deny(daemon, ["cat", str(work / "link" / "secret")])
        await deny(daemon, ["cat", f"{work}{outside}/secret".replace("work", "work/root", 1)])
        await deny(daemon, ["cat", "link/secret"], cwd=str(work))
        await deny(daemon, ["cat", "secret"], cwd=str(work / "link"))
        await deny(daemon, ["cat", "self/fine"], cwd=str(work))
        await deny(daemon, ["cat", "back/fine"], cwd=str(work))
        assert (await daemon.run(["pwd"], cwd=str(work))).stdout == f"{work}\n"
        for elsewhere in ("link", "root", "self", "back"):
            await deny(daemon, ["pwd"], cwd=str(work / elsewhere))
        await deny(daemon, ["cat", "../outside/secret"], cwd=str(work))
        await deny(daemon, ["cat", "fine"], cwd=str(work / "missing"))


@root_only
async def test_a_program_that_others_may_replace_is_not_run(tmp_path: Path) -> None:
    """Itself, a directory above it, its hash; and the daemon's log says which."""
    with trusted_directory() as directory:
        good = write_program(directory / "good", ECHO)
        theirs = write_program(directory / "theirs", ECHO)
        os.chown(theirs, 65534, 65534)
        (directory / "open").mkdir()
        (directory / "open").chmod(0o777)
        loose = write_program(directory / "open" / "loose", ECHO)
        script = write_program(directory / "script", f"#!{loose}\n")
        nobody = '"nobody"'
        text = (
            rule("good", str(good), user=nobody)
            + rule("theirs", str(theirs), user=nobody)
            + rule("loose", str(loose), user=nobody)
            + rule("script", str(script), user=nobody)
            + rule("hash", str(good), '["hash"]', sha256=f'"{"0" * 64}"').replace("'hash'", "'h'")
        )
        async with held_to(text, tmp_path) as (daemon, process):
            assert (await daemon.run([str(good), "hi"])).stdout == "hi\n"
            for program in (theirs, loose, script):
                await deny(daemon, [str(program), "hi"])
            good.chmod(0o777)
            await deny(daemon, [str(good), "hi"])
            assert process.log.count("may be changed by who runs it") == 4


@root_only
async def test_a_program_with_another_hash_is_not_run(tmp_path: Path) -> None:
    """Nor the next time, once it is another, though its path and its size are the same."""
    with trusted_directory() as directory:
        program = write_program(directory / "x", "#!/bin/sh\necho one\n")
        digest = hashlib.sha256(b"#!/bin/sh\necho one\n").hexdigest()
        text = rule("x", str(program), sha256=f'"{digest}"')
        async with held_to(text, tmp_path) as (daemon, process):
            assert (await daemon.run([str(program)])).stdout == "one\n"
            program.write_text("#!/bin/sh\necho two\n")
            await deny(daemon, [str(program)])
            assert "does not have the sha256" in process.log


@root_only
async def test_a_program_that_is_swapped_after_the_check_does_not_run() -> None:
    """What was looked at is open by then, and that is what is executed; so is the directory."""
    with trusted_directory() as directory:
        program = write_program(directory / "x", CAT)
        work, other = directory / "work", directory / "other"
        for each in (work, other):
            each.mkdir()
            (each / "checked").write_text(f"in {each.name}")
        spec = wire.CommandSpec((os.fsencode(program), b"checked"), cwd=os.fsencode(work))
        argv = (Argument(Literal("checked")),)
        gate = open_gate(Policy((Rule("x", str(program), argv, cwd_beneath=(str(work),)),)))
        job = Job(("default", "j"), b"", spec, None)
        async with open_process_host() as host:
            with Permit() as permit:
                request = gate.check(job, spec, "i", permit)
                write_program(directory / "y", FALSE).rename(program)
                work.rename(directory / "away")
                other.rename(work)
                child = await host.spawn(request)
            assert await read_all(child.stdout) == b"in work"
            assert (await child.wait_exited()).code == 0
            child.close_pipes()
            await child.release()


async def test_a_policy_that_a_controller_widens_opens_no_daemon(tmp_path: Path) -> None:
    """Both have to allow it, and who asks can tell whose it was."""
    wide, narrow = tmp_path / "wide.toml", rule("echo", "/bin/echo", '["a"]')
    wide.write_text(
        HEAD + rule("echo", "/bin/echo", '[{ regex = "[ab]" }]') + rule("id", "/bin/id")
    )
    async with held_to(narrow, tmp_path, controllers=wide) as (daemon, _):
        assert (await daemon.run(["echo", "a"])).stdout == "a\n"
        daemons_own = read_policy((HEAD + narrow).encode(), name="").hash
        controllers = read_policy(wide.read_bytes(), name="").hash
        assert (await deny(daemon, ["echo", "b"])).policy_hash == daemons_own
        assert (await deny(daemon, ["/bin/id"])).policy_hash == daemons_own
        assert (await deny(daemon, ["echo", "c"])).policy_hash == controllers


# ---- what programs can be made to do ------------------------------------------------------------


@needs_lock
@root_only
@pytest.mark.parametrize("locked", [True, False], ids=["locked", "unlocked"])
async def test_no_program_is_made_to_start_another_under_the_lock(
    locked: bool, tmp_path: Path
) -> None:
    """By its options, its settings or its input: careless rules are held by the lock, and by nothing else."""
    work = tmp_path / "work"
    work.mkdir()
    mark = work / "mark"
    hook = write_program(work / "hook", f"#!/bin/sh\n/usr/bin/touch {mark}\n")
    (work / "list").write_text("x")
    git = ["git", "-C", str(work)]
    await trio.run_process([*git, "init", "-q"])
    await trio.run_process([*git, "config", "core.fsmonitor", str(hook)])
    head = 'exec_lock = "required"\n' if locked else 'exec_lock = "off"\n'
    names = ["/usr/bin/git", "/usr/bin/find", "/bin/tar", "/usr/bin/env", "/usr/bin/xargs"]
    rules = [rule(Path(exe).name, exe, cwd_beneath=f'["{work}"]', force="true") for exe in names]
    commands: list[list[str]] = [
        ["git", "status"],
        ["git", "-c", f"core.pager={hook}", "-c", "pager.status=true", "status"],
        ["git", "-c", f"alias.x=!{hook}", "x"],
        ["find", "list", "-exec", str(hook), ";"],
        ["tar", "-cf", "/dev/null", "--checkpoint=1", f"--checkpoint-action=exec={hook}", "list"],
        ["tar", "-cf", "out", "-I", f"{hook}", "list"],
        ["tar", "-cf", "out", "-I", f"/lib64/ld-linux-x86-64.so.2 /usr/bin/touch {mark}", "list"],
        ["env", str(hook)],
        ["env", "-S", str(hook)],
        ["xargs", "-a", "list", str(hook)],
        ["env", "/lib64/ld-linux-x86-64.so.2", "/usr/bin/touch", str(mark)],
    ]
    harmless = [["git", "-c", f"core.pager={hook}", "-c", "pager.status=true", "status"]]
    async with held_to(head + "".join(rules), tmp_path) as (daemon, _):
        for command in commands:
            mark.unlink(missing_ok=True)
            await daemon.run(command, cwd=str(work), timeout=30)
            if locked:
                assert not mark.exists(), command
            elif command not in harmless:
                assert mark.exists(), command
        if locked:
            result = await daemon.run(
                ["git", "-c", "core.fsmonitor=", "status", "-s"], cwd=str(work)
            )
            assert result.exit_code == 0
            assert "hook" in result.stdout


@needs_lock
async def test_a_program_may_start_what_its_rule_names(tmp_path: Path) -> None:
    """And what that starts is under the same lock."""
    text = rule("env", "/usr/bin/env", may_start='["/bin/echo", "/usr/bin/env"]', force="true")
    async with held_to('exec_lock = "required"\n' + text, tmp_path) as (daemon, _):
        assert (await daemon.run(["/usr/bin/env", "/bin/echo", "hi"])).stdout == "hi\n"
        nested = ["/usr/bin/env", "/usr/bin/env", "/usr/bin/id"]
        result = await daemon.run(nested)
        assert result.exit_code == 126
        assert "denied" in result.stderr


@needs_lock
async def test_a_terminal_and_input_are_as_ever_under_the_lock(tmp_path: Path) -> None:
    """The program leads its session, has the terminal, and gets what is typed."""
    text = rule("cat", "/bin/cat", "[]", pty="true") + rule("tty", "/usr/bin/tty", "[]", pty="true")
    async with held_to('exec_lock = "required"\n' + text, tmp_path) as (daemon, _):
        result = await daemon.run(["/bin/cat"], input=b"through")
        assert result.stdout == "through"
        async with daemon.open_session(["/usr/bin/tty"]) as session:
            with trio.fail_after(30):
                shown = b"".join([chunk async for chunk in session])
        assert shown.startswith(b"/dev/")


# ---- the daemon's start -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "part"),
    [
        pytest.param("version = 1\nx = 1", "there is no 'x'", id="no-policy"),
        pytest.param(HEAD + rule("sh", "/bin/sh"), "runs whatever it is told", id="interpreter"),
        pytest.param(HEAD + '[files]\nwrite = ["/usr"]', "programs", id="writable-programs"),
    ],
)
async def test_an_unsafe_policy_starts_no_daemon(text: str, part: str, tmp_path: Path) -> None:
    """It says in one line why, and exits with 2."""
    assert part in await start_with(tmp_path, text)


@pytest.mark.parametrize("mode", [0o602, 0o620])
async def test_a_policy_that_others_may_write_starts_no_daemon(mode: int, tmp_path: Path) -> None:
    """Everybody, or a group."""
    if mode == 0o620 and os.getegid() == 0:
        assert os.geteuid() == 0
        os.chown(tmp_path, 0, 65534)
    assert "may be written by" in await start_with(tmp_path, HEAD, mode=mode, group=65534)


@root_only
async def test_a_policy_of_somebody_else_starts_no_daemon(tmp_path: Path) -> None:
    """Though it can be read; root's and the daemon's own are taken."""
    assert "belongs to user 65534" in await start_with(tmp_path, HEAD, owner=65534)


async def start_with(
    home: Path, text: str, *, mode: int = 0o644, owner: int = -1, group: int = -1
) -> str:
    """What a daemon says that is not started."""
    file = home / "policy.toml"
    file.write_text(text)
    if os.geteuid() == 0:
        os.chown(file, owner, group)
    file.chmod(mode)
    command = [sys.executable, "-m", "sandd.daemon", "-s", "ws://127.0.0.1:1/ws"]
    command += ["--state-dir", str(home / "state"), "--policy", str(file)]
    with copies():
        done = await trio.run_process(
            command, env=daemon_environment(), capture_stderr=True, check=False
        )
    said = done.stderr.decode()
    assert done.returncode == 2, said
    return said


def test_a_lock_that_is_required_has_to_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without one starts no daemon; where it is asked for only if there is one, it does without."""
    monkeypatch.setattr(exec_lock, "unavailable", lambda: "it is too old")
    head = HEAD + rule("echo", "/bin/echo")
    required = read_policy(('exec_lock = "required"\n' + head).encode(), name="p")
    with pytest.raises(sandd.ConfigurationError, match="it is too old"):
        open_gate(required)
    assert not open_gate(read_policy(head.encode(), name="p")).locks


async def test_the_root_and_the_policy_have_to_agree(tmp_path: Path) -> None:
    """A grant outside of --root would be one that is none."""
    with pytest.raises(sandd.ConfigurationError, match="not beneath --root"):
        await run_with_root(tmp_path)


async def run_with_root(home: Path) -> None:
    """What a daemon does with a --root beside the policy's grants."""
    from sandd._core.daemon_options import DaemonOptions
    from sandd._core.daemon_program import run_daemon

    file = home / "policy.toml"
    file.write_text(HEAD + '[files]\nread = ["/etc"]')
    (home / "root").mkdir()
    options = DaemonOptions(
        "ws://127.0.0.1:1/ws", state_dir=home / "state", root=home / "root", policy=file
    )
    await run_daemon(options, version="1", stop_requested=lambda: True)


# ---- the check itself ---------------------------------------------------------------------------


def test_descriptors_that_are_short_are_no_denial(monkeypatch: pytest.MonkeyPatch) -> None:
    """They may be there a moment later: the start is tried again, as without a policy."""

    def none_left(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    gate = PolicyGate(Policy((Rule("x", "/bin/echo"),)), locks=False)
    monkeypatch.setattr(gate_module, "open_executable", none_left)
    spec = wire.CommandSpec((b"/bin/echo",))
    with Permit() as permit, pytest.raises(sandd.SpawnFailed) as caught:
        gate.check(Job(("default", "j"), b"", spec, None), spec, "i", permit)
    assert caught.value.errno == errno.EMFILE


def test_what_a_forsaken_check_opens_is_closed() -> None:
    """Its job was ended, and nobody waits for its thread, which goes on."""
    permit = Permit()
    first = permit.hold(os.open("/", os.O_RDONLY))
    permit.close()
    late = os.open("/", os.O_RDONLY)
    with pytest.raises(OSError, match="nobody waits"):
        permit.hold(late)
    for descriptor in (first, late):
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(descriptor)
    permit.close()
