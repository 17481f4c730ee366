"""What is answered to a request for a figure: which page it is for, who may have it, or why it has none. Pure.

``/metrics`` is for who has the token, where there is one. ``/healthz`` and ``/readyz`` are for whoever asks, as an
orchestrator's probes have no secrets; but only who may have all is told why.
"""

from __future__ import annotations

import enum
import hmac
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from attrs import field, frozen

from sandd._core._errors import ConfigurationError
from sandd._core.tls.plain import is_loopback

if TYPE_CHECKING:
    from collections.abc import Iterable

TEXT: Final = "text/plain; charset=utf-8"


class Page(enum.Enum):
    """One that there is, by its path."""

    METRICS = b"/metrics"
    HEALTH = b"/healthz"
    READINESS = b"/readyz"


@frozen
class Wanted:
    """What a request may have."""

    page: Page
    is_trusted: bool
    """Who asks may have all that is on it."""


@frozen
class Answer:
    """A response, without what each has."""

    status: int
    body: bytes
    content_type: str = TEXT
    headers: tuple[tuple[str, str], ...] = ()


@frozen
class MetricsAddress:
    """Where figures are to be had, and by whom."""

    host: str
    port: int
    token: bytes | None = field(default=None, repr=False)
    """What who asks for figures has to know; None: it has to be on this machine."""

    def __str__(self) -> str:
        """``HOST:PORT``."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def judge(
        self, method: bytes, target: bytes, headers: Iterable[tuple[bytes, bytes]]
    ) -> Wanted | Answer:
        """What the request is to have, or the answer that it has none."""
        said: dict[bytes, bytes] = {}
        for name, value in headers:
            if name in (b"host", b"authorization"):
                said.setdefault(name, value)
        if self.token is None and not _names_this_machine(said.get(b"host", b"")):
            # A page in somebody's browser, whose name leads here: it is not the program it seems to be.
            return Answer(403, b"this is for programs on this machine, by an address of loopback\n")
        path = target.partition(b"?")[0]
        try:
            page = Page(path)
        except ValueError:
            return Answer(404, b"there are /metrics, /healthz and /readyz\n")
        if method not in (b"GET", b"HEAD"):
            text = b"only GET and HEAD can be asked for\n"
            return Answer(405, text, headers=(("Allow", "GET, HEAD"),))
        is_trusted = self.token is None or _knows(said.get(b"authorization", b""), self.token)
        if page is Page.METRICS and not is_trusted:
            text = b"this needs the token of --metrics-token-file, as 'Authorization: Bearer ...'\n"
            return Answer(401, text, headers=(("WWW-Authenticate", 'Bearer realm="sandd"'),))
        return Wanted(page, is_trusted)


def read_metrics_address(text: str, token: bytes | None = None, *, option: str) -> MetricsAddress:
    """From ``HOST:PORT``.

    Raises:
        ConfigurationError: it is none; or other machines would reach it, and there is no token.
    """
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or port is None or parts.path or parts.query or parts.username is not None:
        raise ConfigurationError(f"{option} {text!r} is not HOST:PORT, such as 127.0.0.1:9464")
    if token is None and not is_loopback(host):
        raise ConfigurationError(
            f"{option} {text!r} can be reached by other machines: give it a token "
            "(--metrics-token-file, metrics_token=...), or an address of loopback"
        )
    return MetricsAddress(host, port, token)


def _names_this_machine(host: bytes) -> bool:
    try:
        return is_loopback(urlsplit(f"//{host.decode('ascii')}").hostname or "")
    except ValueError:
        return False


def _knows(authorization: bytes, token: bytes) -> bool:
    scheme, _, given = authorization.partition(b" ")
    return hmac.compare_digest(given.strip(), token) and scheme.lower() == b"bearer"


def health(wanted: Wanted, problem: str | None) -> Answer:
    """Of ``/healthz`` and ``/readyz``: 200, or 503 with what is wrong."""
    if problem is None:
        return Answer(200, b"ok\n")
    said = f"not ready: {problem}\n" if wanted.is_trusted else "not ready\n"
    return Answer(503, said.encode("utf-8", "replace"))
