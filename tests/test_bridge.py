"""Between threads and a trio thread: results and errors as they are, interruptions, and the end."""

from __future__ import annotations

import contextlib
import contextvars
import gc
import math
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio
from attrs import define, field
from daemons import daemon_environment
from process_tools import until_sync

import sandd
from sandd._core import bridge
from sandd._core.bridge import TrioThread
from sandd._core.promise import Promise

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

NAME = "a test's thread"
SECONDS = 20.0
"""For what should take milliseconds."""

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="sends a real SIGINT")


@define
class Resource:
    """What the threads here hold open; says what happens to it, in order."""

    history: list[str] = field(factory=list)
    break_down: trio.Event = field(factory=trio.Event)
    """Set in the trio thread, makes it fail by itself."""

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[Resource]:
        """Open until the block is left."""

        async def watch() -> None:
            await self.break_down.wait()
            raise ConnectionAbortedError("it broke down")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            self.history.append("opened")
            try:
                yield self
            finally:
                self.history.append("closing")
            nursery.cancel_scope.cancel()
        self.history.append("closed")


@contextlib.contextmanager
def opened(resource: Resource | None = None) -> Iterator[TrioThread[Resource]]:
    """A thread with a resource open in it; at the end it is closed, and has gone."""
    resource = resource or Resource()
    thread = TrioThread(resource.open, name=NAME)
    thread.start()
    try:
        yield thread
    finally:
        # Closing may well raise: that is for the tests that make it to look at.
        with contextlib.suppress(RuntimeError):
            thread.close()
    assert_no_thread()


def assert_no_thread() -> None:
    """No trio thread is left."""
    assert NAME not in [each.name for each in threading.enumerate()]


class Background:
    """A function on its way in a thread of its own."""

    def __init__(self, function: Callable[[], object]) -> None:
        self._result: object = None
        self._error: BaseException | None = None
        self._function = function
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._result = self._function()
        except BaseException as error:
            self._error = error

    def result(self) -> object:
        """What it returned or raised, within `SECONDS`."""
        self._thread.join(SECONDS)
        assert not self._thread.is_alive()
        if self._error is not None:
            raise self._error
        return self._result


class Blocked:
    """An asynchronous function that goes on until it is cancelled, and says how far it is."""

    def __init__(self, *, cleans_up_when_told: bool = False) -> None:
        self.began = threading.Event()
        self.cancelled = threading.Event()
        self.may_clean_up = threading.Event()
        self.cleaned_up = threading.Event()
        if not cleans_up_when_told:
            self.may_clean_up.set()

    async def __call__(self) -> None:
        """Block."""
        self.began.set()
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            self.cancelled.set()
            with trio.CancelScope(shield=True):
                while not self.may_clean_up.is_set():
                    await trio.sleep(0.001)
            self.cleaned_up.set()
            raise


def test_run_returns_what_the_function_returns() -> None:
    """Arguments go in and the value comes out, from a thread that runs trio."""

    async def add(a: int, b: int) -> tuple[int, int]:
        await trio.lowlevel.checkpoint()
        return a + b, threading.get_ident()

    with opened() as thread:
        total, ident = thread.run(add, 2, 3)

    assert total == 5
    assert ident != threading.get_ident()


@pytest.mark.parametrize("error_type", [ValueError, SystemExit, KeyboardInterrupt, ExceptionGroup])
def test_run_raises_what_the_function_raises(error_type: type[BaseException]) -> None:
    """Any exception is the caller's, as itself, and costs the thread nothing."""
    error = ExceptionGroup("x", [KeyError()]) if error_type is ExceptionGroup else error_type("x")

    async def fail() -> None:
        await trio.lowlevel.checkpoint()
        raise error

    with opened() as thread:
        with pytest.raises(error_type) as caught:
            thread.run(fail)
        assert caught.value is error
        assert thread.run(trio.lowlevel.checkpoint) is None


