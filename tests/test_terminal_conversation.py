"""A terminal and a session talk, both made up: what reaches whom, and how it ends."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from attrs import define, field

from sandd import DaemonGone, ExitStatus, JobTaken, Outcome, OutputGap
from sandd.terminal import conversation
from sandd.terminal.conversation import Conversation, Ended, Ending
from sandd.terminal.local import Size
from sandd.terminal.replay import ReplayFilter

STATUS = ExitStatus(3, Outcome.EXITED, 1.0)
SIZE = Size(24, 80)


@define(eq=False, slots=False)
class FakeTerminal:
    """Shows into `screen`; what is put into `keys` was typed."""

    size: Size = SIZE
    screen: bytearray = field(factory=bytearray)
    said: list[str] = field(factory=list)
    suspended: int = 0
    showing: trio.Event | None = None
    """Set by the test: until it is, nothing is shown."""

    def __attrs_post_init__(self) -> None:
        self.keys, self._keys = trio.open_memory_channel[bytes](1000)
        self._resized = trio.Event()

    async def receive(self) -> bytes:
        """The next keys."""
        try:
            return await self._keys.receive()
        except trio.EndOfChannel:
            return b""

    async def show(self, data: bytes) -> None:
        """Put it on the screen."""
        if self.showing is not None:
            await self.showing.wait()
        self.screen += data
        await trio.lowlevel.checkpoint()

    async def say(self, text: str) -> None:
        """Note it."""
        self.said.append(text)
        await trio.lowlevel.checkpoint()

    def suspend(self) -> None:
        """Count it."""
        self.suspended += 1

    async def next_size(self, known: Size) -> Size:
        """Another size."""
        while self.size == known:
            await self._resized.wait()
        return self.size

    def resize(self, size: Size) -> None:
        """The window is made larger or smaller."""
        self.size = size
        self._resized.set()
        self._resized = trio.Event()


@define(eq=False, slots=False)
class FakeSession:
    """Notes what it is sent; shows what is put into `output`, where exceptions are raised."""

    sent: bytearray = field(factory=bytearray)
    sizes: list[tuple[int, int]] = field(factory=list)
    detached: bool = False
    offset: int = 0
    away: trio.Event | None = None
    """Set by the test: until it is, nothing can be sent and nobody can be detached."""
    error: Exception | None = None
    """What `wait` raises."""

    def __attrs_post_init__(self) -> None:
        self.output, self._output = trio.open_memory_channel[bytes | Exception](1000)

    async def send_all(self, data: bytes) -> None:
        """Note it."""
        await self._connected()
        self.sent += data

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """What is to be shown next."""
        try:
            data = await self._output.receive()
        except trio.EndOfChannel:
            return b""
        if isinstance(data, Exception):
            raise data
        self.offset += len(data)
        return data

    async def resize(self, rows: int, cols: int) -> None:
        """Note the size."""
        await self._connected()
        self.sizes.append((rows, cols))

    async def detach(self) -> None:
        """Go on without us."""
        await self._connected()
        self.detached = True

    async def wait(self) -> ExitStatus:
        """How it ended."""
        await trio.lowlevel.checkpoint()
        if self.error is not None:
            raise self.error
        return STATUS

    async def _connected(self) -> None:
        await trio.lowlevel.checkpoint()
        if self.away is not None:
            await self.away.wait()
        if self.error is not None:
            raise trio.BrokenResourceError


@pytest.fixture
def terminal() -> FakeTerminal:
    """A terminal with a person at it."""
    return FakeTerminal()


@pytest.fixture
def session() -> FakeSession:
    """A session that runs."""
    return FakeSession()


async def settled() -> None:
    """Everybody waits for somebody else."""
    await trio.testing.wait_all_tasks_blocked()


async def test_bytes_go_both_ways_and_the_end_is_told(
    terminal: FakeTerminal, session: FakeSession, nursery: trio.Nursery
) -> None:
    """What is typed is sent, what is sent is shown; all output comes before the end."""
    ended: list[Ended] = []

    async def run() -> None:
        ended.append(await Conversation(terminal, session).run())

    nursery.start_soon(run)
    terminal.keys.send_nowait(b"ls\r")
    session.output.send_nowait(b"file\r\n")
    await settled()
    assert (session.sent, terminal.screen, ended) == (b"ls\r", b"file\r\n", [])
    terminal.showing = trio.Event()
    session.output.send_nowait(b"bye\r\n")
    session.output.close()
    await settled()
    assert not ended
    terminal.showing.set()
    await settled()

    assert terminal.screen == b"file\r\nbye\r\n"
    assert ended == [Ended(Ending.EXITED, STATUS)]


async def test_leaving_waits_for_nobody(terminal: FakeTerminal, session: FakeSession) -> None:
    """``~.`` is heard while the daemon is away, the terminal stuck, and much typed before it."""
    session.away, terminal.showing = trio.Event(), trio.Event()
    session.output.send_nowait(b"stuck")
    for _ in range(100):
        terminal.keys.send_nowait(b"x" * 4096)
    terminal.keys.send_nowait(b"\r~")
    terminal.keys.send_nowait(b".")
    with trio.fail_after(5):
        assert await Conversation(terminal, session).run() == Ended(Ending.LEFT)


async def test_what_is_typed_is_kept_within_a_bound(
    terminal: FakeTerminal,
    session: FakeSession,
    nursery: trio.Nursery,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing is dropped: beyond the bound the terminal waits, and all of it arrives in order."""
    monkeypatch.setattr(conversation, "MAX_TYPED_BYTES", 10)
    session.away = trio.Event()
    nursery.start_soon(Conversation(terminal, session).run)
    typed = [b"%04d" % n for n in range(100)]
    for each in typed:
        terminal.keys.send_nowait(each)
    await settled()
    assert terminal._keys.statistics().current_buffer_used > 90
    session.away.set()
    await settled()

    assert session.sent == b"".join(typed)
    session.output.close()


