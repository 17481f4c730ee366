"""The `sandd` command.

Each subcommand imports what it needs when it runs: ``sandd daemon`` has no use for a controller,
and ``sandd --version`` for nothing at all.
"""

from __future__ import annotations

import os
import sys

from sandd import __version__
from sandd._core.own_output import CantWrite, flush_stdout

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence

INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 and the number of SIGINT, as shells have it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code. Bad usage raises SystemExit(2), as argparse does."""
    try:
        try:
            return _run(list(sys.argv[1:] if arguments is None else arguments))
        finally:
            flush_stdout()  # argparse has printed, perhaps, and left its failure to the interpreter
    except KeyboardInterrupt:
        return INTERRUPTED
    except CantWrite as error:
        from sandd.command_line.stopping import tell

        return tell(error)


def _run(given: list[str]) -> int:
    if "_ARGCOMPLETE" in os.environ:  # a shell asks what may come next
        from sandd.completion import answer

        answer(build_parser(with_programs=True))
    if given[:1] == ["daemon"]:
        # All of the rest is the daemon's, options that argparse would claim for us included.
        from sandd import daemon

        return daemon.main(given[1:], prog="sandd daemon")
    if given[:1] == ["controller"]:
        from sandd.standalone.main import main as run_controller

        return run_controller(given[1:])
    options = parse(given)
    code: int = options.run(options)
    return code


def parse(given: Sequence[str]) -> argparse.Namespace:
    """What the command line says; its `run` does it. SystemExit(2) if it means nothing, and then that is told."""
    from sandd.command_line.remote_command import TAKE_COMMANDS, split

    ours, remote_command = split(given)
    parser = build_parser()
    options, strange = parser.parse_known_args(ours)
    if strange:
        # argparse would show the usage of `sandd` itself.
        told = f"unrecognized arguments: {' '.join(strange)}"
        if options.command in TAKE_COMMANDS and not strange[0].startswith("-"):
            told = f"{strange[0]!r} is no option: put -- before CMD"
        getattr(options, "parser", parser).error(told)
    if options.command is None:
        parser.print_help(sys.stderr)
        raise SystemExit(2)
    if remote_command is not None:
        options.remote_command = remote_command
    return options


def build_parser(*, with_programs: bool = False) -> argparse.ArgumentParser:
    """The command line's grammar; of ``daemon`` and ``controller``, which read their own, only `with_programs`."""
    # Late, so that a Ctrl-C meanwhile finds `main` ready for it.
    from sandd._core.parsing import Parser
    from sandd.auditing.options import add_audit_command
    from sandd.bundling.options import add_bundle_command
    from sandd.certificates.options import add_ca_command
    from sandd.completion import add_completion_command
    from sandd.copying.options import add_copy_command
    from sandd.enrolling.options import add_enrolling_commands
    from sandd.executing.options import add_exec_command
    from sandd.fleet.options import add_fleet_commands
    from sandd.forwarding.options import add_forward_command
    from sandd.policing.options import add_policy_commands
    from sandd.terminal.options import add_commands

    parser: argparse.ArgumentParser = Parser(
        prog="sandd",
        description="Run commands inside sandboxes that dial out to you.",
        epilog="'sandd COMMAND --help' says more about each.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"sandd {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    demo = commands.add_parser(
        "demo",
        help="show everything in one go, on this machine alone",
        description="Start a controller and a daemon on this machine, and watch them work. It "
        "takes some ten seconds and leaves nothing behind. Exit code 0: all that was shown held.",
        allow_abbrev=False,
    )
    demo.set_defaults(run=_demo)
    add_exec_command(commands)
    add_fleet_commands(commands)
    add_commands(commands)
    add_copy_command(commands)
    add_forward_command(commands)
    add_enrolling_commands(commands)
    add_policy_commands(commands)
    controller = commands.add_parser(
        "controller", help="be a controller that stands alone, for daemons and for these commands"
    )
    daemon = commands.add_parser(
        "daemon", help="run the daemon, inside the sandbox (same as python -m sandd.daemon)"
    )
    add_bundle_command(commands)
    add_audit_command(commands)
    add_ca_command(commands)
    add_completion_command(commands)
    for each in _parsers_below(commands):
        each.set_defaults(parser=each)  # for complaints: in its words, with its usage
    if with_programs:
        from sandd._core.controller_options import add_options
        from sandd._core.daemon_options import add_daemon_options

        add_options(controller, __version__)
        add_daemon_options(daemon, __version__)
    return parser


def _parsers_below(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
) -> Iterator[argparse.ArgumentParser]:
    """Those of the commands, and of the commands of these."""
    for parser in commands.choices.values():
        yield parser
        for action in parser._actions:
            if isinstance(action, type(commands)):
                yield from _parsers_below(action)


def _demo(_: argparse.Namespace) -> int:
    from sandd.demo import run_demo

    return run_demo()
