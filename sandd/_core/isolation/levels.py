"""The levels, from the least to the most. No I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sandd.wire import IsolationLevel

if TYPE_CHECKING:
    from collections.abc import Iterable

_ORDER: Final = {level: number for number, level in enumerate(IsolationLevel)}


def strongest(levels: Iterable[IsolationLevel | None]) -> IsolationLevel:
    """The one that is all the others, too; None asks for nothing."""
    asked = [level for level in levels if level is not None]
    return max(asked, key=_ORDER.__getitem__, default=IsolationLevel.NONE)
