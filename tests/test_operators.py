"""Clients in other processes: how they come in, what they see, and that neither cuts nor stuck ones hurt anybody."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import sys
import threading
from typing import TYPE_CHECKING, Any, Final

import pytest
import trio
from daemons import open_daemon
from process_tools import read_line, until
from standing_daemon import LIMIT, StandingDaemon, standing_daemon

import sandd
from sandd import DaemonState, wire
from sandd._core import operators, router, services
from sandd._core._errors import ConnectionLost
from sandd._core.controller_state import ENDS_FILE, TOKEN_FILE, EndFile
from sandd._core.credit import POOL_BYTES
from sandd._core.identity.introductions import answer_as_operator
from sandd._core.identity.proofs import SharedSecret
from sandd._core.pump import receive_control, send_control
from sandd._core.services import LocalService, RemoteService
from sandd._core.transport import Connection, connect
from sandd.testing import DOWN, UP, open_daemon_cores, open_fault_proxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from conftest import Marker

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="these commands are POSIX shell")

TOKEN: Final = "an operator's"
OPTIONS: Final[dict[str, Any]] = {
    "subprotocol": wire.SUBPROTOCOL,
    "max_message_bytes": wire.MAX_MESSAGE_BYTES,
}
MB: Final = 1_000_000


@pytest.fixture(scope="module")
def daemon(_own_temporary_directory: None) -> Iterator[StandingDaemon]:
    """The daemon that the tests of this module share; those that end it start one of their own."""
    with standing_daemon() as daemon:
        yield daemon


@contextlib.asynccontextmanager
async def hosted(**options: Any) -> AsyncIterator[sandd.Controller]:
    """A controller that lets operators in."""
    options = {"port": 0, "operator_token": TOKEN, **options}
    with trio.fail_after(LIMIT):
        async with sandd.open_controller(**options) as controller:
            yield controller


def hosting(controller: sandd.Controller) -> LocalService:
    """What stands behind a controller of this process."""
    assert isinstance(controller._service, LocalService)
    return controller._service


def dialler(controller: sandd.Controller) -> RemoteService:
    """What stands behind one that was connected to."""
    assert isinstance(controller._service, RemoteService)
    return controller._service


@contextlib.asynccontextmanager
async def dialled(
    controller: sandd.Controller, path: str = "/operator"
) -> AsyncIterator[Connection]:
    """A connection made by hand, past the Challenge."""
    async with connect(f"ws://{controller.address}{path}", **OPTIONS) as connection:
        yield connection


async def introduced(
    connection: Connection, client: str = "c", number: int = 1, token: str = TOKEN
) -> wire.Control | wire.Unknown:
    """What the controller answers to an operator of that name."""
    challenge = await receive_control(connection)
    credential = SharedSecret(token.encode())
    await send_control(
        connection, answer_as_operator(challenge, client, number, "me@here", credential)
    )
    return await receive_control(connection)


async def ended(connection: Connection) -> None:
    """Return when the controller has closed it."""
    with contextlib.suppress(sandd.SanddError):
        while True:
            await connection.receive_message()


# ---- coming in -----------------------------------------------------------------------------------


async def test_an_operator_knows_all_daemons_when_it_is_in() -> None:
    """What they said of themselves, too, since when they are there, and what becomes of them after that."""
    async with hosted() as host, open_daemon_cores(host.url, 3, labels={"env": "x"}) as cores:
        await cores.wait_live()
        async with sandd.connect_controller(host.url, token=TOKEN) as controller:
            assert [d.id for d in controller.daemons()] == ["core-0", "core-1", "core-2"]
            assert {d.state for d in controller.daemons(labels={"env": "x"})} == {
                DaemonState.ONLINE
            }
            here, there = host.daemon("core-1").info, controller.daemon("core-1").info
            assert here.instance == there.instance
            assert (here.hostname, here.labels) == (there.hostname, there.labels)
            assert abs(here.connected_at - there.connected_at) < 1.0
            assert (controller.url, controller.address) == (host.url, host.address)
            assert "3 daemons" in repr(controller)
            statistics = controller.statistics()
            assert (statistics.daemons_online, statistics.bytes_received > 0) == (3, True)
            async with controller.open_events() as events:
                await cores[0].leave()
                event = await anext(events)
                assert (event.kind, event.daemon_id) == ("lost", "core-0")


@pytest.mark.parametrize("token", ["wrong", None])
async def test_a_wrong_token_is_refused_with_a_reason(token: str | None) -> None:
    """At once; it is no reason to dial again."""
    async with hosted() as host:
        with pytest.raises(sandd.AuthenticationFailed, match=r"missing or wrong.*operator\.token"):
            async with sandd.connect_controller(host.url, token=token):
                pytest.fail("it was let in")


async def test_without_a_token_of_its_own_a_controller_takes_no_operators() -> None:
    """On loopback neither; a daemon's token isn't one."""
    async with hosted(operator_token=None, token=TOKEN) as host:
        with pytest.raises(sandd.AuthenticationFailed, match="takes no operators"):
            async with sandd.connect_controller(host.url, token=TOKEN):
                pytest.fail("it was let in")


@pytest.mark.parametrize(
    ("path", "hello", "complaint"),
    [
        ("/operator", wire.Hello(1, "d", "i", 1), "daemons dial in at /ws"),
        ("/ws", wire.OperatorHello(1, "c", 1), "operators dial in at /operator"),
    ],
)
async def test_each_kind_has_its_own_path(path: str, hello: wire.Control, complaint: str) -> None:
    """Who dials the other's is told."""
    async with hosted() as host, dialled(host, path) as connection:
        await receive_control(connection)
        await send_control(connection, hello)
        answer = await receive_control(connection)
        assert isinstance(answer, wire.Reject)
        assert complaint in answer.message
        with pytest.raises(ConnectionLost, match="1008"):
            await receive_control(connection)


