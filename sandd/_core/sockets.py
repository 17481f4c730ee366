"""What both ends of a forwarded port do with sockets: connect, listen, and carry bytes both ways.

A socket here stands between a peer and the two streams of a job. Each direction ends by itself, as
those of TCP do; a connection that broke is never made to look like one that ended. Errors are OSErrors
with an errno, also where the system gives none, and say whom they speak of.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket as stdlib_socket
import struct
import sys
from typing import TYPE_CHECKING, Final

import trio

from sandd._core.interrupts import protected_context
from sandd._core.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from trio.socket import SocketType

    from sandd.wire import ConnectSpec, ListenSpec

log = get_logger("sockets")

PIECE_BYTES: Final = 128 * 1024
"""One read from a socket; it becomes one data frame."""
CONNECT_SECONDS: Final = 30.0
"""For a name to be looked up and a host to answer; Linux itself would wait for two minutes."""
SHORT_OF_SOCKETS: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
"""What accept(2) says while descriptors or memory are short: the connection waits, and is there later."""
SHORT_SECONDS: Final = 0.1
"""Before the next try; as trio's own `serve_listeners`."""
DRAIN_SECONDS: Final = 1.0
"""After sending has found the connection broken: for what came before, which may have nobody who takes it. And for a
peer to read what it has, and go by itself, where nobody hears it any more."""
TAKEN_SECONDS: Final = 0.02
"""Until it is first looked again whether a peer has taken all that was sent; then each time twice as long."""
SOCKET_MODE: Final = 0o600
"""Of a Unix socket that we make: what is at its other end is reached with our rights."""
HAS_UNIX_SOCKETS: Final = sys.platform != "win32"
_HEARS_NO_MORE: Final = frozenset({errno.EPIPE, errno.ENOTCONN})
"""What sending says when the peer had ended its own direction before: what it said is whole."""
_RESET_AT_CLOSE: Final = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)
"""struct linger: on, for no seconds."""


def describe(address: ConnectSpec | ListenSpec) -> str:
    """The address, for people."""
    if address.path:
        return os.fsdecode(address.path)
    host = f"[{address.host}]" if ":" in address.host else address.host
    return f"{host}:{address.port}"


def describe_peer(stream: trio.SocketStream) -> str:
    """The address at the other end, for people; "" where it has none."""
    with contextlib.suppress(OSError):
        match stream.socket.getpeername():
            case (str(host), int(port), *_):
                return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return ""


async def connect(target: ConnectSpec) -> trio.SocketStream:
    """A connection there; of a name with several addresses, to the first that answers (RFC 8305).

    Raises:
        OSError: there is none; ETIMEDOUT after 30 seconds, EHOSTUNREACH where its name means nothing.
    """
    name = describe(target)
    try:
        with trio.fail_after(CONNECT_SECONDS):
            if target.path:
                return await trio.open_unix_socket(target.path)
            return await trio.open_tcp_stream(target.host, target.port)
    except trio.TooSlowError as error:
        text = f"no answer within {CONNECT_SECONDS:g} seconds"
        raise OSError(errno.ETIMEDOUT, text, name) from error
    except (OSError, ValueError) as error:
        raise _complete(error, name) from error


@protected_context
async def listen(address: ListenSpec) -> AsyncIterator[trio.SocketListener]:
    """A listener there while the block lasts; of a name with several addresses, at the first.

    A Unix socket is for this user alone, and its path is removed at the end.

    Raises:
        OSError: there can't be one.
    """
    try:
        if address.path:
            listener = await _listen_at(address.path)
        else:
            listener, *others = await trio.open_tcp_listeners(address.port, host=address.host)
            for other in others:
                other.socket.close()
    except (OSError, ValueError) as error:
        raise _complete(error, describe(address)) from error
    with listener.socket:
        made = os.lstat(address.path) if address.path else None
        try:
            yield listener
        finally:
            if address.path and made is not None:
                _remove(address.path, made)


async def _listen_at(path: bytes) -> trio.SocketListener:
    if sys.platform == "win32":
        raise OSError(errno.EAFNOSUPPORT, "there are no Unix sockets on this system")
    socket = trio.socket.socket(stdlib_socket.AF_UNIX, stdlib_socket.SOCK_STREAM)
    try:
        await socket.bind(path)
        os.chmod(path, SOCKET_MODE)  # before anybody can connect
        socket.listen()
    except BaseException:
        socket.close()
        raise
    return trio.SocketListener(socket)


def _remove(path: bytes, made: os.stat_result) -> None:
    """Remove the socket that we made, unless something else has its place by now."""
    with contextlib.suppress(OSError):
        if os.path.samestat(os.lstat(path), made):
            os.unlink(path)


