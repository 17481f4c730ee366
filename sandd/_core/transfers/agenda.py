"""What a sender does next: look for more files, send what is wanted, or wait.

It looks far enough ahead that the receiver's answers are there when they are needed.
"""

from __future__ import annotations

import enum
from collections import deque
from typing import Final

from attrs import define, field

from sandd import wire
from sandd._core._errors import RemoteProtocolError

LOOK_AHEAD: Final = wire.TRANSFER_WINDOW // 2
"""With fewer files that are asked about and not complete, to look for more comes first."""


class Turn(enum.Enum):
    """What is to be done."""

    WALK = "walk"
    SEND = "send"
    WAIT = "wait"
    END = "end"


@define(eq=False)
class Question:
    """A file that the receiver is asked about."""

    number: int
    path: bytes
    """From the top of the tree; b"" if it is all that is sent."""
    size: int
    answer: wire.WantRecord | None = None


@define(eq=False)
class Agenda:
    """The sender's questions, in their order."""

    has_walked: bool = False
    """Nothing more is found."""
    is_sending: bool = False
    """The first of the wanted ones is sent in part: nothing may come between."""
    skipped: deque[Question] = field(factory=deque)
    wanted: deque[Question] = field(factory=deque)
    """Still to be sent, in this order."""
    _asked: deque[Question] = field(factory=deque)
    _bytes: int = 0

    def next(self) -> Turn:
        """What is to be done now."""
        if self.is_sending:
            return Turn.SEND
        if self.wanted and (len(self._asked) + len(self.wanted) >= LOOK_AHEAD or not self.room()):
            return Turn.SEND
        if not self.has_walked and self.room():
            return Turn.WALK
        if self.wanted:
            return Turn.SEND
        return Turn.WAIT if self._asked else Turn.END

    def room(self) -> int:
        """How many more files may be asked about."""
        if self.room_bytes() <= 0:
            return 0
        return wire.TRANSFER_WINDOW - len(self._asked) - len(self.wanted)

    def room_bytes(self) -> int:
        """How long their paths may be, but for the last one."""
        return wire.TRANSFER_WINDOW_BYTES - self._bytes

    def asked(self, question: Question) -> None:
        """The receiver is asked about one more."""
        self._asked.append(question)
        self._bytes += len(question.path)

    def answered(self, answer: wire.SkipRecord | wire.WantRecord) -> None:
        """The receiver's next answer."""
        if not self._asked:
            raise RemoteProtocolError("an answer to nothing")
        question = self._asked.popleft()
        if isinstance(answer, wire.SkipRecord):
            self.skipped.append(question)
            self.closed(question)
        else:
            if answer.offset > question.size:
                raise RemoteProtocolError(f"{answer.offset} bytes of a file of {question.size}")
            question.answer = answer
            self.wanted.append(question)

    def closed(self, question: Question) -> None:
        """It is skipped, or complete."""
        self._bytes -= len(question.path)
