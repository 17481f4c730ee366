"""The controller: who may register, what it knows, what it hears, what it survives, and how it closes."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import sys
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio
from daemons import DaemonProcess, open_daemon
from process_tools import until
from raw_daemon import RawDaemon, raw_daemon
from raw_peer import Op, RawPeer, close_payload, frame, raw_client
from standing_daemon import StandingDaemon, reserved_port, standing_daemon

import sandd
from sandd import (
    CommandResult,
    ConfigurationError,
    DaemonGone,
    DaemonNotFound,
    DaemonState,
    Outcome,
    SanddError,
    SpawnFailed,
    wire,
)
from sandd._core import acceptor, fencing, job_link, services
from sandd._core._errors import ConnectionLost
from sandd._core.transport import ListenAddress

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from conftest import Marker

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="these commands are POSIX shell")
LIMIT = 25.0


@pytest.fixture(scope="module")
def daemon(_own_temporary_directory: None) -> Iterator[StandingDaemon]:
    """The daemon that the tests of this module share."""
    with standing_daemon(labels={"env": "prod", "zone": "a"}) as daemon:
        yield daemon


def address_of(controller: sandd.Controller) -> ListenAddress:
    """Where it listens."""
    host, _, port = controller.address.rpartition(":")
    return ListenAddress(host.strip("[]"), int(port))


# ---- opening ------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "localhost", "::1"])
async def test_url_can_be_dialled_whatever_it_listens_on(host: str) -> None:
    """With port 0 the real port is in it, and "every address" is one that can be reached."""
    with trio.fail_after(LIMIT):
        try:
            opened = sandd.open_controller(host, 0)
            async with opened as controller:
                assert controller.url.startswith("ws://")
                assert controller.url.endswith("/ws")
                assert ":0/" not in controller.url
                async with raw_daemon(controller.url) as raw:
                    assert isinstance(raw.answer, wire.Welcome)
        except OSError:
            if host != "::1":
                raise
            pytest.skip("no IPv6 here")


async def test_an_address_in_use_is_an_os_error() -> None:
    """A bind error comes out as itself, and says which address."""
    with trio.fail_after(LIMIT), socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=str(port)):
            async with sandd.open_controller(port=port):
                pytest.fail("it can't listen there")


@pytest.mark.parametrize(
    "options",
    [
        {"token": ""},
        {"token": b"  \n"},
        {"heartbeat": 0},
        {"heartbeat": -1},
        {"heartbeat": 5, "dead_after": 5},
        {"dead_after": 1},
        {"heartbeat": 0.001, "dead_after": 1},
        {"heartbeat": 4000, "dead_after": 5000},
        {"dead_after": 8000},
        {"dead_after": float("nan")},
        {"max_handshakes_per_second": 0},
        {"max_handshakes_per_second": -5.0},
        {"max_handshakes_per_second": float("nan")},
        {"max_handshakes_per_second": 1e9},
        {"port": 70000},
        {"port": -1},
    ],
    ids=repr,
)
async def test_options_that_make_no_sense_are_configuration_errors(options: dict[str, Any]) -> None:
    """They are ValueErrors too, and nothing listens."""
    with pytest.raises(ConfigurationError) as caught:
        async with sandd.open_controller(**({"port": 0} | options)):
            pytest.fail("nothing was opened")
    assert isinstance(caught.value, ValueError)


async def test_a_file_says_what_no_argument_does(tmp_path: Path) -> None:
    """As for the program ``sandd controller``; an argument that is given counts, its default too."""
    state, token = tmp_path / "state", tmp_path / "token"
    token.write_text("s3cret")
    config = tmp_path / "controller.toml"
    config.write_text(
        f'port = 0\nstate_dir = "{state.as_posix()}"\ntoken_file = "{token.as_posix()}"\n'
        'audit = true\nmetrics_address = "127.0.0.1:0"\nlog_level = "error"\nheartbeat = 3\n'
    )
    with trio.fail_after(LIMIT):
        async with sandd.open_controller(config=config) as controller:
            assert controller.metrics_address is not None
            assert (state / "audit").is_dir()
            async with raw_daemon(controller.url, token=b"s3cret") as raw:
                assert isinstance(raw.answer, wire.Welcome)
                assert raw.answer.heartbeat == 3.0
            async with raw_daemon(controller.url) as raw:
                assert isinstance(raw.answer, wire.Reject)
        opened = sandd.open_controller(
            "localhost", config=str(config), token=None, state_dir=None, audit=False, heartbeat=20.0
        )
        async with opened as controller, raw_daemon(controller.url) as raw:
            assert isinstance(raw.answer, wire.Welcome)
            assert raw.answer.heartbeat == 20.0


async def test_a_file_that_cannot_be_used_is_a_configuration_error(tmp_path: Path) -> None:
    """Before anything listens."""
    config = tmp_path / "controller.toml"
    for text, complaint in (
        ("prot = 0", "'prot'"),
        ("port = 1e9", "--port"),
        ("port", "TOML|can't"),
    ):
        config.write_text(text)
        with pytest.raises(ConfigurationError, match=complaint):
            async with sandd.open_controller(config=config):
                pytest.fail("it means nothing")
    with pytest.raises(ConfigurationError, match="config is 7"):
        async with sandd.open_controller(config=7):  # type: ignore[arg-type]
            pytest.fail("it is no path")


async def test_an_exception_in_the_body_comes_out_as_itself() -> None:
    """Not in a group; a group of the body's own stays the group it is."""
    error = KeyError("ours")
    group = ExceptionGroup("ours", [error])
    with trio.fail_after(LIMIT):
        for raised in (error, group):
            with pytest.raises((KeyError, ExceptionGroup)) as caught:
                async with sandd.open_controller(port=0):
                    raise raised
            assert caught.value is raised
            assert caught.value.__cause__ is None


