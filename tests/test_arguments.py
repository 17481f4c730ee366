"""What a caller gave that is of the wrong kind: told by its name, at once, and nothing is begun."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio
from daemons import running_daemon
from standing_daemon import LIMIT, StandingDaemon, standing_daemon

import sandd

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="these commands are POSIX shell")

HERE = __file__

# What is called, with what it is given, and how the error begins.
OF_A_DAEMON: list[tuple[str, tuple[Any, ...], dict[str, Any], str]] = [
    ("run", ("cat",), {"input": 5}, "input is 5; it must be bytes, or a text"),
    ("run", ("cat",), {"input": ["a"]}, "input is ['a']; it must be bytes"),
    ("run", ("true",), {"env": [("A", "b")]}, "env is [('A', 'b')]; it must be a dict"),
    ("run", ("true",), {"env": {5: "b"}}, "env is {5: 'b'}; it must be a dict"),
    ("run", ("true",), {"timeout": "1"}, "timeout is '1'; it must be a number of seconds"),
    ("run", ("true",), {"timeout": True}, "timeout is True; it must be a number of seconds"),
    ("run", ("true",), {"idle_timeout": "1"}, "idle_timeout is '1'; it must be a number"),
    ("run", ("true",), {"kill_grace": "5"}, "kill_grace is '5'; it must be a number of seconds"),
    ("run", ("true",), {"max_output": "9"}, "max_output is '9'; it must be a number of bytes"),
    ("run", ("true",), {"max_output": 1.5}, "max_output is 1.5; it must be a number of bytes"),
    ("run", ({"env": "prod"},), {}, "the command is {'env': 'prod'}; it must be a text for the"),
    ("run", ({"true"},), {}, "the command is {'true'}; it must be a text for the shell"),
    ("open_process", ("true",), {"lease": "5"}, "lease is '5'; it must be a number of seconds"),
    ("open_process", ("true",), {"job_id": 5}, "job_id is 5; it must be the id of a job"),
    ("open_session", ("true",), {"term": 5}, "term is 5; it must be the name of a terminal"),
    ("open_session", ("true",), {"scrollback": "5"}, "scrollback is '5'; it must be a number of"),
    ("open_session", ("true",), {"job_id": b"x"}, "job_id is b'x'; it must be the id of a job"),
    ("attach_process", (5,), {}, "job_id is 5; it must be the id of a job"),
    ("attach_process", ("x",), {"since": 5}, "since is 5; it must be a dict, such as Process.off"),
    ("attach_process", ("x",), {"since": {"stdout": "5"}}, "since['stdout'] is '5'; it must be a"),
    ("attach_process", ("x",), {"since": {"stdout": -1}}, "since['stdout'] is -1; it must be a"),
    ("attach_process", ("x",), {"since": {"stdin": 1}}, "since has the name 'stdin'; it holds"),
    ("attach_session", ("x",), {"since": "5"}, "since is '5'; it must be a number of bytes"),
    ("attach_session", ("x",), {"since": -5}, "since is -5; it must be a number of bytes"),
    ("kill", (5,), {}, "job_id is 5; it must be the id of a job"),
    ("kill", ("x",), {"grace": "1"}, "grace is '1'; it must be a number of seconds"),
    ("kill", ("x",), {"signal": 9}, "9 is not the name of a signal"),
    ("forget", (None,), {}, "job_id is None; it must be the id of a job"),
    ("upload", (HERE, "up"), {"progress": 5}, "progress is 5; it must be a function, or None"),
    ("download", (HERE, "down"), {"progress": 5}, "progress is 5; it must be a function, or None"),
    ("upload", (HERE, "up"), {"include": 5}, "include is 5; it must be a pattern, or several"),
    ("open_tcp_stream", ("localhost", "80"), {}, "port is '80'; it must be a whole number"),
]
OF_A_CONTROLLER: list[tuple[str, tuple[Any, ...], dict[str, Any], str]] = [
    ("daemons", ("env=prod",), {}, "labels is 'env=prod'; it must be a dict, such as {'env': 'prod'}"),
    ("daemons", (["env"],), {}, "labels is ['env']; it must be a dict"),
    ("daemons", ({"env": 5},), {}, "labels['env'] is 5; it must be a text"),
    ("daemons", (), {"match": 5}, "match is 5; it must be a glob"),
    ("daemon", (5,), {}, "daemon_id is 5; it must be the id of a daemon"),
    ("daemon", ([],), {}, "daemon_id is []; it must be the id of a daemon"),
    ("wait_for_daemon", (5,), {}, "daemon_id is 5; it must be the id of a daemon"),
    ("broadcast", ("true",), {"labels": "env=prod"}, "labels is 'env=prod'; it must be a dict"),
    ("broadcast", ("true",), {"concurrency": "2"}, "concurrency is '2'; it must be a number of"),
    ("broadcast", ("true",), {"concurrency": 0}, "concurrency is 0; it must be a number of"),
    ("broadcast", ("true",), {"timeout": "2"}, "timeout is '2'; it must be a number of seconds"),
    ("broadcast", ("true",), {"patience": 2}, "'patience' is no option of a command"),
    ("broadcast", ("true",), {"match": "nobody", "timeout": "2"}, "timeout is '2'; it must be a"),
    ("broadcast", ({"env": "prod"},), {}, "the command is {'env': 'prod'}; it must be a text"),
]  # fmt: skip
OF_A_CLIENT: list[tuple[str, tuple[Any, ...], dict[str, Any], str]] = [
    (
        "broadcast",
        ("true", {"env": "prod"}),
        {},
        "labels is 'true'; it must be a dict, such as {'env': 'prod'}, or None; it comes first here: "
        "broadcast({'env': 'prod'}, 'uptime')",
    ),
    ("broadcast", ({"env": 5}, "true"), {}, "labels['env'] is 5; it must be a text"),
    ("broadcast", (None, "true"), {"timeout": "5"}, "timeout is '5'; it must be a number"),
    ("exec", ("worker-1", "true", "5"), {}, "timeout is '5'; it must be a number of seconds"),
    ("exec", ("worker-1", "true"), {"kill_grace": "5"}, "kill_grace is '5'; it must be a number"),
    ("exec", (5, "true"), {}, "daemon_id is 5; it must be the id of a daemon"),
    ("wait_for_daemon", ("worker-1", "5"), {}, "timeout is '5'; it must be a number of seconds"),
    ("wait_for_daemon", (5, 1), {}, "daemon_id is 5; it must be the id of a daemon"),
    ("list_daemons", ("env=x",), {}, "labels is 'env=x'; it must be a dict"),
    ("get_daemon", (5,), {}, "daemon_id is 5; it must be the id of a daemon"),
    ("upload", ("worker-1", HERE, "x"), {"timeout": "5"}, "timeout is '5'; it must be a number"),
]


@pytest.fixture(scope="module")
def daemon(_own_temporary_directory: None) -> Iterator[StandingDaemon]:
    """The daemon that the tests of this module share."""
    with standing_daemon() as daemon:
        yield daemon


async def calling(function: Callable[..., Any], *args: Any, **options: Any) -> None:
    """Whatever the function is: plain, async, or one for a block."""
    given = function(*args, **options)
    if hasattr(given, "__aenter__"):
        async with given:
            pass
    elif hasattr(given, "__await__"):
        await given


async def test_of_a_daemon(daemon: StandingDaemon) -> None:
    """A TypeError or a ValueError that begins with the argument's name, and no job."""
    with trio.fail_after(LIMIT):
        async with daemon.controller() as controller:
            worker = await controller.wait_for_daemon("worker-1")
            for name, args, options, said in OF_A_DAEMON:
                with pytest.raises((TypeError, ValueError)) as caught:
                    await calling(getattr(worker, name), *args, **options)
                assert str(caught.value).startswith(said), (name, str(caught.value))
            assert controller.statistics().jobs_started == 0