def test_a_raised_error_is_garbage_once_it_was_handled() -> None:
    """No cycle of references keeps an exception, its traceback and all their objects alive."""

    class Precious:
        pass

    precious = Precious()
    grave = weakref.ref(precious)

    async def fail(_precious: Precious) -> None:
        raise LookupError

    with opened() as thread:
        gc.disable()
        try:
            with contextlib.suppress(LookupError):
                thread.run(fail, precious)
            del precious
            # The trio thread may still be about to let go of its task.
            thread.run(trio.lowlevel.checkpoint)
            assert grave() is None
        finally:
            gc.enable()


def test_the_function_sees_the_callers_context() -> None:
    """Context variables (a request's id for the log, say) reach the trio thread."""
    variable = contextvars.ContextVar("variable", default="nothing")
    token = variable.set("the caller's")

    async def look() -> str:
        return variable.get()

    try:
        with opened() as thread:
            assert thread.run(look) == "the caller's"
    finally:
        variable.reset(token)


def test_no_number_of_seconds_is_too_long_to_wait() -> None:
    """Locks refuse to be waited for some 292 years; whoever allows a call that long may do so."""
    promise: Promise[str] = Promise()
    waiting = [Background(partial(promise.wait, seconds)) for seconds in (1e12, math.inf, None)]
    until_sync(lambda: len(promise._waiting) == len(waiting))
    promise.keep("kept")
    assert [each.result() for each in waiting] == [True, True, True]


def test_64_threads_get_their_own_results() -> None:
    """Calls of many threads overlap, and none gets another's answer."""
    there = 0
    everybody_there = trio.Event()

    async def meet(number: int) -> int:
        nonlocal there
        there += 1
        if there == 64:
            everybody_there.set()
        await everybody_there.wait()
        return number

    with opened() as thread:
        calls = [Background(partial(thread.run, meet, number)) for number in range(64)]
        assert [each.result() for each in calls] == list(range(64))


def test_start_raises_what_keeps_the_resource_from_opening() -> None:
    """The error is raised as itself in the starting thread, and no thread stays behind."""

    @contextlib.asynccontextmanager
    async def open_nothing() -> AsyncIterator[None]:
        raise PermissionError("no")
        yield

    with pytest.raises(PermissionError, match="no"):
        TrioThread(open_nothing, name=NAME).start()
    assert_no_thread()


def test_close_fails_calls_at_once_and_lets_them_clean_up() -> None:
    """The caller doesn't wait for the function's clean-up; `close` does."""
    blocked = Blocked(cleans_up_when_told=True)
    with opened() as thread:
        call = Background(lambda: thread.run(blocked))
        assert blocked.began.wait(SECONDS)
        closing = Background(thread.close)
        with pytest.raises(trio.ClosedResourceError, match="was closed"):
            call.result()
        assert not blocked.cleaned_up.is_set()
        blocked.may_clean_up.set()
        closing.result()
        assert blocked.cleaned_up.is_set()


def test_close_from_many_threads_waits_in_each() -> None:
    """Whoever returns from `close` finds the resource closed and the thread gone."""
    resource = Resource()
    with opened(resource) as thread:

        def close() -> list[str]:
            thread.close()
            return list(resource.history)

        closers = [Background(close) for _ in range(8)]
        for each in closers:
            assert each.result() == ["opened", "closing", "closed"]
        thread.close()
        assert_no_thread()


def test_calls_after_the_end_are_refused() -> None:
    """A closed thread says so, whatever is asked of it."""
    with opened() as thread:
        thread.close()
        assert thread.stopped
        with pytest.raises(trio.ClosedResourceError, match=NAME):
            thread.run(trio.lowlevel.checkpoint)


def test_calls_race_with_close_and_none_hangs() -> None:
    """Each call that meets the closing either returns or raises ClosedResourceError."""
    for _ in range(20):
        with opened() as thread:

            def hammer(thread: TrioThread[Resource] = thread) -> None:
                with contextlib.suppress(trio.ClosedResourceError):
                    while True:
                        thread.run(trio.lowlevel.checkpoint)

            threads = [Background(hammer) for _ in range(4)]
            thread.close()
            for each in threads:
                each.result()