@pytest.mark.parametrize(
    ("version", "client", "code"), [(99, "c", "bad_version"), (1, "", "bad_hello")]
)
async def test_what_cannot_be_served_is_rejected(version: int, client: str, code: str) -> None:
    """For good: no retry would help."""
    async with hosted() as host, dialled(host) as connection:
        await receive_control(connection)
        await send_control(connection, wire.OperatorHello(version, client, 1))
        answer = await receive_control(connection)
        assert isinstance(answer, wire.Reject)
        assert (answer.code.value, answer.retry_after) == (code, None)


async def test_a_newer_connection_of_a_client_takes_the_place_of_the_older() -> None:
    """The older is over at once, and an older one that comes late is turned away."""
    async with hosted() as host, dialled(host) as first, dialled(host) as second:
        assert isinstance(await introduced(first, number=1), wire.Welcome)
        assert isinstance(await introduced(second, number=2), wire.Welcome)
        await ended(first)
        async with dialled(host) as late:
            answer = await introduced(late, number=1)
            assert isinstance(answer, wire.Reject)
            assert answer.code is wire.RejectCode.STALE
        assert len(hosting(host).desk.operators) == 1
        assert len(hosting(host).router.clients) == 2  # with that of the controller's own process


async def test_there_is_room_for_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """One more is told to ask again; one that is in may come again."""
    monkeypatch.setattr(operators, "MAX_OPERATORS", 1)
    async with hosted() as host, dialled(host) as first, dialled(host) as second:
        assert isinstance(await introduced(first, "a"), wire.Welcome)
        answer = await introduced(second, "b")
        assert isinstance(answer, wire.Reject)
        assert (answer.code, answer.retry_after) == (wire.RejectCode.BUSY, 10.0)
        async with dialled(host) as again:
            assert isinstance(await introduced(again, "a", 2), wire.Welcome)


async def test_garbage_ends_one_connection() -> None:
    """Others go on."""
    async with (
        hosted() as host,
        open_daemon_cores(host.url, 1) as cores,
        dialled(host) as garbage,
    ):
        await cores.wait_live()
        async with sandd.connect_controller(host.url, token=TOKEN) as controller:
            assert isinstance(await introduced(garbage), wire.Welcome)
            await garbage.send_message(b"garbage")
            await ended(garbage)
            assert (await controller.daemon("core-0").run("true")).success


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("http://h:1", "no URL of a controller"),
        ("ws://", "no URL of a controller"),
        ("ws://h:99999", "no URL"),
        ("h:1", "no URL of a controller"),
    ],
)
async def test_a_url_that_makes_no_sense_is_told(url: str, complaint: str) -> None:
    """Before anything is dialled."""
    with pytest.raises(sandd.ConfigurationError, match=complaint):
        async with sandd.connect_controller(url, token=TOKEN):
            pytest.fail("it was dialled")