async def test_cancelled_from_outside_it_closes(daemon: StandingDaemon, marker: Marker) -> None:
    """The connections outlive what was cancelled, until the last job's tree is gone; then nothing is left."""
    script = "trap '' TERM; setsid sleep 60 & sleep 60"
    with trio.fail_after(LIMIT):
        with trio.CancelScope() as scope:
            async with sandd.open_controller(port=daemon.port) as controller:
                worker = await controller.wait_for_daemon("worker-1")
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(
                        lambda: worker.run(script, env=dict([marker]), kill_grace=0.3)
                    )
                    await until(lambda: len(marker.processes()) >= 3)
                    scope.cancel()
        assert scope.cancelled_caught
        assert marker.processes() == []


async def test_private_constructors_say_what_to_use() -> None:
    """Public classes that users don't make tell where they come from."""
    for cls in (sandd.Controller, sandd.Daemon):
        with pytest.raises(TypeError, match=r"[Cc]ontroller"):
            cls()


# ---- what it knows ------------------------------------------------------------------------------


async def test_a_daemon_is_described(daemon: StandingDaemon) -> None:
    """`info` is what it said of itself."""
    async with daemon.worker() as worker:
        info = worker.info
        assert (info.id, info.platform, info.version) == (
            "worker-1",
            sys.platform,
            sandd.__version__,
        )
        assert info.hostname == socket.gethostname()
        assert dict(info.labels) == {"env": "prod", "zone": "a"}
        assert len(info.instance) == 16
        assert worker.state is DaemonState.ONLINE
        assert "worker-1" in repr(worker)
        assert "online" in repr(worker)


async def test_daemons_are_found_by_id_glob_and_labels() -> None:
    """All labels must be equal; the list is sorted by id, and has those that are away."""
    with trio.fail_after(LIMIT):
        async with (
            sandd.open_controller(port=0) as controller,
            contextlib.AsyncExitStack() as stack,
        ):
            for name, labels in [
                ("web-2", {"env": "prod", "kind": "web"}),
                ("web-1", {"env": "test", "kind": "web"}),
                ("db-1", {"env": "prod", "kind": "db"}),
            ]:
                await stack.enter_async_context(raw_daemon(controller.url, name, labels=labels))

            def found(*labels: dict[str, str] | None, match: str = "*") -> list[str]:
                return [each.id for each in controller.daemons(*labels, match=match)]

            assert found() == ["db-1", "web-1", "web-2"]
            assert found({"env": "prod"}) == ["db-1", "web-2"]
            assert found({"env": "prod", "kind": "web"}) == ["web-2"]
            assert found({"env": "prod", "kind": "none"}) == []
            assert found({"absent": ""}) == []
            assert found(match="web-*") == ["web-1", "web-2"]
            assert found({"env": "test"}, match="*-1") == ["web-1"]
            assert found(match="WEB-1") == []
            with pytest.raises(
                DaemonNotFound, match=r"'web-9' not found.*db-1, web-1, web-2"
            ) as caught:
                controller.daemon("web-9")
            assert isinstance(caught.value, LookupError)
            assert isinstance(caught.value, ValueError)
            await stack.aclose()
            await until(lambda: controller.statistics().daemons_away == 3)
            assert found() == ["db-1", "web-1", "web-2"]
            assert controller.daemon("db-1").state is DaemonState.AWAY


async def test_waiting_for_a_daemon_needs_no_polling() -> None:
    """Any number of tasks wait at once, are woken by its arrival, and can be bound by cancellation."""
    with trio.fail_after(LIMIT):
        async with sandd.open_controller(port=0) as controller:
            arrived = []

            async def wait(name: str) -> None:
                arrived.append((await controller.wait_for_daemon(name)).id)

            with trio.move_on_after(0.05) as scope:
                await controller.wait_for_daemon("one")
            assert scope.cancelled_caught
            async with trio.open_nursery() as nursery:
                for _ in range(10):
                    nursery.start_soon(wait, "one")
                nursery.start_soon(wait, "never")
                await trio.testing.wait_all_tasks_blocked()
                async with raw_daemon(controller.url, "one"):
                    await until(lambda: len(arrived) == 10)
                    await wait("one")
                    nursery.cancel_scope.cancel()
            assert arrived == ["one"] * 11
            assert controller._service.directory._arrivals == {}


