"""Which files of a tree are sent: patterns as in a .gitignore."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pathspec import GitIgnoreSpec


class Filter:
    """With `include` only files that match one of its patterns; without those that `exclude` matches."""

    def __init__(self, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> None:
        self._include = _patterns(include)
        self._exclude = _patterns(exclude)

    @property
    def chooses(self) -> bool:
        """Not everything goes: a directory may turn out to have nothing that is sent."""
        return self._include is not None

    def takes_file(self, path: bytes) -> bool:
        """Whether something that is no directory is sent; `path` is from the top of the tree."""
        if self._exclude is self._include is None:
            return True
        text = _as_text(path)
        if self._exclude is not None and self._exclude.match_file(text):
            return False
        return self._include is None or self._include.match_file(text)

    def enters(self, path: bytes) -> bool:
        """Whether it is worth to look into a directory."""
        return self._exclude is None or not self._exclude.match_file(_as_text(path) + "/")


def _patterns(patterns: Sequence[str]) -> GitIgnoreSpec | None:
    if not patterns:
        return None
    from pathspec import GitIgnoreSpec  # only where it is needed: 30 ms

    return GitIgnoreSpec.from_lines([_without_newlines(each) for each in patterns])


def _as_text(path: bytes) -> str:
    return _without_newlines(os.fsdecode(path))


def _without_newlines(text: str) -> str:
    # At the end of a name, pathspec's expressions take one for the end of a line. No name has a zero.
    return text.replace("\n", "\0")
