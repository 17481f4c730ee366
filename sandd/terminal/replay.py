"""What of a session's output may be shown a second time: all of it but the questions.

Sans-IO. Programs ask the terminal things (where is the cursor, which terminal are you), and the answer is typed, as
far as the program can tell. When a session is attached to, its output so far is shown again, and the
terminal would answer again: the shell would find ``1;2c`` at its prompt. So questions are taken out of what
was already shown to somebody, and of nothing else.

Source: XTerm Control Sequences (invisible-island.net/xterm/ctlseqs); the kitty keyboard protocol.
"""

from __future__ import annotations

import re
from typing import Final

from attrs import define

_QUESTION: Final = re.compile(
    rb"""
        \x05                                    # ENQ
      | \x1bZ                                   # DECID
      | \x1b\[[>=?]?[\d;]{0,20}c                # DA1, DA2, DA3
      | \x1b\[\??[\d;]{1,20}n                   # DSR: status, cursor, ...
      | \x1b\[>[\d;]{0,20}q                     # XTVERSION
      | \x1b\[\?[\d;]{0,20}u                    # kitty's keyboard flags
      | \x1b\[\??\d{1,5}\$p                     # DECRQM
      | \x1b\[[\d;]{0,20}x                      # DECREQTPARM
      | \x1b\[(?:1[1345689]|2[01])(?:;\d?)?t    # sizes, positions, titles
      | \x1b\](?:4;\d{1,3}|1\d|52;[a-z]?);\?(?:\x07|\x1b\\)   # colours, clipboard
      | \x1bP(?:\$q|\+q)[^\x1b\x07]{0,80}\x1b\\ # DECRQSS, XTGETTCAP
      | \x1b_G[^\x1b]{0,200}a=q[^\x1b]{0,200}\x1b\\ # kitty's graphics
    """,
    re.VERBOSE,
)
_LONGEST: Final = 512
_UNFINISHED: Final = re.compile(
    rb"\x1b(?:\[[>=?]?[\d;]*\$?|\][^\x07\x1b]*\x1b?|[P_][^\x1b\x07]*\x1b?)?\Z"
)


@define
class ReplayFilter:
    """Takes output in pieces of any size; gives what is to be shown."""

    _until: int
    """Offset of the first byte that nobody has been shown before."""
    _tail: bytes = b""

    def feed(self, data: bytes, end: int) -> bytes:
        """The same without questions, as far as it isn't new. A beginning of one waits for its end.

        Args:
            data: the next bytes.
            end: offset behind their last one; there may be a gap before the first.
        """
        if end - len(data) >= self._until and not self._tail:
            return data
        size = max(0, self._until - (end - len(data)))
        old, new = self._tail + data[:size], data[size:]
        self._tail = b""
        if end < self._until:
            unfinished = _UNFINISHED.search(old, max(0, len(old) - _LONGEST))
            if unfinished is not None:
                self._tail = unfinished[0]
                old = old[: unfinished.start()]
        # A question that the last old byte cuts is a new one's, and goes through.
        return _QUESTION.sub(b"", old) + new
