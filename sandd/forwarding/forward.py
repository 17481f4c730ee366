"""``sandd forward``: ports that lead to a daemon's side, or from there to here, until a signal comes.

A daemon that is away comes back to its connections. One that was started anew has lost them, but its ports are
opened again, at the same addresses.
"""

from __future__ import annotations

import errno
import logging
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, Final

import trio
from attrs import evolve

from sandd._core._errors import DaemonGone
from sandd._core.interrupts import protected_context
from sandd._core.logs import Event
from sandd._core.nurseries import open_unwrapping_nursery
from sandd.command_line.outages import minding_outages
from sandd.command_line.reaching import reach_daemon
from sandd.command_line.stopping import Failure, run_command
from sandd.command_line.telling import put_out, say, say_nothing
from sandd.wire import DaemonState

if TYPE_CHECKING:
    import argparse
    from collections.abc import AsyncIterator
    from contextlib import AbstractAsyncContextManager

    from sandd.command_line.stopping import Stop
    from sandd.controller import Daemon
    from sandd.forwarding.targets import Forward

MOST_UNTOLD: Final = 100
"""Broken connections that wait to be told, where the terminal takes nothing; further ones are not told."""


def run_forward(options: argparse.Namespace) -> int:
    """Forward what the command line says, until a signal comes; returns the exit code."""
    return run_command(partial(_forward, options))


async def _forward(options: argparse.Namespace, stop: Stop) -> int:
    notify = say_nothing if options.quiet else say
    forwards: list[Forward] = options.targets
    async with (
        telling_broken_connections(),
        reach_daemon(options, options.daemon, stop) as (controller, daemon),
    ):
        wait = options.wait
        while True:
            async with (
                controller.open_events() as events,
                minding_outages(controller, daemon, wait=wait, say=notify) as outages,
            ):
                try:
                    async with AsyncExitStack() as stack:
                        forwards = [
                            await _open(stack, daemon, each, reverse=options.reverse)
                            for each in forwards
                        ]
                        outages.begun("connections wait for it")
                        while daemon.state is not DaemonState.GONE:
                            await anext(events)  # says that it is time to look
                except DaemonGone:
                    pass
            await notify(f"[{daemon.id} has ended, and all connections with it; waiting for it]")
            daemon = await controller.wait_for_daemon(daemon.id)
            await notify(f"[{daemon.id} is back]")
            wait = None  # what has begun is not given up


async def _open(
    stack: AsyncExitStack, daemon: Daemon, forward: Forward, *, reverse: bool
) -> Forward:
    """Open it, say so, and return it with the port that it has got."""
    listen, target = forward.listen, forward.target
    opening: AbstractAsyncContextManager[tuple[str, int], bool | None]
    if reverse:
        opening = daemon.reverse_port(
            local_host=target.host,
            local_port=target.port or None,
            local_path=target.path,
            remote_host=listen.host,
            remote_port=listen.port,
            remote_path=listen.path,
        )
    else:
        opening = daemon.forward_port(
            remote_host=target.host,
            remote_port=target.port or None,
            remote_path=target.path,
            local_host=listen.host,
            local_port=listen.port,
            local_path=listen.path,
        )
    side, other = (f"{daemon.id}:", "") if reverse else ("", f"{daemon.id}:")
    try:
        host, port = await stack.enter_async_context(opening)
    except OSError as error:
        taken = "; leave the port out for a free one" if error.errno == errno.EADDRINUSE else ""
        why = error.strerror or error
        raise Failure(f"can't listen on {side}{listen}: {why}{taken}") from error
    bound = listen if listen.path is not None else evolve(listen, host=host, port=port)
    if bound != listen or not forward.is_open:
        await put_out(f"{side}{bound} -> {other}{target}")
    return evolve(forward, listen=bound, is_open=True)


@protected_context
async def telling_broken_connections() -> AsyncIterator[None]:
    """Say on stderr which connections break, and why, while the block lasts."""
    put, get = trio.open_memory_channel[str](MOST_UNTOLD)

    async def tell() -> None:
        async for text in get:
            await say(text)

    handler = _BrokenConnections(put)
    logger = logging.getLogger("sandd.ports")
    logger.addHandler(handler)
    try:
        async with open_unwrapping_nursery() as nursery:
            nursery.start_soon(tell)
            yield
            nursery.cancel_scope.cancel()
    finally:
        logger.removeHandler(handler)


class _BrokenConnections(logging.Handler):
    """Takes what is logged about connections; the event loop logs it, and must not wait for a terminal."""

    def __init__(self, put: trio.MemorySendChannel[str]) -> None:
        super().__init__(logging.WARNING)
        self._put = put

    def emit(self, record: logging.LogRecord) -> None:
        """Note it."""
        fields = record.msg
        if not isinstance(fields, Event) or fields["event"] != "connection_broke":
            return
        try:
            self._put.send_nowait(
                f"sandd: a connection to {fields['target']} broke: {fields['reason']}"
            )
        except trio.WouldBlock:
            pass
