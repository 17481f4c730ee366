"""What a transfer leaves that ends without anybody's will, and how a later one goes on with it."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import time
from typing import TYPE_CHECKING

import pytest
import trio
from transfer_world import FailingRoot, Line, Lines, copy, names_below, partials_below

from sandd import TransferError
from sandd._core.files.roots import AnyFile
from sandd._core.transfers import partials as partials_module
from sandd._core.transfers import writing
from sandd._core.transfers.ends import PeerGoneError
from sandd._core.transfers.partials import Partials, open_partial, partial_name
from sandd._core.transfers.receiving import receive
from sandd._core.transfers.records import RecordReader, message_bytes, piece_head
from sandd._core.transfers.writing import Writer
from sandd.wire import (
    KIB,
    MIB,
    SMALL_FILE_BYTES,
    AskRecord,
    CompleteRecord,
    ContentRecord,
    EndRecord,
    SkipRecord,
    Update,
    WantRecord,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from sandd._core.transfers.arrivals import Incoming, Step


LARGE = os.urandom(64 * KIB) * 128  # far more than is on its way when half of it has come
"""8 MiB."""
FIRST_MOMENT = 10**18


def make_source(tmp_path: Path, data: bytes = LARGE) -> Path:
    """A file of a known time."""
    source = tmp_path / "source"
    source.write_bytes(data)
    os.utime(source, ns=(0, FIRST_MOMENT))
    return source


def partial_of(target: Path, source: Path, tenant: str = "") -> Path:
    """What the file in the making is called."""
    status = source.stat()
    name = partial_name(tenant, os.fsencode(target), status.st_size, status.st_mtime_ns)
    return target.parent / os.fsdecode(name)


def leave(target: Path, source: Path, data: bytes, tenant: str = "") -> Path:
    """What an earlier call left."""
    partial = partial_of(target, source, tenant)
    partial.write_bytes(data)
    partial.chmod(0o600)
    return partial


async def test_a_cut_for_good_leaves_what_came(tmp_path: Path) -> None:
    """Its target isn't there; the next call sends the rest, and only that."""
    source, target = make_source(tmp_path), tmp_path / "target"
    lines = Lines()
    lines.forth.cut_after = 3 * MIB + 12345

    first = await copy(source, target, lines=lines)

    assert isinstance(first.received, PeerGoneError)
    assert isinstance(first.sent, PeerGoneError)
    assert not target.exists()
    (left,) = partials_below(tmp_path)
    size = (tmp_path / left).stat().st_size
    assert 2 * MIB <= size <= 3 * MIB + 12345

    again = (await copy(source, target)).result

    assert target.read_bytes() == LARGE
    assert (again.resumed, again.bytes) == (size, len(LARGE) - size)
    assert again.sha256 == hashlib.sha256(LARGE).hexdigest()
    assert names_below(tmp_path) == ["source", "target"]


