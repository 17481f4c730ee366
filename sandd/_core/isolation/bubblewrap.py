"""The command line of bubblewrap by which a job sees the system, its workspace, and nothing else. No I/O but a look.

It runs as the tenant's user, never as root: there it would keep root's capabilities. So it takes a kernel that gives
user namespaces to everybody. The rest of the line is env(1), because bubblewrap itself, which waits outside for its
program's exit code, has to ignore the signals that the whole tree gets, and hands that on.
"""

from __future__ import annotations

import os
import shutil
import sys
from typing import TYPE_CHECKING, Final

if sys.platform == "win32":
    raise ImportError("POSIX only")  # where mypy stops reading, too

from sandd._core.isolation.rulesets import RESOLVERS, SYSTEM

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sandd._core.isolation.workspaces import Workspace

PATH: Final = "/usr/local/bin:/usr/bin:/bin"
"""Where it is looked for: it does what root wants, so in no directory that may be somebody's."""


def find() -> str | None:
    """The path of bubblewrap; None if it isn't installed."""
    return shutil.which("bwrap", path=PATH)


def find_env() -> str | None:
    """The path of env(1), of which it takes GNU's; None if there is none at all."""
    return shutil.which("env", path=PATH)


def command_line(
    bwrap: str,
    env: str,
    workspace: Workspace | None,
    *,
    cwd: bytes = b"/",
    readable: Iterable[str] = (),
    has_network: bool = True,
) -> tuple[bytes, ...]:
    """All but the program and its arguments. Without a workspace there is none: to see whether it works at all."""
    line = [
        *(bwrap, "--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts"),
        *("--unshare-cgroup-try", *([] if has_network else ["--unshare-net"])),
        # Should it be killed alone, its program is, with all that it has started.
        "--die-with-parent",
    ]
    for directory in SYSTEM:
        # Links stay links: on most systems /bin is one.
        if os.path.islink(directory):
            line += ["--symlink", os.readlink(directory), directory]
        else:
            line += ["--ro-bind-try", directory, directory]
    for directory in (*RESOLVERS, *readable):
        line += ["--ro-bind-try", directory, directory]
    line += ["--proc", "/proc", "--dev", "/dev"]
    if workspace is not None:
        path = os.fspath(workspace.path)
        line += ["--bind", os.fspath(workspace.shown_as_tmp), "/tmp"]  # noqa: S108 - what is /tmp in there
        line += ["--bind", path, path]
    else:
        # Else its second process outlives the first by a moment, and falls to a process 1 that may be the daemon.
        line += ["--as-pid-1"]
    line += ["--remount-ro", "/"]  # what is mounted in it stays as it is
    encoded = [os.fsencode(each) for each in line]
    return (*encoded, b"--chdir", cwd, b"--", os.fsencode(env), b"--default-signal")


def sees(path: bytes, workspace: Workspace, readable: Iterable[str] = ()) -> bool:
    """Whether a directory of that path is one that a job sees there."""
    whole = os.path.normpath(path)
    shown = (*SYSTEM, *RESOLVERS, *readable, "/proc", "/dev", "/tmp", os.fspath(workspace.path))  # noqa: S108 - as above
    return whole == b"/" or any(
        whole == os.fsencode(each) or whole.startswith(os.fsencode(each) + b"/") for each in shown
    )
