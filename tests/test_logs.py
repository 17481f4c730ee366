"""Log lines: quiet until asked for, safe to display, and nobody else's logging is disturbed."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from sandd._core import logs
from sandd._core._errors import ConfigurationError
from sandd._core.identity.tokens import Token, TokenKind

if TYPE_CHECKING:
    from collections.abc import Iterator

HOSTILE = "two\nlines \x1b[31m \x7f \x9b \u202e \udc80"
"""A forged line, terminal escapes, a bidi override and half a surrogate pair."""


@pytest.fixture(autouse=True)
def _logging_restored() -> Iterator[None]:
    """`configure` speaks for the whole process, and this process has other tests."""
    root, ours = logging.getLogger(), logging.getLogger("sandd")
    levels, handlers = (root.level, ours.level), [*root.handlers]
    yield
    root.setLevel(levels[0])
    ours.setLevel(levels[1])
    root.handlers[:] = handlers


@pytest.fixture
def stream() -> io.StringIO:
    """Where the lines go."""
    return io.StringIO()


def run_python(program: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter: only there is nothing imported or configured yet."""
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30
    )


def test_get_logger_is_quiet_and_imports_no_structlog_until_a_line_is_wanted() -> None:
    """A program that configured nothing gets no output from us, and doesn't pay for structlog."""
    done = run_python(
        "import sys\n"
        "from sandd._core.logs import get_logger\n"
        "log = get_logger('link').bind(daemon_id='worker-1')\n"
        "log.debug('frame_sent')\n"
        "log.info('link_lost', code=1006)\n"
        "assert 'structlog' not in sys.modules\n"
        "log.error('link_refused', code=1008)\n"
        "assert 'structlog' in sys.modules\n"
    )

    assert (done.stdout, done.stderr) == ("", "")


def test_get_logger_leaves_the_configuration_of_structlog_alone(stream: io.StringIO) -> None:
    """An embedding program's own structlog settings neither change nor reach our lines."""
    before = structlog.get_config()
    with structlog.testing.capture_logs() as captured:
        logs.configure("info", "text", stream)
        logs.get_logger("link").info("link_lost")

    assert "link_lost" in stream.getvalue()
    assert captured == []
    assert structlog.get_config() == before


def test_get_logger_records_read_well_in_any_handler(caplog: pytest.LogCaptureFixture) -> None:
    """A plain formatter of the embedding program shows event and fields as one line of text."""
    with caplog.at_level(logging.INFO, logger="sandd"):
        logs.get_logger("link").bind(daemon_id="worker 1").info("link_lost", code=1006)

    assert caplog.messages == ['link_lost daemon_id="worker 1" code=1006']
    assert caplog.records[0].name == "sandd.link"


def test_get_logger_records_give_their_fields_to_a_structlog_formatter(stream: io.StringIO) -> None:
    """An embedding program that formats by structlog gets each field, and the exception."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                structlog.processors.JSONRenderer(),
            ]
        )
    )
    logging.getLogger().addHandler(handler)
    try:
        raise ValueError("no such job")
    except ValueError:
        logs.get_logger("jobs").exception("job_failed", job_id="j1")

    line = json.loads(stream.getvalue())
    assert line.pop("exception").endswith("ValueError: no such job")
    assert line == {"event": "job_failed", "job_id": "j1"}


def test_get_logger_names_the_line_that_logged(caplog: pytest.LogCaptureFixture) -> None:
    """A record's file and function are our caller's, not structlog's or ours."""
    with caplog.at_level(logging.DEBUG, logger="sandd"):
        log = logs.get_logger("link")
        for method in (log.debug, log.info, log.warning, log.error, log.exception):
            method("link_lost")

    assert {(record.pathname, record.funcName) for record in caplog.records} == {
        (__file__, "test_get_logger_names_the_line_that_logged")
    }


def test_get_logger_adds_the_fields_of_the_context(stream: io.StringIO) -> None:
    """What the embedding program bound to structlog's context variables is in our lines too."""
    logs.configure("info", "json", stream)
    with structlog.contextvars.bound_contextvars(request="r7"):
        logs.get_logger("link").info("link_lost")

    assert json.loads(stream.getvalue())["request"] == "r7"


def test_bind_adds_to_the_new_logger_only(stream: io.StringIO) -> None:
    """The logger that was bound from stays as it was."""
    logs.configure("info", "text", stream)
    plain = logs.get_logger("jobs")
    bound = plain.bind(daemon_id="worker-1").bind(job_id="j1")
    bound.info("job_started")
    plain.info("job_started")

    with_fields, without = stream.getvalue().splitlines()
    assert with_fields.endswith("sandd.jobs: job_started daemon_id=worker-1 job_id=j1")
    assert without.endswith("sandd.jobs: job_started")
    assert repr(bound) == "<Logger sandd.jobs daemon_id=worker-1 job_id=j1>"