def test_waiting_for_oneself_is_an_error() -> None:
    """In the trio thread itself `run` and `close` raise instead of waiting for ever."""

    async def inside(thread: TrioThread[Resource]) -> None:
        with pytest.raises(RuntimeError, match="in that thread"):
            thread.run(trio.lowlevel.checkpoint)
        with pytest.raises(RuntimeError, match="in that thread"):
            thread.close()

    with opened() as thread:
        thread.run(inside, thread)
        assert not thread.stopped


def test_a_failing_resource_fails_its_calls_with_the_reason() -> None:
    """Calls under way, later ones and `close` tell what happened."""
    blocked, resource = Blocked(), Resource()
    with opened(resource) as thread:
        call = Background(lambda: thread.run(blocked))
        assert blocked.began.wait(SECONDS)

        async def break_down() -> None:
            resource.break_down.set()

        thread.call(break_down).start()
        with pytest.raises(RuntimeError, match=r"has failed.*it broke down"):
            call.result()
        for act in (lambda: thread.run(blocked), thread.close):
            with pytest.raises(RuntimeError, match="it broke down") as caught:
                act()
            assert isinstance(caught.value.__cause__, ExceptionGroup | ConnectionAbortedError)
        assert blocked.cleaned_up.is_set()


def test_close_gives_up_on_a_function_that_cannot_be_cancelled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It says so within its bound, and the thread ends once the function does."""
    monkeypatch.setattr(bridge, "CLOSE_SECONDS", 0.2)
    began, release = threading.Event(), trio.Event()

    async def stubborn() -> None:
        began.set()
        with trio.CancelScope(shield=True):
            await release.wait()

    with opened() as thread:
        call = Background(lambda: thread.run(stubborn))
        assert began.wait(SECONDS)
        with pytest.raises(RuntimeError, match="does not let itself be cancelled"):
            thread.close()
        with pytest.raises(trio.ClosedResourceError):
            call.result()
        thread._soon(release.set)
        monkeypatch.setattr(bridge, "CLOSE_SECONDS", SECONDS)


def test_a_call_can_be_cancelled_without_waiting() -> None:
    """What an asynchronous facade needs: start, cancel, and a callback in the end, once."""
    blocked, done = Blocked(), threading.Semaphore(0)
    with opened() as thread:
        call = thread.call(blocked)
        call.promise.when_done(done.release)
        call.start()
        assert blocked.began.wait(SECONDS)
        call.cancel()
        assert done.acquire(timeout=SECONDS)
        assert blocked.cancelled.is_set()
        with pytest.raises(RuntimeError, match="cancelled"):
            call.promise.result()
        call.cancel()  # too late, and no harm
    assert not done.acquire(blocking=False)


def test_a_call_cancelled_before_it_begins_never_begins() -> None:
    """Cancelling overtakes nothing, and still nothing runs."""
    blocked, done = Blocked(), threading.Event()
    with opened() as thread:
        call = thread.call(blocked)
        call.promise.when_done(done.set)
        call.cancel()
        call.start()
        assert done.wait(SECONDS)
    assert not blocked.began.is_set()


def test_a_call_started_after_the_end_is_done_at_once() -> None:
    """The callback comes in the starting thread then, and the promise tells why."""
    done = threading.Event()
    with opened() as thread:
        thread.close()
        call = thread.call(Blocked())
        call.promise.when_done(done.set)
        call.start()
        assert done.is_set()
        with pytest.raises(trio.ClosedResourceError):
            call.promise.result()


def test_a_value_that_comes_too_late_is_given_back() -> None:
    """Whether the call is cancelled before there is one, or when nobody has looked at it yet; once."""
    returned: list[int] = []
    may_end = trio.Event()

    async def value(number: int) -> int:
        with trio.CancelScope(shield=True):
            await may_end.wait()
        return number

    with opened() as thread:
        late = thread.call(value, 1, unwanted=returned.append)
        late.start()
        late.cancel()
        thread.run(trio.lowlevel.checkpoint)
        assert returned == []
        thread._soon(may_end.set)
        assert late.promise.wait(SECONDS)
        with pytest.raises(RuntimeError, match="cancelled"):
            late.promise.result()
        assert returned == [1]
        unseen = thread.call(value, 2, unwanted=returned.append)
        unseen.start()
        assert unseen.promise.wait(SECONDS)
        unseen.cancel()
        unseen.cancel()
        thread.run(trio.lowlevel.checkpoint)
        assert returned == [1, 2]
        assert thread.run(value, 3, unwanted=returned.append) == 3
    assert returned == [1, 2]


def test_an_interrupted_call_gives_its_value_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C comes when the value is there, and nobody has it yet."""
    returned: list[str] = []
    plain = Promise.wait

    async def value() -> str:
        return "precious"

    def interrupted(promise: Promise[object], seconds: float | None = None) -> bool:
        monkeypatch.setattr(Promise, "wait", plain)
        assert plain(promise, SECONDS)
        raise KeyboardInterrupt

    with opened() as thread:
        monkeypatch.setattr(Promise, "wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            thread.run(value, unwanted=returned.append)
        thread.run(trio.lowlevel.checkpoint)
    assert returned == ["precious"]


def test_an_error_meant_for_callers_comes_out_as_itself() -> None:
    """What ended the resource, if sandd raised it on purpose; a fresh one for each."""

    class Told(Resource):
        @contextlib.asynccontextmanager
        async def open(self) -> AsyncIterator[Resource]:
            async with Resource.open(self) as resource:
                yield resource
            raise sandd.AuthenticationFailed("not any more")

    thread = TrioThread(Told().open, name=NAME)
    thread.start()
    for _ in range(2):
        with pytest.raises(sandd.AuthenticationFailed, match="not any more"):
            thread.close()
    with pytest.raises(sandd.AuthenticationFailed):
        thread.run(trio.lowlevel.checkpoint)


# ---- Ctrl-C -------------------------------------------------------------------------------------


def interrupt_when(event: threading.Event) -> Background:
    """Send this process a SIGINT as soon as the event is set, as a Ctrl-C would."""

    def wait() -> None:
        assert event.wait(SECONDS)
        os.kill(os.getpid(), signal.SIGINT)

    return Background(wait)


@posix_only
def test_ctrl_c_interrupts_a_call_at_once_and_cancels_it() -> None:
    """KeyboardInterrupt doesn't wait for the clean-up, and the thread works on."""
    blocked = Blocked(cleans_up_when_told=True)
    with opened() as thread:
        interrupter = interrupt_when(blocked.began)
        with pytest.raises(KeyboardInterrupt):
            thread.run(blocked)
        assert not blocked.cleaned_up.is_set()
        interrupter.result()
        assert thread.run(trio.lowlevel.checkpoint) is None
        blocked.may_clean_up.set()
        assert blocked.cleaned_up.wait(SECONDS)


@posix_only
def test_a_second_ctrl_c_interrupts_close() -> None:
    """Whoever doesn't want to wait for the clean-up need not; it is done in the background."""
    blocked = Blocked(cleans_up_when_told=True)
    with opened() as thread:
        call = Background(lambda: thread.run(blocked))
        assert blocked.began.wait(SECONDS)
        interrupter = interrupt_when(blocked.cancelled)
        with pytest.raises(KeyboardInterrupt):
            thread.close()
        assert not blocked.cleaned_up.is_set()
        interrupter.result()
        blocked.may_clean_up.set()
        with pytest.raises(trio.ClosedResourceError):
            call.result()
        thread.close()
        assert blocked.cleaned_up.is_set()


@posix_only
def test_a_handlers_own_exception_interrupts_too() -> None:
    """What a program's own signal handler raises is treated as KeyboardInterrupt is."""

    class Stop(Exception):
        pass

    def handle(_number: int, _frame: object) -> None:
        raise Stop

    blocked = Blocked()
    previous = signal.signal(signal.SIGINT, handle)
    try:
        with opened() as thread:
            interrupter = interrupt_when(blocked.began)
            with pytest.raises(Stop):
                thread.run(blocked)
            interrupter.result()
            assert blocked.cancelled.wait(SECONDS)
    finally:
        signal.signal(signal.SIGINT, previous)


@posix_only
def test_ctrl_c_anywhere_in_a_call_harms_nothing() -> None:
    """A storm of interruptions at any instruction: no call hangs, and the thread stays whole."""
    stop = threading.Event()
    interruptions = 0

    def storm() -> None:
        while not stop.wait(0.0003):
            os.kill(os.getpid(), signal.SIGINT)

    def handle(_number: int, _frame: object) -> None:
        # Raised only while a call is under way: the test itself is not to be interrupted.
        nonlocal inside
        if inside:
            inside = False
            raise KeyboardInterrupt

    inside = False
    previous = signal.signal(signal.SIGINT, handle)
    try:
        with opened() as thread:
            storming = Background(storm)
            enough = time.monotonic() + 2.0
            # As many as fit into two seconds, and on a busy machine some in any case.
            while interruptions < 500 and (interruptions <= 20 or time.monotonic() < enough):
                try:
                    inside = True
                    thread.run(trio.sleep, 0)
                    inside = False
                except KeyboardInterrupt:
                    interruptions += 1
            stop.set()
            storming.result()
            assert thread.run(trio.lowlevel.checkpoint) is None
    finally:
        stop.set()
        signal.signal(signal.SIGINT, previous)
    assert interruptions > 20


# ---- promises -----------------------------------------------------------------------------------


def test_promise_wait_tells_whether_it_is_done() -> None:
    """False when the time is over, True as soon as somebody keeps it."""
    promise: Promise[int] = Promise()
    assert not promise.wait(0.01)
    waiters = [Background(lambda: promise.wait(SECONDS)) for _ in range(4)]
    assert promise.keep(1)
    assert all(each.result() for each in waiters)
    assert promise.wait(0)
    assert promise.result() == 1


def test_whoever_wants_to_be_told_is_told_once() -> None:
    """Before or after the promise is done, or while it is, from another thread."""
    for _ in range(300):
        promise: Promise[int] = Promise()
        told: list[int] = []
        early = partial(told.append, 1)
        promise.when_done(early)
        keeper = threading.Thread(target=promise.keep, args=(1,))
        keeper.start()
        promise.when_done(partial(told.append, 2))
        keeper.join()
        promise.when_done(partial(told.append, 3))
        assert sorted(told) == [1, 2, 3]


def test_promise_is_done_once() -> None:
    """The first outcome stays, and later ones are told that they came too late."""
    promise: Promise[int] = Promise()
    assert promise.fail(LookupError())
    assert not promise.keep(1)
    assert not promise.fail(ValueError())
    with pytest.raises(LookupError):
        promise.result()


# ---- the interpreter's exit ---------------------------------------------------------------------

EXITING = """
import contextlib, threading, trio
from sandd._core.bridge import TrioThread

@contextlib.asynccontextmanager
async def resource():
    try:
        yield
    finally:
        print("closed", flush=True)

thread = TrioThread(resource, name="forgotten")
thread.start()
began = threading.Event()

async def block():
    began.set()
    try:
        await trio.sleep_forever()
    finally:
        print("cancelled", flush=True)

def call():
    with contextlib.suppress(trio.ClosedResourceError):
        thread.run(block)

threading.Thread(target=call, daemon=True).start()
began.wait()
"""


@pytest.mark.parametrize(
    ("ending", "code"),
    [
        pytest.param("", 0, id="falls-off-the-end"),
        pytest.param("raise SystemExit(3)", 3, id="sys.exit"),
        pytest.param("raise LookupError", 1, id="an-exception"),
        pytest.param("del thread, call", 0, id="nobody-refers-to-it"),
    ],
)
def test_a_forgotten_thread_is_closed_at_exit(ending: str, code: int) -> None:
    """However the program ends, the call is cancelled, the resource closed, and nothing hangs."""
    done = subprocess.run(
        [sys.executable, "-c", EXITING + ending],
        env=daemon_environment(),
        capture_output=True,
        text=True,
        timeout=20,
    )

    assert done.returncode == code, done.stderr
    assert "cancelled" in done.stdout
    assert "closed" in done.stdout
    assert "Exception ignored" not in done.stderr
