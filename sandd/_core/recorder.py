"""Records a terminal session to a file, and never lets the disk be the session's business.

The methods of a `Recorder` note what happened and return at once. A task takes all that was noted
every now and then and hands it to a thread, which encodes and writes it: one thread at a time, so
the lines are in order. A disk that is slow costs parts of the recording, one that fails the rest of it.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

from sandd._core.asciicast import MAX_RECORDING_BYTES, AsciicastEncoder
from sandd._core.interrupts import protected_context
from sandd._core.logs import get_logger
from sandd._core.nurseries import open_unwrapping_nursery
from sandd.wire import KIB, MIB

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from io import FileIO

    from sandd._core.asciicast import Direction
    from sandd._core.audit.redaction import Redactor

log = get_logger("recorder")

QUEUE_BYTES: Final = 4 * MIB
"""Noted and not yet written: what a busy terminal prints in a second in which the disk stands still."""
NOTE_BYTES: Final = 256
"""What a note costs in memory besides its data; it counts, so that there can't be a million tiny ones."""
WRITE_AFTER_SECONDS: Final = 0.25
"""From the first note to its writing: someone who looks on sees it soon, and a keystroke costs no thread."""
CLOSE_SECONDS: Final = 5.0
"""For the rest, once the block was left: a disk that hangs must not keep the session's program."""
WRITE_BYTES: Final = 256 * KIB
"""Encoded lines per write: encoding makes up to six bytes of one, and not all of them shall be in memory."""


@protected_context
async def open_recorder(
    path: str | os.PathLike[str],
    *,
    rows: int,
    cols: int,
    term: str,
    command: str | None = None,
    title: str | None = None,
    include_input: bool = False,
    max_bytes: int = MAX_RECORDING_BYTES,
    redactor: Redactor | None = None,
) -> AsyncIterator[Recorder]:
    """A `Recorder` to a new file that only its owner may read; leaving the block completes the file.

    Leaving takes as long as the disk does for the rest, but at most `CLOSE_SECONDS`, cancelled or not.

    Args:
        include_input: record what is typed, too; passwords among it.
        max_bytes: at most that much is written; the last line says so where it was too little.
        redactor: knows what is not to be recorded, whoever shows or types it.

    Raises:
        FileExistsError: there is something at `path`; a recording never overwrites another one.
        OSError: the file can't be made; nothing is left of it.
        ValueError: `max_bytes` is too small for a recording.
    """
    encoder = AsciicastEncoder(
        rows=rows,
        cols=cols,
        term=term,
        timestamp=int(time.time()),
        now=trio.current_time(),
        command=command,
        title=title,
        max_bytes=max_bytes,
        redactor=redactor,
    )
    file = RecordingFile(Path(path))
    limiter = trio.CapacityLimiter(1)  # of its own: a disk that hangs takes no one else's threads
    try:
        await trio.to_thread.run_sync(
            file.create, encoder.header, limiter=limiter, abandon_on_cancel=True
        )
    except trio.Cancelled:
        file.give_up(unwanted=True)
        raise
    recorder = Recorder(file, encoder, limiter, include_input=include_input)
    async with open_unwrapping_nursery() as nursery:
        nursery.start_soon(recorder._serve)
        try:
            yield recorder
        finally:
            recorder._close()


