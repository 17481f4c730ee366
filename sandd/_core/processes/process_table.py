"""Reading the kernel's table of processes, and signalling its entries but never a stranger.

Standard library only: both the spawner and the daemon use it. On Linux everything comes from /proc,
on macOS from ps(1). A snapshot is out of date when it is taken; what may be concluded from one is
said where it is used.
"""

from __future__ import annotations

import errno
import functools
import os
import resource
import signal
import sys
from contextlib import suppress

if sys.platform == "win32":
    raise ImportError("POSIX only")  # where mypy stops reading, too

from sandd._core.processes.named_tuples import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

JOB_VARIABLE = b"SANDD_JOB"
"""Environment variable by which a process tells whose it is, wherever it went."""

_RLIMIT_LOCKS = 10
"""getrlimit(2): "Linux 2.4.0 to Linux 2.4.24". No kernel since has done anything with it, but keep it
for each process, hand it on by fork(2) and execve(2), and show it to everybody."""

NOT_YET = b""
"""No marker, and no answer either; see `read_marker`."""

_PR_SET_CHILD_SUBREAPER = 36  # prctl(2)
_PR_GET_CHILD_SUBREAPER = 37
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_PF_EXITING = 4  # include/linux/sched.h: do_exit() has begun
_STAT_BYTES = 4096  # /proc/PID/stat has 52 numbers and a name of 16 bytes; it is never longer
_READ_BYTES = 1 << 18
_CHILDREN_BYTES = 1 << 14  # larger ones cost an mmap(2) each
_CERTAIN_END_BYTES = 2048
"""A read from such a list that gives less has come to its end: before, the kernel stops only where a page is full
(seq_read_iter in fs/seq_file.c), or there is as much as was asked for."""


class Process(NamedTuple):
    """One entry. `pid` and `began` together are unique: a pid alone may be in use again."""

    pid: int
    parent: int
    group: int
    session: int
    began: int
    """Start time in clock ticks since boot (Linux); 0 where unknown."""
    is_dead: bool
    """A zombie: only its parent can do something about it."""
    threads: int


# --- Linux ----------------------------------------------------------------------------------------


def read_process(pid: int) -> Process | None:
    """The entry of ``pid``; None if there is none (any more). Source: proc_pid_stat(5)."""
    try:
        text = _read(f"/proc/{pid}/stat", _STAT_BYTES)
    except OSError:
        return None
    fields = stat_fields(text)
    return process_in(pid, fields) if len(fields) >= 20 else None


def stat_fields(text: bytes) -> list[bytes]:
    """What a line of /proc/PID/stat has behind the name: the first is the third that proc_pid_stat(5) counts."""
    # The name may hold blanks and brackets, and it is the only field that may.
    return text[text.rfind(b")") + 2 :].split()


def process_in(pid: int, fields: list[bytes]) -> Process:
    """The entry that 20 `stat_fields` or more are of."""
    threads = int(fields[17])
    return Process(
        pid=pid,
        parent=int(fields[1]),
        group=int(fields[2]),
        session=int(fields[3]),
        began=int(fields[19]),
        # A main thread that has ended shows Z; if other threads live on, the process is alive.
        is_dead=fields[0] in (b"Z", b"X") and threads <= 1,
        threads=threads,
    )


def is_exiting(pid: int) -> bool:
    """Whether it has begun to die, or is dead; false for one that has gone altogether (Linux).

    A process closes its descriptors before it hands its children on. On a busy machine others run in between, for
    whom its end of a socket has gone while it is still a parent.
    """
    try:
        fields = stat_fields(_read(f"/proc/{pid}/stat", _STAT_BYTES))
    except OSError:
        return False
    return len(fields) > 6 and int(fields[6]) & _PF_EXITING != 0


def read_marker(pid: int) -> bytes | None:
    """The value of ``SANDD_JOB`` that ``pid`` was started with; None if it has none or hides it.

    It is hidden where the process belongs to another user and we may not trace it (a container's
    root without CAP_SYS_PTRACE), and where it has overwritten its environment.

    Returns:
        `NOT_YET` while it is in the middle of execve(2): the old environment is gone and the new
        one is not there. That takes 0.1 ms, or as long as the disk needs.
    """
    try:
        environment = _read(f"/proc/{pid}/environ")
        if not environment and _read(f"/proc/{pid}/stat").split()[-2] == b"0":
            return NOT_YET  # the last but one field is env_end; `env -i` leaves one that is not 0
    except OSError:
        return None
    _, found, rest = (b"\0" + environment).partition(b"\0" + JOB_VARIABLE + b"=")
    return rest.partition(b"\0")[0] if found else None


