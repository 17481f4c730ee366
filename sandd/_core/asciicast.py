r"""Recordings of terminal sessions in the asciicast v3 format: bytes and clock readings in, lines out.

    {"version":3,"term":{"cols":80,"rows":24,"type":"xterm-256color"},"timestamp":1504467315}
    [0.248,"o","Hello \u001b[32mWorld!"]
    [1.001,"r","90x30"]
    [0.887,"x","0"]

The first line is the header, each other one an event: seconds since the one before it, what it is,
and a text. ``o`` is output, ``i`` input, ``r`` a new size, ``m`` a marker, ``x`` the exit status. Our
lines are printable ASCII throughout, so that a recording can be looked at by any tool without
driving the terminal it is looked at in.

Source: https://docs.asciinema.org/manual/asciicast/v3
"""

from __future__ import annotations

import codecs
import json
from typing import TYPE_CHECKING, Final, Literal

from sandd.wire import MIB

if TYPE_CHECKING:
    from sandd._core.audit.redaction import RedactedStream, Redactor
    from sandd.wire import Buffer

    Direction = Literal["o", "i"]

MAX_RECORDING_BYTES: Final = 256 * MIB
"""A day of a screen that changes all the time (3 KB a second); and what a player, which loads a recording
whole, still takes. A session that prints without end fills it, and no disk."""
_LATEST: Final = 10**13
"""Milliseconds, 300 years: the longest interval that room is kept for."""
_LIMIT_LABEL: Final = "recording ended: its size limit is reached"
_DIRECTIONS: Final[dict[Direction, str]] = {"o": "output", "i": "input"}


class AsciicastEncoder:
    """One recording's lines, in order: each method returns what is to be appended to the file.

    Each takes `now`, in seconds of any clock that doesn't go back. The lines never exceed `max_bytes`
    in all: when the next one would, a marker says that the recording ends, and nothing follows.
    """

    def __init__(
        self,
        *,
        rows: int,
        cols: int,
        term: str,
        timestamp: int,
        now: float,
        command: str | None = None,
        title: str | None = None,
        max_bytes: int = MAX_RECORDING_BYTES,
        redactor: Redactor | None = None,
    ) -> None:
        """A recording that begins now.

        Args:
            redactor: knows what must be in no line.
            timestamp: the beginning, in seconds since 1970.
            now: the beginning, on the clock of all that follows.

        Raises:
            ValueError: `max_bytes` is too small for what every recording has to have.
        """
        # No "env": the format asks recorders to capture none without being told to.
        header: dict[str, object] = {
            "version": 3,
            "term": {"cols": cols, "rows": rows, "type": _without_surrogates(term)},
            "timestamp": timestamp,
        }
        if command is not None:
            shown = command if redactor is None else redactor.text(command)
            header["command"] = _without_surrogates(shown)
        if title is not None:
            header["title"] = _without_surrogates(title)
        self.header = _line(header)
        """The first line of the file."""
        self.size = len(self.header)
        """Bytes of all lines so far, the header among them."""
        self.full = False
        """The limit was reached: there will be no more lines."""
        self._start = now
        self._last = 0
        """Milliseconds from the start to the latest event, as its interval was written."""
        self._decoders: dict[Direction, codecs.IncrementalDecoder] = {
            direction: codecs.getincrementaldecoder("utf-8")("replace") for direction in _DIRECTIONS
        }
        self._redacted: dict[Direction, RedactedStream] = (
            {} if redactor is None else {direction: redactor.stream() for direction in _DIRECTIONS}
        )
        self._room_ends = max_bytes - len(_event(_LATEST, "m", _LIMIT_LABEL))
        """Where the lines must end, so that the marker still fits."""
        if self.size > self._room_ends:
            least = self.size + max_bytes - self._room_ends
            raise ValueError(f"max_bytes must be at least {least} for this header")

    def output(self, data: Buffer, *, now: float) -> bytes:
        """What the terminal was sent; a character that isn't complete yet comes with its last byte."""
        return self._text("o", data, now)

    def input(self, data: Buffer, *, now: float) -> bytes:
        """What was typed."""
        return self._text("i", data, now)

    def gap(self, start: int, end: int, *, now: float) -> bytes:
        """Output from offset `start` to `end` that was dropped before it came here: a marker."""
        return self._cut("o", f"{end - start} bytes of output were dropped", now)

    def left_out(self, direction: Direction, count: int, *, now: float) -> bytes:
        """Bytes that came, and couldn't be recorded: a marker."""
        label = f"{count} bytes of {_DIRECTIONS[direction]} were not recorded"
        return self._cut(direction, label, now)

    def resized(self, rows: int, cols: int, *, now: float) -> bytes:
        """The terminal has another size."""
        return self._add("r", f"{cols}x{rows}", now)

    def ended(self, code: int | None, signal: int | None, *, now: float) -> bytes:
        """How the session's process ended; a signal N as 128 + N, which is how shells put it.

        Neither: that isn't known, which the format has no number for, so it is a marker.
        """
        lines = self.finish(now=now)
        if code is None and signal is None:
            return lines + self._add("m", "exit status unknown", now)
        return lines + self._add("x", str(128 + (signal or 0) if code is None else code), now)

    def finish(self, *, now: float) -> bytes:
        """Nothing more comes: what is left of characters that never became complete."""
        return b"".join(self._flush(direction, now) for direction in _DIRECTIONS)

    def _text(self, direction: Direction, data: Buffer, now: float) -> bytes:
        if self._redacted:
            data = self._redacted[direction].feed(bytes(data))
        text = self._decoders[direction].decode(data)
        return self._add(direction, text, now) if text else b""

    def _flush(self, direction: Direction, now: float) -> bytes:
        rest = self._redacted[direction].finish() if self._redacted else b""
        text = self._decoders[direction].decode(rest, final=True)
        return self._add(direction, text, now) if text else b""

    def _cut(self, direction: Direction, label: str, now: float) -> bytes:
        # What comes next doesn't complete a character from before.
        return self._flush(direction, now) + self._add("m", label, now)

    def _add(self, code: str, data: str, now: float) -> bytes:
        if self.full:
            return b""
        # Each interval is the difference of two rounded times, so what rounding does never adds up.
        at = max(self._last, round((now - self._start) * 1000))
        line = _event(at - self._last, code, data)
        if self.size + len(line) > self._room_ends:
            self.full = True
            line = _event(min(at - self._last, _LATEST), "m", _LIMIT_LABEL)
        self._last = at
        self.size += len(line)
        return line


def _event(milliseconds: int, code: str, data: str) -> bytes:
    seconds, thousandths = divmod(milliseconds, 1000)
    return f"[{seconds}.{thousandths:03},{json.dumps(code)},{json.dumps(data)}]\n".encode("ascii")


def _line(value: dict[str, object]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode("ascii") + b"\n"


def _without_surrogates(text: str) -> str:
    """What os.fsdecode makes of bytes that aren't UTF-8 would be no valid text to most readers of JSON."""
    return text.encode("utf-8", "replace").decode("utf-8")
