"""A controller's policies: which apply to whom, and when what their files say is in force."""

from __future__ import annotations

import errno
import os
import sys
from typing import TYPE_CHECKING

import pytest
import trio
from controllers import running_controller
from daemons import open_daemon

import sandd
import sandd.aio
from sandd import wire
from sandd._core.limits import NO_LIMITS, Limits
from sandd._core.policy.tenants import TenantPolicies
from sandd.testing import open_fault_proxy

if TYPE_CHECKING:
    from pathlib import Path

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="SIGHUP, modes of files")


def write(path: Path, *words: str) -> Path:
    """A policy that lets these words be echoed."""
    regex = "|".join(words)
    path.parent.mkdir(exist_ok=True)
    path.write_text(
        f"version = 1\n[[rule]]\nname = 'r'\nexe = '/bin/echo'\nargv = [{{ regex = '{regex}' }}]\n"
    )
    return path


def refused(policies: TenantPolicies, tenant: str, word: str) -> str | None:
    """The hash of the policy by which a tenant may not echo a word."""
    spec = wire.encode_spec(wire.CommandSpec((b"/bin/echo", word.encode())))
    refusal = policies.judge(tenant, wire.Attach("d", "j", "c", spec=spec))
    return None if refusal is None else refusal.policy_hash


def test_a_tenant_is_held_to_everybodys_policy_and_to_its_own(tmp_path: Path) -> None:
    """Its own narrows the other; who has none is held to everybody's alone."""
    directory = tmp_path / "policy"
    write(directory / "one.toml", "a", "c")
    policies = TenantPolicies(file=write(tmp_path / "all.toml", "a", "b"), directory=directory)
    assert policies.of("one") == ()  # nothing is read yet
    policies.read()
    hashes = policies.hashes
    assert {*hashes} == {"*", "one"}
    assert [refused(policies, "one", word) for word in "abc"] == [None, hashes["one"], hashes["*"]]
    assert [refused(policies, "two", word) for word in "abc"] == [None, None, hashes["*"]]


def test_a_tenant_has_the_limits_of_all_its_policies_and_of_the_rules_that_fit(
    tmp_path: Path,
) -> None:
    """The least of each; of a rule that doesn't fit there is none."""
    rule = "[[rule]]\nname = '{0}'\nexe = '/bin/{0}'\nargv = []\nlimits = {{ processes = {1}, memory = '{1}M' }}\n"
    directory = tmp_path / "policy"
    directory.mkdir()
    (directory / "one.toml").write_text(
        "version = 1\nlimits = { wall = 60 }\n" + rule.format("true", 5) + rule.format("false", 9)
    )
    (tmp_path / "all.toml").write_text(
        "version = 1\n" + rule.format("true", 7) + rule.format("false", 6)
    )
    policies = TenantPolicies(file=tmp_path / "all.toml", directory=directory)

    def limits(tenant: str, program: str) -> Limits:
        spec = wire.encode_spec(wire.CommandSpec((program.encode(),)))
        return policies.limits(tenant, wire.Attach("d", "j", "c", spec=spec))

    assert limits("one", "/bin/true") == NO_LIMITS
    policies.read()
    mib = 1 << 20
    assert limits("one", "/bin/true") == Limits(processes=5, memory_bytes=5 * mib, wall=60)
    assert limits("one", "/bin/false") == Limits(processes=6, memory_bytes=6 * mib, wall=60)
    assert limits("two", "/bin/true") == Limits(processes=7, memory_bytes=7 * mib)


def test_a_tenant_has_the_isolation_of_all_its_policies(tmp_path: Path) -> None:
    """The most that one of them asks for; without any, nothing is asked for."""
    directory = tmp_path / "policy"
    directory.mkdir()
    (directory / "one.toml").write_text("version = 1\nisolation = 'bwrap'\n")
    (directory / "two.toml").write_text("version = 1\nisolation = 'none'\n")
    (tmp_path / "all.toml").write_text("version = 1\nisolation = 'user'\n")
    policies = TenantPolicies(file=tmp_path / "all.toml", directory=directory)
    assert policies.isolation("one") is wire.IsolationLevel.NONE
    policies.read()
    assert [policies.isolation(each) for each in ("one", "two", "three")] == [
        *(wire.IsolationLevel.BWRAP, wire.IsolationLevel.USER, wire.IsolationLevel.USER)
    ]


