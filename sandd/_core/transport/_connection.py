"""`Connection`: one WebSocket connection that is open, and the tasks behind it.

A connection's background runs in a task of its own, shielded from its owner's
cancellation, so that the closing handshake can still happen; it ends when the connection does.

Where the owner reads all the time, as a controller does, the background and trio-websocket are not there
until something comes that is no whole message, or the connection is to be closed: the connection is *quiet*.
It is read by its owner's task, with as few functions as can be on the way of a message, and the background is handed
what it leaves. Of thousands of idle connections each takes a third of the memory so.
"""

from __future__ import annotations

import math
from enum import Enum, auto
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NoReturn, final

import trio
import trio_websocket
from wsproto.events import AcceptConnection

from sandd._core._errors import ConnectionLost, RemoteProtocolError
from sandd._core.large_buffers import keep_large_buffers
from sandd._core.logs import get_logger
from sandd._core.transport._http import BUNDLE_HEADER
from sandd._core.transport._protocol import AGAIN, GuardedProtocol, keep
from sandd._core.transport._secure_stream import why_broken

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from sandd._core.transport._secure_stream import SecureStream
    from sandd._core.transport._streams import MeteredStream
    from sandd.wire import Buffer

MAX_WAITING_BYTES: Final = 16 * 1024 * 1024
"""Messages that arrived and nobody took, in bytes; beyond it we stop reading until half is taken.

Credit keeps honest peers far below: it is what a router lets be outstanding on a link. So the
reader is never held up by a consumer that is slow for a moment, pings are answered and a close is
noticed; and a peer that ignores credit meets TCP's back-pressure, not the end of our memory.
"""

BREACH_TIMEOUT: Final = 1.0
"""Seconds a peer that broke the rules gets to take the close frame that tells it which."""

WORD_BYTES: Final = 128
"""Of what comes from one that rests, as much is taken in the turn of all of them: a heartbeat has 30."""

log = get_logger("transport")


class _State(Enum):
    OPENING = auto()  # the handshake isn't answered
    OPEN = auto()
    CLOSING = auto()  # our close frame is due, or gone; nothing more is sent
    OVER = auto()  # the reader has ended, the socket is closed


# Enum members are bound here because looking one up by its class costs as much as a function call (Python 3.11).
_OPENING: Final = _State.OPENING
_OPEN: Final = _State.OPEN


