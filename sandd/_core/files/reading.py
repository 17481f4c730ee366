"""Reads a range of a file, a batch at a time."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from sandd._core.files.operations import open_regular
from sandd.wire import MIB

if TYPE_CHECKING:
    from sandd._core.files.roots import Root

BATCH_BYTES: Final = 1 * MIB
"""Read at a time: a hop into a thread takes as long as 100 KiB from the page cache."""


class Reading:
    """A file that is open to be read."""

    def __init__(self, root: Root, path: bytes, offset: int, length: int | None) -> None:
        self._path = path
        self._left = length
        self._descriptor = open_regular(root, path, os.O_RDONLY)
        try:
            os.lseek(self._descriptor, offset, os.SEEK_SET)
        except BaseException:
            self.close()
            raise

    def next_batch(self) -> tuple[bytes, bool]:
        """What comes next, and whether that was all. What is told of a size counts for nothing: see /proc."""
        pieces = []
        room = BATCH_BYTES if self._left is None else min(BATCH_BYTES, self._left)
        try:
            while room and (piece := os.read(self._descriptor, room)):
                pieces.append(piece)
                room -= len(piece)
        except OSError as error:
            error.filename = self._path
            raise
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        if self._left is not None:
            self._left -= len(data)
        is_all = room > 0 or self._left == 0
        if is_all:
            self.close()
        return data, is_all

    def close(self) -> None:
        """Idempotent."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)
