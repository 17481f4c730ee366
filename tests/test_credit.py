"""What may come to wait for one link: shared, bounded, and never so little that something stands still."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandd import wire
from sandd._core import credit
from sandd._core._errors import RemoteProtocolError
from sandd._core.credit import GREATEST_SHARE, LEAST_BYTES, CreditPool, Flow, Standing
from sandd.wire import Data, Stream

LIMIT = 1000
LEAST = 10
FIRST = 100
REST = LEAST * (1 + GREATEST_SHARE)
"""What a flow has where the greatest shares have the pool among them: their least is not of it, and so free."""


class Told(list[int]):
    """What the senders were told of more credit."""

    def __call__(self, flow: Flow) -> None:
        """The router tells it."""
        self.append(flow.update().max_offset)


def small_pool() -> CreditPool:
    """A pool whose bounds are soon met."""
    return CreditPool(LIMIT, least=LEAST, first=FIRST, first_part=1)


def data(stream: Stream, offset: int, size: int, *, final: bool = False) -> Data:
    """A frame that arrives."""
    return Data(stream, offset, memoryview(bytes(size)), final)


def gap(start: int, end: int) -> Data:
    """What was dropped of an output."""
    return Data(Stream.OUTPUT, start, memoryview(b""), gap_end=end)


def test_a_flow_begins_with_little_and_has_more_as_it_uses_it() -> None:
    """Its window doubles with each window that has passed, to a fourth of the pool."""
    told = Told()
    flow = Flow(Stream.OUTPUT, small_pool(), "a", told)
    assert flow.want(10_000) == FIRST
    windows = []
    for _ in range(4):
        flow.pass_on(flow.granted)
        windows.append(flow.granted - flow.passed)
    assert windows == [200, 250, 250, 250]
    assert told[-1] == flow.granted


def test_what_the_receiver_grants_is_never_exceeded() -> None:
    """However much room there is."""
    flow = Flow(Stream.OUTPUT, small_pool(), "a", Told())
    assert flow.want(30) == 30
    flow.pass_on(30)
    assert flow.granted == 30
    assert flow.want(40, ack=30) == 40
    assert flow.update() == wire.StreamWindow(Stream.OUTPUT, 30, 40)


def test_a_sender_is_told_when_half_of_its_window_is_new() -> None:
    """Each telling costs a message, and a sender that has enough needs none."""
    told = Told()
    flow = Flow(Stream.OUTPUT, small_pool(), "a", told)
    flow.want(10_000)
    flow.pass_on(40)
    assert told == []
    flow.pass_on(60)
    assert told == [160]


def test_idle_flows_leave_room_for_others() -> None:
    """They hold what they began with, and one that is busy has its share."""
    pool = small_pool()
    idle = [Flow(Stream.OUTPUT, pool, "a", Told()) for _ in range(5)]
    for flow in idle:
        flow.want(10_000)
    busy = Flow(Stream.OUTPUT, pool, "a", Told())
    busy.want(10_000)
    for _ in range(5):
        busy.pass_on(busy.granted)
    assert busy.granted - busy.passed == LIMIT // GREATEST_SHARE
    assert pool.promised <= LIMIT


def test_a_thousand_idle_jobs_leave_a_bulk_stream_its_window() -> None:
    """What they hold is next to nothing, in both directions, and it doesn't divide what the one needs."""
    down, up = CreditPool(), CreditPool()
    for _ in range(1000):
        for stream in (Stream.OUTPUT, Stream.ERROR):
            Flow(stream, down, "a", Told()).want(wire.MIB)
        waiting_for_input = Flow(Stream.INPUT, up, "a", Told())
        waiting_for_input.allow(wire.INITIAL_INPUT_BYTES)
        waiting_for_input.want(256 * wire.KIB)
    for stream, pool in ((Stream.OUTPUT, down), (Stream.INPUT, up)):
        bulk = Flow(stream, pool, "a", Told())
        bulk.want(1000 * wire.MIB)
        for _ in range(40):
            bulk.pass_on(bulk.granted)
        assert bulk.granted - bulk.passed >= 256 * wire.KIB
        assert pool.promised <= pool.limit


