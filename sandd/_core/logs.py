"""Structured log lines: structlog's events, carried by the standard library's `logging`.

A library is quiet: until somebody asks, nothing is written anywhere, structlog is not imported (it
costs a daemon 45 ms and 6.5 MB, as it brings asyncio and rich along), and a line that is switched
off costs one call. Nobody's structlog or logging configuration is touched: events travel as records
of the loggers ``sandd.<name>``, which the embedding program filters and formats as it does all
others. Ours, `sandd.daemon` and the `sandd` command, call `configure`.

What peers and commands send may end up in a line, so both formats escape every character that could
forge a line or drive a terminal (newline, ESC, C1, bidi); see `printable`. No event is given a secret. What looks like
one all the same, in the words of an error or in a URL, is left out of every line; see `masked`.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from typing import TYPE_CHECKING, Any, Final, Literal, TextIO

from sandd._core._errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import MutableMapping

    from structlog.stdlib import BoundLogger

LEVELS: Final = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "critical": logging.CRITICAL,
}

MASK: Final = "[redacted]"
_SECRETS: Final = re.compile(r"sd[jo]_[0-9A-Za-z]{16,}|(?<=://)[^/\s@\"']+(?=@)")
"""Tokens of ours, which tell by their form what they are, and what stands in a URL before its host."""
_CALLER: Final = 5
"""Frames from `logging` back to our caller, by way of structlog and `Logger`; a test counts too."""

# Without a handler of our own, `logging` would print our warnings on the program's stderr.
logging.getLogger("sandd").addHandler(logging.NullHandler())


def get_logger(name: str) -> Logger:
    """The logger ``sandd.<name>``; ask for it once, at import time."""
    return Logger(logging.getLogger(f"sandd.{name}"), {})


class Logger:
    """A structlog logger that comes into being with the first line somebody wants to see.

    Events are constant strings in the past tense; what varies goes into `fields`. No secrets, and
    no terminal content.
    """

    __slots__ = ("_context", "_structured", "_target")

    def __init__(self, target: logging.Logger, context: dict[str, object]) -> None:
        self._target = target
        self._context = context
        self._structured: BoundLogger | None = None

    def __repr__(self) -> str:
        return f"<Logger {self._target.name} {_render_fields(self._context)}>"

    def bind(self, **fields: object) -> Logger:
        """A logger that adds these fields to every line."""
        return Logger(self._target, self._context | fields)

    def debug(self, event: str, **fields: object) -> None:
        """A line for who is looking for a fault."""
        if self._target.isEnabledFor(logging.DEBUG):
            self._structlog.debug(event, **fields)

    def info(self, event: str, **fields: object) -> None:
        """A line for who wants to know what happened."""
        if self._target.isEnabledFor(logging.INFO):
            self._structlog.info(event, **fields)

    def warning(self, event: str, **fields: object) -> None:
        """A line about something that was not as it should be, and that we coped with."""
        if self._target.isEnabledFor(logging.WARNING):
            self._structlog.warning(event, **fields)

    def error(self, event: str, **fields: object) -> None:
        """A line about something that did not work."""
        if self._target.isEnabledFor(logging.ERROR):
            self._structlog.error(event, **fields)

    def exception(self, event: str, **fields: object) -> None:
        """As `error`, with the traceback of the exception being handled."""
        if self._target.isEnabledFor(logging.ERROR):
            self._structlog.error(event, exc_info=True, **fields)

    @property
    def _structlog(self) -> BoundLogger:
        if self._structured is None:
            import structlog  # here: see the module's docstring

            # Every setting is given, so that no structlog.configure() of the program's reaches us.
            self._structured = structlog.wrap_logger(
                self._target,
                processors=[structlog.contextvars.merge_contextvars, _to_record],
                wrapper_class=structlog.stdlib.BoundLogger,
                context_class=dict,
                cache_logger_on_first_use=True,
            ).bind(**self._context)
        return self._structured


class Event(dict[str, Any]):
    """A record's message: fields for who wants fields, text for who wants text."""

    def __str__(self) -> str:
        text = printable(str(self["event"]))
        fields = _render_fields(self)
        return f"{text} {fields}" if fields else text


