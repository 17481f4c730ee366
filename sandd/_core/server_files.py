"""What `Server` does with files: the parts of its methods that run in the trio thread."""

from __future__ import annotations

import hashlib
import math
import os
from typing import TYPE_CHECKING, TypeVar

import trio

from sandd._core._errors import transfer_error
from sandd._core.specs import seconds
from sandd._core.transfers.result import TransferResult

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sandd._core.copying import Progress
    from sandd._core.daemon_handle import Daemon
    from sandd._core.specs import Text

T = TypeVar("T")


async def upload_file(
    find: Callable[[], Daemon],
    remote_path: Text,
    data: bytes | bytearray | memoryview | str | os.PathLike[str],
    timeout: float | None,
    progress: Progress | None,
) -> TransferResult:
    """See `Client.upload_file`."""
    daemon = find()
    name = os.fsdecode(remote_path)
    if isinstance(data, bytes | bytearray | memoryview):
        content = bytes(data)  # a copy of what may be changed meanwhile; bytes stay what they are
        return await in_time(lambda: _write_file(daemon, remote_path, content), name, timeout)
    if await trio.Path(data).is_dir():
        raise transfer_error("EISDIR", "", os.fsdecode(data))
    return await in_time(lambda: daemon.upload(data, remote_path, progress=progress), name, timeout)


async def _write_file(daemon: Daemon, remote_path: Text, data: bytes) -> TransferResult:
    began = trio.current_time()
    digest = await trio.to_thread.run_sync(lambda: hashlib.sha256(data).hexdigest())
    await daemon.path(os.fspath(remote_path)).write_bytes(data)
    return TransferResult(
        bytes=len(data),
        size=len(data),
        files=1,
        skipped=0,
        resumed=0,
        sha256=digest,
        seconds=trio.current_time() - began,
    )


async def read_file(find: Callable[[], Daemon], remote_path: Text, timeout: float | None) -> bytes:
    """See `Client.download_file`."""
    path = find().path(os.fspath(remote_path))
    return await in_time(path.read_bytes, str(path), timeout)


async def download_file(
    find: Callable[[], Daemon],
    remote_path: Text,
    local_path: Text,
    timeout: float | None,
    progress: Progress | None,
) -> TransferResult:
    """See `Client.download_file`."""
    daemon = find()

    async def download() -> TransferResult:
        if await daemon.path(os.fspath(remote_path)).is_dir():
            raise transfer_error("EISDIR", "", os.fsdecode(remote_path))
        return await daemon.download(remote_path, local_path, progress=progress)

    return await in_time(download, os.fsdecode(remote_path), timeout)


async def in_time(work: Callable[[], Awaitable[T]], name: str, timeout: float | None) -> T:
    """What the work comes to, or a TransferError that is a TimeoutError."""
    limit = seconds("timeout", timeout)
    with trio.move_on_after(math.inf if limit is None else limit):
        return await work()
    raise transfer_error("ETIMEDOUT", f"not done within {limit:g} s", name)
