"""Abuse of a daemon's policy by a rule that allows too much, or by a quick hand; with a daemon that runs."""

from __future__ import annotations

import contextlib
import string
import sys
from typing import TYPE_CHECKING, Any

import pytest
import trio
from process_tools import root_only
from trusted_files import trusted_directory, write_program

if sys.platform == "win32":
    pytest.skip("no daemon is held to a policy there", allow_module_level=True)

import sandd
from sandd._core.daemon_options import DaemonOptions
from sandd._core.daemon_program import run_daemon
from sandd._core.policy.gate import PolicyGate

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from sandd._core.processes import SpawnRequest


@contextlib.asynccontextmanager
async def daemon_in_here(policy: str, home: Path) -> AsyncIterator[sandd.Daemon]:
    """A daemon that is part of this process, and held to that policy."""
    file = home / "policy.toml"
    file.write_text(f"version = 1\n{policy}")
    with trio.fail_after(60):
        async with sandd.open_controller(port=0) as controller, trio.open_nursery() as nursery:
            options = DaemonOptions(controller.url, "w", state_dir=home / "state", policy=file)

            @nursery.start_soon
            async def be_a_daemon() -> None:
                await run_daemon(options, version="1", stop_requested=lambda: False)

            yield await controller.wait_for_daemon("w")
            nursery.cancel_scope.cancel()


@root_only
@pytest.mark.parametrize("is_locked", [True, False], ids=["locked", "unlocked"])
async def test_a_daemon_runs_what_it_has_checked_whatever_is_put_in_its_place(
    is_locked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Program and directory are exchanged between the check and the start: by root, as nobody else could."""
    with trusted_directory() as directory:
        program = write_program(directory / "x", "")
        program.write_bytes(_content_of("/bin/cat"))
        work, other = directory / "work", directory / "other"
        for each in (work, other):
            each.mkdir()
            (each / "name").write_text(f"in {each.name}")
        check = PolicyGate.check

        def check_and_swap(*arguments: Any) -> SpawnRequest:
            request = check(*arguments)
            imposed = write_program(directory / "y", "")
            imposed.write_bytes(_content_of("/bin/false"))
            imposed.rename(program)
            work.rename(directory / "away")
            other.rename(work)
            return request

        monkeypatch.setattr(PolicyGate, "check", check_and_swap)
        lock = "if available" if is_locked else "off"
        policy = f"""
            exec_lock = "{lock}"
            [[rule]]
            name = "x"
            exe = "{program}"
            argv = ["name"]
            cwd_beneath = ["{work}"]
        """
        async with daemon_in_here(policy, tmp_path) as daemon:
            result = await daemon.run([str(program), "name"], cwd=str(work))
        assert (result.exit_code, result.stdout) == (0, "in work")


def _content_of(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


async def test_no_variable_that_chooses_code_passes_though_a_rule_allows_all(
    tmp_path: Path,
) -> None:
    """Whatever it begins with may be set, as a careless author would write it: all others pass, and these don't."""
    anything = [f"{letter}*" for letter in (*string.ascii_letters, "_")]
    policy = f"""
        [[rule]]
        name = "env"
        exe = "/usr/bin/env"
        argv = []
        env_allow = {anything}
        force = true
    """
    barred = [
        *("LD_PRELOAD", "LD_LIBRARY_PATH", "LD_AUDIT", "PATH", "BASH_ENV", "ENV", "IFS"),
        *("GIT_CONFIG_COUNT", "GIT_CONFIG_KEY_0", "GIT_CONFIG_GLOBAL", "GIT_SSH_COMMAND"),
        *("PYTHONPATH", "PYTHONSTARTUP", "NODE_OPTIONS", "PERL5OPT", "RUBYOPT", "TAR_OPTIONS"),
        *("PAGER", "EDITOR", "ld_preload", "Git_Config_Count", "SANDD_TOKEN"),
    ]
    async with daemon_in_here(policy, tmp_path) as daemon:
        for name in barred:
            with pytest.raises(sandd.PolicyDenied):
                await daemon.run(["/usr/bin/env"], env={"HARMLESS": "1", name: "x"})
        result = await daemon.run(["/usr/bin/env"], env={"HARMLESS": "1"})
    assert {"HARMLESS=1", "PATH=/usr/local/bin:/usr/bin:/bin"} <= {*result.stdout.splitlines()}
