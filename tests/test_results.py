"""What a finished command looks like, and how its output is kept within a bound."""

from __future__ import annotations

import re
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandd import wire
from sandd._core.results import Collector, CommandResult, ExitStatus, signal_name
from sandd._core.streams import Gap
from sandd.wire import Exited, Outcome


def result(**changes: object) -> CommandResult:
    """The result of a command that printed little and succeeded."""
    fields = {
        "stdout_bytes": b"out",
        "stderr_bytes": b"",
        "exit_code": 0,
        "outcome": Outcome.EXITED,
        "duration": 1.23456,
        "stdout_total": 3,
        "stderr_total": 0,
        "truncated": False,
        "pipes_held": False,
        "job_id": "j",
    }
    return CommandResult(**{**fields, **changes})  # type: ignore[arg-type]


# ---- how it ended --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "name"), [(9, "SIGKILL"), (15, "SIGTERM"), (2, "SIGINT"), (99, "99")]
)
def test_signals_have_names(number: int, name: str) -> None:
    """A signal is named as people know it, or by its number where it has no name here."""
    assert signal_name(number) == name


@pytest.mark.parametrize(
    ("event", "code", "signal", "success"),
    [
        pytest.param(Exited(0, None, Outcome.EXITED, 1.5), 0, None, True, id="success"),
        pytest.param(Exited(3, None, Outcome.EXITED, 1.5), 3, None, False, id="failure"),
        pytest.param(Exited(None, 9, Outcome.SIGNALED, 1.5), -9, "SIGKILL", False, id="signal"),
        pytest.param(Exited(0, None, Outcome.TIMED_OUT, 1.5), 0, None, False, id="killed politely"),
        pytest.param(Exited(None, None, Outcome.EXITED, 1.5), 0, None, True, id="neither"),
    ],
)
def test_an_exit_event_becomes_a_status(
    event: Exited, code: int, signal: str | None, success: bool
) -> None:
    """(6) The real code, or minus the signal; success only if it ended by itself, with 0."""
    status = ExitStatus.from_event(event)
    assert (status.exit_code, status.signal, status.success) == (code, signal, success)
    assert (status.outcome, status.duration, status.pipes_held) == (event.outcome, 1.5, False)
    same = result(exit_code=code, outcome=event.outcome)
    assert (same.signal, same.success) == (signal, success)


def test_output_is_text_on_request() -> None:
    """Bytes are kept as they came; as text, what is no UTF-8 is replaced."""
    both = result(stdout_bytes="grüß\n".encode(), stderr_bytes=b"\xff!")
    assert (both.stdout, both.stderr) == ("grüß\n", "\ufffd!")


def test_a_result_shows_how_it_ended_and_what_was_printed() -> None:
    """Of a long output, how it begins and ends: a result in a log is a line or two, whatever it holds."""
    shown = repr(result(stdout_bytes="grüß\n".encode(), stderr_bytes=b"\x1b[31m\xff"))
    assert "exit_code=0, outcome='exited', stdout='grüß\\n', stderr='\\x1b[31m\ufffd', dur" in shown
    assert "pipes_held" not in shown
    long = repr(result(stdout_bytes=b"begun " + b"." * 9_000_000 + b" done", truncated=True))
    assert "stdout='begun ....." in long
    assert "..... done' (9000011 bytes), stderr=''" in long
    assert ", truncated=True, " in long
    assert len(long) < 600
    assert result().duration_ms == 1235


# ---- keeping output ------------------------------------------------------------------------------


def naive(content: bytes, limit: int) -> tuple[bytes, bool]:
    """What should be kept, from all of it at once."""
    if len(content) <= limit:
        return content, False
    head, tail = limit - limit // 2, limit // 2
    omitted = len(content) - head - tail
    line = b"\n... %d bytes omitted ...\n" % omitted
    return content[:head] + line + content[len(content) - tail :], True


