"""Keeps what a running controller serves by fresh: new handshakes get the new certificate, no connection is touched."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import trio
from attrs import define

from sandd._core._errors import ConfigurationError
from sandd._core.audit.changes import certificates_in_force, certificates_refused
from sandd._core.audit.sinks import NO_AUDIT
from sandd._core.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandd._core.audit.sinks import AuditSink
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
    failures: int = 0
    """Reloads that changed nothing, because there was nothing usable."""
    audit: AuditSink = NO_AUDIT
    _complaint: str = ""

    @classmethod
    async def load(
        cls, certificates: Certificates, clock: Callable[[], float] = time.time
    ) -> LiveCertificates:
        """From the disk. ConfigurationError if there is nothing usable."""
        current = await trio.to_thread.run_sync(certificates.load, clock())
        return cls(certificates, current, clock)

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
                self.audit.note(certificates_refused(str(error)))
            self._complaint = str(error)
            return False
        self._complaint = ""
        if fresh.channel_binding != self.current.channel_binding or (
            fresh.bundle != self.current.bundle
        ):
            log.info("certificate_reloaded", pin=str(self.certificates.pin or ""))
            self.audit.note(certificates_in_force(self.certificates.pin, fresh.channel_binding))
        self.current = fresh
        return True
