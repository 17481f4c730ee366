"""What a program has switched on in the terminal and not off again, and the bytes that do it for it.

Sans-IO. A session that is left in the middle of `vi` would leave the person with the alternate screen, a mouse
that types, and Ctrl-C that arrives as an escape sequence. To send the usual resets after every session,
needed or not, was rejected: some move the cursor, or clear what `less` left to be read, and terminals
differ in which. So this reads along, and undoes what is still on, and nothing else.

Source: XTerm Control Sequences (invisible-island.net/xterm/ctlseqs); ECMA-48.
"""

from __future__ import annotations

import re
from typing import Final

from attrs import define, field

_NORMALLY_OFF: Final = frozenset(
    [
        1,  # application cursor keys
        5,  # reverse video
        6,  # origin at the margins
        9,  # mouse: presses
        45,  # reverse wrap-around
        47,  # alternate screen
        66,  # application keypad
        1000,  # mouse: presses and releases
        1001,  # ... highlighting
        1002,  # ... dragging
        1003,  # ... every movement
        1004,  # focus events
        1005,  # mouse positions as UTF-8
        1006,  # ... as decimal numbers
        1015,  # ... as urxvt has them
        1016,  # ... in pixels
        1047,  # alternate screen, cleared
        1049,  # alternate screen, cursor saved
        2004,  # pasting in brackets
        2026,  # output held back until complete
    ]
)
_NORMALLY_ON: Final = frozenset(
    [
        7,  # wrap-around
        25,  # the cursor is shown
    ]
)
_ALTERNATE_SCREENS: Final = frozenset([47, 1047, 1049])

_SEQUENCE: Final = re.compile(
    rb"""\x1b(?:
        (?P<reset>c)                            # RIS: everything
      | (?P<soft>\[!p)                          # DECSTR: much of it
      | (?P<keypad>[=>])                        # DECKPAM, DECKPNM
      | \[\?(?P<numbers>[\d;]{1,80})(?P<set>[hl])   # DECSET, DECRST
      | \[>4(?P<keys>(?:;\d{0,4})?)m            # XTMODKEYS: modifyOtherKeys
      | \[(?P<margins>\d{0,5}(?:;\d{0,5})?)r    # DECSTBM: scrolling region
      | \[(?P<style>[\d;:]{0,120})m             # SGR: colours
      | \[(?P<cursor>\d?)\x20q                  # DECSCUSR: the cursor's shape
    )""",
    re.VERBOSE,
)
_LONGEST: Final = 128
"""Bytes of a sequence at most, with its ends; what is longer is none of these."""
_UNFINISHED: Final = re.compile(rb"\x1b(?:\[[?!>]?[\d;:]*\x20?)?\Z")


@define
class Modes:
    """Reads what goes to the terminal, in pieces of any size."""

    _on: set[int] = field(factory=set)
    """Private modes that are not as they normally are."""
    _keypad: bool = False
    _keys: bool = False
    _margins: bool = False
    _style: bool = False
    _cursor: bool = False
    _tail: bytes = b""
    """The beginning of a sequence whose rest has not come yet."""

    @property
    def in_alternate_screen(self) -> bool:
        """A program has all of the screen, and knows what stands where."""
        return not self._on.isdisjoint(_ALTERNATE_SCREENS)

    def feed(self, data: bytes) -> None:
        """Note what it switches."""
        if b"\x1b" not in data and not self._tail:
            return  # most of what a terminal is sent
        data = self._tail + data
        for match in _SEQUENCE.finditer(data):
            self._note(match)
        unfinished = _UNFINISHED.search(data, max(0, len(data) - _LONGEST))
        self._tail = b"" if unfinished is None else unfinished[0]

    def reset(self) -> bytes:
        """What puts the terminal back as it normally is; nothing if it is so."""
        undo = b"".join(
            b"\x1b[?%d%c" % (number, b"h" if number in _NORMALLY_ON else b"l")
            for number in sorted(self._on - _ALTERNATE_SCREENS)
        )
        undo += b"\x1b>" if self._keypad else b""
        undo += b"\x1b[>4m" if self._keys else b""
        # Without limits the scrolling region is all of the screen; the sequence moves the cursor.
        undo += b"\x1b7\x1b[r\x1b8" if self._margins else b""
        undo += b"\x1b[m" if self._style else b""
        undo += b"\x1b[0 q" if self._cursor else b""
        # Last, as the above belongs to the program's screen, and this brings the person's back.
        undo += b"".join(b"\x1b[?%dl" % number for number in sorted(self._on & _ALTERNATE_SCREENS))
        return undo

    def _note(self, match: re.Match[bytes]) -> None:
        match match.lastgroup:
            case "style":  # first, as it is by far the most frequent
                self._style = match["style"].strip(b"0;") != b""
            case "set":
                for text in match["numbers"].split(b";"):
                    number, is_set = int(text or b"0"), match["set"] == b"h"
                    if number in (_NORMALLY_OFF if is_set else _NORMALLY_ON):
                        self._on.add(number)
                    else:
                        self._on.discard(number)
            case "margins":
                self._margins = match["margins"] not in (b"", b";")
            case "keypad":
                self._keypad = match["keypad"] == b"="
            case "keys":
                self._keys = match["keys"].strip(b";0") != b""
            case "cursor":
                self._cursor = match["cursor"] not in (b"", b"0")
            case "soft":
                self._on -= {1, 6, 25, 66}
                self._keypad = self._margins = self._style = False
            case _:
                self._on.clear()
                self._keypad = self._keys = self._margins = self._style = self._cursor = False
