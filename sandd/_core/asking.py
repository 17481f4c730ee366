"""Asks a daemon for something that it does itself: one request, and all the answers to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from sandd import wire
from sandd._core._errors import RemoteProtocolError
from sandd._core.streams import Gap
from sandd.wire import Stream

if TYPE_CHECKING:
    from sandd._core.job_link import JobLink
    from sandd.wire import Buffer

ANSWERS_A_TURN: Final = 64
"""So many answers are read before everybody else has a turn: 1 ms."""


@trio.lowlevel.enable_ki_protection
async def ask(link: JobLink, daemon_id: str, request: wire.Spec) -> list[wire.Answer]:
    """What the daemon answers, once it has done what was asked for.

    A request is a job: it survives every cut, is done once, and waits for a daemon that is away. To
    cancel it is to take it back: what it has begun may go on, but nobody waits for it.

    Raises:
        JobNotFound: it names a job that isn't there. Nothing was done.
        RequestRefused: the daemon can't do it. Nothing was done.
        DaemonGone: the daemon is gone for good.
        RemoteProtocolError: the daemon answered with nonsense, or not whole.
        trio.ClosedResourceError: the controller is closed, or was meanwhile.
    """
    received, is_whole = bytearray(), True

    def keep(chunk: Buffer | Gap) -> None:
        nonlocal is_whole
        if isinstance(chunk, Gap):
            is_whole = False
        elif len(received) <= wire.MAX_ANSWERS_BYTES:  # one chunk more, and it is too much
            received.extend(chunk)

    await trio.lowlevel.checkpoint_if_cancelled()
    handle = link.open(daemon_id, request, input_data=b"", sinks={Stream.OUTPUT: keep})
    try:
        await handle.until(lambda: handle.complete or len(received) > wire.MAX_ANSWERS_BYTES)
        handle.raise_if_failed()
    finally:
        handle.forget()
    if not is_whole:
        raise RemoteProtocolError("a part of the answer was lost on the daemon's disk; ask again")
    answers: list[wire.Answer] = []
    for index, answer in enumerate(wire.decode_answers(memoryview(received))):
        if not isinstance(answer, wire.Unknown):
            answers.append(answer)
        if index % ANSWERS_A_TURN == ANSWERS_A_TURN - 1:
            await trio.lowlevel.checkpoint()
    return answers
