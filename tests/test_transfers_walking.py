"""What is sent of a tree: patterns, depth, sizes; and that a tree of any size takes no memory."""

from __future__ import annotations

import errno
import os
import tracemalloc
from typing import TYPE_CHECKING

import pytest
from transfer_world import FailingRoot, copy, names_below, system_error

from sandd import TransferError, wire
from sandd._core.files.roots import AnyFile
from sandd._core.transfers import walking
from sandd._core.transfers.filters import Filter
from sandd._core.transfers.walking import Walk, count
from sandd.wire import KIB, MIB, Update

if TYPE_CHECKING:
    from pathlib import Path

# ---- patterns -----------------------------------------------------------------------------------

FILES = [
    *("a.py", "a.txt", "src/b.py", "src/deep/c.py", "src/deep/d.txt"),
    *("build/e.py", "build/keep/f.txt", "empty/"),
]


def make(top: Path, names: list[str]) -> None:
    """Files, and directories by names that end in a slash."""
    for name in names:
        path = top / name
        if name.endswith("/"):
            path.mkdir(parents=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"x")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            {"include": ["*.py"]},
            ["a.py", "build/e.py", "src/b.py", "src/deep/c.py"],
        ),
        (
            {"exclude": ["build/", "*.txt"]},
            ["a.py", "empty", "src/b.py", "src/deep/c.py"],
        ),
        ({"include": ["src/"], "exclude": ["*.txt"]}, ["src/b.py", "src/deep/c.py"]),
        ({"include": ["/a.*"]}, ["a.py", "a.txt"]),
        (
            {"exclude": ["*.py", "!b.py"]},
            ["a.txt", "build/keep/f.txt", "empty", "src/b.py", "src/deep/d.txt"],
        ),
        ({"include": ["nothing"]}, []),
        ({"exclude": ["*"]}, []),
    ],
)
async def test_patterns_choose_files(
    tmp_path: Path, options: dict[str, list[str]], expected: list[str]
) -> None:
    """As in a .gitignore; with `include` no directory comes that would be empty. The counts are of what is sent."""
    make(tmp_path / "source", FILES)
    totals = []

    result = (
        await copy(
            tmp_path / "source",
            tmp_path / "target",
            progress=lambda _done, total: totals.append(total),
            **options,
        )
    ).result

    found = [
        name
        for name in names_below(tmp_path / "target")
        if not any(other.startswith(name + "/") for other in names_below(tmp_path / "target"))
    ]
    assert found == expected
    files = [name for name in expected if name != "empty"]
    assert (result.files, result.size) == (len(files), len(files))
    assert set(totals) <= {len(files)}


def test_patterns_are_about_any_name() -> None:
    """Names that are no text, or have a newline in them, are matched as well."""
    chosen = Filter(include=["*.py"], exclude=["bad*"])

    assert chosen.takes_file(b"odd\n\xff.py")
    assert not chosen.takes_file(b"odd.py\n")
    assert not chosen.takes_file(b"bad\xff\n.py")
    assert not chosen.enters(b"x/bad\xff")


# ---- depth and size -----------------------------------------------------------------------------


async def test_a_deep_tree(tmp_path: Path) -> None:
    """Deeper than there may be directories open at the same time."""
    path = tmp_path / "source"
    for _ in range(walking.OPEN_SCANS + 40):
        path = path / "d"
    path.mkdir(parents=True)
    (path / "file").write_bytes(b"deep")

    result = (await copy(tmp_path / "source", tmp_path / "target", says_total=True)).result

    assert result.files == 1
    assert names_below(tmp_path / "target") == names_below(tmp_path / "source")


async def test_a_tree_that_is_too_deep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ends say so; no path on the wire is ever that deep."""
    monkeypatch.setattr(wire, "MAX_DEPTH", 5)
    (tmp_path / "source" / "1" / "2" / "3" / "4" / "5").mkdir(parents=True)

    copied = await copy(tmp_path / "source", tmp_path / "target")

    assert isinstance(copied.sent, OSError)
    assert copied.sent.errno == errno.ENAMETOOLONG
    assert isinstance(copied.received, TransferError)
    assert "too deep" in str(copied.received)


async def test_more_files_than_the_window(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All are asked about in the end, and never too many at once: the receiver would complain."""
    monkeypatch.setattr(wire, "TRANSFER_WINDOW", 10)
    source = tmp_path / "source"
    make(source, [f"d{n % 7}/f{n}" for n in range(200)])

    result = (await copy(source, tmp_path / "target", update=Update.HASH)).result

    assert (result.files, result.bytes) == (200, 200)
    assert names_below(tmp_path / "target") == names_below(source)


async def test_memory_does_not_grow_with_the_tree(tmp_path: Path) -> None:
    """Thousands of files and some that are large take as much as a few: both ends together, some megabytes."""
    source = tmp_path / "source"
    source.mkdir()
    for number in range(1200):
        (source / f"small{number}").write_bytes(bytes(5 * KIB))
    with (source / "large").open("wb") as file:
        block = os.urandom(MIB)
        for _ in range(30):
            file.write(block)

    tracemalloc.start()
    try:
        for update in (Update.NONE, Update.HASH):
            (await copy(source, tmp_path / "target", update=update)).result  # noqa: B018 - raises if it failed
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert peak < 16 * MIB


# ---- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["open", "scan", "readlink"])
async def test_what_may_not_be_read_ends_it(tmp_path: Path, name: str) -> None:
    """Nothing is silently left out: both ends name what it was."""
    make(tmp_path / "source", ["a/b", "a/c"])
    (tmp_path / "source" / "a" / "link").symlink_to("b")
    refused = b"link" if name == "readlink" else b"a" if name == "scan" else b"b"

    def fail(_number: int, called: str, path: bytes) -> None:
        if called == name and os.path.basename(path) == refused:
            raise system_error(errno.EACCES, path)

    copied = await copy(tmp_path / "source", tmp_path / "target", sender_root=FailingRoot(fail))

    for each in (copied.sent, copied.received):
        assert isinstance(each, PermissionError)
        assert os.path.basename(os.fsencode(each.filename)) == refused


def test_a_walk_can_be_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its open directories are closed, and so are those of a count."""
    make(tmp_path / "source", [f"a/b/c/f{n}" for n in range(walking.BATCH_ENTRIES + 10)])
    top = os.fsencode(tmp_path / "source")
    walk = Walk(AnyFile(), top, Filter(), asks=False)

    assert not walk.find(100, 100).is_last
    walk.close()
    monkeypatch.setattr(walking, "COUNTED_AT_ONCE", 1)
    counted = count(AnyFile(), top, Filter())
    assert next(counted) == (0, 0)
    counted.close()


def test_counting_says_now_and_then_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that it can be given up in between; files in the making aren't counted, as they aren't sent."""
    monkeypatch.setattr(walking, "COUNTED_AT_ONCE", 2)
    make(tmp_path / "source", ["a", "b", "c", "d/e", ".sandd-12.part"])

    counts = list(count(AnyFile(), os.fsencode(tmp_path / "source"), Filter()))

    assert counts[-1] == (4, 4)
    assert len(counts) > 2
