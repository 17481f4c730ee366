"""The command line of ``sandd cp``. Imports neither trio nor a controller."""

from __future__ import annotations

import argparse

from sandd.command_line.options import (
    add_controller_options,
    add_json_option,
    add_local_option,
    add_wait_option,
)

_EPILOG = """\
Of SRC and DST one side is DAEMON:PATH; a local path with a colon is written ./a:b. As with cp: if DST
is a directory the copy goes into it, under the name of SRC; else it becomes DST.

A relative path starts at the daemon's working directory (with --local, this one), and DAEMON: alone means
that. '~' means nothing there. With --local any name will do for DAEMON:

  sandd cp -r src worker-1:/work/src
  sandd cp worker-1:/work/report.html .

Permissions, times of modification, symbolic links within directories and holes are always kept. A file
is replaced when its copy is complete, never before. Lost connections interrupt nothing, and after a crash
the same command goes on where it was.

exit code:
  0; 1 if something could not be copied; 2 for a command line that means nothing;
  125 if sandd failed or there is no such daemon; 128+N if signal N ended it: 130 after Ctrl-C
"""


def add_copy_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Enter the command."""
    parser = commands.add_parser(
        "cp",
        help="copy files and directories to a daemon's machine, or from it",
        usage="sandd cp [options] SRC [SRC ...] DST",
        description="Copy files, and with -r directories, between this machine and a daemon's.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "paths", metavar="SRC ... DST", nargs="+", help="DAEMON:PATH, or a local path"
    )
    parser.add_argument(
        "-r",
        "-R",
        "--recursive",
        action="store_true",
        help="copy directories, with all that is in them",
    )
    parser.add_argument(
        "-u",
        "--update",
        action="store_true",
        help="skip files that are there with the same size and time of modification",
    )
    parser.add_argument(
        "--checksum",
        action="store_true",
        help="skip files that are there with the same content (SHA-256), whatever their time",
    )
    parser.add_argument(
        "--include",
        metavar="PATTERN",
        action="append",
        default=[],
        help="of directories, copy only files that match one of these, as in a .gitignore (repeatable)",
    )
    parser.add_argument(
        "--exclude",
        metavar="PATTERN",
        action="append",
        default=[],
        help="leave out what matches, whatever --include says (repeatable)",
    )
    add_json_option(parser, "SRC, failed ones included")
    parser.add_argument(
        "-q",
        "--quiet",
        action="store_true",
        help="on stderr only what went wrong: no progress, no notices",
    )
    add_local_option(parser, "copying")
    add_wait_option(parser)
    add_controller_options(parser)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from sandd.copying.copy import run_copy

    return run_copy(options)
