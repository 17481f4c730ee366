"""Where a connection without TLS is as good: on this machine. No I/O."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit


def is_loopback(host: str) -> bool:
    """A name or an address of this machine, which no other machine can have."""
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def leaves_in_the_clear(url: str) -> bool:
    """Whether what is sent to this URL can be read, and answered, by whoever is on the way."""
    parts = urlsplit(url)
    return parts.scheme == "ws" and not is_loopback(parts.hostname or "")
