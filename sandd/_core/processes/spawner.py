"""The spawner: a small process that starts every job, and cleans up after whoever dies.

Why it exists: whoever dies by SIGKILL can't clean up, and once the daemon is dead its ``setsid``
escapees belong to process 1. So somebody else must be their parent. The daemon holds one end of a
socket; when that ends, for whatever reason, the spawner kills everything below itself and exits.
When the spawner dies, all its processes fall to the daemon, which then does the same
(`lost_trees`).

Standard library only. It never blocks on a job: starting one takes about 1 ms, killing one is a
state with a timer:

    RUNNING --kill--> ASKED --grace over--> CULLING
       `------------ kill, grace 0 ------------^

In any of them the death of the leader is reported (`Exited`). As soon as the leader is dead and its
tree empty, it is reaped and the job forgotten (`Gone`, or as part of `Exited`); until then it stays
a zombie, so that its number can't be used again.
"""

from __future__ import annotations

import _socket
import contextlib
import enum
import errno
import gc
import os
import signal
import sys
import time
from functools import partial

if sys.platform == "win32":
    raise ImportError("POSIX only")  # where mypy stops reading, too

from sandd._core.processes import control_groups, culling, process_table
from sandd._core.processes.exit_watch import WaitStatus, open_exit_watch
from sandd._core.processes.forked_launch import ConfinementError, LimitError
from sandd._core.processes.job_trees import Tree, open_job_trees, ticks_since_boot
from sandd._core.processes.limit_cells import CellError
from sandd._core.processes.limit_groups import open_limit_groups
from sandd._core.processes.limit_keeper import Guard, LimitKeeper, LimitsUnheldError
from sandd._core.processes.readiness import open_readiness
from sandd._core.processes.spawner_messages import (
    Exited,
    Failed,
    Forget,
    Gone,
    Kill,
    Message,
    MessageReader,
    ProcessLimits,
    Ready,
    Signal,
    Spawn,
    Started,
    encode,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

START_REPORT_SECONDS = 0.001
"""How long the report of a start waits for the exit of a short command. One report then tells both,
and nobody takes the processor from it meanwhile: that saves the daemon half of its time."""
UNSPOKEN_START_REPORT_SECONDS = 0.002
"""As above, where nobody can say anything to the command: on a busy machine the shortest takes longer than 1 ms."""
CROWD = 2
"""So many jobs that have just begun are a crowd: they wait for the processors, and what is done for several in a row
costs each of the programs on the way less than what is done for one at a time. By itself, none waits for another,
whatever else runs on."""
CROWD_REQUESTS = 8
"""So many requests of a crowd are served in a row, while ends, and all that has a time, wait."""
CROWD_SECONDS = 0.02
"""How long, at most: a start takes half a millisecond, or as long as the disk does."""
CROWD_REPORT_BYTES = 512
"""From here on the ends of a crowd are told, though others may be dead, too: it is about ten."""
LAST_CULL_SECONDS = 10.0
"""Bound of the very last cull: who lives longer hangs in the kernel, his SIGKILL pending."""
LONGEST_WAIT_SECONDS = 24 * 3600.0
"""Then it looks at the clock again. epoll can't wait for more than 24 days, a grace may be longer, and
what `select` raises would end all jobs."""
COLLECTED_OBJECTS = 20_000
"""New objects, in containers, after which cycles are looked for: Python's 700 come with every command."""
_NEVER = float("inf")
_NOTHING_USED = (0.0, 0), ""
_YIELDS = sys.platform == "linux"
"""Let the child that was just started have the processor, if we have it from there.

On the way into its program it has let us go on, which takes the processor from it if it shares ours; and what follows
has time, until it ends. A short command is over when we go on, and 0.2 ms earlier. In a crowd that would be anybody's,
and somebody else always has something to do."""
_IDENTITY_ERRORS = (errno.EPERM, errno.EINVAL)
"""Of setuid(2) and setgroups(2); chdir(2) and fork(2) know neither."""


class Phase(enum.Enum):
    """Where a job is on its way out."""

    RUNNING = enum.auto()
    ASKED = enum.auto()
    CULLING = enum.auto()


class Hunt:
    """What is remembered from one round of killing a tree to the next."""

    __slots__ = ("patience", "pauses", "powerless", "race")

    def __init__(self) -> None:
        self.pauses: Iterator[float] = culling.pauses()
        self.powerless: list[process_table.Process] = []
        self.patience = culling.Patience()
        self.race = culling.Race()


class Job:
    """One started job; it exists until its leader is reaped."""

    __slots__ = (*("asked_by", "due", "guard", "hunt", "number", "phase", "status", "tree"),)

    def __init__(self, number: int, tree: Tree, asked_by: int, guard: Guard | None = None) -> None:
        self.number = number
        """What the messages call `job`."""
        self.tree = tree
        self.guard = guard
        """What holds it to its limits; None: it has none."""
        self.asked_by = asked_by
        """The signal that asks its tree to end."""
        self.status: WaitStatus | None = None
        self.phase = Phase.RUNNING
        self.due = _NEVER
        """Monotonic time of the next step: the end of the grace, or the next round."""
        self.hunt: Hunt | None = None
        """Made when it is killed: most jobs end by themselves."""

    @property
    def unheld(self) -> tuple[str, ...]:
        """Which of its limits can't be held here."""
        return () if self.guard is None else self.guard.unheld


class Spawner:
    """The event loop and the table of jobs."""

    def __init__(
        self,
        link: _socket.socket,
        daemon: int,
        group: control_groups.OwnGroup | None = None,
        limits: LimitKeeper | None = None,
    ) -> None:
        self._link = link
        self._group = group
        self._limits = LimitKeeper(None) if limits is None else limits
        self._link_number = link.fileno()
        self._reader = MessageReader(link)
        self._base: dict[bytes, bytes] = {}
        self._outgoing = bytearray()
        self._is_stopped = False
        """The daemon did not read all that was sent: the rest goes when it does."""
        self._is_linked = True
        self._held: dict[int, tuple[float, Job]] = {}
        """Jobs whose start is not reported yet, by number: until which monotonic time that waits for their end."""
        self._jobs: dict[int, Job] = {}
        self._by_leader: dict[int, Job] = {}
        self._dying: dict[int, Job] = {}
        """Those of `_jobs` that are not `RUNNING` any more, and so have a next step."""
        self._guarded: dict[Guard, Job] = {}
        self._trees = open_job_trees(no_jobs=self._limits.cells)
        self._brand = int.from_bytes(os.urandom(8), "big") >> 2
        """Of the latest job. Another spawner, be it below one of our jobs, counts from elsewhere."""
        self._watch = open_exit_watch()
        self._child_died = _open_child_alarm()
        self._is_refresh_wanted = False
        self._daemon_pidfd = _watch_daemon(daemon)
        self._readiness = open_readiness()
        waited_for = (self._child_died, self._watch.descriptor, self._daemon_pidfd)
        for descriptor in (self._link_number, *waited_for):
            if descriptor is not None:
                self._readiness.add(descriptor)

    def run(self) -> None:
        """Serve until the daemon is gone; then kill everything."""
        self._say(
            Ready(
                _become_subreaper(),
                None if self._group is None else self._group.path,
                self._limits.driver,
                tuple(self._limits.holds),
                tuple(self._limits.holds_total),
                self._limits.directories,
            )
        )
        while self._is_linked:
            # One moment for both: what isn't due yet when it is looked at is waited for.
            now = time.monotonic()
            if self._held:
                self._release_starts(now)
            if self._outgoing:
                self._flush()
            somebody_died = False
            # A few requests at a time from the link, so that a hundred of them don't hold up the exits.
            for descriptor in self._readiness.wait(self._seconds_to_next_step(now)):
                if descriptor == self._link_number:
                    somebody_died = self._serve_requests() or somebody_died
                elif descriptor == self._daemon_pidfd:
                    self._is_linked = False
                else:
                    somebody_died = True
                    if descriptor == self._child_died:
                        self._hear_alarm()
            if somebody_died or self._is_refresh_wanted:
                self._look_after_children(somebody_died)
            if self._limits.is_busy:
                self._look_after_limits()
            if self._dying:
                self._take_due_steps()
        self._cull_everything()

    # --- requests ---

    def _serve_requests(self) -> bool:
        """What has come with one read, in a crowd with several; whether a process was started, which may be over."""
        has_started, served, until = False, 0, 0.0
        try:
            while (received := self._reader.receive()) is not None:
                message, descriptors, is_complete = received
                if type(message) is Spawn:
                    has_started = (
                        self._serve_start(message, descriptors, is_complete) or has_started
                    )
                else:
                    self._serve_other(message)
                if self._reader.is_ahead:
                    continue  # of that nothing else would tell
                served += 1
                if len(self._held) < CROWD or served >= CROWD_REQUESTS:
                    break
                until = until or time.monotonic() + CROWD_SECONDS
                if time.monotonic() >= until:
                    break
        except (EOFError, OSError):
            self._is_linked = False
        return has_started

    def _serve_start(self, request: Spawn, descriptors: list[int], is_complete: bool) -> bool:
        if request.base is not None:
            self._base = request.base
        try:
            if not is_complete:
                # The kernel had no room for the descriptors that came with it.
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            self._start(request, descriptors)
        except Exception as error:
            # Whatever it is: one request must not end all the other jobs.
            self._say(_failure(request, error))
            return False
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        return True

    def _serve_other(self, message: Message) -> None:
        job = self._jobs.get(message.job) if isinstance(message, (Signal, Kill, Forget)) else None
        if job is None:
            return  # it went while the request was on its way; the daemon has been told
        if isinstance(message, Signal):
            culling.signal_group(job.tree.leader, message.number)
        elif isinstance(message, Kill):
            self._kill(job, message.grace)
        elif job.phase is Phase.RUNNING and job.status is not None:
            self._trees.refresh()
            self._finish(job)

    def _start(self, request: Spawn, descriptors: list[int]) -> None:
        began = ticks_since_boot()
        self._brand += 1
        brand = self._brand if process_table.brand_children(self._brand) else None
        env = {**self._base, **request.env}
        pid, guard = self._limits.launch(request, env, descriptors, brand or 0)
        if _YIELDS and len(self._held) < CROWD:
            os.sched_yield()
        terminal = request.terminal
        tree = self._trees.add(pid, request.marker, began, brand)
        job = Job(request.job, tree, signal.SIGHUP if terminal else signal.SIGTERM, guard)
        self._jobs[job.number] = self._by_leader[pid] = job
        self._watch.add(pid)
        if guard is not None:
            self._guarded[guard] = job
        is_spoken_to = request.stdin or terminal
        hold = START_REPORT_SECONDS if is_spoken_to else UNSPOKEN_START_REPORT_SECONDS
        self._say_later(job, hold)

    # --- ends ---

    def _hear_alarm(self) -> None:
        """Take note of the SIGCHLDs there were: whoever died by then is seen by the next look."""
        try:
            os.read(self._child_died, 4096)
        except BlockingIOError:  # `contextlib.suppress` would be three calls more, for each exit
            pass

    def _look_after_children(self, somebody_died: bool) -> None:
        if somebody_died:
            is_refreshed = False
            while exited := self._watch.ended():
                self._trees.refresh()
                self._is_refresh_wanted, is_refreshed = False, True
                for pid, status in exited:
                    if pid in self._by_leader:
                        self._note_exit(self._by_leader[pid], status)
                if len(self._held) < CROWD or len(self._outgoing) > CROWD_REPORT_BYTES:
                    self._flush()  # somebody waits for this, and for nothing of what follows
                if self._dying:
                    self._finish_the_empty()
                elif not self._jobs:
                    break  # there is nobody else to ask for
            if self._outgoing:
                self._flush()  # as above
            if self._watch.others_are_dead and not is_refreshed:
                self._is_refresh_wanted = True
        if self._is_refresh_wanted and self._trees.refresh_due(time.monotonic()) == 0:
            self._trees.refresh()
            self._is_refresh_wanted = False
            self._finish_the_empty()

    def _finish_the_empty(self) -> None:
        for job in list(self._dying.values()):
            self._finish_if_empty(job)

    def _note_exit(self, job: Job, status: WaitStatus) -> None:
        job.status = status
        is_gone = self._trees.is_empty(job.tree)
        used, limit = self._remove(job) if is_gone else _NOTHING_USED
        started = None
        if self._held.pop(job.number, None) is not None:
            started = (job.tree.leader, job.unheld)
        self._say(Exited(job.number, status.code, status.signal, is_gone, used, limit, started))

    def _kill(self, job: Job, grace: float) -> None:
        deadline = time.monotonic() + grace
        self._dying[job.number] = job
        if job.hunt is None:
            job.hunt = Hunt()
        if job.phase is Phase.RUNNING and grace > 0:
            culling.ask_to_end(job.tree.leader, self._trees.members(job.tree), job.asked_by)
            job.phase = Phase.ASKED
            job.due = deadline
        elif job.phase is not Phase.CULLING:
            job.due = min(job.due, deadline)
            if grace <= 0:
                job.phase = Phase.CULLING
        self._trees.refresh()
        self._finish_if_empty(job)

    def _look_after_limits(self) -> None:
        self._limits.tidy()
        if self._limits.seconds_to_next_look(time.monotonic()) > 0:
            return
        for guard in self._limits.look(lambda each: self._trees.members(self._guarded[each].tree)):
            self._kill(self._guarded[guard], 0.0)

    def _take_due_steps(self) -> None:
        now = time.monotonic()
        for job in [job for job in self._dying.values() if job.due <= now]:
            job.phase = Phase.CULLING
            members, hunt = partial(self._trees.members, job.tree), job.hunt
            assert hunt is not None  # made by `_kill`
            if job.guard is not None:
                job.guard.stop_forks()
            if hunt.race.is_being_lost and self._cull_frozen(members):
                hunt.race = culling.Race()
            else:
                hunt.powerless = culling.cull(members, [job.tree.leader], hunt.race)
            now = time.monotonic()
            job.due = now + next(hunt.pauses)
            self._trees.refresh()
            if self._finish_if_empty(job):
                continue
            left = hunt.powerless
            if left and hunt.patience.is_over(self._trees.members(job.tree), left):
                self._finish(job)

    def _finish_if_empty(self, job: Job) -> bool:
        if job.status is None or not self._trees.is_empty(job.tree):
            return False
        if job.hunt is not None:
            job.hunt.powerless = []
        self._finish(job)
        return True

    def _finish(self, job: Job) -> None:
        used = self._remove(job)
        left = [] if job.hunt is None else job.hunt.powerless
        self._say(Gone(job.number, tuple([process.pid for process in left]), *used))

    def _remove(self, job: Job) -> tuple[tuple[float, int], str]:
        """What it has used, and which limit it went beyond."""
        # Only now may the number of the leader, and of its group and session, be used again. (A
        # leader that we could not kill lives on as an orphan, and is reaped like one.)
        self._trees.discard(job.tree)
        usage, limit = process_table.reap_with_usage(job.tree.leader), ""
        del self._jobs[job.number], self._by_leader[job.tree.leader]
        self._dying.pop(job.number, None)
        if job.guard is not None:
            del self._guarded[job.guard]
            by_signal = None if job.status is None else job.status.signal
            usage, limit = self._limits.finish(job.guard, usage, by_signal)
        return usage, limit

    def _seconds_to_next_step(self, now: float) -> float | None:
        due = _NEVER
        if self._dying:
            due = min([job.due - now for job in self._dying.values()])
        if self._held:
            due = min(due, min([until for until, _ in self._held.values()]) - now)
        if self._is_refresh_wanted:
            due = min(due, self._trees.refresh_due(now))
        if self._limits.is_busy:
            due = min(due, self._limits.seconds_to_next_look(now))
        return None if due == _NEVER else min(max(0.0, due), LONGEST_WAIT_SECONDS)

    def _cull_frozen(self, find: Callable[[], list[process_table.Process]]) -> bool:
        """Stop all jobs for a moment to kill one that can't be caught otherwise; false if we can't."""
        if self._group is None:
            return False
        with self._group.outside() as is_outside:
            if is_outside:
                with self._group.frozen():
                    culling.cull_frozen(find)
        return is_outside

    def _cull_everything(self) -> None:
        """The last thing a spawner does."""
        self._limits.end()
        end = time.monotonic() + LAST_CULL_SECONDS
        patience, race = culling.Patience(), culling.Race()
        for pause in culling.pauses():
            if self._trees.is_all_gone() or time.monotonic() > end:
                return
            if race.is_being_lost and self._group is not None:
                with self._group.outside() as is_outside:
                    if is_outside:
                        self._group.kill()
                race = culling.Race()
            powerless = culling.cull(self._trees.everybody, self._by_leader, race)
            time.sleep(pause)
            if patience.is_over(self._trees.everybody(), powerless):
                return

    # --- reports ---

    def _say(self, message: Message) -> None:
        if self._held and not isinstance(message, Ready):
            # Its own job's start goes before it. Those of others wait for theirs: where many run, somebody ends
            # all the time.
            self._say_start(message.job)
        self._outgoing += encode(message)

    def _say_later(self, job: Job, seconds: float) -> None:
        """Say that it has started when so much time has passed, or something else is said of it."""
        self._held[job.number] = (time.monotonic() + seconds, job)

    def _say_start(self, number: int) -> None:
        """Say that the job has started, unless that was said."""
        held = self._held.pop(number, None)
        if held is not None:
            _, job = held
            self._outgoing += encode(Started(number, job.tree.leader, job.unheld))

    def _release_starts(self, now: float) -> None:
        for number in [number for number, (until, _) in self._held.items() if until <= now]:
            self._say_start(number)

    def _flush(self) -> None:
        """Send what there is in one go; what a stopped daemon does not read waits here."""
        try:
            while self._outgoing:
                del self._outgoing[: self._link.send(self._outgoing)]
        except BlockingIOError:
            pass
        except OSError:
            self._is_linked = False
            return
        if self._is_stopped != bool(self._outgoing):
            self._is_stopped = not self._is_stopped
            self._readiness.want_room(self._link_number, self._is_stopped)


def _failure(request: Spawn, error: Exception) -> Failed:
    if not isinstance(error, OSError) or error.errno is None:
        # A NUL in an argument, a "=" in a variable's name: what no program can be given.
        return Failed(request.job, errno.EINVAL, str(error) or type(error).__name__, None)
    filename = error.filename
    if (
        request.identity is not None
        and filename in (None, request.cwd)
        and error.errno in _IDENTITY_ERRORS
    ):
        return Failed(request.job, error.errno, f"can't become uid {request.identity[0]}", None)
    text = os.strerror(error.errno)
    if isinstance(error, CellError | ConfinementError | LimitError | LimitsUnheldError):
        text = error.strerror or text
    return Failed(
        request.job, error.errno, text, None if filename is None else os.fsdecode(filename)
    )


def _become_subreaper() -> bool:
    if sys.platform != "linux":
        return False
    try:
        process_table.set_subreaper(True)
    except OSError:
        return False
    return True


def _watch_daemon(daemon: int) -> int | None:
    """A descriptor that is readable once the daemon is dead, whoever else has its socket."""
    if sys.platform != "linux":
        return None
    try:
        return os.pidfd_open(daemon)
    except OSError:
        return None


def _open_child_alarm() -> int:
    """A descriptor that is readable after each SIGCHLD, and doesn't block."""
    alarm, ring = os.pipe()
    os.set_blocking(alarm, False)
    os.set_blocking(ring, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)  # without a handler there is no wakeup
    signal.set_wakeup_fd(ring, warn_on_full_buffer=False)
    return alarm


def _reset_signals() -> None:
    """Give children the system's defaults, whatever ``&`` or nohup gave to the daemon.

    The usual ways to ask a program to end are *caught*, which children don't inherit, and do
    nothing: if a service manager sends them to all processes at once, the daemon decides when its
    jobs end, not we.
    """
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    # These are ignored by Python itself; children start without that.
    kept = {signal.SIGPIPE, signal.SIGXFSZ}
    for number in signal.valid_signals() - kept:
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, lambda *_: None)


