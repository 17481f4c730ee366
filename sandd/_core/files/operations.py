"""What is asked of files, each in one call or one walk over a `Root`. All of it blocks.

Errors are the system's own OSErrors, with the path in `filename`. What may take long is an iterator, so
that whoever waits can stop in between: it holds a descriptor until it has ended or is closed.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from typing import TYPE_CHECKING, Final

from sandd.wire import FileInfo, FileKind

if TYPE_CHECKING:
    from collections.abc import Generator

    from sandd._core.files.roots import Root
    from sandd.wire import Buffer

_KINDS: Final = {
    stat.S_IFREG: FileKind.FILE,
    stat.S_IFDIR: FileKind.DIRECTORY,
    stat.S_IFLNK: FileKind.SYMLINK,
    stat.S_IFIFO: FileKind.FIFO,
    stat.S_IFSOCK: FileKind.SOCKET,
    stat.S_IFCHR: FileKind.CHARACTER_DEVICE,
    stat.S_IFBLK: FileKind.BLOCK_DEVICE,
}
_UNSIGNED: Final = 2**64 - 1
"""Windows has longer ones: their low half is as good to tell files apart."""
# A FIFO without anybody at its other end would keep us for ever.
_AT_ONCE: Final = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)


def describe(status: os.stat_result, path: bytes = b"", target: bytes | None = None) -> FileInfo:
    """What is told of a file."""
    return FileInfo(
        kind=_KINDS.get(stat.S_IFMT(status.st_mode), FileKind.OTHER),
        size=max(0, status.st_size),
        mode=stat.S_IMODE(status.st_mode),
        mtime_ns=status.st_mtime_ns,
        atime_ns=status.st_atime_ns,
        uid=status.st_uid,
        gid=status.st_gid,
        links=status.st_nlink,
        inode=status.st_ino & _UNSIGNED,
        device=status.st_dev & _UNSIGNED,
        path=path,
        target=target,
    )


def inspect(root: Root, path: bytes, *, follow_symlinks: bool = True) -> FileInfo:
    """What there is at a path; of a link that isn't followed, with what it says."""
    status = root.stat(path, follow_symlinks=follow_symlinks)
    return describe(status, target=read_link(root, path, status))


def read_link(root: Root, path: bytes, status: os.stat_result) -> bytes | None:
    """What it says, if it is a link; None, too, if it is none any more."""
    if not stat.S_ISLNK(status.st_mode):
        return None
    try:
        return root.readlink(path)
    except OSError:
        return None


def list_directory(root: Root, path: bytes) -> Generator[FileInfo, None, None]:
    """What is in a directory, by its name there, in no order; links are not followed."""
    for name, status in root.scan(path):
        yield describe(status, name, read_link(root, os.path.join(path, name), status))


def make_directory(
    root: Root, path: bytes, mode: int = 0o777, *, parents: bool = False, exist_ok: bool = False
) -> None:
    """A directory, also if somebody else makes it at the same time. `parents` get the usual mode."""
    try:
        root.mkdir(path, mode)
    except FileNotFoundError:
        parent = os.path.dirname(path.rstrip(b"/"))
        if not parents or parent in (b"", path):
            raise
        make_directory(root, parent, parents=True, exist_ok=True)
        make_directory(root, path, mode, exist_ok=exist_ok)
    except OSError:
        # Not only FileExistsError: of what is there a system may tell first that it is read-only.
        if not exist_ok or not _is_directory(root, path):
            raise


def remove_file(root: Root, path: bytes, *, missing_ok: bool = False) -> None:
    """Remove a file, or a link and not what it leads to."""
    try:
        root.unlink(path)
    except FileNotFoundError:
        if not missing_ok:
            raise


def rename(root: Root, source: bytes, target: bytes, *, replace: bool = True) -> None:
    """Another name. Without `replace`, on Windows, the name must be free (which somebody may change meanwhile)."""
    if not replace and sys.platform == "win32":
        try:
            root.stat(target, follow_symlinks=False)
        except FileNotFoundError:
            pass
        else:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target)
    root.rename(source, target)


def change(root: Root, path: bytes, *, mode: int | None = None, size: int | None = None) -> None:
    """Change what isn't None."""
    if size is not None:
        truncate(root, path, size)
    if mode is not None:
        root.chmod(path, mode)


def touch(root: Root, path: bytes, mode: int = 0o666, *, exist_ok: bool = True) -> None:
    """A file is there, and was changed just now; made empty if it wasn't there."""
    if exist_ok:
        # Times first: so nothing is opened that opening would do something to, such as a FIFO.
        try:
            root.utime(path, None)
        except FileNotFoundError:
            pass
        else:
            return
    flags = os.O_WRONLY | os.O_CREAT | _AT_ONCE | (0 if exist_ok else os.O_EXCL)
    os.close(root.open(path, flags, mode))


def truncate(root: Root, path: bytes, size: int) -> None:
    """Cut a file, or let it go on with zeros, to `size` bytes."""
    descriptor = open_regular(root, path, os.O_WRONLY)
    try:
        os.truncate(descriptor, size)
    except OSError as error:
        error.filename = path
        raise
    finally:
        os.close(descriptor)


def open_regular(root: Root, path: bytes, flags: int, mode: int = 0o666) -> int:
    """A descriptor of a file, and of nothing that only looks like one: no FIFO keeps us, no device is touched.

    Raises:
        IsADirectoryError: it is one.
        OSError: EINVAL: it is a FIFO, a socket or a device.
    """
    try:
        descriptor = root.open(path, flags | _AT_ONCE, mode)
    except OSError as error:
        if error.errno == errno.ENXIO:  # a FIFO that nobody reads, or a socket
            raise _not_a_file(path) from None
        raise
    try:
        kind = stat.S_IFMT(os.fstat(descriptor).st_mode)
        if kind == stat.S_IFDIR:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        if kind != stat.S_IFREG:
            raise _not_a_file(path)
        if sys.platform != "win32":
            os.set_blocking(descriptor, True)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def write_all(descriptor: int, data: Buffer) -> None:
    """Write all of it where the descriptor stands."""
    position = os.write(descriptor, data) if len(data) else 0
    if position == len(data):
        return  # as always, but on a disk that is full
    with memoryview(data) as view:
        while position < len(view):
            position += os.write(descriptor, view[position:])


def _not_a_file(path: bytes) -> OSError:
    return OSError(errno.EINVAL, "not a regular file", path)


def _is_directory(root: Root, path: bytes) -> bool:
    try:
        return stat.S_ISDIR(root.stat(path).st_mode)
    except OSError:
        return False
