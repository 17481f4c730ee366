"""The controller of one command, and the daemon that the command is about: both for as long as it takes."""

from __future__ import annotations

import errno
import os
import shlex
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import trio

from sandd._core.interrupts import protected_context
from sandd._core.nurseries import open_unwrapping_nursery
from sandd.command_line.stopping import Failure
from sandd.controller import open_controller
from sandd.local_daemon import open_local_daemon

if TYPE_CHECKING:
    import argparse
    from collections.abc import AsyncIterator, Awaitable, Callable

    from sandd.command_line.stopping import Stop
    from sandd.controller import Controller, Daemon
    from sandd.local_daemon import LocalDaemon

    Say = Callable[[str], Awaitable[None]]

T = TypeVar("T")

DEFAULT_PORT: Final = 8765
_TAKEN: Final = "; another sandd, or a program of yours, is the controller there"
START_SECONDS: Final = 20.0
"""For a daemon of ours to dial in: half a second, or much more on a machine that is busy."""


@protected_context
async def open_own_controller(options: argparse.Namespace) -> AsyncIterator[Controller]:
    """A controller that listens where the options say.

    Raises:
        Failure: it can't; says why.
    """
    port = options.port
    if port is None:
        port = 0 if getattr(options, "local", False) else DEFAULT_PORT
    token = None
    if options.token_file is not None:
        try:
            token = await trio.Path(options.token_file).read_bytes()
        except OSError as error:
            raise Failure(f"--token-file {options.token_file}: {error.strerror}") from error
    async with AsyncExitStack() as stack:
        opening = open_controller(options.host, port, token=token)
        try:
            controller = await stack.enter_async_context(opening)
        except OSError as error:
            number = error.errno or 0
            taken = _TAKEN if number == errno.EADDRINUSE else ""
            # Its own text has the address in it already; one of a name that can't be found has no number.
            why = os.strerror(number) if number > 0 else error.strerror or error
            raise Failure(f"can't listen on {options.host}:{port}: {why}{taken}") from error
        yield controller


@protected_context
async def open_daemon(
    options: argparse.Namespace, daemon_id: str, controller: Controller, say: Say, stop: Stop
) -> AsyncIterator[Daemon]:
    """The daemon that was asked for, once it is there; with ``--local`` it is ours, and ends with the block.

    Raises:
        Failure: it did not come in time; or ours has ended, in the block, too.
        DaemonDidNotCome: ours can't be started.
    """
    if not options.local:
        await say(invitation(controller, daemon_id, options.token_file))
        yield await in_time(options, controller.wait_for_daemon, daemon_id)
        return
    token = [] if options.token_file is None else ["--token-file", options.token_file]
    with tempfile.TemporaryDirectory(prefix="sandd-local-", ignore_cleanup_errors=True) as path:
        async with open_local_daemon(
            controller.url, daemon_id, Path(path), options=token, on_start=stop.kill_if_hurried
        ) as child:
            daemon = await child.dialled_in(controller, min(START_SECONDS, options.wait))
            async with open_unwrapping_nursery() as nursery:
                nursery.start_soon(_watch, child)
                yield daemon
                nursery.cancel_scope.cancel()


async def in_time(
    options: argparse.Namespace, wait: Callable[..., Awaitable[T]], *arguments: object
) -> T:
    """What is waited for, within ``--wait``.

    Raises:
        Failure: that wasn't long enough.
    """
    with trio.move_on_after(options.wait):
        return await wait(*arguments)
    raise Failure(f"no daemon has dialled in within {options.wait:g} s (--wait)")


def invitation(controller: Controller, daemon_id: str | None, token_file: str | None) -> str:
    """Who is waited for, and what starts it."""
    command = ["python", "-m", "sandd.daemon", "--server-url", controller.url]
    command += ["--daemon-id", daemon_id or "ID"]
    command += [] if token_file is None else ["--token-file", token_file]
    whom = "a daemon" if daemon_id is None else f"the daemon {daemon_id!r}"
    return (
        f"sandd: waiting for {whom} at {controller.url}. Unless it is running (then it dials again "
        f"within half a minute), start it:\n"
        f"  {shlex.join(command)}"
    )


async def _watch(child: LocalDaemon) -> None:
    code = await child.process.wait()
    raise Failure(f"the daemon has ended, with {code}. Its last words:\n{child.last_words()}")
