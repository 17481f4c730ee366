"""The log of a running controller: what is told to it is written by one thread, together with all that came meanwhile.

A record that somebody waits for is written as soon as the disk is free, and takes along whatever else has come: so the
more there is to write, the more of it shares one sync. What nobody waits for may wait for 20 ms.
"""

from __future__ import annotations

import contextlib
import errno
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Final

import trio
from attrs import define, field
from outcome import Value, capture

from sandd._core._errors import ConfigurationError
from sandd._core.audit.flood import Floods
from sandd._core.audit.keys import KEY_FILE, make_key
from sandd._core.audit.records import Record, RecordType
from sandd._core.audit.redaction import Redactor
from sandd._core.audit.segments import Lines, SegmentedLog, Stamped
from sandd._core.interrupts import protected_context
from sandd._core.logs import get_logger
from sandd._core.metrics.audit_counts import AuditCounts
from sandd._core.nurseries import open_unwrapping_nursery

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable
    from pathlib import Path

    from outcome import Outcome

    from sandd._core.audit.options import AuditOptions

log = get_logger("audit")

LOG_DIRECTORY: Final = "audit"
"""In a controller's state directory."""
GROUP_SECONDS: Final = 0.02
"""For what nobody waits for: so many records may share a sync, and so many may be lost by a crash."""
MAX_BATCH: Final = 200
"""Records in one write: 80 KB, which a disk takes in a moment; their lines take 5 ms, in which nothing else runs."""
MAX_WAITING: Final = 50_000
"""Notes that wait for a disk that is full, or hangs: some 50 MB of memory. Then the oldest are counted instead; the
newest, where somebody waits for what is before them."""
RETRY_SECONDS: Final = 1.0
"""How often a disk that is full is tried again."""
CLOSE_SECONDS: Final = 5.0
"""For the rest, when the controller closes: a disk that hangs must not keep it."""
HANDOVER_SECONDS: Final = 0.001
"""For the thread to be at the disk, while the loop waits: a tenth of that is usual, and a disk that is slow to take
what is written may cost the rest. If it didn't wait, a loop that is busy would keep the interpreter for five of these
(Python's switch interval) after each of the thread's steps, and all who wait for the log would wait for that."""
LOOK_SECONDS: Final = 1.0
"""How often it is looked whether a checkpoint is due, and whether it is to be told what was left out."""
FULL: Final = "the audit log can't be written, so nothing is run: "


@define(eq=False)
class Waiting:
    """A record on its way, and who waits for it."""

    stamped: Stamped
    done: Callable[[str | None], None] | None


@protected_context
async def open_audit_log(
    state_dir: Path, options: AuditOptions, *, secrets: Iterable[str | bytes] = ()
) -> AsyncIterator[AuditLog]:
    """The audit log in a controller's state directory, which is held by its lock, while the block lasts.

    Leaving it writes what is left, and signs it; within CLOSE_SECONDS.

    Raises:
        ConfigurationError: it can't be gone on with; see `SegmentedLog.open`.
    """
    redactor = Redactor([*options.secrets, *secrets])
    limiter = trio.CapacityLimiter(1)  # of its own, whatever others do

    def open_file() -> SegmentedLog:
        directory = state_dir / LOG_DIRECTORY
        try:
            key = make_key(state_dir / KEY_FILE)
            return SegmentedLog.open(directory, key, redactor, segment_bytes=options.segment_bytes)
        except OSError as error:
            raise ConfigurationError(f"can't use the audit log in {directory}: {error}") from error

    with trio.CancelScope(shield=True):  # a log that was opened has to be closed
        file = await trio.to_thread.run_sync(open_file, limiter=limiter)
    opened = AuditLog(file, options, redactor)
    opened.note(Record(type=RecordType.CONTROLLER, outcome="started"))
    async with open_unwrapping_nursery() as nursery:
        nursery.start_soon(opened._serve)
        try:
            yield opened
        finally:
            opened.note(Record(type=RecordType.CONTROLLER, outcome="closed"))
            opened._close()


