"""Asks for figures as a recorder does, over a socket of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import h11
import trio
from attrs import frozen
from peers import receive_all
from prometheus_client.parser import text_string_to_metric_families

if TYPE_CHECKING:
    from collections.abc import Iterable


@frozen
class Response:
    """What came."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def samples(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        """Values by name and labels, as Prometheus' own parser finds them; each series once."""
        found: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
        for family in text_string_to_metric_families(self.body.decode()):
            for sample in family.samples:
                key = (sample.name, frozenset(sample.labels.items()))
                assert key not in found
                found[key] = sample.value
        return found

    def value(self, name: str, **labels: str) -> float | None:
        """Of one series; None if there is no such."""
        return self.samples.get((name, frozenset(labels.items())))


async def connect(address: str) -> trio.SocketStream:
    """A connection to ``HOST:PORT``."""
    host, _, port = address.rpartition(":")
    return await trio.open_tcp_stream(host.strip("[]"), int(port))


async def ask(
    address: str,
    path: str = "/metrics",
    *,
    method: str = "GET",
    headers: Iterable[tuple[str, str]] = (),
) -> Response:
    """One request, to the end of its connection."""
    http = h11.Connection(h11.CLIENT)
    async with await connect(address) as stream:
        request = h11.Request(method=method, target=path, headers=[("Host", address), *headers])
        await stream.send_all((http.send(request) or b"") + (http.send(h11.EndOfMessage()) or b""))
        http.receive_data(await receive_all(stream))
        http.receive_data(b"")
    response, body = http.next_event(), b""
    assert isinstance(response, h11.Response)
    while isinstance(event := http.next_event(), h11.Data):
        body += event.data
    assert isinstance(event, h11.EndOfMessage)
    said = {name.decode(): value.decode() for name, value in response.headers}
    return Response(response.status_code, said, body)