@given(st.lists(st.binary(max_size=60), max_size=40), st.integers(0, 300))
def test_collector_keeps_head_and_tail(chunks: list[bytes], limit: int) -> None:
    """Whatever the pieces it came in, the result is that of all the bytes at once."""
    collector = Collector(limit)
    for chunk in chunks:
        collector.add(chunk)
    content = b"".join(chunks)
    assert (collector.result(), collector.truncated) == naive(content, limit)
    assert collector.total == len(content)


@pytest.mark.parametrize("size", [1, 1000, 65_536, 70_000, 1_000_000])
def test_collector_keeps_head_and_tail_of_much(size: int) -> None:
    """Also where the tail is made of many pieces, each of the size the pipe gave."""
    content = bytes(range(256)) * 1200
    limit = 200_001
    collector = Collector(limit)
    for start in range(0, len(content), size):
        collector.add(content[start : start + size])
    assert (collector.result(), collector.truncated) == naive(content, limit)


@given(
    parts=st.lists(st.binary(min_size=1, max_size=20) | st.integers(1, 9), max_size=12),
    limit=st.integers(0, 60),
)
def test_collector_never_joins_what_a_gap_was_between(parts: list[bytes | int], limit: int) -> None:
    """It is a head and a tail of the stream all the same, and says how much is missing between them."""
    collector, stream = Collector(limit), b""
    for part in parts:
        if isinstance(part, int):
            collector.add(Gap(len(stream), len(stream) + part))
            stream += b"\xff" * part
        else:
            part = part.replace(b"\xff", b"x")
            collector.add(part)
            stream += part
    assert collector.total == len(stream)
    head, missing, tail = re.fullmatch(
        rb"(.*?)(?:\n\.\.\. (\d+) bytes omitted \.\.\.\n(.*))?", collector.result(), re.DOTALL
    ).groups()  # type: ignore[union-attr]
    assert collector.truncated == (missing is not None)
    if missing is None:
        assert head == stream
    else:
        assert b"\xff" not in head + tail
        assert len(head + tail) <= limit
        assert stream.startswith(head)
        assert stream.endswith(tail)
        assert len(head + tail) + int(missing) == len(stream)


def test_collector_can_be_asked_on_the_way() -> None:
    """A result is of what has come so far, and asking changes nothing."""
    collector = Collector(10)
    assert (collector.result(), collector.truncated) == (b"", False)
    collector.add(b"0123456789")
    assert collector.result() == b"0123456789"
    collector.add(b"abc")
    assert collector.result() == collector.result() == naive(b"0123456789abc", 10)[0]


def test_collector_gives_what_it_kept_without_a_copy() -> None:
    """An output that is kept as a whole is in memory once, on the way and as the result: each further time costs more
    than all else that is done with it."""
    collector = Collector(16 * wire.MIB)
    message = bytes(wire.MIB)
    tracemalloc.start()
    try:
        for _ in range(8):
            collector.add(memoryview(message)[1:])
        result = collector.result()
        assert tracemalloc.get_traced_memory()[1] < 1.2 * len(result)
    finally:
        tracemalloc.stop()
    assert len(result) == collector.total == 8 * (wire.MIB - 1)


@pytest.mark.parametrize(
    ("size", "count", "limit"),
    [(1, 100_000, 64 * wire.KIB), (100_000, 40, wire.MIB)],
    ids=["bytes", "chunks"],
)
def test_collector_holds_little_more_than_its_limit(size: int, count: int, limit: int) -> None:
    """(4) However much a command prints, and in however small pieces, memory stays flat."""
    collector = Collector(limit)
    chunk = bytes(size)
    tracemalloc.start()
    try:
        for _ in range(count):
            collector.add(chunk)
        assert tracemalloc.get_traced_memory()[1] < 1.3 * limit
    finally:
        tracemalloc.stop()
    assert re.search(rb"\.\.\. \d+ bytes omitted \.\.\.", collector.result())
