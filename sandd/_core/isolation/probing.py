"""Which levels this machine has, and of the others why not. Blocking: once, when a daemon starts."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Final

if sys.platform == "win32":
    raise ImportError("POSIX only")  # where mypy stops reading, too

from sandd._core.isolation import bubblewrap, credentials
from sandd._core.processes import landlock
from sandd.wire import IsolationLevel

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sandd._core.isolation.options import IsolationOptions

MIN_LANDLOCK_OF_USERS: Final = landlock.RENAMES_VERSION
"""Where tenants are users of their own, it only adds to that."""
MIN_LANDLOCK_ALONE: Final = landlock.SCOPES_VERSION
"""Where all are one user, it has to keep signals apart, too."""
TRY_SECONDS: Final = 10.0
"""For bubblewrap to run one program, which takes it 30 ms."""
_NEEDED: Final = {
    "CAP_CHOWN": 0,
    "CAP_DAC_OVERRIDE": 1,
    "CAP_KILL": 5,
    "CAP_SETGID": 6,
    "CAP_SETUID": 7,
}
"""Of root, what it takes to be somebody else and clean up behind them; containers take some of it away."""


def probe(options: IsolationOptions) -> Mapping[IsolationLevel, str | None]:
    """Of each level why it is not to be had here; None: it is."""
    no_user = _no_user(options)
    no_landlock = _no_landlock(with_users=no_user is None)
    if no_user is not None and sys.platform == "linux" and os.geteuid() == 0:
        # Root that stays root makes devices in its workspace, and writes to the disk by them: no level holds that.
        no_landlock = f"its jobs would be root's: {no_user}"
    return {
        IsolationLevel.NONE: None,
        IsolationLevel.USER: no_user,
        IsolationLevel.LANDLOCK: no_landlock,
        IsolationLevel.BWRAP: no_landlock or _no_bwrap(options, with_users=no_user is None),
    }


def _no_user(options: IsolationOptions) -> str | None:
    if sys.platform != "linux":
        return f"it is for Linux, and this is {sys.platform}"
    if os.geteuid() != 0:
        return f"it takes root to become another user, and this daemon is uid {os.geteuid()}"
    missing = [name for name, bit in _NEEDED.items() if not _capabilities() >> bit & 1]
    if missing:
        return f"root has no {missing[0]} here"
    first, last = options.uids
    if not _are_mapped(first, last):
        return f"the users {first}-{last} are not all to be had in this container (see --isolation-uids)"
    return credentials.unavailable()


def _no_landlock(*, with_users: bool) -> str | None:
    if sys.platform != "linux":
        return f"it is for Linux, and this is {sys.platform}"
    needed = MIN_LANDLOCK_OF_USERS if with_users else MIN_LANDLOCK_ALONE
    try:
        version = landlock.version()
    except OSError as error:
        return f"the kernel has no Landlock ({error.strerror})"
    if version < needed:
        return f"the kernel's Landlock is version {version}; it takes {needed}" + (
            "" if with_users else " where tenants are not users of their own"
        )
    return None


def _no_bwrap(options: IsolationOptions, *, with_users: bool) -> str | None:
    bwrap, env = bubblewrap.find(), bubblewrap.find_env()
    if bwrap is None or env is None:
        return f"bubblewrap is not installed (bwrap, in {bubblewrap.PATH})"
    uid = options.uids[0] if with_users else None
    line = bubblewrap.command_line(bwrap, env, None, has_network=options.has_network)
    try:
        done = subprocess.run(
            [*line, b"/bin/sh", b"-c", b"exit 42"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=TRY_SECONDS,
            cwd="/",
            user=uid,
            group=uid,
            extra_groups=None if uid is None else [],
            check=False,
        )
    except (OSError, subprocess.SubprocessError) as error:
        return f"bubblewrap can't be run: {error}"
    if done.returncode != 42:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()
        return f"bubblewrap fails: {said[-1] if said else f'it ended with {done.returncode}'}"
    return None


def _capabilities() -> int:
    """This process' effective ones, as bits (capabilities(7)); none if they can't be read."""
    with contextlib.suppress(OSError), open("/proc/self/status") as file:
        for line in file:
            if line.startswith("CapEff:"):
                return int(line.split()[1], 16)
    return 0


def _are_mapped(first: int, last: int) -> bool:
    """Whether these users exist in our namespace, and so do the groups of these numbers (user_namespaces(7))."""
    for kind in ("uid_map", "gid_map"):
        try:
            with open(f"/proc/self/{kind}") as file:
                ranges = sorted((int(a), int(b)) for a, _, b in (line.split() for line in file))
        except OSError:
            continue  # no namespaces at all
        here = first
        for start, count in ranges:
            if start <= here < start + count:
                here = start + count
        if here <= last:
            return False
    return True
