"""`RemotePath` and files that are open, as other event loops than their controller's see them."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, final

import anyio
import anyio.abc
from attrs import frozen

from sandd._core import remote_files, remote_path
from sandd._core.aio.blocks import HeldOpen
from sandd._core.aio.calls import call
from sandd._core.aio.streams import Items, Receiving, Sending, close
from sandd._core.aio.wrapping import calls, documented_as
from sandd._core.pure_remote_path import PureRemotePath
from sandd._core.remote_files import Opening

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from contextlib import AbstractAsyncContextManager
    from types import TracebackType

    from sandd._core.aio.daemon import Daemon
    from sandd._core.bridge import TrioThread
    from sandd.wire import ChangeKind

S = TypeVar("S", remote_files.FileReader, remote_files.FileWriter)
T = TypeVar("T")
Inner = remote_path.RemotePath


@final
class RemotePath(PureRemotePath):
    """A path on one daemon's machine. Like `anyio.Path`: what looks at the disk is async, the rest is not.

    Paths are those of the daemon's system, and a relative one starts at its working directory, or at its
    ``--root``. Names that are no text come as Python has them everywhere (PEP 383). Two are equal if their
    daemon's id and their texts are. It is no `os.PathLike`: nothing on this machine has that path.

    What goes wrong with a file is a TransferError and the fitting OSError at the same time (FileNotFoundError,
    PermissionError, IsADirectoryError, ...), with the daemon's path in `filename`. All that looks at the disk can
    raise that, DaemonGone, RequestRefused (the daemon doesn't do it) and anyio.ClosedResourceError (the controller
    is closed). While the daemon is away it waits. Each call is done once, whatever happens to the connection;
    one that is cancelled may have been done.
    """

    __slots__ = ()

    _daemon: Daemon

    stat = calls(Inner.stat)
    lstat = calls(Inner.lstat)
    exists = calls(Inner.exists)
    is_file = calls(Inner.is_file)
    is_dir = calls(Inner.is_dir)
    is_symlink = calls(Inner.is_symlink)

    @documented_as(Inner.readlink)
    async def readlink(self) -> RemotePath:
        return self._ours(await self._call(self._inner.readlink))

    @documented_as(Inner.iterdir)
    async def iterdir(self) -> list[RemotePath]:
        return [self._ours(each) for each in await self._call(self._inner.iterdir)]

    @documented_as(Inner.glob)
    async def glob(self, pattern: str) -> list[RemotePath]:
        found = await self._call(partial(self._inner.glob, pattern))
        return [self._ours(each) for each in found]

    @documented_as(Inner.rglob)
    async def rglob(self, pattern: str) -> list[RemotePath]:
        found = await self._call(partial(self._inner.rglob, pattern))
        return [self._ours(each) for each in found]

    mkdir = calls(Inner.mkdir)
    unlink = calls(Inner.unlink)
    rmdir = calls(Inner.rmdir)
    rmtree = calls(Inner.rmtree)

    @documented_as(Inner.rename)
    async def rename(self, target: str | RemotePath) -> RemotePath:
        return self._ours(await self._call(partial(self._inner.rename, self._text(target))))

    @documented_as(Inner.replace)
    async def replace(self, target: str | RemotePath) -> RemotePath:
        return self._ours(await self._call(partial(self._inner.replace, self._text(target))))

    @documented_as(Inner.symlink_to)
    async def symlink_to(self, target: str | RemotePath) -> None:
        await self._call(partial(self._inner.symlink_to, self._text(target)))

    chmod = calls(Inner.chmod)
    truncate = calls(Inner.truncate)
    touch = calls(Inner.touch)

    read_bytes = calls(Inner.read_bytes)
    read_text = calls(Inner.read_text)
    write_bytes = calls(Inner.write_bytes)
    write_text = calls(Inner.write_text)
    append_bytes = calls(Inner.append_bytes)

    @documented_as(Inner.open_read)
    def open_read(self, *, offset: int = 0, length: int | None = None) -> Opening[FileReader]:
        opening = self._inner.open_read(offset=offset, length=length)
        return Opening(lambda: self._open(opening, FileReader, remote_files.FileReader.close))

    @documented_as(Inner.open_write)
    def open_write(
        self, *, append: bool = False, exclusive: bool = False, mode: int = 0o666
    ) -> Opening[FileWriter]:
        opening = self._inner.open_write(append=append, exclusive=exclusive, mode=mode)
        return Opening(lambda: self._open(opening, FileWriter, remote_files.FileWriter._drop))

    @documented_as(Inner.watch)
    def watch(
        self, *, recursive: bool = True
    ) -> AbstractAsyncContextManager[AsyncIterator[FileChange], bool | None]:
        def wrap(
            thread: TrioThread[Any], changes: remote_path.FileChanges
        ) -> AsyncIterator[FileChange]:
            return Items(thread, changes, lambda each: FileChange(each.kind, self._ours(each.path)))

        return HeldOpen(self._thread, partial(self._inner.watch, recursive=recursive), wrap)

    # -- from here to the trio thread

    @property
    def _thread(self) -> TrioThread[Any]:
        return self._daemon._thread

    @property
    def _inner(self) -> Inner:
        return Inner._wrap(self._daemon._inner, self._pure)

    def _ours(self, path: Inner) -> RemotePath:
        return self._like(path._pure)

    async def _call(self, function: Callable[[], Awaitable[T]]) -> T:
        return await call(self._thread, function)

    async def _open(
        self,
        opening: Opening[S],
        wrap: Callable[[TrioThread[Any], S], T],
        drop: Callable[[S], object],
    ) -> T:
        async def open_stream() -> S:
            return await opening

        return wrap(self._thread, await call(self._thread, open_stream, unwanted=drop))


class FileReader(anyio.abc.ByteReceiveStream):
    """What is in a file, from where it was opened; all its bytes in order, whatever happens to the connection."""

    def __init__(self, thread: TrioThread[Any], stream: remote_files.FileReader) -> None:
        self._thread = thread
        self._stream = stream
        self._receiving = Receiving(thread, stream.receive_some)

    def __repr__(self) -> str:
        return repr(self._stream).replace("<sandd.", "<sandd.aio.", 1)

    async def receive(self, max_bytes: int = remote_files.RECEIVE_BYTES) -> bytes:
        """The next bytes, at most `max_bytes`. Cancelling it loses nothing.

        Raises:
            anyio.EndOfStream: that was all.
            TransferError: the file can't be read further (also an OSError: its disk is broken, ...).
            DaemonGone: the daemon is gone for good.
            anyio.ClosedResourceError: this stream was closed before, or the controller is closed.
        """
        return await self._receiving.receive(max_bytes)

    async def aclose(self) -> None:
        """Read no further; idempotent, never blocks."""
        await close(self._thread, self._stream.aclose)


class FileWriter(anyio.abc.ByteSendStream):
    """A file that is being written. `aclose` makes it what was sent; nothing else does.

    Leaving its ``async with`` block does so, too, but by an exception: then the file is as it was. So it is if
    nobody closes this at all. (What was appended stays.)
    """

    def __init__(self, thread: TrioThread[Any], stream: remote_files.FileWriter) -> None:
        self._thread = thread
        self._stream = stream
        self._sending = Sending(thread, stream.send_all)

    def __repr__(self) -> str:
        return repr(self._stream).replace("<sandd.", "<sandd.aio.", 1)

    async def send(self, item: bytes) -> None:
        """Send all of it; returns when it is on its way within the bounds of the buffers.

        Raises:
            TransferError: the file can't be written (also an OSError: no space left, ...). It is as it was.
            DaemonGone: the daemon is gone for good.
            anyio.ClosedResourceError: this stream was closed before, or the controller is closed.
        """
        await self._sending.send(item)

    async def aclose(self) -> None:
        """The file is now what was sent, whole and on the daemon's disk. Idempotent.

        Cancelled before it has begun, the file is as it was; later, it may be either.

        Raises:
            TransferError: the file can't be written (also an OSError: no space left, ...). It is as it was.
            DaemonGone: the daemon is gone for good.
            anyio.ClosedResourceError: the controller was closed before. The file is as it was.
        """
        await call(self._thread, self._stream.aclose, although_cancelled=True)

    async def abandon(self) -> None:
        """The file stays as it was. Idempotent; after `aclose` it does nothing."""
        await close(self._thread, self._stream.abandon)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            await self.aclose()
        elif issubclass(kind, GeneratorExit):  # nothing can be awaited any more
            self._thread._soon(self._stream._drop)
        else:
            await self.abandon()


@frozen
class FileChange:
    """Something that happened to a file or directory."""

    kind: ChangeKind
    path: RemotePath
    """What it happened to; for MISSED, what is watched."""
