"""`TrustOptions`: what somebody who dials a controller was told of it. No I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

from sandd._core._errors import ConfigurationError

if TYPE_CHECKING:
    from pathlib import Path

    from sandd._core.tls.pins import Pin


@frozen
class TrustOptions:
    """By what the controller is known, and what is presented to it. All empty: by the CAs of this system."""

    pins: tuple[Pin, ...] = ()
    ca_file: Path | None = None
    """Its CAs, in PEM."""
    client_certificate: Path | None = None
    client_key: Path | None = None
    """None: in the same file."""

    def __attrs_post_init__(self) -> None:
        if self.pins and self.ca_file is not None:
            raise ConfigurationError("there is a CA pin and a CA file; only one of the two can be")
        if self.client_key is not None and self.client_certificate is None:
            raise ConfigurationError("there is a client key without a client certificate")

    @property
    def is_empty(self) -> bool:
        """Nothing was said."""
        return self == TrustOptions()