@pytest.mark.parametrize(
    ("url", "operators_end", "daemons_end"),
    [
        ("ws://h", "ws://h:8765/operator", "ws://h:8765/ws"),
        ("ws://h:1/", "ws://h:1/operator", "ws://h:1/ws"),
        ("ws://h:1/ws", "ws://h:1/operator", "ws://h:1/ws"),
        ("ws://[::1]:1/operator", "ws://[::1]:1/operator", "ws://[::1]:1/ws"),
        (
            "ws://h/behind/a/proxy/ws",
            "ws://h:8765/behind/a/proxy/operator",
            "ws://h:8765/behind/a/proxy/ws",
        ),
    ],
)
def test_any_url_of_a_controller_will_do(url: str, operators_end: str, daemons_end: str) -> None:
    """Also the one that it tells daemons."""
    assert sandd.controller._urls(url) == (operators_end, daemons_end)


async def test_nobody_there_is_told_in_time() -> None:
    """With what came of the last attempt; 0 seconds are no time to connect in."""
    with pytest.raises(sandd.ConfigurationError, match="must be above 0"):
        async with sandd.connect_controller("ws://127.0.0.1:1", token=TOKEN, connect_timeout=0):
            pytest.fail("it was dialled")
    with pytest.raises(
        ConnectionError, match=r"at ws://127\.0\.0\.1:1 within 0\.3 s: .*refused$"
    ) as caught:
        async with sandd.connect_controller("ws://127.0.0.1:1", token=TOKEN, connect_timeout=0.3):
            pytest.fail("it was let in")
    assert isinstance(caught.value, sandd.ControllerUnreachable)


def test_an_operator_dials_again_soon() -> None:
    """However long there has been nobody: people wait for it."""
    service = RemoteService(
        "ws://h:1/operator", daemon_url="ws://h:1/ws", credential=None, name="x", connect_timeout=1
    )
    backoff = service._dialer.backoff
    assert max(backoff.after_failure(None) for _ in range(50)) <= 2.0


async def test_who_dials_where_others_belong_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon at the operators' end, which ends, and an operator at the daemons'."""
    async with hosted() as host:
        wrong = host.url.replace(wire.DAEMON_PATH, wire.OPERATOR_PATH)
        async with open_daemon(wrong, "w") as daemon:
            assert await daemon.wait() not in (0, None)
            assert "daemons dial in at /ws, and /operator is for operators" in daemon.log
        monkeypatch.setattr("sandd.controller._urls", lambda url: (url, url))
        with pytest.raises(
            sandd.RequestRefused, match="operators dial in at /operator, and /ws is"
        ):
            async with sandd.connect_controller(host.url, token=TOKEN):
                pytest.fail("it was let in")


async def test_empty_tokens_are_refused() -> None:
    """Of either end; leaving it out is the way to say none."""
    with pytest.raises(sandd.ConfigurationError, match="operator_token is empty"):
        async with sandd.open_controller(port=0, operator_token=" \n"):
            pytest.fail("it was opened")
    with pytest.raises(sandd.ConfigurationError, match="token is empty"):
        async with sandd.connect_controller("ws://127.0.0.1:1", token=""):
            pytest.fail("it was dialled")


async def test_tokens_may_be_changed_while_it_runs() -> None:
    """Who is in stays in, until it has to dial again: then it learns that it isn't known any more."""
    async with hosted() as host, open_fault_proxy(host.address) as proxy:
        with pytest.raises(sandd.AuthenticationFailed):  # noqa: PT012 - it comes out of the block
            async with sandd.connect_controller(proxy.url, token=TOKEN):
                with pytest.raises(sandd.ConfigurationError):
                    host.set_tokens(token="", operator_token="new")
                host.set_tokens(token=None, operator_token="new")
                async with sandd.connect_controller(host.url, token="new") as other:
                    with pytest.raises(RuntimeError, match="in another process"):
                        other.set_tokens(token=None, operator_token=None)
                proxy.cut()
                await trio.sleep_forever()


# ---- cuts ----------------------------------------------------------------------------------------