def test_a_directory_that_cannot_be_read_lets_nothing_be_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was in force still is; it isn't taken for one without policies."""
    directory = tmp_path / "policy"
    write(directory / "one.toml", "a")
    policies = TenantPolicies(directory=directory)
    policies.read()

    def deny(path: object = ".") -> list[str]:
        raise PermissionError(errno.EACCES, "Permission denied", path)

    # Whoever tests as root may read everything.
    monkeypatch.setattr(os, "listdir", deny)
    monkeypatch.setattr(os, "scandir", deny)
    with pytest.raises(sandd.ConfigurationError, match=r"can't list .*: Permission denied"):
        policies.read()
    assert refused(policies, "one", "b") == policies.hashes["one"]


def test_without_files_all_is_allowed(tmp_path: Path) -> None:
    """Also where there is no directory of policies."""
    policies = TenantPolicies(directory=tmp_path / "none")
    policies.read()
    assert policies.hashes == {}
    assert refused(policies, "one", "a") is None


@pytest.mark.parametrize(
    ("text", "part"),
    [
        pytest.param("version = 2", "version must be 1", id="no-policy"),
        pytest.param(
            "version = 1\n[[rule]]\nname = 'r'\nexe = '/bin/sh'\nargv = []",
            "is refused",
            id="unsafe",
        ),
        pytest.param(None, "Is a directory" if sys.platform != "win32" else "", id="directory"),
    ],
)
def test_a_file_that_cant_be_used_changes_nothing(
    text: str | None, part: str, tmp_path: Path
) -> None:
    """Nor do those that could: all are taken over, or none."""
    directory = tmp_path / "policy"
    policies = TenantPolicies(file=write(tmp_path / "all.toml", "a"), directory=directory)
    policies.read()
    before = policies.hashes
    write(tmp_path / "all.toml", "b")
    directory.mkdir()
    if text is None:
        (directory / "one.toml").mkdir()
    else:
        (directory / "one.toml").write_text(text)
    with pytest.raises(sandd.ConfigurationError, match=part):
        policies.read()
    assert policies.hashes == before
    assert refused(policies, "x", "a") is None


@posix_only
def test_a_file_that_others_may_write_is_none(tmp_path: Path) -> None:
    """They would be who says what is allowed."""
    file = write(tmp_path / "all.toml", "a")
    file.chmod(0o646)
    with pytest.raises(sandd.ConfigurationError, match="may be written by everybody"):
        TenantPolicies(file=file).read()


async def test_this_program_is_held_to_it_as_well(tmp_path: Path) -> None:
    """And to another one, as soon as that is read; what runs goes on."""
    file = write(tmp_path / "all.toml", "a")
    async with sandd.open_controller(port=0, policy=file) as controller:
        async with open_daemon(controller.url):
            daemon = await controller.wait_for_daemon("worker-1")
            assert (await daemon.run(["/bin/echo", "a"])).stdout == "a\n"
            with pytest.raises(sandd.PolicyDenied) as caught:
                await daemon.run(["/bin/echo", "b"])
            assert caught.value.policy_hash in str(caught.value)
            for kind in (daemon.run("echo a"), daemon.path("/etc/passwd").read_bytes()):
                with pytest.raises(sandd.PolicyDenied):
                    await kind
            write(file, "b")
            await controller.reload_policy()
            assert (await daemon.run(["/bin/echo", "b"])).stdout == "b\n"
            file.write_text("version = 2")
            with pytest.raises(sandd.ConfigurationError):
                await controller.reload_policy()
            assert (await daemon.run(["/bin/echo", "b"])).stdout == "b\n"
            assert [job.state for job in await daemon.jobs()] == []


