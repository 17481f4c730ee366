"""The command line of ``sandd policy``. Imports neither trio nor a controller."""

from __future__ import annotations

import argparse

from sandd.command_line.options import add_process_options

_EPILOG = """\
What is looked at is the file, and on this machine the programs that it names. With a command behind --, it says
which rule allows it, or why each doesn't; nothing is run:

  sandd policy check worker.toml
  sandd policy check worker.toml -w /work -- git status --short

exit code:
  0; 1 if there is an error in it, or the command is denied; 2 if it is no policy
"""


def add_policy_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Enter the command."""
    policy = commands.add_parser(
        "policy",
        help="check a policy: what a daemon or a controller allows",
        description="What a policy file allows, and what its author should know.",
        allow_abbrev=False,
    )
    inner = policy.add_subparsers(dest="policy_command", metavar="COMMAND", required=True)
    parser = inner.add_parser(
        "check",
        help="check a policy file, and whether it allows a command",
        usage="sandd policy check [options] FILE [-- CMD ...]",
        description="Check a policy file, and whether it allows a command.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("file", metavar="FILE", help="the policy, in TOML")
    add_process_options(parser)
    parser.add_argument("--shell", action="store_true", help="CMD is one text, for the shell")
    parser.add_argument("--pty", action="store_true", help="in a terminal, as by 'sandd shell'")
    parser.add_argument("--json", action="store_true", help="one line of JSON on stdout")
    parser.set_defaults(run=_run, remote_command=None)


def _run(options: argparse.Namespace) -> int:
    from sandd.policing.command import run

    return run(options)
