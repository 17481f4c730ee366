"""What the tests of `sandd._core.processes` share: requests, and a look at what is alive."""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio
from attrs import frozen
from patience import Patience
from proc_files import (
    contents,
    has_variable,
    process_ids,
    seconds_of_calm,
    state_and_parent,
)

from sandd._core.processes import Child, ExitStatus, ProcessHost, SpawnRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="POSIX process trees")
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and subreapers")
root_only = pytest.mark.skipif(
    sys.platform == "win32" or os.geteuid() != 0, reason="only root may become somebody else"
)

PYTHON = sys.executable
WITHIN = 1.9
"""Seconds of calm within which everything is dead: process rule 6 wants it within one. The rest is the machine's; it
is less than the shortest of our own time-outs, two seconds, that a fault could wait for. See `at_once`."""
PATIENCE = 20.0
"""Seconds for what takes milliseconds, where only that it happens matters: the machine may be busy."""


# The spawner runs isolated (-I -S), so coverage's own hook for child processes does not reach it.
if "COVERAGE_PROCESS_CONFIG" in os.environ and sys.platform != "win32":
    import coverage

    from sandd._core.processes import spawner_link

    _where = str(Path(coverage.__file__).parents[1])
    spawner_link._BOOT = (
        f"import sys; sys.path.append({_where!r}); import coverage; coverage.process_startup()\n"
        f"{spawner_link._BOOT}"
    )


def fork_among_threads() -> int:
    """`os.fork`, for `launch_forked` in a process of tests: it has threads, which `quick_fork` is not for.

    One of them may have asked for the interpreter, and a copy would give it up, to nobody.
    """
    with warnings.catch_warnings():
        # Since 3.12, for the locks of the others.
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def request(*argv: str | bytes, **options: object) -> SpawnRequest:
    """A request with a marker of its own; ``env`` is merged over ours."""
    marker = b"test/" + secrets.token_hex(8).encode()
    extra = options.pop("env", {})
    assert isinstance(extra, dict)
    env = {**os.environb, **extra, b"SANDD_JOB": marker}
    words = tuple(os.fsencode(word) for word in argv)
    return SpawnRequest(argv=words, env=env, marker=marker, **options)  # type: ignore[arg-type]


def shell(text: str, **options: object) -> SpawnRequest:
    """A request for a shell script."""
    return request("/bin/sh", "-c", text, **options)


@frozen
class Outcome:
    """What a child that was left to itself came to."""

    status: ExitStatus
    stdout: bytes
    stderr: bytes


async def read_all(stream: trio.abc.ReceiveStream) -> bytes:
    """Everything up to the stream's end."""
    return b"".join([chunk async for chunk in stream])


async def read_line(stream: trio.abc.ReceiveStream) -> bytes:
    """The next line, without its end."""
    line = b""
    while (byte := await stream.receive_some(1)) not in (b"\n", b""):
        line += byte
    return line


async def close_pipes(child: Child) -> None:
    """What every caller of `spawn` owes."""
    for stream in (child.stdin, child.stdout, child.stderr):
        if stream is not None:
            await trio.aclose_forcefully(stream)


async def finish(child: Child) -> Outcome:
    """Read a child to its end and release it."""
    output = [b"", b""]

    async def read(index: int, stream: trio.abc.ReceiveStream) -> None:
        output[index] = await read_all(stream)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read, 0, child.stdout)
        if child.stderr is not None:
            nursery.start_soon(read, 1, child.stderr)
        if child.stdin is not None:
            await child.stdin.aclose()
        status = await child.wait_exited()
    await child.release()
    await close_pipes(child)
    return Outcome(status, *output)


async def run(host: ProcessHost, wanted: SpawnRequest) -> Outcome:
    """Spawn and `finish`."""
    return await finish(await host.spawn(wanted))


@contextlib.contextmanager
def at_once() -> Iterator[None]:
    """What is in the block takes no longer than `WITHIN`; the time in which the machine was too busy isn't counted."""
    began = seconds_of_calm()
    yield
    assert seconds_of_calm() - began < WITHIN


# ---- who is alive ---------------------------------------------------------------------------------


def alive(marker: bytes) -> list[int]:
    """The living processes that were started with ``SANDD_JOB=<marker>``, zombies not counted."""
    return [pid for pid in process_ids() if has_variable(pid, b"SANDD_JOB=" + marker)]


def is_alive(pid: int) -> bool:
    """Whether there is such a process, and it is no zombie."""
    found = state_and_parent(pid)
    return found is not None and found[0] not in ("Z", "X")


def spawner_pids(of: int | None = None) -> list[int]:
    """The spawners that are children of a process (ours by default), zombies not counted."""
    return [
        pid
        for pid in process_ids()
        if contents(pid, "comm") == b"sandd-spawner\n"
        and (found := state_and_parent(pid)) is not None
        and found[1] == (of or os.getpid())
        and found[0] != "Z"
    ]


async def the_spawner() -> int:
    """The one spawner of this process, once it has come up."""
    await until(lambda: len(spawner_pids()) == 1)
    return spawner_pids()[0]


async def until(is_so: Callable[[], object], *, within: float = PATIENCE) -> None:
    """Wait for something that only polling can tell; fail after ``within`` seconds of calm."""
    patience = Patience(within)
    while not is_so():
        assert not patience.is_over, f"not so within {within} s"
        await trio.sleep(0.002)


def living_tasks() -> int:
    """How many tasks there are but writers of links, which come and go with what there is to send."""
    return sum(not _is_writer(task) for task in _all_tasks())


def link_writers() -> int:
    """How many tasks send for links. When the watch has looked twice after the last word, there are none."""
    return sum(map(_is_writer, _all_tasks()))


def resting_connections() -> int:
    """How many connections are read together with others, as nothing is expected of their peers."""
    return sum(
        frame.f_code.co_name == "rest" and frame.f_code.co_filename.endswith("_resting.py")
        for task in _all_tasks()
        for frame, _ in task.iter_await_frames()
    )


def _is_writer(task: trio.lowlevel.Task) -> bool:
    return task.name.endswith("Pump._write")


def _all_tasks() -> Iterator[trio.lowlevel.Task]:
    root = trio.lowlevel.current_root_task()
    unseen = [] if root is None else [root]
    while unseen:
        task = unseen.pop()
        yield task
        unseen += [child for nursery in task.child_nurseries for child in nursery.child_tasks]


def until_sync(is_so: Callable[[], object], *, within: float = PATIENCE) -> None:
    """`until`, where no trio runs."""
    patience = Patience(within)
    while not is_so():
        assert not patience.is_over, f"not so within {within} s"
        time.sleep(0.002)
