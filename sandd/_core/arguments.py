"""What a caller gave, looked at where it comes in: TypeError or ValueError, with its name and what it must be.

Python would tell it, too, but later, and of a name that is none of the caller's.
"""

from __future__ import annotations

import math
import numbers
import operator
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def check_text(name: str, value: str, *, what: str = "a text") -> str:
    """The text itself; `what` says what it must be."""
    if not isinstance(value, str):
        raise TypeError(f"{name} is {value!r}; it must be {what}")
    return value


def check_number(name: str, value: float, *, what: str = "a number of seconds") -> float:
    """The number itself; a text with digits is none, and neither is True."""
    if type(value) is float:
        return value  # as mostly, and others take long to tell
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}; it must be {what}")
    return float(value)


def patience(timeout: float | None) -> float:
    """How long to wait, in seconds; None: as long as it takes; less than nothing: not at all."""
    return math.inf if timeout is None else max(0.0, check_number("timeout", timeout))


def check_count(name: str, value: int, *, lowest: int, most: int, what: str) -> int:
    """The whole number itself, within its bounds."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} is {value!r}; it must be {what}") from None
    if not lowest <= number <= most:
        raise ValueError(f"{name} is {value!r}; it must be {what}")
    return number


def check_mapping(name: str, value: Mapping[str, object] | None, *, like: str) -> None:
    """Nothing, where it is a dict with texts for keys, or None; `like` is an example."""
    given: object = value  # whatever its type says
    if given is None:
        return
    if not isinstance(given, Mapping) or not all(isinstance(key, str | bytes) for key in given):
        raise TypeError(f"{name} is {given!r}; it must be a dict, such as {like}, or None")


def check_labels(labels: Mapping[str, str] | None) -> Mapping[str, str]:
    """The labels that a daemon must have to be meant; none for None."""
    check_mapping("labels", labels, like="{'env': 'prod'}")
    for key, value in (labels or {}).items():
        check_text(f"labels[{key!r}]", value)
    return labels or {}


def check_daemon_id(daemon_id: str) -> str:
    """The id itself, of a daemon that there may be or not."""
    return check_text("daemon_id", daemon_id, what="the id of a daemon, a text")


def read_path(name: str, path: str | os.PathLike[str] | None) -> Path | None:
    """The path of this machine; None for none."""
    try:
        return None if path is None else Path(os.fsdecode(path))
    except TypeError:
        raise TypeError(f"{name} is {path!r}; it must be a path, a text or a path object") from None


def check_function(name: str, function: Callable[..., object] | None) -> None:
    """Nothing, where it can be called, or is None."""
    if function is not None and not callable(function):
        raise TypeError(f"{name} is {function!r}; it must be a function, or None")


def encode_data(name: str, data: str | bytes | bytearray | memoryview) -> bytes:
    """Bytes as they are, a text as UTF-8."""
    if isinstance(data, str):
        return data.encode()
    try:
        return bytes(memoryview(data))  # bytes(7) would be seven zeros
    except TypeError:
        raise TypeError(f"{name} is {data!r}; it must be bytes, or a text") from None
