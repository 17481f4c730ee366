"""What a ruleset says is what a process may do, and no version is asked for what it doesn't know."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import pytest
from process_tools import linux_only

if sys.platform == "win32":
    pytest.skip("POSIX only", allow_module_level=True)

from sandd._core.processes import landlock

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def has_landlock() -> bool:
    """Whether this kernel has it."""
    try:
        return sys.platform == "linux" and landlock.version() > 0
    except OSError:
        return False


needs_landlock = pytest.mark.skipif(not has_landlock(), reason="this kernel has no Landlock")


@pytest.mark.parametrize(
    ("version", "newest"),
    [
        (1, 1 << 12),
        (2, landlock.REFER),
        (3, landlock.TRUNCATE),
        (4, landlock.TRUNCATE),
        (5, landlock.USE_DEVICE),
        (99, landlock.USE_DEVICE),
    ],
)
def test_a_version_has_the_rights_that_it_knows(version: int, newest: int) -> None:
    """All up to its newest: the kernel refuses a ruleset that names others."""
    assert landlock.all_access(version) == 2 * newest - 1


@needs_landlock
def test_this_kernel_takes_all_that_it_knows() -> None:
    """Rights, and scopes where it has some; nothing is granted yet, so nothing is left of it."""
    known = landlock.version()
    scopes = landlock.SIGNALS | landlock.ABSTRACT_SOCKETS if known >= landlock.SCOPES_VERSION else 0
    os.close(landlock.open_ruleset(access=landlock.all_access(known), scopes=scopes))
    with pytest.raises(OSError, match="Invalid argument"):
        landlock.open_ruleset(access=1 << 62)


@needs_landlock
def test_who_is_restricted_does_what_is_granted(tmp_path: Path) -> None:
    """And what it starts does no more; nobody else is held to it."""
    granted, other = tmp_path / "granted", tmp_path / "other"
    for each in (granted, other):
        each.mkdir()
        (each / "file").write_text("x")
    access = landlock.READ_FILE | landlock.WRITE_FILE
    ruleset = landlock.open_ruleset(access=access)
    directory = os.open(granted, os.O_RDONLY)
    landlock.allow(ruleset, landlock.READ_FILE, directory)
    try:
        tries: list[Callable[[], object]] = [
            lambda: (granted / "file").read_text(),
            lambda: (granted / "file").write_text("y"),
            lambda: (other / "file").read_text(),
        ]
        assert in_a_child(ruleset, tries) == [True, False, False]
    finally:
        os.close(directory)
        os.close(ruleset)
    assert (other / "file").read_text() == "x"


def in_a_child(ruleset: int, tries: list[Callable[[], object]]) -> list[bool]:
    """Which of these a restricted process could do."""
    landlock.prepare()
    pid = os.fork()
    if pid == 0:
        done = 255
        try:
            landlock.restrict(ruleset)
            done = 0
            for number, each in enumerate(tries):
                try:
                    each()
                except PermissionError:
                    continue
                done |= 1 << number
        finally:
            os._exit(done)
    done = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert done != 255
    return [bool(done >> number & 1) for number in range(len(tries))]


@linux_only
def test_a_call_that_fails_tells_why() -> None:
    """As any other function of the system."""
    with pytest.raises(OSError, match="Bad file descriptor"):
        landlock.call(446, -1, 0)
