"""Records out of a log's files, those to come included."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from attrs import define, field

from sandd._core.audit.chain import BadLine, read_line
from sandd._core.audit.segments import segments_in

if TYPE_CHECKING:
    from collections.abc import Iterator
    from io import BufferedReader
    from pathlib import Path

    from sandd.auditing.selecting import Selection

LOOK_SECONDS: Final = 0.2
"""How often it is looked for more lines: a person watches."""


@define(eq=False)
class Reader:
    """Reads a log from its beginning, in order, as far as it has been written. To be closed."""

    directory: Path
    selection: Selection
    skipped: int = 0
    """Lines that are no records: 'sandd audit verify' says more."""
    _seen: str = ""
    """The name of the file that is being read."""
    _file: BufferedReader | None = None
    _rest: bytes = field(default=b"")
    """The beginning of a line that is still being written."""

    def new(self) -> Iterator[tuple[bytes, dict[str, Any]]]:
        """Each wanted line that was written since the last time, and what it says."""
        while True:
            yield from self._new_in_file()
            following = [path for path in segments_in(self.directory) if path.name > self._seen]
            if not following:
                return
            self.close()
            self._file = following[0].open("rb")
            self._seen, self._rest = following[0].name, b""

    def follow(self) -> Iterator[tuple[bytes, dict[str, Any]]]:
        """The same, for ever."""
        while True:
            yield from self.new()
            time.sleep(LOOK_SECONDS)

    def last(self, count: int) -> Iterator[tuple[bytes, dict[str, Any]]]:
        """The latest that are wanted."""
        yield from deque(self.new(), maxlen=count)

    def close(self) -> None:
        """Nothing more is read."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _new_in_file(self) -> Iterator[tuple[bytes, dict[str, Any]]]:
        if self._file is None:
            return
        for text in self._file:
            line = self._rest + text
            if not line.endswith(b"\n"):
                self._rest = line
                return
            self._rest = b""
            line = line[:-1]
            try:
                fields = read_line(line)
            except BadLine:
                self.skipped += 1
                continue
            if self.selection.wants(fields):
                yield line, fields
