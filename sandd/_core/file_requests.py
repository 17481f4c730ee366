"""What a daemon is asked to do with files, in threads of their own: a disk that hangs keeps these alone."""

from __future__ import annotations

import contextlib
import errno
import time
from typing import TYPE_CHECKING, Any, Final, TypeVar

import attrs
import trio

from sandd import wire
from sandd._core.files import operations
from sandd._core.files.globbing import glob
from sandd._core.files.reading import BATCH_BYTES, Reading
from sandd._core.files.removal import remove_tree
from sandd._core.files.writing import open_writing
from sandd._core.transfers.disk_work import DiskWork
from sandd._core.transfers.partials import Partials
from sandd._core.watch_requests import watch
from sandd.wire import Removal

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Generator, Mapping

    from sandd._core.files.roots import Root
    from sandd._core.files.writing import Writing
    from sandd._core.requests import Doer, Doing

T = TypeVar("T")

MAX_THREADS: Final = 32
"""Calls to the file system at a time, of all clients together; more wait."""
MAX_WATCHERS: Final = 64
"""Directories that are watched at a time: each has a thread to itself, but for moments."""
BATCH_ANSWERS: Final = 512
"""Answers that a thread makes before they are sent: 64 KiB, or so."""
BATCH_SECONDS: Final = 0.05
"""Seconds that a thread works on what has nothing to tell, before it looks whether anybody still waits."""