def _to_record(
    target: logging.Logger, method: str, fields: MutableMapping[str, Any]
) -> tuple[tuple[Event], dict[str, Any]]:
    """structlog's last processor: the arguments of the logging call."""
    for name, value in fields.items():
        if isinstance(value, str):
            fields[name] = masked(value)
    if fields.get("exc_info") is True:
        fields["exc_info"] = sys.exc_info()  # now: the line may be formatted elsewhere, later
    # With these two attributes structlog's own ProcessorFormatter, where the embedding program has
    # one, takes the fields one by one.
    extra = {"_logger": target, "_name": method}
    exc_info = fields.get("exc_info")
    return (Event(fields),), {"extra": extra, "exc_info": exc_info, "stacklevel": _CALLER}


# ---- for our own programs -----------------------------------------------------------------------


def configure(
    level: str, format: Literal["text", "json"] = "text", stream: TextIO | None = None
) -> None:
    """Write this process' log to `stream` from now on; calling again replaces what was set.

    For programs only, as it speaks for the whole process: our own lines from `level` on ("debug" to
    "critical"), everybody else's from "warning" on.

    Args:
        level: the least severe level of ours that is written.
        format: "text" for people, or "json": one object a line, in ASCII.
        stream: where to; by default the standard error stream.

    Raises:
        ConfigurationError: there is no such level or format; nothing was changed.
    """
    if level not in LEVELS:
        raise ConfigurationError(f"log level {level!r} is none of {', '.join(LEVELS)}")
    if format not in _FORMATTERS:
        raise ConfigurationError(f"log format {format!r} is none of {', '.join(_FORMATTERS)}")
    handler = _Handler(sys.stderr if stream is None else stream)
    handler.setFormatter(_FORMATTERS[format]())
    root = logging.getLogger()
    for previous in [each for each in root.handlers if isinstance(each, _Handler)]:
        root.removeHandler(previous)
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger("sandd").setLevel(LEVELS[level])


class _Handler(logging.StreamHandler[TextIO]):
    """A type of its own, so that `configure` finds what it added before."""


class _TextFormatter(logging.Formatter):
    """``2026-01-31T12:00:00.123Z warning  sandd.link: connection lost code=1006``."""

    def format(self, record: logging.LogRecord) -> str:
        text = str(record.msg) if isinstance(record.msg, Event) else printable(record.getMessage())
        line = f"{_timestamp(record)} {record.levelname.lower():<8} {record.name}: {text}"
        if record.exc_info:
            traceback = self.formatException(record.exc_info)
            # The indent shows where the next record starts, whatever the exception's text holds.
            line += "".join(f"\n    {printable(each)}" for each in traceback.splitlines())
        return masked(line)


class _JsonFormatter(logging.Formatter):
    """One ASCII object a line; the first four keys are timestamp, level, logger and event."""

    def format(self, record: logging.LogRecord) -> str:
        fields = record.msg if isinstance(record.msg, Event) else {"event": record.getMessage()}
        ours = {
            "timestamp": _timestamp(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": fields["event"],
        }
        if record.exc_info:
            ours["exception"] = self.formatException(record.exc_info)
        theirs = {key: fields[key] for key in fields if key not in {*ours, "exc_info"}}
        # JSON escapes all that could harm except DEL, which can only stand within a string.
        return masked(json.dumps(ours | theirs, default=repr)).replace("\x7f", "\\u007f")


_FORMATTERS: Final = {"text": _TextFormatter, "json": _JsonFormatter}


def _timestamp(record: logging.LogRecord) -> str:
    """UTC, to the millisecond. A wall clock is right here: only people read it."""
    seconds, milliseconds = divmod(int(record.created * 1000), 1000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{milliseconds:03d}Z"


def _render_fields(fields: MutableMapping[str, Any]) -> str:
    return " ".join(
        f"{key}={_render_value(value)}"
        for key, value in fields.items()
        if key not in {"event", "exc_info"}
    )


def _render_value(value: object) -> str:
    """A value as one word, or quoted, so that none can be taken for two, or for another's key."""
    text = value if isinstance(value, str) else repr(value)
    if text and text.isprintable() and not set(text) & set(' "=\\'):
        return text
    quoted = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{printable(quoted)}"'


def masked(text: str) -> str:
    """The text without what looks like a token of ours, or like the user and password of a URL."""
    return _SECRETS.sub(MASK, text)


def printable(text: str) -> str:
    r"""The text with every character escaped that a terminal might not simply show.

    These are the control (``\n``, ``\x1b``), format (bidi), surrogate, private and unassigned ones,
    and all separators but the space.
    """
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode("ascii")
        for each in text
    )