async def test_cuts_of_an_operators_link_lose_nothing(
    daemon: StandingDaemon, tmp_path: Path
) -> None:
    """Output and input are whole, one process ran; daemons are away for as long as there is no connection."""
    data = os.urandom(4 * MB)
    async with (
        daemon.controller(operator_token=TOKEN) as host,
        open_fault_proxy(host.address) as proxy,
        sandd.connect_controller(proxy.url, token=TOKEN) as controller,
        controller.open_events() as events,
    ):
        worker = await controller.wait_for_daemon("worker-1")
        results = []
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def run() -> None:
                command = f"echo x >> {tmp_path}/ran; tee {tmp_path}/copy"
                results.append(await worker.run(command, input=data))
                nursery.cancel_scope.cancel()

            for cut in range(1, 11):
                await proxy.wait_passed(proxy.passed[DOWN] + 100_000, DOWN)
                proxy.cut()
                await proxy.wait_accepted(1 + cut)

        assert results[0].stdout_bytes == data
        assert (tmp_path / "copy").read_bytes() == data
        assert (tmp_path / "ran").read_text() == "x\n"
        assert worker.state is DaemonState.ONLINE
        kinds = [(await anext(events)).kind for _ in range(4)]
        assert kinds[-4:] in (["away", "resumed"] * 2, ["connected", "away", "resumed", "away"])


async def test_a_job_that_is_left_while_the_link_is_cut_ends(
    daemon: StandingDaemon, marker: Marker
) -> None:
    """As soon as there is a connection again: it was said, and is said again."""
    async with (
        daemon.controller(operator_token=TOKEN) as host,
        open_fault_proxy(host.address) as proxy,
        sandd.connect_controller(proxy.url, token=TOKEN) as controller,
    ):
        worker = await controller.wait_for_daemon("worker-1")
        async with worker.open_process("sleep 1000", env=dict([marker])):
            proxy.refuse()
            await until(lambda: worker.state is DaemonState.AWAY)
        assert marker.processes()
        proxy.accept()
        await until(lambda: not marker.processes())


async def test_closing_ends_what_is_left_behind_a_cut(
    daemon: StandingDaemon, marker: Marker
) -> None:
    """It waits for a connection, for a few seconds."""
    async with (
        daemon.controller(operator_token=TOKEN) as host,
        open_fault_proxy(host.address) as proxy,
    ):
        async with sandd.connect_controller(proxy.url, token=TOKEN) as controller:
            worker = await controller.wait_for_daemon("worker-1")
            async with worker.open_process("sleep 1000", env=dict([marker])):
                proxy.cut()
        await until(lambda: not marker.processes())


async def test_closing_without_a_controller_takes_seconds(daemon: StandingDaemon) -> None:
    """What can't be said any more is left to the lease."""
    async with (
        daemon.controller(operator_token=TOKEN) as host,
        open_fault_proxy(host.address) as proxy,
    ):
        async with sandd.connect_controller(proxy.url, token=TOKEN) as controller:
            worker = await controller.wait_for_daemon("worker-1")
            async with worker.open_process("sleep 1000", lease=60.0) as process:
                proxy.refuse()
                await until(lambda: worker.state is DaemonState.AWAY)
                began = trio.current_time()
        assert trio.current_time() - began < services.DRAIN_SECONDS + 2.0
        there = await host.wait_for_daemon("worker-1")
        await there.kill(process.job_id)
        await there.forget(process.job_id)


async def test_an_operator_that_is_gone_ends_nothing_of_others(
    daemon: StandingDaemon, marker: Marker
) -> None:
    """Its own jobs end with its block; those of the controller's own program, and of other operators, go on."""
    async with (
        daemon.controller(operator_token=TOKEN) as host,
        sandd.connect_controller(host.url, token=TOKEN) as other,
    ):
        here = await host.wait_for_daemon("worker-1")
        async with (
            here.open_process("cat") as ours,
            other.daemon("worker-1").open_process("cat") as theirs,
        ):
            async with sandd.connect_controller(host.url, token=TOKEN) as controller:
                worker = controller.daemon("worker-1")
                async with trio.open_nursery() as nursery:
                    command = ["sleep", "1000"]
                    nursery.start_soon(lambda: worker.run(command, env=dict([marker])))
                    await until(lambda: len(marker.processes()) == 1)
                    assert {job.job_id for job in await worker.jobs()} > {
                        ours.job_id,
                        theirs.job_id,
                    }
                    nursery.cancel_scope.cancel()
            assert not marker.processes()
            for process in (ours, theirs):
                assert process.stdin is not None
                await process.stdin.send_all(b"still here\n")
                assert await read_line(process.stdout) == b"still here"


