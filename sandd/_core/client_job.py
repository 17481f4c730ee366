"""One job as the client that asked for it sees it: its streams, where it stands, and how it ended."""

from __future__ import annotations

import enum
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from sandd import wire
from sandd._core._errors import RemoteProtocolError, SanddError
from sandd._core.streams import (
    RING_BYTES,
    WINDOW_BYTES,
    ByteReceiveLog,
    ByteSendLog,
    MessageReceiveLog,
    MessageSendLog,
    ReceiveLog,
    ReceiveWindow,
    SendLog,
)
from sandd.wire import JobState, Role, Stream

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sandd._core.channels import Channel

OUTPUTS: Final = (Stream.OUTPUT, Stream.ERROR)
NO_STALLS: Final[Mapping[Stream, wire.Stalled]] = MappingProxyType({})
UNNAMED: Final = {
    Stream.OPS: wire.StreamState(Stream.OPS, max_offset=wire.MESSAGE_WINDOW),
    Stream.INPUT: wire.StreamState(Stream.INPUT, max_offset=wire.INITIAL_INPUT_BYTES),
}
"""What `Attached` says of a stream towards the daemon by not naming it."""


class AttachState(enum.Enum):
    """Where a client's job stands with its channel."""

    WAITING = enum.auto()  # no channel: the daemon is away, or not known yet
    ATTACHING = enum.auto()  # Attach sent
    ATTACHED = enum.auto()
    CLOSED = enum.auto()  # for good; `error` says why, if it was not our own doing


# Enum members are bound here because looking one up by its class costs as much as a function call (Python 3.11).
_WAITING: Final = AttachState.WAITING
_ATTACHED: Final = AttachState.ATTACHED
_CLOSED: Final = AttachState.CLOSED
_EVENTS: Final = Stream.EVENTS


