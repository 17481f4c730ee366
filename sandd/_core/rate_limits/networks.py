"""Whose address is whose: the network that one party is taken to have all of."""

from __future__ import annotations

import functools
from ipaddress import IPv6Address, IPv6Network, ip_address
from typing import Final

IPV6_PREFIX: Final = 64
"""Bits. A host chooses the rest as it likes (RFC 4291 s. 2.5.1), so all of it is one machine's, or one customer's."""


@functools.lru_cache(1024)
def network_of(host: str) -> str:
    """The key under which what an address does is counted: itself, or its /64 with IPv6.

    An IPv4 address that is mapped into IPv6, as a listener for both sees it, counts as what it is. What is no
    address at all is a key by itself. Link-local addresses of two zones are two networks.
    """
    plain, _, zone = host.partition("%")
    try:
        address = ip_address(plain)
    except ValueError:
        return host
    if not isinstance(address, IPv6Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    network = str(IPv6Network((address, IPV6_PREFIX), strict=False))
    return f"{network}%{zone}" if zone else network
