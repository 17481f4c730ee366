"""The program that a rule names, opened and looked at: what was judged, and nothing else, is what will run.

Blocking; POSIX only.
"""

from __future__ import annotations

import hashlib
import os
import stat
import struct
import sys
from typing import TYPE_CHECKING, Final

if sys.platform == "win32":
    raise ImportError("POSIX only")  # where mypy stops reading, too

from attrs import frozen

from sandd._core.policy.trust import writable_part
from sandd._core.processes.users import resolve_user

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

MAX_INTERPRETERS: Final = 4
"""Scripts that are run by scripts: as in the kernel (execve(2))."""
_HEAD_BYTES: Final = 4096
"""Of a file, in which its kind is told; of a script Linux reads 256."""
_MAX_NAME: Final = 4096
"""A loader's path: what Linux takes."""

_MAX_HASHES: Final = 1024
"""Programs whose hash is kept: two for each rule."""
_hashes: dict[tuple[int, ...], str] = {}
"""Of programs that have been read, by what the system says of them: it takes 50 ms for a large one."""


class UntrustedError(Exception):
    """The program can't be run under its rule; the text says why, to who may read the daemon's log."""


@frozen
class Owner:
    """Whom a program must be safe from: who it will run as."""

    uid: int
    groups: Collection[int]


def owner_of(user: str | None) -> Owner:
    """The owner for a rule's user; of None, whom we run as. SpawnFailed if there is no such user. May block."""
    identity = None if user is None else resolve_user(user)
    if identity is None:
        return Owner(os.geteuid(), {os.getegid(), *os.getgroups()})
    return Owner(identity.uid, {identity.gid, *identity.groups})


@frozen
class Executable:
    """An open program; whoever asked for it closes the descriptors."""

    path: str
    descriptor: int
    is_script: bool
    needed: tuple[int, ...] = ()
    """Descriptors of what the kernel executes along with it: a script's interpreters, a program's loader."""


def open_executable(
    path: str, owner: Owner, *, sha256: str | None = None, hold: Callable[[int], int]
) -> Executable:
    """The program at that path; each descriptor goes through `hold` as soon as it is open.

    Raises:
        UntrustedError: `owner` may replace it, or what it is run by, or it isn't what `sha256` says.
        OSError: it can't be read.
    """
    descriptor = hold(_open(path, owner))
    if sha256 is not None and _hash_of(descriptor) != sha256:
        raise UntrustedError(f"{path} does not have the sha256 of its rule")
    interpreter, is_script = _interpreter(descriptor)
    needed = []
    for _ in range(MAX_INTERPRETERS):
        if interpreter is None:
            break
        needed.append(hold(_open(interpreter, owner)))
        interpreter, _ = _interpreter(needed[-1])
    return Executable(path, descriptor, is_script, tuple(needed))


def _open(path: str, owner: Owner) -> int:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        # In this order: what is open now is what the names led to, if they still do.
        part = writable_part(path, uid=owner.uid, groups=owner.groups)
        if part is not None:
            raise UntrustedError(f"{part}, on the way to {path}, may be changed by who runs it")
        status = os.fstat(descriptor)
        if not os.path.samestat(status, os.stat(path)):
            raise UntrustedError(f"{path} was replaced while it was looked at")
        if not stat.S_ISREG(status.st_mode) or not status.st_mode & 0o111:
            raise UntrustedError(f"{path} is no program")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _hash_of(descriptor: int) -> str:
    status = os.fstat(descriptor)
    # Nobody but root can set the time of the last change of an inode.
    key = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    known = _hashes.get(key)
    if known is None:
        with os.fdopen(os.dup(descriptor), "rb") as file:
            file.seek(0)
            known = hashlib.file_digest(file, "sha256").hexdigest()
        if len(_hashes) >= _MAX_HASHES:
            _hashes.clear()
        _hashes[key] = known
    return known


def _interpreter(descriptor: int) -> tuple[str | None, bool]:
    """What the kernel runs the file by, if anything, and whether it is a script."""
    head = os.pread(descriptor, _HEAD_BYTES, 0)
    if head.startswith(b"#!"):
        words = head[2:].split(b"\n", 1)[0].split(None, 1)
        return (os.fsdecode(words[0]) if words else None), True
    return _loader(descriptor, head), False


def _loader(descriptor: int, head: bytes) -> str | None:
    """The path in the PT_INTERP of an ELF file of 64 bits (elf(5)); others have none that we know."""
    if head[:5] != b"\x7fELF\x02" or len(head) < 64:
        return None
    order = "<" if head[5] == 1 else ">"
    (offset,) = struct.unpack_from(f"{order}Q", head, 32)
    size, count = struct.unpack_from(f"{order}HH", head, 54)
    for index in range(count):
        entry = os.pread(descriptor, 56, offset + index * size)
        if len(entry) < 56:
            return None
        if struct.unpack_from(f"{order}I", entry)[0] == 3:  # PT_INTERP
            begin, length = struct.unpack_from(f"{order}Q16xQ", entry, 8)
            name = os.pread(descriptor, min(length, _MAX_NAME), begin)
            return os.fsdecode(name.rstrip(b"\0"))
    return None
