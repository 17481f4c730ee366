"""A span for each job, for programs that trace; by OpenTelemetry's own SDK, with real daemons."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import anyio
import pytest
import trio
from aio_world import aio_worker
from attrs import define
from audit_log import lines_of
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind, StatusCode
from standing_daemon import LIMIT, StandingDaemon, standing_daemon

import sandd
from sandd import wire
from sandd._core import tracing
from sandd._core._errors import RemoteProtocolError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="these commands are POSIX shell")


@pytest.fixture(scope="module")
def daemon(_own_temporary_directory: None) -> Iterator[StandingDaemon]:
    """The daemon that the tests of this module share; it was itself started in somebody's trace."""
    env = {"TRACEPARENT": f"00-{'a' * 32}-{'b' * 16}-01", "TRACESTATE": "old=1"}
    with standing_daemon(env=env) as daemon:
        yield daemon


@define
class Traced:
    """A program that traces, and what it has exported."""

    provider: TracerProvider
    exporter: InMemorySpanExporter

    @property
    def tracer(self) -> trace.Tracer:
        """The program's own."""
        return self.provider.get_tracer("program")

    @property
    def spans(self) -> list[ReadableSpan]:
        """Of jobs, in the order of their ends."""
        return [
            each for each in self.exporter.get_finished_spans() if each.name.startswith("sandd ")
        ]

    @property
    def one(self) -> tuple[ReadableSpan, dict[str, Any]]:
        """The only one, and its attributes."""
        (span,) = self.spans
        self.exporter.clear()
        return span, dict(span.attributes or {})


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Traced:
    """This program traces: its provider is that of the process, as long as the test lasts."""
    return install(monkeypatch, TracerProvider())


def install(monkeypatch: pytest.MonkeyPatch, provider: TracerProvider) -> Traced:
    """Have it be the process' own."""
    exporter = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    # set_tracer_provider is for good.
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    return Traced(provider, exporter)


async def test_a_command_has_a_span(daemon: StandingDaemon, traced: Traced) -> None:
    """Below the current one, from its request to its end; the command finds it in its environment."""
    async with daemon.worker() as worker:
        with traced.tracer.start_as_current_span("agent") as parent:
            result = await worker.run("echo $TRACEPARENT,$TRACESTATE")
        span, attributes = traced.one
        context = span.get_span_context()
        assert context is not None
        flags = int(context.trace_flags)
        assert flags & 1
        assert result.stdout == f"00-{context.trace_id:032x}-{context.span_id:016x}-{flags:02x},\n"
        assert span.parent == parent.get_span_context()
        assert (span.name, span.kind) == ("sandd command", SpanKind.CLIENT)
        assert span.status.status_code is StatusCode.UNSET
        assert attributes.pop("process.pid") > 0
        assert 0 < attributes.pop("sandd.job.duration") < LIMIT
        assert attributes == {
            "sandd.daemon.id": "worker-1",
            "sandd.job.id": result.job_id,
            "sandd.job.kind": "command",
            "sandd.job.outcome": "exited",
            "process.exit.code": 0,
        }


async def test_what_fails_is_an_error_by_its_kind(daemon: StandingDaemon, traced: Traced) -> None:
    """A code, a signal, a time-out, a program that isn't there; that its own program ended it is none."""
    async with daemon.worker() as worker:
        await worker.run("exit 3")
        span, attributes = traced.one
        assert span.status.status_code is StatusCode.ERROR
        assert (attributes["error.type"], attributes["process.exit.code"]) == ("3", 3)
        await worker.run("kill -9 $$")
        span, attributes = traced.one
        assert (attributes["error.type"], attributes["sandd.job.signal"]) == ("signaled", "SIGKILL")
        assert "process.exit.code" not in attributes
        with pytest.raises(sandd.CommandTimeout):
            await worker.run("sleep 60", timeout=0.2)
        assert traced.one[1]["error.type"] == "timed_out"
        with pytest.raises(sandd.SpawnFailed):
            await worker.run(["no-such-program"])
        span, attributes = traced.one
        assert (attributes["error.type"], span.status.status_code) == ("spawn", StatusCode.ERROR)
        assert "process.pid" not in attributes
        with pytest.raises(sandd.SpawnFailed):
            await worker.run(["true", "x" * (wire.MAX_CONTROL_BYTES + 1)])
        assert traced.one[1]["error.type"] == "LocalProtocolError"
        async with worker.open_process("sleep 60"):
            pass
        span, attributes = traced.one
        assert attributes["sandd.job.outcome"] == "cancelled"
        assert span.status.status_code is StatusCode.UNSET


