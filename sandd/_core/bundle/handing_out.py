"""`Bootstrap`: what a controller has for a machine that has only Python, for a daemon: a script, and the file.

Neither holds a secret, and both are for anybody: who a daemon may be is for its token to say. The file is made when the
first one asks, once, in a thread: that takes seconds of a processor, which most controllers never need.
"""

from __future__ import annotations

import base64
import hashlib
import shlex
from typing import TYPE_CHECKING, Final

import trio
from attrs import define, field, frozen

from sandd import wire
from sandd._core.bundle.archive import NAME, make_bundle
from sandd._core.bundle.script import bootstrap_script
from sandd._core.logs import get_logger
from sandd._core.tls.pins import Pin, read_certificates
from sandd._core.transport import Document, Refusal

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandd._core.tls.contexts import ServerTls
    from sandd._core.transport import Question

SCRIPT_PATH: Final = "/bootstrap.sh"
FILE_PATH: Final = f"/{NAME}"

log = get_logger("bootstrap")


@frozen
class _File:
    content: bytes
    digest: str


@define(eq=False)
class Bootstrap:
    """The documents of one controller; `run` makes them."""

    presented: Callable[[], ServerTls | None]
    """By what the controller is known now; None: there is no TLS."""
    is_in_the_clear: bool = False
    """Also without TLS anybody gets them: who is on the way may put any program in their place."""
    make: Callable[[], bytes] = field(factory=lambda: make_bundle)
    _file: _File | None = field(default=None, init=False)
    _asked: trio.Event = field(factory=trio.Event, init=False)
    _made: trio.Event = field(factory=trio.Event, init=False)

    @property
    def paths(self) -> tuple[str, ...]:
        """Where they are."""
        return SCRIPT_PATH, FILE_PATH

    def fetching(self, url: str) -> str:
        """The command that fetches the script from the controller at this URL, for a shell to run."""
        presented = self.presented()
        command = ["curl", "-fsS"]
        if presented is not None and presented.bundle:
            # curl can't know the CA. The key's hash names this server as exactly, whoever has signed it.
            from sandd._core.tls.authority import public_key_of  # only there is it made, too

            key = hashlib.sha256(public_key_of(presented.certificate)).digest()
            command += ["-k", "--pinnedpubkey", f"sha256//{base64.b64encode(key).decode()}"]
        place = url.removesuffix(wire.DAEMON_PATH).removeprefix("ws")
        return shlex.join([*command, f"http{place}{SCRIPT_PATH}"])

    async def run(self) -> None:
        """Make the file as soon as somebody asks for it; then it is there."""
        await self._asked.wait()
        try:
            # Abandoned: a controller that is closed doesn't wait for what nobody gets any more.
            content = await trio.to_thread.run_sync(self.make, abandon_on_cancel=True)
            self._file = _File(content, hashlib.sha256(content).hexdigest())
            log.info("bundled", size=len(content), sha256=self._file.digest)
        except Exception as error:
            log.error("not_bundled", error=str(error))
        finally:
            self._made.set()

    async def answer(self, question: Question) -> Document | Refusal:
        """The script, or the file; why not, where nobody should run what may have been changed on its way."""
        if not (question.is_private or self.is_in_the_clear):
            return Refusal(403, "what is run is handed out over TLS only, or on this machine")
        self._asked.set()
        await self._made.wait()
        if self._file is None:
            return Refusal(503, "the daemon can't be bundled here; the controller's log says why")
        if question.path == FILE_PATH:
            return Document(self._file.content, "application/octet-stream")
        presented = self.presented()
        scheme = "ws" if presented is None else "wss"
        authorities = b"" if presented is None else presented.bundle
        script = bootstrap_script(
            f"{scheme}://{question.host}{wire.DAEMON_PATH}",
            FILE_PATH,
            self._file.digest,
            len(self._file.content),
            pins=tuple(str(Pin.of(each)) for each in read_certificates(authorities)),
        )
        return Document(script, "text/x-shellscript; charset=utf-8")
