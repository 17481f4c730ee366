"""What holds for every test: it leaves nothing behind, it ends, and it is tried hard enough.

The leak check compares what this process holds before and after each test: descriptors where the
system lists them (Linux, macOS), processes on Linux, threads and temporary files everywhere.
"""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

import hypothesis
import pytest
import trio
from _pytest.python import importtestmodule
from attrs import frozen
from daemons import daemon_environment
from forked_python import PythonProcess, forking
from proc_files import (
    contents,
    has_variable,
    process_ids,
    seconds_of_calm,
    state_and_parent,
)
from standing_daemon import CONTROLLERS

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

T = TypeVar("T")

# ---- hypothesis ---------------------------------------------------------------------------------

CI = bool(os.environ.get("CI"))
# No deadline: on a busy machine with two cores a slow example is no finding. In CI the examples are
# the same each time, so that a failure is the change's fault, and the next run shows it again.
hypothesis.settings.register_profile(
    "quick",
    deadline=None,
    max_examples=50,  # of plain properties; state machines: see effort.py
    stateful_step_count=30,
    derandomize=CI,
    print_blob=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.register_profile(
    "deep",
    deadline=None,
    max_examples=2000,
    stateful_step_count=30,
    print_blob=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "quick")
hypothesis.settings.load_profile(PROFILE)

# ---- on all cores -------------------------------------------------------------------------------


IS_WORKER = "PYTEST_XDIST_WORKER" in os.environ
"""This process was started by another one to run some of the tests."""
MOST_WORKERS = 8
"""A module's daemon is started again in each process that runs some of its tests."""


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """The whole suite runs in several processes; what is named, by a path or ``-k``, runs in this one.

    ``-n 0`` keeps all of it in this process, and so does a debugger, and being without pytest-xdist.
    """
    option = config.option
    named = config.args_source is pytest.Config.ArgsSource.ARGS or option.keyword
    if getattr(option, "numprocesses", 0) is None and not (named or option.usepdb or IS_WORKER):
        cores: int = config.hook.pytest_xdist_auto_num_workers(config=config)
        # Two more than can run, because tests wait for half of their time.
        option.numprocesses = min(cores + 2, MOST_WORKERS)
        # A worker begins with its share of the files in their order, so few daemons are started twice.
        option.dist = "worksteal"
        option.whole_suite = True  # for the workers to see


def compiled_in(base: Path) -> Path:
    """Where bytecode is kept from one run to the next that is not to be beside its sources; given a run's directory."""
    return (base.parent.parent if IS_WORKER else base.parent) / "compiled"


@pytest.hookimpl(trylast=True)  # when there is a directory for this run
def pytest_configure(config: pytest.Config) -> None:
    """Workers keep bytecode, though not beside the sources where that is not wanted.

    To compile our tests takes three times as long as to collect them.
    """
    whole = getattr(config.option, "whole_suite", False) and not IS_WORKER
    if whole and sys.dont_write_bytecode:
        directories: pytest.TempPathFactory = config._tmp_path_factory  # type: ignore[attr-defined]
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        os.environ["PYTHONPYCACHEPREFIX"] = str(compiled_in(directories.getbasetemp()))


def pytest_collectstart(collector: pytest.Collector) -> None:
    """Each worker imports the test files beginning with others, so that one compiles what the others load then."""
    whole = getattr(collector.config.option, "whole_suite", False)
    if IS_WORKER and whole and isinstance(collector, pytest.Session):
        files = sorted(Path(__file__).parent.rglob("test_*.py"))
        number = int(os.environ["PYTEST_XDIST_WORKER"].removeprefix("gw"))
        first = len(files) * number // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
        for file in files[first:] + files[:first]:
            # What does not work is told when it is collected.
            with contextlib.suppress(pytest.Collector.CollectError):
                importtestmodule(file, collector.config)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, T, T]:
    """Nine thousand tests and their modules stay: to look through them for cycles, again and again, is in vain."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.collect()
        gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Generator[None, T, T]:
    """Reports travel between processes as UTF-8, which lone surrogates, logged on purpose, are not."""
    return encodable((yield))


def encodable(value: T) -> T:
    """The same, with escapes for what can't be encoded."""
    match value:
        case str():
            return value.encode("utf-8", "backslashreplace").decode()
        case list() | tuple():
            return type(value)([encodable(each) for each in value])
        case dict():
            return {key: encodable(each) for key, each in value.items()}
    return value