def test_configure_text_shows_time_level_name_event_and_fields(stream: io.StringIO) -> None:
    """A person can read the line, and tell where each value begins and ends."""
    logs.configure("info", "text", stream)
    logs.get_logger("link").warning("link_lost", code=1006, why="", by="x=1 y", ok=True, raw=b"\0")

    timestamp, _, rest = stream.getvalue().partition(" ")
    assert len(timestamp) == len("2026-01-31T12:00:00.123Z")
    assert rest == (
        'warning  sandd.link: link_lost code=1006 why="" by="x=1 y" ok=True raw="b\'\\\\x00\'"\n'
    )


def test_configure_json_is_one_object_a_line(stream: io.StringIO) -> None:
    """Fields keep their JSON types; ours can't be overwritten; other values are shown by repr."""
    logs.configure("info", "json", stream)
    logs.get_logger("link").info("link_lost", code=1006, level="high", raw=b"\xff", why=None)

    line = json.loads(stream.getvalue())
    assert list(line)[:4] == ["timestamp", "level", "logger", "event"]
    del line["timestamp"]
    assert line == {
        "level": "info",
        "logger": "sandd.link",
        "event": "link_lost",
        "code": 1006,
        "raw": "b'\\xff'",
        "why": None,
    }


@pytest.mark.parametrize("format", ["text", "json"])
def test_configure_escapes_what_came_from_outside(format: str, stream: io.StringIO) -> None:
    """No value, message or exception can forge a line or reach the terminal, in either format."""
    logs.configure("info", format, stream)  # type: ignore[arg-type] # mypy doesn't narrow the parameter
    logs.get_logger("link").info("link_lost", why=HOSTILE)
    logging.getLogger("trio").warning("from elsewhere: %s", HOSTILE)

    written = stream.getvalue()
    assert len(written.splitlines()) == 2
    assert written.replace("\n", "").isprintable()
    assert "two\\nlines" in written


@pytest.mark.parametrize("format", ["text", "json"])
def test_configure_shows_tracebacks_escaped(format: str, stream: io.StringIO) -> None:
    """An exception's own text is from outside too; in text each of its lines is indented."""
    logs.configure("info", format, stream)  # type: ignore[arg-type] # mypy doesn't narrow the parameter
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        logs.get_logger("jobs").exception("job_failed")

    written = stream.getvalue()
    assert written.replace("\n", "").isprintable()
    assert "ValueError: two" in written
    assert all(line.startswith("    ") for line in written.splitlines()[1:])


@given(st.text(), st.text())
def test_configure_text_keeps_fields_apart(first: str, second: str) -> None:
    """Whatever two values hold, the line is one line and the two are told apart."""
    event = logs.Event(event="said", first=first, second=second)
    record = logging.LogRecord("sandd.x", logging.INFO, __file__, 1, event, (), None)

    line = logs._TextFormatter().format(record)

    assert line.isprintable()
    fields = line.partition("said first=")[2]
    if fields.startswith('"'):
        value, rest = unquote(fields)
        assert rest.startswith(" second=")
    else:
        value, _, _ = fields.partition(" second=")
        assert value == first
    if first.isprintable():
        assert value == first


def unquote(text: str) -> tuple[str, str]:
    """A quoted value with its quotes and escaped ones undone, and what comes behind it."""
    value, position = "", 1
    while text[position] != '"':
        position += text[position] == "\\" and text[position + 1] in '"\\'
        value += text[position]
        position += 1
    return value, text[position + 1 :]


def test_configure_again_replaces_the_first(stream: io.StringIO) -> None:
    """One line is written once, to the stream and in the format asked for last."""
    first = io.StringIO()
    logs.configure("debug", "json", first)
    logs.configure("warning", "text", stream)
    logs.get_logger("link").info("link_tried")
    logs.get_logger("link").warning("link_lost")

    assert first.getvalue() == ""
    assert stream.getvalue().endswith("sandd.link: link_lost\n")
    assert len(stream.getvalue().splitlines()) == 1


def test_configure_shows_others_from_warning_on(stream: io.StringIO) -> None:
    """Our debug level doesn't open the sluices of every library in the process."""
    logs.configure("debug", "text", stream)
    logging.getLogger("other").info("chatter")
    logging.getLogger("other").warning("trouble")
    logs.get_logger("link").debug("frame_sent")

    assert [line.rpartition(": ")[2] for line in stream.getvalue().splitlines()] == [
        "trouble",
        "frame_sent",
    ]


