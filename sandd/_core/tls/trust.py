"""`Trust`: by what a peer knows its controller, on its first dial and after the controller's CA was replaced.

With a pin alone, nobody here has the CA's certificate yet. The controller has it for everybody, at `BUNDLE_PATH`: it is
read over a connection that proves nothing and carries nothing, what has the pin is kept, and only then the controller
is dialled, with this one certificate as the only authority. Until then not a byte has left that says who we are.

From then on the controller may tell of another CA, over connections that those known so far vouch for. What it tells
takes the place of what was known, the pin's certificate included: a CA that was given up is trusted no longer.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

import trio
from attrs import define, field

from sandd._core._errors import ConfigurationError, ConnectionLost
from sandd._core.logs import get_logger
from sandd._core.state_directory import replace_file
from sandd._core.tls.contexts import client_context, digest_of, unverified_context
from sandd._core.tls.pins import MAX_BUNDLE_BYTES, Pin, read_certificates, write_certificates
from sandd._core.transport import BUNDLE_PATH, fetch

if TYPE_CHECKING:
    import ssl
    from pathlib import Path

    from sandd._core.tls.trust_options import TrustOptions

log = get_logger("tls")

REFRESH_SECONDS: Final = 3600.0
"""How often somebody who stays connected asks for new CAs: a step of a rotation waits for a day."""


@define(eq=False)
class Trust:
    """One program's, in one controller."""

    url: str
    """wss:// URL that is dialled."""
    options: TrustOptions
    directory: Path | None = None
    """Where what was learned outlives the program; None: nowhere."""
    refresh_seconds: float = REFRESH_SECONDS
    _bundle: bytes = field(default=b"", init=False)
    """What is trusted, in PEM, where the options have a pin; empty: nothing yet."""

    def check(self) -> None:
        """ConfigurationError if a file can't be used. Blocks."""
        self._make_context(None)

    async def context(self) -> ssl.SSLContext:
        """What to demand of the controller in the next dial.

        Raises:
            ConnectionLost: a file can't be used any more; or the first contact failed, and nothing was sent.
        """
        try:
            if not self.options.pins:
                return await trio.to_thread.run_sync(self._make_context, None)
            if not self._bundle:
                self._bundle = await trio.to_thread.run_sync(self._read_kept)
            if not self._bundle:
                self._bundle = await self._meet()
            return await trio.to_thread.run_sync(self._make_context, self._bundle)
        except ConfigurationError as error:
            raise ConnectionLost(str(error)) from error

    async def look_after(self, offered: str) -> None:
        """Learn of new CAs, while a connection lasts; for ever. Errors are logged.

        Args:
            offered: the digest of what the controller has for us, as it said when it let us in; "" if it didn't.
        """
        if not self.options.pins:
            await trio.sleep_forever()
        is_new = bool(offered) and offered != digest_of(self._bundle)
        if not is_new:
            await trio.to_thread.run_sync(self._keep, self._bundle)
        while True:
            if is_new:
                try:
                    await self.learn()
                except ConnectionLost as error:
                    log.warning("ca_not_learned", reason=str(error))
            await trio.sleep(self.refresh_seconds)
            is_new = True

    async def learn(self) -> None:
        """Take over the CAs that the controller now has for its peers. ConnectionLost: those known so far stay."""
        try:
            known = await trio.to_thread.run_sync(self._make_context, self._bundle)
            bundle = await fetch(
                self.url, BUNDLE_PATH, ssl_context=known, max_bytes=MAX_BUNDLE_BYTES
            )
            if bundle == self._bundle:
                await trio.to_thread.run_sync(self._keep, bundle)
                return
            fresh = await trio.to_thread.run_sync(self._make_context, bundle)
        except ConfigurationError as error:
            raise ConnectionLost(f"what it has at {BUNDLE_PATH} can't be used: {error}") from error
        # By these alone it must be known as well, or the next dial would be in vain, and all that follow.
        again = await fetch(self.url, BUNDLE_PATH, ssl_context=fresh, max_bytes=MAX_BUNDLE_BYTES)
        if again != bundle:
            raise ConnectionLost("its CAs changed while they were read")
        self._bundle = bundle
        await trio.to_thread.run_sync(self._keep, bundle)
        log.info("ca_learned", pins=[str(Pin.of(each)) for each in read_certificates(bundle)])

    async def _meet(self) -> bytes:
        """The certificates that have the pins, from a controller that nothing else is known of."""
        offered = await fetch(
            self.url,
            BUNDLE_PATH,
            ssl_context=unverified_context(),
            max_bytes=MAX_BUNDLE_BYTES,
        )
        certificates = read_certificates(offered)
        ours = [each for each in certificates if Pin.of(each) in self.options.pins]
        if not ours:
            others = ", ".join(str(Pin.of(each)) for each in certificates[:2]) or "none at all"
            raise ConnectionLost(
                f"whoever answers at {self.url} is not the controller that the CA pin is of: it has {others}; "
                "compare the pin with what 'sandd ca show' says there"
            )
        return write_certificates(ours)

    def _make_context(self, authorities: bytes | None) -> ssl.SSLContext:
        options = self.options
        if options.ca_file is not None:
            try:
                authorities = options.ca_file.read_bytes()
            except OSError as error:
                raise ConfigurationError(
                    f"can't read the CA file {options.ca_file}: {error.strerror}"
                ) from error
            if not read_certificates(authorities):
                raise ConfigurationError(
                    f"there is no certificate in the CA file {options.ca_file}"
                )
        return client_context(
            authorities=authorities,
            certificate_file=options.client_certificate,
            key_file=options.client_key,
        )

    # -- what was learned outlives the program; kept by the pin, so that another pin begins anew

    @property
    def _kept(self) -> Path | None:
        if self.directory is None:
            return None
        pins = "".join(str(pin) for pin in self.options.pins)
        return self.directory / f"controller-ca-{hashlib.sha256(pins.encode()).hexdigest()}.pem"

    def _read_kept(self) -> bytes:
        if self._kept is None:
            return b""
        try:
            with self._kept.open("rb") as file:
                bundle = file.read(MAX_BUNDLE_BYTES)
        except OSError:
            return b""
        return bundle if read_certificates(bundle) else b""

    def _keep(self, bundle: bytes) -> None:
        if self._kept is not None and self._read_kept() != bundle:
            try:
                replace_file(self._kept, bundle, mode=0o600)
            except OSError as error:
                log.warning("ca_not_kept", path=str(self._kept), error=str(error))