async def test_a_job_that_runs_outlives_the_rule_it_was_allowed_by(tmp_path: Path) -> None:
    """Its client may come back to it after a cut, though it could not start it any more."""
    file = tmp_path / "p.toml"
    file.write_text("version = 1\n[[rule]]\nname = 'r'\nexe = '/bin/cat'\nargv = []\n")
    async with (
        sandd.open_controller(port=0, policy=file) as controller,
        open_fault_proxy(controller.address) as proxy,
        open_daemon(proxy.url) as process,
    ):
        daemon = await controller.wait_for_daemon("worker-1")
        async with daemon.open_process(["/bin/cat"]) as cat:
            await cat.stdin.send_all(b"one")
            with trio.fail_after(60):
                assert await cat.stdout.receive_some(3) == b"one"
                file.write_text("version = 1")
                await controller.reload_policy()
                proxy.cut()
                await cat.stdin.send_all(b"two")
                await cat.stdin.aclose()
                assert await cat.stdout.receive_some(3) == b"two"
                assert (await cat.wait()).exit_code == 0
        assert process.log.count("connected") >= 2


async def test_the_policies_of_another_process_are_its_own(tmp_path: Path) -> None:
    """A client of it can't have them read again."""
    async with sandd.open_controller(port=0, operator_token="t") as controller:
        async with sandd.connect_controller(controller.url, token="t") as other:
            with pytest.raises(RuntimeError, match="in another process"):
                await other.reload_policy()


async def test_a_bad_policy_opens_no_controller(tmp_path: Path) -> None:
    """Of everybody, or of a tenant."""
    file = tmp_path / "bad.toml"
    file.write_text("version = 0")
    for options in ({"policy": file}, {"policy": tmp_path / "missing"}):
        with pytest.raises(sandd.ConfigurationError):
            async with sandd.open_controller(port=0, **options):
                pytest.fail("it was opened")
    (tmp_path / "state" / "policy").mkdir(parents=True, mode=0o700)
    file.rename(tmp_path / "state" / "policy" / "default.toml")
    with pytest.raises(sandd.ConfigurationError, match=r"default\.toml"):
        async with sandd.open_controller(port=0, state_dir=tmp_path / "state"):
            pytest.fail("it was opened")


@posix_only
def test_a_stand_alone_controller_reads_them_again_on_a_hangup(tmp_path: Path) -> None:
    """A file that can't be used is said, and those before it stay in force."""
    import signal

    from process_tools import until_sync

    file = write(tmp_path / "all.toml", "a")
    with running_controller("--policy", str(file)) as controller:

        def run(*command: str) -> tuple[int, str]:
            done = controller.run_command("exec", "worker-1", "--", *command)
            return done.returncode, done.stderr

        def hang_up(event: str) -> None:
            count = controller.log.count(event)
            os.kill(controller.process.pid, signal.SIGHUP)
            until_sync(lambda: controller.log.count(event) > count, within=40)

        with controller.daemon("worker-1"):
            assert run("/bin/echo", "a")[0] == 0
            code, said = run("/bin/echo", "b")
            assert code == 125
            assert "does not allow this command" in said
            write(controller.state_dir / "policy" / "default.toml", "b")
            file.write_text("version = 9")
            hang_up("reload_failed")
            assert run("/bin/echo", "a")[0] == 0
            write(file, "a", "b")
            hang_up("reloaded")
            assert run("/bin/echo", "b")[0] == 0
            assert run("/bin/echo", "a")[0] == 125


def test_the_policy_of_an_asyncio_controller_can_be_read_again(tmp_path: Path) -> None:
    """It is the same controller."""
    import asyncio

    file = write(tmp_path / "all.toml", "a")

    async def program() -> None:
        async with sandd.aio.open_controller(port=0, policy=file) as controller:
            file.write_text("version = 0")
            with pytest.raises(sandd.ConfigurationError):
                await controller.reload_policy()
            write(file, "b")
            await controller.reload_policy()

    asyncio.run(program())
