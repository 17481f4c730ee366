"""One control group around a spawner and all its jobs, where the system lets us have one (Linux).

What it is for:

- a tree that forks faster than it can be stopped one by one is stopped by the kernel, all in one step
  (`frozen`), and then killed at leisure;
- a spawner's processes are killed together, wherever they went and whoever adopted them: when the
  daemon finds its spawner dead, and when a later one finds what was left because both had been killed.

Why not one for each job, which would also tell whose a process is: to be put into a group, a process
has to be moved, and the kernel lets nobody move before all processors have passed a quiet moment. A
single move takes 7 to 15 ms (measured: v1 and v2, Linux 6.18; 0.03 ms only if there was another one
just before), many times what a whole command takes. Creating and removing the group (0.03 ms each) is
not what costs. So the spawner moves itself, once, as it starts; its children are born where it is; and
whose they are is told by their brand (see `process_table`), which costs nothing. To freeze the group
without being frozen itself the spawner has to move out and back again: that is for trees against which
all else has failed.

A group that nobody holds a lock on (flock(2) on its directory) has lost its spawner. That works across
PID namespaces, and ends with the spawner, however that ends.

Standard library only: the daemon uses it as well. Sources: the kernel's
Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/freezer-subsystem.rst; systemd's
CONTROL_GROUP_INTERFACE for who may make groups where.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import contextmanager, suppress

if sys.platform == "win32":
    raise ImportError("POSIX only")  # where mypy stops reading, too

import fcntl

from sandd._core.processes.process_table import read_process, send_signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

CHOICE_VARIABLE = "SANDD_CONTROL_GROUPS"
"""Environment variable of the daemon: ``v2``, ``v1``, ``off``; anything else is the first that works."""
PREFIX = "sandd-"
CHANCE_BYTES = 4
"""In the name of a group, so that it is nobody else's: pids of different namespaces may be the same."""
DAEMONS_OWN = "sandd-daemon"
"""The group of v2 that a daemon is put into if it is alone where its jobs' groups are to be: see `limit_groups`."""
FREEZE_SECONDS = 0.2
"""How long is waited for everybody to stand still. Who is in the kernel's hands may take longer."""
LOOK_SECONDS = 0.001
LOCK_TRIES = 3
"""To have a group of our own, where other spawners start at the same moment and take it for a stale one."""
KILL_LOOKS = 20
"""Looks for new processes while a group is killed one by one, frozen; two are enough if it is."""
REMOVE_SECONDS = 0.1
"""How long the dead may take to leave a group, which can't be removed before."""
SYSTEMD = "/run/systemd/system"
"""Exists where systemd is process 1 (sd_booted(3))."""