# ---- on other event loops -----------------------------------------------------------------------


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test that is marked for anyio runs on its backends; pytest-trio takes every coroutine function for its own."""
    for item in items:
        if item.get_closest_marker("anyio") is not None:
            item.own_markers = [each for each in item.own_markers if each.name != "trio"]


# ---- as from a terminal -------------------------------------------------------------------------


@pytest.fixture(scope="session", autouse=True)
def _signals_mean_what_they_mean() -> None:
    """Under nohup, or in a shell's background, some are ignored, and would be by all that we start."""
    if sys.platform != "win32":
        for number in (signal.SIGHUP, signal.SIGQUIT):
            if signal.getsignal(number) is signal.SIG_IGN:
                signal.signal(number, lambda *_: None)  # still ignored here, but not inherited
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.default_int_handler)


# ---- no test hangs ------------------------------------------------------------------------------

TEST_TIMEOUT = None if PROFILE == "deep" else 100.0
"""Seconds of calm for a test's body; trio's clock may be a mock. Deep may take hours.

The longest need five seconds of a core, of which who runs beside it leaves them a half.
"""
LONGEST_TEST = 600.0
"""Seconds by the wall's clock, however busy the machine is. Less than faulthandler_timeout."""


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_call() -> Generator[None, object, object]:
    """Interrupt a test that hangs the way Ctrl-C would, which trio unwinds in good order."""
    if TEST_TIMEOUT is None or sys.platform == "win32":
        return (yield)
    hung_at: str | None = None
    began = time.monotonic(), seconds_of_calm()

    def interrupt(_signal: int, _frame: object) -> None:
        nonlocal hung_at
        left = min(
            TEST_TIMEOUT - (seconds_of_calm() - began[1]),
            LONGEST_TEST - (time.monotonic() - began[0]),
        )
        if left > 0:
            signal.setitimer(signal.ITIMER_REAL, max(1.0, left))
            return
        hung_at = task_stacks()
        signal.raise_signal(signal.SIGINT)

    previous = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, TEST_TIMEOUT)
    try:
        return (yield)
    except BaseException as error:
        if hung_at is None:
            raise
        took = time.monotonic() - began[0]
        raise TimeoutError(f"interrupted after {took:.0f} s\n{hung_at}") from error
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def task_stacks() -> str:
    """Where each trio task is waiting, if trio runs in this thread."""
    try:
        tasks = [trio.lowlevel.current_root_task()]
    except RuntimeError:
        return ""
    lines = []
    while tasks and (task := tasks.pop()):
        stack = traceback.StackSummary.extract(task.iter_await_frames())
        lines += [f"task {task.name}\n", *stack.format()]
        tasks += [child for nursery in task.child_nurseries for child in nursery.child_tasks]
    return "".join(lines)


# ---- no test leaks ------------------------------------------------------------------------------

SETTLE = 2.0
"""Seconds that what a test has just let go of may take to disappear."""

FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Note failures: a failed test's traceback keeps its sockets alive, which is no leak."""
    report = yield
    if report.failed:
        item.stash[FAILED] = True
    return report


@pytest.fixture(scope="session", autouse=True)
def _own_temporary_directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A temporary directory for us and all children: other programs' files are not our leaks."""
    # pytest's own stays where it can be looked at afterwards; what is beside it is for all runs of a user.
    compiled = compiled_in(tmp_path_factory.getbasetemp())
    directory = tempfile.mkdtemp(prefix="sandd-tests-")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", directory)
        patch.setattr(tempfile, "tempdir", directory)
        if sys.dont_write_bytecode:
            # Not beside the sources, that is. To compile them is a quarter of a daemon's start.
            patch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
            patch.setenv("PYTHONPYCACHEPREFIX", str(compiled))
        with forking(daemon_environment):
            yield
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(autouse=True)
def _leaves_nothing_behind(
    request: pytest.FixtureRequest, _own_temporary_directory: None
) -> Iterator[None]:
    """Fail a test after which a descriptor, process, thread or temporary file is left."""
    before = Holdings.now()
    yield
    left = Holdings.now().since(before)
    if left and not request.node.stash.get(FAILED, False):
        # Cycles first: trio's tracebacks make them, and what only they hold is garbage.
        gc.collect()
        left = settle(lambda: Holdings.now().since(before))
    report = f"the test left behind:\n{left.describe()}"
    for entry in left.processes:
        kill(entry.pid)  # the next test is not to suffer for this one
    if left and not request.node.stash.get(FAILED, False):
        pytest.fail(report, pytrace=False)


