"""One job as the client that asked for it sees it: its streams, where it stands, and how it ended."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final

from sandd import wire
from sandd._core._errors import RemoteProtocolError, SanddError
from sandd._core.streams import (
    RING_BYTES,
    ByteReceiveLog,
    ByteSendLog,
    MessageReceiveLog,
    MessageSendLog,
    ReceiveLog,
    SendLog,
)
from sandd.wire import JobState, Role, Stream

if TYPE_CHECKING:
    from sandd._core.channels import Channel

OUTPUTS: Final = (Stream.OUTPUT, Stream.ERROR)
NOTHING: Final = -1
"""Credit before the answer to an Attach: not even the end of a stream may be said."""


class AttachState(enum.Enum):
    """Where a client's job stands with its channel."""

    WAITING = enum.auto()  # no channel: the daemon is away, or not known yet
    ATTACHING = enum.auto()  # Attach sent
    ATTACHED = enum.auto()
    CLOSED = enum.auto()  # for good; `error` says why, if it was not our own doing


class ClientJob:
    """One job from its client's side: streams, state, and how it ended."""

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
    ) -> None:
        self.daemon_id = daemon_id
        self.id = job_id
        self.spec = spec
        """To send until the daemon has confirmed the job; None from then on."""
        self.sequence = sequence
        """Of a generated id: such a job can't exist before we start it, so data may go with the Attach."""
        self.role = role
        self.takeover = takeover
        self.instance = ""
        """The daemon instance the job lives on; "" while it was never sent anywhere."""
        self.generation: int | None = None
        self.state = AttachState.WAITING
        self.confirmed = False
        """The daemon has answered: the job exists (or existed) there."""
        self.started: wire.Started | None = None
        self.job_state: JobState | None = None
        self.stalls: dict[Stream, wire.Stalled] = {}
        """Outputs for which the daemon has no room, so that the process waits; and why."""
        self.result: wire.Exited | wire.Failed | None = None
        self.error: SanddError | None = None
        self.channel: Channel | None = None
        self.ops = MessageSendLog()
        self.input = ByteSendLog(capacity=input_capacity)
        self.events = MessageReceiveLog()
        self.outputs = {stream: ByteReceiveLog() for stream in OUTPUTS}
        # Offsets we don't know before the daemon tells: those of a job that existed before us.
        self._placed = spec is not None
        self._since = since or {}

    def __repr__(self) -> str:
        return f"<ClientJob {self.daemon_id}/{self.id} {self.state.name.lower()}>"

    @property
    def sent(self) -> bool:
        """The spec may have reached a daemon: the job may have run."""
        return self.instance != ""

    @property
    def finished(self) -> bool:
        """Nothing more will come: it ended and all output arrived, or the job is closed."""
        if self.state is AttachState.CLOSED:
            return True
        return self.result is not None and all(
            log.final is not None or self.result.finals.get(stream, 0) <= log.received
            for stream, log in self.outputs.items()
        )

    @property
    def send_logs(self) -> dict[Stream, SendLog]:
        """What flows to the daemon."""
        return {Stream.OPS: self.ops, Stream.INPUT: self.input}

    @property
    def receive_logs(self) -> dict[Stream, ReceiveLog]:
        """What flows to us."""
        return {Stream.EVENTS: self.events, **self.outputs}

    def cursor(self, stream: Stream, log: ReceiveLog) -> int | None:
        """Where a new channel continues the stream."""
        return log.received if self._placed else self._since.get(stream)

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
                case wire.Started() as started:
                    self.started = started
                case wire.Stalled() as stalled:
                    if stalled.stream not in self.outputs:
                        raise RemoteProtocolError(f"{stalled.stream.name} is no output")
                    self.stalls[stalled.stream] = stalled
                case wire.Flowing() as flowing:
                    self.stalls.pop(flowing.stream, None)
                case wire.Exited() | wire.Failed() as result:
                    if self.result is not None:
                        raise RemoteProtocolError("a second end after the exit")
                    self.result = result
                    self.stalls.clear()
                case wire.Unknown():
                    pass

    def check_finals(self) -> None:
        """RemoteProtocolError if more has arrived than there was when the job ended."""
        if self.result is None:
            return
        for stream, log in self.outputs.items():
            end = self.result.finals.get(stream, 0)
            if log.received > end or log.final not in (None, end):
                raise RemoteProtocolError(
                    f"{stream.name} ends at {end}, but {log.received} bytes came"
                )
