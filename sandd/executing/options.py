"""The command line of ``sandd exec``. Imports neither trio nor a controller."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, NoReturn

from sandd.command_line.options import (
    LOCAL_ID,
    add_controller_options,
    add_limit_options,
    add_local_option,
    add_process_options,
    add_wait_option,
    read_time_limit,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

_USAGE = "sandd exec [options] [--local | DAEMON] -- CMD ..."
_EPILOG = """\
CMD is run directly, by no shell, unless --shell is given:

  sandd exec worker-1 -- git -C /src status
  sandd exec --shell worker-1 -- 'ls *.py | wc -l'
  tar c . | sandd exec -i worker-1 -- tar x -C /src

Without '--' all behind DAEMON is CMD, if it doesn't begin with an option: sandd exec worker-1 ls -l

Without -i CMD reads end of file at once, and nothing of what stdin has is taken. Ctrl-C is sent to CMD, as a
terminal would; a second one ends it with all its processes, as SIGTERM and SIGHUP do at once. When nobody reads
what CMD writes any more, it is ended, too. At a terminal (-t) keys are CMD's, and ~. leaves.

exit code:
  that of CMD; 128+N if signal N killed it, or us: 130 after Ctrl-C; 124 if it ran out of time;
  126 if CMD can't be executed, 127 if there is none; 125 if sandd failed, or ~. left;
  2 for a command line that means nothing
"""


def add_exec_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Enter the command."""
    parser = commands.add_parser(
        "exec",
        help="run a command on a daemon, as if it ran here",
        usage=_USAGE,
        description="Run a command on a daemon. What it writes is written here as it comes, stdout and stderr apart, "
        "and its exit code is that of this command. Lost connections interrupt nothing.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("words", metavar="DAEMON", nargs="*", help="id of the daemon")
    _add_options(parser)
    # Everything behind "--" is the command: see `command_line.remote_command`.
    parser.set_defaults(run=_run, remote_command=None, record=None)


def find_command(arguments: Sequence[str]) -> int:
    """Where the command begins in a line of ``sandd exec`` without ``--``; at its end, if that isn't clear."""
    scan = _Scan(add_help=False, allow_abbrev=False)
    _add_options(scan)
    scan.add_argument("rest", nargs=argparse.REMAINDER)
    try:
        options = scan.parse_args(arguments[1:])
    except _NotUnderstood:
        return len(arguments)  # whoever parses it all has the better words
    command = options.rest if options.local else options.rest[1:]
    if not command or command[0].startswith("-"):
        return len(arguments)
    return len(arguments) - len(command)


class _NotUnderstood(Exception):
    pass


class _Scan(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise _NotUnderstood


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-i",
        "--interactive",
        action="store_true",
        help="what stdin has is for the command, and its end too",
    )
    parser.add_argument(
        "-t",
        "--terminal",
        "--tty",
        action="store_true",
        help="in a terminal there, shown at this one; stdin and stdout have to be one (-i is implied)",
    )
    add_process_options(parser)
    add_limit_options(parser)
    parser.add_argument(
        "--shell",
        action="store_true",
        help="CMD is a line for the daemon's shell; several words are joined by spaces",
    )
    parser.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=read_time_limit,
        help="end it after that long (default: never)",
    )
    parser.add_argument(
        "--idle-timeout",
        metavar="SECONDS",
        type=read_time_limit,
        help="end it when it has written nothing for that long (default: never)",
    )
    parser.add_argument(
        "--detach",
        action="store_true",
        help="only begin it, and print DAEMON/ID; it goes on without us",
    )
    add_local_option(parser, "command")
    add_wait_option(parser)
    add_controller_options(parser)


def _run(options: argparse.Namespace) -> int:
    _check(options)
    from sandd.executing.execute import run_exec

    return run_exec(options)


def _check(options: argparse.Namespace) -> None:
    """End with a complaint unless it means something; fill in what follows from the rest."""
    words, error = options.words, options.parser.error
    if options.local and words:
        error(f"--local starts a daemon of its own: leave {words[0]!r} out, or put -- before CMD")
    if not options.local and not words:
        error("it takes a DAEMON, or --local")
    if len(words) > 1:
        error(f"{words[1]!r} is no option: put -- before CMD")
    if options.remote_command == [""]:
        error("CMD is empty")
    if not options.remote_command:
        error(
            "it takes a command: sandd exec DAEMON -- CMD ... (for a shell there is 'sandd shell')"
        )
    if options.detach and (options.interactive or options.terminal or options.local):
        other = "--local" if options.local else "-t" if options.terminal else "-i"
        error(f"--detach and {other}: the command would have nobody on this side")
    if options.terminal and (options.timeout is not None or options.idle_timeout is not None):
        error("-t has no time-outs: whoever sits there knows when it is time to leave")
    options.daemon = LOCAL_ID if options.local else words[0]
    if options.shell:
        options.remote_command = " ".join(options.remote_command)
