"""Does what a daemon is asked to do itself: requests, which are jobs without a process.

A request takes no place among the commands that run at once, and waits behind none. Each is one
task; its answers go where a command's output goes, and what it is given comes as a command's input.
What can be asked for is said by those who can do it: see `Requests.offer`.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import trio

from sandd import wire
from sandd._core._errors import describe_system_error
from sandd._core.jobs import Effect, Effects, JobTable
from sandd._core.logs import get_logger
from sandd.wire import FailedCode, JobState, Outcome, Stream

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from sandd._core.job import Job

    Doer: TypeAlias = Callable[["Doing", Any], Awaitable[None]]
    """Does one kind of request: it is given what it is done with, and the spec."""

log = get_logger("requests")

PIECE_BYTES: Final = 128 * wire.KIB
"""What is read of INPUT at once, where nobody says otherwise."""


class RequestFailedError(Exception):
    """The request can't be fulfilled, and its client is told why; so it is by an OSError."""

    def __init__(self, code: FailedCode, message: str) -> None:
        super().__init__(message)
        self.code = code


class Doing:
    """A request that is being done: what its client gives it, and what it tells its client."""

    def __init__(self, job: Job, act: Callable[[Effects], None]) -> None:
        self.job = job
        self.scope = trio.CancelScope()
        """Cancelled when the request is taken back, or nobody came back for it in time."""
        self._act = act
        self._changed = trio.Event()

    @property
    def tenant(self) -> str:
        """Whose request it is."""
        return self.job.key[0]

    @property
    def is_given_up(self) -> bool:
        """Its client has taken it back, and will not ask for the same again. False while it is done."""
        return self.job.end_requested

    @property
    def is_ending(self) -> bool:
        """Its client left, or didn't come back: what it still does has a bound, and nobody reads."""
        return self.job.end_outcome is not None

    def started(self) -> None:
        """Tell its client that it stands: for those that go on, such as connections."""
        self.job.started(0, trio.current_time())
        self.job.tell_started()
        self._act([])

    async def write(self, *data: wire.Buffer) -> None:
        """Put out all of `data`, in a row; returns when it is on its way within the bounds of the ring.

        Of one that is ending nobody reads any more, so it is dropped.
        """
        for each in data:
            view = memoryview(each)
            while len(view) and not self.is_ending:
                room = self.job.room(Stream.OUTPUT)
                if room:
                    self.job.write(Stream.OUTPUT, view[:room])
                    view = view[room:]
                else:
                    self._act([])
                    await self._changed.wait()
        self._act([])

    async def answer(self, answer: wire.Answer) -> None:
        """Put out one answer, whole, as soon as there is room for it; sent with others, or by `send`."""
        data = wire.encode_answer(answer)
        while self.job.room(Stream.OUTPUT) < len(data):
            self._act([])
            await self._changed.wait()
        self.job.write(Stream.OUTPUT, data)

    def send(self) -> None:
        """Let the answers go; the end of the request does that, too."""
        self._act([])

    async def finish(self) -> None:
        """Nothing more will be put out, whatever is still read."""
        self.job.finish(Stream.OUTPUT)
        self._act([])

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until the condition holds; it is looked at whenever something happens to the job."""
        while not condition():
            await self._changed.wait()

    async def read(self, max_bytes: int = PIECE_BYTES) -> bytes:
        """What comes next on INPUT, at most `max_bytes`; b"" at its end.

        Each piece of one that is ending prolongs its grace: it has taken the one before.
        """
        await self._has_input(1)
        chunk = self.job.take_input(max_bytes)
        if chunk:
            self._act([])  # credit for what was taken
        return chunk

    async def read_pieces(self, max_bytes: int, *, at_least: int = 1) -> list[wire.Buffer]:
        """The same in the pieces that it came in, none at its end; it waits for so many bytes, or the end."""
        await self._has_input(at_least)
        pieces = self.job.take_input_pieces(max_bytes)
        if pieces:
            self._act([])
        return pieces

    async def _has_input(self, at_least: int) -> None:
        if self.is_ending:
            self.scope.deadline = trio.current_time() + self.job.end_grace
        arrived = self.job.input
        while arrived.final is None and arrived.received - arrived.consumed < at_least:
            await self._changed.wait()

    def wake(self) -> None:
        """Something happened to the job: whoever waits for it looks again."""
        changed, self._changed = self._changed, trio.Event()
        changed.set()


class Requests:
    """All requests under way on a daemon. Its nursery owns their tasks."""

    def __init__(
        self, table: JobTable, nursery: trio.Nursery, *, act: Callable[[Effects], None]
    ) -> None:
        self._table = table
        self._nursery = nursery
        self._act = act
        self._running: dict[Job, Doing] = {}
        self._doers: dict[type[wire.Request], Doer] = {}

    def offer(self, doers: Mapping[type[wire.Request], Doer]) -> None:
        """From now on requests of these kinds can be done."""
        self._doers.update(doers)

    def start(self, job: Job) -> None:
        """Do what the job asks for; it has ended when that is done."""
        doing = self._running[job] = Doing(job, self._act)
        self._nursery.start_soon(self._run, doing)

    def take(self, job: Job, effect: Effect) -> None:
        """Something happened to a job; nothing is done for one that has ended or is none of ours."""
        doing = self._running.get(job)
        if doing is None:
            return
        if effect is Effect.END:
            # What it was given may still be seen to, if that is whole: nothing is added from now on.
            if job.end_grace and job.input.final is not None:
                doing.scope.deadline = trio.current_time() + job.end_grace
            else:
                doing.scope.cancel()
        doing.wake()

    async def _run(self, doing: Doing) -> None:
        job = doing.job
        began = trio.current_time()
        try:
            with doing.scope:
                await self._do(doing)
            if doing.scope.cancelled_caught:
                job.failed(FailedCode.CANCELLED, "the request was taken back")
            else:
                job.exited(
                    code=0,
                    signal=None,
                    outcome=Outcome.EXITED,
                    seconds=trio.current_time() - began,
                    pipes_held=False,
                )
        except RequestFailedError as error:
            job.failed(error.code, str(error))
        except OSError as error:
            _tell_system_error(job, error)
        except Exception as error:  # a defect of ours must cost this request alone
            log.exception("request_crashed", job=job.key[1])
            job.failed(FailedCode.LOST, f"the daemon failed to do it: {error!r}")
        finally:
            del self._running[job]
            if job.state is JobState.ENDED:
                self._act(self._table.ended(job, trio.current_time()))

    async def _do(self, doing: Doing) -> None:
        spec = doing.job.spec
        doer = self._doers.get(type(spec))  # type: ignore[arg-type]  # those of programs are not among them
        if doer is None:
            raise RequestFailedError(
                FailedCode.DECLINED, f"this daemon does not do {type(spec).__name__}"
            )
        await doer(doing, spec)


def _tell_system_error(job: Job, error: OSError) -> None:
    number = error.errno or errno.EIO
    symbol, text, filename = describe_system_error(error)
    job.failed(
        FailedCode.SYSTEM,
        text or os.strerror(number),
        errno=number,
        symbol=symbol,
        filename=filename,
    )
