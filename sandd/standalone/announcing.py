"""What a controller says once it is ready: where it is, and what to type to come to it. No I/O."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit

from attrs import frozen

from sandd._core.controller_options import DEFAULT_HOST, DEFAULT_PORT
from sandd._core.tls.plain import is_loopback

if TYPE_CHECKING:
    from pathlib import Path

    from sandd._core.controller_options import ControllerOptions

EVERY_ADDRESS = ("0.0.0.0", "::")  # noqa: S104 - compared, not bound


@frozen
class Announcement:
    """Where a controller is, and how to reach it."""

    url: str
    """For daemons."""
    daemon_command: str
    """A line for a shell."""
    operator_command: str
    bootstrap_line: str
    """Another, for where there is no daemon yet, and only Python; empty where none is handed out."""
    elsewhere: bool
    """Other machines reach it, too: by this machine's name, not by the address in the URL."""
    refuses_strangers: bool
    """Other machines reach it, and nobody has said yet how their daemons show that they belong here."""
    is_in_the_clear: bool
    """Other machines reach it, and refuse to dial what they can't know."""

    @classmethod
    def of(
        cls,
        url: str,
        options: ControllerOptions,
        operator_token_file: Path | None,
        *,
        join_token_file: Path | None = None,
        ca_pin: str | None = None,
        bootstrap_command: str | None = None,
    ) -> Self:
        """What there is to say of the controller at `url`.

        Args:
            url: its own, for daemons.
            options: what it was told.
            operator_token_file: what a command has to be told; None: it finds the token by itself, and the CA.
            join_token_file: what a daemon has to be given to join; None: it needs nothing, or what they share.
            ca_pin: of its own CA, if it has one.
            bootstrap_command: what fetches the script that it hands out, if it does.
        """
        daemon = ["sandd", "daemon", "--server-url", url, "--daemon-id", "worker-1"]
        if ca_pin is not None:
            daemon += ["--ca-pin", ca_pin]
        daemon_token_file = join_token_file or options.token_file
        if daemon_token_file is not None:
            daemon += ["--token-file", str(daemon_token_file.absolute())]
        parts = urlsplit(url)
        operator = ["sandd", "ps"]
        # Where the CA is the user's own, nothing tells a command that there is TLS.
        is_default = parts.netloc == f"{DEFAULT_HOST}:{DEFAULT_PORT}"
        if not is_default or (parts.scheme == "wss" and (ca_pin is None or operator_token_file)):
            operator += ["--controller", f"{parts.scheme}://{parts.netloc}"]
        if ca_pin is not None and operator_token_file is not None:
            operator += ["--ca-pin", ca_pin]
        if operator_token_file is not None:
            operator += ["--token-file", str(operator_token_file.absolute())]
        elsewhere = options.host in EVERY_ADDRESS
        is_here = not elsewhere and is_loopback(options.host)
        return cls(
            url,
            shlex.join(daemon),
            shlex.join(operator),
            _bootstrap_line(bootstrap_command, daemon_token_file),
            elsewhere,
            refuses_strangers=not (
                is_here or options.insecure or daemon_token_file or options.token
            ),
            is_in_the_clear=not (is_here or options.insecure or options.tls),
        )

    def __str__(self) -> str:
        """For a person, in a few lines."""
        hint = ", elsewhere with this machine's name in the URL" if self.elsewhere else ""
        if self.refuses_strangers:
            hint += (
                "\n  daemons of other machines need a token to join, which 'sandd token create join' makes, "
                "or one that all share (--token-file)"
            )
        if self.is_in_the_clear:
            hint += "\n  other machines dial it by wss:// only: --tls auto, a certificate, or a proxy that ends TLS"
        fresh = f"  a fresh one:  {self.bootstrap_line}\n" if self.bootstrap_line else ""
        return (
            f"sandd: a controller at {self.url}{hint}\n"
            f"  a daemon:     {self.daemon_command}\n{fresh}"
            f"  who is there: {self.operator_command}"
        )


def _bootstrap_line(command: str | None, token_file: Path | None) -> str:
    """Fetch, and run. The token goes by the environment: whoever lists processes, or reads this line, has it not."""
    if command is None:
        return ""
    given = ""
    if token_file is not None:
        given = f'SANDD_TOKEN="$(cat {shlex.quote(str(token_file.absolute()))})" '
    return f"{command} | {given}sh -s -- --daemon-id worker-1"
