"""Finds the files below a directory whose paths match a pattern: pathlib's, as of Python 3.13.

``*``, ``?`` and ``[...]`` match within a name, and names that begin with a dot, too; ``**`` as a whole
component stands for any number of directories, none of which is a link, and at the end for whatever is in
them. A closing slash asks for directories. Small and capital letters differ where the system tells them apart.
"""

from __future__ import annotations

import errno
import fnmatch
import os
import re
import stat
from typing import TYPE_CHECKING, Final, TypeAlias

from sandd._core.files.operations import describe, inspect, read_link
from sandd.wire import MAX_PATH_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from sandd._core.files.roots import Root
    from sandd.wire import FileInfo

    Part: TypeAlias = "bytes | Callable[[str], object] | None"
    """A component of a pattern: a name, a test of names, or None for ``**``."""

_WILD: Final = re.compile(rb"[*?\[]")


def glob(root: Root, path: bytes, pattern: bytes) -> Generator[FileInfo | None, None, None]:
    """What matches below a directory, by its path from there; each once, in no order. None for what doesn't.

    Every directory is read once, whatever the pattern; what can't be read is passed over. Memory is
    taken for the directories that are yet to be read. Links are told as such.

    Raises:
        OSError: EINVAL, the pattern is empty or absolute.
    """
    names = [name for name in pattern.split(b"/") if name not in (b"", b".")]
    if not names or pattern.startswith(b"/"):
        raise OSError(errno.EINVAL, "the pattern is empty or absolute", pattern)
    return _Search(root, path, names, directories_only=pattern.endswith(b"/")).run()


class _Search:
    """One search. What is looked for in a directory are *positions*: numbers of the pattern's components."""

    def __init__(
        self, root: Root, path: bytes, names: list[bytes], *, directories_only: bool
    ) -> None:
        self._root = root
        self._path = path
        self._parts = [_compile(name) for name in names]
        self._end = len(names)
        self._directories_only = directories_only

    def run(self) -> Generator[FileInfo | None, None, None]:
        """See `glob`."""
        start = self._with_following({0})
        if self._end in start and self._leads_to_directory(b""):
            yield inspect(self._root, self._path)
        todo = [(b"", start)]
        while todo:
            here, positions = todo.pop()
            entries = self._entries(here, positions)
            while (entry := _next(entries)) is not None:
                name, status = entry
                below = os.path.join(here, name)
                if len(below) > MAX_PATH_BYTES:
                    continue  # no call takes such a path
                is_match, onward = self._look_at(below, name, status, positions)
                if is_match and (not self._directories_only or self._leads_to_directory(below)):
                    yield describe(status, below, self._link(below, status))
                else:
                    yield None
                if onward:
                    todo.append((below, onward))

    def _entries(self, here: bytes, positions: set[int]) -> Iterator[tuple[bytes, os.stat_result]]:
        """Those of a directory that may match. If only names are looked for, it need not be readable."""
        parts = [self._parts[position] for position in positions if position < self._end]
        names = {part for part in parts if isinstance(part, bytes)}
        if len(names) < len(set(parts)):
            yield from self._root.scan(os.path.join(self._path, here))
            names &= {b".."}
        for name in names:
            try:
                path = os.path.join(self._path, here, name)
                yield name, self._root.stat(path, follow_symlinks=False)
            except OSError:
                pass

    def _look_at(
        self, below: bytes, name: bytes, status: os.stat_result, positions: set[int]
    ) -> tuple[bool, set[int]]:
        """Whether an entry is what is looked for, and what is looked for in it."""
        text = os.path.normcase(os.fsdecode(name))
        is_match, onward = False, set()
        for position in positions:
            part = self._parts[position] if position < self._end else b""
            is_last = position + 1 == self._end
            if part is None:
                is_directory = stat.S_ISDIR(status.st_mode) and name != b".."
                if is_directory:
                    onward.add(position)
                if is_last and name != b"..":
                    is_match |= is_directory or not self._directories_only
            elif part == name or (not isinstance(part, bytes) and part(text)):
                is_match |= is_last
                if not is_last and self._leads_to_directory(below, status):
                    onward.add(position + 1)
        onward = self._with_following(onward)
        return is_match or self._end in onward, onward - {self._end}

    def _with_following(self, positions: set[int]) -> set[int]:
        """With those behind each ``**``, which may stand for nothing."""
        for position in sorted(positions):
            while position < self._end and self._parts[position] is None:
                position += 1
                positions.add(position)
        return positions

    def _leads_to_directory(self, below: bytes, status: os.stat_result | None = None) -> bool:
        try:
            if status is None or stat.S_ISLNK(status.st_mode):
                status = self._root.stat(os.path.join(self._path, below))
        except OSError:
            return False
        return stat.S_ISDIR(status.st_mode)

    def _link(self, below: bytes, status: os.stat_result) -> bytes | None:
        return read_link(self._root, os.path.join(self._path, below), status)


def _next(
    entries: Iterator[tuple[bytes, os.stat_result]],
) -> tuple[bytes, os.stat_result] | None:
    try:
        return next(entries, None)
    except OSError:
        return None  # no permission, no directory, or gone since


def _compile(name: bytes) -> Part:
    if name == b"**":
        return None
    text = os.path.normcase(os.fsdecode(name))
    if name != b".." and (_WILD.search(name) or os.path.normcase("A") == "a"):
        return re.compile(fnmatch.translate(text)).match
    return name
