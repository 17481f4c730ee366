"""The command lines of ``sandd audit``. Imports neither trio nor attrs nor a controller."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from sandd.command_line.options import add_json_option

if TYPE_CHECKING:
    from collections.abc import Callable

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

_TIMES = "a time is 2026-01-31, 2026-01-31T12:00 (local, unless it says otherwise), or 90s, 30m, 12h, 7d: so long ago"


def add_audit_command(commands: Commands) -> None:
    """Enter the command, and those below it."""
    audit = commands.add_parser(
        "audit",
        help="read a controller's audit log, and see whether it is what was written",
        description="The audit log of a controller on this machine: who asked for what, and what became of it.",
        allow_abbrev=False,
    )
    below = audit.add_subparsers(dest="audit_command", metavar="COMMAND", required=True)
    _add_verify(below)
    _add_tail(below)
    _add_export(below)
    _add_key(below)


def _add_verify(commands: Commands) -> None:
    parser = _add(
        commands,
        "verify",
        _run_verify,
        help="see whether anything was changed, removed or cut off",
        description="Follow the chain of all lines, and check the signatures. The first line that isn't as it was "
        "written is named.",
        epilog="Whoever can write to the log can sign another one by a key of his own, so keep what 'sandd audit "
        "key' prints elsewhere, and the file 'head' now and then. exit code: 0 if all is as it was written; 1 if "
        "not; 125 if it can't be read",
    )
    parser.add_argument(
        "--key",
        metavar="KEY",
        help="the public key, or a file with it (default: that of the controller's key beside the log)",
    )
    parser.add_argument(
        "--head",
        metavar="FILE",
        help="an earlier copy of the log's file 'head', kept elsewhere: what it signs must be there",
    )
    parser.add_argument(
        "--first-segment",
        metavar="N",
        type=_read_count,
        default=1,
        help="the first file that has to be there: earlier ones were moved away (default: 1)",
    )
    parser.add_argument("--json", action="store_true", help="what was found as a line of JSON")


def _add_tail(commands: Commands) -> None:
    parser = _add(
        commands,
        "tail",
        _run_tail,
        help="show the latest records, and those to come",
        description="Show the latest records.",
    )
    parser.add_argument(
        "-n",
        "--lines",
        metavar="N",
        type=_read_count,
        default=10,
        help="how many (default: 10)",
    )
    parser.add_argument(
        "-f", "--follow", action="store_true", help="and those to come, until Ctrl-C"
    )
    _add_selection(parser)
    add_json_option(parser, "record")


def _add_export(commands: Commands) -> None:
    parser = _add(
        commands,
        "export",
        _run_export,
        help="put records out, as JSON or as a table for spreadsheets",
        description="Put out all records, or those that are chosen, the oldest first.",
        epilog=_TIMES,
    )
    parser.add_argument(
        "--format", choices=("jsonl", "csv"), default="jsonl", help="(default: jsonl)"
    )
    parser.add_argument("--since", metavar="TIME", type=_read_time, help="not before that")
    parser.add_argument("--until", metavar="TIME", type=_read_time, help="before that")
    _add_selection(parser)


def _add_key(commands: Commands) -> None:
    _add(
        commands,
        "key",
        _run_key,
        help="print the public key that the log's signatures are checked by",
        description="Print the public key, for whoever is to check the log elsewhere.",
    )


def _add(
    commands: Commands,
    name: str,
    run: Callable[[argparse.Namespace], int],
    *,
    help: str,
    description: str,
    epilog: str | None = None,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name, help=help, description=description, epilog=epilog, allow_abbrev=False
    )
    parser.add_argument(
        "directory",
        metavar="DIR",
        nargs="?",
        help="the log, or the state directory of the controller (default: that of your own on port 8765)",
    )
    parser.add_argument("--state-dir", metavar="DIR", help="the same, as the controller was told")
    parser.set_defaults(run=run)
    return parser


def _add_selection(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tenant", metavar="TENANT", help="only what is that tenant's")
    parser.add_argument(
        "--type",
        metavar="TYPE",
        action="append",
        dest="types",
        help="only records of that type, or about jobs of that kind (repeatable): request, end, session, upload, ...",
    )
    parser.add_argument("--daemon", metavar="DAEMON", help="only what is about that daemon")
    parser.add_argument("--job", metavar="ID", help="only what is about that job")


def _read_count(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and int(text) >= 1):
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 on")
    return int(text)


def _read_time(text: str) -> str:
    from sandd.auditing.selecting import BadTime, read_time

    try:
        return read_time(text)
    except BadTime as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _run_verify(options: argparse.Namespace) -> int:
    from sandd.auditing.commands import verify

    return verify(options)


def _run_tail(options: argparse.Namespace) -> int:
    from sandd.auditing.commands import tail

    return tail(options)


def _run_export(options: argparse.Namespace) -> int:
    from sandd.auditing.commands import export

    return export(options)


def _run_key(options: argparse.Namespace) -> int:
    from sandd.auditing.commands import print_key

    return print_key(options)
