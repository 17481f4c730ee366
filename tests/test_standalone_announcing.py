"""What a controller says of itself, and of who can come to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sandd._core.controller_options import ControllerOptions
from sandd.standalone.announcing import Announcement

REFUSED = (
    "daemons of other machines need a token to join, which 'sandd token create join' makes, or one that all share "
    "(--token-file)"
)

IN_THE_CLEAR = (
    "other machines dial it by wss:// only: --tls auto, a certificate, or a proxy that ends TLS"
)


def announce(*, join_token_file: Path | None = None, **options: Any) -> str:
    """What it says that was given these options."""
    given = ControllerOptions(**options)
    url = f"ws://127.0.0.1:{given.port}/ws"
    return str(Announcement.of(url, given, None, join_token_file=join_token_file))


def test_what_to_type_is_told() -> None:
    """With what a daemon and a command can't find by themselves, and nothing else."""
    assert announce() == (
        "sandd: a controller at ws://127.0.0.1:8765/ws\n"
        "  a daemon:     sandd daemon --server-url ws://127.0.0.1:8765/ws --daemon-id worker-1\n"
        "  who is there: sandd ps"
    )
    said = announce(port=1, token_file=Path("/a b"), token=b"x")
    assert "--daemon-id worker-1 --token-file '/a b'\n" in said
    assert said.endswith("sandd ps --controller ws://127.0.0.1:1")


@pytest.mark.parametrize(
    ("options", "is_told"),
    [
        pytest.param({}, False, id="loopback"),
        pytest.param({"host": "::1"}, False, id="loopback-6"),
        pytest.param({"host": "localhost"}, False, id="loopback-name"),
        pytest.param({"host": "0.0.0.0"}, True, id="everywhere"),
        pytest.param({"host": "::"}, True, id="everywhere-6"),
        pytest.param({"host": "10.1.2.3"}, True, id="one-address"),
        pytest.param({"host": "0.0.0.0", "token": b"x"}, False, id="token"),
        pytest.param({"host": "0.0.0.0", "insecure": True}, False, id="insecure"),
        pytest.param({"host": "0.0.0.0", "join_token_file": Path("/t")}, False, id="join-token"),
    ],
)
def test_whoever_listens_to_strangers_is_told_that_they_are_refused(
    options: dict[str, Any], is_told: bool
) -> None:
    """And what lets them in: else the only word of it is in the logs of those who are refused."""
    assert (REFUSED in announce(**options)) is is_told


def test_other_machines_have_another_name_for_it() -> None:
    """The URL has an address that is theirs as well."""
    hint = "ws://127.0.0.1:8765/ws, elsewhere with this machine's name in the URL"
    assert hint in announce(host="0.0.0.0")
    assert hint not in announce()


@pytest.mark.parametrize("host", ["0.0.0.0", "10.1.2.3"])
def test_other_machines_do_not_dial_it_without_tls(host: str) -> None:
    """Their daemons would say so; who starts the controller hears of it before."""
    assert IN_THE_CLEAR in announce(host=host)
    assert IN_THE_CLEAR not in announce(host=host, insecure=True)
    assert IN_THE_CLEAR not in announce(host=host, tls="auto")
    assert IN_THE_CLEAR not in announce()
