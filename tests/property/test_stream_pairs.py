"""One stream over channels that come and go, of bytes and of messages: DESIGN.md's guarantees 1 to 4 and 9.

The machine is in stream_pair.py; the streams of jobs, which may drop and use the disk, are tested in
test_spool.py.
"""

from __future__ import annotations

from effort import tried
from stream_pair import StreamPair, units

from sandd._core.streams import MessageReceiveLog, MessageSendLog, ReceiveLog, SendLog
from sandd.wire import Stream


class MessagePair(StreamPair):
    """A stream of messages: never dropped, and read by its owner."""

    stream = Stream.EVENTS
    has_viewers = False

    def make_sender(self) -> SendLog:
        """The sender's log."""
        return MessageSendLog(capacity=self.capacity, retain=self.retain)

    def make_log(self, start: int) -> ReceiveLog:
        """A receiver's log."""
        return MessageReceiveLog(start)

    def put(self, data: bytes) -> None:
        """Each byte is a message; a zero is an empty one."""
        assert isinstance(self.sender, MessageSendLog)
        for value in data:
            self.sender.append(bytes([value]) * 3 if value else b"")

    def take(self, index: int, count: int) -> None:
        """The application takes some messages."""
        reader = self.reader(index)
        assert isinstance(reader.log, MessageReceiveLog)
        for _ in range(count):
            message = reader.log.take()
            if message is None:
                break
            (value,) = units(reader.position, reader.position + 1)
            assert message == (bytes([value]) * 3 if value else b""), "(1) another message"
            reader.position += 1
            reader.read += 1


TestBytes = tried(StreamPair)
TestMessages = tried(MessagePair)
