"""Bytes on links, before TLS and WebSocket framing. Pure."""

from __future__ import annotations

from attrs import define


@define(eq=False)
class LinkBytes:
    """Of one kind of link, all that there ever were together."""

    received: int = 0
    sent: int = 0
