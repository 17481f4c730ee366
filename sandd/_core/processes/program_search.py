"""Which files a program's name may mean, in the order in which execvp(3) tries them.

Standard library only; it runs in the spawner, and in a child of it.
"""

from __future__ import annotations

import errno
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

NOT_HERE = (errno.ENOENT, errno.ENOTDIR)
TRY_NEXT = (*NOT_HERE, errno.EACCES)
"""Errors after which execvp(3) goes on to the next directory of PATH."""


def candidates(program: bytes, env: dict[bytes, bytes], cwd: bytes = b"") -> Iterator[bytes]:
    """The files that `program` may mean in `cwd`, in order."""
    if b"/" in program:
        yield os.path.join(cwd, program)
        return
    for directory in env.get(b"PATH", os.fsencode(os.defpath)).split(b":"):
        path = os.path.join(cwd, directory, program)
        # Looked for before it is tried: a spawn that fails costs 0.1 ms.
        if os.path.lexists(path):
            yield path


def find(program: bytes, env: dict[bytes, bytes], cwd: bytes = b"") -> bytes:
    """The file that execvp(3) would execute, as far as that can be told without trying it; OSError if none."""
    number = errno.ENOENT
    for path in candidates(program, env, cwd):
        if os.path.isfile(path):
            if os.access(path, os.X_OK):
                return path
            number = errno.EACCES
        elif os.path.exists(path):
            number = errno.EACCES  # a directory
    raise OSError(number, os.strerror(number), os.fsdecode(program))


def execute(program: bytes, argv: tuple[bytes, ...], env: dict[bytes, bytes]) -> None:
    """Become the program, as execvp(3) with the PATH that it will have. OSError if that fails, as it does."""
    failure = None
    for path in candidates(program, env):
        try:
            os.execve(path, argv, env)  # noqa: S606 - no shell is what is wanted
        except OSError as error:
            if b"/" in program or error.errno not in TRY_NEXT:
                raise
            if error.errno not in NOT_HERE:
                failure = error
    raise failure or OSError(errno.ENOENT, os.strerror(errno.ENOENT), os.fsdecode(program))