@final
class Connection:
    """A WebSocket connection; `connect` and `serve` make them.

    One task may send while another receives. Whoever got the connection owns its end: leaving
    `connect`, or returning from the handler, closes it.
    """

    # With a dict each would take a KiB more, and each look at it longer.
    __slots__ = (
        *("_answering_pings", "_back", "_failure", "_goodbye", "_left", "_may_wait"),
        *("_meter", "_nursery", "_protocol", "_reading", "_replay", "_room"),
        *("_send_was_cut", "_state", "_stream", "_taken", "_wants_more", "_watched"),
        *("_websocket", "_write_failed", "_write_lock", "channel_binding", "headers"),
        *("host", "is_at_rest", "is_loopback", "local", "on_admitted", "path", "peer_identity"),
        *("remote",),
    )

    remote: str
    """``host:port`` of the peer."""
    host: str
    """The peer's address, without the port."""
    local: str
    """``host:port`` on this side."""
    is_loopback: bool
    """The peer runs on this machine: its address is a loopback address."""
    path: str
    """The path of the request, without its query."""
    headers: Mapping[str, str]
    """The request's headers, server side, until `admit`: lower-case names, repeated ones joined by commas."""
    is_at_rest: bool
    """Nothing is expected of the peer: see `rest`."""
    on_admitted: Callable[[], None] | None
    """For `serve`: what `admit` means."""
    channel_binding: bytes
    """SHA-256 of the server's certificate, in DER, the same at both ends of one TLS connection; empty without TLS.
    Whoever stands in between with a certificate of his own can't make the two the same."""
    peer_identity: str | None
    """The URI in the client certificate that was verified, server side; None: there was none."""

    def __init__(
        self,
        meter: MeteredStream,
        stream: MeteredStream | SecureStream,
        protocol: GuardedProtocol,
        *,
        path: str,
        request_target: str | None = None,
        host: str | None = None,
        subprotocol: str,
        request_headers: Iterable[tuple[bytes, bytes]] = (),
        channel_binding: bytes = b"",
        peer_identity: str | None = None,
    ) -> None:
        keep_large_buffers()
        self.is_at_rest = False
        self.on_admitted = None
        self.channel_binding = channel_binding
        self.peer_identity = peer_identity
        self.remote = str(meter.remote)
        self.host = meter.remote.host
        self.local = str(meter.local)
        self.is_loopback = meter.remote.is_loopback
        self.path = path
        headers: dict[str, str] = {}
        if not protocol.client:
            for raw_name, raw_value in request_headers:
                name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
                headers[name] = f"{headers[name]}, {value}" if name in headers else value
        self.headers = MappingProxyType(headers)

        self._state = _State.OPENING
        self._meter = meter
        self._stream = stream
        self._protocol = protocol
        self._watched = _WatchedStream(self, stream)
        self._write_lock = trio.StrictFIFOLock()
        self._websocket: trio_websocket.WebSocketConnection | None = None
        if protocol.client:
            self._websocket = self._open_websocket(
                host=host,
                path=request_target,
                client_subprotocols=[subprotocol],
                client_extra_headers=list(request_headers),
            )
        self._nursery: trio.Nursery | None = None  # where the background runs, from `start` on
        self._back: _Background | None = None
        self._reading: trio.CancelScope | None = None  # of the owner, while the connection is quiet
        self._wants_more = False  # so does the owner, who reads quietly
        self._replay: bytes | None = None  # what it read last, for the background
        self._left = b""  # what the owner has read and not taken yet; see `GuardedProtocol.deliver`
        self._send_was_cut = False
        self._write_failed = False
        self._answering_pings = False
        self._taken = 0  # as GuardedProtocol.charged, of the messages that were received
        # Somebody whose messages may only be short has no more of them waiting, either.
        self._may_wait = float(min(MAX_WAITING_BYTES, 16 * protocol.max_message_bytes))
        self._room: trio.lowlevel.ParkingLot | None = None  # where the reader waits for some
        self._failure: Exception | None = None  # what the socket said when it broke
        self._goodbye: int | None = None  # the code this side closed with

    def __repr__(self) -> str:
        role = "to" if self._protocol.client else "from"
        return f"<Connection {role} {self.remote}{self.path} {self._state.name.lower()}>"

    def _open_websocket(self, **of_client: Any) -> trio_websocket.WebSocketConnection:
        websocket = trio_websocket.WebSocketConnection(
            self._watched,
            self._protocol,
            # The guard has bounded each message, and MAX_WAITING_BYTES all of them together.
            max_message_size=_UNLIMITED_BYTES,
            message_queue_size=_UNLIMITED_MESSAGES,
            receive_buffer_size=None,
            **of_client,
        )
        websocket._stream_lock = self._write_lock
        return websocket

    def admit(self) -> None:
        """The peer has said who it is, and may stay: it takes up no stranger's place any more (`serve`)."""
        self.headers = _NO_HEADERS
        if self.on_admitted is not None:
            self.on_admitted()
            self.on_admitted = None

    def rest(self) -> None:
        """Nothing is expected of the peer until `stir`.

        What it says meanwhile may be received a little later, together with what others say, if this is quiet and
        `serve` was told how much later.
        """
        self.is_at_rest = True

    def stir(self) -> None:
        """Something is expected of the peer: what it says is received at once."""
        self.is_at_rest = False
        self._meter.end_rest()

    @property
    def line(self) -> MeteredStream:
        """What has passed so far, to be looked at: the same object always, for whoever does so often."""
        return self._meter

    def limit_unsent(self, count: int) -> None:
        """Let the kernel take about so many bytes beyond what the network has."""
        if self._state is not _State.OVER:
            self._meter.limit_unsent(count)

    async def send_message(self, message: bytes, *more: Buffer) -> None:
        """Send one binary message, with more of it in pieces that nobody changes, as one frame. One task at a time.

        When cancelled, half a frame may be gone and nothing sensible can follow: the connection is
        of no more use, and every later call raises `ConnectionLost`.

        Raises:
            ConnectionLost: it did not arrive, or not whole; or it did, and that can't be known.
        """
        if not isinstance(message, bytes):
            raise TypeError(f"a message must be bytes, not {type(message).__name__}")
        if self._send_was_cut:
            raise ConnectionLost(f"an earlier message to {self.remote} was cut short")
        if self._state is not _OPEN:
            await trio.lowlevel.checkpoint()
            raise self._loss() from self._failure
        self._send_was_cut = True  # until it has come to its end
        # Not by trio-websocket, and so not by wsproto, which copies and masks in Python: half the cost.
        lock = self._write_lock
        try:
            lock.acquire_nowait()  # where nobody has it, without a turn of the loop
        except trio.WouldBlock:
            await lock.acquire()
        try:
            if not self._protocol.is_open:
                raise self._loss() from self._failure
            await trio.lowlevel.checkpoint_if_cancelled()
            encoded = self._protocol.encode_message(message, *more)
            if not self._stream.send_nowait(*encoded):
                await self._watched.send_all(b"".join(encoded))
            elif self._stream.has_unsent:
                await self._watched.send_all(b"")
            else:
                await trio.lowlevel.cancel_shielded_checkpoint()
        finally:
            lock.release()
        if self._write_failed:
            raise self._loss() from self._failure
        self._send_was_cut = False

    def allow_messages(self, max_bytes: int) -> None:
        """From now on, messages may have up to `max_bytes`: the peer is known."""
        self._protocol.max_message_bytes = max_bytes
        self._may_wait = max(self._may_wait, float(MAX_WAITING_BYTES))
        self._tell_room()

    def send_message_nowait(self, message: bytes, *more: Buffer) -> bool:
        """Send one message at once, without a checkpoint; False: it was not sent.

        For the task that would have to wake a writer first, and only while no writer is sending.
        The kernel may leave a part for later: follow up with `flush` from the writer.
        """
        if self._state is not _OPEN or self._send_was_cut:
            return False
        protocol = self._protocol
        if not (protocol.is_between or protocol.is_open):
            return False  # the peer has said goodbye, and the reader is at it
        # Whoever has the lock writes, or is about to: frames may go in any order, and each goes as a whole.
        return self._stream.send_nowait(*protocol.encode_message(message, *more))

    @property
    def has_unsent(self) -> bool:
        """`send_message_nowait` left something for `flush`."""
        return self._stream.has_unsent

    async def flush(self) -> None:
        """Send what `send_message_nowait` left, if anything. Fails as `send_message` does."""
        if self._stream.has_unsent:
            self._send_was_cut = True
            async with self._write_lock:
                try:
                    await self._stream.send_all(b"")
                except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
                    self._write_failed = True
                    self._failure = self._failure or exc
                    raise self._loss() from exc
            self._send_was_cut = False

    async def receive_message(self) -> bytes:
        """The next binary message. One task at a time; a cancelled call loses nothing.

        Raises:
            ConnectionLost: there are no more, whether by a clean close (then with its code) or not.
            RemoteProtocolError: the peer broke WebSocket's rules or our limits (text, a message too
                long or in too many fragments, ...); it is being told by the fitting close code.
        """
        if self._websocket is None:
            if self._stream.has_unsent:  # the answer to the upgrade, where we don't speak first
                await self.flush()
            taken: list[bytes] = []

            def take(message: bytes) -> bool:
                if taken:
                    return False  # for whoever asks next
                taken.append(message)
                self._wants_more = False
                return True

            self._protocol.hand_over = take
            try:
                with trio.CancelScope() as self._reading:
                    await self._read_quietly()
            finally:
                self._protocol.hand_over = keep
            if taken:
                return taken[0]
        return await self._receive_message()

    async def _receive_message(self) -> bytes:
        """`receive_message`, where the background reads."""
        assert self._websocket is not None
        try:
            message = await self._websocket.get_message()
        except trio_websocket.ConnectionClosed:
            if self._protocol.breach is not None:
                breach = self._protocol.breach
                raise RemoteProtocolError(
                    f"{self.remote} sent what may not be sent ({breach.code}): {breach.reason}"
                ) from None
            raise self._loss() from self._failure
        return self._take_waiting(message)

    def _waiting_message(self) -> bytes | None:
        """One that the background has read and nobody has received yet, if there is one at hand."""
        if self._websocket is None or self._protocol.charged == self._taken:
            return None
        try:
            return self._take_waiting(self._websocket._recv_channel.receive_nowait())
        except (trio.WouldBlock, trio.EndOfChannel, trio.ClosedResourceError):
            return None  # whoever waits for one is told why

    def _take_waiting(self, message: object) -> bytes:
        assert isinstance(message, bytes)  # the guard lets no text through
        self._taken += self._protocol.cost_of(message)
        if self._waiting_bytes <= self._may_wait / 2:
            self._tell_room()
        return message

    async def deliver_messages(
        self, receive: Callable[[bytes], bool], go_on: Callable[[], bool]
    ) -> NoReturn:
        """Call `receive` for every message as it arrives: in the reader's turn, not a turn later.

        It returns whether it is done with the message. If not, `go_on` is called once a turn until that
        says so, and what arrives meanwhile waits: no message, whatever is in it, holds up other tasks.

        Ends as `receive_message` does, or with what either raised; then neither is called again.
        """
        failure: Exception | None = None
        done = True
        protocol = self._protocol

        def hand_over(message: bytes) -> bool:
            nonlocal failure, done
            if failure is None:
                if not done or protocol.charged != self._taken:
                    return False  # one that came before us still waits, to be received below
                try:
                    done = receive(message)
                except Exception as error:  # whatever it is, it is this task's to raise
                    failure = error
                if failure is not None or not done:
                    self._wants_more = False
                    waiting.cancel()  # this task has something to do about what came of it
            return True

        protocol.hand_over = hand_over
        try:
            while failure is None:
                if not done:
                    await trio.lowlevel.checkpoint()
                    try:
                        done = go_on()
                    except Exception as error:
                        failure = error
                    continue
                message: bytes | None = None
                with trio.CancelScope() as waiting:
                    if self._websocket is None:
                        self._reading = waiting
                        await self._read_quietly()
                    else:
                        message = await self._receive_message()
                while message is not None:
                    try:
                        done = receive(message)
                    except Exception as error:
                        failure = error
                    # Those that wait behind it, too: if one were left, all that come would wait for a turn.
                    message = self._waiting_message() if done and failure is None else None
        finally:
            protocol.hand_over = keep
        raise failure

    async def _read_quietly(self) -> None:
        """Read in this task, which has opened `_reading`, until it wants no more, or the background has to.

        Raises:
            ConnectionLost: the stream has ended.
        """
        protocol, stream = self._protocol, self._stream
        has_ended = False
        self._wants_more = True
        try:
            while self._wants_more:
                if self._state is not _OPEN:
                    await trio.lowlevel.checkpoint()
                    raise self._loss() from self._failure
                if self._left:
                    await trio.lowlevel.checkpoint()
                    left, self._left = self._left, b""
                    self._leave(protocol.deliver_left(left))
                    del left  # as `data` below
                    continue
                if self.is_at_rest and self._meter.may_rest and not stream.has_more:
                    data = await self._meter.rest(self._look)
                    if data is None:
                        continue
                else:
                    data = await stream.receive_some()
                if not data:
                    has_ended = True
                    break
                self._leave(protocol.deliver(data))
                # It is large, and the next may be long in coming; should that break, its error would keep this.
                del data
        except trio.BrokenResourceError as exc:
            self._failure = self._failure or exc
            has_ended = True
        except trio.ClosedResourceError:
            has_ended = True
        finally:
            self._reading = None
        if has_ended and self._websocket is None:  # else the background tells why
            raise self._end_quietly() from self._failure

    def _leave(self, left: bytes | None) -> None:
        """This of what was read is not delivered, and is for whoever reads next."""
        if not left:
            return
        if self._websocket is not None:
            # Somebody closes it in this very turn: the background reads on behind what we have read.
            self._protocol.receive_data(left)
        elif not self._wants_more:
            self._left = left
        else:
            self._wake(left)

    def _look(self) -> None:
        """At what has come while it rests: a short word is taken here, as its owner would; the rest is left to that."""
        data = self._stream.receive_ready()
        if data is None:
            return
        if not data or len(data) > WORD_BYTES:
            self._meter.end_rest(data)
            return
        self._leave(self._protocol.deliver(data))
        if not (self._wants_more and self.is_at_rest) or self._stream.has_more:
            self._meter.end_rest()

    def _end_quietly(self) -> ConnectionLost:
        """The stream has ended, and there is nobody to say goodbye to: no background is needed for that."""
        self._state = _State.OVER
        self._meter.close()
        self._protocol.forget_half()
        return self._loss()

    async def aclose(self, code: int = 1000, reason: str = "", *, timeout: float = 2.0) -> None:
        """Say goodbye, and close the socket within `timeout` seconds whatever the peer does.

        Works in a cancelled scope (it is shielded), after a failure and more than once: the first
        call chooses code and reason, a later one waits with it, and can only shorten the time.
        """
        if self._nursery is None or (self._back is None and self._state is _State.OVER):
            self._meter.close()
            return
        if self._back is None:
            self._wake(None)
        assert self._back is not None
        with trio.CancelScope(shield=True):  # bounded by _begin_close()'s deadline
            await self._back.running.wait()
            self._begin_close(code, reason, timeout)
            await self._back.ended.wait()

    # ---- for connect() and serve() --------------------------------------------------------------

    async def accept(
        self, subprotocol: str, headers: list[tuple[bytes, bytes]], *, speaks_first: bool = False
    ) -> None:
        """Answer the upgrade request that the protocol has read (server side, before `start`).

        Args:
            subprotocol: the one to be spoken.
            headers: to be in the answer besides.
            speaks_first: the owner has something to say at once: the answer goes with it.
        """
        # Not by trio-websocket, which may not be needed at all.
        answer = AcceptConnection(subprotocol=subprotocol, extra_headers=headers)
        if speaks_first and self._stream.is_idle:
            self._stream.put_before_all(self._protocol.send(answer))
        else:
            await self._watched.send_all(self._protocol.send(answer))
        if self._write_failed:
            raise self._loss() from self._failure
        self._state = _State.OPEN

    def start(self, nursery: trio.Nursery, *, quietly: bool = False) -> None:
        """Run the background in `nursery`: from now on only `aclose` ends it on this side.

        Not by `nursery.start`: called in a scope that is being cancelled that would wait for a task
        which is shielded, and so for ever.

        Args:
            quietly: not before it is needed. Until then nobody notices what the peer does while the owner doesn't read.
        """
        self._nursery = nursery
        if not quietly:
            self._start_background()

    def _start_background(self) -> None:
        assert self._nursery is not None
        if self._websocket is None:
            self._websocket = self._open_websocket()
        self._back = _Background()
        self._nursery.start_soon(self._attend, self._back, name=repr(self))

    def _wake(self, left: bytes | None) -> None:
        """The connection is quiet no more; `left` is what was read last, and is for the background."""
        self._replay = self._left or None if left is None else left
        self._start_background()
        if self._reading is not None:
            self._reading.cancel()
            self._wants_more = False

    async def wait_answered(self) -> None:
        """Wait for the answer to our upgrade request (client side, after `start`).

        Raises:
            ConnectionLost: it was refused, or the server is something else; the message says which.
        """
        assert self._back is not None
        await self._back.answered.wait()
        if self._protocol.accepted:
            return  # what came behind the answer, be it a close frame, is for receive_message()
        refusal = self._protocol.refusal
        if refusal is not None:
            text = " ".join(refusal.body.decode("utf-8", "replace").split())
            shown = "".join(c if c.isprintable() else "?" for c in text)
            raise ConnectionLost(
                f"it refused the WebSocket handshake with HTTP status {refusal.status}"
                + (f": {shown}" if shown else ""),
                retry_after=refusal.retry_after,
            )
        error = self._protocol.handshake_error
        if error is not None:
            raise ConnectionLost(f"its answer is no WebSocket handshake ({error})") from error
        if self._failure is not None:
            raise ConnectionLost(
                f"the connection broke in the WebSocket handshake ({_why(self._failure)})"
            ) from self._failure
        raise ConnectionLost("it closed the connection in the WebSocket handshake")

    @property
    def subprotocol(self) -> str | None:
        """What the server chose (client side)."""
        return None if self._websocket is None else self._websocket.subprotocol

    @property
    def bundle_digest(self) -> str:
        """What the server says of the CA certificates that it has for us (client side); "" if nothing."""
        for name, value in () if self._websocket is None else self._websocket.handshake_headers:
            if name.lower() == BUNDLE_HEADER:
                return value.decode("ascii", "replace")
        return ""

    # ---- the background -------------------------------------------------------------------------

    @trio.lowlevel.enable_ki_protection
    async def _attend(self, back: _Background) -> None:
        """All of it, until the connection is over. Raises nothing but what ends programs."""
        assert self._websocket is not None
        try:
            with back.lifetime:
                async with trio.open_nursery() as back.nursery:
                    back.running.set()
                    try:
                        await self._websocket._reader_task()
                    finally:
                        # A peer that can't be heard any more isn't spoken to, either: no writer may
                        # wait for it. At once, as the nursery takes no more tasks from here on.
                        self._state = _State.OVER
                        back.lifetime.cancel()
        except Exception as exc:
            # A mistake of ours or of trio-websocket's costs this connection, and no other.
            self._failure = exc
            log.exception("connection_failed_inside", remote=self.remote)
        finally:
            self._state = _State.OVER
            self._meter.close()
            self._protocol.forget_half()
            back.answered.set()
            back.ended.set()

    def _after_turn(self) -> None:
        """Act on what the guard kept from trio-websocket. Runs in the reader, before each read."""
        protocol, back = self._protocol, self._back
        assert back is not None  # it is who reads
        if self._state is _OPENING:
            if protocol.accepted:
                self._state = _State.OPEN
            if protocol.accepted or protocol.refusal or protocol.handshake_error:
                back.answered.set()
        if protocol.breach is not None:
            self._begin_close(protocol.breach.code, protocol.breach.reason, BREACH_TIMEOUT)
        elif protocol.ping is not None and not self._answering_pings:
            self._answering_pings = True
            assert back.nursery is not None  # the reader runs in it
            assert self._websocket is not None
            back.nursery.start_soon(self._answer_pings, self._websocket)

    @trio.lowlevel.enable_ki_protection
    async def _answer_pings(self, websocket: trio_websocket.WebSocketConnection) -> None:
        # Not in the reader: a pong waits for the message being written, and two peers whose readers
        # wait for their writers wait for ever.
        try:
            while (payload := self._protocol.take_ping()) is not None:
                await websocket.pong(payload)
        except trio_websocket.ConnectionClosed:
            pass  # a side has said goodbye: nobody waits for it, and it may not be sent any more
        finally:
            self._answering_pings = False

    async def _wait_room(self) -> None:
        self._room = trio.lowlevel.ParkingLot()
        while self._waiting_bytes > self._may_wait:
            await self._room.park()
        self._room = None

    def _tell_room(self) -> None:
        if self._room is not None:
            self._room.unpark_all()

    @property
    def _waiting_bytes(self) -> int:
        return self._protocol.charged - self._taken

    def _begin_close(self, code: int, reason: str, timeout: float) -> None:
        if self._state is _State.OVER:
            return
        back = self._back
        assert back is not None
        assert back.nursery is not None
        deadline = trio.current_time() + timeout
        back.parting.deadline = min(back.parting.deadline, deadline)
        if self._state is not _State.CLOSING:
            self._state = _State.CLOSING
            self._goodbye = code
            back.nursery.start_soon(self._part, back, code, reason)

    @trio.lowlevel.enable_ki_protection
    async def _part(self, back: _Background, code: int, reason: str) -> None:
        assert self._websocket is not None
        with back.parting:
            # Unread messages go unread; but the peer's close frame is behind them.
            self._may_wait = math.inf
            self._tell_room()
            if self._protocol.peer_close is not None:
                # The answer is on its way. A server ends TCP after it, and a client waits for that
                # (RFC 6455 s. 7.1.1); the reader's end ends this wait.
                await trio.sleep_forever()
            elif not self._meter.torn and not self._write_failed:
                await self._websocket.aclose(code, reason)
        self._meter.close()
        back.lifetime.cancel()

    def _loss(self) -> ConnectionLost:
        """Why nothing more is sent or received; raise it `from` ``self._failure``."""
        close = self._protocol.peer_close
        if close is not None:
            said = f" ({close.reason})" if close.reason else ""
            code = "no code" if close.code is None else f"code {close.code}"
            return ConnectionLost(
                f"{self.remote} closed the connection with {code}{said}", code=close.code
            )
        if self._failure is not None:
            return ConnectionLost(f"the connection to {self.remote} broke: {_why(self._failure)}")
        if self._goodbye is not None:
            return ConnectionLost(
                f"this side closed the connection to {self.remote} with code {self._goodbye}"
            )
        return ConnectionLost(f"the connection to {self.remote} ended without a goodbye")


