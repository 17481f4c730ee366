"""Files in the making: what they are called, who is writing one, and when one that was left is removed.

A file that is large enough gets a name that follows from what it will be, so that another call of
the same transfer finds it and goes on. Every other one has a name of its own.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import stat
import sys
import time
from itertools import islice
from typing import TYPE_CHECKING, Final

import trio
from attrs import define, field

from sandd._core.logs import get_logger
from sandd._core.transfers.arrivals import OWN_NAMES
from sandd._core.transfers.reading import NOFOLLOW

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sandd._core.files.roots import Root

log = get_logger("transfers")

KEEP_SECONDS: Final = 24 * 3600.0
"""From the last byte of a file in the making until nobody is expected to go on with it."""
TAKE_OVER_SECONDS: Final = 10.0
"""For a transfer to let go of a file that another one goes on with; it may be in the middle of a write."""
LOOKED_AT: Final = 10_000
"""Entries of a directory among which old files of ours are looked for: 50 ms."""
_OPEN_FLAGS: Final = NOFOLLOW | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)


def partial_name(tenant: str, target: bytes, size: int, mtime: int) -> bytes:
    """The name, beside `target`, of what will be it when it is complete."""
    what = (tenant.encode(), os.path.abspath(target), b"%d" % size, b"%d" % mtime)
    return b".sandd-%s.part" % hashlib.sha256(b"\0".join(what)).hexdigest()[:32].encode()


def beside(path: bytes, name: bytes) -> bytes:
    """The path of another name in the same directory."""
    folder = os.path.dirname(path)
    return os.path.join(folder, name) if folder else name


# ---- files --------------------------------------------------------------------------------------


def open_partial(root: Root, path: bytes, *, create: bool) -> int | None:
    """A descriptor of it that nobody else has, to read and write; None if somebody has, or it isn't ours.

    Raises:
        FileNotFoundError: there is none, and `create` is false.
    """
    flags = os.O_RDWR | _OPEN_FLAGS
    if create:
        with contextlib.suppress(FileExistsError):
            descriptor = root.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600)
            _lock(descriptor)
            return descriptor
    try:
        descriptor = root.open(path, flags)
    except FileNotFoundError:
        raise
    except OSError:
        if not _exists(root, path):
            raise
        return None  # whatever it is, we have no business with it
    # In this order: who had it before may have renamed or removed it just before its lock was gone.
    if _lock(descriptor) and _is_ours(root, descriptor) and _leads_to(root, path, descriptor):
        return descriptor
    os.close(descriptor)
    return None


def _exists(root: Root, path: bytes) -> bool:
    try:
        root.stat(path, follow_symlinks=False)
    except OSError:
        return False
    return True


def _leads_to(root: Root, path: bytes, descriptor: int) -> bool:
    try:
        return os.path.samestat(root.stat(path, follow_symlinks=False), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _is_ours(root: Root, descriptor: int) -> bool:
    """A plain file that no other name leads to: in a directory where others write, they may have made it."""
    status = os.fstat(descriptor)
    if sys.platform == "win32":
        return stat.S_ISREG(status.st_mode)
    with root.as_owner() as owner:
        return stat.S_ISREG(status.st_mode) and status.st_nlink == 1 and status.st_uid == owner


def _lock(descriptor: int) -> bool:
    """Whether no other program, and no other transfer of this one, has it: it goes with the descriptor."""
    if sys.platform == "win32":
        return True  # what is open there is neither renamed nor removed
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True  # a file system that knows no locks
    return True


def remove_old(root: Root, path: bytes, *, older_than: float = KEEP_SECONDS) -> bool:
    """Remove a file in the making that nobody writes and nobody has written for so long; whether it is gone."""
    try:
        descriptor = open_partial(root, path, create=False)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    if descriptor is None:
        return not _exists(root, path)
    try:
        if not _is_old(os.fstat(descriptor), older_than):
            return False
        if sys.platform != "win32":
            root.unlink(path)
    finally:
        os.close(descriptor)
    if sys.platform == "win32":
        root.unlink(path)
    return True


def remove_old_in(
    root: Root,
    folder: bytes,
    *,
    prefix: bytes = b"",
    older_than: float = KEEP_SECONDS,
    look_at: int | None = LOOKED_AT,
) -> bool:
    """Remove what is in the making in a directory and was left; whether all that was looked at is gone."""
    all_gone = True
    with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
        for name, status in islice(root.scan(folder or b"."), look_at):
            if name.startswith(prefix) and OWN_NAMES.fullmatch(name):
                path = os.path.join(folder, name)
                gone = False
                with contextlib.suppress(OSError):
                    if not stat.S_ISLNK(status.st_mode):
                        gone = remove_old(root, path, older_than=older_than)
                    elif _is_old(status, older_than):
                        root.unlink(path)
                        gone = True
                all_gone = all_gone and gone
    return all_gone


def _is_old(status: os.stat_result, older_than: float) -> bool:
    # Not the time of modification: just before it gets its name, that is the source's.
    return time.time() - status.st_ctime >= older_than


# ---- what is written down -----------------------------------------------------------------------


class Journal:
    """Where a transfer has files in the making, for the program that comes after this one. It blocks."""

    def __init__(self, directory: Path | None) -> None:
        self.id = secrets.token_hex(8)
        """Its files' names begin with it, if they have names of their own."""
        self._count = 0
        self._prefix = own_prefix(self.id)
        self._path = None if directory is None else directory / f"{self.id}.journal"
        self._descriptor = -1
        self._noted: set[bytes] = set()

    @property
    def writes(self) -> bool:
        """Whether anybody will read it."""
        return self._path is not None

    def new_name(self) -> bytes:
        """A name of a file in the making that no other one has."""
        self._count += 1
        return b"%s-%x.part" % (self._prefix, self._count)

    def note(self, kind: bytes, path: bytes) -> None:
        """Before it is made: a file that may stay (b"f"), or some with `new_name` in a directory (b"d")."""
        if self._path is None or path in self._noted:
            return
        if self._descriptor < 0:
            self._path.parent.mkdir(0o700, parents=True, exist_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
            self._descriptor = os.open(self._path, flags, 0o600)
        if len(self._noted) >= _NOTED:
            self._noted.clear()  # then something is noted twice: it does no harm
        self._noted.add(path)
        os.write(self._descriptor, kind + path + b"\0")

    def close(self, *, keep: bool) -> None:
        """The transfer has ended; `keep` if it left a file in the making."""
        if self._descriptor >= 0:
            assert self._path is not None
            os.close(self._descriptor)
            self._descriptor = -1
            if not keep:
                self._path.unlink()


_NOTED: Final = 1000
"""Paths that are remembered as noted: most files are in a directory that was noted lately."""


def own_prefix(transfer: str) -> bytes:
    """How the names begin of those of its files that have names of their own."""
    return b".sandd-%s" % transfer.encode()


def _entries(journal: Path) -> Iterator[tuple[bytes, bytes]]:
    *entries, _ = journal.read_bytes().split(b"\0")  # what follows the last zero has lost its end
    for entry in entries:
        # Blocks that were never written are zeros, too.
        if len(entry) > 1:
            yield entry[:1], entry[1:]


# ---- who writes what ----------------------------------------------------------------------------


@define(eq=False)
class Holder:
    """A transfer, as one that writes files which another may go on with."""

    taken: Callable[[], None]
    """It is to end, because another one goes on with its file."""
    paths: set[bytes] = field(factory=set)
    released: trio.Event = field(factory=trio.Event)


class Partials:
    """All files in the making of a program that receives, and what earlier ones have left.

    Args:
        directory: where it is written down, in the state directory of a daemon; None: nowhere, and old
            ones are looked for in the directories that a transfer writes to.
    """

    def __init__(self, directory: Path | None = None) -> None:
        self._directory = directory
        self._holders: dict[bytes, Holder] = {}
        self._journals: set[str] = set()

    def open_journal(self) -> Journal:
        """For one transfer."""
        journal = Journal(self._directory)
        self._journals.add(journal.id)
        return journal

    def closed_journal(self, journal: Journal) -> None:
        """The transfer has ended."""
        self._journals.discard(journal.id)

    async def claim(self, path: bytes, holder: Holder) -> bool:
        """Whether the file in the making is the holder's now; who wrote it before ends with an error."""
        with trio.move_on_after(TAKE_OVER_SECONDS):
            while (other := self._holders.get(path)) is not None:
                if other is holder:
                    return False
                other.taken()
                await other.released.wait()
        if path in self._holders:
            return False
        self._holders[path] = holder
        holder.paths.add(path)
        return True

    def release(self, path: bytes, holder: Holder) -> None:
        """The holder doesn't write it any more."""
        if path in holder.paths:
            holder.paths.discard(path)
            del self._holders[path]

    def release_all(self, holder: Holder) -> None:
        """The holder writes nothing any more."""
        for path in list(holder.paths):
            self.release(path, holder)
        holder.released.set()

    def purge(self, root: Root) -> None:
        """Remove what earlier transfers left and nobody went on with in time. It blocks: once at the start, and
        every hour."""
        if self._directory is None or not self._directory.exists():
            return
        for journal in self._directory.glob("*.journal"):
            if journal.stem not in self._journals:
                try:
                    self._purge(root, journal)
                except OSError as error:
                    log.warning("purge_failed", journal=journal.name, reason=str(error))

    def _purge(self, root: Root, journal: Path) -> None:
        all_gone = True
        for kind, path in _entries(journal):
            if kind == b"f":
                # Whatever the journal says, nothing is removed that hasn't a name of ours.
                gone = not OWN_NAMES.fullmatch(os.path.basename(path)) or (
                    path not in self._holders and remove_old(root, path)
                )
            else:
                prefix = own_prefix(journal.stem)
                gone = remove_old_in(root, path, prefix=prefix, older_than=0.0, look_at=None)
            all_gone = all_gone and gone
        if all_gone:
            journal.unlink()
