"""What a daemon and an operator answer to a controller's challenge: who they are, and their proof of it. No I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sandd import wire
from sandd._core.identity.proofs import sign
from sandd._core.link import read_challenge

if TYPE_CHECKING:
    from sandd._core.identity.proofs import Credential
    from sandd._core.link import Identity


def answer_challenge(
    said: wire.Control | wire.Unknown,
    identity: Identity,
    connection: int,
    credential: Credential | None,
    channel_binding: bytes = b"",
) -> wire.Hello:
    """The daemon's Hello; RemoteProtocolError if the controller didn't open with a usable Challenge."""
    challenge, version = read_challenge(said)
    hello = wire.Hello(
        version=version,
        daemon_id=identity.daemon_id,
        instance=identity.instance,
        connection=connection,
        hostname=identity.hostname,
        platform=identity.platform,
        arch=identity.arch,
        daemon_version=identity.daemon_version,
        labels=identity.labels,
        ancestors=identity.ancestors,
        isolation=identity.isolation,
        isolation_levels=identity.isolation_levels,
    )
    return sign(hello, challenge, credential, channel_binding)


def answer_as_operator(
    said: wire.Control | wire.Unknown,
    client: str,
    connection: int,
    name: str,
    credential: Credential | None,
    channel_binding: bytes = b"",
) -> wire.OperatorHello:
    """The operator's Hello; RemoteProtocolError if the controller didn't open with a usable Challenge."""
    challenge, version = read_challenge(said)
    hello = wire.OperatorHello(version, client, connection, name)
    return sign(hello, challenge, credential, channel_binding)
