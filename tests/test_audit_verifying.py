"""Whether an audit log is what was written: every way to change one is found, and named."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest
from audit_log import fill, key_in, lines_of, open_log, opened_log, segment, set_lines

from sandd._core.audit import segments
from sandd._core.audit.chain import Chain
from sandd._core.audit.keys import PublicKey
from sandd._core.audit.redaction import Redactor
from sandd._core.audit.segments import Head
from sandd._core.audit.verifying import Verdict, verify_log

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """The directory of a log of ten requests, which was closed in good order."""
    with opened_log(tmp_path) as log:
        fill(log, 10)
    return tmp_path


def verify(directory: Path, **settings: object) -> Verdict:
    """What is found, by the controller's own key."""
    return verify_log(directory / "audit", key_in(directory).public, **settings)  # type: ignore[arg-type]


def test_a_log_is_as_it_was_written(log: Path) -> None:
    """Nothing is found in one that nobody has changed, and all of it is signed."""
    verdict = verify(log)
    assert verdict.fault is None
    # Of the file, its first signature, ten requests, and the last signature.
    assert (verdict.lines, verdict.checkpoints, verdict.unsigned) == (13, 2, 0)
    assert verdict.key_is_given


@pytest.mark.parametrize("index", range(13))
def test_an_edited_line_is_named(log: Path, index: int) -> None:
    """Whichever line is changed, it is the one that is named, or the signature of what follows from it."""
    lines = lines_of(log)
    fields = json.loads(lines[index])
    lines[index] = json.dumps(fields | {"actor": "mallory"}).encode() + b"\n"
    set_lines(log, lines)
    verdict = verify(log)
    assert verdict.place == f"000001.jsonl:{index + 1}"
    assert verdict.fault is not None
    assert "edited" in verdict.fault


@pytest.mark.parametrize("index", range(12))
def test_a_deleted_line_is_named(log: Path, index: int) -> None:
    """Whichever line is missing, the one behind it says so."""
    lines = lines_of(log)
    del lines[index]
    set_lines(log, lines)
    verdict = verify(log)
    assert verdict.place == f"000001.jsonl:{index + 1}"
    assert verdict.fault is not None
    if index:
        assert verdict.fault == f"lines were deleted before it: record {index + 1}"


@pytest.mark.parametrize("index", range(1, 12))
def test_swapped_lines_are_named(log: Path, index: int) -> None:
    """Two lines that have changed places are told from missing ones."""
    lines = lines_of(log)
    lines[index : index + 2] = reversed(lines[index : index + 2])
    set_lines(log, lines)
    verdict = verify(log)
    assert verdict.place == f"000001.jsonl:{index + 1}"
    assert verdict.fault is not None
    assert verdict.fault.startswith("it was swapped")


def test_a_repeated_line_is_named(log: Path) -> None:
    """A line that was put in has a number that was taken."""
    lines = lines_of(log)
    set_lines(log, [*lines[:5], lines[4], *lines[5:]])
    verdict = verify(log)
    assert verdict.place == "000001.jsonl:6"
    assert verdict.fault == "it was put in, or repeated: record 5, where 6 has to stand"


@pytest.mark.parametrize("left", range(1, 13))
def test_a_cut_tail_is_found(log: Path, left: int) -> None:
    """A chain that only ends too early is whole; its head says that it did not end there."""
    set_lines(log, lines_of(log)[:left])
    verdict = verify(log)
    assert verdict.fault is not None
    assert "cut off" in verdict.fault
    assert "record 13" in verdict.fault


def test_a_torn_line_is_named(log: Path) -> None:
    """So is a line that is only half there."""
    segment(log).write_bytes(b"".join(lines_of(log))[:-30])
    assert verify(log).place == "000001.jsonl:13"


def test_a_tail_written_anew_is_found(log: Path) -> None:
    """Whoever chains other lines as they should be has no key to sign them with."""
    lines = lines_of(log)
    forger = Chain(lambda _: b"\0" * 64, Redactor())
    made = []
    for line in lines:
        fields = json.loads(line)
        if fields["type"] == "request":
            fields["actor"] = "mallory"
        made.append(forger.add([fields])[0] + b"\n")
    set_lines(log, made)
    verdict = verify(log)
    # The first signature signs what was not changed.
    assert verdict.place == "000001.jsonl:13"
    assert verdict.fault is not None
    assert "signature doesn't hold" in verdict.fault


