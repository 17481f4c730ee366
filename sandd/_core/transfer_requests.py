"""What a daemon does when a file or a tree is copied to it, or from it."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

import trio

from sandd import wire
from sandd._core._errors import RemoteProtocolError, TransferError
from sandd._core.requests import RequestFailedError
from sandd._core.transfers.receiving import RECEIVE_BYTES, receive
from sandd._core.transfers.sending import send
from sandd.wire import FailedCode

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from sandd._core.files.roots import Root
    from sandd._core.requests import Doer, Doing
    from sandd._core.transfers.partials import Partials

TIDY_SECONDS: Final = 3600.0
"""Between two looks at what is kept for a day."""


class _DaemonChannel:
    """INPUT and OUTPUT of the request, as a transfer has them."""

    def __init__(self, doing: Doing) -> None:
        self._doing = doing
        self.send = doing.write

    async def receive(self, at_least: int = 1) -> list[wire.Buffer]:
        return await self._doing.read_pieces(RECEIVE_BYTES, at_least=at_least)


class TransferRequests:
    """Does requests that copy files, within what may be reached."""

    def __init__(self, root: Root, partials: Partials) -> None:
        self._root = root
        self._partials = partials

    @property
    def doers(self) -> Mapping[type[wire.Request], Doer]:
        """For `Requests.offer`."""
        return {wire.UploadSpec: self._receive, wire.DownloadSpec: self._send}

    async def keep_tidy(self) -> None:
        """Remove what transfers left that nobody went on with in time; as long as the daemon lives."""
        while True:
            with contextlib.suppress(OSError):  # a disk that fails now may not the next time
                await trio.to_thread.run_sync(
                    self._partials.purge, self._root, abandon_on_cancel=True
                )
            await trio.sleep(TIDY_SECONDS)

    async def _receive(self, doing: Doing, spec: wire.UploadSpec) -> None:
        with _telling():
            await receive(
                _DaemonChannel(doing),
                self._root,
                spec.path,
                partials=self._partials,
                tenant=doing.tenant,
                update=spec.update,
                will_return=lambda: not doing.is_given_up,
            )

    async def _send(self, doing: Doing, spec: wire.DownloadSpec) -> None:
        with _telling():
            await send(
                _DaemonChannel(doing),
                self._root,
                spec.path,
                update=spec.update,
                include=spec.include,
                exclude=spec.exclude,
                says_total=spec.total,
            )


@contextlib.contextmanager
def _telling() -> Iterator[None]:
    """A system's error is told as one; of others the client knows already, if it is there."""
    try:
        yield
    except OSError:
        raise
    except (TransferError, RemoteProtocolError) as error:
        raise RequestFailedError(FailedCode.DECLINED, str(error)) from error