async def test_the_limit_that_ended_it_is_told(daemon: StandingDaemon, traced: Traced) -> None:
    """By its name, beside the outcome."""
    async with daemon.worker() as worker:
        await worker.run("yes", limits=sandd.Limits(output_bytes=1000))
        span, attributes = traced.one
        assert attributes["sandd.job.limit"] == "output_bytes"
        assert attributes["error.type"] == "limit_exceeded"
        assert span.status.status_code is StatusCode.ERROR


async def test_a_cancelled_command_ends_its_span(daemon: StandingDaemon, traced: Traced) -> None:
    """Whenever that is."""
    async with daemon.worker() as worker:
        with trio.move_on_after(0.2):
            await worker.run("sleep 60")
        assert traced.one[1]["sandd.job.outcome"] == "cancelled"


async def test_a_session_and_a_detached_job_have_one_each(
    daemon: StandingDaemon, traced: Traced
) -> None:
    """What is left running is told when it is left; attaching to it makes no second one, and neither do requests."""
    async with daemon.worker() as worker:
        async with worker.open_session("echo $TRACEPARENT; exit") as session:
            await session.wait()
            shown = b""
            while chunk := await session.receive_some():
                shown += chunk
        span, attributes = traced.one
        context = span.get_span_context()
        assert context is not None
        assert f"-{context.span_id:016x}-".encode() in shown
        assert (span.name, attributes["sandd.job.kind"]) == ("sandd session", "session")
        async with worker.open_process("sleep 60", detach=True) as process:
            job_id = process.job_id
        assert traced.one[1]["sandd.job.outcome"] == "detached"
        async with worker.attach_process(job_id, read_only=True):
            pass
        await worker.forget(job_id)
        assert traced.spans == []


async def test_a_job_may_be_asked_for_again_in_another_trace(
    daemon: StandingDaemon, traced: Traced
) -> None:
    """It is the same job all the same: the trace is no part of what is compared."""
    async with (
        daemon.worker() as worker,
        worker.open_process("cat", job_id="twice") as first,
        worker.open_process("cat", job_id="twice") as second,
    ):
        assert first.pid == second.pid
    traced.exporter.clear()


async def test_a_variable_of_the_callers_own_wins(daemon: StandingDaemon, traced: Traced) -> None:
    """Whoever sets TRACEPARENT knows why."""
    async with daemon.worker() as worker:
        result = await worker.run("echo $TRACEPARENT", env={"TRACEPARENT": "mine"})
        assert result.stdout == "mine\n"


