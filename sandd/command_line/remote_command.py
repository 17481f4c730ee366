"""Where our own command line ends, and that of a command which is to run on a daemon begins."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

TAKE_COMMANDS = ("shell", "exec", "run", "policy")
"""Commands of ours behind whose ``--`` another one stands."""


def split(arguments: Sequence[str]) -> tuple[list[str], list[str] | None]:
    """The arguments before the first ``--``, and the command behind it, if there is one.

    What is behind it is left as it is, options that look like ours included.
    """
    given = list(arguments)
    if given[:1] and given[0] in TAKE_COMMANDS and "--" in given:
        position = given.index("--")
        return given[:position], given[position + 1 :] or None
    if given[:1] == ["exec"]:
        from sandd.executing.options import find_command

        position = find_command(given)
        return given[:position], given[position:] or None
    return given, None