@define(eq=False)
class AuditLog:
    """An `AuditSink` that keeps what it is told. Made by `open_audit_log`."""

    _file: SegmentedLog
    _options: AuditOptions
    redactor: Redactor
    settle: Callable[[], None] = field(default=lambda: None)
    """Called when some have heard that their records are safe, or can't be written."""
    is_on: ClassVar[bool] = True
    failure: str | None = None
    """Why nothing can be written at present."""
    counts: AuditCounts = field(factory=AuditCounts)
    _waiting: list[Waiting] = field(factory=list)
    _under_way: list[Waiting] = field(factory=list)
    """Those that the thread has."""
    _floods: Floods = field(factory=Floods)
    _summed_at: float = 0.0
    """When it was last told what was left out."""
    _lost: int = 0
    """Notes there was no room for while the disk was full."""
    _came: trio.Event = field(factory=trio.Event)
    _urgent: trio.Event = field(factory=trio.Event)
    _closing: bool = False
    _abandoned: bool = False
    """The disk hangs, and nobody waits for it any more."""
    _in_use: threading.Lock = field(factory=threading.Lock)
    """Held by the thread that uses the file."""
    _scope: trio.CancelScope = field(factory=lambda: trio.CancelScope(shield=True))

    def __repr__(self) -> str:
        state = "" if self.failure is None else f", failing: {self.failure}"
        return f"<AuditLog {str(self._file.directory)!r}{state}>"

    # -- for those who have something to tell

    @trio.lowlevel.enable_ki_protection
    def note(
        self, record: Record, *, from_stranger: bool = False, is_bounded: bool = False
    ) -> None:
        """See `AuditSink`."""
        if from_stranger and not self._floods.admits_stranger(trio.current_time()):
            return
        if is_bounded and not self._floods.admits(record, trio.current_time()):
            return
        self._add(record, None)

    @trio.lowlevel.enable_ki_protection
    def commit(self, record: Record, done: Callable[[str | None], None]) -> None:
        """See `AuditSink`."""
        self._add(record, done)
        self._urgent.set()

    def _add(self, record: Record, done: Callable[[str | None], None] | None) -> None:
        if done is None and len(self._waiting) >= MAX_WAITING:
            self._lost += 1
            if self._waiting[0].done is not None:
                return
            del self._waiting[0]
        stamped = Stamped(record, time.time(), time.monotonic())
        self._waiting.append(Waiting(stamped, done))
        self._came.set()

    # -- writing

    @trio.lowlevel.enable_ki_protection
    async def _serve(self) -> None:
        try:
            with self._scope:
                while not self._closing or self._waiting:
                    await self._until_due()
                    if not await self._write_batch() and not self._closing:
                        await trio.sleep(RETRY_SECONDS)
                await self._sign_and_close()
                return
        except BaseException:  # what an answer has raised
            self._abandoned = True
            self._let_go_if_abandoned()
            raise
        # The disk has hung, and may go on with it: the thread that it holds has the file.
        self._abandoned = True
        self._let_go_if_abandoned()
        self.failure = "the disk did not take it in time"
        self._answer([*self._under_way, *self._take_all()], FULL + self.failure)
        log.error("audit_log_not_closed", path=str(self._file.directory), reason=self.failure)

    async def _sign_and_close(self) -> None:
        try:
            await self._in_thread(self._file.close)
        except OSError as error:  # what was written is safe, and the next run signs it
            self._file.let_go()
            self._tell_not_signed(error)

    async def _until_due(self) -> None:
        """Something is to be written: because somebody waits for it, or has been waiting for long enough."""
        while not (self._waiting or self._closing):
            with trio.move_on_after(LOOK_SECONDS):
                await self._came.wait()
            if not self._waiting:
                await self._keep_up()
        if not (self._closing or self._urgent.is_set()):  # else to wait would be a turn of the loop
            with trio.move_on_after(GROUP_SECONDS):
                await self._urgent.wait()

    async def _write_batch(self) -> bool:
        """Write what there is; False if that can't be done."""
        if trio.current_time() - self._summed_at >= LOOK_SECONDS:
            self._tell_left_out()  # also where there is never a moment in which nothing is written
        self._came, self._urgent = trio.Event(), trio.Event()
        batch, self._waiting = self._waiting[:MAX_BATCH], self._waiting[MAX_BATCH:]
        if self._waiting:
            self._came.set()
            self._urgent.set()
        self._under_way = batch
        lost = self._lost
        # Made here, and not by the thread: two that want the interpreter would wait for each other.
        made = self._file.make_lines(self._with_counts(batch))
        try:
            at_disk = threading.Event()
            await self._in_thread(
                partial(self._append, made, at_disk),
                lambda: at_disk.wait(HANDOVER_SECONDS),
                then=partial(self._written, batch, lost),
            )
        except OSError as error:
            self._file.take_back(made)
            self._fail(batch, error)
            return False
        return True

    def _written(self, batch: list[Waiting], lost: int) -> None:
        if self.failure is not None:
            log.warning("audit_log_recovered", path=str(self._file.directory))
        self.failure = None
        self.counts.records += len(batch)
        self._lost -= lost  # more may have come meanwhile
        self._under_way = []
        self._answer(batch, None)

    def _append(self, made: Lines, at_disk: threading.Event) -> None:
        self._file.append(made, on_sync=at_disk.set)
        self._keep_up_quietly()

    async def _keep_up(self) -> None:
        self._tell_left_out()
        try:
            await self._in_thread(self._keep_up_quietly)
        except OSError as error:  # there was no thread to be had
            self._tell_not_signed(error)

    def _tell_left_out(self) -> None:
        self._summed_at = trio.current_time()
        for each in self._floods.summaries():
            self._add(each, None)

    def _keep_up_quietly(self) -> None:
        try:
            self._file.keep_up()
        except OSError as error:  # what was appended is safe; it will be tried again
            self._tell_not_signed(error)

    def _tell_not_signed(self, error: OSError) -> None:
        log.warning("audit_log_not_signed", path=str(self._file.directory), error=str(error))

    def _with_counts(self, batch: list[Waiting]) -> list[Stamped]:
        stamped = [each.stamped for each in batch]
        now = (time.time(), time.monotonic())
        if self._lost:
            reason = f"{self._lost} events could not be written"
            lost = Record(type=RecordType.LOST, outcome="lost", reason=reason)
            stamped.insert(0, Stamped(lost, *now))
        return stamped

    def _fail(self, batch: list[Waiting], error: OSError) -> None:
        """Whoever waits is told that it can't be; what is only noted is kept until it can."""
        if self.failure is None:
            log.error(
                "audit_log_failed",
                path=str(self._file.directory),
                error=str(error),
                on_full=self._options.on_full,
            )
            self.counts.failures += 1
        self.failure = error.strerror or str(error)
        self._under_way = []
        asked = [each for each in (*batch, *self._waiting) if each.done is not None]
        if self._options.on_full == "run":
            kept = [Waiting(each.stamped, None) for each in (*batch, *self._waiting)]
            refusal = None
        else:
            kept = [each for each in (*batch, *self._waiting) if each.done is None]
            refusal = FULL + self.failure
        self._lost += max(0, len(kept) - MAX_WAITING)
        self._waiting = kept[-MAX_WAITING:]
        if self._waiting:
            self._came.set()
        if self._closing:
            self._waiting.clear()  # there is no later
        self._answer(asked, refusal)

    def _take_all(self) -> list[Waiting]:
        taken, self._waiting = self._waiting, []
        return taken

    def _answer(self, batch: list[Waiting], refusal: str | None) -> None:
        answered = False
        now = time.monotonic()
        for each in batch:
            if each.done is not None:
                self.counts.hold.observe(now - each.stamped.mono)
                each.done(refusal)
                answered = True
        if answered:
            self.settle()

    async def _in_thread(
        self,
        work: Callable[[], None],
        hand_over: Callable[[], object] = lambda: None,
        *,
        then: Callable[[], None] = lambda: None,
    ) -> None:
        """Have a thread do the work, and do at once what follows when it is done; `hand_over` waits until it has begun.

        Not by `trio.to_thread`: there all other tasks have their turn before the thread hears of the work, and again
        before its end is heard of; with many commands in flight a turn takes longer than the disk. Cancelled, the
        thread is left alone with it.

        Raises:
            OSError: of the work; or there can't be one more thread here, and nothing was done.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        task, token = trio.lowlevel.current_task(), trio.lowlevel.current_trio_token()
        is_left_alone = False

        def leave_alone(_: object) -> trio.lowlevel.Abort:
            nonlocal is_left_alone
            is_left_alone = True
            return trio.lowlevel.Abort.SUCCEEDED

        def hear(result: Outcome[None]) -> None:
            if is_left_alone:
                return
            if isinstance(result, Value):
                result = capture(then)
            trio.lowlevel.reschedule(task, result)

        def tell(result: Outcome[None]) -> None:
            with contextlib.suppress(trio.RunFinishedError):
                token.run_sync_soon(hear, result)

        try:
            trio.lowlevel.start_thread_soon(partial(self._use, work), tell)
        except RuntimeError as error:  # the system's limit on processes, mostly: it passes
            raise OSError(errno.EAGAIN, str(error)) from error
        hand_over()
        await trio.lowlevel.wait_task_rescheduled(leave_alone)

    def _use(self, work: Callable[[], None]) -> None:
        try:
            with self._in_use:
                work()
        finally:
            self._let_go_if_abandoned()

    def _let_go_if_abandoned(self) -> None:
        # Whoever comes second, of the thread and who gives it up, finds the lock free and the mark set.
        if self._abandoned and self._in_use.acquire(blocking=False):
            try:
                self._file.let_go()
            finally:
                self._in_use.release()

    def _close(self) -> None:
        """Have the task write the rest, and end."""
        self._tell_left_out()
        self._closing = True
        self._scope.deadline = trio.current_time() + CLOSE_SECONDS
        self._came.set()
        self._urgent.set()
