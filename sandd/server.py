"""The controller for programs that don't use trio: `Server`, every method of which simply blocks.

::

    with sandd.Server("0.0.0.0", 8765) as server:
        server.wait_for_daemon("worker-1", timeout=30)
        print(server.exec("worker-1", "hostname").stdout)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

from sandd.client import Client
from sandd.controller import open_controller

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence
    from typing import Unpack

    from sandd._core.audit.options import AuditOptions
    from sandd._core.tls.contexts import ClientCertificates
    from sandd.controller import RateLimits, Tls

__all__ = ["Server"]


class ServerOptions(TypedDict, total=False):
    """Keyword arguments of `open_controller`."""

    config: str | os.PathLike[str] | None
    token: str | bytes | None
    operator_token: str | bytes | None
    state_dir: str | os.PathLike[str] | None
    policy: str | os.PathLike[str] | None
    tls: Tls
    tls_names: Sequence[str]
    client_certificates: ClientCertificates
    insecure: bool
    heartbeat: float
    dead_after: float
    max_handshakes_per_second: float
    audit: bool | AuditOptions
    rate_limits: RateLimits | None
    metrics: str | None
    metrics_token: str | bytes | None
    bootstrap: bool


class _Where(TypedDict, total=False):
    """What was said of the address."""

    host: str
    port: int


class Server(Client):
    """A controller that daemons dial in to, for synchronous code.

    It listens as soon as it is made; all else it can do is what a `Client` can.

    Without a `token` only daemons on this machine (loopback) may register, whatever `host` is.

    Args:
        host: address to listen on; "0.0.0.0" or "::" for all. None: what `config` says, or "127.0.0.1".
        port: TCP port; 0 takes a free one, see `address`. None: what `config` says, or 8765.
        options: as for `open_controller`: `config`, `token`, `operator_token`, `state_dir`, `policy`, `tls`,
            `tls_names`, `client_certificates`, `insecure`, `heartbeat`, `dead_after`, `max_handshakes_per_second`,
            `rate_limits`, `audit`, `metrics`, `metrics_token`, `bootstrap`.

    Raises:
        OSError: the address can't be listened on.
        ConfigurationError: an argument makes no sense.
    """

    def __init__(
        self, host: str | None = None, port: int | None = None, **options: Unpack[ServerOptions]
    ) -> None:
        where = _Where()
        if host is not None:
            where["host"] = host
        if port is not None:
            where["port"] = port
        self._open(lambda: open_controller(**where, **options), "sandd.Server")
