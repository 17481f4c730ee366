"""How a controller receives whoever dials in, daemon or operator: the handshake, the live link, the farewell."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Final

import trio
from attrs import frozen

from sandd import wire
from sandd._core._errors import ConnectionLost, RemoteProtocolError
from sandd._core.audit.comings import misbehaved
from sandd._core.logs import get_logger
from sandd._core.metrics.comings import PROTOCOL, STRANGER
from sandd._core.pump import HANDSHAKE_SECONDS, Pump, receive_control, send_control
from sandd.wire import RejectCode

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import TypeAlias

    from sandd._core.audit.sinks import AuditSink
    from sandd._core.identity.passes import Pass, Passes
    from sandd._core.metrics.comings import Comings
    from sandd._core.rate_limits.credentials import FailedCredentials
    from sandd._core.router_links import RouterLink
    from sandd._core.transport import Connection

    Stay: TypeAlias = Callable[[], Awaitable[None]]
    """Serves a peer that is let in, to its link's end. Nothing may be waited for before it is called."""

log = get_logger("links")

DRAIN_RETRY_SECONDS: Final = 1.0
"""How soon daemons and operators may come back to a controller that is closing: it may be restarting."""
STALE_RETRY_SECONDS: Final = 1.0
"""When to dial again whose connection was not its newest: mostly that is the end of it, but of a program that was
copied while it ran each copy makes the other's stale, for ever."""


@frozen
class Greeting:
    """What was said until the peer has introduced itself."""

    challenge: wire.Challenge
    challenged_at: float
    """By this program's clock."""
    hello: wire.Control | wire.Unknown


async def shake_hands(
    connection: Connection,
    controller_id: str,
    greet: Callable[[Connection, Greeting], Awaitable[wire.Reject | Stay]],
    audit: AuditSink,
    comings: Comings,
) -> Stay | None:
    """Challenge the peer, and have `greet` judge it: what serves it from now on, or None, and it was told why not.

    So nothing of the handshake is left while the link lives. Errors of the peer are logged, not raised.
    """
    challenge = wire.Challenge(secrets.token_bytes(32), controller_id)
    challenged_at = trio.current_time()
    try:
        hello = await _hear_hello(connection, challenge)
        reject = _judge_place(connection.path, hello)
        if reject is not None:
            comings.refuse(STRANGER, reject.code.value)
            audit.note(misbehaved(connection.remote, reject.message), from_stranger=True)
        else:
            answer = await greet(connection, Greeting(challenge, challenged_at, hello))
            if not isinstance(answer, wire.Reject):
                return answer
            reject = answer
        with trio.move_on_after(HANDSHAKE_SECONDS):
            await send_control(connection, reject)
        await connection.aclose(1008, reject.code.value)
    except RemoteProtocolError as error:
        comings.refuse(STRANGER, PROTOCOL)
        log.warning("connection_refused", remote=connection.remote, reason=str(error))
        audit.note(misbehaved(connection.remote, str(error)), from_stranger=True)
        # Whatever it was: nothing is heard of somebody who has not said who it is.
        await connection.aclose(1008, str(error)[:100])
    except ConnectionLost as error:
        log.info("connection_lost", remote=connection.remote, reason=str(error))
    return None


async def greet_with_pass(
    passes: Passes, judge: Callable[[Pass], Awaitable[wire.Reject | Stay]]
) -> wire.Reject | Stay:
    """The judgement of a peer that has a pass meanwhile; who is let in takes it along, to give it back itself."""
    given = passes.issue()
    answer: wire.Reject | Stay | None = None
    try:
        answer = await judge(given)
        return answer
    finally:
        if answer is None or isinstance(answer, wire.Reject):
            passes.take_back(given)


def note_judgement(
    connection: Connection,
    reject: wire.Reject | None,
    failures: FailedCredentials,
    comings: Comings,
) -> None:
    """What the judgement of its Hello means for the peer, and for others who come from its address."""
    now = trio.current_time()
    if reject is None:
        connection.admit()
        failures.proven(connection.host, connection.path, now)
    elif reject.code is wire.RejectCode.UNAUTHENTICATED and not connection.is_loopback:
        barred = failures.failed(connection.host, connection.path, now)
        if barred:
            comings.barred += 1
            log.warning("address_barred", remote=connection.remote, seconds=barred)


def _judge_place(path: str, hello: wire.Control | wire.Unknown) -> wire.Reject | None:
    """Who has dialled where others are taken is told where it belongs."""
    if isinstance(hello, wire.Hello) and path == wire.OPERATOR_PATH:
        where = f"daemons dial in at {wire.DAEMON_PATH}, and {path} is for operators"
    elif isinstance(hello, wire.OperatorHello) and path == wire.DAEMON_PATH:
        where = f"operators dial in at {wire.OPERATOR_PATH}, and {path} is for daemons"
    else:
        return None
    return wire.Reject(RejectCode.BAD_HELLO, where)


async def _hear_hello(
    connection: Connection, challenge: wire.Challenge
) -> wire.Control | wire.Unknown:
    with trio.move_on_after(HANDSHAKE_SECONDS):
        await send_control(connection, challenge)
        return await receive_control(connection)
    raise RemoteProtocolError(f"no Hello within {HANDSHAKE_SECONDS:.0f} s")


async def welcome_and_pump(
    connection: Connection, pump: Pump, welcome: wire.Welcome, kind: str, name: str
) -> None:
    """Let the peer in, and carry its frames until the link ends. Its errors are logged, with `name` as the `kind`."""
    try:
        with trio.fail_after(HANDSHAKE_SECONDS):
            await send_control(connection, welcome)
        del welcome  # a link lives for weeks, and there are thousands
        await pump.run()
    except trio.TooSlowError:
        log.info("disconnected", reason="it did not take the Welcome", **{kind: name})
    except RemoteProtocolError as error:
        log.warning("broke_protocol", reason=str(error), **{kind: name})
        await connection.aclose(1002, str(error)[:100])
    except ConnectionLost as error:
        log.info("disconnected", reason=str(error), **{kind: name})


def farewell(link: RouterLink, pump: Pump) -> None:
    """Tell the peer to come back later. Nothing that follows is read."""
    goodbye = wire.Goodbye("the controller is closing", DRAIN_RETRY_SECONDS)
    link.control(0, goodbye, late=True)  # behind the Ends of jobs
    pump.wake()
