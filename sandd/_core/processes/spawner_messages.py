"""What the daemon and its spawner say to each other, and how that becomes bytes.

Standard library only. Both ends are the same files run by the same interpreter, and nobody else can
reach the socket pair, so the body is `marshal`: the fastest codec there is (1 us), and trusted.

    message  = length (u32, of the body) + count of descriptors (u8) + body
    body     = marshal of (kind, *fields)

The descriptors (SCM_RIGHTS) travel with the first byte of their message, and one read brings those of one message
at most (unix(7)). Of a message that has begun the reader asks for no more than the rest. So what it gets with a read
belongs to the message with descriptors that begins in it: also where the kernel had to drop some of them for want of
free descriptors (MSG_CTRUNC).
"""

from __future__ import annotations

import _socket
import array
import marshal
import os
import struct
import sys

if sys.platform == "win32":
    raise ImportError("POSIX only")  # where mypy stops reading, too

from sandd._core.processes.named_tuples import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

HEADER = struct.Struct("=IB")
MAX_DESCRIPTORS = 8
READ_BYTES = 1 << 14
"""One read, between messages: more than a request has, but for long arguments."""
MAX_BODY_BYTES = 1 << 24
"""Arguments end at 6 MiB (see `posix`): anything longer than this is a broken stream."""


class Identity(NamedTuple):
    """Whom a child runs as."""

    uid: int
    gid: int
    groups: tuple[int, ...]


class ProcessLimits(NamedTuple):
    """What the kernel, or the spawner, can hold of `sandd.Limits`. Travels as a plain tuple."""

    cpu_seconds: float | None = None
    cpus: float | None = None
    memory_bytes: int | None = None
    processes: int | None = None
    open_files: int | None = None
    file_bytes: int | None = None
    nice: int | None = None


# --- requests, daemon to spawner; `job` is a number that is never used twice on one socket --------


class Spawn(NamedTuple):
    """Start a job. Descriptors: [stdin], stdout, [stderr], or with `terminal` that alone; then those of `checked`, and
    of `confined`.

    Answered by `Started` or `Failed`.
    """

    job: int
    argv: tuple[bytes, ...]
    env: dict[bytes, bytes]
    marker: bytes
    cwd: bytes | None
    identity: tuple[int, int, tuple[int, ...]] | None
    stdin: bool
    merge_stderr: bool
    terminal: bool
    base: dict[bytes, bytes] | None
    """What this `env` and those to come are merged over; None: the one before."""
    checked: tuple[bytes, bool, bool, bool, bool] | None = None
    """The path of the program, and which descriptors follow: of the program, of its directory, of what it may
    execute (of these: whether of itself alone). None: it is looked up, and nothing locks it."""
    confined: tuple[bool, tuple[bytes, ...]] | None = None
    """Whether a descriptor of a Landlock ruleset follows, and the command line of what wraps the program, if anything
    does. None: it is not confined."""
    limits: tuple[Any, ...] | None = None
    """`ProcessLimits`. None: it has none, and neither have all jobs together."""
    must_hold: bool = False
    """What can't be held is a reason to start nothing."""
    brand: int = 0
    """From a spawner to who starts the job for it: see `process_table.brand_children`."""


class Signal(NamedTuple):
    """Signal the job's process group. Never answered."""

    job: int
    number: int


class Kill(NamedTuple):
    """End the whole tree: SIGTERM now (SIGHUP in a terminal), SIGKILL after `grace` seconds.

    Answered by `Gone`.
    """

    job: int
    grace: float


class Forget(NamedTuple):
    """Reap the leader, which has exited, and leave the others alone. Answered by `Gone`."""

    job: int


# --- reports, spawner to daemon -------------------------------------------------------------------


class Ready(NamedTuple):
    """The spawner is up, and adopts orphans (`is_subreaper`, false on macOS).

    `group` is the directory of the control group that it and its jobs are in, if they are in one.
    """

    is_subreaper: bool
    group: str | None
    driver: str = ""
    """What holds limits here, for people."""
    holds: tuple[str, ...] = ()
    """The names of `ProcessLimits` that can be held."""
    holds_total: tuple[str, ...] = ()
    """Those that all jobs together can be held to."""
    limit_groups: tuple[str, ...] = ()
    """The directories of the groups that hold them."""


class Started(NamedTuple):
    """The job runs: its leader has executed the program."""

    job: int
    pid: int
    unheld: tuple[str, ...] = ()
    """Which of its limits can't be held here."""


class Failed(NamedTuple):
    """The job could not be started; nothing ran."""

    job: int
    number: int
    text: str
    filename: str | None