async def test_arguments_are_told_only_if_asked_for(
    daemon: StandingDaemon, traced: Traced, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they may hold secrets; by a variable of this program's environment."""
    async with daemon.worker() as worker:
        await worker.run(["/bin/echo", "sesame"])
        assert "sesame" not in traced.spans[0].to_json()
        assert "echo" not in traced.spans[0].to_json()
        traced.exporter.clear()
        monkeypatch.setenv("SANDD_TRACE_ARGUMENTS", "1")
        await worker.run(["/bin/echo", "sesame"])
        span, attributes = traced.one
        assert span.name == "sandd command echo"
        assert attributes["process.command_args"] == ("/bin/echo", "sesame")


async def test_who_does_not_sample_hands_its_context_on(
    daemon: StandingDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flags and all, so that the command doesn't sample either; and nothing is recorded."""
    traced = install(monkeypatch, TracerProvider(sampler=ALWAYS_OFF))
    async with daemon.worker() as worker:
        result = await worker.run("echo $TRACEPARENT")
        assert not int(result.stdout.rpartition("-")[2], 16) & 1
        assert traced.spans == []


@pytest.mark.anyio
async def test_other_event_loops_are_the_parents_too(
    daemon: StandingDaemon, traced: Traced
) -> None:
    """The span that is current in the caller's task is the parent, though another thread asks."""
    async with aio_worker(daemon) as worker:
        with traced.tracer.start_as_current_span("agent") as parent:
            await worker.run("true")
        assert traced.one[0].parent == parent.get_span_context()
    await anyio.lowlevel.checkpoint()


def test_synchronous_code_is_the_parent_too(daemon: StandingDaemon, traced: Traced) -> None:
    """As above."""
    with sandd.Server(port=daemon.port) as server:
        assert server.wait_for_daemon("worker-1", timeout=LIMIT)
        with traced.tracer.start_as_current_span("agent") as parent:
            server.exec("worker-1", "true")
    assert traced.one[0].parent == parent.get_span_context()


async def test_the_audit_log_has_the_trace(
    daemon: StandingDaemon, traced: Traced, tmp_path: Path
) -> None:
    """In what is recorded of the job's request, start and end."""
    async with daemon.worker(state_dir=tmp_path, audit=True) as worker:
        result = await worker.run("sleep 0.1; echo $TRACEPARENT")
        await worker.jobs()
    seen = {
        each["type"]: each.get("trace")
        for each in map(json.loads, lines_of(tmp_path))
        if each.get("job") == result.job_id
    }
    assert seen["request"] == seen["end"] == result.stdout.strip()


async def test_a_provider_that_fails_costs_no_job(
    daemon: StandingDaemon, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is told in the log, and the command runs: where it fails to begin a span, and where it fails to end one."""
    async with daemon.worker() as worker:
        monkeypatch.setattr(trace, "get_tracer_provider", lambda: 1 / 0)
        assert (await worker.run("echo $TRACEPARENT")).stdout == f"00-{'a' * 32}-{'b' * 16}-01\n"
        assert "span_not_told" in caplog.text
        caplog.clear()
        traced = install(monkeypatch, TracerProvider())
        monkeypatch.setattr("opentelemetry.sdk.trace.Span.set_attributes", lambda *_: 1 / 0)
        assert (await worker.run("true")).success
        assert "span_not_told" in caplog.text
        assert traced.spans == []


async def test_a_trace_that_somebody_else_records_goes_on(daemon: StandingDaemon) -> None:
    """Without a provider, what is current is handed on as it is: a parent that came with a request, say."""
    context = trace.SpanContext(7, 8, is_remote=True, trace_flags=trace.TraceFlags(1))
    async with daemon.worker() as worker:
        with trace.use_span(trace.NonRecordingSpan(context)):
            result = await worker.run("echo $TRACEPARENT")
    assert result.stdout == f"00-{7:032x}-{8:016x}-01\n"


async def test_without_a_provider_there_is_nothing(daemon: StandingDaemon) -> None:
    """No span, and no variable; the daemon's own is the command's, as any other of its variables."""
    assert tracing.begin("d", wire.CommandSpec((b"x",))) is None
    async with daemon.worker() as worker:
        assert "a" * 32 in (await worker.run("echo $TRACEPARENT")).stdout


def test_the_api_is_not_imported_by_us() -> None:
    """Whoever doesn't trace doesn't pay for it, though it is installed."""
    program = (
        "import sys, sandd; from sandd._core import tracing; from sandd import wire\n"
        "assert tracing.begin('d', wire.CommandSpec((b'x',))) is None\n"
        "sandd.open_controller, sandd.Server\n"
        "assert not [each for each in sys.modules if each.startswith('opentelemetry')]"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


@pytest.mark.parametrize("text", ["x", "00-00-00-00", f"00-{'A' * 32}-{'b' * 16}-01", "\n"])
def test_only_a_traceparent_crosses_the_wire(text: str) -> None:
    """As it becomes a variable of commands that a policy may have thought about."""
    good = f"00-{'a' * 32}-{'b' * 16}-01"
    attach = wire.Attach("d", "j", "c", trace=good)
    head, body = wire.encode_control(1, attach)
    packed = bytes(head[wire.HEADER_BYTES :]) + bytes(body)
    assert good.encode() in packed
    assert _decoded(attach) == attach
    object.__setattr__(attach, "trace", text)
    with pytest.raises(RemoteProtocolError):
        _decoded(attach)


def _decoded(attach: wire.Attach) -> object:
    (frame,) = wire.decode_frames(b"".join(map(bytes, wire.encode_control(1, attach))))
    return wire.decode_control(frame)