class ClientJob:
    """One job from its client's side: streams, state, and how it ended."""

    # With as many attributes a dict would take two KiB of each command, and its time.
    __slots__ = (
        *("_placed", "_since", "attaches_plainly", "channel", "confirmed", "daemon_id", "detached"),
        *("end_said", "error", "events", "flush", "generation", "given_up", "id", "input"),
        *("instance", "is_repeated", "job_state", "known_events", "ops", "output_window"),
        *("outputs", "refusal", "result", "rival", "role", "sequence", "spec", "stalls"),
        *("started", "state", "takeover", "terminal", "times_held_back", "trace"),
    )

    def __init__(
        self,
        daemon_id: str,
        job_id: str,
        *,
        spec: bytes | None,
        sequence: int | None = None,
        role: Role = Role.OWNER,
        takeover: bool = False,
        since: dict[Stream, int] | None = None,
        input_capacity: int | None = RING_BYTES,
        output_window: int = WINDOW_BYTES,
        trace: str = "",
    ) -> None:
        self.daemon_id = daemon_id
        self.id = job_id
        self.spec = spec
        """To send until the daemon has confirmed the job; None from then on."""
        self.trace = trace
        """What goes with the spec; see `wire.Attach`."""
        self.sequence = sequence
        """Of a generated id: such a job can't exist before we start it, so data may go with the Attach."""
        self.role = role
        self.takeover = takeover
        self.rival: ClientJob | None = None
        """Another of the same client, that was told to take this one's job over."""
        self.given_up = False
        """It was let go before anybody had it: what it was about to take over is as it was."""
        self.end_said = False
        """It was ended, and not only left."""
        self.instance = ""
        """The daemon instance the job lives on; "" while it was never sent anywhere."""
        self.generation: int | None = None
        self.state = _WAITING
        self.is_repeated = False
        """Its spec was sent before, so it may run already, whatever becomes of the latest Attach."""
        self.refusal: wire.Refused | None = None
        """Its start was refused when it may have been running already: whether it does, the daemon has to tell."""
        self.times_held_back = 0
        """So often it was one start too many, when it may have been running already."""
        self.attaches_plainly = False
        """It may be ATTACHED without being told so; see `wire.Attached`."""
        self.confirmed = False
        """The daemon has answered: the job exists (or existed) there."""
        self.started: wire.Started | None = None
        self.job_state: JobState | None = None
        self.terminal = False
        """It is a session; known once the daemon has answered."""
        self.detached = False
        """It outlives whoever owns it: it did when we attached, or we were told that it does since."""
        self.known_events = 0
        """So many events there were when we attached: what they tell is no news."""
        self.flush: wire.Flush | None = None
        """We wait to hear that all this has arrived."""
        self.stalls: Mapping[Stream, wire.Stalled] = NO_STALLS
        """Outputs for which the daemon has no room, so that the process waits; and why. Replaced with each change."""
        self.result: wire.Exited | wire.Failed | None = None
        self.error: SanddError | None = None
        self.channel: Channel | None = None
        self.ops = MessageSendLog()
        self.input = ByteSendLog(capacity=input_capacity)
        self.events = MessageReceiveLog()
        self.outputs = {stream: ByteReceiveLog() for stream in OUTPUTS}
        self.output_window = output_window
        """Bytes that each output may have under way to us."""
        # Offsets we don't know before the daemon tells: those of a job that existed before us.
        self._placed = spec is not None
        self._since = since

    def __repr__(self) -> str:
        return f"<ClientJob {self.daemon_id}/{self.id} {self.state.name.lower()}>"

    @property
    def sent(self) -> bool:
        """The spec may have reached a daemon: the job may have run."""
        return self.instance != ""

    @property
    def finished(self) -> bool:
        """Nothing more will come: it ended and all output arrived, or the job is closed."""
        if self.state is _CLOSED:
            return True
        if self.result is None:
            return False
        for log in self.outputs.values():  # noqa: SIM110 - asked for at every change of every job
            if log.received != log.final:
                return False
        return True

    @property
    def outlives_us(self) -> bool:
        """It goes on when we leave: it is detached, or we only look on."""
        return self.detached or self.role is Role.VIEWER

    @property
    def caught_up(self) -> bool:
        """Attached, and all is known that had become of the job by then."""
        return self.state is _ATTACHED and self.events.received >= self.known_events

    @property
    def unflushed(self) -> bool:
        """Something we sent may not have arrived yet, and still matters."""
        return self.ops.end > self.ops.floor or (
            self.result is None and (self.input.end > self.input.floor or self.input.final)
        )

    @property
    def send_logs(self) -> dict[Stream, SendLog]:
        """What flows to the daemon."""
        return {Stream.OPS: self.ops, Stream.INPUT: self.input}

    @property
    def receive_logs(self) -> dict[Stream, ReceiveLog]:
        """What flows to us."""
        return {Stream.EVENTS: self.events, **self.outputs}

    def open_window(self, stream: Stream) -> ReceiveWindow | None:
        """What a new channel grants of the stream from where we are; None: it doesn't flow to us."""
        if stream is _EVENTS:
            return ReceiveWindow.open(stream, self.events, wire.MESSAGE_WINDOW)
        log = self.outputs.get(stream)
        return None if log is None else ReceiveWindow.open(stream, log, self.output_window)

    def open_windows(self) -> list[ReceiveWindow]:
        """Those of all streams that flow to us."""
        windows = [self.open_window(stream) for stream in (_EVENTS, *self.outputs)]
        return [window for window in windows if window is not None]

    def acknowledge(self, yes: bool) -> None:
        """Whether what was handed on counts as read: not before somebody holds a job that was there before."""
        for log in self.outputs.values():
            log.acknowledges = yes

    def cursor(self, stream: Stream, log: ReceiveLog) -> int | None:
        """Where a new channel continues the stream."""
        if self._placed:
            return log.received
        return None if self._since is None else self._since.get(stream)

    def place(self, states: dict[Stream, wire.StreamState]) -> None:
        """The first answer: where the job existed before us, begin at the daemon's offsets."""
        if self.confirmed or self.sequence is not None:
            return
        if not self._placed:
            self._placed = True
            for stream, log in self.receive_logs.items():
                log.received = log.consumed = states[stream].start if stream in states else 0
        for stream, send_log in self.send_logs.items():
            received = states[stream].received if stream in states else 0
            # With the spec, what we have is taken for the same input again, as far as it reaches.
            if self.spec is None or received > send_log.end:
                send_log.begin(received)

    def take_events(self) -> None:
        """Interpret what has arrived on EVENTS."""
        while (message := self.events.take()) is not None:
            match wire.decode_event(message):
                case wire.Exited() | wire.Failed() as result:
                    if self.result is not None:
                        raise RemoteProtocolError("a second end after the exit")
                    finals = result.finals
                    for stream, log in self.outputs.items():
                        log.end_at(finals.get(stream, 0))
                    if isinstance(result, wire.Exited) and self.started is None:
                        self.started = wire.Started(result.pid)
                    self.result = result
                    self.stalls = NO_STALLS
                case wire.Started() as started:
                    self.started = started
                case wire.Stalled() as stalled:
                    if stalled.stream not in self.outputs:
                        raise RemoteProtocolError(f"{stalled.stream.name} is no output")
                    self.stalls = {**self.stalls, stalled.stream: stalled}
                case wire.Flowing() as flowing:
                    self.stalls = {
                        stream: stalled
                        for stream, stalled in self.stalls.items()
                        if stream is not flowing.stream
                    }
                case wire.Unknown():
                    pass
