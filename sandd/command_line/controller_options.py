"""The options of a command that is its own controller. Imports neither trio nor a controller."""

from __future__ import annotations

import argparse
import math


def add_controller_options(parser: argparse.ArgumentParser) -> None:
    """Where to listen for the daemon, and for how long."""
    group = parser.add_argument_group("where to listen for the daemon")
    group.add_argument(
        "--host", default="127.0.0.1", help="address (default: 127.0.0.1; others need a token)"
    )
    group.add_argument(
        "--port",
        type=read_port,
        default=None,
        help="TCP port (default: 8765; with --local a free one)",
    )
    group.add_argument(
        "--token-file",
        metavar="FILE",
        help="file with the secret that the daemon has to know; without it daemons of this machine only",
    )
    group.add_argument(
        "--wait",
        metavar="SECONDS",
        type=_seconds,
        default=math.inf,
        help="how long to wait for the daemon to dial in (default: for ever)",
    )


def add_local_option(parser: argparse.ArgumentParser, what: str) -> None:
    """``--local``, for commands that can start the daemon themselves; `what` takes as long as it lives."""
    parser.add_argument(
        "--local",
        action="store_true",
        help=f"start the daemon on this machine, for as long as the {what} takes",
    )


def read_port(text: str) -> int:
    """A TCP port; argparse says what is wrong with any other text."""
    number = int(text) if text.isascii() and text.isdecimal() else -1
    if not 0 <= number <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no TCP port: 0 to 65535")
    return number


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not seconds >= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds")
    return seconds
