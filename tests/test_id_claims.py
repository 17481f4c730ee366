"""Who gets a daemon id from a running controller: rivals, copies of a state directory, and restarts."""

from __future__ import annotations

import contextlib
import shutil
import socket
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio
from daemons import open_daemon
from process_tools import posix_only, until
from raw_daemon import RawDaemon, raw_daemon

import sandd
from sandd import DaemonState, wire
from sandd._core import acceptor, fencing
from sandd._core import pump as pump_module
from sandd._core._errors import ConnectionLost
from sandd.wire import RejectCode

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from sandd import DaemonEvent

LIMIT = 40.0
A = {"instance": "a", "ancestors": ("a0",)}
RESTARTED = {"instance": "a2", "ancestors": ("a", "a0")}
COPY = {"instance": "b", "ancestors": ("a0",)}
STRANGER = {"instance": "s"}


@contextlib.asynccontextmanager
async def answering(daemon: RawDaemon) -> AsyncIterator[None]:
    """While open, the daemon answers pings, as one that lives does."""

    async def answer() -> None:
        with contextlib.suppress(ConnectionLost):
            while True:
                _, message = await daemon.receive()
                if isinstance(message, wire.Ping):
                    await daemon.control(0, wire.Pong(message.number))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer)
        yield
        nursery.cancel_scope.cancel()


async def kind_of(events: AsyncIterator[DaemonEvent]) -> str:
    """The next event's."""
    return (await anext(events)).kind


async def no_more(events: AsyncIterator[DaemonEvent]) -> bool:
    """Whether nothing else has happened."""
    with trio.move_on_after(0.05) as scope:
        pytest.fail(f"another event: {await anext(events)}")
    return scope.cancelled_caught


def refusal_of(daemon: RawDaemon) -> wire.Reject:
    """The answer, which is a Reject."""
    assert isinstance(daemon.answer, wire.Reject)
    return daemon.answer


