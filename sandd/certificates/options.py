"""The command lines of ``sandd ca``. Imports neither trio nor a controller."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from sandd.command_line.options import add_json_option

if TYPE_CHECKING:
    from collections.abc import Callable

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

STATE_DIR_VARIABLE = "SANDD_CONTROLLER_STATE_DIR"
LONGEST_DAYS = 3650
"""A CA's life; nothing outlives it."""
_ENDS = "exit code: 0 if it was done; 125 if not; 2 for a command line that means nothing"


def add_ca_command(commands: Commands) -> None:
    """Enter it."""
    parser = commands.add_parser(
        "ca",
        help="the certificates of a controller with --tls auto: show, rotate, issue",
        description="Look after the CA that is in a controller's state directory, on the controller's machine.",
        allow_abbrev=False,
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", title="actions", required=True)
    show = _add(
        actions,
        "show",
        _run_show,
        help="the pin that daemons need, and how long certificates last",
        description="Show the CA, or in a rotation both, with their pins, and the certificate that is served by.",
    )
    add_json_option(show, "certificate")
    rotate = _add(
        actions,
        "rotate",
        _run_rotate,
        help="replace the CA, in three steps",
        description="Take the next of three steps: make a new CA that peers learn of; have it sign; drop the old "
        "one. Each time it says what comes next. Peers that are connected, or come within the day, lose nothing.",
    )
    rotate.add_argument(
        "--now",
        action="store_true",
        help="don't wait for a day after the step before: peers that haven't been there since then are locked out",
    )
    issue = _add(
        actions,
        "issue",
        _run_issue,
        help="a certificate for a daemon or an operator, for --client-certificates",
        description="Make a certificate, with its key, for one who dials in: --client-cert.",
    )
    issue.add_argument("kind", choices=["daemon", "operator"], help="whose it is")
    issue.add_argument(
        "name",
        metavar="NAME",
        help="the daemon's name or uid (sandd daemons list --json), or the operator's name",
    )
    issue.add_argument(
        "--out", metavar="FILE", required=True, help="where to put it; readable by you alone"
    )
    issue.add_argument(
        "--force", action="store_true", help="replace the file, if there is one of that name"
    )
    issue.add_argument(
        "--days", metavar="N", type=_days, default=90, help="how long it lasts (default: 90)"
    )


def _add(
    actions: Commands,
    name: str,
    run: Callable[[argparse.Namespace], int],
    *,
    help: str,
    description: str,
) -> argparse.ArgumentParser:
    parser = actions.add_parser(
        name, help=help, description=description, epilog=_ENDS, allow_abbrev=False
    )
    parser.add_argument(
        "--state-dir",
        metavar="DIR",
        help=f"the controller's (default: ${STATE_DIR_VARIABLE}, or that of your own controller on port 8765)",
    )
    parser.set_defaults(run=run)
    return parser


def _days(text: str) -> int:
    days = int(text) if text.isascii() and text.isdecimal() and len(text) < 6 else 0
    if not 1 <= days <= LONGEST_DAYS:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of days from 1 to {LONGEST_DAYS}")
    return days


def _run_show(options: argparse.Namespace) -> int:
    from sandd.certificates.commands import run_show

    return run_show(options)


def _run_rotate(options: argparse.Namespace) -> int:
    from sandd.certificates.commands import run_rotate

    return run_rotate(options)


def _run_issue(options: argparse.Namespace) -> int:
    from sandd.certificates.commands import run_issue

    return run_issue(options)
