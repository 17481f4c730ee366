"""Tells a client what happens to files on this machine, for as long as it wants to know.

What happens is noted in a bound: who is slow to read is told that something was missed, and nothing waits
for it. watchfiles does the watching, where it is installed.
"""

from __future__ import annotations

import contextlib
import os
import stat
import threading
from typing import TYPE_CHECKING, Any, Final

import trio

from sandd import wire
from sandd._core.files import operations
from sandd._core.nurseries import open_unwrapping_nursery
from sandd._core.requests import RequestFailedError
from sandd._core.transfers.disk_work import DiskWork
from sandd.wire import ChangeKind, FailedCode

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sandd._core.files.roots import Root
    from sandd._core.requests import Doing

MAX_PENDING: Final = 4096
"""Files of which something is noted and not yet told: a megabyte, if their paths are long."""
GATHER_MS: Final = 50
"""What happens within so many milliseconds is told together; while it goes on, up to four times as many."""
LOOK_SECONDS: Final = 5.0
"""A thread comes back after that, though nothing happened."""

_KINDS: Final = {1: ChangeKind.ADDED, 2: ChangeKind.MODIFIED, 3: ChangeKind.REMOVED}


class Noted:
    """What happened and is yet to be told."""

    def __init__(self) -> None:
        self._changes: dict[bytes, ChangeKind] = {}
        self._has_missed = False
        self._something = trio.Event()

    def note(self, changes: Iterable[tuple[ChangeKind, bytes]]) -> None:
        """These happened, each to the file at a path."""
        for kind, path in changes:
            before = self._changes.get(path)
            if kind is ChangeKind.MODIFIED and before is ChangeKind.ADDED:
                kind = before  # still news to whoever hasn't heard of it
            self._changes[path] = kind
        if len(self._changes) > MAX_PENDING:
            self._changes.clear()
            self._has_missed = True
        if self._changes or self._has_missed:
            self._something.set()

    async def take(self) -> list[wire.FileChange]:
        """All there is to tell, as soon as there is something."""
        await self._something.wait()
        self._something = trio.Event()
        told = [wire.FileChange(ChangeKind.MISSED)] if self._has_missed else []
        told += [wire.FileChange(kind, path) for path, kind in self._changes.items()]
        self._changes.clear()
        self._has_missed = False
        return told


async def watch(
    doing: Doing, spec: wire.WatchSpec, root: Root, limiter: trio.CapacityLimiter
) -> None:
    """Do one `WatchSpec`; until it is cancelled."""
    try:
        from watchfiles._rust_notify import RustNotify
    except ImportError:
        raise RequestFailedError(
            FailedCode.DECLINED,
            "to watch files it needs watchfiles: pip install trio-sandd[watch], on its machine",
        ) from None
    work, stop, noted = DiskWork(limiter), threading.Event(), Noted()
    opened = contextlib.ExitStack()

    def begin() -> tuple[Any, bytes, wire.FileInfo]:
        info = operations.inspect(root, spec.path)
        top = root.locate(spec.path)
        # Its positional arguments: paths, debug, force polling, its delay, recursive, ignore what is forbidden.
        notify = opened.enter_context(
            RustNotify([os.fsdecode(top)], False, False, 300, spec.recursive, True)
        )
        return notify, top, info

    try:
        notify, top, info = await work.do(begin)
        await doing.answer(info)
        doing.send()

        async def look() -> None:
            while True:
                seen = await work.do(
                    notify.watch, 4 * GATHER_MS, GATHER_MS, int(1000 * LOOK_SECONDS), stop
                )
                if isinstance(seen, set):
                    changes = await work.do(
                        _below, root, spec.path, top, seen, recursive=spec.recursive
                    )
                    noted.note(changes)

        async with open_unwrapping_nursery() as nursery:
            nursery.start_soon(look)
            while True:
                for change in await noted.take():
                    await doing.answer(change)
                doing.send()
    finally:
        stop.set()
        await work.finish(opened.close)


def _below(
    root: Root,
    watched: bytes,
    top: bytes,
    seen: Iterable[tuple[int, str]],
    *,
    recursive: bool,
) -> list[tuple[ChangeKind, bytes]]:
    """What was seen, by paths from what is watched; but for what the client may not see."""
    changes: dict[bytes, ChangeKind] = {}
    appeared: dict[bytes, None] = {}
    for number, name in sorted(seen):
        path = os.path.relpath(os.fsencode(name), top)
        path = b"" if path == b"." else path
        # Links are followed by whoever watches, and may lead out of the root.
        if len(path) <= wire.MAX_PATH_BYTES and _is_inside(root, os.path.join(watched, path)):
            changes[path] = _KINDS[number]
            if recursive and path and changes[path] is ChangeKind.ADDED:
                appeared.update(dict.fromkeys(_within(root, watched, path)))
    for path in appeared:
        changes.setdefault(path, ChangeKind.ADDED)
    return [(kind, path) for path, kind in changes.items()]


def _within(root: Root, watched: bytes, path: bytes) -> Iterator[bytes]:
    """What is in a directory that has just come to be: it may have been there before the directory was watched.

    No more of it than may be told: then something is missed in any case, and told as such.
    """
    todo, left = [path], MAX_PENDING + 1
    while todo and left:
        here = todo.pop()
        with contextlib.suppress(OSError):  # no directory, or gone: there is nothing in it
            for name, status in root.scan(os.path.join(watched, here)):
                found = os.path.join(here, name)
                if len(found) <= wire.MAX_PATH_BYTES:
                    yield found
                    left -= 1
                if stat.S_ISDIR(status.st_mode):
                    todo.append(found)
                if not left:
                    return


def _is_inside(root: Root, path: bytes) -> bool:
    try:
        root.stat(path, follow_symlinks=False)
    except PermissionError:
        return False
    except OSError:
        return True  # gone, which is what there is to tell
    return True
