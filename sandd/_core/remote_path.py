"""A path on a daemon's machine: what `trio.Path` is for one of this machine."""

from __future__ import annotations

import errno
from pathlib import PureWindowsPath
from typing import TYPE_CHECKING, Any, Final, final

import trio
from attrs import frozen

from sandd import wire
from sandd._core import remote_files
from sandd._core._errors import RemoteProtocolError, transfer_error
from sandd._core.file_status import FileStatus, decode_path, encode_path
from sandd._core.interrupts import protected_context
from sandd._core.pure_remote_path import PureRemotePath
from sandd._core.remote_files import FileReader, FileWriter, Opening
from sandd._core.streams import Gap
from sandd.wire import ChangeKind, FileKind, Removal, Stream, WriteMode

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sandd._core.daemon_handle import Daemon
    from sandd._core.job_link import JobHandle

INLINE_BYTES: Final = wire.INITIAL_INPUT_BYTES
"""So much is written in one round trip: it travels with what asks for it."""
_ABSENT: Final = {errno.ENOENT, errno.ENOTDIR, errno.EBADF, errno.ELOOP}
"""As in pathlib: there is no such thing, rather than no telling."""


@final
class RemotePath(PureRemotePath):
    """A path on one daemon's machine. Like `trio.Path`: what looks at the disk is async, the rest is not.

    Paths are those of the daemon's system, and a relative one starts at its working directory, or at its
    ``--root``. Names that are no text come as Python has them everywhere (PEP 383). Two are equal if their
    daemon's id and their texts are. It is no `os.PathLike`: nothing on this machine has that path.

    What goes wrong with a file is a TransferError and the fitting OSError at the same time (FileNotFoundError,
    PermissionError, IsADirectoryError, ...), with the daemon's path in `filename`. All that looks at the disk can
    raise that, DaemonGone, RequestRefused (the daemon doesn't do it) and trio.ClosedResourceError (the controller
    is closed). While the daemon is away it waits. Each call is done once, whatever happens to the connection;
    one that is cancelled may have been done.
    """

    __slots__ = ()

    _daemon: Daemon

    # -- what there is

    async def stat(self, *, follow_symlinks: bool = True) -> FileStatus:
        """What the daemon's system tells of it; of what a link leads to, unless that isn't followed."""
        answers = await self._ask(wire.StatSpec(self._wire, follow_symlinks))
        for answer in answers:
            if isinstance(answer, wire.FileInfo):
                return FileStatus.from_info(answer)
        raise RemoteProtocolError(f"daemon {self.daemon_id!r} gave no answer about {self}")

    async def lstat(self) -> FileStatus:
        """`stat` of the link itself, if it is one."""
        return await self.stat(follow_symlinks=False)

    async def exists(self, *, follow_symlinks: bool = True) -> bool:
        """Whether there is something; a link that leads nowhere is nothing."""
        return await self._kind(follow_symlinks=follow_symlinks) is not None

    async def is_file(self) -> bool:
        """Whether it is a file, or a link to one."""
        return await self._kind() is FileKind.FILE

    async def is_dir(self) -> bool:
        """Whether it is a directory, or a link to one."""
        return await self._kind() is FileKind.DIRECTORY

    async def is_symlink(self) -> bool:
        """Whether it is a link."""
        return await self._kind(follow_symlinks=False) is FileKind.SYMLINK

    async def readlink(self) -> RemotePath:
        """What a link says."""
        target = (await self.lstat()).target
        if target is None:
            raise transfer_error("EINVAL", "not a symbolic link", str(self))
        return self._like(type(self._pure)(target))

    async def iterdir(self) -> list[RemotePath]:
        """What is in a directory, in no order."""
        return [self / decode_path(each) for each in await self._find(wire.ListSpec(self._wire))]

    async def glob(self, pattern: str) -> list[RemotePath]:
        """What below it matches a pattern, in no order; what can't be read is passed over.

        Patterns are those of `pathlib.Path.glob`, as of Python 3.13 and whatever runs there: ``*``, ``?`` and
        ``[...]`` match within a name, also one that begins with a dot; ``**`` any number of directories.

        Raises:
            ValueError: the pattern is empty.
            NotImplementedError: the pattern is absolute.
        """
        if type(self._pure)(pattern).anchor:
            raise NotImplementedError("a pattern that is absolute is not supported")
        text = pattern.replace("\\", "/") if isinstance(self._pure, PureWindowsPath) else pattern
        if not text.strip("/.") and ".." not in text:
            raise ValueError(f"unacceptable pattern: {pattern!r}")
        spec = wire.GlobSpec(self._wire, self._encoded(text))
        return [self / decode_path(each) for each in await self._find(spec)]

    async def rglob(self, pattern: str) -> list[RemotePath]:
        """What matches a pattern, anywhere below it: `glob` with ``**/`` ahead."""
        if type(self._pure)(pattern).anchor:
            raise NotImplementedError("a pattern that is absolute is not supported")
        return await self.glob(f"**/{pattern}")

    # -- to change it

    async def mkdir(
        self, mode: int = 0o777, *, parents: bool = False, exist_ok: bool = False
    ) -> None:
        """Make a directory; with `parents`, those that it is in, too."""
        await self._ask(wire.MakeDirectorySpec(self._wire, mode, parents, exist_ok))

    async def unlink(self, *, missing_ok: bool = False) -> None:
        """Remove a file, or a link and not what it leads to."""
        await self._ask(wire.RemoveSpec(self._wire, Removal.FILE, missing_ok))

    async def rmdir(self) -> None:
        """Remove an empty directory."""
        await self._ask(wire.RemoveSpec(self._wire, Removal.DIRECTORY))

    async def rmtree(self) -> None:
        """Remove a directory with all that is in it; links in it are removed, and not followed.

        What others remove meanwhile is as good as removed. A part may be gone when it fails, or is cancelled.
        """
        await self._ask(wire.RemoveSpec(self._wire, Removal.TREE))

    async def rename(self, target: str | RemotePath) -> RemotePath:
        """Give it another name, which is returned; a file that has that name is replaced, but on Windows."""
        return await self._rename(target, replace=False)

    async def replace(self, target: str | RemotePath) -> RemotePath:
        """Give it another name, which is returned; a file that has that name is replaced."""
        return await self._rename(target, replace=True)

    async def symlink_to(self, target: str | RemotePath) -> None:
        """Make it a link that says `target`."""
        await self._ask(wire.LinkSpec(self._wire, self._encoded(self._text(target))))

    async def chmod(self, mode: int) -> None:
        """Change its permissions; a link is followed."""
        await self._ask(wire.ChangeSpec(self._wire, mode=mode))

    async def truncate(self, size: int = 0) -> None:
        """Cut a file to so many bytes, or let it go on with zeros up to that."""
        await self._ask(wire.ChangeSpec(self._wire, size=size))

    async def touch(self, mode: int = 0o666, *, exist_ok: bool = True) -> None:
        """Make an empty file, or set the times of what is there to now."""
        await self._ask(wire.TouchSpec(self._wire, mode, exist_ok))

    # -- what is in it

    async def read_bytes(self, *, offset: int = 0, length: int | None = None) -> bytes:
        """What is in a file, from byte `offset` on, `length` bytes or to its end."""
        pieces = []
        async with self.open_read(offset=offset, length=length) as stream:
            while chunk := await stream.receive_some():
                pieces.append(chunk)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def read_text(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """What is in a file, as text. Newlines are as they are there."""
        return (await self.read_bytes()).decode(encoding, errors)

    async def write_bytes(self, data: bytes | bytearray | memoryview) -> int:
        """Make a file of `data`, in place of the one that is there; returns how many bytes that is.

        At every moment, also after a crash, there is the old file or the whole new one. It keeps the old one's
        mode, and if the daemon may give it away, its owner; a link stays, and what it leads to is replaced.
        """
        return await self._write(data, WriteMode.REPLACE)

    async def write_text(self, data: str, encoding: str = "utf-8", errors: str = "strict") -> int:
        """`write_bytes` of a text; returns its length in characters. Newlines stay as they are."""
        await self.write_bytes(data.encode(encoding, errors))
        return len(data)

    async def append_bytes(self, data: bytes | bytearray | memoryview) -> int:
        """Write `data` at the end of a file, or to a new one; returns how many bytes that is.

        If it fails or is cancelled, a part may have been written.
        """
        return await self._write(data, WriteMode.APPEND)

    def open_read(self, *, offset: int = 0, length: int | None = None) -> Opening[FileReader]:
        """A stream of what is in a file, from byte `offset` on, `length` bytes or to its end.

        Use it as ``async with path.open_read() as stream:``; ``await path.open_read()`` is the stream, to be closed.
        """
        if offset < 0 or (length is not None and length < 0):
            raise ValueError("offset and length can't be negative")
        return Opening(lambda: self._open_read(offset, length))

    def open_write(
        self, *, append: bool = False, exclusive: bool = False, mode: int = 0o666
    ) -> Opening[FileWriter]:
        """A stream that writes a file. Closing it makes the file what was sent; leaving by an exception doesn't.

        Use it as ``async with path.open_write() as stream:``; ``await path.open_write()`` is the stream, to be closed.
        The file is replaced as by `write_bytes`, with the last byte and at once.

        Args:
            append: write at its end instead, as it comes; what was written stays.
            exclusive: there must be no such file, neither now nor at the end: else FileExistsError.
            mode: of a new file, less the daemon's umask.
        """
        if append and exclusive:
            raise ValueError(
                "append and exclusive: nothing can be appended to what must not be there"
            )
        how = (
            WriteMode.APPEND if append else WriteMode.EXCLUSIVE if exclusive else WriteMode.REPLACE
        )
        return Opening(lambda: self._open_write(how, mode))

    @protected_context
    async def watch(self, *, recursive: bool = True) -> AsyncIterator[FileChanges]:
        """What happens to a file, or below a directory, from the moment this block is entered.

        ``async with path.watch() as changes:``, then ``async for change in changes:``. What happens to one file within
        a moment is told once, and in no order. If more happens than is taken here, it is dropped, and told as one
        change of kind MISSED: then look for yourself. What is in a new directory is told with it, or soon after, and
        may be told twice.

        It needs watchfiles on the daemon's machine: ``pip install trio-sandd[watch]``; RequestRefused without.
        """
        handle = self._daemon._open_request(wire.WatchSpec(self._wire, recursive))
        try:
            await remote_files.opened(handle)
            yield FileChanges(self, handle)
        finally:
            handle.forget()

    # -- from here to the daemon

    @property
    def _wire(self) -> bytes:
        return self._encoded(str(self._pure))

    def _encoded(self, text: str) -> bytes:
        path = encode_path(text)
        if len(path) > wire.MAX_PATH_BYTES:
            raise transfer_error("ENAMETOOLONG", "File name too long", text)
        return path

    async def _ask(self, request: wire.Spec) -> list[wire.Answer]:
        return await self._daemon._ask(request)

    async def _find(self, request: wire.Spec) -> list[bytes]:
        return [each.path for each in await self._ask(request) if isinstance(each, wire.FileInfo)]

    async def _kind(self, *, follow_symlinks: bool = True) -> FileKind | None:
        try:
            return (await self.stat(follow_symlinks=follow_symlinks)).kind
        except OSError as error:
            if error.errno not in _ABSENT:
                raise
            return None

    async def _rename(self, target: str | RemotePath, *, replace: bool) -> RemotePath:
        new = self._like(type(self._pure)(self._text(target)))
        await self._ask(wire.RenameSpec(self._wire, new._wire, replace))
        return new

    @trio.lowlevel.enable_ki_protection
    async def _write(self, data: bytes | bytearray | memoryview, how: WriteMode) -> int:
        with memoryview(data) as view:
            size = view.nbytes
            if size <= INLINE_BYTES:
                await trio.lowlevel.checkpoint_if_cancelled()
                spec = wire.WriteSpec(self._wire, how)
                await remote_files.finish(self._daemon._open_request(spec, bytes(view)))
            else:
                async with Opening(lambda: self._open_write(how, 0o666)) as stream:
                    await stream.send_all(view)
        return size

    @trio.lowlevel.enable_ki_protection
    async def _open_read(self, offset: int, length: int | None) -> FileReader:
        await trio.lowlevel.checkpoint_if_cancelled()
        handle = self._daemon._open_request(wire.ReadSpec(self._wire, offset, length))
        await remote_files.opened(handle)
        return FileReader(handle, str(self))

    @trio.lowlevel.enable_ki_protection
    async def _open_write(self, how: WriteMode, mode: int) -> FileWriter:
        await trio.lowlevel.checkpoint_if_cancelled()
        handle = self._daemon._open_request(wire.WriteSpec(self._wire, how, mode))
        await remote_files.opened(handle)
        return FileWriter(handle, str(self))


@frozen
class FileChange:
    """Something that happened to a file or directory."""

    kind: ChangeKind
    path: RemotePath
    """What it happened to; for MISSED, what is watched."""


@final
class FileChanges:
    """The changes, as they come: an async iterator without an end."""

    def __init__(self, path: RemotePath, handle: JobHandle) -> None:
        self._path = path
        self._handle = handle
        self._reader = wire.AnswerReader()
        self._changes: list[FileChange] = []
        """Those that have come and are yet to be taken, the first one last."""

    def __aiter__(self) -> FileChanges:
        return self

    @trio.lowlevel.enable_ki_protection
    async def __anext__(self) -> FileChange:
        """The next change.

        Raises:
            TransferError: what was watched can't be any more.
            DaemonGone: the daemon is gone for good.
            trio.ClosedResourceError: the block was left, or the controller is closed.
        """
        log = self._handle.job.outputs[Stream.OUTPUT]
        await trio.lowlevel.checkpoint()
        while not self._changes:
            await self._handle.until(
                lambda: log.readable or remote_files.nothing_more(self._handle)
            )
            if not log.readable:
                self._handle.raise_if_failed()
                raise trio.ClosedResourceError("nothing is watched any more")
            data: Any = log.take(wire.MAX_DATA_BYTES)
            self._handle.link.changed(self._handle.job)
            if isinstance(data, Gap):
                raise RemoteProtocolError("the daemon left out a part of what it saw")
            for answer in self._reader.feed(data):
                if isinstance(answer, wire.FileChange):
                    self._changes.insert(0, self._as_change(answer))
        return self._changes.pop()

    def _as_change(self, told: wire.FileChange) -> FileChange:
        return FileChange(told.kind, self._path / decode_path(told.path))
