"""The command line of ``sandd forward``. Imports neither trio nor attrs nor a controller."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from sandd.command_line.options import (
    add_controller_options,
    add_local_option,
    add_wait_option,
)

if TYPE_CHECKING:
    from sandd.forwarding.targets import Forward

_EPILOG = """\
Each target is [LOCAL:]HOST:PORT: who connects to LOCAL here talks to HOST:PORT, as the daemon's machine knows
it. LOCAL is a port, or HOST:PORT; without it any port of 127.0.0.1 that is free. A port alone is one of
127.0.0.1; an IPv6 address stands in brackets; for either end unix:PATH is a Unix socket. With -R the first part is
where the daemon's side listens, and the second is here:

  sandd forward worker-1 8080:127.0.0.1:80 5432:db.internal:5432
  sandd forward worker-1 unix:/tmp/docker.sock:unix:/var/run/docker.sock
  sandd forward -R worker-1 9000:localhost:3000

Whoever reaches the listening end reaches the other one, and needs no credential for it.

exit code:
  128+N when signal N ended it: 130 after Ctrl-C; 2 for a command line that means nothing;
  125 if sandd failed, if there is no listening there, or no such daemon
"""


def add_forward_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Enter the command."""
    parser = commands.add_parser(
        "forward",
        help="reach ports on a daemon's side from here, or the other way round",
        usage="sandd forward [options] DAEMON [LOCAL:]HOST:PORT ...",
        description="Forward ports until Ctrl-C. Connections through them survive lost connections to the "
        "controller and the daemon.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("daemon", metavar="DAEMON", help="id of the daemon")
    parser.add_argument(
        "targets", metavar="TARGET", nargs="+", type=_target, help="[LOCAL:]HOST:PORT; see below"
    )
    parser.add_argument(
        "-R", "--reverse", action="store_true", help="listen on the daemon's side, and lead here"
    )
    parser.add_argument(
        "-q",
        "--quiet",
        action="store_true",
        help="on stderr only what went wrong: no notices",
    )
    add_local_option(parser, "command")
    add_wait_option(parser)
    add_controller_options(parser)
    parser.set_defaults(run=_run)


def _target(text: str) -> Forward:
    from sandd.forwarding.targets import BadTarget, Forward  # late: attrs is for who forwards

    try:
        return Forward.parse(text)
    except BadTarget as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _run(options: argparse.Namespace) -> int:
    from sandd.forwarding.forward import run_forward

    return run_forward(options)