async def test_an_operator_and_the_controllers_program_share_a_job(
    daemon: StandingDaemon,
) -> None:
    """One looks on, takes over, and leaves; the other is told."""
    async with (
        daemon.controller(operator_token=TOKEN) as host,
        sandd.connect_controller(host.url, token=TOKEN) as controller,
    ):
        here = await host.wait_for_daemon("worker-1")
        there = await controller.wait_for_daemon("worker-1")
        async with here.open_process("cat") as ours:
            assert ours.stdin is not None
            await ours.stdin.send_all(b"one\n")
            assert await read_line(ours.stdout) == b"one"
            with pytest.raises(sandd.RequestRefused, match="takeover"):
                async with there.attach_process(ours.job_id):
                    pytest.fail("it was attached")
            async with there.attach_process(ours.job_id, takeover=True) as theirs:
                assert theirs.stdin is not None
                await theirs.stdin.send_all(b"two\n")
                # From the beginning: nobody has acknowledged so little.
                assert [await read_line(theirs.stdout) for _ in range(2)] == [b"one", b"two"]
                with pytest.raises(sandd.JobTaken):
                    await ours.wait()


# ---- a controller that is restarted --------------------------------------------------------------


async def test_a_restart_of_the_controller_loses_nothing(
    daemon: StandingDaemon, tmp_path: Path
) -> None:
    """The command goes on meanwhile; daemon and operator come back by themselves, and all output arrives once."""
    lines = 400
    script = f"echo x >> {tmp_path}/ran; for i in $(seq {lines}); do echo $i; sleep 0.005; done"
    state = tmp_path / "state"
    async with trio.open_nursery() as nursery:

        async def host(task_status: trio.TaskStatus[trio.CancelScope]) -> None:
            with trio.CancelScope() as scope:
                async with daemon.controller(state_dir=state):
                    task_status.started(scope)
                    await trio.sleep_forever()
            ended.set()

        ended = trio.Event()
        hosting = await nursery.start(host)
        async with (
            sandd.connect_controller(
                f"ws://127.0.0.1:{daemon.port}", token=(state / TOKEN_FILE).read_text()
            ) as controller,
        ):
            worker = await controller.wait_for_daemon("worker-1")
            async with worker.open_process(script) as process:
                seen = [await read_line(process.stdout) for _ in range(20)]
                for _ in range(2):
                    hosting.cancel()
                    await ended.wait()
                    await until(lambda: worker.state is DaemonState.AWAY)
                    ended = trio.Event()
                    hosting = await nursery.start(host)
                    seen += [await read_line(process.stdout) for _ in range(20)]
                seen += [await read_line(process.stdout) for _ in range(lines - len(seen))]
                assert seen == [f"{n}".encode() for n in range(1, lines + 1)]
                assert await process.stdout.receive_some() == b""
                assert (await process.wait()).exit_code == 0
        nursery.cancel_scope.cancel()
    assert (tmp_path / "ran").read_text() == "x\n"


async def test_a_restarted_controller_says_the_ends_that_were_left_to_it(
    tmp_path: Path, marker: Marker
) -> None:
    """The client is gone, the daemon was away, the controller is another: the job ends all the same."""
    state = tmp_path / "state"
    with trio.fail_after(LIMIT):
        async with (
            hosted(operator_token=None, state_dir=state) as first,
            open_fault_proxy(first.address) as proxy,
            open_daemon(proxy.url, "d", arguments=("--reconnect-max", "0.05")),
        ):
            token = (state / TOKEN_FILE).read_text()
            async with sandd.connect_controller(first.url, token=token) as controller:
                worker = await controller.wait_for_daemon("d")
                async with worker.open_process("sleep 1000", env=dict([marker])):
                    proxy.refuse()
                    await until(lambda: worker.state is DaemonState.AWAY)
            ends = EndFile(state / ENDS_FILE)
            await until(lambda: len(ends.read()) == 1)
            assert marker.processes()
            # As a kill of the controller would leave it.
            content = (state / ENDS_FILE).read_bytes()
            again = tmp_path / "again"
            again.mkdir(mode=0o700)
            (again / ENDS_FILE).write_bytes(content)
            async with hosted(operator_token=None, state_dir=again) as second:
                proxy.redirect(second.address)
                proxy.accept()
                await second.wait_for_daemon("d")
                await until(lambda: not marker.processes())
                await until(lambda: EndFile(again / ENDS_FILE).read() == [])


async def test_operators_are_told_that_it_closes(caplog: pytest.LogCaptureFixture) -> None:
    """They come back when it does, and don't take it for a failure."""
    caplog.set_level("INFO")
    with trio.fail_after(LIMIT):
        async with trio.open_nursery() as nursery:
            closing, closed = trio.Event(), trio.Event()

            async def host(task_status: trio.TaskStatus[str]) -> None:
                async with hosted() as controller:
                    task_status.started(controller.url)
                    await closing.wait()
                closed.set()

            url = await nursery.start(host)
            async with sandd.connect_controller(url, token=TOKEN) as controller:
                closing.set()
                await closed.wait()
                await until(lambda: "controller_left" in caplog.text)
                async with hosted(port=int(controller.address.rpartition(":")[2])):
                    await dialler(controller)._dialer.live.wait()


