"""Keeps what a running controller serves by fresh: new handshakes get the new certificate, no connection is touched."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import trio
from attrs import define

from sandd._core._errors import ConfigurationError
from sandd._core.audit.changes import certificate_in_force, certificate_refused
from sandd._core.logs import get_logger
from sandd._core.tls.pins import Pin, read_certificates

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandd._core.audit.records import Record
    from sandd._core.tls.certificates import Certificates
    from sandd._core.tls.contexts import ServerTls

log = get_logger("tls")

LOOK_SECONDS: Final = 10.0
"""Between two looks at the files and the clock. Never one long sleep: a machine that was suspended, or whose clock was
set, would renew too late."""


@define(eq=False)
class LiveCertificates:
    """What is presented now, and how it is followed by the next.

    What can't be used changes nothing: the old one stays, and that is counted and logged.
    """

    certificates: Certificates
    current: ServerTls
    clock: Callable[[], float] = time.time
    """Unix time: what certificates are valid by."""
    look_seconds: float = LOOK_SECONDS
    note: Callable[[Record], object] = lambda _: None
    """Called with each change, for an audit log."""
    failures: int = 0
    """Reloads that changed nothing, because there was nothing usable."""
    _complaint: str = ""

    @classmethod
    async def load(
        cls, certificates: Certificates, clock: Callable[[], float] = time.time
    ) -> LiveCertificates:
        """From the disk. ConfigurationError if there is nothing usable."""
        current = await trio.to_thread.run_sync(certificates.load, clock())
        return cls(certificates, current, clock, look_seconds=LOOK_SECONDS)

    @trio.lowlevel.enable_ki_protection
    async def keep_fresh(self) -> None:
        """Reload whenever it is due, for ever."""
        while True:
            await trio.sleep(self.look_seconds)
            await self.look()

    async def look(self) -> None:
        """Reload if it is due."""
        if await trio.to_thread.run_sync(self.certificates.is_due, self.clock()):
            await self.reload(is_retry=True)

    async def reload(self, *, is_retry: bool = False) -> bool:
        """Present what is on the disk now; False: it can't be used, and the old one stays.

        `is_retry`: don't count and log the same failure again.
        """
        try:
            fresh = await trio.to_thread.run_sync(self.certificates.load, self.clock())
        except ConfigurationError as error:
            if not (is_retry and str(error) == self._complaint):
                self.failures += 1
                log.error("certificate_reload_failed", error=str(error))
                self.note(certificate_refused(str(error)))
            self._complaint = str(error)
            return False
        self._complaint = ""
        before, self.current = self.current, fresh
        if (fresh.channel_binding, fresh.bundle) != (before.channel_binding, before.bundle):
            log.info("certificate_reloaded", pin=str(self.certificates.pin or ""))
            self.note(self.record())
        return True

    def record(self) -> Record:
        """What is presented now."""
        return certificate_in_force(
            certificate=str(Pin(self.current.channel_binding)),
            authorities=[str(Pin.of(each)) for each in read_certificates(self.current.bundle)],
        )