def brand_children(brand: int) -> bool:
    """Have every process that we start from now on, and all below it, carry a number; false if we can't.

    A *brand* stays on whoever leaves its session, parent and environment behind. The kernel keeps it
    as a limit that has no other use, so it costs no more than one system call: a control group for
    each job would do the same, at 10 ms for each. It goes only from who sets that limit anew, as
    pam_limits(8) may.

    Args:
        brand: 1 to 2**62.
    """
    if sys.platform != "linux":
        return False
    try:
        resource.setrlimit(_RLIMIT_LOCKS, (brand, _highest_brand()))
    except (
        OSError,
        ValueError,
    ):  # ValueError: the hard limit is lower; a sandbox that knows it not
        return False
    return True


@functools.cache
def _highest_brand() -> int:
    """Our hard limit, which nobody changes."""
    return resource.getrlimit(_RLIMIT_LOCKS)[1]


def read_brand(pid: int) -> int | None:
    """The brand of ``pid``, at any moment of its life; None if it has none, or is gone."""
    try:
        text = _read(f"/proc/{pid}/limits", _STAT_BYTES)
    except OSError:
        return None
    words = text.partition(b"\nMax file locks")[2].split(None, 1)
    return int(words[0]) if words and words[0].isdigit() else None


def own_children(*, threads: int = 0) -> list[int]:
    """Process ids of all our children, zombies included.

    Complete for a process with one thread: the kernel hands the children of a dying process over
    *before* that process can be seen to be dead, always at the list's end, and only our own wait
    removes any. So once a child is a zombie, whatever it left behind is in here or below something
    that is.

    Args:
        threads: 1 where it is known that we have no more, which is faster.
    """
    return children_of(os.getpid(), threads=threads)


class OwnChildren:
    """`own_children` of a process with one thread, asked for again and again: its file stays open.

    That saves most of the time of a look, which every exit of a job waits for.
    """

    def __init__(self) -> None:
        self._descriptor: int | None = None
        with suppress(OSError):
            self._descriptor = os.open(
                f"/proc/{os.getpid()}/task/{os.getpid()}/children", os.O_RDONLY
            )

    def __call__(self) -> list[int]:
        if self._descriptor is None:
            return own_children(threads=1)
        text = data = os.pread(self._descriptor, _CHILDREN_BYTES, 0)
        while len(data) >= _CERTAIN_END_BYTES or len(data) == _CHILDREN_BYTES:
            data = os.pread(self._descriptor, _CHILDREN_BYTES, len(text))
            text += data
        return [*map(int, text.split())]

    def close(self) -> None:
        """Let go of the file."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def children_of(pid: int, *, threads: int) -> list[int]:
    """Process ids of the children of ``pid``.

    Those that are being born or orphaned meanwhile may be missing.

    Args:
        threads: how many threads it has, each of which has children of its own; 1 saves looking.
    """
    try:
        tasks = [str(pid)] if threads == 1 else os.listdir(f"/proc/{pid}/task")
        text = b" ".join([_read(f"/proc/{pid}/task/{task}/children") for task in tasks])
    except OSError:
        # It is gone, or the kernel was built without CONFIG_PROC_CHILDREN: then look at everybody.
        if _has_children_files():
            return []
        return [process.pid for process in all_processes() if process.parent == pid]
    return [int(word) for word in text.split()]


def all_processes() -> list[Process]:
    """Every process that can be seen: slow (10 us each), for when there is no narrower way."""
    found = [read_process(int(name)) for name in os.listdir("/proc") if name.isdigit()]
    return [process for process in found if process is not None]


def walk(roots: Iterable[int]) -> list[Process]:
    """The processes ``roots`` and all their descendants that are alive, parents first."""
    found: list[Process] = []
    pending = list(roots)
    while pending:
        process = read_process(pending.pop())
        if process is not None and not process.is_dead:
            found.append(process)
            pending += children_of(process.pid, threads=process.threads)
    return found


def reap(pid: int) -> bool:
    """Collect the child ``pid`` if it is dead; whether it is gone. Never blocks."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return True


def reap_with_usage(pid: int) -> tuple[float, int]:
    """Collect the child ``pid`` if it is dead: seconds of processor time, and bytes of the largest resident set.

    Both are those of the process and of all below it that were waited for, as getrusage(2) has them; zeros if it lives
    or is gone. The kernel counts what a process was before its program, too: the set is never below that of the
    little process that started it.
    """
    try:
        found, _, usage = os.wait4(pid, os.WNOHANG)
    except ChildProcessError:
        return 0.0, 0
    if found != pid:
        return 0.0, 0
    unit = 1 if sys.platform == "darwin" else 1024
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss * unit


def set_subreaper(wanted: bool) -> bool:
    """Make this process adopt orphans below it, or stop that; returns what it was before.

    Raises:
        OSError: the kernel can't (it needs Linux 3.4).
    """
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    before = ctypes.c_int(0)
    if libc.prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(before), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_GET_CHILD_SUBREAPER)")
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, int(wanted), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")
    return bool(before.value)


