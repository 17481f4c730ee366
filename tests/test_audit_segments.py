"""The audit log's files: what is said to be on the disk is there, whatever ends the program, and nothing else is."""

from __future__ import annotations

import errno
import json
import os
import stat
import sys
from typing import TYPE_CHECKING, Any

import pytest
from audit_log import (
    append,
    fill,
    key_in,
    lines_of,
    open_log,
    opened_log,
    request,
    segment,
    set_lines,
)

from sandd import ConfigurationError
from sandd._core.audit import segments
from sandd._core.audit.records import RecordType
from sandd._core.audit.segments import segments_in
from sandd._core.audit.verifying import verify_log

if TYPE_CHECKING:
    from pathlib import Path


def is_whole(directory: Path) -> bool:
    """Nothing is wrong with it."""
    return verify_log(directory / "audit", key_in(directory).public).fault is None


def types_in(directory: Path, number: int = 1) -> list[str]:
    """What its lines are about."""
    return [json.loads(line)["type"] for line in lines_of(directory, number)]


def test_a_log_goes_on_where_it_ended(tmp_path: Path) -> None:
    """Of one chain, whatever number of programs has written it; the log keeps its name."""
    for number in range(3):
        with opened_log(tmp_path) as log:
            fill(log, 2, first=10 * number)
    assert is_whole(tmp_path)
    assert types_in(tmp_path).count("request") == 6
    named = {json.loads(line).get("log") for line in lines_of(tmp_path)} - {None}
    assert len(named) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="modes are POSIX'")
def test_files_are_their_owners_alone(tmp_path: Path) -> None:
    """Nobody else reads what was run, or signs in the controller's name."""
    with opened_log(tmp_path) as log:
        fill(log, 1)
    for path in (segment(tmp_path), tmp_path / "audit.key"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_two_programs_cant_share_a_log(tmp_path: Path) -> None:
    """Whoever comes second is told that it is another's; when that has gone, it may."""
    with opened_log(tmp_path):
        with pytest.raises(ConfigurationError, match="another controller's"):
            open_log(tmp_path)
    open_log(tmp_path).close()


@pytest.mark.parametrize("kept", [0, 1, 5, 100, 200])
def test_a_torn_tail_is_mended_and_said(tmp_path: Path, kept: int) -> None:
    """What a crash left of a line is put aside, the chain goes on, and a line says so."""
    log = open_log(tmp_path)
    fill(log, 3)
    whole = segment(tmp_path).read_bytes()
    fill(log, 1, first=4)
    torn = segment(tmp_path).read_bytes()[len(whole) :][:kept]
    log.let_go()  # killed: nothing is signed, nothing is said
    segment(tmp_path).write_bytes(whole + torn)
    with opened_log(tmp_path) as log:
        fill(log, 1, first=5)
    assert is_whole(tmp_path)
    records = [json.loads(line) for line in lines_of(tmp_path)]
    repairs = [each["reason"] for each in records if each["type"] == "repair"]
    assert [each.get("job") for each in records if each["type"] == "request"] == [
        "job-1",
        "job-2",
        "job-3",
        "job-5",
    ]
    if not kept:
        assert repairs == []
    else:
        (reason,) = repairs
        assert f"{kept} bytes" in reason
        (aside,) = (tmp_path / "audit").glob("*.torn")
        assert aside.read_bytes() == torn


def test_a_block_of_zeros_is_torn_too(tmp_path: Path) -> None:
    """A file system may have grown the file and lost what was to be in it."""
    log = open_log(tmp_path)
    fill(log, 3)
    log.let_go()
    with segment(tmp_path).open("ab") as file:
        file.write(bytes(4096))
    open_log(tmp_path).close()
    assert is_whole(tmp_path)
    assert "repair" in types_in(tmp_path)


@pytest.mark.parametrize("left", [0, 1, 4])
def test_a_log_that_was_cut_is_not_gone_on_with(tmp_path: Path, left: int) -> None:
    """A new signature would make it look whole."""
    with opened_log(tmp_path) as log:
        fill(log, 5)
    set_lines(tmp_path, lines_of(tmp_path)[:left])
    before = segment(tmp_path).read_bytes()
    with pytest.raises(ConfigurationError, match="was changed by somebody"):
        open_log(tmp_path)
    assert segment(tmp_path).read_bytes() == before
    for path in segments_in(tmp_path / "audit"):
        path.unlink()
    with pytest.raises(ConfigurationError, match="its files are gone"):
        open_log(tmp_path)


def test_a_log_without_its_head_is_not_gone_on_with(tmp_path: Path) -> None:
    """Unless it is one that a crash ended while it was made."""
    with opened_log(tmp_path) as log:
        fill(log, 5)
    head = tmp_path / "audit" / "head"
    content = head.read_bytes()
    head.unlink()
    with pytest.raises(ConfigurationError, match="its head is gone"):
        open_log(tmp_path)
    head.write_bytes(b"garbage")
    with pytest.raises(ConfigurationError, match="says nothing"):
        open_log(tmp_path)
    head.write_bytes(content)
    open_log(tmp_path).close()


@pytest.mark.parametrize("size", [0, 50, 300, 400, 600])
def test_a_crash_while_it_is_made_is_no_matter(tmp_path: Path, size: int) -> None:
    """The first lines are made again, or gone on from."""
    open_log(tmp_path).let_go()
    (tmp_path / "audit" / "head").unlink()
    segment(tmp_path).write_bytes(segment(tmp_path).read_bytes()[:size])
    with opened_log(tmp_path) as log:
        fill(log, 1)
    assert is_whole(tmp_path)


def test_the_next_segment_is_begun_by_size(tmp_path: Path) -> None:
    """Each ends with a signature, and the next one's first line names it."""
    with opened_log(tmp_path, segment_bytes=4096) as log:
        fill(log, 40)
    numbers = [int(path.stem) for path in segments_in(tmp_path / "audit")]
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) >= 3
    assert is_whole(tmp_path)
    for number in numbers:
        types = types_in(tmp_path, number)
        assert (types[0], types[-1]) == ("segment", "checkpoint")
    with opened_log(tmp_path, segment_bytes=4096) as log:
        fill(log, 40)
    assert is_whole(tmp_path)


