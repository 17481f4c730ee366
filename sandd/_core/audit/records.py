"""One event of the audit log: what it may say, and the line that it becomes."""

from __future__ import annotations

import enum
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final

import attrs
from attrs import field, frozen

from sandd._core.audit.escaping import as_json

if TYPE_CHECKING:
    from collections.abc import Mapping

VERSION: Final = 1
"""Of the format of lines; a reader refuses others."""


class RecordType(enum.StrEnum):
    """What a line is about."""

    # Of the log itself.
    SEGMENT = "segment"  # the first line of a file
    CHECKPOINT = "checkpoint"  # a signature of all lines before it
    REPAIR = "repair"  # the last run ended in the middle of a line
    LOST = "lost"  # events there was no room for
    # Of the controller and whoever dials in.
    CONTROLLER = "controller"  # it was started, or closed in good order
    CONNECTION = "connection"  # a daemon or an operator was let in
    DISCONNECTION = "disconnection"
    REFUSAL = "refusal"  # somebody was not let in, or what was asked for was not done
    # Of jobs.
    REQUEST = "request"  # on the disk before anything runs
    ATTACH = "attach"  # to a job that exists
    START = "start"
    STOP = "stop"  # somebody ends a job
    END = "end"
    RECORDING = "recording"  # of a session, complete
    # Of who may do what.
    POLICY = "policy"
    TOKEN = "token"  # noqa: S105 - a kind of event, and no secret
    CERTIFICATE = "ca"


@frozen(kw_only=True)
class Record:
    """One event. What is None, or isn't known, is left out of its line."""

    type: RecordType
    outcome: str | None = None
    """One word: "asked", "exited", "refused", ..."""
    reason: str | None = None
    """For people: why."""
    tenant: str | None = None
    actor: str | None = None
    """Who did it: the principal's name."""
    remote: str | None = None
    """Where it came from: a peer's address."""
    daemon: str | None = None
    job: str | None = None
    kind: str | None = None
    """Of a job: what its spec is called on the wire; of somebody who dials in: "daemon" or "operator"."""
    argv: tuple[bytes | str, ...] | None = None
    """Of a program: its command line; with a shell, one text."""
    target: bytes | str | None = None
    """Of any other job: the path, the address or the job that it is about."""
    cwd: bytes | str | None = None
    env: tuple[bytes | str, ...] | None = None
    """Names of the variables that were given; never a value."""
    policy: str | None = None
    """Hash of the rules that decided."""
    limits: Mapping[str, Any] | None = None
    result: Mapping[str, Any] | None = None
    trace: str | None = None
    """What joins it to other systems' records."""
    secrets: tuple[bytes, ...] = field(default=(), repr=False)
    """Not in the line, nor is anything that equals them."""

    @property
    def fields(self) -> dict[str, Any]:
        """What the line says besides its number, its time and the line before it."""
        said: dict[str, Any] = {"type": self.type.value}
        for name, value in zip(_FIELDS, _values_of(self), strict=True):
            if value is not None:
                # Most are names: to ask of each what it may be costs as much as the rest of the line.
                said[name] = value if type(value) is str and value.isascii() else as_json(value)
        return said


_FIELDS: Final = tuple(
    each.name for each in attrs.fields(Record) if each.name not in ("type", "secrets")
)
_values_of: Final = attrgetter(*_FIELDS)