class ControlGroup:
    """A group that is there: one of v2, or one of v1's freezer.

    A group of which nothing is left by the time it is used is no error.
    """

    __slots__ = ("_is_unified", "path")

    def __init__(self, path: str) -> None:
        self.path = path
        self._is_unified = not os.path.exists(f"{path}/freezer.state")

    def __repr__(self) -> str:
        return f"<ControlGroup {self.path}>"

    def pids(self) -> list[int]:
        """The processes in it and in the groups below it, as one look shows them."""
        found: list[int] = []
        for directory, _, _ in os.walk(self.path):
            with suppress(OSError):
                # 0: one that our PID namespace does not see.
                found += [int(word) for word in read(f"{directory}/cgroup.procs").split()]
        return [pid for pid in found if pid]

    @contextmanager
    def frozen(self) -> Iterator[bool]:
        """While open, nobody in it runs, and so nobody forks; false if somebody is slow to stop."""
        try:
            yield self._freeze()
        finally:
            with suppress(OSError):
                self._set_frozen(False)

    def kill(self) -> None:
        """SIGKILL for everybody in it and in the groups below; none can fork meanwhile.

        They are dead, or die as soon as the kernel lets go of them. Don't be in it.
        """
        with suppress(OSError):
            if self._is_unified and os.path.exists(f"{self.path}/cgroup.kill"):  # Linux 5.14
                write(f"{self.path}/cgroup.kill", "1")
                return
        with self.frozen():
            met: set[int] = set()
            for _ in range(KILL_LOOKS):
                new = set(self.pids()) - met
                if not new:
                    break
                met |= new
                for process in filter(None, map(read_process, new)):
                    with suppress(PermissionError):
                        send_signal(process, signal.SIGKILL)

    def remove(self) -> bool:
        """Remove it and the groups below it; false if somebody is in it."""
        for directory, _, _ in os.walk(self.path, topdown=False):
            try:
                os.rmdir(directory)
            except FileNotFoundError:
                pass
            except OSError:
                return False
        return True

    def remove_soon(self) -> bool:
        """Remove it when the dead have left it, which they do a moment later than they are reaped."""
        end = time.monotonic() + REMOVE_SECONDS
        while not self.remove():
            if time.monotonic() > end:
                return False
            time.sleep(LOOK_SECONDS)
        return True

    def _freeze(self) -> bool:
        end = time.monotonic() + FREEZE_SECONDS
        with suppress(OSError):
            self._set_frozen(True)
            while not self._is_frozen():
                if time.monotonic() > end:
                    return False
                time.sleep(LOOK_SECONDS)
        return True

    def _set_frozen(self, wanted: bool) -> None:
        if self._is_unified:
            write(f"{self.path}/cgroup.freeze", str(int(wanted)))
        else:
            write(f"{self.path}/freezer.state", "FROZEN" if wanted else "THAWED")

    def _is_frozen(self) -> bool:
        if self._is_unified:
            return "frozen 1" in read(f"{self.path}/cgroup.events")
        return read(f"{self.path}/freezer.state").strip() == "FROZEN"


class OwnGroup(ControlGroup):
    """The group that a spawner made for itself and its jobs. It is in it, except within `outside`."""

    __slots__ = ("_lock", "_parent")

    def __init__(self, path: str, lock: int) -> None:
        super().__init__(path)
        self._lock = lock
        self._parent = os.path.dirname(path)

    @contextmanager
    def outside(self) -> Iterator[bool]:
        """While open, we are not in it; false if that can't be, and then we are. Takes 10 ms or more."""
        if not self._leave():
            yield False
            return
        try:
            yield True
        finally:
            with suppress(OSError):  # then what is started from now on is not in it either
                move_to(self.path)

    def dissolve(self) -> None:
        """Leave it for good and remove it, if nobody else is in it."""
        self._leave()
        self.remove_soon()

    def _leave(self) -> bool:
        # A group of v2 that hands controllers on has no processes of its own: there we are where our daemon is.
        for place in (self._parent, f"{self._parent}/{DAEMONS_OWN}"):
            with suppress(OSError):
                move_to(place)
                return True
        return False


def enter_new_group(choice: str = "", *, proc: str = "/proc/self") -> OwnGroup | None:
    """Make a group below our own and move into it, for good; None where that is not to be.

    What other spawners have left there is killed and removed.

    Args:
        choice: see `CHOICE_VARIABLE`.
        proc: where to read which groups we are in and where they are, for tests to replace.
    """
    if sys.platform != "linux" or choice == "off":
        return None
    for version in ("v2", "v1") if choice not in ("v2", "v1") else (choice,):
        try:
            parent = own_directory(version, proc)
            if parent is not None and may_have_groups(parent, version):
                remove_stale(parent)
                return _make(parent)
        except (OSError, ValueError):
            continue  # read-only, not ours, half a kernel: whatever it is, we live without
    return None


def make_locked(parent: str) -> tuple[str, int]:
    """A new group, and the descriptor whose lock says that its spawner lives."""
    for _ in range(LOCK_TRIES - 1):
        with suppress(OSError):
            return _make_locked(parent)
    return _make_locked(parent)


def _make_locked(parent: str) -> tuple[str, int]:
    path = f"{parent}/{PREFIX}{os.getpid()}-{os.urandom(CHANCE_BYTES).hex()}"
    os.mkdir(path)
    lock = -1
    try:
        # No child of ours gets it: it is not inheritable.
        lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.stat(path)  # else another spawner has taken it for a stale one, and removed it
    except OSError:
        if lock >= 0:
            os.close(lock)
        with suppress(OSError):
            os.rmdir(path)
        raise
    return path, lock


