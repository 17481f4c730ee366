"""Two ends of a transfer in this process, real files at both, and whatever may go wrong between them."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import trio
from attrs import define, field

from sandd._core.files.roots import AnyFile
from sandd._core.transfers.partials import Partials
from sandd._core.transfers.receiving import receive
from sandd._core.transfers.sending import send
from sandd.wire import KIB, MIB, Update

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from sandd._core.transfers.result import TransferResult


class Line:
    """Bytes one way, as a job's stream moves them: in pieces, and not more than `bound` at a time."""

    def __init__(self, *, bound: int = MIB, piece: int = 128 * KIB) -> None:
        self.bound = bound
        self.piece = piece
        self.sent = 0
        self.cut_after: int | None = None
        """Bytes that come through; nothing follows them, and the other end is gone."""
        self._chunks: list[bytes] = []
        self._size = 0
        self._changed = trio.Event()
        self._is_closed = False

    @property
    def unread(self) -> int:
        """Bytes that were sent and that nobody has received."""
        return self._size

    def close(self) -> None:
        """What was sent comes, and then the end."""
        self._is_closed = True
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def send(self, *data: bytes) -> None:
        """As a `ByteChannel`."""
        await trio.lowlevel.checkpoint()
        for each in data:
            await self._send(memoryview(each))

    async def _send(self, view: memoryview) -> None:
        while view:
            if self._is_closed:
                await trio.sleep_forever()  # nobody says so: a stream outlives a cut
            while self._size >= self.bound:
                await self._changed.wait()
            part = bytes(view[: self.piece])
            view = view[self.piece :]
            if self.cut_after is not None and self.sent + len(part) >= self.cut_after:
                part = part[: self.cut_after - self.sent]
                self._is_closed = True
            self.sent += len(part)
            if part:
                self._chunks.append(part)
            self._size += len(part)
            self._wake()

    async def receive(self, at_least: int = 1) -> list[bytes]:
        """As a `ByteChannel`."""
        await trio.lowlevel.checkpoint()
        while self._size < max(1, min(at_least, self.bound)) and not self._is_closed:
            await self._changed.wait()
        if not self._chunks:
            return []
        chunk = self._chunks.pop(0)
        self._size -= len(chunk)
        self._wake()
        return [chunk]


@define
class End:
    """One end's channel."""

    outgoing: Line
    incoming: Line

    async def send(self, *data: bytes) -> None:
        """Bytes to the other end."""
        await self.outgoing.send(*data)

    async def receive(self, at_least: int = 1) -> list[bytes]:
        """Bytes from the other end."""
        return await self.incoming.receive(at_least)


@define
class Lines:
    """Both ways between a sender and a receiver."""

    forth: Line = field(factory=Line)
    back: Line = field(factory=Line)

    @property
    def sender(self) -> End:
        """The end that sends files."""
        return End(self.forth, self.back)

    @property
    def receiver(self) -> End:
        """The end that gets them."""
        return End(self.back, self.forth)


@define
class Copied:
    """What each end says of a transfer: a result, or an error."""

    sent: TransferResult | BaseException | None = None
    received: TransferResult | BaseException | None = None

    @property
    def result(self) -> TransferResult:
        """What both ends say, which is the same but for the time it took."""
        for each in (self.sent, self.received):
            if isinstance(each, BaseException):
                raise each
        assert self.sent is not None
        assert self.received is not None
        assert _timeless(self.sent) == _timeless(self.received)
        return self.received  # type: ignore[return-value]


def _timeless(result: Any) -> Any:
    return attrs.evolve(result, seconds=0.0)


async def copy(
    source: Path | bytes,
    target: Path | bytes,
    *,
    update: Update = Update.NONE,
    lines: Lines | None = None,
    partials: Partials | None = None,
    sender_root: Any = None,
    receiver_root: Any = None,
    tenant: str = "",
    will_return: Callable[[], bool] = lambda: False,
    receiver_progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> Copied:
    """A transfer from one path to another one; the end that fails closes its line, as the end of a job does."""
    lines = lines or Lines()
    copied = Copied()

    async def run_sender() -> None:
        try:
            copied.sent = await send(
                lines.sender,
                sender_root or AnyFile(),
                os.fsencode(source),
                update=update,
                **options,
            )
        except (Exception, Killed) as error:
            copied.sent = error
        lines.forth.close()

    async def run_receiver() -> None:
        try:
            copied.received = await receive(
                lines.receiver,
                receiver_root or AnyFile(),
                os.fsencode(target),
                partials=partials or Partials(),
                update=update,
                tenant=tenant,
                will_return=will_return,
                progress=receiver_progress,
            )
        except (Exception, Killed) as error:
            copied.received = error
        lines.back.close()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_sender)
        nursery.start_soon(run_receiver)
    return copied


# ---- trees --------------------------------------------------------------------------------------


def snapshot(top: Path | bytes) -> dict[bytes, Any]:
    """Everything that is below, and what a copy of it has in common with it."""
    found: dict[bytes, Any] = {}

    def look(path: bytes, name: bytes) -> None:
        status = os.lstat(path)
        mode = stat.S_IMODE(status.st_mode)
        if stat.S_ISDIR(status.st_mode):
            found[name] = ("directory", mode, status.st_mtime_ns)
            for entry in sorted(os.listdir(path)):
                look(os.path.join(path, entry), os.path.join(name, entry))
        elif stat.S_ISLNK(status.st_mode):
            found[name] = ("link", os.readlink(path), status.st_mtime_ns)
        else:
            found[name] = ("file", mode, status.st_mtime_ns, Path(os.fsdecode(path)).read_bytes())

    look(os.fsencode(top), b"")
    return found


def names_below(top: Path) -> list[str]:
    """Every path below, sorted."""
    return sorted(str(path.relative_to(top)) for path in top.rglob("*"))


def partials_below(top: Path) -> list[str]:
    """Files in the making."""
    return [name for name in names_below(top) if ".sandd-" in name]


# ---- disks that fail ----------------------------------------------------------------------------


class Killed(BaseException):
    """The program was killed: nothing it would have done after this is done."""


class FailingRoot:
    """A disk of which some calls fail.

    Each call's name and path are noted in `calls`; `fail` is asked before each, and may raise.
    """

    def __init__(self, fail: Callable[[int, str, bytes], None] | None = None) -> None:
        self.calls: list[tuple[str, bytes]] = []
        self._fail = fail
        self._real = AnyFile()

    def as_owner(self) -> AbstractContextManager[int]:
        """As in `Root`; it is no call to the system that may fail."""
        return self._real.as_owner()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._real, name)

        def call(path: bytes, *args: Any, **options: Any) -> Any:
            self.calls.append((name, path))
            if self._fail is not None:
                self._fail(len(self.calls), name, path)
            return method(path, *args, **options)

        return call


def system_error(number: int, path: bytes | None = None) -> OSError:
    """As a system call raises it."""
    return OSError(number, os.strerror(number), path)
