"""The escapes a person types to talk to us and not to the session: ``~.`` and its like.

Sans-IO. The rules are OpenSSH's (ssh(1), "ESCAPE CHARACTERS"; clientloop.c, process_escapes), since
they are in people's fingers: a ``~`` counts only as the first character of a line, that is at the
beginning, after CR and after LF; what follows says what is meant, and ``~~`` is one ``~``. A ``~`` that is
followed by anything else goes through, with what follows.

``~d`` is ours; ssh has no sessions that go on.
"""

from __future__ import annotations

import enum
from typing import Final

from attrs import define

_TILDE: Final = 0x7E
_NEWLINES: Final = b"\r\n"


class Escape(enum.Enum):
    """What somebody asked of us; the value is the key after the ``~``."""

    LEAVE = ord(".")
    DETACH = ord("d")
    SUSPEND = 0x1A  # Ctrl-Z: in raw mode the only way to type it
    HELP = ord("?")


HELP: Final = """\
Escapes, at the beginning of a line:
  ~.   leave: the session is ended, unless it is detached
  ~d   detach: leave the session running
  ~^Z  suspend this program
  ~?   this list
  ~~   one ~
"""

_KEYS: Final = {each.value: each for each in Escape}


@define
class Escapes:
    """Takes what was typed, in pieces of any size; gives what is for the session, and what is for us."""

    left: bool = False
    """LEAVE was typed: nothing that comes after it is for anybody."""
    _at_line_start: bool = True
    _pending: bool = False
    """A ``~`` at the start of a line waits for what follows it."""

    def feed(self, typed: bytes) -> list[bytes | Escape]:
        """What it means, in order. But for a ``~`` that may begin an escape, nothing is held back."""
        said: list[bytes | Escape] = []
        plain = bytearray()
        for byte in typed:
            if self.left:
                break
            if self._pending:
                self._pending = False
                escape = _KEYS.get(byte)
                if escape is not None:
                    # The line has not begun for the session: `_at_line_start` stays true.
                    if plain:
                        said.append(bytes(plain))
                        plain.clear()
                    said.append(escape)
                    self.left = escape is Escape.LEAVE
                    continue
                if byte != _TILDE:
                    plain.append(_TILDE)
            elif byte == _TILDE and self._at_line_start:
                self._pending = True
                continue
            self._at_line_start = byte in _NEWLINES
            plain.append(byte)
        if plain:
            said.append(bytes(plain))
        return said
