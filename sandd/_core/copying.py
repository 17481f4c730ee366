"""Copies files and trees between this machine and a daemon: `Daemon.upload` and `Daemon.download`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal, TypeAlias

import trio

from sandd import wire
from sandd._core._errors import TransferError, describe_system_error, transfer_error
from sandd._core.arguments import check_function
from sandd._core.files.roots import AnyFile
from sandd._core.job_streams import InputStream, OutputStream
from sandd._core.specs import encode_path
from sandd._core.transfers.ends import PeerGoneError
from sandd._core.transfers.receiving import RECEIVE_BYTES, receive
from sandd._core.transfers.sending import send
from sandd.wire import Stream, Update

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from sandd._core.job_link import JobHandle, JobLink
    from sandd._core.specs import Text
    from sandd._core.transfers.result import TransferResult

    Progress: TypeAlias = Callable[[int, int], None]
    Patterns: TypeAlias = str | Iterable[str] | None


async def upload(
    link: JobLink,
    daemon_id: str,
    local: Text,
    remote: Text,
    *,
    progress: Progress | None,
    update: bool | Literal["hash"],
    include: Patterns,
    exclude: Patterns,
) -> TransferResult:
    """See `Daemon.upload`."""
    spec = wire.UploadSpec(encode_path("remote", remote), read_update(update))
    check_function("progress", progress)
    chosen, left_out = read_patterns("include", include), read_patterns("exclude", exclude)
    source = _local_path(local)
    await trio.lowlevel.checkpoint_if_cancelled()
    async with _open_channel(link, daemon_id, spec) as channel:
        return await send(
            channel,
            AnyFile(),
            source,
            update=spec.update,
            include=chosen,
            exclude=left_out,
            progress=progress,
        )


async def download(
    link: JobLink,
    daemon_id: str,
    remote: Text,
    local: Text,
    *,
    progress: Progress | None,
    update: bool | Literal["hash"],
    include: Patterns,
    exclude: Patterns,
) -> TransferResult:
    """See `Daemon.download`."""
    check_function("progress", progress)
    spec = wire.DownloadSpec(
        encode_path("remote", remote),
        read_update(update),
        include=read_patterns("include", include),
        exclude=read_patterns("exclude", exclude),
        total=progress is not None,
    )
    target = _local_path(local)
    await trio.lowlevel.checkpoint_if_cancelled()
    async with _open_channel(link, daemon_id, spec) as channel:
        return await receive(
            channel,
            AnyFile(),
            target,
            partials=link.partials,
            update=spec.update,
            progress=progress,
        )


def _local_path(local: Text) -> bytes:
    """The path of this machine, as its system has it; TypeError for what is none."""
    try:
        return os.fsencode(local)
    except TypeError:
        raise TypeError(
            f"local is {local!r}; it must be a path of this machine, as a text or a path object"
        ) from None


def read_update(update: bool | Literal["hash"]) -> Update:
    """What is skipped; ValueError for what means nothing."""
    if update == "hash":
        return Update.HASH
    if not isinstance(update, bool):
        raise ValueError(f"update is {update!r}; it must be True, False or 'hash'")
    return Update.TIME if update else Update.NONE


def read_patterns(name: str, patterns: Patterns) -> tuple[str, ...]:
    """One pattern or several; TypeError for what is none."""
    if patterns is None:
        return ()
    read = (
        (patterns,)
        if isinstance(patterns, str) or not isinstance(patterns, Iterable)
        else tuple(patterns)
    )
    if not all(isinstance(pattern, str) for pattern in read):
        raise TypeError(f"{name} is {patterns!r}; it must be a pattern, or several")
    return read


class _ClientChannel:
    """The streams of a job, as a transfer has them."""

    def __init__(self, handle: JobHandle) -> None:
        self._input = InputStream(handle)
        self._output = OutputStream(handle, Stream.OUTPUT)

    async def send(self, *data: bytes) -> None:
        try:
            await self._input.send_pieces(memoryview(each) for each in data)
        except trio.BrokenResourceError as error:
            raise PeerGoneError("the daemon has ended the transfer, and not said why") from error

    async def receive(self, at_least: int = 1) -> list[wire.Buffer]:
        return await self._output.receive_pieces(at_least, RECEIVE_BYTES)


@contextlib.asynccontextmanager
async def _open_channel(
    link: JobLink, daemon_id: str, spec: wire.UploadSpec | wire.DownloadSpec
) -> AsyncIterator[_ClientChannel]:
    """Both streams of a new transfer. However the block ends, the daemon has nothing more to do with it.

    Errors of this machine's files come out as `TransferError`, too.
    """
    handle = link.open(daemon_id, spec)
    try:
        try:
            yield _ClientChannel(handle)
            await handle.until(lambda: handle.ended)
            handle.raise_if_failed()
        except (trio.BrokenResourceError, PeerGoneError) as error:
            handle.raise_if_failed()  # that says more
            raise TransferError(f"the transfer ended too early: {error}") from error
        except OSError as error:
            if isinstance(error, TransferError):
                raise
            symbol, text, filename = describe_system_error(error)
            raise transfer_error(
                symbol, text, None if filename is None else os.fsdecode(filename)
            ) from error
    except BaseException:
        await handle.leave(0.0)
        raise
    handle.forget()