@pytest.mark.parametrize("other", [RESTARTED, COPY], ids=["copied while it ran", "copied before"])
async def test_a_copy_is_refused_while_the_holder_lives(
    other: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    """Both sides are told, the holder isn't disturbed, and the event comes once for all its tries."""
    with trio.fail_after(LIMIT):
        async with sandd.open_controller(port=0) as controller, controller.open_events() as events:
            make = partial(raw_daemon, controller.url, "d")
            async with make(**A) as holder, answering(holder):
                assert await kind_of(events) == "connected"
                for number in range(1, 4):
                    async with make(**other, connection_number=number) as copy:  # type: ignore[arg-type]
                        reject = refusal_of(copy)
                        assert (reject.code, reject.retry_after) == (RejectCode.CLONED, 10.0)
                        assert "copy of the one of another running daemon" in reject.message
                        assert "'raw-host'" in reject.message
                event = await anext(events)
                assert event.kind == "cloned"
                assert event.info is not None
                assert event.info.instance == other["instance"]
                assert await no_more(events)
                assert controller.daemon("d").info.instance == "a"
                assert controller.daemon("d").state is DaemonState.ONLINE
    refused = [line for line in caplog.text.splitlines() if "daemon_rejected" in line]
    assert len(refused) == 3
    assert all("cloned" in line for line in refused)


async def test_two_that_share_an_id_only_are_no_copies() -> None:
    """The refusal says so, and no event speaks of copies."""
    with trio.fail_after(LIMIT):
        async with sandd.open_controller(port=0) as controller, controller.open_events() as events:
            make = partial(raw_daemon, controller.url, "d")
            async with make(**A) as holder, answering(holder), make(**STRANGER) as stranger:
                assert refusal_of(stranger).code is RejectCode.ID_IN_USE
                assert await kind_of(events) == "connected"
                assert await no_more(events)


async def test_a_restart_raises_no_alarm(caplog: pytest.LogCaptureFixture) -> None:
    """Its predecessor's link is found dead, or broken, and it is in."""
    with trio.fail_after(LIMIT):
        async with sandd.open_controller(port=0) as controller, controller.open_events() as events:
            make = partial(raw_daemon, controller.url, "d")
            async with make(**A):
                pass
            assert [await kind_of(events) for _ in range(2)] == ["connected", "away"]
            async with make(**RESTARTED) as restarted:
                assert isinstance(restarted.answer, wire.Welcome)
                assert [await kind_of(events) for _ in range(2)] == ["lost", "connected"]
                assert await no_more(events)
    assert "forked" not in caplog.text


@pytest.mark.parametrize("successor_is", ["online", "away", "lost"])
async def test_the_hello_of_one_that_was_restarted_meanwhile_raises_no_alarm(
    caplog: pytest.LogCaptureFixture, successor_is: str
) -> None:
    """It was held up on its way while its daemon died and the next one was let in; so it is only stale."""
    challenged, goes_on, is_told = trio.Event(), trio.Event(), trio.Event()

    async def hold_up() -> None:
        challenged.set()
        await goes_on.wait()

    async with trio.open_nursery() as nursery, sandd.open_controller(port=0) as controller:
        nursery.cancel_scope.deadline = trio.current_time() + LIMIT
        make = partial(raw_daemon, controller.url, "d")

        async def say_hello_late() -> None:
            async with make(**A, before_hello=hold_up) as late:
                assert refusal_of(late).code is RejectCode.STALE
                assert refusal_of(late).retry_after == 1.0
            is_told.set()

        nursery.start_soon(say_hello_late)
        await challenged.wait()
        async with controller.open_events() as events:
            async with make(**RESTARTED) as restarted, answering(restarted):
                assert await kind_of(events) == "connected"
                if successor_is == "lost":
                    await restarted.control(0, wire.Goodbye("stopped"))
                    assert await kind_of(events) == "lost"
                if successor_is == "online":
                    goes_on.set()
                    await is_told.wait()
            if successor_is != "lost":
                assert await kind_of(events) == "away"
            goes_on.set()
            await is_told.wait()
            assert await no_more(events)
    assert "cloned" not in caplog.text


async def test_a_predecessor_that_dials_again_lives() -> None:
    """It answers a challenge that is newer than its successor: its directory was copied while it ran."""
    with trio.fail_after(LIMIT):
        async with sandd.open_controller(port=0) as controller, controller.open_events() as events:
            make = partial(raw_daemon, controller.url, "d")
            async with make(**RESTARTED) as copy, answering(copy):
                async with make(**A) as lives:
                    assert refusal_of(lives).code is RejectCode.CLONED
                assert [await kind_of(events) for _ in range(2)] == ["connected", "cloned"]


async def test_a_copy_that_comes_while_the_holder_is_away_is_reported(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is let in, as it may be the same machine, rolled back; when the other returns both are known."""
    with trio.fail_after(LIMIT):
        async with sandd.open_controller(port=0) as controller, controller.open_events() as events:
            make = partial(raw_daemon, controller.url, "d")
            async with make(**A):
                pass
            assert [await kind_of(events) for _ in range(2)] == ["connected", "away"]
            async with make(**COPY) as copy, answering(copy):
                assert isinstance(copy.answer, wire.Welcome)
                assert [await kind_of(events) for _ in range(3)] == ["cloned", "lost", "connected"]
                assert "daemon_forked" in caplog.text
                async with make(**A, connection_number=2) as first:
                    assert refusal_of(first).code is RejectCode.CLONED
                # What was suspicious is proven: it was no machine that was rolled back.
                assert await kind_of(events) == "cloned"
                # The successor's connection breaks for a moment: the other one doesn't get its id back.
            assert await kind_of(events) == "away"
            async with make(**A, connection_number=3) as first:
                assert refusal_of(first).code is RejectCode.CLONED
            async with make(**COPY, connection_number=2) as copy:
                assert isinstance(copy.answer, wire.Welcome)


async def test_a_copy_that_looked_like_a_restart_is_told_when_the_other_returns() -> None:
    """It was made while the holder ran, so it descends from it, and was let in while that was away."""
    with trio.fail_after(LIMIT):
        async with sandd.open_controller(port=0) as controller, controller.open_events() as events:
            make = partial(raw_daemon, controller.url, "d")
            async with make(**A):
                pass
            assert [await kind_of(events) for _ in range(2)] == ["connected", "away"]
            async with make(**RESTARTED) as copy, answering(copy):
                assert isinstance(copy.answer, wire.Welcome)
                assert [await kind_of(events) for _ in range(2)] == ["lost", "connected"]
                for number in range(2, 5):
                    async with make(**A, connection_number=number) as first:  # type: ignore[arg-type]
                        assert refusal_of(first).code is RejectCode.CLONED
                event = await anext(events)
                assert event.kind == "cloned"
                assert event.info is not None
                assert event.info.instance == "a"
                assert await no_more(events)


async def test_a_copy_is_told_though_it_was_refused_for_another_reason_before() -> None:
    """Two copies wait for the id while a stranger holds it; then one of them gets it."""
    with trio.fail_after(LIMIT):
        async with sandd.open_controller(port=0) as controller, controller.open_events() as events:
            make = partial(raw_daemon, controller.url, "d")
            async with make(**STRANGER) as stranger:
                async with answering(stranger):
                    for each in (A, COPY):
                        async with make(**each) as refused:  # type: ignore[arg-type]
                            assert refusal_of(refused).code is RejectCode.ID_IN_USE
                await stranger.control(0, wire.Goodbye("stopped"))
                assert [await kind_of(events) for _ in range(2)] == ["connected", "lost"]
            async with make(**A, connection_number=2) as holder, answering(holder):
                assert await kind_of(events) == "connected"
                for number in range(2, 5):
                    async with make(**COPY, connection_number=number) as copy:  # type: ignore[arg-type]
                        assert refusal_of(copy).code is RejectCode.CLONED
                assert await kind_of(events) == "cloned"
                assert await no_more(events)


async def test_a_rival_gets_the_id_of_one_that_stays_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not before the holder had time to come back, and then without anybody's help."""
    monkeypatch.setattr(fencing, "RIVAL_PATIENCE", 0.4)
    with trio.fail_after(LIMIT):
        async with sandd.open_controller(port=0) as controller, controller.open_events() as events:
            make = partial(raw_daemon, controller.url, "d")
            async with make(**A) as holder, answering(holder), make(**STRANGER) as rival:
                assert refusal_of(rival).code is RejectCode.ID_IN_USE
            assert [await kind_of(events) for _ in range(2)] == ["connected", "away"]
            went_at = trio.current_time()
            for number in range(2, 1000):
                async with make(**STRANGER, connection_number=number) as rival:  # type: ignore[arg-type]
                    if isinstance(rival.answer, wire.Welcome):
                        break
                await trio.sleep(0.01)
            assert trio.current_time() - went_at > 0.3


@pytest.mark.parametrize("says_goodbye", [True, False])
async def test_a_holder_that_goes_while_it_is_asked_is_gone(
    monkeypatch: pytest.MonkeyPatch, says_goodbye: bool
) -> None:
    """The one that asked is judged anew, and let in at once: it was no rival yet."""
    monkeypatch.setattr(acceptor, "RIVAL_PING_SECONDS", 20.0)
    with trio.fail_after(LIMIT):
        async with sandd.open_controller(port=0) as controller:
            make = partial(raw_daemon, controller.url, "d")
            online = trio.Event()

            async def hold() -> None:
                async with make(**A) as holder:
                    online.set()
                    while not isinstance((await holder.receive())[1], wire.Ping):
                        pass
                    if says_goodbye:
                        await holder.control(0, wire.Goodbye("enough"))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(hold)
                await online.wait()
                async with make(**STRANGER) as other:
                    assert isinstance(other.answer, wire.Welcome)
                    assert controller.daemon("d").info.instance == "s"


async def test_the_answer_of_one_that_has_left_since_counts_for_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In the very turn of its answer another took its place: who asked is judged beside that one, not refused."""
    asked, answered = trio.Event(), trio.Event()

    async def ping(pump: pump_module.Pump) -> None:
        asked.set()
        await answered.wait()

    monkeypatch.setattr(pump_module.Pump, "ping", ping)
    with trio.fail_after(LIMIT):
        async with sandd.open_controller(port=0) as controller, controller.open_events() as events:
            make = partial(raw_daemon, controller.url, "d")
            answers: list[wire.Control | wire.Unknown] = []

            async def ask() -> None:
                async with make(**RESTARTED) as first_dial:
                    answers.append(first_dial.answer)

            async with trio.open_nursery() as nursery:
                async with make(**A) as holder:
                    nursery.start_soon(ask)
                    await asked.wait()
                    await holder.control(0, wire.Goodbye("stopped"))
                    assert [await kind_of(events) for _ in range(2)] == ["connected", "lost"]
                async with make(**RESTARTED, connection_number=2) as second_dial:
                    assert isinstance(second_dial.answer, wire.Welcome)
                    answered.set()
                    while not answers:
                        await trio.sleep(0.01)
            assert isinstance(answers[0], wire.Reject)
            assert answers[0].code is RejectCode.STALE
            assert [await kind_of(events) for _ in range(2)] == ["connected", "away"]
            assert await no_more(events)


async def test_a_holder_has_five_seconds_to_answer() -> None:
    """Half a second of silence costs it nothing."""
    assert acceptor.RIVAL_PING_SECONDS == 5.0
    with trio.fail_after(LIMIT):
        async with sandd.open_controller(port=0) as controller:
            make = partial(raw_daemon, controller.url, "d")
            async with make(**A) as holder:

                async def answer_late() -> None:
                    while not isinstance(ping := (await holder.receive())[1], wire.Ping):
                        pass
                    await trio.sleep(0.5)
                    await holder.control(0, wire.Pong(ping.number))

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(answer_late)
                    async with make(**STRANGER) as other:
                        assert refusal_of(other).code is RejectCode.ID_IN_USE


# ---- real daemons -------------------------------------------------------------------------------


@posix_only
async def test_a_daemon_whose_state_directory_was_copied_is_found_out(tmp_path: Path) -> None:
    """The copy is refused for what it is, both sides say so, and the first one goes on undisturbed."""
    with trio.fail_after(LIMIT):
        async with sandd.open_controller(port=0) as controller, controller.open_events() as events:
            async with open_daemon(controller.url, "same") as first:
                worker = await controller.wait_for_daemon("same")
                assert await kind_of(events) == "connected"
                async with worker.open_process(["cat"]) as process:
                    copy = tmp_path / "copy"
                    shutil.copytree(first.state_dir, copy)
                    arguments = ["--state-dir", str(copy)]
                    async with open_daemon(controller.url, "same", arguments=arguments) as second:
                        log = await second.wait_for_log("code=cloned")
                        assert "is a copy of the one of another running daemon" in log
                        assert socket.gethostname() in log
                        event = await anext(events)
                        assert event.kind == "cloned"
                        await process.stdin.send_all(b"undisturbed")
                        assert await process.stdout.receive_some() == b"undisturbed"
                        assert worker.state is DaemonState.ONLINE
                        assert second.exit_code is None


@posix_only
async def test_restarts_in_one_state_directory_raise_no_alarm(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Killed, stopped in good order, unheard of by the controller, or with the directory lost."""
    arguments = ["--state-dir", str(tmp_path / "state")]
    kinds: list[str] = []
    with trio.fail_after(2 * LIMIT):  # six starts, one after the other
        async with sandd.open_controller(port=0) as controller, controller.open_events() as events:
            for end in ("kill", "stop", "unheard", "kill", "lose", "kill"):
                url = controller.url if end != "unheard" else "ws://127.0.0.1:9/ws"
                async with open_daemon(url, "d", arguments=arguments) as daemon:
                    if end == "unheard":
                        await daemon.wait_for_log("dial_failed")
                        continue
                    worker = await controller.wait_for_daemon("d")
                    assert (await worker.run("echo fine")).stdout == "fine\n"
                    if end != "stop":
                        daemon.kill()
                if end != "stop":
                    await until(lambda worker=worker: worker.state is not DaemonState.ONLINE)
                if end == "lose":
                    shutil.rmtree(tmp_path / "state")
            with trio.move_on_after(0.05):
                async for event in events:
                    kinds.append(event.kind)
    assert kinds.count("connected") == 5
    assert set(kinds) == {"connected", "away", "lost"}
    assert "forked" not in caplog.text
    assert "cloned" not in caplog.text
