"""`RelayQueue` and `MeteredQueue`: how frames under way are passed on; what bounds them is tested with the router."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from sandd import wire
from sandd._core.backlog import Backlog
from sandd._core.credit import CreditPool, Flow
from sandd._core.relay_queue import WHOLE_BYTES, MeteredQueue, RelayQueue
from sandd._core.scheduler import SHARED_FRAME_BYTES
from sandd.wire import Stream

CHANNEL = 7
LARGE = 5 * WHOLE_BYTES // 2


@pytest.fixture(params=["plain", "metered"])
def queue(request: pytest.FixtureRequest) -> RelayQueue:
    """Towards a client in this process, or in another one."""
    if request.param == "plain":
        return RelayQueue(CHANNEL)
    pool = CreditPool(first=wire.MIB, first_part=1)
    flow = Flow(Stream.OUTPUT, pool, "c", on_due=lambda _: None)
    flow.want(wire.MIB)
    meter = cast("Any", SimpleNamespace(waiting=0))
    return MeteredQueue(CHANNEL, meter, {Stream.OUTPUT: flow}, Backlog().share("d"))


def put(queue: RelayQueue, body: bytes, *, final: bool = False) -> None:
    """A frame of OUTPUT comes from the daemon."""
    said = wire.encode_data(3, Stream.OUTPUT, 0, body, final=final)
    (frame,) = wire.decode_frames(b"".join(said))
    assert queue.put(frame, wire.decode_data(frame))


def passed(queue: RelayQueue, limit: int) -> list[tuple[int, bytes, bool]]:
    """All that it passes on, where the scheduler asks for so much at a time: offset, bytes, whether it is the end."""
    found = []
    while (frame := queue.next_bulk(limit)) is not None:
        assert not isinstance(frame, wire.ControlFrame)
        (whole,) = wire.decode_frames(b"".join(frame))
        assert whole.channel == CHANNEL
        data = wire.decode_data(whole)
        found.append((data.offset, bytes(data.body), data.final))
    return found


@pytest.mark.parametrize(
    ("limit", "most"),
    [
        pytest.param(wire.MAX_DATA_BYTES, LARGE, id="alone"),
        pytest.param(LARGE - 1, LARGE - 1, id="a slower line"),
        pytest.param(SHARED_FRAME_BYTES, WHOLE_BYTES, id="others wait"),
        pytest.param(SHARED_FRAME_BYTES // 2, SHARED_FRAME_BYTES // 2, id="a slow line"),
    ],
)
def test_a_frame_is_passed_on_in_pieces_that_others_can_wait_for(
    queue: RelayQueue, limit: int, most: int
) -> None:
    """Whole, as long as that holds up nobody: and in any case every byte, in order, and the end behind the last."""
    content = bytes(range(256)) * (LARGE // 256)
    put(queue, content, final=True)
    pieces = passed(queue, limit)
    assert max(len(body) for _, body, _ in pieces) == most
    assert b"".join(body for _, body, _ in pieces) == content
    ends = [offset + len(body) for offset, body, _ in pieces]
    assert [offset for offset, _, _ in pieces] == [0, *ends[:-1]]
    assert [final for _, _, final in pieces] == [False] * (len(pieces) - 1) + [True]
    assert not queue.holds_data


def test_a_frame_of_ordinary_size_is_passed_on_whole_to_a_line_that_is_shared(
    queue: RelayQueue,
) -> None:
    """To take it apart would cost more than it is worth to those who wait."""
    put(queue, bytes(WHOLE_BYTES))
    assert [len(body) for _, body, _ in passed(queue, SHARED_FRAME_BYTES)] == [WHOLE_BYTES]
