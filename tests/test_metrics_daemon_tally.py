"""What a daemon was asked to do: each job once, by what it is for and how it ended."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from scripted import control, cursors, data

from sandd import wire
from sandd._core.job import DaemonLink
from sandd._core.jobs import JobTable
from sandd._core.metrics.daemon_tally import DaemonTally, use_of_spec
from sandd._core.metrics.tallies import USES
from sandd._core.port_requests import AcceptedSpec
from sandd.wire import FailedCode, Outcome, RefusedCode, Stream

TRUE = wire.CommandSpec((b"true",))


class Daemon:
    """A table of jobs, and a link to it."""

    def __init__(self) -> None:
        self.table = JobTable("here")
        self.link = DaemonLink()
        self.channel = 0

    @property
    def tally(self) -> DaemonTally:
        """What it has counted."""
        return self.table.tally

    def attach(self, job_id: str, spec: wire.Spec | None = TRUE, **changes: Any) -> None:
        """An Attach arrives, on a channel of its own."""
        self.channel += 1
        spec_bytes = None if spec is None else wire.encode_spec(spec)
        message = wire.Attach("d", job_id, "c", cursors(), spec_bytes, "here", tenant="t")
        said = control(self.channel, attrs.evolve(message, **changes))
        self.table.receive(self.link, said, 0.0)

    def fail(self, job_id: str, code: FailedCode) -> None:
        """It can't be started."""
        job = self.table.jobs["t", job_id]
        job.failed(code, "no")
        self.table.ended(job, 0.0)

    def exit(self, job_id: str, outcome: Outcome = Outcome.EXITED) -> None:
        """It has ended."""
        job = self.table.jobs["t", job_id]
        job.exited(code=0, signal=None, outcome=outcome, seconds=1.0, pipes_held=False)
        self.table.ended(job, 0.0)


@pytest.fixture
def daemon() -> Daemon:
    """One without jobs."""
    return Daemon()


def test_a_command_is_counted_from_its_start_to_its_end(daemon: Daemon) -> None:
    """By how it ended, or why it has no exit code; an Attach to one that exists is none."""
    for name, outcome in (("a", Outcome.EXITED), ("b", Outcome.TIMED_OUT)):
        daemon.attach(name)
        daemon.exit(name, outcome)
    daemon.attach("c")
    daemon.fail("c", FailedCode.SPAWN)
    daemon.attach("c", None)
    assert daemon.tally.jobs_started == 3
    assert daemon.tally.jobs_ended == {"exited": 1, "timed_out": 1, "spawn": 1}


@pytest.mark.parametrize(
    ("spec", "use"),
    [
        (wire.DownloadSpec(b"/x"), "transfer"),
        (wire.ConnectSpec("localhost", 80), "forward"),
        (wire.JobsSpec(), "request"),
    ],
    ids=["download", "connect", "jobs"],
)
def test_a_request_is_counted_by_its_use(daemon: Daemon, spec: wire.Spec, use: str) -> None:
    """It is no job, and its end none of a job."""
    daemon.attach("a", spec)
    daemon.exit("a")
    assert {name: count for name, count in daemon.tally.requests.items() if count} == {use: 1}
    assert (daemon.tally.jobs_started, daemon.tally.jobs_ended) == (0, {})


def test_what_comes_to_a_listener_is_a_forward() -> None:
    """Though nobody ever asks for it."""
    accepted: Any = AcceptedSpec.__new__(AcceptedSpec)
    assert use_of_spec(accepted) == "forward"


def test_each_kind_has_a_use() -> None:
    """A new kind of job can't be forgotten."""
    assert {use_of_spec(cls.__new__(cls)) for cls in wire.SPEC_KINDS.values()} == set(USES)


def test_bytes_are_counted_as_they_pass(daemon: Daemon) -> None:
    """Output when it was put out, input when it was taken; not at the end, as a session may never have one."""
    daemon.attach("a")
    daemon.table.receive(daemon.link, data(1, Stream.INPUT, 0, b"abc"), 0.0)
    job = daemon.table.jobs["t", "a"]
    traffic = daemon.tally.traffic["program"]
    assert (traffic.to_daemons, traffic.to_clients) == (0, 0)
    assert job.take_input(2) == b"ab"
    job.write(Stream.OUTPUT, b"hello")
    job.write(Stream.ERROR, b"!")
    assert (traffic.to_daemons, traffic.to_clients) == (2, 6)


def test_what_is_refused_is_counted_by_its_code(daemon: Daemon) -> None:
    """By the policy, too."""
    daemon.attach("a", None)
    daemon.table._judge = lambda *_: wire.Refused(RefusedCode.POLICY_DENIED, "no")
    daemon.attach("b")
    assert daemon.tally.refused == {"job_not_found": 1, "policy_denied": 1}
    assert daemon.tally.jobs_started == 0