def _why(failure: Exception) -> str:
    return why_broken(failure) if isinstance(failure, trio.BrokenResourceError) else str(failure)


_NO_HEADERS: Final[Mapping[str, str]] = MappingProxyType({})
_UNLIMITED_BYTES: Final = 2**63
_UNLIMITED_MESSAGES: Final = 2**31


@final
class _Background:
    """What runs of a connection beside its owner."""

    def __init__(self) -> None:
        self.answered = trio.Event()  # the handshake got an answer, or never will
        self.running = trio.Event()  # it can be given tasks
        self.ended = trio.Event()  # it is over: no task, no socket
        self.lifetime = trio.CancelScope(shield=True)
        self.parting = trio.CancelScope()
        self.nursery: trio.Nursery | None = None


@final
class _WatchedStream(trio.abc.Stream):
    """The stream as trio-websocket sees it: its reader asks here for more, and is told to wait."""

    def __init__(self, connection: Connection, stream: MeteredStream | SecureStream) -> None:
        self._connection = connection
        self._stream = stream

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        while self._connection._reading is not None:  # its owner, who has been told to stop
            await trio.lowlevel.checkpoint()
        connection, protocol, stream = self._connection, self._connection._protocol, self._stream
        left, connection._replay = connection._replay, None
        if left is not None:
            return left
        while True:
            connection._after_turn()
            if protocol.has_more:
                await trio.lowlevel.checkpoint()
                return AGAIN
            if protocol.charged - connection._taken > connection._may_wait:
                await connection._wait_room()
            try:
                data = await stream.receive_some(max_bytes)
            except trio.BrokenResourceError as exc:
                connection._failure = connection._failure or exc
                raise
            if not data:
                return b""
            if left := protocol.deliver(data):
                return left
            del data  # as above: see `_read_quietly`

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        # A failed write is kept from trio-websocket, which would throw away what the peer said
        # before it went, a close frame with the reason most of all. The reader meets the end soon.
        try:
            await self._stream.send_all(data)
        except trio.BrokenResourceError as exc:
            self._connection._write_failed = True
            self._connection._failure = self._connection._failure or exc
        except trio.ClosedResourceError:
            self._connection._write_failed = True

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self._stream.aclose()
