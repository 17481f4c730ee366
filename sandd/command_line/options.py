"""The options that commands share. Imports neither trio nor a controller."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sandd._core.limits import Limits
    from sandd.command_line.choosing import JobName

CONTROLLER_VARIABLE = "SANDD_CONTROLLER"
CA_PIN_VARIABLE = "SANDD_CA_PIN"
CA_FILE_VARIABLE = "SANDD_CA_FILE"
CLIENT_CERT_VARIABLE = "SANDD_CLIENT_CERT"
CLIENT_KEY_VARIABLE = "SANDD_CLIENT_KEY"
INSECURE_VARIABLE = "SANDD_INSECURE"
TOKEN_FILE_VARIABLE = "SANDD_OPERATOR_TOKEN_FILE"  # noqa: S105 - the name of a variable, and no secret
"""Not SANDD_TOKEN_FILE: that is a daemon's, whose secret is another, and which may have the same environment."""
DEFAULT_CONTROLLER = "ws://127.0.0.1:8765"
LOCAL_ID = "local"
"""Of the daemon that ``--local`` starts, where nobody names it."""


def add_controller_options(parser: argparse.ArgumentParser) -> None:
    """Which controller is asked, and what it has to be told for that."""
    group = parser.add_argument_group("the controller")
    # No defaults here: what the environment says is looked at when the command runs, and told as what it is.
    group.add_argument(
        "--controller",
        metavar="URL",
        help=f"where it is (default: ${CONTROLLER_VARIABLE}, or {DEFAULT_CONTROLLER})",
    )
    group.add_argument(
        "--token-file",
        metavar="FILE",
        help=f"file with the secret for its operators (default: ${TOKEN_FILE_VARIABLE}, or that of "
        "your own controller on this machine)",
    )
    group.add_argument(
        "--ca-pin",
        metavar="PIN",
        help=f"sha256:HEX of its CA certificate, for a wss:// URL (default: ${CA_PIN_VARIABLE}, or that "
        "of your own controller on this machine)",
    )
    group.add_argument(
        "--ca-file",
        metavar="FILE",
        help=f"CA certificates to trust instead, in PEM (default: ${CA_FILE_VARIABLE}, or those of this system)",
    )
    group.add_argument(
        "--client-cert",
        metavar="FILE",
        help=f"certificate to show to it, if it asks for one (default: ${CLIENT_CERT_VARIABLE})",
    )
    group.add_argument(
        "--client-key",
        metavar="FILE",
        help=f"its key (default: ${CLIENT_KEY_VARIABLE}, or in the same file)",
    )
    group.add_argument(
        "--insecure",
        action="store_true",
        help=f"go to another machine without TLS, where others may read all of it (or ${INSECURE_VARIABLE}=1)",
    )


def add_wait_option(parser: argparse.ArgumentParser) -> None:
    """``--wait``, for commands that are about one daemon."""
    parser.add_argument(
        "--wait",
        metavar="SECONDS",
        type=read_seconds,
        help="how long to wait for a daemon that isn't there (default: not at all for one that the controller "
        "doesn't know, and as long as it takes for one that is away; that is told)",
    )


def add_local_option(parser: argparse.ArgumentParser, what: str) -> None:
    """``--local``, for commands that can start the daemon themselves; `what` takes as long as it lives."""
    parser.add_argument(
        "--local",
        action="store_true",
        help=f"start a controller and the daemon on this machine, for as long as the {what} takes",
    )


def add_json_option(parser: argparse.ArgumentParser, what: str) -> None:
    """``--json``, for commands that print a table; `what` is in each of its rows."""
    parser.add_argument(
        "--json", action="store_true", help=f"one line of JSON on stdout for each {what}"
    )


def add_process_options(parser: argparse.ArgumentParser) -> None:
    """``-e``, ``-w`` and ``-u``, for commands that begin a process on a daemon."""
    parser.add_argument(
        "-e",
        "--env",
        metavar="K=V",
        type=read_variable,
        action="append",
        default=[],
        help="set a variable there (repeatable)",
    )
    parser.add_argument("-w", "--cwd", metavar="DIR", help="working directory there")
    parser.add_argument("-u", "--user", metavar="USER", help="user to run as there")
    parser.add_argument(
        "--isolation",
        choices=("none", "user", "landlock", "bwrap"),
        help="keep it apart there at least so (default: as the daemon says)",
    )


def add_limit_options(parser: argparse.ArgumentParser) -> None:
    """``--limit`` and ``--require-limits``, for commands that begin a process on a daemon."""
    parser.add_argument(
        "--limit",
        metavar="KEY=VALUE",
        type=read_limit,
        action="append",
        default=[],
        help="what it may use there, as in memory=64M, processes=50 or cpu_seconds=10 (repeatable); the daemon may "
        "allow less",
    )
    parser.add_argument(
        "--require-limits",
        action="store_true",
        help="begin nothing if a limit can't be held there",
    )


def add_job_argument(parser: argparse.ArgumentParser, *, several: bool = False) -> None:
    """JOB, or with `several` one or more of them, for commands that are about jobs."""
    parser.add_argument(
        "jobs" if several else "job",
        metavar="JOB",
        type=read_job_name,
        nargs="+" if several else None,
        help="DAEMON/ID; of the id, and without DAEMON/ too, a unique beginning is enough",
    )


def read_time_limit(text: str) -> float:
    """A number of seconds above 0; argparse says what is wrong with any other text."""
    seconds = read_seconds(text)
    if seconds == 0:
        raise argparse.ArgumentTypeError(
            "0 is no time at all; without the option there is no limit"
        )
    return seconds


def read_job_name(text: str) -> JobName:
    """``DAEMON/ID``, or the beginning of an id; argparse says what is wrong with any other text."""
    from sandd.command_line.choosing import (
        JobName,
    )  # late: what it imports is for who looks for a job

    try:
        return JobName.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def read_seconds(text: str) -> float:
    """A number of seconds, 0 or more; argparse says what is wrong with any other text."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not seconds >= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds")
    return seconds


def read_limit(text: str) -> Limits:
    """``KEY=VALUE``; argparse says what is wrong with any other text."""
    from sandd._core.limits import read_limits  # late: mostly nobody says a limit

    try:
        return read_limits([text], option="the limit")
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def limits_of(options: argparse.Namespace) -> Limits | None:
    """All that were said, of each the least; None: none."""
    return type(options.limit[0]).least(*options.limit) if options.limit else None


def read_variable(text: str) -> tuple[str, str]:
    """``K=V``; argparse says what is wrong with any other text."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not K=V")
    return name, value
