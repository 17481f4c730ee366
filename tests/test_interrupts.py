"""Ctrl-C in an agent: wherever it strikes, the program ends by KeyboardInterrupt and leaves no process behind.

The agents run in this very process, whose handler for SIGINT is Python's own, as trio wants it.
"""

from __future__ import annotations

import contextlib
import inspect
import random
import signal
import subprocess
import sys
import threading
import time
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
import trio
import trio_websocket
import wsproto
from daemons import daemon_environment
from process_tools import until
from raw_peer import Op, close_payload, frame, upgrade_request
from standing_daemon import LIMIT, StandingDaemon, standing_daemon

import sandd
from sandd import wire
from sandd._core import (
    acceptor,
    channels,
    client,
    client_job,
    commands,
    directory,
    job_link,
    local_link,
    pump,
    registry,
    results,
    router,
    scheduler,
    services,
    specs,
    streams,
)
from sandd._core.interrupts import protected_context
from sandd._core.transport import _protocol

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from types import FrameType

    from conftest import Marker

pytestmark = pytest.mark.skipif(
    sys.platform == "win32", reason="POSIX shell; and SIGINT to oneself is no Ctrl-C there"
)

TREE: Final = "setsid sleep 60 & sleep 60"
"""Two processes besides their shell, one of which leaves session and group."""


@pytest.fixture(scope="module")
def daemon(_own_temporary_directory: None) -> Iterator[StandingDaemon]:
    """The daemon that the tests of this module share."""
    with standing_daemon() as daemon:
        yield daemon


def ctrl_c() -> None:
    """What the terminal does."""
    signal.raise_signal(signal.SIGINT)


def wait_until(condition: Callable[[], bool]) -> None:
    """Look until it holds: nothing tells what happens to somebody else's processes."""
    give_up = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.02)


def package(module: Any) -> str:
    """Where a package's files are."""
    return str(Path(module.__file__).parent)


OURS: Final = (package(sandd), package(trio_websocket), package(wsproto))


@contextlib.contextmanager
def interrupted() -> Iterator[None]:
    """The block ends by KeyboardInterrupt, and nothing else went wrong beside it."""
    with pytest.raises((KeyboardInterrupt, BaseExceptionGroup)) as caught:
        yield
    if isinstance(caught.value, BaseExceptionGroup):  # the agent's own nurseries make them
        assert caught.value.split(KeyboardInterrupt)[1] is None
    assert not any("beside it" in note for note in getattr(caught.value, "__notes__", ()))


class Strike:
    """Ctrl-C at one moment of the running code: its n-th call, or before or behind a call of what is in C.

    Not where a coroutine is resumed or suspended, as Python handles no signals between the frames of
    one: an exception would part those that wait from those they wait for.
    """

    def __init__(self, number: int, places: tuple[str, ...]) -> None:
        self.number = number
        self.places = places
        self.where = "nowhere"

    def arm(self) -> None:
        """Count from now on."""
        sys.setprofile(self)

    def __call__(self, frame: FrameType, event: str, _: object) -> None:
        """See `sys.setprofile`."""
        resumable = frame.f_code.co_flags & (inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR)
        if event == "return" or (event == "call" and resumable):
            return
        if frame.f_code.co_filename.startswith(self.places):
            self.number -= 1
            if self.number == 0:
                self.where = f"{event} {frame.f_globals['__name__']}.{frame.f_code.co_qualname}"
                sys.setprofile(None)
                ctrl_c()


