"""``sandd audit``: what it says of a log, and its exit codes."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import signal
from typing import TYPE_CHECKING

import pytest
from audit_log import append, fill, key_in, lines_of, open_log, opened_log, request, set_lines
from controllers import full_disk, run_into, unread_pipe

from sandd import cli
from sandd._core.audit.records import Record, RecordType
from sandd.auditing.reading import Reader
from sandd.auditing.selecting import BadTime, Selection, read_time
from sandd.auditing.showing import line_for_person

if TYPE_CHECKING:
    from pathlib import Path

    from controllers import Sink

NASTY = "x\n\x1b]0;owned\x07\u202e\x9b=1"


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A state directory with a log of several tenants and kinds."""
    with opened_log(tmp_path, segment_bytes=4096) as log:
        fill(log, 20)
        append(
            log,
            request(30, tenant="acme", kind="session", argv=("vi", NASTY)),
            request(31, tenant="acme", kind="upload", argv=None, target="/tmp/x"),
            Record(type=RecordType.REFUSAL, daemon="=cmd()", reason=NASTY),
        )
    return tmp_path


def test_verify_praises_what_is_whole(log: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """By the state directory, or by the log's own; with the key that it went by."""
    assert cli.main(["audit", "verify", str(log)]) == 0
    assert cli.main(["audit", "verify", "--state-dir", str(log)]) == 0
    assert cli.main(["audit", "verify", str(log / "audit")]) == 0
    said = capfd.readouterr()
    assert said.out.count("are as they were written") == 3
    assert str(key_in(log).public) in said.out
    assert said.err == ""


def test_verify_names_what_was_changed(log: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The first line that isn't as it was written; the exit code says so to scripts."""
    lines = lines_of(log)
    del lines[4]
    set_lines(log, lines)
    assert cli.main(["audit", "verify", str(log)]) == 1
    said = capfd.readouterr()
    assert said.out == ""
    assert "000001.jsonl:5: lines were deleted before it: record 5" in said.err
    assert cli.main(["audit", "verify", "--json", str(log)]) == 1
    verdict = json.loads(capfd.readouterr().out)
    assert (verdict["ok"], verdict["place"], verdict["lines"]) == (False, "000001.jsonl:5", 4)


def test_verify_goes_by_a_key_from_elsewhere(
    log: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """As a text or in a file; where there is none it says whose word it takes."""
    assert cli.main(["audit", "key", str(log)]) == 0
    key = capfd.readouterr().out.strip()
    assert cli.main(["audit", "verify", "--key", key, str(log)]) == 0
    file = tmp_path / "key"
    file.write_text(key + "\n")
    assert cli.main(["audit", "verify", "--key", str(file), str(log)]) == 0
    other = str(key_in(tmp_path / "other").public)
    assert cli.main(["audit", "verify", "--key", other, str(log)]) == 1
    assert "another key" in capfd.readouterr().err
    (log / "audit.key").unlink()
    assert cli.main(["audit", "verify", str(log)]) == 0
    assert "the log's own word" in capfd.readouterr().out
    assert cli.main(["audit", "key", str(log)]) == 125


def test_verify_goes_by_a_head_that_was_kept(
    log: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A copy of the file; anything else is told."""
    copy = tmp_path / "kept"
    copy.write_bytes((log / "audit" / "head").read_bytes())
    assert cli.main(["audit", "verify", "--head", str(copy), str(log)]) == 0
    copy.write_text("{}")
    assert cli.main(["audit", "verify", "--head", str(copy), str(log)]) == 125
    assert "no copy of a log's head" in capfd.readouterr().err


def test_verify_allows_for_files_that_were_moved_away(log: Path) -> None:
    """If it is told which is the first."""
    (log / "audit" / "000001.jsonl").unlink()
    assert cli.main(["audit", "verify", str(log)]) == 1
    assert cli.main(["audit", "verify", "--first-segment", "2", str(log)]) == 0


@pytest.mark.parametrize("command", ["verify", "tail", "export", "key"])
def test_no_log_is_told(command: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """In one line that says how to have one."""
    assert cli.main(["audit", command, str(tmp_path)]) == 125
    (line,) = capfd.readouterr().err.splitlines()
    assert "sandd controller --audit" in line
    assert cli.main(["audit", command, str(tmp_path), "--state-dir", str(tmp_path)]) == 125


def test_tail_shows_the_latest(log: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """So many of those that are wanted, in lines that do nothing to a terminal."""
    assert cli.main(["audit", "tail", "-n", "2", "--tenant", "acme", str(log)]) == 0
    first, second = capfd.readouterr().out.splitlines()
    assert first.isascii()
    assert first.isprintable()
    assert "request session asked worker-1/job-30 tenant=acme actor=alice command=vi" in first
    assert "target=/tmp/x" in second
    assert cli.main(["audit", "tail", "--json", "--type", "refusal", str(log)]) == 0
    assert json.loads(capfd.readouterr().out)["reason"] == NASTY


def test_export_puts_out_what_was_written(log: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """All of it, each line as it stands in the file."""
    assert cli.main(["audit", "export", str(log)]) == 0
    said = capfd.readouterr().out
    count = len(list((log / "audit").glob("*.jsonl")))
    assert count > 1
    written = b"".join(b"".join(lines_of(log, number)) for number in range(1, count + 1))
    assert said.encode() == written


def test_export_chooses(log: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """By type or kind, by tenant, daemon, job and time."""

    def jobs(*options: str) -> list[str]:
        assert cli.main(["audit", "export", *options, str(log)]) == 0
        return [json.loads(line).get("job") for line in capfd.readouterr().out.splitlines()]

    assert jobs("--type", "upload", "--type", "session") == ["job-30", "job-31"]
    assert jobs("--tenant", "acme", "--job", "job-31") == ["job-31"]
    assert len(jobs("--type", "request")) == 22
    assert jobs("--daemon", "=cmd()") == [None]
    assert jobs("--until", "1h") == []
    assert len(jobs("--since", "1h", "--type", "request")) == 22


def test_export_as_a_table_has_no_formulas(log: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A spreadsheet that opens it calculates nothing, and one row is one record."""
    assert cli.main(["audit", "export", "--format", "csv", str(log)]) == 0
    said = capfd.readouterr().out
    rows = list(csv.DictReader(io.StringIO(said)))
    assert len(rows) == len(said.splitlines()) - 1
    (refusal,) = [row for row in rows if row["type"] == "refusal"]
    assert refusal["daemon"] == "'=cmd()"
    assert refusal["reason"] == "x\\n\\x1b]0;owned\\x07\\u202e\\x9b=1"
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", said)


def test_export_says_what_is_no_record(log: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The rest is put out, and the exit code tells."""
    lines = lines_of(log)
    set_lines(log, [*lines[:4], b"garbage\n", *lines[5:]])
    assert cli.main(["audit", "export", str(log)]) == 1
    assert "1 lines are no records" in capfd.readouterr().err


def test_following_goes_on_in_the_next_file(tmp_path: Path) -> None:
    """Nothing is missed or shown twice, and half a line is not shown."""
    log = open_log(tmp_path, segment_bytes=4096)
    reader = Reader(tmp_path / "audit", Selection(types=("request",)))
    seen: list[str] = []
    for number in range(1, 41):
        fill(log, 1, first=number)
        seen += [fields["job"] for _, fields in reader.new()]
    assert seen == [f"job-{number}" for number in range(1, 41)]
    path = sorted((tmp_path / "audit").glob("*.jsonl"))[-1]
    whole = path.read_bytes()
    fill(log, 1, first=41)
    line = path.read_bytes()[len(whole) :]
    path.write_bytes(whole + line[:20])
    assert list(reader.new()) == []
    path.write_bytes(whole + line)
    assert [fields["job"] for _, fields in reader.new()] == ["job-41"]
    reader.close()
    log.let_go()


@pytest.mark.parametrize(
    "text", ["2026-01-31", "2026-01-31T12:00", "2026-01-31T12:00:00+02:00", "90s", "7d"]
)
def test_times_are_read(text: str) -> None:
    """As the log has them."""
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", read_time(text))


@pytest.mark.parametrize("text", ["yesterday", "", "7w", "2026-13-01", "99999999d"])
def test_other_times_are_told(text: str) -> None:
    """With what would be one."""
    with pytest.raises(BadTime, match="2026-01-31"):
        read_time(text)
    with pytest.raises(SystemExit):
        cli.main(["audit", "export", "--since", text])


def test_a_record_of_any_shape_is_shown() -> None:
    """Whatever a line says, it is told in a line."""
    for fields in (
        {},
        {"argv": 7, "result": [], "ts": None},
        {"argv": [1, None], "result": {"a": NASTY}},
    ):
        assert "\n" not in line_for_person(fields)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="it is Linux'")
@pytest.mark.parametrize("command", ["tail", "export", "export --format csv", "verify", "key"])
@pytest.mark.parametrize(
    ("stdout", "outcome"),
    [
        (full_disk, (125, "sandd: stdout: No space left on device\n")),
        (unread_pipe, (128 + signal.SIGPIPE, "")),
    ],
    ids=["full", "unread"],
)
def test_what_can_not_be_written_is_told_as_by_all_commands(
    log: Path, command: str, stdout: Sink, outcome: tuple[int, str]
) -> None:
    """In one line; and in none where a reader has gone."""
    assert run_into(stdout, "audit", *command.split(), "--state-dir", str(log)) == outcome
