"""What a sender says, checked, and turned into steps for whoever writes files.

Nothing a sender says names a path here: it gives single names, which are put below the directory
that the receiver has chosen, and directories only by entering and leaving them.
"""

from __future__ import annotations

import enum
import errno
import re
import sys
from typing import Final, TypeAlias

from attrs import define, field, frozen

from sandd import wire
from sandd._core._errors import RemoteProtocolError

OWN_NAMES: Final = re.compile(rb"\.sandd-[0-9a-f-]+\.part")
"""Files in the making, of this program and of others like it: no transfer sends them."""
_NAMES: Final = re.compile(rb"[^/\0]+")
_NOT_ON_WINDOWS: Final = re.compile(rb"[\\:]|[. ]\Z")
"""A path that is none by itself; and dots and spaces at the end, which it takes away: ".. " may become ".."."""


def check_name(name: bytes) -> None:
    """RemoteProtocolError unless it can be the name of something in a directory, and of nothing else.

    OSError if that is so on other systems, while on this one it is part of a path.
    """
    if not _NAMES.fullmatch(name) or name in (b".", b".."):
        raise RemoteProtocolError(f"{name[:64]!r} is no name")
    if name.startswith(b".sandd-") and OWN_NAMES.fullmatch(name):
        raise RemoteProtocolError(f"{name!r} is a name of files that are in the making")
    if sys.platform == "win32" and _NOT_ON_WINDOWS.search(name):
        raise OSError(errno.EINVAL, "Windows has no such names", name)


# ---- where things go ----------------------------------------------------------------------------


@define(eq=False)
class Folder:
    """A directory of the tree."""

    parent: Folder | None
    path: bytes
    """From the top of the tree, which is b""."""
    mode: int
    mtime: int
    # What follows belongs to who makes it.
    place: bytes = b""
    """Where it is on this machine."""
    waits_for: int = 1
    """Itself being left, and each thing in it that isn't finished; with the last it gets its time."""
    was_there: bool = False

    def join(self, name: bytes) -> bytes:
        """The path of what has that name in it."""
        return self.path + b"/" + name if self.path else name


@define(eq=False)
class Incoming:
    """A file that the sender asks about."""

    number: int
    folder: Folder | None
    """None: it is all that is sent."""
    path: bytes
    size: int
    mode: int
    mtime: int
    offered: int | None = None
    """Bytes that the sender was told are here; None until it was told, or if it isn't wanted."""
    is_whole: bool = False
    """They are the file that was there before."""
    partial: bytes | None = None
    """The file in the making that another call may have left, or may go on with; set by who has claimed it."""


# ---- steps --------------------------------------------------------------------------------------


@frozen
class MakeFolder:
    folder: Folder


@frozen
class LeaveFolder:
    folder: Folder


@frozen
class MakeLink:
    folder: Folder
    path: bytes
    target: bytes
    mtime: int


@frozen(eq=False)
class PutFile:
    """A small file, whole."""

    folder: Folder | None
    said: wire.FileRecord
    content: memoryview


@frozen
class Ask:
    file: Incoming


@frozen
class Begin:
    """The bytes of a file follow, from `offset`."""

    file: Incoming
    offset: int


@define(eq=False)
class Append:
    pieces: list[memoryview] = field(factory=list)


@frozen
class AppendZeros:
    count: int


@frozen
class StartAgain:
    """What there is of the file is worth nothing; its size, mode and time are new."""


@frozen
class Complete:
    sha256: bytes


@frozen
class Drop:
    """The file is not wanted any more."""

    file: Incoming


@frozen
class Finish:
    """That was all."""


Step: TypeAlias = (
    MakeFolder | LeaveFolder | MakeLink | PutFile | Ask | Begin | Append | AppendZeros | StartAgain
    | Complete | Drop | Finish
)  # fmt: skip


# ---- the order of things ------------------------------------------------------------------------


class _Place(enum.Enum):
    """What may come next."""

    START = "start"  # what is sent
    TREE = "tree"  # something in a directory
    SMALL_FILE = "small_file"  # bytes
    CONTENT = "content"  # bytes, or how they end
    TOP_DONE = "top_done"  # content, or the end
    ENDED = "ended"