def test_a_crash_between_two_segments_is_no_matter(tmp_path: Path) -> None:
    """The next file is there, with nothing or half of a line in it."""
    with opened_log(tmp_path, segment_bytes=4096) as log:
        fill(log, 30)
    number = len(segments_in(tmp_path / "audit"))
    whole = is_whole(tmp_path)
    for content in (b"", b'{"half'):
        number += 1
        segment(tmp_path, number).write_bytes(content)
        with opened_log(tmp_path) as log:
            fill(log, 2)
        assert is_whole(tmp_path) == whole
        assert types_in(tmp_path, number)[0] == "segment"


class FullDisk:
    """Takes so many bytes more, and no others."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.write = os.write
        self.sync = segments._sync

    def take(self, descriptor: int, data: Any) -> int:
        """As write(2): what there is room for; ENOSPC without any."""
        if self.room <= 0 and len(data):
            raise OSError(errno.ENOSPC, "No space left on device")
        taken = self.write(descriptor, bytes(data[: self.room]))
        self.room -= taken
        return taken


@pytest.mark.parametrize("room", [0, 1, 100, 500])
def test_a_full_disk_takes_nothing_back(
    tmp_path: Path, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What can't be written whole is not there at all, and the log goes on when there is room again."""
    log = open_log(tmp_path)
    fill(log, 2)
    before = segment(tmp_path).read_bytes()
    disk = FullDisk(room)
    monkeypatch.setattr(segments.os, "write", disk.take)
    with pytest.raises(OSError, match="No space"):
        append(log, *(request(number) for number in range(3, 8)))
    assert segment(tmp_path).read_bytes() == before
    disk.room = 10**9
    fill(log, 3, first=8)
    log.close()
    assert is_whole(tmp_path)
    jobs = [json.loads(line).get("job") for line in lines_of(tmp_path)]
    assert [job for job in jobs if job] == ["job-1", "job-2", "job-8", "job-9", "job-10"]


