"""The daemon that a command is about: one of a controller's, or one of our own for as long as the command takes."""

from __future__ import annotations

import difflib
import secrets
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

from sandd._core._errors import DaemonNotFound
from sandd._core.interrupts import protected_context
from sandd._core.nurseries import open_unwrapping_nursery
from sandd.command_line.connecting import open_connection
from sandd.command_line.stopping import Failure
from sandd.command_line.telling import say
from sandd.controller import open_controller
from sandd.local_daemon import open_local_daemon

if TYPE_CHECKING:
    import argparse
    from collections.abc import AsyncIterator, Sequence

    from sandd.command_line.stopping import Stop
    from sandd.controller import Controller, Daemon
    from sandd.local_daemon import LocalDaemon

START_SECONDS: Final = 20.0
"""For a daemon of ours to dial in: half a second, or much more on a machine that is busy."""
MOST_SUGGESTED: Final = 3
MOST_LISTED: Final = 8
"""Daemons, in a complaint."""


@protected_context
async def reach_daemon(
    options: argparse.Namespace, daemon_id: str, stop: Stop
) -> AsyncIterator[tuple[Controller, Daemon]]:
    """The controller that is meant, and its daemon of that id; with ``--local`` both are ours, and end with the block.

    A daemon that is away is there: what is asked of it waits for its return.

    Raises:
        Failure: the controller can't be reached, or has no such daemon; or ours has ended, in the block, too.
        DaemonDidNotCome: ours can't be started.
    """
    if options.local:
        async with open_local_pair(daemon_id, stop) as pair:
            yield pair
    else:
        async with open_connection(options) as controller:
            yield controller, await find_daemon(controller, daemon_id, wait=options.wait)


@protected_context
async def open_local_pair(daemon_id: str, stop: Stop) -> AsyncIterator[tuple[Controller, Daemon]]:
    """A controller in this process, and a daemon beside it.

    Raises:
        Failure: the daemon has ended, in the block.
        DaemonDidNotCome: it can't be started.
    """
    # Others on this machine can reach the port as well: without the secret they could be the daemon.
    token = secrets.token_hex()
    with tempfile.TemporaryDirectory(prefix="sandd-local-", ignore_cleanup_errors=True) as path:
        directory = Path(path)  # for this user alone, as tempfile makes them
        (directory / "token").write_text(token)
        async with (
            open_controller(port=0, token=token) as controller,
            open_local_daemon(
                controller.url,
                daemon_id,
                directory,
                options=["--token-file", str(directory / "token")],
                on_start=stop.kill_if_hurried,
            ) as child,
        ):
            daemon = await child.dialled_in(controller, START_SECONDS)
            async with open_unwrapping_nursery() as nursery:
                nursery.start_soon(_watch, child)
                yield controller, daemon
                nursery.cancel_scope.cancel()


async def find_daemon(controller: Controller, daemon_id: str, *, wait: float | None) -> Daemon:
    """The daemon of that id, online or away; an unknown one is waited for, for so many seconds, of which None is none.

    What is asked of one that is away waits for its return: see `minding_outages`.

    Raises:
        Failure: there is none; says whom somebody may have meant.
    """
    try:
        return controller.daemon(daemon_id)
    except DaemonNotFound:
        pass
    if wait:
        await say(f"[waiting for the daemon {daemon_id!r}]")
        with trio.move_on_after(wait):
            return await controller.wait_for_daemon(daemon_id)
    known = [each.id for each in controller.daemons()]
    raise Failure(describe_absence(daemon_id, known, wait))


def describe_absence(daemon_id: str, known: Sequence[str], waited: float | None) -> str:
    """That there is no such daemon, and who is there instead."""
    late = f" within {waited:g} s (--wait)" if waited else ""
    text = f"no daemon {daemon_id!r}{late}"
    if not known:
        return f"{text}: none is connected to this controller"
    if close := difflib.get_close_matches(daemon_id, known, MOST_SUGGESTED):
        return f"{text}; did you mean {' or '.join(map(repr, sorted(close)))}?"
    more = f" and {len(known) - MOST_LISTED} more" if len(known) > MOST_LISTED else ""
    return f"{text}; there are {', '.join(known[:MOST_LISTED])}{more}"


async def _watch(child: LocalDaemon) -> None:
    code = await child.process.wait()
    raise Failure(f"the daemon has ended, with {code}. Its last words:\n{child.last_words()}")
