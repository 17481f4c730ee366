"""A program is opened with all that the kernel runs along with it, and each is safe from who it will run as."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

import pytest
from process_tools import linux_only, root_only
from trusted_files import trusted_directory, write_program

if sys.platform == "win32":
    pytest.skip("owners and modes", allow_module_level=True)

from sandd._core.policy import executables
from sandd._core.policy.executables import (
    Executable,
    Owner,
    UntrustedError,
    open_executable,
    owner_of,
)
from sandd._core.policy.permits import Permit

NOBODY = Owner(65534, {65534})


def names(path: str, owner: Owner = NOBODY, sha256: str | None = None) -> list[str]:
    """The files that are opened for a program, itself first."""
    with Permit() as permit:
        program = open_executable(path, owner, sha256=sha256, hold=permit.hold)
        opened = [program.descriptor, *program.needed]
        return [os.readlink(f"/proc/self/fd/{each}") for each in opened]


@linux_only
def test_a_program_comes_with_its_loader() -> None:
    """Which the kernel executes for it; a link is followed to what it is."""
    program, *loaders = names("/bin/sh")
    assert program == os.path.realpath("/bin/sh")
    assert len(loaders) <= 1
    assert all("ld" in Path(each).name for each in loaders)


@linux_only
@root_only
def test_a_script_comes_with_its_interpreters() -> None:
    """And with those of scripts that run scripts, and the last one's loader."""
    with trusted_directory() as home:
        inner = write_program(home / "inner", "#! /bin/sh -e\n")
        outer = write_program(home / "outer", f"#!{inner}")
        assert names(str(outer))[:3] == [str(outer), str(inner), os.path.realpath("/bin/sh")]
        broken = write_program(home / "broken", "#!\n")
        assert names(str(broken)) == [str(broken)]
        cut = write_program(home / "cut", Path("/bin/sh").read_bytes()[:64])
        assert names(str(cut)) == [str(cut)]


@linux_only
@root_only
def test_what_is_no_safe_program_is_not_opened() -> None:
    """Not executable, no file, another's, or by an interpreter that is."""
    with trusted_directory() as home:
        plain = home / "plain"
        plain.write_text("x")
        theirs = write_program(home / "theirs", "x")
        os.chown(theirs, 65534, 0)
        script = write_program(home / "script", f"#!{theirs}\n")
        for path in (plain, home, theirs, script):
            with pytest.raises(UntrustedError):
                names(str(path))
        with pytest.raises(FileNotFoundError):
            names(str(home / "none"))
        assert names(str(theirs), Owner(1, {1})) == [str(theirs)]


@linux_only
@root_only
def test_a_hash_is_of_what_is_open() -> None:
    """Computed once for each state of a file."""
    with trusted_directory() as home:
        program = write_program(home / "x", "one")
        digest = hashlib.sha256(b"one").hexdigest()
        assert names(str(program), sha256=digest)
        assert names(str(program), sha256=digest)
        program.write_text("two")
        with pytest.raises(UntrustedError, match="does not have the sha256"):
            names(str(program), sha256=digest)


@linux_only
@root_only
def test_a_program_that_is_replaced_while_it_is_looked_at_is_not_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is open is not what the owners were read of."""
    with trusted_directory() as home:
        program = write_program(home / "x", "one")

        def replace(*_: object, **__: object) -> None:
            write_program(home / "y", "two").rename(program)

        monkeypatch.setattr(executables, "writable_part", replace)
        with pytest.raises(UntrustedError, match="was replaced"):
            names(str(program))


def test_it_is_safe_from_who_it_runs_as() -> None:
    """From us, where the rule names nobody."""
    assert owner_of(None).uid == os.geteuid()
    if os.geteuid() == 0:
        assert owner_of("65534").uid == 65534
    assert Executable("/x", 3, is_script=False).needed == ()
