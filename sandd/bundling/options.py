"""The command line of ``sandd bundle``. Imports neither trio nor a controller."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

DEFAULT_OUTPUT = "sandd-daemon.pyz"


def add_bundle_command(commands: Commands) -> None:
    """Enter it."""
    parser = commands.add_parser(
        "bundle",
        help="make the daemon a single file, which needs nothing but Python",
        description="Put the daemon, and all that it needs of the packages installed here, into one file: "
        "'python3 -I sandd-daemon.pyz --server-url ...' runs it wherever there is Python 3.11 or later, but not on "
        "Windows. It takes a few seconds. What is told is the file's SHA-256 and its name.",
        epilog="exit code: 0 if it was done; 125 if not; 2 for a command line that means nothing",
        allow_abbrev=False,
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        default=DEFAULT_OUTPUT,
        help=f"where to put it (default: {DEFAULT_OUTPUT})",
    )
    parser.add_argument(
        "--bytecode",
        action="store_true",
        help="carry bytecode for this version of Python, too: with that it starts as fast as one that is installed, "
        "and the file is three times as large",
    )
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from sandd.bundling.commands import run_bundle

    return run_bundle(options)
