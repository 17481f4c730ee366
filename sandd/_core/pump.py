"""Moves frames between one live connection and the state machines; keeps the link alive, or ends it.

A reader, and a writer where something can't be sent at once, in one nursery that ends with the connection; and a timer,
which many links may share (`link_watch`). The machines never await: the reader hands them frames, the writer asks their
scheduler what to send.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import trio

from sandd import wire
from sandd._core._errors import ConnectionLost, RemoteProtocolError
from sandd._core.link import Liveness, Verdict
from sandd._core.link_watch import LinkWatch
from sandd._core.logs import get_logger
from sandd._core.metrics.link_bytes import LinkBytes
from sandd._core.pace import Pace
from sandd._core.scheduler import message_bytes

log = get_logger("link")

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sized

    from sandd._core.scheduler import Message, Scheduler
    from sandd._core.transport import Connection

CROWD_SECONDS = 0.0002
"""After a message that was sent at once, how long the next ones wait for the writer's turn: about as long
as sending one takes."""
FRAMES_PER_TURN = 128
"""Frames of one message taken before other tasks run. Ours are mostly fewer in a message; but 2 MiB hold 80,000 pings,
two seconds of work (m)."""
FRAMES_PER_READ = 1024
"""The same of all messages that came at once, which may be 512: most have one or two frames, and whoever is told to
wait takes what follows a turn later (m)."""
_NONE: Iterator[wire.Frame] = iter(())
ALWAYS: Final = ("a word",)
"""Expected of a peer that may say something at any time."""
UNREAD = "the peer does not read: too many control messages wait for it"
HANDSHAKE_SECONDS = 10.0
"""From the first byte of a connection to Welcome or Reject."""


async def send_control(connection: Connection, message: wire.Control) -> None:
    """Send one link message by itself: for the handshake, when no pump runs yet."""
    head, body = wire.encode_control(0, message)
    await connection.send_message(head + body)


async def receive_control(connection: Connection) -> wire.Control | wire.Unknown:
    """Receive one link message by itself; RemoteProtocolError for anything but one small control frame."""
    message = await connection.receive_message()
    frames = list(wire.decode_frames(message, max_bytes=wire.MAX_HELLO_BYTES))
    if len(frames) != 1 or frames[0].type is not wire.FrameType.CONTROL or frames[0].channel != 0:
        raise RemoteProtocolError("one control frame on channel 0 was expected")
    return wire.decode_control(frames[0])


class Pump:
    """One live link. `run` it in its connection's task; call `wake` when its scheduler has something."""

    # With a dict each link would take a KiB more.
    __slots__ = (
        *("_after_message", "_after_pull", "_answered", "_begun", "_closed_reason"),
        *("_connection", "_crowd_until", "_expecting"),
        *("_frames", "_frames_left", "_given_up", "_heard"),
        *("_idle", "_is_over", "_line", "_liveness", "_may_answer", "_meter", "_now", "_nursery"),
        *("_on_frame", "_outcome", "_own_lag", "_pace", "_parked", "_patience", "_ping_number"),
        *("_pongs", "_read_at", "_ready", "_scheduler", "_unanswered", "_watch", "_writer"),
        *("bytes_received", "bytes_sent", "goodbye", "interval"),
    )

    def __init__(
        self,
        connection: Connection,
        scheduler: Scheduler,
        on_frame: Callable[[wire.Frame], None],
        *,
        heartbeat: float,
        dead_after: float,
        after_message: Callable[[], None] = lambda: None,
        after_pull: Callable[[], None] = lambda: None,
        may_answer: Callable[[], bool] | None = None,
        meter: LinkBytes | None = None,
        watch: LinkWatch | None = None,
        expecting: Sized = ALWAYS,
    ) -> None:
        self._connection = connection
        self._scheduler = scheduler
        self._on_frame = on_frame
        self._after_message = after_message
        self._after_pull = after_pull
        """Called when sources have been asked for what they have: they may want more for the next time."""
        self._may_answer = may_answer
        """Whether a ping may be answered: it says that all before it is safe. If not, `answer` is called later.
        None: always."""
        self._now = trio.lowlevel.current_clock().current_time
        """`trio.current_time`, which looks for the clock anew each time."""
        self._liveness = Liveness(self._now(), heartbeat, dead_after)
        self._patience = self._liveness.patience
        self._line = connection.line
        self._heard = self._line.bytes_received
        """So many bytes had come when it was last looked for a sign of life."""
        self._own_lag = self._liveness.own_lag
        self.interval = self._liveness.interval
        """Seconds between two looks of the `LinkWatch`."""
        self._pace = Pace()
        self._watch = watch
        """What looks after it with many others; None: its own."""
        self._expecting = expecting
        """Something is expected of the peer while there is anything in it; and from `wake` on, to its next ping."""
        self._nursery: trio.Nursery | None = None
        """Of its tasks, while it runs."""
        self._writer: _Writer | None = None
        """Its task; None: there is none, nor anything for it to do."""
        self._parked = False
        """The writer waits for `wake`, if there is one, and everything before has been sent."""
        self._crowd_until = 0.0
        """Until then, whoever has something to send is not alone."""
        self._begun: tuple[int, float] | None = None
        """Size and time of a message that was sent at once, and of which the kernel has left some."""
        self._ready: Message | None = None
        """A message taken from the scheduler that stands before what it gives next."""
        self._idle: trio.Event | None = None
        """Where somebody waits for the writer to park."""
        self._is_over = False
        """Nothing more will be sent."""
        self._frames: Iterator[wire.Frame] = _NONE
        """Those of the latest message that have not been taken yet."""
        self._frames_left = FRAMES_PER_READ
        """So many more of one read are taken before other tasks run."""
        self._read_at = 0
        """The connection's `bytes_received` at that read."""
        self._unanswered: int | None = None
        """The number of the latest ping, if that has not been answered."""
        self._given_up = False
        """The peer is dead, as far as we can tell."""
        self._ping_number = 0
        self._answered = 0
        """The latest of our pings that the peer has answered."""
        self._pongs: trio.Event | None = None
        """Where somebody waits for an answer."""
        self._closed_reason: str | None = None
        self._outcome: ConnectionLost | RemoteProtocolError | None = None
        """How it ended, if not by us."""
        self.goodbye: wire.Goodbye | None = None
        """The peer's farewell, if it said one."""
        self.bytes_received = 0
        self.bytes_sent = 0
        self._meter = LinkBytes() if meter is None else meter
        """The same of all links of its kind."""

    def wake(self) -> None:
        """The scheduler has something to send.

        A message goes out at once, which saves three turns of the loop; of a large one, what the kernel takes. What
        follows soon is left to the writer, all in one message: in a crowd, batching is worth more.
        """
        scheduler = self._scheduler
        answers = scheduler.pong is not None and scheduler.only_answers
        if self._connection.is_at_rest and not answers:
            self._connection.stir()
        if scheduler.overrun:
            self.close(UNREAD)
        clock = self._now  # (to call what is not a method by its name takes Python longer)
        now = clock()
        if self._parked and now >= self._crowd_until:
            # Whom the pull wakes may wake us: that goes behind what was pulled, and is left to the writer.
            self._parked = False
            message = scheduler.next_message()
            has_gone = message is not None and self._connection.send_message_nowait(*message)
            if not answers:
                after_pull = self._after_pull
                after_pull()  # behind the message: nobody waits for that
            if message is None:
                if not scheduler.pending:  # else the pull itself has brought something
                    self._parked = True
                    return
            elif not has_gone:
                self._crowd_until = now + CROWD_SECONDS
                self._ready = message
            else:
                self._crowd_until = now + CROWD_SECONDS
                size = len(message[0]) if len(message) == 1 else message_bytes(message)
                self.bytes_sent += size
                self._meter.sent += size
                if self._connection.has_unsent:
                    self._begun = (size, now)
                else:
                    if size >= self._pace.batch_bytes:  # else it says nothing of the line
                        self._measure(size, 0.0)
                    if not scheduler.pending:
                        self._parked = True
                        return
        self._parked = False
        self._rouse_writer()

    def say(self, message: wire.Control) -> None:
        """Send a message of the link itself."""
        self._scheduler.control(wire.ControlFrame(0, message))
        self.wake()

    def close(self, reason: str) -> None:
        """End the link from our side; `run` raises ConnectionLost with the reason."""
        self._closed_reason = self._closed_reason or reason
        self._stop()

    @trio.lowlevel.enable_ki_protection
    async def drained(self) -> None:
        """Wait until everything scheduled so far has been handed to the socket, or the link is over. Bound it."""
        await trio.lowlevel.checkpoint()
        while not self._is_over and (self._scheduler.pending or not self._parked):
            self.wake()
            if not self._parked:
                if self._idle is None:
                    self._idle = trio.Event()
                await self._idle.wait()
            await trio.lowlevel.checkpoint()

    async def ping(self) -> None:
        """Return as soon as the peer answers a new ping. Bound it: a dead peer never does.

        An answer to an earlier one is none: on a slow line it may come from a peer that has died since.

        Raises:
            ConnectionLost: the link is over.
        """
        number = self._send_ping()
        while not self._is_over and self._answered < number:
            if self._pongs is None:
                self._pongs = trio.Event()
            await self._pongs.wait()
        if self._is_over:
            raise ConnectionLost(self._closed_reason or "the link is over")

    @trio.lowlevel.enable_ki_protection
    async def run(self) -> None:
        """Pump until the connection ends: always by ConnectionLost or RemoteProtocolError, as itself."""
        self._keep_pace()
        try:
            async with trio.open_nursery() as self._nursery:
                self._begin(self._nursery)
                try:
                    await self._connection.deliver_messages(self._take_message, self._take_message)
                except Exception as error:
                    self._end(error)
                finally:
                    # Nobody starts a writer in a nursery that is about to close.
                    self._is_over = True
                self._stop()
        finally:
            self._tell_idle()
            self._tell_pong()
        if self._given_up:
            # Nobody is there to answer a goodbye: the wait for it would only delay the next dial.
            await self._connection.aclose(1001, timeout=0.0)
        await trio.lowlevel.checkpoint_if_cancelled()
        raise self._outcome or ConnectionLost(self._closed_reason or "closed by us")

    def _begin(self, nursery: trio.Nursery) -> None:
        if self._watch is None:
            self._watch = LinkWatch()
            nursery.start_soon(self._watch.run)
        self._watch.add(self)
        if self._closed_reason is not None:
            self._stop()
        elif self._scheduler.pending:
            self._rouse_writer()
        else:
            self._parked = True
            if not self._expecting:
                self._connection.rest()

    def _stop(self) -> None:
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel()

    def _end(self, error: Exception) -> None:
        """The link ends by this error, unless it did by an earlier one."""
        if not isinstance(error, (ConnectionLost, RemoteProtocolError)):
            # A mistake of ours costs this link, which comes back, and not the whole program.
            log.error("link_failed_inside", exc_info=error)
            error = ConnectionLost(f"it failed inside: {error!r}")
        self._outcome = self._outcome or error
        self._stop()

    def _take_message(self, message: bytes | None = None) -> bool:
        """Frames of the message, or further ones of that before; whether these were all.

        No more than others may have to wait for.
        """
        if message is not None:
            read_at = self._line.bytes_received
            if read_at != self._read_at:
                self._read_at, self._frames_left = read_at, FRAMES_PER_READ
            size = len(message)
            self.bytes_received += size
            self._meter.received += size
            number = wire.lone_ping(message) if size <= wire.LONE_PING_BYTES else None
            if number is not None and self._frames_left > 1:
                # From most links nothing else comes: taken as the frames below are, in fewer calls. Nobody has been
                # handed anything, so there is nothing to follow up.
                self._frames_left -= 1
                self._unanswered = number
                if self._may_answer is None or self._may_answer():
                    self.answer()
                if not self._expecting and not self._connection.is_at_rest:
                    self._connection.rest()
                return True
            self._frames = wire.decode_frames(message)
        left = FRAMES_PER_TURN
        try:
            on_frame = self._on_frame
            for frame in self._frames:
                kind, channel, _, _, _ = frame
                if channel == 0 and kind is wire.FrameType.CONTROL:
                    self._link_frame(frame)
                else:
                    on_frame(frame)
                left -= 1
                if not left:
                    return False
            self._frames = _NONE
            self._frames_left -= (FRAMES_PER_TURN - left) or 1
            if self._frames_left > 0:
                return True
            self._frames_left = FRAMES_PER_READ
            return False
        finally:
            if self._unanswered is not None and (self._may_answer is None or self._may_answer()):
                self.answer()
            after_message = self._after_message
            after_message()  # what came before a farewell or a bad frame counts

    def answer(self) -> None:
        """Answer the latest ping, if that has not been done."""
        if self._unanswered is not None:
            # Before the data that may wait: a slow link is not a dead one. One for all that came
            # together: a flood of pings costs next to nothing.
            self._scheduler.answer(wire.encode_pong(self._unanswered))
            self._unanswered = None
            self.wake()

    def _link_frame(self, frame: wire.Frame) -> None:
        message = wire.decode_control(frame)
        match message:
            case wire.Ping():
                self._unanswered = message.number
            case wire.Pong():
                if message.number <= self._ping_number:  # nobody can answer what was not asked
                    self._answered = max(self._answered, message.number)
                self._tell_pong()
            case wire.Goodbye():
                self.goodbye = message
                raise ConnectionLost(f"the peer said goodbye: {message.message}")
            case _:
                self._on_frame(frame)

    def _rouse_writer(self) -> None:
        """Have it send what there is; before `run` and after it there is none."""
        if self._nursery is None or self._is_over:
            return
        if self._writer is None:
            self._writer = _Writer()
            self._nursery.start_soon(self._write, self._writer)
        self._writer.wakeup.set()

    @trio.lowlevel.enable_ki_protection
    async def _write(self, writer: _Writer) -> None:
        """Until the watch finds that it has had nothing to do for a while, or the link is over."""
        try:
            await self._write_on(writer)
        except Exception as error:
            self._end(error)

    async def _write_on(self, writer: _Writer) -> None:
        while True:
            await self._connection.flush()
            if self._begun is not None:
                (size, began), self._begun = self._begun, None
                self._measure(size, self._now() - began)
            writer.wakeup = trio.Event()  # before the pull, which may wake us
            message, self._ready = self._ready or self._next_message(), None
            if message is None:
                self._parked = True
                self._tell_idle()
                await writer.wakeup.wait()
                if writer.retires and self._parked:
                    self._writer = None
                    return
                writer.retires = writer.has_rested = self._parked = False
                continue
            started, size = self._now(), message_bytes(message)
            await self._connection.send_message(*message)
            self.bytes_sent += size
            self._meter.sent += size
            self._measure(size, self._now() - started)

    def _tell_idle(self) -> None:
        idle, self._idle = self._idle, None
        if idle is not None:
            idle.set()

    def _tell_pong(self) -> None:
        pongs, self._pongs = self._pongs, None
        if pongs is not None:
            pongs.set()

    def _measure(self, size: int, seconds: float) -> None:
        # (Most messages are short, and say nothing of the line where they went at once.)
        if (seconds or size >= self._pace.batch_bytes) and self._pace.sent(size, seconds):
            self._keep_pace()

    def _keep_pace(self) -> None:
        self._scheduler.batch_bytes = self._pace.batch_bytes
        self._connection.limit_unsent(self._pace.batch_bytes)

    def _next_message(self) -> Message | None:
        answers = self._scheduler.only_answers
        message = self._scheduler.next_message()
        if not answers:
            self._after_pull()
        return message

    def look(self, now: float, late: float) -> bool:
        """For `LinkWatch`: see whether the peer lives, and is to be pinged."""
        if self._is_over:
            return False
        line, liveness, writer = self._line, self._liveness, self._writer
        heard, pending = line.bytes_received, line.write_pending_since
        if heard != self._heard:
            self._heard = heard
            liveness.received(now)
        if (
            now - liveness.last_received < self._patience
            and pending is None
            and writer is None
            and liveness.writes_from is not None
            and late <= self._own_lag
            and not self._scheduler.overrun
        ):
            return True  # of most links: all that follows would do nothing, in many more calls
        try:
            if self._scheduler.overrun:
                raise ConnectionLost(UNREAD)
            if late > self._own_lag:
                liveness.lagged(late)
                return True
            match liveness.check(now, pending, line.last_write_progress):
                case Verdict.DEAD:
                    self._given_up = True
                    raise ConnectionLost(f"the peer is dead: {liveness.reason}")
                case Verdict.PING:
                    self._send_ping()
                case Verdict.WAIT:
                    pass
        except Exception as error:
            self._end(error)
        if writer is not None and self._parked:
            writer.rest()
        return True

    def _send_ping(self) -> int:
        self._ping_number += 1
        self._scheduler.control(wire.encode_control(0, wire.Ping(self._ping_number)))
        self.wake()
        return self._ping_number


class _Writer:
    """What the task that sends what could not be sent at once is told. Of an idle link there is none."""

    __slots__ = ("has_rested", "retires", "wakeup")

    def __init__(self) -> None:
        self.wakeup = trio.Event()
        self.has_rested = False
        """It had nothing to do when the watch looked."""
        self.retires = False
        """Nor the time after."""

    def rest(self) -> None:
        """It has nothing to do; the second time in a row it ends."""
        if self.has_rested:
            self.retires = True
            self.wakeup.set()
        self.has_rested = True


NEVER = math.inf
"""A heartbeat for the side that only answers."""