def test_a_disk_that_fails_to_sync_is_no_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What may not be there is taken out again: nobody was told that it is."""
    log = open_log(tmp_path)
    fill(log, 1)
    before = segment(tmp_path).read_bytes()

    def fail(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(segments, "_sync", fail)
        with pytest.raises(OSError, match="Input/output"):
            fill(log, 1, first=2)
    assert segment(tmp_path).read_bytes() == before
    fill(log, 1, first=3)
    log.close()
    assert is_whole(tmp_path)


def test_a_disk_that_cant_be_mended_ends_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where half a line may stand nothing is appended; the next program mends it."""
    log = open_log(tmp_path)
    fill(log, 1)
    disk = FullDisk(10)

    def fail(*_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(segments.os, "write", disk.take)
        patch.setattr(segments.os, "ftruncate", fail)
        with pytest.raises(OSError, match="No space"):
            fill(log, 1, first=2)
    with pytest.raises(OSError, match="nor be mended"):
        fill(log, 1, first=3)
    log.close()
    open_log(tmp_path).close()
    assert is_whole(tmp_path)
    assert "repair" in types_in(tmp_path)


def test_many_lines_are_signed_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By number, and by time."""
    monkeypatch.setattr(segments, "CHECKPOINT_RECORDS", 5)
    with opened_log(tmp_path) as log:
        fill(log, 20)
    assert types_in(tmp_path).count("checkpoint") == 1 + 20 // 5
    monkeypatch.setattr(segments, "CHECKPOINT_SECONDS", 0.0)
    log = open_log(tmp_path)
    fill(log, 3)
    assert types_in(tmp_path)[-1] == "checkpoint"
    log.close()


def test_nothing_is_signed_twice(tmp_path: Path) -> None:
    """A program that only opens the log and closes it adds nothing."""
    open_log(tmp_path).close()
    before = segment(tmp_path).read_bytes()
    open_log(tmp_path).close()
    assert segment(tmp_path).read_bytes() == before


def test_lines_have_no_secret_in_them(tmp_path: Path) -> None:
    """Those that are known, those that tell by their form, and those that variables are named for."""
    token = "sdo_" + "Ab3" * 20
    with opened_log(tmp_path, secrets=("hunter2-hunter2",)) as log:
        append(
            log,
            request(argv=("curl", "-u", "me:hunter2-hunter2"), cwd="/hunter2-hunter2"),
            request(argv=(token,), result={"deep": [token]}),
            request(argv=("echo", "open sesame"), secrets=(b"open sesame",)),
        )
    text = segment(tmp_path).read_text()
    assert "hunter2" not in text
    assert token not in text
    assert "sesame" not in text
    assert text.count("[redacted]") == 5
    assert is_whole(tmp_path)


def test_no_variable_hides_who_asked_and_for_what(tmp_path: Path) -> None:
    """A client may call anything a secret; what masks that is for what it has the program told."""
    secrets = (b"operator:mallory", b"default", b"request", b"worker", b"nobody", b"command")
    said = {"actor": "operator:mallory", "tenant": "default", "daemon": "worker", "kind": "command"}
    with opened_log(tmp_path) as log:
        append(log, request(**said, limits={"user": "nobody"}, argv=("worker",), secrets=secrets))
    (line,) = [each for each in map(json.loads, lines_of(tmp_path)) if each["type"] == "request"]
    assert said.items() <= line.items()
    assert (line["limits"], line["argv"]) == ({"user": "nobody"}, ["[redacted]"])


def test_no_secret_breaks_the_chain(tmp_path: Path) -> None:
    """Though there be its digits in a hash, or in a time."""
    digits = "0123456789abcdef"
    every = [one + other for one in digits for other in digits]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sandd._core.audit.redaction.LEAST_LENGTH", 2)
        with opened_log(tmp_path, secrets=(*every, "request", "segment")) as log:
            append(log, request(argv=("cafe",)), request())
    assert "[redacted]" in segment(tmp_path).read_text()
    assert types_in(tmp_path) == ["segment", "checkpoint", "request", "request", "checkpoint"]
    assert is_whole(tmp_path)


def test_lines_are_lines(tmp_path: Path) -> None:
    """Whatever a command holds, the file has one line for it, in characters that a terminal shows."""
    nasty = "a\nb\r\x1b]0;owned\x07\u202egnp\u2028\x7f\x9b\ud800"
    with opened_log(tmp_path) as log:
        append(
            log,
            request(argv=(nasty, b"\xff\n"), daemon=nasty, reason=nasty),
        )
    content = segment(tmp_path).read_bytes()
    assert all(0x20 <= byte < 0x7F or byte == 0x0A for byte in content)
    (line,) = [each for each in lines_of(tmp_path) if json.loads(each)["type"] == "request"]
    assert json.loads(line)["argv"] == [nasty.replace("\ud800", "\\ud800"), "\\xff\n"]
    assert is_whole(tmp_path)


def test_record_types_are_what_the_documentation_names() -> None:
    """Readers filter by them."""
    assert {each.value for each in RecordType} >= {"request", "start", "end", "refusal"}