class Recorder:
    """Takes note of what happens in a session; made by `open_recorder`. No method blocks or fails."""

    def __init__(
        self,
        file: RecordingFile,
        encoder: AsciicastEncoder,
        limiter: trio.CapacityLimiter,
        *,
        include_input: bool,
    ) -> None:
        self.failure: Exception | None = None
        """Why the recording stopped before the session did: an OSError, unless we made a mistake."""
        self._file = file
        self._encoder = encoder
        """Used by the thread alone, but for `full`, between its turns."""
        self._limiter = limiter
        self._include_input = include_input
        self._notes: list[Callable[[], bytes]] = []
        self._noted = 0
        """Bytes the notes count for; those that a thread has taken, and isn't done with, among them."""
        self._missing: dict[Direction, int] = {"o": 0, "i": 0}
        """Bytes there was no room for since the latest note."""
        self._late_size: tuple[int, int] | None = None
        """A size there was no room for since the latest note."""
        self._stopped = False
        """Nothing is noted any more."""
        self._closing = False
        """The block was left."""
        self._came = trio.Event()
        self._urgent = trio.Event()
        self._scope = trio.CancelScope(shield=True)
        """The task's; it has a deadline once the block was left."""

    def __repr__(self) -> str:
        state = "" if self.failure is None else f", failed: {self.failure!r}"
        return f"<Recorder {str(self._file.path)!r}{state}>"

    @property
    def path(self) -> Path:
        """Where it is recorded to."""
        return self._file.path

    @property
    def sha256(self) -> str:
        """Of all that is in the file, in hexadecimal digits; to be asked for when its block was left."""
        return self._file.sha256.hexdigest()

    @trio.lowlevel.enable_ki_protection
    def output(self, data: bytes) -> None:
        """What the terminal was sent; in pieces far below `QUEUE_BYTES`, or there may never be room for one."""
        self._note_data("o", self._encoder.output, data)

    @trio.lowlevel.enable_ki_protection
    def input(self, data: bytes) -> None:
        """What was typed; not recorded unless that was asked for."""
        if self._include_input:
            self._note_data("i", self._encoder.input, data)

    @trio.lowlevel.enable_ki_protection
    def gap(self, start: int, end: int) -> None:
        """Output that was dropped before it came here, by its offsets."""
        if self._has_room():
            self._note(partial(self._encoder.gap, start, end, now=trio.current_time()))
        else:
            self._missing["o"] += end - start

    @trio.lowlevel.enable_ki_protection
    def resized(self, rows: int, cols: int) -> None:
        """The terminal has another size."""
        if self._has_room():
            self._note(partial(self._encoder.resized, rows, cols, now=trio.current_time()))
        else:
            # Only the latest counts: until there is room again, nothing is recorded that was drawn for another.
            self._late_size = (rows, cols)

    @trio.lowlevel.enable_ki_protection
    def ended(self, code: int | None, signal: int | None) -> None:
        """How the session's process ended; neither, if that isn't known. The last thing that is noted."""
        self._note(partial(self._encoder.ended, code, signal, now=trio.current_time()))
        self._stopped = True

    def _note_data(self, direction: Direction, encode: Callable[..., bytes], data: bytes) -> None:
        if self._has_room(len(data)):
            self._note(partial(encode, data, now=trio.current_time()), len(data))
        else:
            self._missing[direction] += len(data)

    def _has_room(self, size: int = 0) -> bool:
        return self._noted + NOTE_BYTES + size <= QUEUE_BYTES

    def _note(self, note: Callable[[], bytes], size: int = 0) -> None:
        if self._stopped:
            return
        self._note_what_is_missing()
        self._append(note, size)
        self._came.set()
        if self._noted >= QUEUE_BYTES // 2:
            self._urgent.set()

    def _note_what_is_missing(self) -> None:
        # Whether there is room or not: that is three notes at most for one that there was room for.
        now = trio.current_time()
        for direction, count in self._missing.items():
            if count:
                self._append(partial(self._encoder.left_out, direction, count, now=now))
                self._missing[direction] = 0
        if self._late_size is not None:
            self._append(partial(self._encoder.resized, *self._late_size, now=now))
            self._late_size = None

    def _append(self, note: Callable[[], bytes], size: int = 0) -> None:
        self._notes.append(note)
        self._noted += NOTE_BYTES + size

    def _close(self) -> None:
        """Have the task write the rest, and end."""
        self._note(partial(self._encoder.finish, now=trio.current_time()))
        self._stopped = self._closing = True
        self._scope.deadline = trio.current_time() + CLOSE_SECONDS
        self._came.set()
        self._urgent.set()

    @trio.lowlevel.enable_ki_protection
    async def _serve(self) -> None:
        with self._scope:
            try:
                await self._serve_until_closed()
            except OSError as error:
                self._fail(error)
            except Exception as error:  # a defect of ours costs the recording, and not the session
                log.exception("recorder_crashed", path=str(self._file.path))
                self.failure = error
        if self._scope.cancelled_caught:
            self._fail(TimeoutError(f"the disk took more than {CLOSE_SECONDS:g} s for the rest"))
        self._stopped = True
        self._notes.clear()
        self._file.give_up()

    async def _serve_until_closed(self) -> None:
        is_last = False
        while not is_last:
            await self._came.wait()
            with trio.move_on_after(WRITE_AFTER_SECONDS):
                await self._urgent.wait()
            is_last = self._closing
            if not is_last:
                self._came, self._urgent = trio.Event(), trio.Event()
            notes, self._notes = self._notes, []
            noted = self._noted
            await self._in_thread(partial(self._file.write, notes))
            self._noted -= noted
            is_last = is_last or self._encoder.full
        # By a thread, too: some file systems write only now, and say only now that they can't.
        await self._in_thread(self._file.close)

    async def _in_thread(self, work: Callable[[], None]) -> None:
        await trio.to_thread.run_sync(work, limiter=self._limiter, abandon_on_cancel=True)

    def _fail(self, error: OSError) -> None:
        log.warning("recording_failed", path=str(self._file.path), reason=str(error))
        self.failure = error