class FileRequests:
    """Does requests about the files beneath a root."""

    def __init__(
        self,
        root: Root,
        partials: Partials | None = None,
        *,
        limiter: trio.CapacityLimiter | None = None,
    ) -> None:
        self._root = root
        self._partials = partials or Partials()
        self._limiter = limiter or trio.CapacityLimiter(MAX_THREADS)
        self._watchers = trio.CapacityLimiter(MAX_WATCHERS)

    @property
    def doers(self) -> Mapping[type[wire.Request], Doer]:
        """For `Requests.offer`."""
        doers: dict[type[wire.Request], Doer] = {
            wire.StatSpec: self._stat,
            wire.ListSpec: self._list,
            wire.GlobSpec: self._glob,
            wire.MakeDirectorySpec: self._make_directory,
            wire.RemoveSpec: self._remove,
            wire.RenameSpec: self._rename,
            wire.LinkSpec: self._symlink,
            wire.TouchSpec: self._touch,
            wire.ChangeSpec: self._change,
            wire.ReadSpec: self._read,
            wire.WriteSpec: self._write,
            wire.WatchSpec: self._watch,
        }
        return {kind: _refusing_null_bytes(doer) for kind, doer in doers.items()}

    # -- one call

    async def _stat(self, doing: Doing, spec: wire.StatSpec) -> None:
        info = await self._call(
            lambda: operations.inspect(self._root, spec.path, follow_symlinks=spec.follow)
        )
        await doing.answer(info)

    async def _make_directory(self, _doing: Doing, spec: wire.MakeDirectorySpec) -> None:
        await self._call(
            lambda: operations.make_directory(
                self._root, spec.path, spec.mode, parents=spec.parents, exist_ok=spec.exist_ok
            )
        )

    async def _remove(self, doing: Doing, spec: wire.RemoveSpec) -> None:
        match spec.what:
            case Removal.FILE:
                await self._call(
                    lambda: operations.remove_file(
                        self._root, spec.path, missing_ok=spec.missing_ok
                    )
                )
            case Removal.DIRECTORY:
                await self._call(lambda: self._root.rmdir(spec.path))
            case Removal.TREE:
                await self._tell_all(doing, lambda: remove_tree(self._root, spec.path))

    async def _rename(self, _doing: Doing, spec: wire.RenameSpec) -> None:
        await self._call(
            lambda: operations.rename(self._root, spec.path, spec.target, replace=spec.replace)
        )

    async def _symlink(self, _doing: Doing, spec: wire.LinkSpec) -> None:
        await self._call(lambda: self._root.symlink(spec.target, spec.path))

    async def _touch(self, _doing: Doing, spec: wire.TouchSpec) -> None:
        await self._call(
            lambda: operations.touch(self._root, spec.path, spec.mode, exist_ok=spec.exist_ok)
        )

    async def _change(self, _doing: Doing, spec: wire.ChangeSpec) -> None:
        await self._call(
            lambda: operations.change(self._root, spec.path, mode=spec.mode, size=spec.size)
        )

    async def _call(self, call: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(call, limiter=self._limiter, abandon_on_cancel=True)

    # -- many answers

    async def _list(self, doing: Doing, spec: wire.ListSpec) -> None:
        await self._tell_all(doing, lambda: operations.list_directory(self._root, spec.path))

    async def _glob(self, doing: Doing, spec: wire.GlobSpec) -> None:
        await self._tell_all(doing, lambda: glob(self._root, spec.path, spec.pattern))

    async def _tell_all(
        self, doing: Doing, begin: Callable[[], Generator[wire.FileInfo | None, None, None]]
    ) -> None:
        async with self._disk_work() as (work, opened):

            def first_batch() -> tuple[bytes, Generator[wire.FileInfo | None, None, None] | None]:
                return _next_batch(opened.enter_context(contextlib.closing(begin())))

            batch, more = await work.do(first_batch)
            while True:
                await doing.write(batch)
                if more is None:
                    return
                batch, more = await work.do(_next_batch, more)

    # -- what is in a file

    async def _read(self, doing: Doing, spec: wire.ReadSpec) -> None:
        async with self._disk_work() as (work, opened):

            def begin() -> tuple[Reading, tuple[bytes, bool]]:
                reading = Reading(self._root, spec.path, spec.offset, spec.length)
                opened.callback(reading.close)
                return reading, reading.next_batch()

            reading, (data, is_all) = await work.do(begin)
            while True:
                await doing.write(data)
                if is_all:
                    return
                data, is_all = await work.do(reading.next_batch)

    async def _write(self, doing: Doing, spec: wire.WriteSpec) -> None:
        # A small file is all here by now, and done in one go.
        data, is_all = _at_hand(doing)
        journal = self._partials.open_journal()
        try:
            async with self._disk_work() as (work, opened):

                def begin() -> tuple[Writing, wire.FileInfo | None]:
                    writing = open_writing(self._root, spec.path, spec.how, spec.mode, journal)
                    opened.callback(writing.close)
                    writing.write(data)
                    return writing, writing.commit() if is_all else None

                writing, info = await work.do(begin)
                if info is None:
                    await doing.answer(wire.FileInfo(wire.FileKind.FILE))
                    doing.send()
                    while data := await doing.read(BATCH_BYTES):
                        await work.do(writing.write, data)
                    info = await work.do(writing.commit)
                await doing.answer(info)
        finally:
            self._partials.closed_journal(journal)

    async def _watch(self, doing: Doing, spec: wire.WatchSpec) -> None:
        await watch(doing, spec, self._root, self._watchers)

    @contextlib.asynccontextmanager
    async def _disk_work(self) -> AsyncIterator[tuple[DiskWork, contextlib.ExitStack]]:
        """Steps in threads, and what they have opened: a last step closes that, unless it was done to its end."""
        work, opened = DiskWork(self._limiter), contextlib.ExitStack()
        try:
            yield work, opened
        except BaseException:
            await work.finish(opened.close)
            raise


def _refusing_null_bytes(doer: Doer) -> Doer:
    """Python raises ValueError for them, from some of the calls: they are in no path of any system."""

    async def do(doing: Doing, spec: Any) -> None:
        for each in attrs.fields(type(spec)):
            value = getattr(spec, each.name)
            if isinstance(value, bytes) and b"\0" in value:
                raise OSError(errno.EINVAL, "a path has no null bytes", value)
        await doer(doing, spec)

    return do


def _next_batch(
    infos: Generator[wire.FileInfo | None, None, None],
) -> tuple[bytes, Generator[wire.FileInfo | None, None, None] | None]:
    """Some answers, and where to go on; None for that at the end."""
    answers: list[bytes] = []
    give_way = time.monotonic() + BATCH_SECONDS
    for info in infos:
        if info is not None:
            answers.append(wire.encode_answer(info))
        if len(answers) == BATCH_ANSWERS or time.monotonic() > give_way:
            return b"".join(answers), infos
    return b"".join(answers), None


def _at_hand(doing: Doing) -> tuple[bytes, bool]:
    """What of INPUT has arrived, and whether that is all of it."""
    data = doing.job.take_input(BATCH_BYTES)
    doing.send()  # credit for what was taken
    return data, doing.job.input.at_end
