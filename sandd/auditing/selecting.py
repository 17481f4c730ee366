"""Which records are wanted. No I/O but a look at the clock."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from attrs import frozen

if TYPE_CHECKING:
    import argparse

_AGO: Final = re.compile(r"(\d{1,6})([smhd])")
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


class BadTime(Exception):
    """A text that is no time; says why."""


def read_time(text: str) -> str:
    """The time as the log has them, so that texts can be compared; BadTime if it is none."""
    ago = _AGO.fullmatch(text)
    if ago is not None:
        at = datetime.now(UTC) - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
    else:
        try:
            at = datetime.fromisoformat(text).astimezone(UTC)  # without a zone: local
        except (ValueError, OverflowError) as error:
            raise BadTime(f"{text!r} is no time: 2026-01-31, 2026-01-31T12:00 or 12h") from error
    return at.isoformat(timespec="microseconds").replace("+00:00", "Z")


@frozen
class Selection:
    """What a record has to be to be wanted."""

    since: str | None = None
    until: str | None = None
    tenant: str | None = None
    daemon: str | None = None
    job: str | None = None
    types: tuple[str, ...] = ()

    @classmethod
    def of(cls, options: argparse.Namespace) -> Selection:
        """What the command line says."""
        return cls(
            since=getattr(options, "since", None),
            until=getattr(options, "until", None),
            tenant=options.tenant,
            daemon=options.daemon,
            job=options.job,
            types=tuple(options.types or ()),
        )

    def wants(self, fields: dict[str, Any]) -> bool:
        """Whether the record is wanted."""
        at = str(fields.get("ts"))
        if (self.since is not None and at < self.since) or (
            self.until is not None and at >= self.until
        ):
            return False
        for name in ("tenant", "daemon", "job"):
            wanted = getattr(self, name)
            if wanted is not None and fields.get(name) != wanted:
                return False
        return not self.types or not {fields.get("type"), fields.get("kind")}.isdisjoint(self.types)
