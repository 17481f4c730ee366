"""One event of the audit log: what it may say, and the line that it becomes."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any, Final

import attrs
from attrs import field, frozen

from sandd._core.audit.escaping import as_text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sandd._core.audit.redaction import Redactor

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


def _text(value: bytes | str | None) -> str | None:
    return None if value is None else as_text(value)


def _texts(values: tuple[bytes | str, ...] | None) -> tuple[str, ...] | None:
    return None if values is None else tuple(as_text(each) for each in values)


@frozen(kw_only=True)
class Record:
    """One event. What is None, or isn't known, is left out of its line."""

    type: RecordType
    outcome: str | None = None
    """One word: "asked", "exited", "refused", ..."""
    reason: str | None = field(default=None, converter=_text)
    """For people: why."""
    tenant: str | None = field(default=None, converter=_text)
    actor: str | None = field(default=None, converter=_text)
    """Who did it: the principal's name."""
    remote: str | None = field(default=None, converter=_text)
    """Where it came from: a peer's address."""
    daemon: str | None = field(default=None, converter=_text)
    job: str | None = field(default=None, converter=_text)
    kind: str | None = None
    """Of a job: what its spec is called on the wire; of somebody who dials in: "daemon" or "operator"."""
    argv: tuple[str, ...] | None = field(default=None, converter=_texts)
    """Of a program: its command line; with a shell, one text."""
    target: str | None = field(default=None, converter=_text)
    """Of any other job: the path, the address or the job that it is about."""
    cwd: str | None = field(default=None, converter=_text)
    env: tuple[str, ...] | None = field(default=None, converter=_texts)
    """Names of the variables that were given; never a value."""
    policy: str | None = field(default=None, converter=_text)
    """Hash of the rules that decided."""
    limits: Mapping[str, Any] | None = None
    result: Mapping[str, Any] | None = None
    trace: str | None = field(default=None, converter=_text)
    """What joins it to other systems' records."""
    secrets: tuple[bytes, ...] = field(default=(), repr=False)
    """Not in the line, nor is anything that equals them."""

    def fields(self, redactor: Redactor) -> dict[str, Any]:
        """What the line says besides its number, its time and the line before it."""
        values = {name: value for name in _FIELDS if (value := getattr(self, name)) is not None}
        kept: dict[str, Any] = redactor.value(values)
        if self.secrets:
            kept = type(redactor)(self.secrets).value(kept)
        kept["type"] = self.type.value
        return kept


_FIELDS: Final = tuple(
    each.name for each in attrs.fields(Record) if each.name not in ("type", "secrets")
)