def test_who_had_much_and_fell_silent_holds_nobody_back() -> None:
    """What it holds is dormant when others have passed a little, until it says as much again."""
    pool = small_pool()
    silent = [Flow(Stream.OUTPUT, pool, "a", Told()) for _ in range(GREATEST_SHARE)]
    for _ in range(6):
        for flow in silent:
            flow.want(10_000)
            flow.pass_on(flow.granted)
    held = [flow.granted - flow.passed for flow in silent]
    assert sum(held) == LIMIT
    late = Flow(Stream.OUTPUT, pool, "a", Told())
    late.want(10_000)
    assert late.granted == REST
    for _ in range(2 * LIMIT // REST):
        late.pass_on(late.granted)
    assert late.granted - late.passed == LIMIT // GREATEST_SHARE
    assert [flow.granted - flow.passed for flow in silent] == held
    assert pool.held[Standing.DORMANT] == LIMIT - LEAST * GREATEST_SHARE
    # One wakes: it has no more than it had, and what it had counts again.
    silent[0].pass_on(silent[0].passed + FIRST)
    assert silent[0].granted - silent[0].passed < held[0]
    silent[0].pass_on(silent[0].granted)
    assert pool.held[Standing.DORMANT] < LIMIT - LEAST * GREATEST_SHARE
    for flow in (*silent, late):
        flow.close()
    assert not any(pool.held.values())


def test_there_is_room_for_so_much_that_is_dormant(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is beyond that counts as before: so the bound holds whoever wakes."""
    monkeypatch.setattr(credit, "DORMANT_POOLS", 0)
    pool = small_pool()
    silent, late = (Flow(Stream.OUTPUT, pool, "a", Told()) for _ in range(2))
    for flow in (silent, late):
        flow.want(100_000)
        for _ in range(20):
            flow.pass_on(flow.granted)
    assert pool.held[Standing.DORMANT] == 0
    assert pool.promised == 2 * (LIMIT // GREATEST_SHARE - LEAST)


def test_a_flow_whose_sender_is_gone_is_granted_nothing() -> None:
    """What has arrived passes, and what else was promised is free at once."""
    pool, told = small_pool(), Told()
    flow = Flow(Stream.OUTPUT, pool, "a", told)
    flow.want(10_000)
    flow.arrived(data(Stream.OUTPUT, 0, 50))
    flow.stop()
    assert pool.promised == 50 - LEAST
    flow.pass_on(50)
    assert (pool.promised, told) == (0, [])


def test_where_the_pool_is_used_up_everything_still_moves() -> None:
    """A little at a time; and it has more as soon as others leave."""
    pool = small_pool()
    hogs = [Flow(Stream.OUTPUT, pool, "a", Told()) for _ in range(GREATEST_SHARE)]
    for _ in range(6):
        for hog in hogs:
            hog.want(10_000)
            hog.pass_on(hog.granted)
    late = Flow(Stream.OUTPUT, pool, "b", Told())
    assert late.want(10_000) == REST
    later = Flow(Stream.OUTPUT, pool, "b", Told())
    assert later.want(10_000) == LEAST
    for flow, each in ((late, REST), (later, LEAST)):
        flow.pass_on(each)
        assert flow.granted == 2 * each
    for hog in hogs:
        hog.close()
        hog.close()
    late.pass_on(2 * REST)
    assert late.granted - late.passed == 2 * REST
    late.close()
    later.close()
    assert (pool.promised, pool.flows) == (0, 0)


def test_clients_share_before_their_flows_do() -> None:
    """One with many has no more than one with few."""
    pool = small_pool()
    for client, count in (("a", 9), ("b", 1)):
        for _ in range(count):
            pool.rouse(Flow(Stream.OUTPUT, pool, client, Told()))
    assert pool.share("a") == LIMIT // 18
    assert pool.share("b") == LIMIT // 4  # of two, but no flow has more than a fourth


def test_what_was_not_granted_is_a_breach() -> None:
    """Else one could fill the controller's memory; a stream's end needs no credit, a gap that for its first unit."""
    flow = Flow(Stream.OUTPUT, small_pool(), "a", Told())
    flow.want(10_000)
    assert flow.arrived(data(Stream.OUTPUT, 0, FIRST)) == FIRST
    with pytest.raises(RemoteProtocolError, match="OUTPUT exceeds its credit of 100"):
        flow.arrived(data(Stream.OUTPUT, FIRST, 1))
    with pytest.raises(RemoteProtocolError, match="OUTPUT exceeds its credit of 100"):
        flow.arrived(gap(FIRST, 5000))
    assert flow.arrived(data(Stream.OUTPUT, FIRST, 0, final=True)) == FIRST


def test_a_gap_moves_what_follows_and_is_no_bytes() -> None:
    """However large, it costs others nothing; and what the receiver had granted before takes nothing back."""
    pool, told = small_pool(), Told()
    flow, other = (Flow(Stream.OUTPUT, pool, "a", told) for _ in range(2))
    flow.want(300)
    other.want(10_000)
    assert flow.arrived(data(Stream.OUTPUT, 0, 50)) == 50
    assert flow.arrived(gap(50, 2**62)) == 2**62
    other.pass_on(FIRST)
    assert pool.promised <= LIMIT
    assert other.granted - other.passed > LEAST
    flow.pass_on(50)
    flow.pass_on(2**62, 2**62 - 50)
    # It was under way before the gap had arrived there.
    assert flow.want(350) == 2**62
    assert flow.want(2**62 + 500) > 2**62
    for each in (flow, other):
        each.close()
    assert pool.promised == 0


@pytest.mark.parametrize(
    "frame",
    [
        data(Stream.OUTPUT, 0, 5),
        data(Stream.OUTPUT, 9, 1),
        data(Stream.OUTPUT, 9, 0, final=True),
        data(Stream.OUTPUT, 10, 0),
        gap(9, 12),
    ],
)
def test_a_sender_that_goes_back_or_says_nothing_is_in_breach(frame: Data) -> None:
    """It could do so for ever, within its credit."""
    flow = Flow(Stream.OUTPUT, small_pool(), "a", Told())
    flow.want(10_000)
    flow.arrived(data(Stream.OUTPUT, 0, 10))
    with pytest.raises(RemoteProtocolError, match=r"goes back|empty frame"):
        flow.arrived(frame)


def test_behind_its_end_nothing_comes() -> None:
    """Not even its end once more."""
    for stream in (Stream.OUTPUT, Stream.EVENTS):
        flow = Flow(stream, small_pool(), "a", Told())
        flow.want(64)
        flow.arrived(data(stream, 0, 0, final=True))
        with pytest.raises(RemoteProtocolError, match="behind its end"):
            flow.arrived(data(stream, 0, 0, final=True))


def test_a_sender_is_held_to_where_it_says_that_it_begins() -> None:
    """Else it could say far on, be granted that, and begin at 0; what the receiver says of that is no fault of it."""
    flow = Flow(Stream.OUTPUT, small_pool(), "a", Told())
    flow.want(10_000)
    flow.place(5000)
    assert flow.arrived(data(Stream.OUTPUT, 10, 10)) == 20
    flow.place(5000, by_sender=True)
    with pytest.raises(RemoteProtocolError, match="goes back to 20"):
        flow.arrived(data(Stream.OUTPUT, 20, 10))


def test_messages_are_counted_and_not_shared() -> None:
    """Their window is 64, whatever the pool says; an end without a message needs none."""
    pool = small_pool()
    flow = Flow(Stream.EVENTS, pool, "a", Told())
    assert flow.want(64) == 64
    assert flow.arrived(data(Stream.EVENTS, 63, 500)) == 64
    assert flow.arrived(data(Stream.EVENTS, 64, 0, final=True)) == 64
    with pytest.raises(RemoteProtocolError):
        flow.arrived(data(Stream.EVENTS, 64, 1))
    flow.close()
    assert (pool.promised, pool.flows) == (0, 0)


def test_a_flow_that_begins_far_on_is_placed() -> None:
    """Of a job that was there before: what lies below was never under way."""
    pool = small_pool()
    flow = Flow(Stream.OUTPUT, pool, "a", Told())
    flow.want(50)
    flow.place(1_000_000)
    assert pool.promised == 0
    assert flow.want(2_000_000) == 1_000_000 + FIRST


def test_a_sender_is_told_where_it_begins_behind_what_it_was_granted() -> None:
    """Else both would wait: it for credit, and the receiver for what it has granted long ago."""
    told = Told()
    flow = Flow(Stream.OUTPUT, small_pool(), "a", told)
    assert flow.want(10_000) == FIRST
    flow.place(FIRST)
    assert told == [2 * FIRST]
    flow.place(FIRST)
    assert told == [2 * FIRST]


def test_what_may_be_sent_unasked_is_not_what_is_granted() -> None:
    """A receiver that grants less means it: who comes to a stream that has ended may add nothing."""
    pool = small_pool()
    told = Told()
    flow = Flow(Stream.INPUT, pool, "a", told)
    flow.allow(64)
    assert pool.promised == 0
    assert flow.arrived(data(Stream.INPUT, 0, 64)) == 64
    with pytest.raises(RemoteProtocolError, match="exceeds its credit of 64"):
        flow.arrived(data(Stream.INPUT, 64, 1))
    flow.place(1)
    assert flow.want(1) == 1
    flow.pass_on(1)
    assert told == []
    assert flow.want(500) == 101
    flow.close()
    assert pool.promised == 0


@given(st.data())
def test_nothing_stands_still_and_no_more_waits_than_may(script: st.DataObject) -> None:
    """Any flows that come, send what they may, pass and go: the bound holds, and each gets all through."""
    pool = small_pool()
    told: dict[Flow, int] = {}
    flows: list[Flow] = []
    arrived: list[int] = []

    def hear(flow: Flow) -> None:
        told[flow] = flow.update().max_offset

    for _ in range(script.draw(st.integers(1, 40))):
        action = script.draw(st.sampled_from(["open", "want", "send", "pass", "close"]))
        if action == "open" or not flows:
            client = script.draw(st.sampled_from("ab"))
            flows.append(Flow(Stream.OUTPUT, pool, client, hear))
            arrived.append(0)
            continue
        number = script.draw(st.integers(0, len(flows) - 1))
        flow = flows[number]
        match action:
            case "want":
                more = script.draw(st.integers(0, 150))
                told[flow] = flow.want(flow.wanted + more)
            case "send":
                most = told.get(flow, 0)
                end = script.draw(st.integers(arrived[number], max(most, arrived[number])))
                if end > arrived[number]:
                    frame = data(Stream.OUTPUT, arrived[number], end - arrived[number])
                    assert flow.arrived(frame) == end
                arrived[number] = end
            case "pass":
                flow.pass_on(script.draw(st.integers(flow.passed, arrived[number])))
            case "close":
                flow.close()
                del flows[number], arrived[number]
        waiting = sum(end - flow.passed for end, flow in zip(arrived, flows, strict=True))
        held = sum(pool.held.values())
        assert waiting <= held + LEAST * len(flows) <= pool.bound
        assert min(pool.held.values()) >= 0
    for number, flow in enumerate(flows):
        told[flow] = flow.want(flow.wanted + 100)
        flow.pass_on(arrived[number])
        rounds = 0
        while arrived[number] < flow.wanted:
            assert told[flow] > arrived[number], "it stands still"
            arrived[number] = told[flow]
            flow.pass_on(arrived[number])
            rounds += 1
            assert rounds <= flow.wanted
        flow.close()
    assert pool.promised == 0


def test_the_limits_are_what_the_documentation_says() -> None:
    """16 MiB a link, and 4 KiB for each stream; four times as much where dormant flows wake."""
    assert CreditPool().bound == 64 * wire.MIB
    assert CreditPool().limit == 16 * wire.MIB
    assert CreditPool().least == LEAST_BYTES == 4 * wire.KIB