def _is_name_of_ours(name: str) -> bool:
    """It is one from `_make_locked`. Whoever calls theirs ``sandd-anything`` shall keep what is in it."""
    pid, _, chance = name.removeprefix(PREFIX).partition("-")
    return (
        name.startswith(PREFIX)
        and pid.isascii()
        and pid.isdigit()
        and len(chance) == 2 * CHANCE_BYTES
        and not chance.strip("0123456789abcdef")
    )


def _make(parent: str) -> OwnGroup:
    path, lock = make_locked(parent)
    try:
        if not any(os.path.exists(f"{path}/{name}") for name in ("cgroup.freeze", "freezer.state")):
            raise OSError("this kernel can't freeze it")  # v2 before Linux 5.2
        if not os.access(f"{parent}/cgroup.procs", os.W_OK):
            raise OSError("there would be no way out of it")
        # Fails if another spawner took it for a stale one before it was locked.
        move_to(path)
    except OSError:
        os.close(lock)
        with suppress(OSError):
            os.rmdir(path)
        raise
    return OwnGroup(path, lock)


def remove_stale(parent: str) -> None:
    """Kill and remove what dead spawners have left there."""
    for name in os.listdir(parent):
        if _is_name_of_ours(name):
            with suppress(OSError):
                _remove_if_stale(f"{parent}/{name}")


def _remove_if_stale(path: str) -> None:
    lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # BlockingIOError: its spawner lives
        group = ControlGroup(path)
        group.kill()
        group.remove_soon()
    finally:
        os.close(lock)


def own_directory(
    version: str, proc: str = "/proc/self", *, controller: str = "freezer"
) -> str | None:
    """The directory of the group that we are in: that of v2, or of v1's controller; None if none can be seen."""
    for line in read(f"{proc}/cgroup").splitlines():
        number, controllers, path = line.split(":", 2)
        if (number == "0") if version == "v2" else (controller in controllers.split(",")):
            break
    else:
        return None
    for line in read(f"{proc}/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        _, _, _, root, place, *_ = before.split()
        kind, _, options = after.split()[:3]
        is_it = (
            kind == "cgroup2"
            if version == "v2"
            else kind == "cgroup" and controller in options.split(",")
        )
        # A container may be shown a part of the tree only.
        inside = path if root == "/" else path.removeprefix(root)
        if version == "v2":
            # As for the second spawner of a daemon that the first has put there.
            inside = inside.removesuffix(f"/{DAEMONS_OWN}")
        is_shown = root == "/" or path == root or path.startswith(f"{root}/")
        # "..": we are outside of what our namespace shows.
        if is_it and is_shown and ".." not in inside.split("/"):
            return (_unescape(place) + inside).rstrip("/")
    return None


def may_have_groups(parent: str, version: str) -> bool:
    """Whether nobody else says who makes groups there."""
    # systemd is the only writer of the v2 tree but for what it has delegated, and says so there.
    if version == "v1" or not os.path.exists(SYSTEMD):
        return True
    if sys.platform == "linux":
        for name in "user.delegate", "trusted.delegate":
            with suppress(OSError):
                if os.getxattr(parent, name) == b"1":
                    return True
    return False


def _unescape(path: str) -> str:
    for code, character in (("040", " "), ("011", "\t"), ("012", "\n"), ("134", "\\")):
        path = path.replace(f"\\{code}", character)
    return path


def move_to(group: str) -> None:
    """Move ourselves there. It takes 10 ms, unless somebody else was moved just before."""
    write(f"{group}/cgroup.procs", "0")  # 0: whoever writes it


def read(path: str) -> str:
    """What a file of a group says."""
    with open(path, errors="surrogateescape") as file:
        return file.read()


def write(path: str, text: str) -> None:
    """Tell a file of a group something."""
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, text.encode())  # in one piece: each write is a command
    finally:
        os.close(descriptor)