class RecordingFile:
    """The file, used by one thread at a time; a thread that was given up closes it when it comes to that.

    Nobody else may: the descriptor could be another file's by the time the thread uses it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: FileIO | None = None
        self._size = 0
        """Bytes up to the end of the last line that is whole."""
        self.sha256 = hashlib.sha256()
        """Of these."""
        self._in_use = threading.Lock()
        self._given_up = False
        self._unwanted = False

    def create(self, header: bytes) -> None:
        """Make the file; what goes wrong leaves nothing behind."""
        with self._used():
            self._file = open(  # noqa: SIM115 - closed with the recording
                self.path, "xb", buffering=0, opener=_open_private
            )
            try:
                self._append(header)
            except OSError:
                with suppress(OSError):
                    self._opened.close()
                self.path.unlink()
                raise

    def write(self, notes: list[Callable[[], bytes]]) -> None:
        """Append what the notes come to; if that fails, the file ends with the last line that was whole."""
        with self._used():
            lines = bytearray()
            try:
                for note in notes:
                    lines += note()
                    if len(lines) >= WRITE_BYTES:
                        self._append(lines)
                        lines.clear()
                self._append(lines)
            except OSError:
                with suppress(OSError):
                    self._opened.close()
                raise

    def close(self) -> None:
        """The recording is complete, or it says now that it isn't."""
        with self._used():
            self._opened.close()

    def give_up(self, *, unwanted: bool = False) -> None:
        """Close it, and remove it if `unwanted`, as soon as no thread uses it; never waits for that."""
        self._unwanted = unwanted
        self._given_up = True
        self._close_if_given_up()

    @contextmanager
    def _used(self) -> Iterator[None]:
        try:
            with self._in_use:
                yield
        finally:
            self._close_if_given_up()

    def _close_if_given_up(self) -> None:
        # Whoever comes second, of the thread and who gives it up, finds the lock free and the mark set.
        if self._given_up and self._in_use.acquire(blocking=False):
            try:
                if self._file is not None and not self._file.closed:
                    # What the disk still has to say, nobody waits for any more.
                    with suppress(OSError):
                        self._file.close()
                    if self._unwanted:
                        with suppress(OSError):
                            self.path.unlink()
            finally:
                self._in_use.release()

    @property
    def _opened(self) -> FileIO:
        assert self._file is not None
        return self._file

    def _append(self, lines: bytes | bytearray) -> None:
        written = 0
        try:
            with memoryview(lines) as view:
                while written < len(view):
                    written += self._opened.write(view[written:])
        except OSError:
            kept = lines.rfind(b"\n", 0, written) + 1
            with suppress(OSError):
                self._opened.truncate(self._size + kept)
                self._note_whole(lines[:kept])
            raise
        self._note_whole(lines)

    def _note_whole(self, lines: bytes | bytearray) -> None:
        self._size += len(lines)
        self.sha256.update(lines)


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