def test_another_key_is_found(log: Path, tmp_path: Path) -> None:
    """A whole log of somebody else's making is none of ours; without a key from elsewhere it passes, and says so."""
    with opened_log(tmp_path / "other") as other:
        fill(other, 3)
    verdict = verify_log(tmp_path / "other" / "audit", key_in(log).public)
    assert verdict.place == "000001.jsonl:1"
    assert verdict.fault is not None
    assert "another key" in verdict.fault
    trusting = verify_log(tmp_path / "other" / "audit")
    assert trusting.fault is None
    assert not trusting.key_is_given


def test_a_missing_head_is_found(log: Path) -> None:
    """Without it nothing would tell of a cut."""
    (log / "audit" / "head").unlink()
    verdict = verify(log)
    assert verdict.place == "head"


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"segment":1,"end":2,"line":3}', b"\xff"])
def test_a_head_that_says_nothing_is_found(log: Path, content: bytes) -> None:
    """Whatever stands there, it is told in a line."""
    (log / "audit" / "head").write_bytes(content)
    verdict = verify(log)
    assert verdict.fault is not None
    assert verdict.fault.startswith("the head says nothing")


def test_an_older_log_is_found_by_a_head_that_was_kept(log: Path) -> None:
    """A log that was put back to yesterday's, head and all, is whole; a copy of today's head is not in it."""
    copy = log / "yesterday"
    shutil.copytree(log / "audit", copy)
    with opened_log(log) as later:
        fill(later, 3)
    kept = Head.read(log / "audit")
    assert verify(log, head=kept).fault is None
    shutil.rmtree(log / "audit")
    shutil.copytree(copy, log / "audit")
    assert verify(log).fault is None
    fault = verify(log, head=kept).fault
    assert fault is not None
    assert "the head that was kept signs record" in fault


def test_segments_are_chained(tmp_path: Path) -> None:
    """A file that is gone from the middle, or was exchanged, is missed; one that was moved away may be named."""
    with opened_log(tmp_path, segment_bytes=4096) as log:
        fill(log, 60)
    files = segments.segments_in(tmp_path / "audit")
    assert len(files) > 3
    assert verify(tmp_path).segments == len(files)
    second, third = segment(tmp_path, 2).read_bytes(), segment(tmp_path, 3).read_bytes()
    segment(tmp_path, 2).unlink()
    verdict = verify(tmp_path)
    assert (verdict.place, verdict.fault) == ("000003.jsonl", "segment 2 is missing before it")
    segment(tmp_path, 2).write_bytes(third)
    assert verify(tmp_path).place == "000002.jsonl:1"
    segment(tmp_path, 2).write_bytes(second)
    segment(tmp_path, 1).unlink()
    assert verify(tmp_path).fault is not None
    assert verify(tmp_path, first_segment=2).fault is None
    assert verify(tmp_path, first_segment=3).fault is not None


def test_no_log_is_a_fault(tmp_path: Path) -> None:
    """Where a log should be and is not, all of it was removed."""
    (tmp_path / "audit").mkdir()
    assert verify(tmp_path).fault == "there is no audit log here"


def test_garbage_is_a_fault(log: Path) -> None:
    """Whatever bytes stand in a line, the line is named, and nothing breaks."""
    lines = lines_of(log)
    for garbage in (
        b"\n",
        b"null\n",
        b"[" * 100_000 + b"\n",
        b"\xff\xfe\n",
        b'{"v":2}\n',
        b'{"v":1}\n',
    ):
        set_lines(log, [*lines[:4], garbage, *lines[5:]])
        assert verify(log).place == "000001.jsonl:5"


def test_a_log_that_is_being_written_is_not_signed_to_its_end(tmp_path: Path) -> None:
    """What came behind the latest signature is counted."""
    log = open_log(tmp_path)
    fill(log, 4)
    verdict = verify(tmp_path)
    assert (verdict.fault, verdict.unsigned) == (None, 4)
    log.close()
    assert verify(tmp_path).unsigned == 0


@pytest.mark.parametrize("text", ["", "ed25519:", "ed25519:AAAA", "rsa:AAAA", "ed25519:!"])
def test_a_bad_public_key_is_told(text: str) -> None:
    """In one line that says where the right one is."""
    with pytest.raises(ValueError, match="sandd audit key"):
        PublicKey.parse(text)


def test_a_public_key_is_read_as_it_is_printed(tmp_path: Path) -> None:
    """And checks what its other half has signed, and nothing else."""
    key = key_in(tmp_path)
    public = PublicKey.parse(str(key.public) + "\n")
    assert public.has_signed(b"message", key.sign(b"message"))
    assert not public.has_signed(b"another", key.sign(b"message"))
    assert not public.has_signed(b"message", b"")
