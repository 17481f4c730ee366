"""Where no TLS is needed: on this very machine, by whatever name."""

from __future__ import annotations

import pytest

from sandd._core.tls.plain import is_loopback, leaves_in_the_clear


@pytest.mark.parametrize(
    ("host", "here"),
    [
        ("localhost", True),
        ("127.0.0.1", True),
        ("127.1.2.3", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("localhost.example", False),
        ("10.0.0.1", False),
        ("::ffff:10.0.0.1", False),
        ("::2", False),
        ("", False),
    ],
)
def test_what_is_this_machine(host: str, here: bool) -> None:
    """Only what can be no other: a token of this machine's is for nobody else."""
    assert is_loopback(host) is here


def test_what_others_could_read() -> None:
    """ws:// to anywhere but here."""
    assert leaves_in_the_clear("ws://controller:1/ws")
    assert leaves_in_the_clear("ws://127.0.0.1.example/")
    assert leaves_in_the_clear("WS://10.0.0.1")
    assert not leaves_in_the_clear("wss://controller:1/ws")
    assert not leaves_in_the_clear("ws://[::1]:1/ws")
