"""``sandd completion``: Tab, in bash, zsh and fish.

The shell runs ``sandd`` itself, with what has been typed in its environment, and gets what may come next. So it
can't be out of date, and knows daemons and jobs: the controller that is meant is asked for those, and not for long.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any, Final

from sandd._core.own_output import write_text

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from sandd.controller import Controller

SHELLS: Final = ("bash", "zsh", "fish")
ASKING_SECONDS: Final = 2.0
"""For the controller, and the daemons: a person has pressed a key, and waits."""
_SETUP: Final = """\
to have it in every shell, add a line to its start-up file:
  bash, in ~/.bashrc:                   source <(sandd completion bash)
  zsh, in ~/.zshrc, behind compinit:    source <(sandd completion zsh)
  fish, in ~/.config/fish/config.fish:  sandd completion fish | source
"""


def add_completion_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Enter the command."""
    parser = commands.add_parser(
        "completion",
        help="complete these commands by Tab, in your shell",
        description="Print what a shell has to read to complete commands, options, daemons and jobs by Tab.",
        epilog=_SETUP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("shell", choices=SHELLS)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from argcomplete.shell_integration import shellcode

    write_text("stdout", shellcode(["sandd"], shell=options.shell))
    return 0


def answer(parser: argparse.ArgumentParser) -> None:
    """Tell the shell what may come next, and end this process."""
    import argcomplete
    from argcomplete.completers import DirectoriesCompleter, FilesCompleter

    by_metavar = {
        "DAEMON": _complete_daemon,
        "JOB": _complete_job,
        "FILE": FilesCompleter(),
        "DIR": DirectoriesCompleter(),
    }
    for action in _actions(parser):
        if isinstance(action, argparse._SubParsersAction) or action.choices is not None:
            continue
        if isinstance(action.metavar, str) and action.nargs != 0:
            # argcomplete's way to say it; argparse has no such attribute.
            action.completer = by_metavar.get(action.metavar, _offer_nothing)  # type: ignore[attr-defined]
    argcomplete.autocomplete(parser, always_complete_options=False)


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """All options and arguments, those of the commands too."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for each in action.choices.values():
                yield from _actions(each)


def _offer_nothing(**_: Any) -> list[str]:
    return []


def _complete_daemon(parsed_args: argparse.Namespace, **_: Any) -> list[str]:
    async def ids(controller: Controller) -> list[str]:
        return [each.id for each in controller.daemons()]

    return _ask(parsed_args, ids)


def _complete_job(parsed_args: argparse.Namespace, **_: Any) -> list[str]:
    async def names(controller: Controller) -> list[str]:
        from sandd.fleet.listing import ask_all

        answers = await ask_all(controller.daemons(), ASKING_SECONDS / 2)
        return [
            f"{daemon_id}/{job.job_id}"
            for daemon_id, jobs in answers.items()
            if not isinstance(jobs, str)
            for job in jobs
        ]

    return _ask(parsed_args, names)


def _ask(
    options: argparse.Namespace, what: Callable[[Controller], Awaitable[list[str]]]
) -> list[str]:
    """The answer of the controller that is meant; nothing if there is none, for whatever reason."""
    import trio

    from sandd.command_line.connecting import open_connection
    from sandd.command_line.options import add_controller_options

    # Of a command line that is not complete yet, some have no value.
    defaults = argparse.ArgumentParser()
    add_controller_options(defaults)
    given = argparse.Namespace(**(vars(defaults.parse_args([])) | vars(options)))

    async def ask() -> list[str]:
        with trio.move_on_after(ASKING_SECONDS):
            async with open_connection(given) as controller:
                return await what(controller)
        return []

    try:
        return trio.run(ask)
    except Exception:  # a key was pressed: there is nobody to tell
        return []
