"""Removes a directory with all that is in it, whoever changes it meanwhile, and nothing that a link leads to."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, Final

from attrs import define, field

from sandd._core.files.beneath import identity

if TYPE_CHECKING:
    from collections.abc import Generator

    from sandd._core.files.roots import Root

TRIES: Final = 8
"""How often we come back to a directory into which somebody keeps putting things, before we give up."""

_DIRECTORY: Final = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_NOFOLLOW", 0)
_NOT_EMPTY: Final = {errno.ENOTEMPTY, errno.EEXIST}
_NO_DIRECTORY: Final = {errno.ELOOP, errno.ENOTDIR, errno.EMLINK}
"""What there is to say of a file or a link where a directory was to be opened."""
_JUNCTION: Final[int | None] = getattr(stat, "IO_REPARSE_TAG_MOUNT_POINT", None)
"""On Windows: it leads elsewhere as a link does, and calls itself a directory."""


def remove_tree(root: Root, path: bytes) -> Generator[None, None, None]:
    """Remove a directory and everything below; yields after each entry, that whoever waits can stop there.

    What vanishes meanwhile is as good as removed. A link is removed, never followed, also where it takes the
    place of a directory at the last moment (but on Windows: there is such a moment there).

    Raises:
        OSError: something can't be removed; `filename` says what. A part may be gone.
    """
    if os.open in os.supports_dir_fd:
        return _by_descriptors(root, path)
    return _by_paths(root, path)


@define
class _Level:
    """A directory that is being emptied."""

    is_here: tuple[int, int]
    directories: list[bytes] = field(factory=list)
    """What else is in it; the last one is at hand."""
    tries: int = 1


def _by_descriptors(root: Root, path: bytes) -> Generator[None, None, None]:
    """Holds two descriptors, however deep it goes: the way up is looked up, and has to be where we came from."""
    here = root.open(path, _DIRECTORY)
    above: list[_Level] = []
    try:
        level = _Level(identity(here))
        level.directories = yield from _empty(here)
        while True:
            if level.directories:
                there = _enter(here, level.directories[-1])
                if there is None:
                    level.directories.pop()
                    continue
                os.close(here)
                here = there
                above.append(level)
                level = _Level(identity(here))
                level.directories = yield from _empty(here)
            elif above:
                there = os.open(b"..", _DIRECTORY, dir_fd=here)
                os.close(here)
                here = there
                level = above.pop()
                if identity(here) != level.is_here:
                    raise OSError(errno.ESTALE, "it was moved while it was removed")
                name = level.directories[-1]
                try:
                    os.rmdir(name, dir_fd=here)
                except FileNotFoundError:
                    level.directories.pop()
                except OSError as error:
                    _again(level, error)
                else:
                    level.directories.pop()
                yield
            else:
                try:
                    root.rmdir(path)
                except FileNotFoundError:
                    return
                except OSError as error:
                    _again(level, error)
                    level.directories = yield from _empty(here)
                else:
                    return
    except OSError as error:
        names = [path, *(each.directories[-1] for each in above)]
        if isinstance(error.filename, bytes) and error.filename not in (path, b".."):
            names.append(error.filename)
        error.filename = b"/".join(names)
        raise
    finally:
        os.close(here)


def _empty(directory: int) -> Generator[None, None, list[bytes]]:
    """Remove what is in a directory but directories; returns those."""
    directories = []
    with os.scandir(directory) as entries:
        for entry in entries:
            name = os.fsencode(entry.name)
            try:
                if entry.is_dir(follow_symlinks=False):
                    directories.append(name)
                else:
                    os.unlink(name, dir_fd=directory)
            except FileNotFoundError:
                pass
            except OSError:
                if not _is_directory(directory, name):
                    raise
                directories.append(name)  # since we looked
            yield
    return directories


def _enter(directory: int, name: bytes) -> int | None:
    """A descriptor of a directory in another one; None where there is none any more."""
    try:
        return os.open(name, _DIRECTORY, dir_fd=directory)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno not in _NO_DIRECTORY:
            raise
    try:
        os.unlink(name, dir_fd=directory)
    except FileNotFoundError:
        pass
    return None


def _is_directory(directory: int, name: bytes) -> bool:
    try:
        return stat.S_ISDIR(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode)
    except OSError:
        return False


def _again(level: _Level, error: OSError) -> None:
    """Something was put into it since it was emptied; or it is a network's file system, which keeps what is open."""
    if error.errno not in _NOT_EMPTY or level.tries == TRIES:
        raise error
    level.tries += 1


def _by_paths(root: Root, path: bytes) -> Generator[None, None, None]:
    """Where descriptors are no way to name a file: Windows."""
    if not _is_plain_directory(root.stat(path, follow_symlinks=False)):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
    todo = [(path, 1)]
    while todo:
        here, tries = todo[-1]
        directories = []
        try:
            for name, status in root.scan(here):
                below = os.path.join(here, name)
                if _is_plain_directory(status):
                    directories.append((below, 1))
                    continue
                try:
                    root.unlink(below)
                except FileNotFoundError:
                    pass
                yield
        except FileNotFoundError:
            pass  # the directory itself is gone; so says its removal
        if directories:
            todo += directories
            continue
        todo.pop()
        try:
            root.rmdir(here)
        except FileNotFoundError:
            pass
        except OSError as error:
            if error.errno not in _NOT_EMPTY or tries == TRIES:
                raise
            todo.append((here, tries + 1))
        yield


def _is_plain_directory(status: os.stat_result) -> bool:
    tag = getattr(status, "st_reparse_tag", 0)
    return stat.S_ISDIR(status.st_mode) and (not tag or tag != _JUNCTION)
