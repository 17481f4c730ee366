"""A job as it is described to who isn't attached to it."""

from __future__ import annotations

import tracemalloc

import attrs
import pytest

from sandd import wire
from sandd._core.job import Job
from sandd._core.job_info import JobInfo, KeptOutput, describe
from sandd.wire import FailedCode, JobState, Outcome, Stream

KEY = ("t", "j")
SPEC = wire.CommandSpec((b"true",))


def job_of(*argv: bytes, shell: bool = False, detach: bool = False) -> Job:
    """A job that runs these words, asked for at 100."""
    spec = wire.CommandSpec(argv, shell=shell, detach=detach)
    job = Job(KEY, wire.encode_spec(spec), spec)
    job.asked_at = 100.0
    return job


def told(job: Job, now: float = 100.0) -> JobInfo:
    """What a client makes of what its daemon says, over the wire."""
    (record,) = wire.decode_answers(wire.encode_answer(describe(job, now)))
    assert isinstance(record, wire.JobRecord)
    return JobInfo.from_record(record)


def test_a_job_that_is_kept_takes_little() -> None:
    """Thousands may be: what its streams need is made when somebody asks for them, and given back."""
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        jobs = [Job(KEY, b"", SPEC) for _ in range(1000)]
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (after - before) / len(jobs) < 700
    job = jobs[0]
    assert job.outputs is job.outputs
    assert job.sends[Stream.EVENTS] is job.events
    job.abandon()
    job.abandon()
    assert not job.made_outputs
    with pytest.raises(AttributeError, match="a job has no colour"):
        job.colour  # type: ignore[attr-defined]  # noqa: B018 - to ask is what is tried


def test_a_job_that_waits_for_its_turn_has_nothing_yet() -> None:
    """No process, no output, no end; what was asked for, and when, is known."""
    assert told(job_of(b"sleep", b"9"), 103.0) == JobInfo(
        job_id="j",
        state=JobState.QUEUED,
        command=("sleep", "9"),
        pid=None,
        age=3.0,
        started_age=None,
        ended_age=None,
        outcome=None,
        exit_code=None,
        failure="",
        detached=False,
        terminal=False,
        owned=False,
        viewers=0,
        kept={"stdout": KeptOutput(0, 0), "stderr": KeptOutput(0, 0)},
    )


@pytest.mark.parametrize(("detach", "base"), [(False, 4), (True, 0)], ids=["owned", "detached"])
def test_a_job_that_runs_has_a_process_and_output(detach: bool, base: int) -> None:
    """What can be read begins where the owner has read to, or is all; and ends where was written to."""
    job = job_of(b"make | tee log", shell=True, detach=detach)
    job.started(42, 101.0)
    job.write(Stream.OUTPUT, b"0123456789")
    job.sends[Stream.OUTPUT].acknowledge(4)
    info = told(job, 103.5)
    assert (info.state, info.command, info.pid) == (JobState.RUNNING, "make | tee log", 42)
    assert (info.age, info.started_age, info.ended_age) == (3.5, 2.5, None)
    assert info.kept == {"stdout": KeptOutput(base, 10), "stderr": KeptOutput(0, 0)}
    assert info.detached is detach


@pytest.mark.parametrize(
    ("code", "signal", "shown"), [(3, None, 3), (0, None, 0), (None, 9, -9)], ids=repr
)
def test_a_job_that_ended_says_how(code: int | None, signal: int | None, shown: int) -> None:
    """Its exit code is the one its owner is told."""
    job = job_of(b"x")
    job.started(42, 101.0)
    job.exited(code=code, signal=signal, outcome=Outcome.EXITED, seconds=1.0, pipes_held=False)
    assert told(job, 104.0).ended_age == 0.0  # the table has yet to hear of it
    job.ended_at = 102.0
    info = told(job, 104.0)
    assert (info.state, info.outcome, info.exit_code) == (JobState.ENDED, Outcome.EXITED, shown)
    assert (info.age, info.started_age, info.ended_age) == (4.0, 3.0, 2.0)
    assert info.failure == ""


def test_a_job_that_failed_says_why() -> None:
    """There is no outcome and no code, but a reason."""
    job = job_of(b"x")
    job.failed(FailedCode.SPAWN, "No such file or directory" + "!" * 5000)
    info = told(job)
    assert (info.outcome, info.exit_code, info.pid) == (None, None, None)
    assert info.failure.startswith("spawn: No such file")
    assert len(info.failure) < 300


@pytest.mark.parametrize("shell", [True, False])
def test_a_long_command_is_cut(shell: bool) -> None:
    """However long it is, and of however many words, its description is short, and says that it is cut."""
    long = (b"x" * 5000,) if shell else (b"",) * 200_000
    job = job_of(*long, shell=shell)
    assert len(wire.encode_answer(describe(job, 0.0))) < 1000
    command = told(job).command
    assert command[-1] == "..." or (isinstance(command, str) and command.endswith("x..."))
    exactly = job_of(b"y" * wire.MAX_SHOWN_BYTES, shell=shell)
    assert "".join(told(exactly).command) == "y" * wire.MAX_SHOWN_BYTES


def test_a_command_that_is_no_text_is_shown_all_the_same() -> None:
    """Bytes that are no UTF-8 are replaced."""
    assert told(job_of(b"echo", b"\xff")).command == ("echo", "\ufffd")


def test_a_record_says_nothing_it_was_not_told() -> None:
    """Of a daemon that leaves everything out, what it says is still a description."""
    record = wire.JobRecord("j", JobState.ENDED, (), cut=True)
    assert JobInfo.from_record(record).command == ("...",)
    assert attrs.asdict(JobInfo.from_record(record))["kept"].keys() == {"stdout", "stderr"}