def settle(look: Callable[[], T]) -> T:
    """What `look` shows once it shows nothing, or after `SETTLE` seconds of looking."""
    give_up, pause = time.monotonic() + SETTLE, 0.001
    while (seen := look()) and time.monotonic() < give_up:
        time.sleep(pause)
        pause = min(pause * 2, 0.05)
    return seen


@frozen
class Holdings:
    """What this process holds."""

    descriptors: frozenset[tuple[int, str]]
    processes: frozenset[ProcessEntry]
    threads: frozenset[threading.Thread]
    files: frozenset[str]

    @classmethod
    def now(cls) -> Holdings:
        """A snapshot; 0.1 ms where there are no children."""
        source = PythonProcess.source  # is there until the end, and used by any test
        ours = -1 if source is None else source.socket.fileno()
        return cls(
            descriptors=frozenset(each for each in open_descriptors() if each[0] != ours),
            processes=frozenset(descendants(os.getpid())),
            # Daemon threads are not waited for by anybody: trio keeps idle ones for the next call.
            threads=frozenset(each for each in threading.enumerate() if not each.daemon),
            files=frozenset(os.listdir(tempfile.gettempdir())),
        )

    def since(self, before: Holdings) -> Holdings:
        """What is here that wasn't before."""
        known = {entry.pid for entry in before.processes}  # its state may have changed
        return Holdings(
            descriptors=self.descriptors - before.descriptors,
            processes=frozenset(
                entry
                for entry in self.processes
                if entry.pid not in known and not (entry.parent in known and entry.is_cell)
            ),
            threads=self.threads - before.threads,
            files=self.files - before.files,
        )

    def __bool__(self) -> bool:
        return bool(self.descriptors or self.processes or self.threads or self.files)

    def describe(self) -> str:
        """One line for each thing."""
        lines = [describe_descriptor(*entry) for entry in sorted(self.descriptors)]
        lines += [f"process {entry.describe()}" for entry in sorted(self.processes)]
        lines += [f"thread {each.name!r}" for each in self.threads]
        lines += [f"file {Path(tempfile.gettempdir(), name)}" for name in sorted(self.files)]
        return "\n".join(f"  {line}" for line in lines)


def open_descriptors() -> Iterator[tuple[int, str]]:
    """Number and target of each open descriptor; nothing where the system doesn't list them."""
    directory = "/proc/self/fd" if sys.platform == "linux" else "/dev/fd"
    if sys.platform == "win32":
        return
    for entry in os.listdir(directory):
        target = ""
        # The listing's own descriptor is in the list, and closed by now.
        with contextlib.suppress(OSError):
            if sys.platform == "linux":
                target = os.readlink(f"{directory}/{entry}")
            else:
                os.fstat(int(entry))
            yield int(entry), target


def describe_descriptor(number: int, target: str) -> str:
    """The descriptor, with the addresses if it is a socket."""
    text = f"descriptor {number} {target}"
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(number)) as one:
        text += f" {one.family.name} {one.getsockname()!r}"
        with contextlib.suppress(OSError):
            text += f" -> {one.getpeername()!r}"
    return text


# ---- processes ----------------------------------------------------------------------------------


