"""`IsolationOptions`: what a daemon was told of how to keep jobs apart."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from attrs import frozen

from sandd._core._errors import ConfigurationError
from sandd._core.program_options import read_boolean
from sandd.wire import IsolationLevel

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

DEFAULT_UIDS: Final = (60_578, 61_183)
"""Nobody's: systemd gives out what is below and above (systemd.io/UIDS-GIDS), Debian's users end at 59,999, and a
container that maps 65,536 users has them all."""
MAX_UID: Final = 2**32 - 2
"""The one behind it says "nobody" in every system call."""
OPTIONS: Final = (
    *("isolation", "require_isolation", "isolation_uids", "isolation_read", "isolation_network"),
    "workspaces",
)
"""Their names, as in a file of options."""
_RANGE: Final = re.compile(r"([0-9]{1,10})-([0-9]{1,10})", re.ASCII)


@frozen
class IsolationOptions:
    """All that a daemon can be told of it."""

    level: IsolationLevel = IsolationLevel.NONE
    """The least of all jobs."""
    is_required: bool = False
    """Where that is not to be had, the daemon doesn't start; else it starts, and runs nothing."""
    uids: tuple[int, int] = DEFAULT_UIDS
    """The first and the last that may be tenants'."""
    readable: tuple[Path, ...] = ()
    """What jobs may read besides the system's own directories, from the level of Landlock on."""
    has_network: bool = True
    """False: with bubblewrap they have none."""
    workspaces: Path | None = None
    """Where tenants' directories are; None: in the state directory."""


def add_isolation_options(parser: argparse.ArgumentParser) -> None:
    """All that it can be told of it."""
    parser.add_argument(
        "--isolation",
        metavar="LEVEL",
        help="keep jobs apart at least so: none (default), user, landlock or bwrap; each is all before it",
    )
    parser.add_argument(
        "--require-isolation",
        action="store_const",
        const=True,
        help="don't start where that is not to be had (otherwise it starts, and refuses to run anything)",
    )
    first, last = DEFAULT_UIDS
    parser.add_argument(
        "--isolation-uids",
        metavar="FIRST-LAST",
        help=f"users for tenants, one each, which nobody else uses (default: {first}-{last})",
    )
    parser.add_argument(
        "--isolation-read",
        metavar="PATH",
        action="append",
        help="jobs may read this, too, from 'landlock' on; may be given often",
    )
    parser.add_argument(
        "--isolation-network",
        metavar="on|off",
        help="whether jobs at 'bwrap' have the machine's network (default: on)",
    )
    parser.add_argument(
        "--workspaces",
        metavar="DIR",
        help="where each tenant has a directory of its own (default: in the state directory)",
    )


def read_isolation(given: Mapping[str, Any]) -> IsolationOptions:
    """What was said by these options. ConfigurationError, in one line, if it can't be."""
    workspaces = given.get("workspaces")
    return IsolationOptions(
        level=read_level("--isolation", given.get("isolation", "none")),
        is_required=read_boolean("--require-isolation", given.get("require_isolation", False)),
        uids=_range(given.get("isolation_uids")),
        readable=tuple(_paths(given.get("isolation_read"))),
        has_network=read_boolean("--isolation-network", given.get("isolation_network", True)),
        workspaces=None if workspaces is None else Path(str(workspaces)).absolute(),
    )


def read_level(option: str, given: object) -> IsolationLevel:
    """The level of that name."""
    try:
        return IsolationLevel(str(given).lower())
    except ValueError:
        levels = ", ".join(IsolationLevel)
        raise ConfigurationError(f"{option} {given!r} is not one of {levels}") from None


def _range(given: object) -> tuple[int, int]:
    if given is None:
        return DEFAULT_UIDS
    match = _RANGE.fullmatch(str(given).strip())
    if match is not None:
        first, last = int(match[1]), int(match[2])
        if 0 < first <= last <= MAX_UID:
            return first, last
    raise ConfigurationError(
        f"--isolation-uids {given!r} is not of the form FIRST-LAST, such as {DEFAULT_UIDS[0]}-{DEFAULT_UIDS[1]}: "
        "two numbers of users, of whom none is root"
    )


def _paths(given: object) -> list[Path]:
    if given is None:
        return []
    entries = given if isinstance(given, list) else str(given).split(":")
    paths = [Path(str(each)) for each in entries if str(each)]
    for path in paths:
        if not path.is_absolute():
            raise ConfigurationError(f"--isolation-read {str(path)!r} is not an absolute path")
        if len(path.parts) == 1:
            raise ConfigurationError("--isolation-read / would be all there is: name directories")
    return paths
