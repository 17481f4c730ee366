"""Who may write a file, or put another in its place: read off the disk, for each directory and link on the way there.

Blocking; POSIX only. It goes by owners, modes and the presence of access control lists.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from typing import TYPE_CHECKING, Final

if sys.platform == "win32":
    raise ImportError("POSIX only")  # where mypy stops reading, too

from sandd._core._errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

MAX_LINKS: Final = 40
"""On the way to a file: as in the kernel (path_resolution(7))."""
_ACL: Final = "system.posix_acl_access"


def writable_part(path: str, *, uid: int, groups: Collection[int]) -> str | None:
    """What of the path, up to the file itself, that user may write or replace; None: nothing.

    Of what root could write nothing is said but what others could: then whoever isn't root counts as a stranger.
    A directory in which everybody may write is one where everybody may have put the file, sticky or not.

    Raises:
        OSError: there is no such file.
    """
    for part, status in walk(path):
        mode = status.st_mode
        if stat.S_ISLNK(mode):
            continue  # a link's mode says nothing; who may replace it is said by its directory
        owner_is_bad = status.st_uid != 0 if uid == 0 else status.st_uid == uid
        by_group = mode & stat.S_IWGRP and (status.st_gid in groups or _has_list(part))
        if owner_is_bad or mode & stat.S_IWOTH or by_group:
            return part
    return None


def read_trusted(path: str, *, max_bytes: int, option: str) -> bytes:
    """The contents of a file that only root and this program's user could have written.

    Raises:
        ConfigurationError: it can't be read, or others may write it; the text begins with `option`.
    """
    try:
        with open(path, "rb", opener=_open_regular) as file:
            own = os.fstat(file.fileno())
            for part, status in walk(os.path.abspath(path)):
                trouble = _trouble(status)
                if trouble is not None:
                    raise ConfigurationError(
                        f"{option} {path!r}: {part} {trouble}; whoever may change a policy has none"
                    )
                if not stat.S_ISDIR(status.st_mode):
                    last = status
            if not os.path.samestat(own, last):
                raise ConfigurationError(f"{option} {path!r} was replaced while it was read")
            return file.read(max_bytes + 1)
    except OSError as error:
        raise ConfigurationError(f"can't read {option} {path!r}: {error.strerror}") from error


def _open_regular(path: str, flags: int) -> int:
    # A pipe would keep us waiting for a writer.
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)


def _trouble(status: os.stat_result) -> str | None:
    mode, kind = status.st_mode, stat.S_IFMT(status.st_mode)
    if status.st_uid not in (0, os.geteuid()):
        return f"belongs to user {status.st_uid}, neither to root nor to us"
    if kind == stat.S_IFLNK:
        return None
    if kind not in (stat.S_IFREG, stat.S_IFDIR):
        return "is no regular file"
    # In a sticky directory, as /tmp, others may add files, and replace none of ours.
    if kind == stat.S_IFDIR and mode & stat.S_ISVTX:
        return None
    if mode & stat.S_IWOTH:
        return "may be written by everybody (chmod o-w)"
    if mode & stat.S_IWGRP and status.st_gid != 0:
        return f"may be written by group {status.st_gid} (chmod g-w)"
    return None


def walk(path: str) -> Iterator[tuple[str, os.stat_result]]:
    """Each directory, link and at last the file that the kernel passes on the way there, from the root."""
    todo = _parts(path)[::-1]
    current, links = "/", 0
    yield current, os.lstat(current)
    while todo:
        part = todo.pop()
        if part == "..":
            current = os.path.dirname(current)
            continue
        here = os.path.join(current, part)
        status = os.lstat(here)
        yield here, status
        if stat.S_ISLNK(status.st_mode):
            links += 1
            if links > MAX_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
            target = os.readlink(here)
            if target.startswith("/"):
                current = "/"
            todo += _parts(target)[::-1]
        else:
            current = here


def _parts(path: str) -> list[str]:
    return [each for each in path.split("/") if each not in ("", ".")]


def _has_list(path: str) -> bool:
    """Whether there are entries for users and groups that the mode doesn't tell apart."""
    if sys.platform != "linux":
        return False
    try:
        os.getxattr(path, _ACL)
    except OSError:
        return False
    return True
