"""Controllers with a state directory, and peers made by hand that come to them by any credential.

::

    async with guarded(tmp_path) as controller:
        token = await join_token(controller)
        async with raw_daemon(controller.url, "worker-1", credential=token) as daemon:
            key = key_of(daemon)
"""

from __future__ import annotations

import contextlib
import secrets
from typing import TYPE_CHECKING, Any, Final

import trio

import sandd
from sandd import wire
from sandd._core.identity.introductions import answer_as_operator
from sandd._core.identity.proofs import DaemonKey
from sandd._core.identity.tokens import Token, TokenKind, client_prefix, parse_token
from sandd._core.pump import receive_control, send_control
from sandd._core.services import LocalService
from sandd._core.transport import connect

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from raw_daemon import RawDaemon

    from sandd._core.identity.gate import Gate
    from sandd._core.identity.proofs import Credential
    from sandd._core.transport import Connection

LIMIT: Final = 60.0
"""Seconds for what takes less than one, where only that it ends matters: the machine may be busy."""
OPTIONS: Final[dict[str, Any]] = {
    "subprotocol": wire.SUBPROTOCOL,
    "max_message_bytes": wire.MAX_MESSAGE_BYTES,
}


@contextlib.asynccontextmanager
async def guarded(state_dir: Path, **options: Any) -> AsyncIterator[sandd.Controller]:
    """A controller that keeps tokens and daemons in this directory."""
    with trio.fail_after(LIMIT):
        async with sandd.open_controller(port=0, state_dir=state_dir, **options) as controller:
            yield controller


def gate_of(controller: sandd.Controller) -> Gate:
    """Which decides who comes in."""
    assert isinstance(controller._service, LocalService)
    return controller._service.gate


async def join_token(controller: sandd.Controller, **options: Any) -> Token:
    """A new one."""
    made = await controller.tokens.create_join(**options)
    return parse_token(made.text.encode(), TokenKind.JOIN)


async def operator_token(
    controller: sandd.Controller, name: str = "someone", **options: Any
) -> Token:
    """A new one."""
    made = await controller.tokens.create_operator(name, **options)
    return parse_token(made.text.encode(), TokenKind.OPERATOR)


def key_of(daemon: RawDaemon) -> DaemonKey:
    """That which came with its Welcome."""
    assert isinstance(daemon.answer, wire.Welcome), daemon.answer
    enrolment = daemon.answer.enrolment
    assert enrolment is not None
    return DaemonKey(enrolment.uid, enrolment.generation, enrolment.secret)


def refusal_of(answer: object) -> tuple[wire.RejectCode, str]:
    """What it was told that isn't let in."""
    assert isinstance(answer, wire.Reject), answer
    return answer.code, answer.message


@contextlib.asynccontextmanager
async def raw_operator(
    controller: sandd.Controller,
    credential: Credential | None,
    *,
    client: str | None = None,
    number: int = 1,
) -> AsyncIterator[tuple[Connection, wire.Control | wire.Unknown]]:
    """A connection that has introduced itself, and what was answered."""
    if client is None:
        prefix = client_prefix(credential.key_id) if isinstance(credential, Token) else ""
        client = prefix + secrets.token_hex(8)
    async with connect(f"ws://{controller.address}/operator", **OPTIONS) as connection:
        challenge = await receive_control(connection)
        hello = answer_as_operator(challenge, client, number, "me@here", credential)
        await send_control(connection, hello)
        yield connection, await receive_control(connection)


async def ended(connection: Connection) -> int | None:
    """Return when the controller has closed it: by which code."""
    try:
        while True:
            await connection.receive_message()
    except sandd.SanddError as error:
        return getattr(error, "code", None)
