"""What daemon and spawner say to each other comes through whole, with its descriptors, in any pieces."""

from __future__ import annotations

import array
import os
import resource
import socket
import sys
from typing import TYPE_CHECKING

import pytest

if sys.platform == "win32":
    pytest.skip("POSIX process trees", allow_module_level=True)

from sandd._core.processes.spawner_messages import (
    HEADER,
    MAX_BODY_BYTES,
    READ_BYTES,
    Exited,
    Failed,
    Forget,
    Gone,
    Kill,
    Message,
    MessageReader,
    Ready,
    Signal,
    Spawn,
    Started,
    decode_all,
    encode,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

MESSAGES: list[Message] = [
    Spawn(
        1,
        (b"\xff", b""),
        {b"A": b"\x80"},
        b"m",
        None,
        (1, 2, (3, 4)),
        True,
        False,
        False,
        {b"B": b""},
    ),
    Spawn(2**70, (b"x" * 1000,), {}, b"m", b"/", None, False, True, True, None),
    Signal(1, 15),
    Kill(1, 0.5),
    Kill(1, float("inf")),
    Forget(3),
    Ready(True, None),
    Ready(True, "/sys/fs/cgroup/sandd-1"),
    Started(1, 4711),
    Failed(1, 2, "no such file", "/\udcff"),
    Exited(1, 0, None, True),
    Exited(1, None, 9, False),
    Exited(1, 0, None, True, (0.5, 4096), "", (4711, ("cpus",))),
    Gone(1, (5, 6)),
]


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two connected sockets; the second does not block."""
    left, right = socket.socketpair()
    right.setblocking(False)
    with left, right:
        yield left, right


def send(link: socket.socket, data: bytes, descriptors: list[int]) -> None:
    """Send with descriptors."""
    link.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))])


@pytest.mark.parametrize("message", MESSAGES, ids=map(repr, range(len(MESSAGES))))
def test_message_survives_encoding(message: Message) -> None:
    """What is decoded equals what was encoded, and is of the same type."""
    buffer = bytearray(encode(message))
    (decoded,) = decode_all(buffer)
    assert decoded == message
    assert type(decoded) is type(message)
    assert not buffer


def test_messages_come_out_whole_whatever_the_pieces() -> None:
    """Fed byte by byte, each message comes exactly when its last byte has."""
    data = b"".join(map(encode, MESSAGES))
    buffer, seen = bytearray(), []
    for index in range(len(data)):
        buffer += data[index : index + 1]
        seen += decode_all(buffer)
    assert seen == MESSAGES


def test_reader_takes_messages_byte_by_byte(pair: tuple[socket.socket, socket.socket]) -> None:
    """It waits for nothing, and keeps what has come so far."""
    left, right = pair
    reader = MessageReader(right)
    seen = []
    for byte in b"".join(map(encode, MESSAGES)):
        assert reader.receive() is None
        left.send(bytes([byte]))
        received = reader.receive()
        if received is not None:
            seen.append(received[0])
    assert seen == MESSAGES


def test_reader_gives_each_message_its_own_descriptors(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    """Messages with and without descriptors that wait in the socket together are told apart."""
    left, right = pair
    reader = MessageReader(right)
    counts = [3, 0, 1, 2, 0]
    with open("/dev/null", "rb") as file:
        for number, count in enumerate(counts):
            data = encode(Signal(number, 1), descriptors=count)
            if count:
                send(left, data, [file.fileno()] * count)
            else:
                left.send(data)
    for number, count in enumerate(counts):
        received = reader.receive()
        assert received is not None
        message, descriptors, is_complete = received
        assert (message.job, len(descriptors), is_complete) == (number, count, True)  # type: ignore[union-attr]
        for descriptor in descriptors:
            assert not os.get_inheritable(descriptor)
            os.close(descriptor)
    assert reader.receive() is None


def test_descriptors_are_those_of_their_message_though_it_comes_in_pieces(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    """One longer than a read, whose last piece comes with the beginning of the next, which has its own."""
    left, right = pair
    left.setblocking(False)
    reader = MessageReader(right)
    long = encode(Failed(1, 2, "x" * 3 * READ_BYTES, None), descriptors=1)
    with open("/dev/null", "rb") as null, open("/dev/zero", "rb") as zero:
        rest = memoryview(long)[socket.send_fds(left, [long[:100]], [null.fileno()]) :]
        assert reader.receive() is None
        assert left.send(rest) == len(rest)
        socket.send_fds(left, [encode(Signal(2, 1), descriptors=1)], [zero.fileno()])
        left.send(encode(Signal(3, 1)))
        for number, opened in [(1, null), (2, zero), (3, None)]:
            received = reader.receive()
            assert received is not None
            message, descriptors, is_complete = received
            assert message[0] == number
            assert is_complete
            found = [os.fstat(descriptor).st_rdev for descriptor in descriptors]
            assert found == ([] if opened is None else [os.fstat(opened.fileno()).st_rdev])
            for descriptor in descriptors:
                os.close(descriptor)


@pytest.mark.parametrize("room", [0, 1, 2])
def test_reader_tells_when_descriptors_were_lost(
    pair: tuple[socket.socket, socket.socket], room: int
) -> None:
    """With no room for all, those that came are handed over, and the next message is in step."""
    left, right = pair
    reader = MessageReader(right)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with open("/dev/null", "rb") as file:
        send(left, encode(Signal(1, 1), descriptors=3), [file.fileno()] * 3)
        send(left, encode(Signal(2, 1), descriptors=1), [file.fileno()])
        free = [os.dup(file.fileno()) for _ in range(room + 1)]
        for descriptor in free:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free[room], hard))
        try:
            received = reader.receive()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert received is not None
    message, descriptors, is_complete = received
    assert (message, len(descriptors), is_complete) == (Signal(1, 1), room, False)
    following = reader.receive()
    assert following is not None
    assert (following[0], len(following[1]), following[2]) == (Signal(2, 1), 1, True)
    for descriptor in [*descriptors, *following[1]]:
        os.close(descriptor)


def test_reader_ends_with_the_other_end(pair: tuple[socket.socket, socket.socket]) -> None:
    """EOF, also in the middle of a message, is EOFError; so is a length that can't be."""
    left, right = pair
    left.send(encode(Signal(1, 1))[:3])
    reader = MessageReader(right)
    assert reader.receive() is None
    left.close()
    with pytest.raises(EOFError):
        reader.receive()


def test_reader_refuses_an_impossible_length(pair: tuple[socket.socket, socket.socket]) -> None:
    """Nothing is allocated for it."""
    left, right = pair
    left.send(HEADER.pack(MAX_BODY_BYTES + 1, 0))
    with pytest.raises(EOFError, match="bytes"):
        MessageReader(right).receive()