async def busy_agent(port: int, marker: Marker, in_place: Callable[[], None]) -> None:
    """Runs and a process under way at once, much of what can be asked of a daemon; then Ctrl-C at the latest."""
    env = dict([marker])
    async with sandd.open_controller(port=port, heartbeat=0.1, dead_after=5.0) as controller:
        worker = await controller.wait_for_daemon("worker-1")
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(lambda: worker.run(TREE, env=env, kill_grace=0.1))
            async with worker.open_process(
                "setsid sleep 60 & cat", env=env, kill_grace=0.1
            ) as process:
                await talk(process)
                await until(
                    lambda: len(marker.processes()) >= 3
                )  # so that there is something to end
                in_place()
                for _ in range(4):
                    await talk(process)
                    await worker.run(["echo", "done"], env=env)
                    await process.signal("CONT")
                async with worker.open_process(
                    "sleep 60; exit 3", env=env, kill_grace=0.1
                ) as other:
                    await other.stdin.wait_send_all_might_not_block()
                    await other.stdin.aclose()
                    await other.stdout.aclose()
                    nursery.start_soon(wait_for, other)
                async with worker.open_session(["cat"], env=env, kill_grace=0.1) as session:
                    await session.wait_send_all_might_not_block()
                    await session.send_all(b"typed")
                    await see(session, b"typed")
                    await session.resize(10, 20)
                    async with worker.attach_session(session.job_id, read_only=True) as onlooker:
                        await see(onlooker, b"typed")
                    await session.aclose()
                await use_files(worker)
                async with controller.open_events() as events:
                    with trio.move_on_after(0.01):
                        await controller.wait_for_daemon("nobody")
                    with trio.move_on_after(0.01):
                        await anext(events)
                await be_a_stranger(port)
                await controller.broadcast("true", env=env)
                await trio.sleep(0.15)  # some heartbeats, and a look at the daemons
            nursery.cancel_scope.cancel()
    ctrl_c()


async def wait_for(process: sandd.Process) -> None:
    """To its end; or until Ctrl-C has its block left before that is known."""
    with contextlib.suppress(trio.ClosedResourceError):
        await process.wait()


async def talk(process: sandd.Process) -> None:
    """Send much, and have it back."""
    await process.stdin.send_all(b"x" * 100_000)
    left = 100_000
    while left:
        left -= len(await process.stdout.receive_some())


async def see(session: sandd.Session, text: bytes) -> None:
    """It shows that next, in however many pieces: a terminal echoes key by key."""
    shown = b""
    while len(shown) < len(text):
        shown += await session.receive_some()
    assert shown == text


async def use_files(worker: sandd.Daemon) -> None:
    """In one question each, and piece by piece."""
    path = worker.path("directory") / "file"
    await path.parent.mkdir(exist_ok=True)
    await path.write_bytes(b"text")
    await path.write_bytes(bytes(100_000))
    async with path.open_write(append=True) as writer:
        await writer.send_all(b"tail")
    async with path.open_read(offset=99_999) as reader:
        assert await reader.receive_some() == b"\0tail"
    writer = await path.open_write()
    await writer.send_all(b"never")
    await writer.abandon()
    assert await path.parent.glob("*") == [path]
    assert (await path.stat()).size == 100_004
    await path.parent.rmtree()


async def be_a_stranger(port: int) -> None:
    """Be answered a ping, and sent away for what is no Hello."""
    breach = close_payload(1008)
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    async with stream:
        await stream.send_all(upgrade_request(subprotocol=wire.SUBPROTOCOL))
        assert await stream.receive_some()
        await stream.send_all(frame(Op.PING, b"?") + frame(Op.BINARY, b"garbage"))
        while breach not in (said := await stream.receive_some()):
            assert said
        await stream.send_all(frame(Op.CLOSE, breach))


# ---- where it may strike ------------------------------------------------------------------------

READERS: Final = [
    "sandd.controller.Controller.broadcast*",
    *(
        f"sandd.controller.Controller.{name}"
        for name in ("_handle", "daemons*", "open_events", "wait_for_daemon")
    ),
    *(
        f"sandd._core.daemon_handle.Daemon.{name}"
        for name in ("_create", "_ask", "id", "info", "path", "run", "state")
    ),
    "sandd._core.daemon_handle.Daemon._check_not_gone",
    *(f"sandd._core.directory.Directory.{name}" for name in ("get", "select*", "__iter__")),
    *(f"sandd._core.process_handle.Process.{name}" for name in ("stdin", "stdout", "stderr")),
    "sandd._core.held_job.HeldJob.job_id",
    "sandd._core.pure_remote_path.PureRemotePath.*",
    *(
        f"sandd._core.remote_path.RemotePath.{name}"
        for name in (
            *(
                "_create",
                "_wrap",
                "_like",
                "_text",
                "_encoded",
                "_wire",
                "_ask",
                "_find*",
                "daemon_id",
                "__*",
            ),
            *("parent", "joinpath", "stat", "glob*", "mkdir", "rmtree", "write_bytes"),
            *("open_read*", "open_write*"),
        )
    ),
    *(f"sandd._core.remote_files.Opening.{name}" for name in ("__init__", "__await__")),
    # Looking at what is asked for, before anything is begun.
    *(f"sandd._core.{name}" for name in ("arguments.*", "specs.*", "commands.prepare*")),
    "sandd.wire._*.<locals>.check",
    "sandd._core.file_status.*",
    # Making a context manager, which nobody has entered yet.
    "sandd._core.interrupts.protected_context.<locals>.opened",
    "sandd._core.interrupts._ProtectedContext.__init__",
]
"""What an agent calls directly, and what only looks at things and changes nothing."""