@pytest.mark.parametrize("extra", [0, 1, 5000])
@pytest.mark.parametrize("share", [0.0, 1e-6, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("is_same", [True, False], ids=["same", "changed"])
async def test_resuming_at_any_place(
    tmp_path: Path, share: float, extra: int, is_same: bool
) -> None:
    """What was left is gone on with if it is the beginning of the source; otherwise none of it is in the copy."""
    source, target = make_source(tmp_path, LARGE[: MIB + 77]), tmp_path / "target"
    data = source.read_bytes()
    count = max(0, min(len(data), int(share * len(data)) + extra))
    left = bytearray(data[:count])
    if not is_same and count:
        left[count // 2] ^= 1
    leave(target, source, bytes(left))

    result = (await copy(source, target)).result

    assert target.read_bytes() == data
    assert result.resumed == (count if is_same else 0)
    assert result.bytes == len(data) - result.resumed
    assert names_below(tmp_path) == ["source", "target"]


async def test_more_than_the_source_has_is_not_gone_on_with(tmp_path: Path) -> None:
    """A file in the making that is longer than what it is to be can't be its beginning."""
    source, target = make_source(tmp_path, LARGE[:MIB]), tmp_path / "target"
    leave(target, source, LARGE[: MIB + 1])

    (await copy(source, target)).result  # noqa: B018 - raises if it failed

    assert target.read_bytes() == LARGE[:MIB]


async def test_nothing_of_what_was_left_shows_through_a_hole(tmp_path: Path) -> None:
    """Zeros are not written but skipped: where something else was left, there must be nothing before."""
    source, target = make_source(tmp_path, bytes(2 * MIB) + b"end"), tmp_path / "target"
    leave(target, source, LARGE[: 2 * MIB])

    (await copy(source, target)).result  # noqa: B018 - raises if it failed

    assert target.read_bytes() == bytes(2 * MIB) + b"end"


async def test_a_changed_source_is_never_spliced(tmp_path: Path) -> None:
    """Of the same size and time, changed in what was sent and in what wasn't: it is sent from its beginning."""
    source, target = make_source(tmp_path), tmp_path / "target"
    lines = Lines()
    lines.forth.cut_after = 2 * MIB
    await copy(source, target, lines=lines)
    changed = LARGE[::-1]
    source.write_bytes(changed)
    os.utime(source, ns=(0, FIRST_MOMENT))

    result = (await copy(source, target)).result

    assert target.read_bytes() == changed
    assert result.resumed == 0
    assert names_below(tmp_path) == ["source", "target"]


async def test_small_files_leave_nothing(tmp_path: Path) -> None:
    """To send one again costs less than to look for what is left of it, with an update as well."""
    source = make_source(tmp_path, LARGE[:SMALL_FILE_BYTES])
    for update in Update:
        lines = Lines(Line(piece=KIB), Line())
        lines.forth.cut_after = 200 * KIB

        copied = await copy(source, tmp_path / "target", lines=lines, update=update)

        assert isinstance(copied.received, PeerGoneError)
        assert names_below(tmp_path) == ["source"]


async def test_a_cut_at_any_place_of_a_tree(tmp_path: Path) -> None:
    """Each file is whole or isn't there, and a further call completes the tree."""
    source = tmp_path / "source"
    source.mkdir()
    contents = {f"small{number}": bytes([number]) * number for number in range(5)}
    contents |= {f"large{number}": LARGE[number : number + 300 * KIB] for number in range(3)}
    for name, data in contents.items():
        (source / name).write_bytes(data)
    whole = Lines()
    (await copy(source, tmp_path / "dry", lines=whole)).result  # noqa: B018 - raises if it failed
    resumed = 0
    step = whole.forth.sent // 25
    for place in [*range(0, 300, 37), *range(300, whole.forth.sent, step), whole.forth.sent]:
        target = tmp_path / f"target{place}"
        lines = Lines(Line(piece=4 * KIB), Line())
        lines.forth.cut_after = place

        copied = await copy(source, target, lines=lines)

        assert isinstance(copied.received, PeerGoneError) == (place < whole.forth.sent)
        for path in target.glob("[!.]*"):
            assert path.read_bytes() == contents[path.name]
        resumed += (await copy(source, target)).result.resumed
        assert {path.name: path.read_bytes() for path in target.iterdir()} == contents
    assert resumed > 0


async def test_another_tenant_does_not_find_it(tmp_path: Path) -> None:
    """What one left is nobody else's: not even by its hash does another one learn of it."""
    source, target = make_source(tmp_path), tmp_path / "target"
    left = leave(target, source, LARGE[:MIB], tenant="one")

    other = (await copy(source, target, tenant="another")).result
    assert other.resumed == 0
    assert left.exists()
    own = (await copy(source, target, tenant="one")).result
    assert own.resumed == MIB
    assert not left.exists()


async def test_a_cancelled_transfer_leaves_nothing(tmp_path: Path) -> None:
    """Who doesn't want it any more doesn't want half of it, either; unless somebody is expected to return."""
    for will_return in (False, True):
        source, target = make_source(tmp_path), tmp_path / "target"
        lines = Lines()
        with trio.CancelScope() as scope:

            def stop(done: int, _total: int, scope: trio.CancelScope = scope) -> None:
                if done >= 3.5 * MIB:  # more than what waits to be written
                    scope.cancel()

            await copy(
                source,
                target,
                lines=lines,
                receiver_progress=stop,
                will_return=lambda it=will_return: it,
            )
        assert scope.cancelled_caught
        assert not target.exists()
        assert bool(partials_below(tmp_path)) == will_return
    assert (await copy(source, target)).result.resumed > 0


async def test_a_later_transfer_takes_over(tmp_path: Path) -> None:
    """Two of the same file: the older ends with an error that says so, the newer goes on with what it had."""
    source, target = make_source(tmp_path), tmp_path / "target"
    partials = Partials()
    stuck = Lines()
    older: list[object] = []

    async def run_older(task_status: trio.TaskStatus[None]) -> None:
        def tell(done: int, _total: int) -> None:
            if done >= 3.5 * MIB:  # more than what waits to be written
                stuck.forth.bound = 0  # nothing comes any more, as behind a cut
                if not older:
                    older.append(None)
                    task_status.started()

        older.append(
            await copy(source, target, lines=stuck, partials=partials, receiver_progress=tell)
        )

    async with trio.open_nursery() as nursery:
        await nursery.start(run_older)
        newer = await copy(source, target, partials=partials)
        nursery.cancel_scope.deadline = trio.current_time() + 5

    assert newer.result.resumed > 0
    assert target.read_bytes() == LARGE
    received = older[-1].received  # type: ignore[attr-defined]
    assert isinstance(received, TransferError)
    assert "another transfer" in str(received)
    assert names_below(tmp_path) == ["source", "target"]


async def test_another_program_has_it(tmp_path: Path) -> None:
    """What another program is writing is left to it: this one makes a file of its own."""
    source, target = make_source(tmp_path), tmp_path / "target"
    left = leave(target, source, LARGE[:MIB])
    with left.open("rb") as theirs:
        fcntl.flock(theirs, fcntl.LOCK_EX)

        result = (await copy(source, target)).result

    assert result.resumed == 0
    assert target.read_bytes() == LARGE
    assert left.read_bytes() == LARGE[:MIB]


async def test_what_another_program_wrote_meanwhile_is_not_spliced(tmp_path: Path) -> None:
    """What was left is hashed when it is asked about; by the time it is gone on with, it must still be that."""
    source, target = make_source(tmp_path, LARGE[:MIB]), tmp_path / "target"
    left = leave(target, source, LARGE[: 512 * KIB])
    lines = Lines(Line(bound=1 << 40), Line(bound=1 << 40))
    errors: list[OSError] = []

    async def run() -> None:
        with pytest.raises(OSError, match="somebody else") as caught:
            await receive(lines.receiver, AnyFile(), os.fsencode(target), partials=Partials())
        errors.append(caught.value)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await lines.forth.send(message_bytes(AskRecord(b"", MIB, 0o644, FIRST_MOMENT)))
        (answer,) = RecordReader().feed(b"".join(await lines.back.receive()))
        assert isinstance(answer, WantRecord)
        assert answer.offset == 512 * KIB
        left.write_bytes(bytes(512 * KIB))
        os.utime(left, ns=(0, 0))  # whatever the system's clock told it
        await lines.forth.send(message_bytes(ContentRecord(0, 512 * KIB)))
        await lines.forth.send(piece_head(512 * KIB) + LARGE[512 * KIB : MIB])
        digest = hashlib.sha256(LARGE[:MIB]).digest()
        await lines.forth.send(message_bytes(CompleteRecord(digest)) + message_bytes(EndRecord()))

    assert errors[0].errno == errno.EBUSY
    assert not target.exists()


def test_a_file_that_another_program_finishes_is_none_in_the_making(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may get its name, or be removed, between our opening and our locking it: then it is not written to."""
    partial, target = tmp_path / "partial", tmp_path / "target"
    lock = partials_module._lock
    for finish in (lambda: partial.rename(target), partial.unlink):
        partial.write_bytes(b"whole")
        partial.chmod(0o600)

        def finish_and_lock(descriptor: int, finish: Callable[[], object] = finish) -> bool:
            finish()
            return lock(descriptor)

        monkeypatch.setattr(partials_module, "_lock", finish_and_lock)
        assert open_partial(AnyFile(), os.fsencode(partial), create=False) is None
    assert target.read_bytes() == b"whole"


@pytest.mark.parametrize("late", [0.0, 0.05], ids=["at once", "in large portions"])
async def test_what_is_complete_is_locked_until_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late: float
) -> None:
    """Another program must not write to what is about to be renamed; and few descriptors are needed for that."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    for number in range(40):
        (source / str(number)).write_bytes(LARGE[: SMALL_FILE_BYTES + 1])
    seen: list[bytes] = []
    held: list[int] = []
    do = Writer.do

    def late_and_looking(
        self: Writer, steps: Iterable[Step]
    ) -> list[tuple[Incoming, SkipRecord | WantRecord]]:
        time.sleep(late)  # a slow disk, behind which more and more is waiting
        answers = do(self, steps)
        held.append(len(os.listdir("/dev/fd")))
        return answers

    def rename(number: int, name: str, path: bytes) -> None:
        if name == "rename" and b".part" in path:
            assert open_partial(AnyFile(), path, create=False) is None
            seen.append(path)

    root = FailingRoot(rename)
    monkeypatch.setattr(Writer, "do", late_and_looking)
    monkeypatch.setattr(writing, "SETTLE_LOCKED", 8)
    before = len(os.listdir("/dev/fd"))

    (await copy(source, target, receiver_root=root)).result  # noqa: B018 - raises if it failed

    assert len(seen) == 40
    assert max(held) < before + 24
    assert len(os.listdir("/dev/fd")) == before


@pytest.mark.parametrize("kind", ["link", "hard link", "pipe", "directory"])
async def test_what_has_that_name_but_is_none_of_ours(tmp_path: Path, kind: str) -> None:
    """Where others may write they may have made it: it is neither followed, nor written to, nor removed."""
    source, target = make_source(tmp_path), tmp_path / "target"
    theirs = tmp_path / "theirs"
    theirs.write_bytes(b"precious")
    trap = partial_of(target, source)
    if kind == "link":
        trap.symlink_to(theirs)
    elif kind == "hard link":
        trap.hardlink_to(theirs)
    elif kind == "pipe":
        os.mkfifo(trap)
    else:
        trap.mkdir()

    (await copy(source, target)).result  # noqa: B018 - raises if it failed

    assert target.read_bytes() == LARGE
    assert theirs.read_bytes() == b"precious"
    assert names_below(tmp_path) == sorted(["source", "target", "theirs", trap.name])


async def test_what_another_call_left_is_removed_after_a_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the journal, wherever it is; one that was gone on with in the meantime stays."""
    sources = []
    partials = Partials(tmp_path / "journal")
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        sources.append(make_source(tmp_path / name))
        lines = Lines()
        lines.forth.cut_after = 3 * MIB
        await copy(sources[-1], tmp_path / name / "target", lines=lines, partials=partials)
    partials.purge(AnyFile())
    assert len(partials_below(tmp_path)) == 2

    now = time.time()
    monkeypatch.setattr(partials_module.time, "time", lambda: now + 23.9 * 3600)
    partials.purge(AnyFile())
    assert len(partials_below(tmp_path)) == 2
    monkeypatch.setattr(partials_module.time, "time", lambda: now + 24.1 * 3600)
    (await copy(sources[0], tmp_path / "one" / "target", partials=partials)).result  # noqa: B018 - raises if it failed
    partials.purge(AnyFile())

    assert not partials_below(tmp_path)
    assert not list((tmp_path / "journal").iterdir())
    assert (tmp_path / "one" / "target").read_bytes() == LARGE


@pytest.mark.parametrize("is_tree", [True, False], ids=["tree", "file"])
async def test_without_a_journal_old_ones_are_found_where_a_transfer_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_tree: bool
) -> None:
    """Files in the making that nobody wrote for a day; nothing else, nothing newer, and nothing that is in use."""
    folder = tmp_path / "folder"
    folder.mkdir()
    if is_tree:
        source, target = tmp_path / "source", folder
        source.mkdir()
    else:
        source, target = make_source(tmp_path, b"small"), folder / "target"
    (folder / ".sandd-0123-4.part").write_bytes(b"left")
    (folder / ".sandd-0123-5.part").symlink_to("a link that was left")
    for name in (".sandd-0123-4.part", ".sandd-0123-5.part"):
        # Just before it gets its name, a file has the source's time, which may be any.
        os.utime(folder / name, (0, 0), follow_symlinks=False)
    (folder / ".sandd-note.txt").write_bytes(b"mine")
    used = folder / ".sandd-4567.part"
    used.write_bytes(b"in use")
    (await copy(source, target)).result  # noqa: B018 - raises if it failed
    assert len(partials_below(folder)) == 4

    now = time.time()
    monkeypatch.setattr(partials_module.time, "time", lambda: now + 24.1 * 3600)
    with used.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        (await copy(source, target)).result  # noqa: B018 - raises if it failed

    assert partials_below(folder) == [".sandd-4567.part", ".sandd-note.txt"]
