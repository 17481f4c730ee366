"""Both ends of TLS in memory, and CAs, for the tests of TLS."""

from __future__ import annotations

import ssl
import time
from typing import TYPE_CHECKING, Any, Final

import pytest

import sandd
from sandd._core.tls import authority

if TYPE_CHECKING:
    from pathlib import Path

    from sandd._core.tls.key_pair import KeyPair

NAMES: Final = ("localhost", "127.0.0.1", "::1")


async def why_unreachable(url: str, **options: Any) -> str:
    """What whoever dials this controller is told in the end: in half a second, or as late as a busy machine has it."""
    for patience in (0.5, 2.0, 8.0, 30.0):
        with pytest.raises(sandd.ControllerUnreachable) as caught:
            async with sandd.connect_controller(url, connect_timeout=patience, **options):
                pass
        if "it does not answer" not in str(caught.value):
            break
    return str(caught.value)


def pem_of(pair: KeyPair) -> bytes:
    """Its certificate, for who is to trust it."""
    return pair.certificate.encode()


def write_pair(pair: KeyPair, directory: Path, name: str = "pair.pem") -> Path:
    """A file with both."""
    path = directory / name
    path.write_bytes(pair.pem)
    return path


def server_pair(
    ca: KeyPair, *, names: tuple[str, ...] = NAMES, now: float | None = None
) -> KeyPair:
    """A server's certificate."""
    return authority.issue_server(ca, names, time.time() if now is None else now)


def strict_client(ca: KeyPair | None, **settings: object) -> ssl.SSLContext:
    """A client that follows the letter of the standard, and trusts this CA alone."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    if ca is not None:
        context.load_verify_locations(cadata=ca.certificate)
    for name, value in settings.items():
        setattr(context, name, value)
    return context


def shake_hands(
    client_context: ssl.SSLContext, server_context: ssl.SSLContext, host: str = "localhost"
) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """The two ends after their handshake; ssl.SSLError of whoever refused first."""
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context.wrap_bio(to_client, to_server, server_hostname=host)
    server = server_context.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(4):
        for end in (client, server):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    return client, server