async def test_detaching_comes_after_what_was_typed_before(
    terminal: FakeTerminal, session: FakeSession, nursery: trio.Nursery
) -> None:
    """``~d`` waits for the daemon, which has all of it then; what follows is for nobody."""
    session.away = trio.Event()
    ended: list[Ended] = []

    async def run() -> None:
        ended.append(await Conversation(terminal, session).run())

    nursery.start_soon(run)
    terminal.keys.send_nowait(b"make\r~dnever")
    await settled()
    assert not ended
    session.away.set()
    await settled()

    assert session.sent == b"make\r"
    assert session.detached
    assert ended == [Ended(Ending.DETACHED)]


async def test_detaching_can_be_refused(
    terminal: FakeTerminal, session: FakeSession, nursery: trio.Nursery
) -> None:
    """Where a session can't go on, ``~d`` says so, and nothing else happens."""
    nursery.start_soon(Conversation(terminal, session, why_not_detach="it can't").run)
    terminal.keys.send_nowait(b"~dx")
    await settled()

    assert (terminal.said, session.sent, session.detached) == (["[it can't]"], b"x", False)
    session.output.close()


async def test_help_and_suspending(
    terminal: FakeTerminal, session: FakeSession, nursery: trio.Nursery
) -> None:
    """``~?`` lists the escapes, ``~^Z`` stops this program; the session gets nothing of either."""
    nursery.start_soon(Conversation(terminal, session).run)
    terminal.keys.send_nowait(b"~?~\x1a")
    await settled()

    assert "~d" in terminal.said[0]
    assert (terminal.suspended, session.sent) == (1, b"")
    session.output.close()


@pytest.mark.parametrize("typed", [b"~.", b"~d"])
async def test_who_looks_on_sends_nothing(
    typed: bytes, terminal: FakeTerminal, session: FakeSession
) -> None:
    """No key and no size; both ways of leaving leave."""
    terminal.keys.send_nowait(b"rm -rf /\r" + typed)
    ended = await Conversation(terminal, session, read_only=True).run()

    assert ended == Ended(Ending.LEFT)
    assert (session.sent, session.sizes, session.detached) == (b"", [], False)