@pytest.mark.parametrize(("level", "format"), [("loud", "text"), ("info", "xml"), ("INFO", "text")])
def test_configure_refuses_what_it_does_not_know(level: str, format: str) -> None:
    """The error names the value and the choices, and nothing was changed."""
    handlers = [*logging.getLogger().handlers]

    with pytest.raises(ConfigurationError, match=r"is none of (debug, info|text, json)"):
        logs.configure(level, format)  # type: ignore[arg-type] # that is the point

    assert logging.getLogger().handlers == handlers


def test_configure_writes_to_the_current_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    """The default stream is looked up at the call, so a program may have replaced it."""
    logs.configure("info")
    logs.get_logger("link").info("link_lost")

    assert "link_lost" in capsys.readouterr().err


def test_printable_keeps_ordinary_text_and_escapes_the_rest() -> None:
    """Letters of every script pass; what a terminal would act on does not."""
    assert logs.printable("déjà vu 日本 ✓") == "déjà vu 日本 ✓"
    assert logs.printable(HOSTILE) == ("two\\nlines \\x1b[31m \\x7f \\x9b \\u202e \\udc80")


TOKEN = "sdj_" + "4fGh" * 12
"""What looks like a token for a daemon."""


@pytest.mark.parametrize("format", ["text", "json"])
def test_what_looks_like_a_secret_is_in_no_line(format: str, stream: io.StringIO) -> None:
    """Not in a field, nor in the words of an exception or of somebody else's record; what stands beside it stays."""
    logs.configure("info", format, stream)  # type: ignore[arg-type] # mypy doesn't narrow the parameter
    url = "wss://joe:hunter2@example.org/ws"
    log = logs.get_logger("link")
    log.info("link_lost", why=f"no luck with {TOKEN}!", url=url, seen=[TOKEN])
    logging.getLogger("trio").warning("from elsewhere: %s", url)
    try:
        raise ValueError(f"{url} and {TOKEN}")
    except ValueError:
        log.exception("job_failed")

    written = stream.getvalue()
    assert TOKEN[:12] not in written
    assert "hunter2" not in written
    assert "joe" not in written
    assert "no luck with [redacted]!" in written
    assert written.count("wss://[redacted]@example.org/ws") >= 3


def test_real_tokens_look_like_that() -> None:
    """Both kinds, as they are made; a word that merely begins alike, and a URL without a password, are no secrets."""
    for kind in TokenKind:
        made = Token.new(kind)
        assert logs.masked(f"<{made.text}>") == "<[redacted]>"
    for harmless in ("sdj_", "sdo_short", "sdx_" + "a" * 40, "ws://host:1/ws?x=@", "a@b"):
        assert logs.masked(harmless) == harmless


def test_a_host_programs_handlers_get_no_secret_either(caplog: pytest.LogCaptureFixture) -> None:
    """As the fields are masked before anybody else sees them."""
    logs.get_logger("link").warning("link_lost", why=f"no luck with {TOKEN}")
    assert TOKEN not in caplog.text
    assert "[redacted]" in caplog.text


def test_an_agent_sees_nothing_on_stderr() -> None:
    """Of a controller in its process, that refuses whoever dials in, warns, and has a defect in a job's cleanup."""
    done = run_python(
        "import logging, socket, sys, trio, sandd\n"
        "from sandd._core.logs import get_logger\n"
        "async def main():\n"
        "    async with sandd.open_controller(port=0, token='secret') as controller:\n"
        "        port = int(controller.address.rpartition(':')[2])\n"
        "        stream = await trio.open_tcp_stream('127.0.0.1', port)\n"
        "        await stream.send_all(b'nonsense\\r\\n\\r\\n')\n"
        "        while await stream.receive_some():\n"
        "            pass\n"
        "        get_logger('test').error('something_failed')\n"
        "trio.run(main)\n"
        "assert logging.getLogger().handlers == []\n"
        "assert logging.getLogger('sandd').level == logging.NOTSET\n"
        "assert logging.lastResort is not None\n"
    )
    assert (done.stdout, done.stderr) == ("", "")


def test_a_host_program_configures_our_lines_as_its_own() -> None:
    """By `logging` before or after the import: its level, its format, its place; and its structlog is as it was."""
    done = run_python(
        "import logging, sys, structlog\n"
        "logging.basicConfig(stream=sys.stdout, format='HOST %(name)s %(message)s', level='INFO')\n"
        "structlog.configure(processors=[structlog.processors.JSONRenderer()])\n"
        "before = structlog.get_config()\n"
        "import sandd\n"
        "from sandd._core.logs import get_logger\n"
        "get_logger('link').info('link_lost', code=1)\n"
        "get_logger('link').debug('frame_sent')\n"
        "logging.getLogger('sandd').setLevel('ERROR')\n"
        "get_logger('link').warning('link_slow')\n"
        "assert structlog.get_config() == before\n"
    )
    assert (done.stdout, done.stderr) == ("HOST sandd.link link_lost code=1\n", "")
