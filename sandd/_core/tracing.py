"""A span for each job, where the program that sandd is in traces by OpenTelemetry.

OpenTelemetry's API is used where the program has imported it, and never imported by us: without it nothing can have set
up a provider, so there is nothing to tell, and asking that costs one look into a dict. With the API and no provider it
says of itself that nobody records.

The span's context goes with the job, in its Attach: there the audit log has it from, and the daemon, which puts it into
the command's environment as TRACEPARENT. What a command is called is not told, nor its arguments, unless
``SANDD_TRACE_ARGUMENTS`` is set in the environment of this program: they may hold secrets.

Source: OpenTelemetry's semantic conventions for command line programs, and "Environment Variables as Context
Propagation Carriers"; W3C Trace Context.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, Final

from sandd import __version__, wire
from sandd._core.logs import get_logger
from sandd._core.results import signal_name
from sandd.wire import Outcome

if TYPE_CHECKING:
    from opentelemetry.trace import Span

    from sandd._core.client_job import ClientJob

log = get_logger("tracing")

ARGUMENTS_VARIABLE: Final = "SANDD_TRACE_ARGUMENTS"
_API: Final = "opentelemetry.trace"


class JobSpan:
    """The span of one job, from its request to its end."""

    __slots__ = ("_span", "traceparent")

    def __init__(self, span: Span, traceparent: str) -> None:
        self._span = span
        self.traceparent = traceparent
        """Its context, as W3C has it; "" where there is none to hand on."""

    def opened(self, job_id: str) -> None:
        """The job has an id."""
        self._set({"sandd.job.id": job_id})

    def ended(self, job: ClientJob) -> None:
        """What became of it is known, or we have left it."""
        self._finish(*_outcome(job))

    def failed(self, error: BaseException) -> None:
        """There is no job: nothing could be asked for."""
        self._finish({}, type(error).__name__)

    def _finish(self, attributes: dict[str, Any], failure: str) -> None:
        try:
            if failure:
                from opentelemetry.trace import (
                    Status,
                    StatusCode,
                )  # there is a span, so it is loaded

                attributes["error.type"] = failure
                self._span.set_status(Status(StatusCode.ERROR))
            self._span.set_attributes(attributes)
            self._span.end()
        except Exception:  # it is the program's: whatever is wrong with it must not cost a job
            log.warning("span_not_told", exc_info=True)

    def _set(self, attributes: dict[str, Any]) -> None:
        try:
            self._span.set_attributes(attributes)
        except Exception:  # as above
            log.warning("span_not_told", exc_info=True)


def begin(daemon_id: str, spec: wire.ProgramSpec) -> JobSpan | None:
    """The span of a job that is about to be asked for, below the current one; None: nobody traces here."""
    api: Any = sys.modules.get(_API)
    if api is None:
        return None
    try:
        kind = "session" if isinstance(spec, wire.SessionSpec) else "command"
        name = f"sandd {kind}"
        attributes: dict[str, Any] = {"sandd.daemon.id": daemon_id, "sandd.job.kind": kind}
        provider = api.get_tracer_provider()
        if isinstance(provider, api.ProxyTracerProvider) and not (
            api.get_current_span().get_span_context().is_valid
        ):
            return None  # none is set, and nobody has begun a trace: it would make nothing of it, and take its time
        tracer = provider.get_tracer("sandd", __version__)
        if os.environ.get(ARGUMENTS_VARIABLE) and spec.argv:
            words = [each.decode("utf-8", "backslashreplace") for each in spec.argv]
            attributes["process.command_args"] = words
            name = name if spec.shell else f"{name} {os.path.basename(words[0])}"
        span = tracer.start_span(name, kind=api.SpanKind.CLIENT, attributes=attributes)
        context = span.get_span_context()
        if not context.is_valid:
            return None
        flags = int(context.trace_flags)
        return JobSpan(
            span, f"00-{context.trace_id:032x}-{context.span_id:016x}-{flags & 0xFF:02x}"
        )
    except Exception:  # as above
        log.warning("span_not_told", exc_info=True)
        return None


def _outcome(job: ClientJob) -> tuple[dict[str, Any], str]:
    """The attributes that tell how it ended, and the type of its failure, if it is one."""
    attributes: dict[str, Any] = {}
    if job.started is not None:
        attributes["process.pid"] = job.started.pid
    match job.result:
        case wire.Exited() as exited:
            attributes["sandd.job.outcome"] = exited.outcome.value
            attributes["sandd.job.duration"] = exited.seconds
            if exited.code is not None:
                attributes["process.exit.code"] = exited.code
            if exited.limit:
                attributes["sandd.job.limit"] = exited.limit
            if exited.signal is not None:
                attributes["sandd.job.signal"] = signal_name(exited.signal)
            # That its own program ended it is no failure.
            if exited.outcome is Outcome.CANCELLED or exited.code == 0:
                return attributes, ""
            if exited.outcome is Outcome.EXITED:
                return attributes, str(exited.code)
            return attributes, exited.outcome.value
        case wire.Failed() as failed:
            attributes["sandd.job.outcome"] = failed.code.value
            is_ours = failed.code is wire.FailedCode.CANCELLED
            return attributes, "" if is_ours else failed.code.value
    if job.error is not None:
        return attributes, type(job.error).__name__
    attributes["sandd.job.outcome"] = "detached" if job.detached else "left"
    return attributes, ""