async def test_what_a_viewer_types_is_not_kept(
    terminal: FakeTerminal, session: FakeSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However much it is, the way out stays open."""
    monkeypatch.setattr(conversation, "MAX_TYPED_BYTES", 10)
    for each in (b"x" * 100, b"\r~", b"."):
        terminal.keys.send_nowait(each)
    with trio.fail_after(5):
        ended = await Conversation(terminal, session, read_only=True).run()

    assert ended == Ended(Ending.LEFT)


async def test_sizes_are_told(
    terminal: FakeTerminal, session: FakeSession, nursery: trio.Nursery
) -> None:
    """The first one where the session doesn't know it, then each change; the newest after an outage."""
    nursery.start_soon(Conversation(terminal, session).run)
    await settled()
    terminal.resize(Size(30, 100))
    await settled()
    session.away = trio.Event()
    for columns in (101, 102, 103):
        terminal.resize(Size(30, columns))
        await settled()
    session.away.set()
    await settled()

    assert session.sizes[:2] == [(24, 80), (30, 100)]
    assert session.sizes[-1] == (30, 103)
    session.output.close()


async def test_a_known_size_is_not_told_again(
    terminal: FakeTerminal, session: FakeSession, nursery: trio.Nursery
) -> None:
    """A session that was opened with it isn't disturbed; one that changed meanwhile is told."""
    nursery.start_soon(Conversation(terminal, session, size=Size(24, 80)).run)
    await settled()
    assert session.sizes == []
    session.output.close()
    other, changed = FakeSession(), FakeTerminal(Size(50, 132))
    nursery.start_soon(Conversation(changed, other, size=Size(24, 80)).run)
    await settled()
    assert other.sizes == [(50, 132)]
    other.output.close()


async def test_a_terminal_that_goes_away_ends_it(
    terminal: FakeTerminal, session: FakeSession
) -> None:
    """A closed window is the end of the conversation, not of the program's patience."""
    terminal.keys.close()

    assert await Conversation(terminal, session).run() == Ended(Ending.HUNG_UP)


async def test_gaps_are_told(terminal: FakeTerminal, session: FakeSession) -> None:
    """Bytes that are gone are counted on the screen; the rest is shown."""
    for each in (OutputGap(0, 1234), b"rest"):
        session.output.send_nowait(each)
    session.output.close()
    await Conversation(terminal, session).run()

    assert terminal.said == ["[1,234 bytes are not kept any more]"]
    assert terminal.screen == b"rest"


async def test_questions_are_not_asked_again(terminal: FakeTerminal, session: FakeSession) -> None:
    """What was shown before is shown without them."""
    for each in (b"old\x1b[6", b"n", b"new\x1b[6n"):
        session.output.send_nowait(each)
    session.output.close()
    await Conversation(terminal, session, replay=ReplayFilter(7)).run()

    assert terminal.screen == b"oldnew\x1b[6n"


@pytest.mark.parametrize("error", [JobTaken("taken"), DaemonGone("gone")])
async def test_losing_the_session_is_told_as_what_it_is(
    error: Exception, terminal: FakeTerminal, session: FakeSession
) -> None:
    """One exception, although everything that is being sent fails with it."""
    session.error = error
    terminal.keys.send_nowait(b"typed")
    session.output.send_nowait(trio.BrokenResourceError())
    with pytest.raises(type(error)):
        await Conversation(terminal, session).run()


async def test_sending_to_an_ended_program_is_no_error(
    terminal: FakeTerminal, session: FakeSession, nursery: trio.Nursery
) -> None:
    """What it has shown is shown to the end, whatever is typed meanwhile."""
    session.error = trio.BrokenResourceError()
    ended: list[Ended] = []

    async def run() -> None:
        ended.append(await Conversation(terminal, session).run())

    nursery.start_soon(run)
    terminal.keys.send_nowait(b"typed")
    await settled()
    session.error = None
    session.output.send_nowait(b"last words")
    session.output.close()
    await settled()

    assert terminal.screen == b"last words"
    assert ended == [Ended(Ending.EXITED, STATUS)]