def _name_ourselves() -> None:
    """Say in ps and top what this process is; its command line would not tell a stranger."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError), open("/proc/self/comm", "wb") as comm:
            comm.write(b"sandd-spawner")


def _limit_open_files(soft: int) -> None:
    """Go back to the limit the daemon was started with; children inherit it from here."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def main(
    descriptor: int,
    daemon: int,
    soft_limit: int | None,
    total: tuple[Any, ...] | None = None,
) -> None:
    """Be the spawner of process ``daemon``, which has the other end of socket ``descriptor``.

    Args:
        soft_limit: of open files, for children.
        total: `ProcessLimits` of all jobs together.
    """
    gc.freeze()
    gc.set_threshold(COLLECTED_OBJECTS)
    gc.enable()
    _reset_signals()
    _name_ourselves()
    if soft_limit is not None:
        _limit_open_files(soft_limit)
    os.set_inheritable(descriptor, False)
    link = _socket.socket(fileno=descriptor)
    link.setblocking(False)
    choice = os.environ.get(control_groups.CHOICE_VARIABLE, "")
    group = control_groups.enter_new_group(choice)
    limits = LimitKeeper(
        open_limit_groups(choice), None if total is None else ProcessLimits(*total)
    )
    Spawner(link, daemon, group, limits).run()
    limits.remove()
    if group is not None and (os.getppid() != daemon or process_table.is_exiting(daemon)):
        group.dissolve()  # else the daemon does, which need not wait 10 ms for it
