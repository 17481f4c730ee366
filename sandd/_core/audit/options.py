"""What an audit log can be told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from attrs import field, frozen

from sandd._core._errors import ConfigurationError
from sandd.wire import KIB, MIB

if TYPE_CHECKING:
    from attrs import Attribute


def _check_choice(_: object, __: Attribute[str], value: str) -> None:
    if value not in ("refuse", "run"):
        raise ConfigurationError(f"on_full is {value!r}; it is 'refuse' or 'run'")


def _check_size(_: object, __: Attribute[int], value: int) -> None:
    if not value >= 4 * KIB:
        raise ConfigurationError(f"segment_bytes is {value}; it must be at least 4096")


@frozen(kw_only=True)
class AuditOptions:
    """How a controller keeps its audit log: ``open_controller(..., audit=AuditOptions(...))``."""

    on_full: Literal["refuse", "run"] = field(default="refuse", validator=_check_choice)
    """While the log can't be written, because the disk is full or broken: "refuse" every new job, or "run" it
    unrecorded."""
    segment_bytes: int = field(default=64 * MIB, validator=_check_size)
    """From this size on the next file is begun: what an editor still opens."""
    secrets: tuple[str | bytes, ...] = field(default=(), repr=False)
    """What must stand in no line, besides the controller's own tokens."""