async def test_statistics_count(daemon: StandingDaemon) -> None:
    """Daemons by state and platform, jobs, bytes and the loop's lag, all at this moment."""
    async with daemon.controller() as controller:
        worker = await controller.wait_for_daemon("worker-1")
        async with raw_daemon(controller.url):
            before = controller.statistics()
            assert (before.daemons_online, before.daemons_away) == (2, 0)
            assert dict(before.platforms) == {sys.platform: 1, "raw-os": 1}
        await until(lambda: controller.statistics().daemons_away == 1)
        async with worker.open_process(["cat"]) as process:
            assert controller.statistics().jobs == 1
            await process.stdin.send_all(bytes(100_000))
            while process.offsets["stdout"] < 100_000:
                await process.stdout.receive_some()
        after = controller.statistics()
        assert (after.jobs, after.jobs_started) == (0, before.jobs_started + 1)
        assert after.bytes_received - before.bytes_received > 100_000
        assert after.bytes_sent - before.bytes_sent > 100_000
        assert after.loop_lag >= 0
        assert "1 daemons" in repr(controller) or "2 daemons" in repr(controller)


async def test_events_tell_what_happens_from_now_on() -> None:
    """connected, away, resumed, lost, with the daemon's info; each iterator has all of them."""
    with trio.fail_after(LIMIT):
        async with sandd.open_controller(port=0) as controller:
            async with raw_daemon(controller.url, "before"):
                async with controller.open_events() as events, controller.open_events() as others:
                    async with raw_daemon(controller.url, "d", instance="one"):
                        pass
                    assert [await kind_of(events) for _ in range(2)] == ["connected", "away"]
                    async with raw_daemon(
                        controller.url, "d", instance="one", connection_number=2
                    ) as raw:
                        await raw.control(0, wire.Goodbye("bye"))
                        assert [await kind_of(events) for _ in range(2)] == ["resumed", "lost"]
                    event = [await anext(others) for _ in range(4)][2]
                    assert (event.kind, event.daemon_id) == ("resumed", "d")
                    assert event.info is not None
                    assert event.info.instance == "one"


async def kind_of(events: Any) -> str:
    """The next event's kind."""
    event: sandd.DaemonEvent = await anext(events)
    return event.kind


async def test_waiting_for_an_event_can_be_given_up() -> None:
    """The iterator goes on where it was."""
    with trio.fail_after(LIMIT):
        async with sandd.open_controller(port=0) as controller, controller.open_events() as events:
            for _ in range(3):
                with trio.move_on_after(0.01):
                    await anext(events)
            async with raw_daemon(controller.url):
                assert await kind_of(events) == "connected"


# ---- broadcast ----------------------------------------------------------------------------------


@posix_only
async def test_broadcast_to_a_dozen_real_daemons() -> None:
    """Each has its own answer; started and stopped in groups, because there are two cores here."""
    count, group = 12, 4
    running: list[DaemonProcess] = []
    with trio.fail_after(55):
        async with (
            sandd.open_controller(port=0) as controller,
            contextlib.AsyncExitStack() as stack,
        ):
            for first in range(0, count, group):
                names = [f"d{number:02}" for number in range(first, first + group)]
                for name in names:
                    opened = open_daemon(controller.url, name, labels={"group": str(first % 8)})
                    running.append(await stack.enter_async_context(opened))
                for name in names:
                    await controller.wait_for_daemon(name)
            results = await controller.broadcast("echo $MINE; exit 3", env={"MINE": "yes"})
            assert list(results) == [f"d{number:02}" for number in range(count)]
            for result in results.values():
                assert isinstance(result, CommandResult)
                assert (result.stdout, result.exit_code) == ("yes\n", 3)
            some = await controller.broadcast("true", labels={"group": "0"}, match="d0*")
            assert set(some) == {"d00", "d01", "d02", "d03", "d08", "d09"}
            assert controller.statistics().daemons_online == count
            for each in controller.daemons():
                assert (await each.run("echo $PPID")).success
            for process in running:  # all at once, before each is waited for
                process.terminate()
            await stack.aclose()


