"""Where a path leads by its text alone. Links are for who has the disk: see `executables` and `granted_files`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sandd._core.policy.rules import Policy


def parts_of(path: str) -> list[str] | None:
    """The components of an absolute path; None for one that is relative, or has ``..`` or a null in it."""
    parts = [each for each in path.split("/") if each not in ("", ".")]
    return parts if path.startswith("/") and ".." not in parts and "\0" not in path else None


def is_beneath(path: str, directory: str) -> bool:
    """Whether the path is the directory, or leads to something in it."""
    parts, above = parts_of(path), parts_of(directory)
    return parts is not None and above is not None and parts[: len(above)] == above


def lies_beneath(path: str, directories: tuple[str, ...]) -> bool:
    """Whether the path is in one of these."""
    return any(is_beneath(path, each) for each in directories)


def resolve(path: str, cwd: str | None) -> str | None:
    """The absolute path; None where there is none that is sure, or it looks like an option."""
    if not path or path.startswith("-"):
        return None
    if not path.startswith("/"):
        if cwd is None:
            return None
        path = f"{cwd}/{path}"
    return None if parts_of(path) is None else path


def holds_programs(path: str, policy: Policy) -> bool:
    """Whether the path leads into a directory of programs, or to one above it."""
    return any(
        is_beneath(path, each) or is_beneath(each, path) for each in policy.executable_directories
    )


def as_text(data: bytes) -> str:
    """Bytes of a command, as regexes and paths have them; whatever is no UTF-8 survives."""
    return data.decode("utf-8", "surrogateescape")


def is_readable(text: str) -> bool:
    """Whether it is what a TOML file can hold, and a path or a name can be."""
    return "\0" not in text and os.fsencode(text) == text.encode("utf-8", "surrogateescape")
