"""The command lines of these commands. Imports neither trio nor a controller."""

from __future__ import annotations

import argparse
import math
import re
from typing import TYPE_CHECKING, Any, Final

from sandd.command_line.options import read_variable

if TYPE_CHECKING:
    from collections.abc import Callable

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

ROLES: Final = ("viewer", "runner", "admin")
VERBS: Final = ("list", "jobs", "read", "run", "end", "files", "write", "ports", "administer")
_UNITS: Final = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_TIME: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)([smhd]?)")
_ENDS: Final = (
    "exit code: 0 if all of it was done; 125 if not; 2 for a command line that means nothing"
)


def add_enrolling_commands(commands: Commands) -> None:
    """Enter them all."""
    token = commands.add_parser(
        "token",
        allow_abbrev=False,
        help="tokens by which daemons join and operators come in, on the controller's machine",
        description="Make, list and revoke tokens of a controller on this machine. It may run or not; "
        "one that runs takes notice within a second.",
    )
    inner = token.add_subparsers(dest="token_command", metavar="COMMAND", required=True)
    create = inner.add_parser("create", help="make a token", allow_abbrev=False)
    kinds = create.add_subparsers(dest="kind", metavar="KIND", required=True)
    _add_create_join(kinds)
    _add_create_operator(kinds)
    listing = _add(inner, "list", _run("run_list_tokens"), help="which there are")
    _add_json(listing, "token")
    _add_state_dir(listing)
    revoke = _add(
        inner,
        "revoke",
        _run("run_revoke"),
        help="let nobody in by a token any more",
        description="Revoke tokens. Operators who are here by one have to leave at once; daemons that have joined "
        "by one have keys of their own, and stay.",
        epilog=_ENDS,
    )
    revoke.add_argument("tokens", metavar="TOKEN", nargs="+", help="its id, as in the list")
    _add_json(revoke, "token")
    _add_state_dir(revoke)
    _add_daemons(commands)


def _add_create_join(kinds: Commands) -> None:
    parser = _add(
        kinds,
        "join",
        _run("run_create_join"),
        help="for daemons to join by",
        description="Make a token by which daemons join, and print it: put it into a file, and give that to the "
        "daemon (--token-file). Each gets a key of its own then, and needs the token no more.",
    )
    parser.add_argument("--name", metavar="NAME", help="what it is for, in the list")
    parser.add_argument(
        "--uses", metavar="N", type=_read_count, default=1, help="daemons (default: 1)"
    )
    parser.add_argument(
        "--daemons", metavar="GLOB", default="*", help="only for ids that match (default: all)"
    )
    parser.add_argument(
        *("-l", "--label"),
        metavar="K=V",
        dest="labels",
        type=read_variable,
        action="append",
        default=[],
        help="give them this label (repeatable)",
    )
    _add_common(parser, tenant="whose they are (default: default)", expires="15m")


def _add_create_operator(kinds: Commands) -> None:
    parser = _add(
        kinds,
        "operator",
        _run("run_create_operator"),
        help="for somebody who runs things, or looks on",
        description="Make a token for an operator, and print it: put it into a file that nobody else can read, and "
        "give that to the commands (--token-file).",
    )
    parser.add_argument(
        "name", metavar="NAME", help="whose it is: goes with all that is done by it"
    )
    parser.add_argument(
        "--role",
        choices=ROLES,
        default="viewer",
        help="viewer sees daemons, jobs and their output; runner does all that can be done on daemons; admin "
        "tokens as well (default: viewer)",
    )
    parser.add_argument(
        "--verbs",
        metavar="VERB,...",
        type=_read_verbs,
        help=f"of the role's rights only these: {', '.join(VERBS)}",
    )
    parser.add_argument(
        "--daemons", metavar="GLOB", default="*", help="only daemons whose ids match (default: all)"
    )
    _add_common(parser, tenant="whose daemons; '*': all (default: default)", expires=None)


def _add_daemons(commands: Commands) -> None:
    daemons = commands.add_parser(
        "daemons",
        allow_abbrev=False,
        help="daemons that have joined, on the controller's machine",
        description="List, lock and forget the daemons that have joined a controller on this machine. It may run or "
        "not; one that runs takes notice within a second.",
    )
    inner = daemons.add_subparsers(dest="change", metavar="COMMAND", required=True)
    listing = _add(inner, "list", _run("run_list_daemons"), help="which there are")
    _add_json(listing, "daemon")
    _add_state_dir(listing)
    for change, text in (
        ("lock", "let them in no more, until they are unlocked"),
        ("unlock", "let them in again: whoever comes first with a key of theirs"),
        ("forget", "let them in never again, and free their ids"),
    ):
        parser = _add(inner, change, _run("run_change_daemons"), help=text, epilog=_ENDS)
        parser.add_argument("daemons", metavar="DAEMON", nargs="+", help="its id, or TENANT/ID")
        _add_json(parser, "daemon")
        _add_state_dir(parser)


# ---- what several have ----------------------------------------------------------------------------


def _add(
    commands: Commands,
    name: str,
    run: Callable[[argparse.Namespace], int],
    **settings: Any,
) -> argparse.ArgumentParser:
    if "help" in settings:
        settings.setdefault("description", f"{settings['help'].capitalize()}.")
    parser = commands.add_parser(name, allow_abbrev=False, **settings)
    parser.set_defaults(run=run)
    return parser


def _add_common(parser: argparse.ArgumentParser, *, tenant: str, expires: str | None) -> None:
    parser.add_argument("--tenant", metavar="TENANT", default="default", help=tenant)
    parser.add_argument(
        "--expires",
        metavar="TIME",
        type=_read_time,
        default=None if expires is None else _read_time(expires),
        help=f"how long it is valid: 30s, 15m, 8h, 90d, or never (default: {expires or 'never'})",
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        help="write it to this new file, for its owner alone, and print nothing",
    )
    _add_json(parser, "token")
    _add_state_dir(parser)


def _add_json(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument(
        "--json", action="store_true", help=f"one line of JSON on stdout for each {what}"
    )


def _add_state_dir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--state-dir",
        metavar="DIR",
        help="the controller's (default: $SANDD_CONTROLLER_STATE_DIR, or that of your own controller on port 8765)",
    )


def _read_time(text: str) -> float | None:
    if text == "never":
        return None
    match = _TIME.fullmatch(text)
    seconds = math.nan if match is None else float(match[1]) * _UNITS[match[2]]
    if not 0 < seconds < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is no time: 30s, 15m, 8h, 90d or never")
    return seconds


def _read_count(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and 0 < int(text) <= 1_000_000):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of daemons: 1 to 1,000,000")
    return int(text)


def _read_verbs(text: str) -> list[str]:
    verbs = [verb.strip() for verb in text.split(",") if verb.strip()]
    for verb in verbs:
        if verb not in VERBS:
            raise argparse.ArgumentTypeError(f"{verb!r} is none of {', '.join(VERBS)}")
    return verbs


def _run(name: str) -> Callable[[argparse.Namespace], int]:
    """The function of that name, imported when it is called."""

    def run(options: argparse.Namespace) -> int:
        from sandd.enrolling import commands

        code: int = getattr(commands, name)(options)
        return code

    return run