def _read(path: str, size: int = _READ_BYTES) -> bytes:
    # os.open and os.read: a tenth of the cost of open(), and scans do this thousands of times.
    descriptor = os.open(path, os.O_RDONLY)
    try:
        data = os.read(descriptor, size)
        if len(data) < size and size <= _STAT_BYTES:
            return data
        parts = [data]
        while data:  # proc files may return less than asked for before their end
            data = os.read(descriptor, size)
            parts.append(data)
        return b"".join(parts)
    finally:
        os.close(descriptor)


def _has_children_files() -> bool:
    return os.path.exists(f"/proc/{os.getpid()}/task/{os.getpid()}/children")


class Consumption(NamedTuple):
    """What a process uses, and has used."""

    threads: int
    cpu_seconds: float
    resident_bytes: int


def read_consumption(pid: int) -> Consumption | None:
    """What ``pid`` uses; None if it is gone. Source: proc_pid_stat(5)."""
    try:
        text = _read(f"/proc/{pid}/stat", _STAT_BYTES)
    except OSError:
        return None
    fields = stat_fields(text)
    return consumption_in(fields) if len(fields) >= 22 else None


def consumption_in(fields: list[bytes]) -> Consumption:
    """What the process uses that 22 `stat_fields` or more are of."""
    # utime, stime, and those of its children that it has waited for: what they used is not lost with them.
    ticks = sum(int(field) for field in fields[11:15])
    return Consumption(int(fields[17]), ticks / _TICKS_PER_SECOND, int(fields[21]) * _PAGE_BYTES)


# --- macOS ----------------------------------------------------------------------------------------


def run_ps(command: list[str]) -> bytes:
    """What it prints; OSError if it can't be run, or fails."""
    import subprocess  # where there is no ps to run, it would be a tenth of a spawner's start

    try:
        return subprocess.check_output(command)
    except subprocess.CalledProcessError as error:
        raise OSError(errno.EIO, f"{command[0]} ended with {error.returncode}") from error


def list_by_ps(
    run: Callable[[list[str]], bytes] = run_ps,
) -> list[tuple[Process, bytes]]:
    """Every process, and the text that `has_marker` looks at, as ps(1) tells it; about 10 ms."""
    found: list[tuple[Process, bytes]] = []
    # -E puts the environment behind the command.
    for line in run(["/bin/ps", "-axwwE", "-o", "pid=,ppid=,pgid=,stat=,command="]).splitlines():
        words = line.split(None, 4)
        if len(words) < 4 or not words[0].isdigit():
            continue
        pid, parent, group = (int(word) for word in words[:3])
        # macOS prints 0 for a session, so the group stands for it: jobs start as leaders of both.
        process = Process(pid, parent, group, group, 0, words[3].startswith(b"Z"), 1)
        found.append((process, words[4] if len(words) > 4 else b""))
    return found


def has_marker(text: bytes, marker: bytes) -> bool:
    """Whether a line of ps shows this ``SANDD_JOB``. Apple's own binaries hide theirs.

    An argument of that form is taken for it as well: markers are random enough for that.
    """
    return b" %s=%s " % (JOB_VARIABLE, marker) in b" %s " % text


def consumption_by_ps(
    pids: Iterable[int], run: Callable[[list[str]], bytes] = run_ps
) -> dict[int, Consumption]:
    """What these use, as ps(1) tells it, resident kilobytes and a time; less who is gone."""
    wanted = set(pids)
    found: dict[int, Consumption] = {}
    for line in run(["/bin/ps", "-axo", "pid=,rss=,time="]).splitlines():
        words = line.split()
        if len(words) == 3 and words[0].isdigit() and int(words[0]) in wanted:
            used = Consumption(1, seconds_by_ps(words[2]), int(words[1]) * 1024)
            found[int(words[0])] = used
    return found


def seconds_by_ps(text: bytes) -> float:
    """Of its ``[[DD-]HH:]MM:SS.ss``."""
    days, _, rest = text.rpartition(b"-")
    seconds = 0.0
    for part in rest.split(b":"):
        seconds = seconds * 60 + float(part)
    return seconds + 86_400 * int(days or 0)


# --- both -----------------------------------------------------------------------------------------


def send_signal(process: Process, number: int) -> None:
    """Send ``number`` to exactly this process, not to a newer one that has its pid.

    No error if it is gone.

    Raises:
        PermissionError: it belongs to somebody we have no power over (it ran a setuid program).
    """
    with suppress(ProcessLookupError):
        if sys.platform == "linux":
            _send_checked(process, number)
        else:
            os.kill(process.pid, number)


def _send_checked(process: Process, number: int) -> None:
    if sys.platform == "linux":
        try:
            descriptor = os.pidfd_open(process.pid)
        except ProcessLookupError:
            raise
        except OSError:
            # No pidfd on this kernel (ENOSYS), or no descriptor left (EMFILE): check, then hope.
            if _is_still(process):
                os.kill(process.pid, number)
            return
        try:
            if _is_still(process):
                signal.pidfd_send_signal(descriptor, number)
        finally:
            os.close(descriptor)


def _is_still(process: Process) -> bool:
    now = read_process(process.pid)
    return now is not None and now.began == process.began