def _complete(error: OSError | ValueError, name: str) -> OSError:
    """The same as an OSError with an errno, and with the name of what it speaks of."""
    cause = error.__cause__
    if isinstance(cause, ExceptionGroup):  # one for each address that was tried
        causes = [each for each in cause.exceptions if isinstance(each, OSError) and each.errno]
        refused = [each for each in causes if isinstance(each, ConnectionRefusedError)]
        error = next(iter(refused or causes), error)
    if isinstance(error, stdlib_socket.gaierror | UnicodeError):
        # getaddrinfo(3) has numbers of its own, and Python checks names before it is asked.
        return OSError(errno.EHOSTUNREACH, f"the name can't be looked up: {error}", name)
    if not isinstance(error, OSError) or error.errno is None:
        return OSError(
            errno.EINVAL, str(error), name
        )  # Python's own word on a path that is too long
    return OSError(error.errno, os.strerror(error.errno), name)


async def accept(listener: trio.SocketListener) -> trio.SocketStream:
    """The next connection; it waits while this program is short of descriptors."""
    while True:
        try:
            return await listener.accept()
        except OSError as error:
            if error.errno not in SHORT_OF_SOCKETS:
                raise
            log.warning("accept_postponed", reason=str(error))
            await trio.sleep(SHORT_SECONDS)


async def carry(
    socket: SocketType,
    *,
    read: Callable[[], Awaitable[bytes]],
    write: Callable[[bytes], Awaitable[None]],
    finish: Callable[[], Awaitable[None]],
    left: Callable[[], Awaitable[None]] = trio.sleep_forever,
) -> None:
    """Carry bytes both ways until both directions have ended; the caller closes the socket.

    Holds no more than a piece each way. Cancelled, it stops where it is.

    Args:
        socket: of the peer.
        read: what is to be sent to it; b"" at the end, which ends that direction alone.
        write: takes what came from it.
        finish: called at the end of that; not if the connection broke, for then it is no end.
        left: returns once nobody hears the peer any more. When it has taken all that was sent, and its end, it has a
            second to go by itself; then receiving ends, as closing a socket ends it for a peer that goes on talking.

    Raises:
        OSError: the connection broke.
        trio.BrokenResourceError: from `write`, which takes no more; all that was to be read was sent before.
        Exception: what `read`, `write` or `finish` raised otherwise.
    """
    _let_it_fill(socket)
    failures: list[Exception] = []
    refusals: list[Exception] = []
    receiving, heard = trio.CancelScope(), trio.CancelScope()

    @trio.lowlevel.enable_ki_protection
    async def send_all() -> None:
        try:
            while piece := await read():
                with memoryview(piece) as view:
                    sent = 0
                    while sent < len(view):
                        sent += await socket.send(view[sent:])
            socket.shutdown(stdlib_socket.SHUT_WR)
            with heard:
                await left()
                await _wait_taken(socket)
                receiving.deadline = trio.current_time() + DRAIN_SECONDS
        except OSError as error:
            # Receiving goes on: what had come before is there, and what follows tells the rest. But the
            # system tells a break once, so an end that is found behind it is not to be believed.
            if error.errno not in _HEARS_NO_MORE:
                failures.append(error)
                receiving.deadline = trio.current_time() + DRAIN_SECONDS
        except Exception as error:
            failures.append(error)
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send_all)
        try:
            with receiving:
                while piece := await socket.recv(PIECE_BYTES):
                    await write(piece)
            if not failures:
                await finish()
        except trio.BrokenResourceError as error:
            refusals.append(error)
        except Exception as error:
            failures.append(error)
        heard.cancel()
        if failures:
            nursery.cancel_scope.cancel()
    if failures or refusals:
        raise (failures or refusals)[0]


async def _wait_taken(socket: SocketType) -> None:
    """Return when the peer's system has all that was sent, and the end of that. Never where ours doesn't tell."""
    if sys.platform != "linux":
        await trio.sleep_forever()
    import fcntl
    import termios

    left, pause = bytearray(4), TAKEN_SECONDS
    while fcntl.ioctl(socket.fileno(), termios.TIOCOUTQ, left) or any(left):
        await trio.sleep(pause)
        pause *= 2


def _let_it_fill(socket: SocketType) -> None:
    """Undo what trio does for latency's sake: it would take a piece in eight, each after a turn of the loop."""
    with contextlib.suppress(OSError, AttributeError):
        socket.setsockopt(stdlib_socket.IPPROTO_TCP, trio.socket.TCP_NOTSENT_LOWAT, 2 * PIECE_BYTES)


def reset_at_close(socket: SocketType) -> None:
    """Have its closing tell the peer that the connection broke, where there is a way to tell: TCP's RST."""
    with contextlib.suppress(OSError):
        socket.setsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_LINGER, _RESET_AT_CLOSE)