class ProcessEntry(NamedTuple):
    """A process as /proc shows it."""

    pid: int
    state: str
    """R, S, D, T, Z (a zombie: ended, and not reaped by its parent), ..."""
    parent: int

    @property
    def is_cell(self) -> bool:
        """It is a part of its spawner that stays: see `sandd._core.processes.limit_cells`."""
        return contents(self.pid, "comm") == b"sandd-cell\n"

    def describe(self) -> str:
        """What a person needs to recognise it."""
        command = contents(self.pid, "cmdline").replace(b"\0", b" ").decode()
        return f"{self.pid} ({self.state}, child of {self.parent}) {command[:200]}"


def processes() -> list[ProcessEntry]:
    """Every process there is; empty where there is no /proc."""
    return [
        ProcessEntry(pid, *found)
        for pid in process_ids()
        if (found := state_and_parent(pid)) is not None
    ]


def descendants(ancestor: int) -> list[ProcessEntry]:
    """Our children, zombies included, and theirs; cheap while there are none. What we fork from is left out."""
    if sys.platform != "linux" or not has_children():
        return []
    known, found = {ancestor}, []
    source = None if PythonProcess.source is None else PythonProcess.source.process.pid
    unplaced = [entry for entry in processes() if entry.pid != source]
    while below := [entry for entry in unplaced if entry.parent in known]:
        found += below
        known = {entry.pid for entry in below}
        unplaced = [entry for entry in unplaced if entry.pid not in known]
    return found


def has_children() -> bool:
    """Whether this process has any child, running or not, but for what we fork from; takes none of them away."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    if (source := PythonProcess.source) is None:
        return True
    ours, threads = os.getpid(), os.listdir("/proc/self/task")
    lists = [contents(ours, f"task/{thread}/children") for thread in threads]
    # A thread that ends meanwhile takes its list with it.
    is_whole = os.listdir("/proc/self/task") == threads
    return not is_whole or b" ".join(lists).split() != [b"%d" % source.process.pid]


def kill(pid: int) -> None:
    """Kill a process, and reap it if it is a child of ours."""
    with contextlib.suppress(OSError):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


class Marker(NamedTuple):
    """A variable for a child's environment; its descendants inherit it, wherever they hide."""

    name: str
    value: str

    def processes(self) -> list[ProcessEntry]:
        """The processes that have it in their environment; Linux only."""
        wanted = f"{self.name}={self.value}".encode()
        return [
            ProcessEntry(pid, *found)
            for pid in process_ids()
            if has_variable(pid, wanted) and (found := state_and_parent(pid)) is not None
        ]


OVER_BOTH: Final = {
    "test_attach": "quick",
    "test_run": "quick",
    "test_open_process": "deep",
    "test_sessions": "deep",
    "test_detached": "deep",
    "test_remote_path": "deep",
    "test_job_requests": "deep",
    "test_copying": "deep",
    "test_cancellation": "deep",
}
"""Modules whose tests run with a controller in this process and with one that is connected to; the latter
from this profile on."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Have the tests of what a `Controller` does run over both kinds of it."""
    profile = OVER_BOTH.get(metafunc.module.__name__.rpartition(".")[2])
    if "daemon" in metafunc.fixturenames and profile is not None:
        kinds = ["local", "remote"] if profile == "quick" or PROFILE == "deep" else ["local"]
        metafunc.fixturenames.append("_controllers")
        metafunc.parametrize("_controllers", kinds, indirect=True)


@pytest.fixture
def _controllers(request: pytest.FixtureRequest) -> Iterator[None]:
    """The kind of controller that the test gets; see standing_daemon.py."""
    token = CONTROLLERS.set(request.param)
    yield
    CONTROLLERS.reset(token)


@pytest.fixture
def marker() -> Iterator[Marker]:
    """A fresh variable ``(name, value)``; fails the test if a process that has it survives it.

    It finds those that left session, group and parent behind, as the leak check's tree can't.
    """
    # Not SANDD_...: those are scrubbed before a job starts.
    fresh = Marker("TEST_MARKER", uuid.uuid4().hex)
    yield fresh
    # Twice in a row: between fork and exec a process may be missed once.
    left = settle(lambda: fresh.processes() or fresh.processes())
    for entry in left:
        kill(entry.pid)
    if left:
        lines = "".join(f"\n  {entry.describe()}" for entry in left)
        pytest.fail(f"processes outlived the test:{lines}", pytrace=False)