def test_what_can_be_struck_changes_nothing_that_tasks_share(
    daemon: StandingDaemon, marker: Marker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of all our code, the WebSocket's included, only what asks for work, and what reads, is unprotected."""
    monkeypatch.setattr(services, "LAG_INTERVAL", 0.02)
    monkeypatch.setattr(pump.Liveness, "interval", 0.02)
    unprotected: set[str] = set()
    protected: set[str] = set()

    def look(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(OURS):
            name = f"{frame.f_globals['__name__']}.{frame.f_code.co_qualname}"
            (protected if trio.lowlevel.currently_ki_protected() else unprotected).add(name)

    try:
        with interrupted():
            trio.run(busy_agent, daemon.port, marker, lambda: sys.setprofile(look))
    finally:
        sys.setprofile(None)
    assert [
        name for name in sorted(unprotected) if not any(fnmatchcase(name, r) for r in READERS)
    ] == []
    # The look reached what it is about: each of our tasks, the state machines, the libraries below.
    assert protected >= {
        "sandd._core.acceptor.Acceptor.say_goodbye",
        "sandd._core.job_link.JobHandle.leave",
        "sandd._core.pump.Pump._take_message",
        "sandd._core.pump.Pump.look",
        "sandd._core.pump.Pump._write",
        "sandd._core.held_job.HeldJob.wait",
        "sandd._core.session_handle.Session.aclose",
        "sandd._core.session_handle.Session.resize",
        "sandd._core.job_streams.InputStream.aclose",
        "sandd._core.job_streams.InputStream.wait_send_all_might_not_block",
        "sandd._core.job_streams.OutputStream.aclose",
        "sandd._core.pump.Pump.drained",
        "sandd._core.directory.Directory.wait_online",
        "sandd._core.directory._Subscriber.__anext__",
        "sandd._core.router.Router.receive",
        "sandd._core.transport._connection.Connection._answer_pings",
        "sandd._core.transport._connection.Connection._attend",
        "sandd._core.transport._connection.Connection._part",
        "sandd._core.transport._server._Server.accept_loop",
        "sandd._core.transport._server._Server.run_connection",
        "sandd._core.services.Service._watch_lag",
        "sandd._core.services.LocalService._serve",
        "trio_websocket._impl.WebSocketConnection._reader_task",
    }


async def test_the_link_is_safe_whoever_calls_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """What carries frames between client and router is protected by itself, too."""
    monkeypatch.setattr(job_link, "LEAVE_MARGIN", 0.01)  # nobody will answer
    unprotected: list[str] = []

    def look(frame: FrameType, event: str, _: object) -> None:
        module = frame.f_globals.get("__name__")
        is_state = event == "call" and module in STATE_MACHINES
        if is_state and not trio.lowlevel.currently_ki_protected():
            unprotected.append(f"{module}.{frame.f_code.co_qualname}")

    machines = router.Router()
    machines.add_daemon("d", "instance")
    link = local_link.LocalLink(machines, directory.Directory())
    spec = specs.build_spec("true", stdin=True)
    sys.setprofile(look)
    try:
        handles = [link.open("d", spec) for _ in range(3)]
        handles[0].sink(wire.Stream.OUTPUT, lambda _: None)
        link.changed(handles[0].job)
        link.flush()
        handles[0].forget()
        handles[1].detach()
        await handles[2].leave(0.0)
    finally:
        sys.setprofile(None)
    assert link.job_count == 0
    assert unprotected == []


async def test_the_agents_own_code_is_interrupted_at_once(daemon: StandingDaemon) -> None:
    """Our protection ends where the bodies of our context managers begin, and in what `call`s of ours return."""
    async with daemon.controller() as controller:
        worker = await controller.wait_for_daemon("worker-1")
        async with worker.open_process(["cat"]) as process, controller.open_events() as events:
            assert not trio.lowlevel.currently_ki_protected()
            await process.stdin.send_all(b"x")
            await process.stdout.receive_some()
            await worker.run("true")
            assert not trio.lowlevel.currently_ki_protected()
            with pytest.raises(KeyboardInterrupt):
                ctrl_c()
            # Nothing is the worse for it.
            await process.stdin.aclose()
            assert (await process.wait()).success
            assert events is not None
        assert (await worker.run("true")).success


STATE_MACHINES: Final = {
    module.__name__ for module in (channels, client, client_job, router, scheduler, streams)
}


# ---- wherever it strikes ------------------------------------------------------------------------

POINTS: Final = {
    "accept loop": (trio.SocketListener, "accept"),
    "handshake": (acceptor.Acceptor, "handle"),
    "transport's reader": (_protocol.GuardedProtocol, "receive_data"),
    "reader": (pump.Pump, "_take_message"),
    "writer": (scheduler.Scheduler, "next_message"),
    "timer": (pump.Liveness, "check"),
    "look at the daemons": (registry.Registry, "expire"),
    "caller": (local_link.LocalLink, "open"),
    "sender": (commands, "wait_complete"),
    "middle of a flush": (router.Router, "receive"),
    "output": (results.Collector, "add"),
    "leaving a job": (client.Client, "end"),
    "forgetting a job": (client.Client, "forget"),
    "broadcast": (commands._UnderWay, "answer"),
}


@pytest.mark.parametrize("where", POINTS)
def test_ctrl_c_ends_the_remote_trees_wherever_it_strikes(
    daemon: StandingDaemon, marker: Marker, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """In each part of ours that works while an agent is busy."""
    owner, name = POINTS[where]
    original = getattr(owner, name)
    armed: list[bool] = []
    struck: list[int] = []

    def strike(*args: Any, **kwargs: Any) -> Any:
        if armed and not struck:
            struck.append(len(marker.processes()))
            ctrl_c()
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, strike)
    monkeypatch.setattr(services, "LAG_INTERVAL", 0.05)
    monkeypatch.setattr(pump.Liveness, "interval", 0.05)
    began = time.monotonic()
    with interrupted():
        trio.run(busy_agent, daemon.port, marker, lambda: armed.append(True))
    assert marker.processes() == []
    assert struck
    assert struck[0] >= 3
    assert time.monotonic() - began < LIMIT


@pytest.mark.parametrize("seed", range(20))
def test_ctrl_c_ends_the_remote_trees_at_any_moment(
    daemon: StandingDaemon, marker: Marker, seed: int
) -> None:
    """At a call chosen at random, of ours, of the WebSocket's, or of contextlib's in between."""
    strike = Strike(random.Random(seed).randint(1, 6000), (*OURS, contextlib.__file__))
    try:
        with interrupted():
            trio.run(busy_agent, daemon.port, marker, strike.arm)
    finally:
        sys.setprofile(None)
    assert marker.processes() == [], strike.where


AGENT: Final = """
import sys, trio
import sandd

async def main():
    async with sandd.open_controller(port=int(sys.argv[1])) as controller:
        worker = await controller.wait_for_daemon("worker-1")
        env = {sys.argv[2]: sys.argv[3]}
        async with worker.open_process("setsid sleep 60 & cat", env=env, kill_grace=0.1):
            await worker.run("setsid sleep 60 & sleep 60", env=env, kill_grace=0.1)

trio.run(main)
"""


def test_a_program_ends_as_any_does_that_is_interrupted(
    daemon: StandingDaemon, marker: Marker
) -> None:
    """By the signal, as its shell wants to see it, with a traceback of its own code."""
    program = subprocess.Popen(
        [sys.executable, "-c", AGENT, str(daemon.port), *marker],
        env=daemon_environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    with program:
        wait_until(lambda: len(marker.processes()) >= 6)  # both trees, with their shells
        program.send_signal(signal.SIGINT)
        _, errors = program.communicate(timeout=LIMIT)
    assert program.returncode == -signal.SIGINT
    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert ", in main\n" in errors
    assert marker.processes() == []


@pytest.mark.parametrize("seed", range(6))
def test_ctrl_c_in_a_synchronous_program_ends_the_remote_trees(
    daemon: StandingDaemon, marker: Marker, seed: int
) -> None:
    """At any call between its main thread and the trio thread, which never gets it; leaving the block does it."""
    env = dict([marker])
    strike = Strike(random.Random(seed).randint(1, 1000), OURS)
    failures: list[BaseException] = []

    def run(server: sandd.Server) -> None:
        try:
            server.exec("worker-1", TREE, env=env, kill_grace=0.1)
        except BaseException as error:
            failures.append(error)

    try:
        with interrupted(), sandd.Server(port=daemon.port) as server:
            assert server.wait_for_daemon("worker-1", timeout=LIMIT)
            thread = threading.Thread(target=run, args=(server,))
            thread.start()
            wait_until(lambda: len(marker.processes()) >= 3)
            strike.arm()
            while True:
                server.exec("worker-1", ["true"], env=env)
    finally:
        sys.setprofile(None)
    assert marker.processes() == [], strike.where
    thread.join(LIMIT)
    assert [type(each) for each in failures] == [trio.ClosedResourceError]


# ---- impatience ---------------------------------------------------------------------------------


def test_a_second_ctrl_c_saves_the_waiting_and_nothing_else(
    daemon: StandingDaemon, marker: Marker
) -> None:
    """The program doesn't wait for the graces of its trees any more; the daemon sees to them."""
    stubborn = "trap '' TERM; setsid sleep 60 & while :; do sleep 60; done"

    async def agent() -> None:
        async with sandd.open_controller(port=daemon.port) as controller:
            worker = await controller.wait_for_daemon("worker-1")
            async with worker.open_process(stubborn, env=dict([marker]), kill_grace=4.0):
                await until(lambda: len(marker.processes()) >= 3)
                trio.lowlevel.spawn_system_task(be_impatient)
                await trio.sleep_forever()

    async def be_impatient() -> None:
        for _ in range(3):  # in the body; while the process is left; while the controller closes
            ctrl_c()
            await trio.sleep(0.1)

    began = time.monotonic()
    with interrupted():
        trio.run(agent)
    assert len(marker.processes()) >= 2
    wait_until(lambda: not marker.processes())
    assert time.monotonic() - began >= 4.0


# ---- the context managers -----------------------------------------------------------------------


class Passage:
    """A context manager of ours that notes how far it got."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    @protected_context
    async def open(self) -> AsyncIterator[str]:
        """Notes its beginning and its end."""
        self.notes.append("entered")
        try:
            await trio.lowlevel.checkpoint()
            yield "value"
        finally:
            self.notes.append("left")
            await trio.lowlevel.checkpoint()


async def test_a_protected_context_is_one_like_any_other() -> None:
    """It has the function's name, gives its value, and shows it what happens in the body."""

    @protected_context
    async def catching(*, kind: type[Exception]) -> AsyncIterator[int]:
        """Told."""
        try:
            yield 7
        except kind:
            pass

    assert catching.__doc__ == "Told."
    async with catching(kind=KeyError) as value:
        assert value == 7
        raise KeyError
    with pytest.raises(IndexError):
        async with catching(kind=KeyError):
            raise IndexError


def test_ctrl_c_never_strikes_on_the_way_into_or_out_of_a_protected_context() -> None:
    """At each call in it and in contextlib: who entered leaves, and the interrupt comes later."""

    async def program(strike: Strike, passage: Passage) -> None:
        strike.arm()
        async with passage.open() as value:
            passage.notes.append(value)
        sys.setprofile(None)
        await trio.sleep(0.001)  # the main task's next wait, at the latest

    ways = set()
    for number in range(1, 200):
        strike = Strike(number, (contextlib.__file__, __file__, package(sandd)))
        passage = Passage()
        try:
            trio.run(program, strike, passage)
        except KeyboardInterrupt:
            pass
        else:
            assert strike.number > 0  # past the end
            break
        finally:
            sys.setprofile(None)
        assert passage.notes in (
            [],  # struck before it began
            ["entered", "left"],  # on the way in: the body was never reached
            ["entered", "value", "left"],
        ), strike.where
        ways.add(len(passage.notes))
    else:
        pytest.fail("it never came to an end")
    assert number > 12
    assert ways == {0, 2, 3}