# ---- the state directory -------------------------------------------------------------------------


async def test_the_token_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    """And kept; a token that is given counts instead."""
    state = tmp_path / "state"
    async with hosted(operator_token=None, state_dir=state) as host:
        token = (state / TOKEN_FILE).read_text()
        assert stat.S_IMODE((state / TOKEN_FILE).stat().st_mode) == 0o600
        assert stat.S_IMODE(state.stat().st_mode) == 0o700
        assert len(token.strip()) >= 32
        async with sandd.connect_controller(host.url, token=token):
            pass
        with pytest.raises(sandd.ConfigurationError, match="another running controller"):
            async with sandd.open_controller(port=0, state_dir=state):
                pytest.fail("it was opened")
    async with hosted(state_dir=state) as host:
        assert (state / TOKEN_FILE).read_text() == token
        async with sandd.connect_controller(host.url, token=TOKEN):
            pass


async def test_a_state_directory_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    """With what is wrong about it."""
    (tmp_path / "file").write_text("")
    with pytest.raises(sandd.ConfigurationError, match="can't use the state directory"):
        async with sandd.open_controller(port=0, state_dir=tmp_path / "file"):
            pytest.fail("it was opened")
    (tmp_path / TOKEN_FILE).write_text(" \n")
    with pytest.raises(sandd.ConfigurationError, match="is empty: remove it"):
        async with sandd.open_controller(port=0, state_dir=tmp_path):
            pytest.fail("it was opened")


