"""What Landlock lets a job do: write in its workspace, read the system, and reach nobody outside. Linux only.

The rules are about files and directories that are open, so whatever leads there by another name is the same; and
what isn't named is denied, also what will come to be. Blocking.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Final

if sys.platform == "win32":
    raise ImportError("POSIX only")  # where mypy stops reading, too

from sandd._core.processes import landlock

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sandd._core.isolation.workspaces import Workspace

SYSTEM: Final = (
    *("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc", "/opt"),
    *("/nix/store", "/gnu/store", "/snap"),
)
"""Where programs are, and what they need. (What in /etc is for few has a mode that says so.)"""
KERNEL: Final = ("/proc", "/sys")
"""What the kernel tells. What it tells of a process in particular, it tells who may trace it: nobody else, here."""
RESOLVERS: Final = ("/run/systemd/resolve", "/run/resolvconf", "/run/NetworkManager/resolv.conf")
"""What /etc/resolv.conf may be a link to."""
DEVICES: Final = (
    *("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty"),
    "/dev/ptmx",
)
_TERMINALS: Final = "/dev/pts"
"""Each is its user's; so where all jobs are one user's, none is to be opened by its name."""
_READ: Final = landlock.READ_FILE | landlock.READ_DIRECTORY
_USE: Final = landlock.READ_FILE | landlock.WRITE_FILE | landlock.USE_DEVICE


def open_ruleset(workspace: Workspace, readable: Iterable[str] = ()) -> int:
    """A descriptor of the rules for a job in that workspace, who may also read what is `readable`.

    OSError if the kernel doesn't take them, or the workspace is gone.
    """
    known = landlock.version()
    ruleset = landlock.open_ruleset(access=landlock.all_access(known), scopes=_scopes(known))
    try:
        _allow(ruleset, known, os.fspath(workspace.path), landlock.all_access(known))
        for path in (*SYSTEM, *readable):
            _allow_if_there(ruleset, known, path, _READ | landlock.EXECUTE)
        for path in (*KERNEL, *RESOLVERS, "/dev"):
            _allow_if_there(
                ruleset, known, path, landlock.READ_DIRECTORY if path == "/dev" else _READ
            )
        for path in DEVICES:
            _allow_if_there(ruleset, known, path, _USE)
        if workspace.uid is not None:
            _allow_if_there(ruleset, known, _TERMINALS, _USE | landlock.READ_DIRECTORY)
    except BaseException:
        os.close(ruleset)
        raise
    return ruleset


def open_scopes() -> int | None:
    """A descriptor of rules about no files at all: for who is kept from those otherwise. None where there are none."""
    try:
        scopes = _scopes(landlock.version())
    except OSError:
        return None
    return landlock.open_ruleset(access=0, scopes=scopes) if scopes else None


def _scopes(known: int) -> int:
    """A job signals nobody outside itself, and connects to no abstract socket there, whoever its user is."""
    return landlock.SIGNALS | landlock.ABSTRACT_SOCKETS if known >= landlock.SCOPES_VERSION else 0


def _allow_if_there(ruleset: int, known: int, path: str, access: int) -> None:
    try:
        _allow(ruleset, known, path, access)
    except (FileNotFoundError, NotADirectoryError):
        pass  # systems differ


def _allow(ruleset: int, known: int, path: str, access: int) -> None:
    descriptor = os.open(path, getattr(os, "O_PATH", os.O_RDONLY) | os.O_CLOEXEC)
    try:
        if not os.path.isdir(f"/proc/self/fd/{descriptor}"):
            access &= landlock.OF_FILES
        landlock.allow(ruleset, access & landlock.all_access(known), descriptor)
    finally:
        os.close(descriptor)
