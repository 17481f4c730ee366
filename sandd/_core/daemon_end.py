"""The daemon's end of a link: what it says of itself, and its jobs."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

import trio
from attrs import define, field

from sandd._core.identity.introductions import answer_challenge
from sandd._core.job import DaemonLink
from sandd._core.link import Identity, read_challenge
from sandd._core.logs import get_logger
from sandd._core.metrics.link_bytes import LinkBytes
from sandd._core.pump import Pump

if TYPE_CHECKING:
    from sandd import wire
    from sandd._core.identity.keyring import Keyring
    from sandd._core.runner import JobRunner
    from sandd._core.transport import Connection

log = get_logger("identity")

KEEP_SECONDS: Final = 5.0
"""How long a disk may take for a new key: the one before is good until this one is used."""


@define
class DaemonEnd:
    """What a daemon's dialer calls for: see `Caller`."""

    identity: Identity
    keyring: Keyring
    runner: JobRunner
    meter: LinkBytes = field(factory=LinkBytes)
    """Of its links."""
    _link: DaemonLink | None = None
    _pump: Pump | None = None

    def introduce(
        self, said: wire.Control | wire.Unknown, connection: int, channel_binding: bytes
    ) -> wire.Control:
        """The Hello."""
        challenge, _ = read_challenge(said)
        credential = self.keyring.choose(challenge.controller_id)
        return answer_challenge(challenge, self.identity, connection, credential, channel_binding)

    def has_another_credential(self) -> bool:
        """Its own key was refused, and it was given a token as well."""
        return self.keyring.has_another()

    async def welcomed(self, welcome: wire.Welcome) -> None:
        """Keep the key that came with it; who cancels that waits for it, too: there may be no other way in."""
        if welcome.enrolment is None:
            return
        with trio.move_on_after(KEEP_SECONDS, shield=True) as patience:
            await trio.to_thread.run_sync(
                self.keyring.keeper(welcome.enrolment), abandon_on_cancel=True
            )
        if patience.cancelled_caught:
            log.warning("key_not_kept", error=f"the disk took more than {KEEP_SECONDS:g} s")

    def begin(self, connection: Connection, welcome: wire.Welcome) -> Pump:
        """The jobs have a link."""
        link = self._link = DaemonLink()
        pump = self._pump = Pump(
            connection,
            link.scheduler,
            on_frame=partial(self.runner.receive, link),
            heartbeat=welcome.heartbeat,
            dead_after=welcome.dead_after,
            after_message=self.runner.after_message,
            after_pull=self.runner.serve_disk,
            meter=self.meter,
        )
        self.runner.add_link(link, pump)
        return pump

    def end(self) -> bool:
        """They have it no more; whether a client has acknowledged anything on it."""
        link, self._link, self._pump = self._link, None, None
        if link is None:
            return False
        self.runner.remove_link(link)
        return link.progressed

    async def tell_all(self) -> None:
        """Send all that jobs still have to tell to those who take it, if a link is live. Bound it."""
        if self._pump is not None:
            await self.runner.told()
        if self._pump is not None:
            await self._pump.drained()