@pytest.mark.parametrize("content", [b"garbage", b"\x01\0\0\0\0\0\0\0\x01\xff"])
async def test_ends_that_cannot_be_read_are_no_reason_not_to_run(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """The log says so."""
    (tmp_path / ENDS_FILE).write_bytes(content)
    async with hosted(state_dir=tmp_path):
        pass
    assert "ends_unreadable" in caplog.text


async def test_ends_that_cannot_be_kept_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its disk is full: the controller goes on, and tries again."""

    def fail(file: EndFile, ends: object) -> None:
        raise OSError(28, "No space left on device")

    async with hosted(state_dir=tmp_path) as host:
        with monkeypatch.context() as patch:
            patch.setattr(EndFile, "write", fail)
            hosting(host).router.restore_ends([wire.End("d", "j")])
            await until(lambda: caplog.text.count("ends_not_kept") >= 2)
        await until(lambda: EndFile(tmp_path / ENDS_FILE).read() == [wire.End("d", "j")])


@contextlib.asynccontextmanager
async def said_and_asked(host: sandd.Controller, job_id: str) -> AsyncIterator[Connection]:
    """An operator that has said an End for a daemon that is away, and pings."""
    async with dialled(host) as connection:
        assert isinstance(await introduced(connection, job_id), wire.Welcome)
        parts = [*wire.encode_control(0, wire.End("away", job_id))]
        parts += wire.encode_control(0, wire.Ping(7))
        await connection.send_message(b"".join(parts))
        yield connection


async def pong(connection: Connection) -> None:
    """Return with the answer to a ping."""
    while True:
        for frame in wire.decode_frames(await connection.receive_message()):
            if isinstance(wire.decode_control(frame), wire.Pong):
                return


async def test_who_leaves_has_its_answer_when_its_ends_are_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then nobody else remembers them, and the controller may be killed the next moment."""
    may_write = threading.Event()
    write = EndFile.write

    def wait(file: EndFile, ends: Any) -> None:
        may_write.wait(LIMIT)
        write(file, ends)

    monkeypatch.setattr(EndFile, "write", wait)
    monkeypatch.setattr(services, "LAG_INTERVAL", LIMIT)
    async with hosted(state_dir=tmp_path) as host:
        async with said_and_asked(host, "job") as connection:
            await until(lambda: bool(hosting(host).router.kept_ends))
            with trio.move_on_after(2 * services.KEEP_INTERVAL) as scope:
                await pong(connection)
            assert scope.cancelled_caught
            may_write.set()
            await pong(connection)
            assert [end.job_id for end in EndFile(tmp_path / ENDS_FILE).read()] == ["job"]


@pytest.mark.parametrize("how", ["hangs", "full"])
async def test_a_disk_that_is_no_good_takes_no_operator_for_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """One that hangs holds an answer up for a moment, one that is full for no longer than it takes to find out."""
    may_write = threading.Event()

    def fail(file: EndFile, ends: Any) -> None:
        if how == "hangs":
            may_write.wait(LIMIT)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(EndFile, "write", fail)
    monkeypatch.setattr(services, "LAG_INTERVAL", 0.05)
    async with hosted(state_dir=tmp_path) as host:
        async with said_and_asked(host, "job") as connection:
            await pong(connection)
        may_write.set()


async def test_what_was_said_on_a_link_that_dies_is_heard_on_the_next(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Who leaves and gets no answer asks again, as long as there is time."""
    async with (
        hosted() as host,
        open_fault_proxy(host.address) as proxy,
        sandd.connect_controller(proxy.url, token=TOKEN) as controller,
        trio.open_nursery() as nursery,
    ):
        service = dialler(controller)
        first = service._dialer.pump
        assert first is not None
        proxy.blackhole()
        nursery.start_soon(service._be_heard)
        await until(lambda: first._ping_number > 0)
        proxy.cut()
        proxy.release()
        await until(lambda: not nursery.child_tasks)
        assert caplog.text.count("farewells_unheard") == 1
        second = service._dialer.pump
        assert second is not None
        assert second is not first
        assert second._answered > 0


# ---- stuck and slow ones -------------------------------------------------------------------------


async def test_a_stuck_operator_delays_nobody_and_costs_bounded_memory(
    daemon: StandingDaemon,
) -> None:
    """It reads nothing of ten floods; others work on as if it weren't there, and it has all when it reads on."""
    size = 4 * MB
    digests = [hashlib.sha256() for _ in range(10)]
    async with (
        daemon.controller(operator_token=TOKEN) as host,
        open_fault_proxy(host.address) as proxy,
        sandd.connect_controller(proxy.url, token=TOKEN) as controller,
        sandd.connect_controller(host.url, token=TOKEN) as other,
    ):
        worker = await controller.wait_for_daemon("worker-1")
        (link,) = [
            operator.link
            for operator in hosting(host).desk.operators.values()
            if operator.link.client == controller._service.link.client.id
        ]

        async def read(digest: Any) -> None:
            command = f"head -c {size} /dev/zero | tr '\\0' x"
            async with worker.open_process(command, stdin=False) as process:
                async for chunk in process.stdout:
                    digest.update(chunk)

        async with trio.open_nursery() as nursery:
            for digest in digests:
                nursery.start_soon(read, digest)
            await proxy.wait_passed(5 * MB, DOWN)
            proxy.blackhole()
            await until(lambda: link.waiting > MB // 2)
            most = 0
            for _ in range(20):
                for client in (host, other):
                    assert (await client.daemon("worker-1").run("echo hi")).stdout == "hi\n"
                most = max(most, link.waiting)
            assert most <= POOL_BYTES + POOL_BYTES // 4
            proxy.release()
        expected = hashlib.sha256(b"x" * size).hexdigest()
        assert {digest.hexdigest() for digest in digests} == {expected}
        await until(lambda: link.waiting == 0)


async def test_a_hostile_operator_costs_itself_its_connection(daemon: StandingDaemon) -> None:
    """It grants without end, sends beyond its credit, and speaks for others: nobody else notices."""
    async with (
        daemon.controller(operator_token=TOKEN) as host,
        dialled(host) as hostile,
    ):
        worker = await host.wait_for_daemon("worker-1")
        assert isinstance(await introduced(hostile), wire.Welcome)
        async with worker.open_process("cat") as process:
            assert process.stdin is not None
            spec = wire.encode_spec(wire.CommandSpec((b"cat",)))
            cursors = (wire.Cursor(wire.Stream.OUTPUT, wire.MAX_OFFSET, 0),)
            attach = wire.Attach("worker-1", "theirs", "c", cursors, spec, worker.info.instance)
            parts = [*wire.encode_control(1, attach)]
            pool = next(iter(hosting(host).desk.operators.values())).link.pool
            for number in range(40):
                parts += wire.encode_data(
                    1, wire.Stream.INPUT, number * wire.MAX_DATA_BYTES, bytes(wire.MAX_DATA_BYTES)
                )
                with contextlib.suppress(sandd.SanddError):  # it was thrown out
                    await hostile.send_message(b"".join(parts))
                parts.clear()
                assert pool.promised <= pool.bound
                if not hosting(host).desk.operators:
                    break
            await until(lambda: not hosting(host).desk.operators)
            await process.stdin.send_all(b"still here\n")
            assert await read_line(process.stdout) == b"still here"
        await worker.forget("theirs")


async def test_an_operator_may_have_so_many_jobs_open(
    daemon: StandingDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One more is refused, and nothing of it ran."""
    monkeypatch.setattr(router, "MAX_ROUTES", 1)
    async with (
        daemon.controller(operator_token=TOKEN) as host,
        sandd.connect_controller(host.url, token=TOKEN) as controller,
    ):
        worker = await controller.wait_for_daemon("worker-1")
        async with worker.open_process("cat"):
            with pytest.raises(sandd.RequestRefused, match="1 jobs open at a time"):
                await worker.run("true")
        (operator,) = hosting(host).desk.operators.values()
        await until(lambda: not operator.link.routes)  # a moment later: nobody waits for a farewell
        assert (await worker.run("true")).success


async def test_what_comes_from_a_daemon_breaks_its_job_alone(daemon: StandingDaemon) -> None:
    """A client is told which job, and its link to the controller stands."""
    async with (
        daemon.controller(operator_token=TOKEN) as host,
        sandd.connect_controller(host.url, token=TOKEN) as controller,
    ):
        worker = await controller.wait_for_daemon("worker-1")
        async with worker.open_process("cat") as process:
            link = controller._service.link
            (channel,) = [job.channel.number for job in link.client.jobs if job.channel]
            handles: set[Any] = set()
            head, body = wire.encode_data(channel, wire.Stream.EVENTS, 1, b"nonsense")
            link.deliver(next(iter(wire.decode_frames(head + bytes(body)))), handles)
            for handle in handles:
                handle.update()
            with pytest.raises(sandd.RemoteProtocolError):
                await process.wait()
        assert (await worker.run("true")).success
        assert dialler(controller)._dialer.connections == 1


async def test_a_controller_that_breaks_the_protocol_is_dialled_anew(
    daemon: StandingDaemon,
) -> None:
    """What it says of no job at all can't be a daemon's doing."""
    async with (
        daemon.controller(operator_token=TOKEN) as host,
        sandd.connect_controller(host.url, token=TOKEN) as controller,
    ):
        worker = await controller.wait_for_daemon("worker-1")
        (operator,) = hosting(host).desk.operators.values()
        operator.pump.say(wire.Welcome(1))
        operator.link.control(7, wire.Welcome(1))
        operator.link.scheduler.control(wire.encode_data(7, wire.Stream.EVENTS, 0, b"x"))
        head, body = wire.encode_control(7, wire.Away())
        operator.link.scheduler.control((head, bytes(len(body))))
        operator.pump.wake()
        await until(lambda: dialler(controller)._dialer.connections == 2)
        assert (await worker.run("true")).success


async def test_daemons_that_stay_away_are_given_up_by_the_client(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After a day without its controller it waits no longer."""
    monkeypatch.setattr("sandd._core.remote_link.LOOK_SECONDS", 0.01)
    async with (
        hosted() as host,
        open_daemon_cores(host.url, 1) as cores,
        open_fault_proxy(host.address) as proxy,
    ):
        await cores.wait_live()
        async with sandd.connect_controller(proxy.url, token=TOKEN) as controller:
            core = controller.daemon("core-0")
            async with trio.open_nursery() as nursery:

                @nursery.start_soon
                async def run() -> None:
                    with pytest.raises(sandd.DaemonGone):
                        await core.run("sleep 100")

                proxy.refuse()
                await until(lambda: core.state is DaemonState.AWAY)
                monkeypatch.setattr("sandd._core.directory.AWAY_LEASE", 0.0)
            assert core.state is DaemonState.GONE


async def test_cuts_at_any_byte_of_the_first_exchange_do_no_harm() -> None:
    """However much of handshake, list and command has passed."""
    async with (
        hosted() as host,
        open_daemon_cores(host.url, 1) as cores,
        open_fault_proxy(host.address) as proxy,
    ):
        await cores.wait_live()
        for size in range(1, 900, 37):
            proxy.cut_after(size, UP if size % 2 else DOWN)
            async with sandd.connect_controller(proxy.url, token=TOKEN) as controller:
                worker = await controller.wait_for_daemon("core-0")
                assert (await worker.run("echo hi")).stdout == "hi\n"