async def test_of_a_controller(daemon: StandingDaemon) -> None:
    """Likewise; nothing waits for a daemon that can't be."""
    with trio.fail_after(LIMIT):
        async with daemon.controller() as controller:
            await controller.wait_for_daemon("worker-1")
            for name, args, options, said in OF_A_CONTROLLER:
                with pytest.raises((TypeError, ValueError)) as caught:
                    await calling(getattr(controller, name), *args, **options)
                assert str(caught.value).startswith(said), (name, str(caught.value))
            assert controller.statistics().jobs_started == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"token": Path("x")}, "the token is a PosixPath; it must be the secret itself"),
        ({"operator_token": 5}, "the operator_token is a int; it must be the secret itself"),
        ({"state_dir": 5}, "state_dir is 5; it must be a path"),
        ({"policy": 5}, "policy is 5; it must be a path"),
        ({"rate_limits": 5}, "rate_limits is 5; it must be a sandd.RateLimits, or None"),
        ({"heartbeat": "5"}, "heartbeat is '5'; it must be a number of seconds"),
        ({"dead_after": "5"}, "dead_after is '5'; it must be a number of seconds"),
        ({"max_handshakes_per_second": "5"}, "max_handshakes_per_second is '5'; it must be a numb"),
        ({"host": None}, "host is None; it must be an address to listen on"),
        ({"port": "8765"}, "port is '8765'; it must be the number of a port"),
    ],
    ids=str,
)
async def test_of_open_controller(options: dict[str, Any], said: str) -> None:
    """A ConfigurationError, as for all else that it can't be opened with; no secret is shown."""
    with pytest.raises(sandd.ConfigurationError) as caught:
        async with sandd.open_controller(**{"port": 0} | options):
            pytest.fail("it was opened")
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize(
    ("url", "options", "said"),
    [
        (5, {}, "url is 5; it must be the URL of a controller"),
        (b"ws://x", {}, "url is b'ws://x'; it must be the URL of a controller"),
        ("ws://x", {"token": Path("x")}, "the token is a PosixPath; it must be the secret itself"),
        ("wss://x", {"ca_pin": 5}, "ca_pin is 5; it must be a text"),
        ("wss://x", {"ca_file": 5}, "ca_file is 5; it must be a path"),
        ("ws://x", {"connect_timeout": "5"}, "connect_timeout is '5'; it must be a number of sec"),
    ],
    ids=str,
)
async def test_of_connect_controller(url: Any, options: dict[str, Any], said: str) -> None:
    """Likewise, and nothing is dialled."""
    with pytest.raises(sandd.ConfigurationError) as caught:
        async with sandd.connect_controller(url, **options):
            pytest.fail("it was opened")
    assert str(caught.value).startswith(said)


def test_of_a_client() -> None:
    """Its own arguments as well; and never in a group, nor one that has to be sought in a thread."""
    with sandd.Server(port=0) as server, running_daemon(server.url, "worker-1"):
        assert server.wait_for_daemon("worker-1", timeout=LIMIT)
        for name, args, options, said in OF_A_CLIENT:
            with pytest.raises((TypeError, ValueError)) as caught:
                getattr(server, name)(*args, **options)
            assert str(caught.value).startswith(said), (name, str(caught.value))