@posix_only
async def test_one_bad_daemon_fails_and_delays_no_other(
    daemon: StandingDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others run at once; a daemon that never says a word is an error, in bounded time."""
    monkeypatch.setattr(job_link, "LEAVE_MARGIN", 0.5)
    async with daemon.controller() as controller:
        await controller.wait_for_daemon("worker-1")
        async with raw_daemon(controller.url, "mute"):
            started = time.time()
            results = await controller.broadcast("date +%s.%N", timeout=3.0)
        good, bad = results["worker-1"], results["mute"]
        assert isinstance(good, CommandResult)
        assert float(good.stdout) < started + 3.0 <= time.time()
        assert isinstance(bad, sandd.CommandTimeout)
        assert bad.started is None


async def test_broadcast_entries_are_what_run_raises(daemon: StandingDaemon) -> None:
    """SpawnFailed, CommandTimeout, CommandFailed: the same as from `Daemon.run`."""
    async with daemon.controller() as controller:
        await controller.wait_for_daemon("worker-1")
        results = await controller.broadcast(["no-such-program"])
        assert isinstance(results["worker-1"], SpawnFailed)
        results = await controller.broadcast(["false"], check=True)
        assert isinstance(results["worker-1"], sandd.CommandFailed)
        assert await controller.broadcast("true", match="nobody-*") == {}
        for concurrency in (0, -1):
            with pytest.raises(ValueError, match="concurrency"):
                await controller.broadcast("true", concurrency=concurrency)


async def test_broadcast_concurrency_bounds_how_many_run_at_once() -> None:
    """With two at a time the third is asked when one of them has answered."""
    with trio.fail_after(LIMIT):
        async with sandd.open_controller(port=0) as controller, trio.open_nursery() as nursery:
            asked: list[str] = []
            go = trio.Event()

            async def serve(name: str) -> None:
                async with raw_daemon(controller.url, name) as raw:
                    channel, _ = await raw.receive_attach()
                    asked.append(name)
                    await go.wait()
                    await exit_at_once(raw, channel)
                    await trio.sleep_forever()

            for name in "abcde":
                nursery.start_soon(serve, name)
                await controller.wait_for_daemon(name)
            results: dict[str, CommandResult | SanddError] = {}

            @nursery.start_soon
            async def broadcast() -> None:
                results.update(await controller.broadcast("true", concurrency=2))

            await until(lambda: len(asked) == 2)
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert len(asked) == 2
            go.set()
            await until(lambda: len(results) == 5)
            assert sorted(asked) == list("abcde")
            nursery.cancel_scope.cancel()


async def exit_at_once(raw: RawDaemon, channel: int, output: bytes = b"") -> None:
    """Answer an Attach with all that a short command has to say."""
    exited = wire.Exited(0, None, Outcome.EXITED, 0.0, False, {wire.Stream.OUTPUT: len(output)})
    await raw.send(
        wire.encode_control(channel, wire.Attached(wire.Role.OWNER, 1, wire.JobState.RUNNING, ())),
        wire.encode_data(channel, wire.Stream.EVENTS, 0, wire.encode_event(wire.Started(1))),
        wire.encode_data(channel, wire.Stream.OUTPUT, 0, output, final=True),
        wire.encode_data(channel, wire.Stream.EVENTS, 1, wire.encode_event(exited)),
    )


@posix_only
async def test_an_exception_beside_a_broadcast_cancels_it(
    daemon: StandingDaemon, marker: Marker
) -> None:
    """What was started everywhere is killed; the error comes out."""
    async with daemon.controller() as controller:
        await controller.wait_for_daemon("worker-1")
        with pytest.raises(ExceptionGroup):  # noqa: PT012 - the nursery is what raises
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lambda: controller.broadcast("sleep 60", env=dict([marker])))
                await until(marker.processes)
                raise KeyError("ours")
        assert marker.processes() == []


# ---- closing ------------------------------------------------------------------------------------


@posix_only
async def test_closing_with_jobs_running_ends_them_and_every_call(
    daemon: StandingDaemon, marker: Marker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Remote trees are dead, each pending call returns what became of it or raises, and nothing hangs."""
    script = "trap '' TERM; setsid sleep 60 & echo hi; sleep 60"
    ended: dict[str, object] = {}
    with trio.fail_after(LIMIT):
        async with trio.open_nursery() as nursery:

            async def note(name: str, function: Any) -> None:
                try:
                    ended[name] = await function()
                except (SanddError, trio.ClosedResourceError, trio.BrokenResourceError) as error:
                    ended[name] = error

            async with sandd.open_controller(port=daemon.port) as controller:
                worker = await controller.wait_for_daemon("worker-1")

                async def hold_a_process() -> object:
                    async with worker.open_process(
                        script, env=dict([marker]), kill_grace=0.2
                    ) as process:
                        await process.stdout.receive_some()
                        return await process.stdout.receive_some()

                async def send() -> object:
                    async with worker.open_process("sleep 60", env=dict([marker])) as process:
                        return await process.stdin.send_all(bytes(10_000_000))

                options: Any = {"env": dict([marker]), "kill_grace": 0.2}
                nursery.start_soon(note, "run", partial(worker.run, script, **options))
                nursery.start_soon(
                    note, "broadcast", partial(controller.broadcast, script, **options)
                )
                nursery.start_soon(note, "read", hold_a_process)
                nursery.start_soon(note, "send", send)
                nursery.start_soon(note, "wait", partial(controller.wait_for_daemon, "nobody"))
                await until(lambda: len(marker.processes()) >= 10)
            assert marker.processes() == []
        run, broadcast = ended["run"], ended["broadcast"]
        assert isinstance(run, CommandResult)
        assert (run.outcome, run.stdout) == (Outcome.CANCELLED, "hi\n")
        assert isinstance(broadcast, dict)
        assert isinstance(broadcast["worker-1"], CommandResult)
        assert ended["read"] == b""
        assert isinstance(ended["send"], trio.BrokenResourceError)
        assert isinstance(ended["wait"], trio.ClosedResourceError)
        with pytest.raises(trio.ClosedResourceError):
            await worker.run("true")
        with pytest.raises(trio.ClosedResourceError):
            await controller.wait_for_daemon("worker-1")


@posix_only
async def test_closing_while_a_daemon_is_away_waits_for_nobody(
    marker: Marker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who waits for an absent daemon is told; the job ends by its lease, or with the daemon."""
    monkeypatch.setattr(services, "DRAIN_SECONDS", 20.0)
    errors: list[BaseException] = []
    with trio.fail_after(LIMIT):
        async with trio.open_nursery() as nursery, sandd.open_controller(port=0) as controller:

            async def run() -> None:
                with pytest.raises(trio.ClosedResourceError, match="closed") as caught:
                    await controller.daemon("raw").run("sleep 60")
                errors.append(caught.value)

            async with raw_daemon(controller.url) as raw:
                nursery.start_soon(run)
                await raw.receive_attach()
                nursery.start_soon(run)
            await until(lambda: controller.statistics().daemons_away == 1)
            nursery.start_soon(run)
            await trio.testing.wait_all_tasks_blocked(0.01)
            started = trio.current_time()
        assert trio.current_time() - started < 10
    assert len(errors) == 3


async def test_closing_with_a_daemon_that_says_nothing_is_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A peer that neither ends its job nor takes its farewell costs a few seconds, and no more."""
    monkeypatch.setattr(services, "DRAIN_SECONDS", 0.5)
    with trio.fail_after(LIMIT):
        async with trio.open_nursery() as nursery:
            async with sandd.open_controller(port=0) as controller:
                asked = trio.Event()

                async def be_mute() -> None:
                    async with raw_daemon(controller.url) as raw:
                        await raw.receive_attach()
                        asked.set()
                        await trio.sleep_forever()

                async def run() -> None:
                    with pytest.raises(trio.ClosedResourceError):
                        await controller.daemon("raw").run("sleep 60", kill_grace=0.1)

                nursery.start_soon(be_mute)
                await controller.wait_for_daemon("raw")
                nursery.start_soon(run)
                await asked.wait()
                started = trio.current_time()
            assert trio.current_time() - started > 0.5
            nursery.cancel_scope.cancel()


async def test_closing_says_goodbye_to_every_daemon() -> None:
    """Each is told that it may come back, and when."""
    told: list[tuple[int, object]] = []
    with trio.fail_after(LIMIT):
        async with trio.open_nursery() as nursery:
            async with sandd.open_controller(port=0) as controller:

                async def listen(name: str) -> None:
                    async with raw_daemon(controller.url, name) as raw:
                        told.append(await raw.receive())

                for name in "abc":
                    nursery.start_soon(listen, name)
                    await controller.wait_for_daemon(name)
    assert [channel for channel, _ in told] == [0, 0, 0]
    for _, message in told:
        assert isinstance(message, wire.Goodbye)
        assert message.retry_after > 0


@posix_only
async def test_a_controller_is_closed_and_opened_again_and_again(
    daemon: StandingDaemon, marker: Marker
) -> None:
    """On the same port, with a command cut off each time: the daemon comes back to each, with nothing left."""
    async with daemon.worker():
        before = daemon.descriptors
    for number in range(8):
        async with daemon.worker() as worker:
            with trio.move_on_after(0.01 * number):
                await worker.run("setsid sleep 60 & sleep 60", env=dict([marker]))
        assert marker.processes() == []
    async with daemon.worker() as worker:
        assert (await worker.run("echo on")).stdout == "on\n"
        await until(lambda: daemon.descriptors <= before)


# ---- who may have an id -------------------------------------------------------------------------


@posix_only
async def test_two_daemons_with_one_id_are_told_apart(
    daemon: StandingDaemon, marker: Marker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second is refused, and both sides say why; the first doesn't notice, and when it goes the second gets in."""
    monkeypatch.setattr(fencing, "RIVAL_RETRY", 0.1)
    monkeypatch.setattr(fencing, "RIVAL_PATIENCE", 0.5)
    with reserved_port() as port, trio.fail_after(LIMIT):
        url = f"ws://127.0.0.1:{port}/ws"
        arguments = ["--reconnect-max", "0.1"]
        async with (
            sandd.open_controller(port=port) as controller,
            open_daemon(url, "same", arguments=arguments) as first,
        ):
            worker = await controller.wait_for_daemon("same")
            connected_at = worker.info.connected_at
            async with worker.open_process(["cat"], env=dict([marker])) as process:
                async with open_daemon(url, "same", arguments=arguments) as second:
                    log = await second.wait_for_log("held by another running daemon")
                    assert socket.gethostname() in log
                    await process.stdin.send_all(b"undisturbed")
                    assert await process.stdout.receive_some() == b"undisturbed"
                    assert (worker.state, worker.info.connected_at) == (
                        DaemonState.ONLINE,
                        connected_at,
                    )
                    assert len(controller.daemons()) == 1

                    first.kill()
                    await until(lambda: worker.state is DaemonState.GONE)
                    fresh = await controller.wait_for_daemon("same")
                    assert (await fresh.run("echo second")).stdout == "second\n"
                    with pytest.raises(DaemonGone):
                        await process.wait()
                    assert second.exit_code is None


async def test_the_newest_connection_of_one_instance_counts() -> None:
    """It takes the place of the one before at once; an older one that comes late is refused as stale."""
    with trio.fail_after(LIMIT):
        async with sandd.open_controller(port=0) as controller:
            make = partial(raw_daemon, controller.url, "d", instance="one")
            async with make(connection_number=5) as old:
                async with make(connection_number=6) as new:
                    assert isinstance(new.answer, wire.Welcome)
                    with pytest.raises(ConnectionLost):  # noqa: PT012 - the block is what is tested
                        while True:
                            await old.receive()
                    async with make(connection_number=5) as late:
                        assert isinstance(late.answer, wire.Reject)
                        assert late.answer.code is wire.RejectCode.STALE
                    await new.control(0, wire.Ping(4))
                    assert await new.receive() == (0, wire.Pong(4))
                    assert controller.daemon("d").state is DaemonState.ONLINE


async def test_a_silent_holder_of_an_id_loses_it_to_a_rival(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Another instance is let in when the first doesn't answer a ping in time."""
    monkeypatch.setattr(acceptor, "RIVAL_PING_SECONDS", 0.3)
    with trio.fail_after(LIMIT):
        async with sandd.open_controller(port=0) as controller, controller.open_events() as events:
            async with raw_daemon(controller.url, "d"):
                async with raw_daemon(controller.url, "d") as rival:
                    assert isinstance(rival.answer, wire.Welcome)
                    kinds = [await kind_of(events) for _ in range(4)]
                    assert kinds == ["connected", "away", "lost", "connected"]


async def test_what_a_superseded_connection_still_says_has_no_effect() -> None:
    """Its frames, its goodbye and its end are nobody's any more."""
    with trio.fail_after(LIMIT):
        async with sandd.open_controller(port=0) as controller, controller.open_events() as events:
            make = partial(raw_daemon, controller.url, "d", instance="one")
            async with make(connection_number=1) as old, make(connection_number=2) as new:
                with contextlib.suppress(ConnectionLost):
                    await old.control(0, wire.Goodbye("late"))
                    await old.control(7, wire.Detach())
                await new.control(0, wire.Ping(1))
                assert await new.receive() == (0, wire.Pong(1))
                assert [await kind_of(events) for _ in range(2)] == ["connected", "resumed"]
                with trio.move_on_after(0.1):
                    pytest.fail(await kind_of(events))


# ---- strangers ----------------------------------------------------------------------------------


def bad_frames() -> dict[str, bytes]:
    """Messages that no daemon may send on a live link, by name."""
    header = struct.Struct("!BII")
    attach = wire.Attach("d", "j", "c", (), spec=None, instance="i")
    return {
        "garbage": random.Random(11).randbytes(500),
        "cut header": header.pack(1, 0, 0)[:5],
        "unknown type": header.pack(9, 0, 0),
        "length beyond the message": header.pack(1, 0, 2**32 - 1),
        "not msgpack": header.pack(1, 0, 3) + b"\xc1\xc1\xc1",
        "depth bomb": header.pack(1, 0, 60_000) + b"\x91" * 60_000,
        "wrong types": header.pack(1, 0, 9) + b"\x82\xa1t\xa4ping\xc0"[:9],
        "channel never opened": b"".join(wire.encode_data(3, wire.Stream.OUTPUT, 0, b"x")),
        "channel never opened, control": b"".join(wire.encode_control(3, wire.Taken())),
        "data on channel 0": b"".join(wire.encode_data(0, wire.Stream.OUTPUT, 0, b"x")),
        "a client's message": b"".join(wire.encode_control(1, attach)),
        "a controller's message": b"".join(wire.encode_control(0, wire.Welcome(1))),
        "a second hello": b"".join(wire.encode_control(0, wire.Hello(1, "d", "i", 1))),
    }


@pytest.mark.parametrize("kind", bad_frames())
async def test_frames_that_break_the_protocol_cost_that_connection_alone(
    daemon: StandingDaemon, kind: str
) -> None:
    """The peer is closed with a code; another daemon's command goes on, and so does the server."""
    async with daemon.controller() as controller:
        worker = await controller.wait_for_daemon("worker-1")
        async with worker.open_process(["cat"]) as process:
            async with raw_daemon(controller.url) as raw:
                assert isinstance(raw.answer, wire.Welcome)
                await raw.connection.send_message(bad_frames()[kind])
                with pytest.raises(ConnectionLost) as caught, trio.fail_after(LIMIT):  # noqa: PT012 - the block is what is tested
                    while True:
                        await raw.receive()
                assert caught.value.code == 1002
            await process.stdin.send_all(b"on")
            assert await process.stdout.receive_some() == b"on"
            await until(lambda: controller.statistics().daemons_away == 1)
        async with raw_daemon(controller.url, "another") as raw:
            assert isinstance(raw.answer, wire.Welcome)


@pytest.mark.parametrize("size", [wire.MAX_MESSAGE_BYTES + 1, 40 * wire.MIB])
async def test_a_message_beyond_the_limit_is_closed_with_1009(size: int) -> None:
    """Also behind the hello, and whatever it claims to be."""
    with trio.fail_after(LIMIT):
        async with sandd.open_controller(port=0) as controller:
            async with raw_daemon(controller.url) as raw:
                with pytest.raises(ConnectionLost) as caught:  # noqa: PT012 - either may meet it
                    await raw.connection.send_message(bytes(size))
                    while True:
                        await raw.receive()
                assert caught.value.code in (1009, None)
            async with raw_daemon(controller.url, "another") as raw:
                assert isinstance(raw.answer, wire.Welcome)


def bad_hellos() -> dict[str, bytes]:
    """First messages that are no Hello."""
    hello = b"".join(wire.encode_control(0, wire.Hello(1, "d", "i", 1)))
    return {
        "nothing": b"",
        "garbage": b"\xff" * 100,
        "ping first": b"".join(wire.encode_control(0, wire.Ping(1))),
        "two frames": hello + hello,
        "on a channel": b"".join(wire.encode_control(1, wire.Hello(1, "d", "i", 1))),
        "data": b"".join(wire.encode_data(1, wire.Stream.OUTPUT, 0, b"x")),
    }


@pytest.mark.parametrize("kind", bad_hellos())
async def test_a_first_message_that_is_no_hello_is_refused(kind: str) -> None:
    """With a close code, at once; whoever comes next is served."""
    with trio.fail_after(LIMIT):
        async with sandd.open_controller(port=0) as controller:
            async with raw_client(address_of(controller), subprotocol=wire.SUBPROTOCOL) as peer:
                await peer.send(frame(Op.BINARY, bad_hellos()[kind]))
                assert await peer.read_close() == 1008
            assert controller.daemons() == []
            async with raw_daemon(controller.url) as raw:
                assert isinstance(raw.answer, wire.Welcome)


@pytest.mark.parametrize(
    ("hello", "code"),
    [
        (wire.Hello(99, "d", "i", 1), wire.RejectCode.BAD_VERSION),
        (wire.Hello(1, "", "i", 1), wire.RejectCode.BAD_HELLO),
        (wire.Hello(1, "../../etc", "i", 1), wire.RejectCode.BAD_HELLO),
        (wire.Hello(1, "a\nb", "i", 1), wire.RejectCode.BAD_HELLO),
        (wire.Hello(1, "d", "", 1), wire.RejectCode.BAD_HELLO),
        (wire.Hello(1, "d", "i", 1, labels={"": "x"}), wire.RejectCode.BAD_HELLO),
    ],
    ids=["version", "no id", "path", "newline", "no instance", "label"],
)
async def test_a_hello_that_cannot_be_is_rejected_with_a_reason(
    hello: wire.Hello, code: wire.RejectCode
) -> None:
    """The peer hears what is wrong with it, and is not known afterwards."""
    with trio.fail_after(LIMIT):
        async with sandd.open_controller(port=0) as controller:
            async with raw_client(address_of(controller), subprotocol=wire.SUBPROTOCOL) as peer:
                await peer.send(frame(Op.BINARY, b"".join(wire.encode_control(0, hello))))
                answers = [
                    wire.decode_control(next(wire.decode_frames((await peer.read_frame())[1])))
                    for _ in range(2)
                ]
                assert isinstance(answers[1], wire.Reject)
                assert answers[1].code is code
                assert answers[1].message
                assert await peer.read_close() == 1008
            assert controller.daemons() == []


async def test_text_frames_are_refused() -> None:
    """Only binary messages are spoken here."""
    with trio.fail_after(LIMIT):
        async with sandd.open_controller(port=0) as controller:
            async with raw_client(address_of(controller), subprotocol=wire.SUBPROTOCOL) as peer:
                await peer.send(frame(Op.TEXT, b"hello"))
                assert await peer.read_close() == 1003


@pytest.mark.parametrize(
    ("request_bytes", "answer"),
    [
        (b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", "HTTP/1.1 4"),
        (b"GET /ws HTTP/1.1\r\nhost: x\r\n\r\n", "HTTP/1.1 4"),
        (b"POST /ws HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nhello", "HTTP/1.1 4"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100), ""),
        (b"SSH-2.0-OpenSSH_9.6\r\n\r\n\r\n", ""),
        (random.Random(12).randbytes(3000) + b"\r\n\r\n", ""),
        (b"A" * 300_000, ""),
    ],
    ids=["GET", "GET ws", "POST", "TLS", "SSH", "garbage", "long"],
)
async def test_whatever_is_not_websocket_is_answered_or_closed(
    request_bytes: bytes, answer: str
) -> None:
    """A stranger's bytes on the port end that connection, and disturb nobody."""
    with trio.fail_after(LIMIT):
        async with sandd.open_controller(port=0) as controller:
            address = address_of(controller)
            async with raw_daemon(controller.url) as raw:
                stream = await trio.open_tcp_stream(address.host, address.port)
                async with stream:
                    peer = RawPeer(stream)
                    with contextlib.suppress(trio.BrokenResourceError):
                        await peer.send(request_bytes)
                    said = await peer.read_all()
                assert said.startswith(answer)
                await raw.control(0, wire.Ping(1))
                assert await raw.receive() == (0, wire.Pong(1))


async def test_a_ping_after_the_close_hurts_nobody() -> None:
    """What crashed servers built on trio-websocket (its reader raises) ends that connection at most."""
    with trio.fail_after(LIMIT):
        async with sandd.open_controller(port=0) as controller:
            async with raw_daemon(controller.url) as raw:
                for _ in range(20):
                    async with raw_client(
                        address_of(controller), subprotocol=wire.SUBPROTOCOL
                    ) as peer:
                        await peer.send(
                            frame(Op.BINARY, b"garbage")
                            + frame(Op.PING, b"a") * 5
                            + frame(Op.CLOSE, close_payload(1000))
                            + frame(Op.PING, b"late") * 5
                        )
                await raw.control(0, wire.Ping(1))
                assert await raw.receive() == (0, wire.Pong(1))
            async with raw_daemon(controller.url, "another") as raw:
                assert isinstance(raw.answer, wire.Welcome)


async def test_a_thousand_strangers_that_say_nothing_keep_nobody_out() -> None:
    """Connections that never shake hands, or never say Hello, wait at their own expense.

    But for those that are too many, and make way.
    """
    with trio.fail_after(LIMIT):
        async with (
            sandd.open_controller(port=0) as controller,
            contextlib.AsyncExitStack() as stack,
        ):
            address = address_of(controller)
            for number in range(350):  # more than shake hands at a time
                stream = await trio.open_tcp_stream(address.host, address.port)
                await stack.enter_async_context(stream)
                if number % 3 == 0:
                    await stream.send_all(b"GET /ws HTTP/1.1\r\n")
            with trio.fail_after(8):  # a handshake may take ten
                for _ in range(50):
                    client = raw_client(address, subprotocol=wire.SUBPROTOCOL)
                    await stack.enter_async_context(client)
                async with raw_daemon(controller.url) as raw:
                    assert isinstance(raw.answer, wire.Welcome)


# ---- daemons that lie ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lie",
    [
        "beyond its credit",
        "a gap in events",
        "twice the exit",
        "short of the finals",
        "an ack of nothing",
    ],
)
async def test_a_daemon_that_lies_about_a_job_spoils_that_job_alone(lie: str) -> None:
    """Its caller gets an error, its connection is closed, and other daemons' jobs go on."""
    events, output = wire.Stream.EVENTS, wire.Stream.OUTPUT
    started = wire.encode_event(wire.Started(1))
    exited = wire.encode_event(wire.Exited(0, None, Outcome.EXITED, 0.0, False, {output: 3}))
    with trio.fail_after(LIMIT):
        async with (
            sandd.open_controller(port=0) as controller,
            raw_daemon(controller.url, "liar") as raw,
            raw_daemon(controller.url, "honest") as honest,
            trio.open_nursery() as nursery,
        ):
            ended: list[object] = []

            @nursery.start_soon
            async def run() -> None:
                try:
                    ended.append(await controller.daemon("liar").run("x"))
                except SanddError as error:
                    ended.append(error)

            results: list[CommandResult] = []

            @nursery.start_soon
            async def run_honestly() -> None:
                results.append(await controller.daemon("honest").run("x"))

            channel, _ = await raw.receive_attach()
            other, _ = await honest.receive_attach()
            attached = wire.Attached(wire.Role.OWNER, 1, wire.JobState.RUNNING, ())
            await raw.send(
                wire.encode_control(channel, attached),
                wire.encode_data(channel, events, 0, started),
            )
            with contextlib.suppress(ConnectionLost):
                match lie:
                    case "beyond its credit":
                        await raw.send(wire.encode_data(channel, output, 50 * wire.MIB, b"x"))
                    case "a gap in events":
                        await raw.send(wire.encode_data(channel, events, 5, exited))
                    case "twice the exit":
                        await raw.send(
                            wire.encode_data(channel, output, 0, b"abc", final=True),
                            wire.encode_data(channel, events, 1, exited),
                            wire.encode_data(channel, events, 2, exited),
                        )
                    case "short of the finals":
                        await raw.send(
                            wire.encode_data(channel, events, 1, exited),
                            wire.encode_data(channel, output, 0, b"abcdefgh", final=True),
                        )
                    case "an ack of nothing":
                        window = wire.StreamWindow(wire.Stream.INPUT, 5000, 9000)
                        await raw.control(channel, wire.Window((window,)))
                with pytest.raises(ConnectionLost):  # noqa: PT012 - the block is what is tested
                    while True:
                        await raw.receive()
            await until(lambda: len(ended) == 1)
            if lie == "twice the exit" and isinstance(ended[0], CommandResult):
                pass  # it was over before the lie
            else:
                assert isinstance(ended[0], SanddError)
            await exit_at_once(honest, other, b"fine")
            await until(lambda: len(results) == 1)
            assert results[0].stdout == "fine"