class Exited(NamedTuple):
    """The leader has exited. With `is_gone` nothing else was left: it is its own `Gone`. With `started` it comes so
    soon that it is its own `Started`, too."""

    job: int
    code: int | None
    signal: int | None
    is_gone: bool
    usage: tuple[float, int] = (0.0, 0)
    """With `is_gone`: seconds of processor time, and the largest resident set of any of its processes."""
    limit: str = ""
    """With `is_gone`: the limit that it went beyond."""
    started: tuple[int, tuple[str, ...]] | None = None
    """The fields of `Started` behind `job`; None: that was said before."""


class Gone(NamedTuple):
    """Nothing of the tree is left but `survivors`, whom we may not kill; the job is forgotten."""

    job: int
    survivors: tuple[int, ...]
    usage: tuple[float, int] = (0.0, 0)
    """As in `Exited`."""
    limit: str = ""


Request = Spawn | Signal | Kill | Forget
Report = Ready | Started | Failed | Exited | Gone
Message = Request | Report

_KINDS: tuple[type[Message], ...] = (
    Spawn,
    Signal,
    Kill,
    Forget,
    Ready,
    Started,
    Failed,
    Exited,
    Gone,
)
_NUMBERS = {kind: number for number, kind in enumerate(_KINDS)}

if sys.platform == "linux":
    _RECEIVE_FLAGS = _socket.MSG_CMSG_CLOEXEC
else:
    _RECEIVE_FLAGS = 0  # `receive` sets the flag by hand; no other thread can fork in between


_DESCRIPTORS_ROOM = _socket.CMSG_LEN(MAX_DESCRIPTORS * array.array("i").itemsize)


def encode(message: Message, *, descriptors: int = 0) -> bytes:
    """The bytes of one message, to be sent with that many descriptors."""
    body = marshal.dumps((_NUMBERS[type(message)], *message))
    return HEADER.pack(len(body), descriptors) + body


def decode(body: bytes | bytearray | memoryview) -> Message:
    """The message of one body."""
    fields = marshal.loads(body)  # noqa: S302 - from our own other half
    # What `encode` has written has all fields, so none is looked for as a call of the class would.
    message: Message = tuple.__new__(_KINDS[fields[0]], fields[1:])
    return message


def decode_all(buffer: bytearray) -> list[Message]:
    """Take every complete message that carries no descriptors from the front of ``buffer``."""
    messages: list[Message] = []
    position, size = 0, len(buffer)
    while size - position >= HEADER.size:
        length, _ = HEADER.unpack_from(buffer, position)
        begin = position + HEADER.size
        end = begin + length
        if end > size:
            break
        messages.append(decode(buffer[begin:end]))
        position = end
    del buffer[:position]
    return messages


class MessageReader:
    """Takes messages with their descriptors from a non-blocking socket, one at a time."""

    def __init__(self, source: _socket.socket) -> None:
        self._source = source
        self._buffer = bytearray()
        self._descriptors: list[int] = []
        """Of a message in the buffer."""

    @property
    def is_ahead(self) -> bool:
        """It has read more than the messages it gave: `receive` may have another one, though the socket has nothing."""
        return bool(self._buffer)

    def receive(self) -> tuple[Message, list[int], bool] | None:
        """One message, its descriptors (now the caller's), and whether all of them came through.

        None: there is no complete one yet.

        Raises:
            EOFError: the other end is closed, or sends what can't be a message.
        """
        buffer = self._buffer
        try:
            if not buffer:
                buffer += self._read(READ_BYTES)
            while len(buffer) < HEADER.size:
                buffer += self._read(HEADER.size - len(buffer))
            length, count = HEADER.unpack_from(buffer)
            if length > MAX_BODY_BYTES:
                raise EOFError(f"a message of {length} bytes")
            end = HEADER.size + length
            while len(buffer) < end:
                buffer += self._read(end - len(buffer))
        except BlockingIOError:
            return None
        message = decode(buffer[HEADER.size : end])
        del buffer[:end]
        descriptors: list[int] = []
        if count:
            descriptors, self._descriptors = self._descriptors, descriptors
        return message, descriptors, len(descriptors) == count

    def _read(self, most: int) -> bytes:
        data, ancillary, _, _ = self._source.recvmsg(most, _DESCRIPTORS_ROOM, _RECEIVE_FLAGS)
        for level, kind, payload in ancillary:
            if (level, kind) == (_socket.SOL_SOCKET, _socket.SCM_RIGHTS):
                received = array.array("i")
                received.frombytes(payload[: len(payload) - len(payload) % received.itemsize])
                self._descriptors += received
                if not _RECEIVE_FLAGS:
                    for descriptor in received:
                        os.set_inheritable(descriptor, False)
        if not data:
            raise EOFError("the other end is closed")
        return data