class Arrivals:
    """The receiver's end of what a sender says. RemoteProtocolError for what it may not say."""

    def __init__(self) -> None:
        self.total: wire.TotalRecord | None = None
        self.end: wire.EndRecord | None = None
        self.is_tree = False
        self.files = 0
        self.size = 0
        self.moved = 0
        """Bytes that came."""
        self.resumed = 0
        """Bytes that didn't have to."""
        self.skipped_files = 0
        self.done = 0
        """Bytes of files that need not come any more."""
        self._place = _Place.START
        self._folder: Folder | None = None
        self._depth = 0
        self._asked = 0
        self._open: dict[int, Incoming] = {}
        """Files asked about, until they are skipped or complete."""
        self._open_bytes = 0
        self._small: wire.FileRecord | None = None
        """The small file that is coming, and what has come of it."""
        self._gathered = bytearray()
        self._current: Incoming | None = None
        self._missing = 0
        """Bytes of the file that is coming."""
        self._from = 0
        """Where it began."""

    @property
    def ended(self) -> bool:
        """All was said."""
        return self._place is _Place.ENDED

    # -- what was answered

    def offered(self, file: Incoming, offset: int, *, is_whole: bool) -> None:
        """The sender is told that the file is wanted, from there on if it can."""
        file.offered, file.is_whole = offset, is_whole

    def skipped(self, file: Incoming) -> None:
        """The sender is told that the file isn't wanted."""
        self._close(file)
        self.skipped_files += 1
        self.done += file.size

    # -- what comes

    def take(self, record: wire.Record | wire.Unknown | memoryview, steps: list[Step]) -> None:
        """Add to `steps` what is to be done for the next thing that was said."""
        if self._place is _Place.ENDED:
            raise RemoteProtocolError("something follows the end")
        match record:
            case memoryview():
                self._piece(record, steps)
                return
            case wire.Unknown():
                return
            case wire.TotalRecord():
                self._need(_Place.START)
                self.total = record
            case wire.FileRecord():
                self._file(record, steps)
            case wire.AskRecord():
                self._ask(record, steps)
            case wire.EnterRecord():
                self._enter(record, steps)
            case wire.LeaveRecord():
                self._leave(steps)
            case wire.LinkRecord():
                self._need(_Place.TREE)
                assert self._folder is not None
                path = self._path(record.name)
                steps.append(MakeLink(self._folder, path, record.target, record.mtime))
            case wire.ContentRecord():
                self._content(record, steps)
            case wire.ZerosRecord():
                self._need(_Place.CONTENT)
                self._count(record.count)
                steps.append(AppendZeros(record.count))
            case wire.ChangedRecord():
                self._changed(record, steps)
            case wire.CompleteRecord():
                self._complete(record, steps)
            case wire.VanishedRecord():
                self._need(_Place.TREE, _Place.TOP_DONE)
                file = self._wanted(record.number)
                self._close(file)
                self.size -= file.size
                self.files -= 1
                steps.append(Drop(file))
            case wire.EndRecord():
                self._need(_Place.TOP_DONE)
                if self._open:
                    raise RemoteProtocolError("the end comes before files that are wanted")
                self.end = record
                self._place = _Place.ENDED
                steps.append(Finish())
            case _:
                raise RemoteProtocolError(f"{type(record).__name__} from a sender")

    def _need(self, *places: _Place) -> None:
        if self._place not in places:
            raise RemoteProtocolError(f"not expected here ({self._place.value})")

    def _path(self, name: bytes) -> bytes:
        if self._folder is None:
            self._need(_Place.START)
            if name:
                raise RemoteProtocolError("what is sent has a name, which only the receiver knows")
            return b""
        self._need(_Place.TREE)
        check_name(name)
        path = self._folder.join(name)
        if len(path) > wire.MAX_PATH_BYTES:
            raise RemoteProtocolError(f"path of {len(path)} bytes")
        return path

    def _between(self) -> _Place:
        """The place where nothing is open but directories."""
        return _Place.TOP_DONE if self._folder is None else _Place.TREE

    def _file(self, record: wire.FileRecord, steps: list[Step]) -> None:
        self._path(record.name)
        self.files += 1
        self.size += record.size
        if record.size:
            # It becomes a step when it is whole.
            self._small, self._missing = record, record.size
            self._place = _Place.SMALL_FILE
        else:
            steps.append(PutFile(self._folder, record, memoryview(b"")))
            self._place = self._between()

    def _ask(self, record: wire.AskRecord, steps: list[Step]) -> None:
        path = self._path(record.name)
        file = Incoming(self._asked, self._folder, path, record.size, record.mode, record.mtime)
        self._asked += 1
        self._open[file.number] = file
        self._open_bytes += len(path)
        if (
            len(self._open) > wire.TRANSFER_WINDOW
            or self._open_bytes > wire.TRANSFER_WINDOW_BYTES + wire.MAX_PATH_BYTES
        ):
            raise RemoteProtocolError(f"{len(self._open)} files are asked about at once")
        self.files += 1
        self.size += record.size
        self._place = self._between()
        steps.append(Ask(file))

    def _enter(self, record: wire.EnterRecord, steps: list[Step]) -> None:
        path = self._path(record.name)
        self._depth += 1
        if self._depth > wire.MAX_DEPTH:
            raise RemoteProtocolError(f"directories {self._depth} deep")
        self._folder = Folder(self._folder, path, record.mode, record.mtime)
        self._place = _Place.TREE
        self.is_tree = True
        steps.append(MakeFolder(self._folder))

    def _leave(self, steps: list[Step]) -> None:
        self._need(_Place.TREE)
        assert self._folder is not None
        steps.append(LeaveFolder(self._folder))
        self._depth -= 1
        self._folder = self._folder.parent
        self._place = self._between()

    def _content(self, record: wire.ContentRecord, steps: list[Step]) -> None:
        self._need(_Place.TREE, _Place.TOP_DONE)
        file = self._wanted(record.number)
        if record.offset not in (0, file.offered):
            raise RemoteProtocolError(f"bytes from {record.offset}, which were not asked for")
        self._current, self._missing = file, file.size - record.offset
        self._from = record.offset
        self.done += record.offset
        if not file.is_whole:
            self.resumed += record.offset
        elif record.offset:
            self.skipped_files += 1
        self._place = _Place.CONTENT
        steps.append(Begin(file, record.offset))

    def _wanted(self, number: int) -> Incoming:
        file = self._open.get(number)
        if file is None or file.offered is None:
            raise RemoteProtocolError(f"file {number} is not wanted")
        return file

    def _count(self, size: int) -> None:
        if size > self._missing:
            raise RemoteProtocolError("more bytes than the file has")
        self._missing -= size
        self.done += size

    def _piece(self, piece: memoryview, steps: list[Step]) -> None:
        self._need(_Place.SMALL_FILE, _Place.CONTENT)
        self._count(len(piece))
        self.moved += len(piece)
        if self._small is not None:
            if self._gathered or self._missing:
                # Copied, as a piece borrows the memory of all that came with it, and the rest may take its time.
                self._gathered += piece
            if not self._missing:
                content = memoryview(self._gathered) if self._gathered else piece
                steps.append(PutFile(self._folder, self._small, content))
                self._small, self._gathered = None, bytearray()
                self._place = self._between()
            return
        if not steps or not isinstance(steps[-1], Append):
            steps.append(Append())
        step = steps[-1]
        assert isinstance(step, Append)
        step.pieces.append(piece)

    def _changed(self, record: wire.ChangedRecord, steps: list[Step]) -> None:
        self._need(_Place.CONTENT)
        assert self._current is not None
        file = self._current
        self.done -= file.size - self._missing
        if not file.is_whole:
            self.resumed -= self._from
        elif self._from:
            self.skipped_files -= 1
        self._from = 0
        self.size += record.size - file.size
        file.size, file.mode, file.mtime = record.size, record.mode, record.mtime
        self._missing = file.size
        steps.append(StartAgain())

    def _complete(self, record: wire.CompleteRecord, steps: list[Step]) -> None:
        self._need(_Place.CONTENT)
        if self._missing:
            raise RemoteProtocolError(f"{self._missing} bytes of a complete file are missing")
        assert self._current is not None
        self._close(self._current)
        self._current = None
        self._place = self._between()
        steps.append(Complete(record.sha256))

    def _close(self, file: Incoming) -> None:
        del self._open[file.number]
        self._open_bytes -= len(file.path)
