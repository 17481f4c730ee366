"""The command lines of ``sandd shell`` and ``sandd attach``. Imports neither trio nor a controller."""

from __future__ import annotations

import argparse
from typing import Any

from sandd.command_line.options import (
    add_controller_options,
    add_job_argument,
    add_limit_options,
    add_local_option,
    add_process_options,
    add_wait_option,
)

_EXIT_CODES = """\
exit code:
  the command's own; 128+N if signal N killed it; 125 if sandd failed or ~. ended the session;
  126 if the command can't be executed, 127 if there is none; 0 after ~d
"""
_ESCAPES = """\
escapes, at the beginning of a line:
  ~.  leaves, and ends the session; ~d leaves it running; ~? lists all
"""


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Enter the two commands."""
    shell = _add(
        commands,
        "shell",
        help="a shell on a daemon, at this terminal",
        usage="sandd shell [options] DAEMON | --local [-- CMD ...]",
        description="Open a terminal session on a daemon: the shell of its user there, or CMD. The session "
        "survives lost connections.",
    )
    shell.add_argument(
        "daemon",
        metavar="DAEMON",
        nargs="?",
        help="id of the daemon (with --local any name will do)",
    )
    add_local_option(shell, "session")
    add_process_options(shell)
    add_limit_options(shell)
    shell.add_argument(
        "--detach",
        action="store_true",
        help="the session goes on when you leave, or this machine fails; see 'sandd attach'",
    )
    shell.add_argument("--record", metavar="FILE", help="record what is shown to FILE")
    add_wait_option(shell)
    add_controller_options(shell)
    # Everything behind "--" is the command, options that look like ours included: see `command_line.remote_command`.
    shell.set_defaults(run=_run_shell, remote_command=None)

    attach = _add(
        commands,
        "attach",
        help="come back to a session that is running on a daemon",
        usage="sandd attach [options] JOB",
        description="Show what a session has shown so far, and go on with it: one that was left by ~d, or "
        "begun with --detach, or whose 'sandd shell' has died.",
    )
    add_job_argument(attach)
    attach.add_argument(
        "--read-only", action="store_true", help="look on: what you type is not sent"
    )
    attach.add_argument(
        "--takeover", action="store_true", help="take it from whoever has it at the moment"
    )
    add_wait_option(attach)
    add_controller_options(attach)
    attach.set_defaults(run=_run_attach)


def _add(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, **settings: Any
) -> argparse.ArgumentParser:
    return commands.add_parser(
        name,
        allow_abbrev=False,
        epilog=f"{_ESCAPES}\n{_EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        **settings,
    )


def _run_shell(options: argparse.Namespace) -> int:
    from sandd.terminal.shell import run_shell

    return run_shell(options)


def _run_attach(options: argparse.Namespace) -> int:
    from sandd.terminal.shell import run_attach

    return run_attach(options)
