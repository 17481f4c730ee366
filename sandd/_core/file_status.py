"""What there is to know of a file on a daemon's machine: told there, read here."""

from __future__ import annotations

import stat
from typing import Final

from attrs import field, frozen

from sandd.wire import FileInfo, FileKind

_TYPES: Final = {
    FileKind.FILE: stat.S_IFREG,
    FileKind.DIRECTORY: stat.S_IFDIR,
    FileKind.SYMLINK: stat.S_IFLNK,
    FileKind.FIFO: stat.S_IFIFO,
    FileKind.SOCKET: stat.S_IFSOCK,
    FileKind.CHARACTER_DEVICE: stat.S_IFCHR,
    FileKind.BLOCK_DEVICE: stat.S_IFBLK,
    FileKind.OTHER: 0,
}
_SECOND: Final = 1_000_000_000


@frozen
class FileStatus:
    """A file, directory or link, as it stood when the daemon was asked.

    The names that `os.stat_result` has are here, too: ``st_mode``, ``st_size`` and so on. Times are by the clock of
    the daemon's machine. On Windows some of it is 0.
    """

    kind: FileKind
    size: int
    """Bytes; of a link, those of its text."""
    mode: int
    """Permissions, as for `os.chmod`: without the kind, which is in ``st_mode``."""
    mtime_ns: int
    """Nanoseconds since 1970 at which its contents changed."""
    atime_ns: int
    """Nanoseconds since 1970 at which it was read, if its file system keeps account of that."""
    uid: int
    gid: int
    links: int
    """How many names it has."""
    inode: int
    device: int
    target: str | None = field(default=None, repr=False)
    """What a link says; None for anything else, and where the link was followed."""

    @property
    def st_mode(self) -> int:
        """Kind and permissions, for the functions of `stat`."""
        return _TYPES[self.kind] | self.mode

    @property
    def st_size(self) -> int:
        """`size`."""
        return self.size

    @property
    def st_mtime(self) -> float:
        """Seconds since 1970 at which its contents changed."""
        return self.mtime_ns / _SECOND

    @property
    def st_mtime_ns(self) -> int:
        """`mtime_ns`."""
        return self.mtime_ns

    @property
    def st_atime(self) -> float:
        """Seconds since 1970 at which it was read."""
        return self.atime_ns / _SECOND

    @property
    def st_atime_ns(self) -> int:
        """`atime_ns`."""
        return self.atime_ns

    @property
    def st_uid(self) -> int:
        """`uid`."""
        return self.uid

    @property
    def st_gid(self) -> int:
        """`gid`."""
        return self.gid

    @property
    def st_nlink(self) -> int:
        """`links`."""
        return self.links

    @property
    def st_ino(self) -> int:
        """`inode`."""
        return self.inode

    @property
    def st_dev(self) -> int:
        """`device`."""
        return self.device

    @classmethod
    def from_info(cls, info: FileInfo) -> FileStatus:
        """From what the daemon told."""
        return cls(
            kind=info.kind,
            size=info.size,
            mode=info.mode,
            mtime_ns=info.mtime_ns,
            atime_ns=info.atime_ns,
            uid=info.uid,
            gid=info.gid,
            links=info.links,
            inode=info.inode,
            device=info.device,
            target=None if info.target is None else decode_path(info.target),
        )


def encode_path(path: str) -> bytes:
    """A path as it travels: UTF-8, and for what is no text whatever stands for it (see PEP 383)."""
    return path.encode("utf-8", "surrogateescape")


def decode_path(path: bytes) -> str:
    """The path that `encode_path` encodes to that."""
    return path.decode("utf-8", "surrogateescape")
