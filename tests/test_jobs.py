"""The daemon's half: which jobs there are, who may do what with them, and what goes to whom."""

from __future__ import annotations

import gc
import re
import weakref
from typing import Any

import attrs
import pytest
from scripted import Bytes, Skip, control, cursors, data, drain, frame, gap, op, unknown

from sandd import wire
from sandd._core import jobs as jobs_module
from sandd._core import tombstones as tombstones_module
from sandd._core._errors import LocalProtocolError, RemoteProtocolError
from sandd._core.job import DaemonLink, Job
from sandd._core.jobs import INPUT_WINDOW, Effect, Effects, JobTable
from sandd._core.streams import RING_BYTES as RING
from sandd.wire import FailedCode, JobState, Outcome, RefusedCode, Role, Stream

ALICE, BOB = "a11ce00000000000", "b0b0000000000000"
FIRST = f"{ALICE}.1"
SPEC = wire.encode_spec(wire.CommandSpec(argv=(b"true",), kill_grace=5.0))
OTHER_SPEC = wire.encode_spec(wire.CommandSpec(argv=(b"false",)))


class Daemon:
    """A job table and one link to it."""

    def __init__(self, table: JobTable | None = None) -> None:
        self.table = table or JobTable("here")
        self.link = DaemonLink()
        self.now = 0.0

    def receive(self, received: wire.Frame) -> Effects:
        """A frame arrives."""
        return self.table.receive(self.link, received, self.now)

    def attach(self, channel: int = 1, job_id: str = FIRST, **changes: Any) -> Effects:
        """An Attach arrives: Alice's start of a job, but for the `changes`."""
        message = wire.Attach("d", job_id, ALICE, cursors(), SPEC, "here", tenant="t")
        return self.receive(control(channel, attrs.evolve(message, **changes)))

    def resume(self, channel: int = 1, job_id: str = FIRST, **changes: Any) -> Effects:
        """An Attach to a job that exists."""
        return self.attach(channel, job_id, **{"spec": None, "instance": "", **changes})

    def end(self, job_id: str = FIRST, **changes: Any) -> Effects:
        """An End arrives."""
        return self.receive(control(0, wire.End("d", job_id, **{"tenant": "t", **changes})))

    def heard(self) -> list[tuple[int, Any]]:
        """What the daemon says on the link."""
        return drain(self.link.scheduler)

    def job(self, job_id: str = FIRST) -> Job:
        """A job of the table."""
        return self.table.jobs["t", job_id]

    def tick(self, seconds: float) -> Effects:
        """Time passes, in steps no lease overlooks."""
        effects = self.table.tick(self.now)
        for _ in range(round(seconds / jobs_module.LONGEST_TICK)):
            self.now += jobs_module.LONGEST_TICK
            effects += self.table.tick(self.now)
        return effects

    def restarted_link(self) -> Daemon:
        """A second link to the same table."""
        other = Daemon(self.table)
        other.now = self.now
        return other


def complaint_about(daemon: Daemon, channel: int) -> str:
    """Why the daemon has closed that channel, which it says last."""
    *_, (number, message) = daemon.heard()
    assert number == channel
    assert isinstance(message, wire.Refused)
    assert message.code is RefusedCode.DENIED
    return message.message


@pytest.fixture
def daemon() -> Daemon:
    """A daemon without jobs, and a link to it."""
    return Daemon()


def exit_with(job: Job, code: int = 0) -> None:
    """The job's process ends by itself."""
    job.exited(code=code, signal=None, outcome=Outcome.EXITED, seconds=1.5, pipes_held=False)


def refusal(heard: list[tuple[int, Any]], channel: int) -> RefusedCode:
    """Why the channel's Attach was turned down; nothing else was said."""
    ((number, answer),) = heard
    assert number == channel
    assert isinstance(answer, wire.Refused)
    return answer.code


# ---- starting ------------------------------------------------------------------------------------


def test_attach_with_a_spec_starts_the_job(daemon: Daemon) -> None:
    """The first Attach creates the job, has it started once, and opens the channel."""
    ((job, effect),) = daemon.attach()
    assert effect is Effect.START
    assert job is daemon.job()
    assert (job.key, job.state, job.spec.argv) == (("t", FIRST), JobState.QUEUED, (b"true",))
    ((channel, attached),) = daemon.heard()
    assert channel == 1
    assert isinstance(attached, wire.Attached)
    assert (attached.role, attached.generation, attached.state) == (Role.OWNER, 1, JobState.QUEUED)
    # What is not named stands at 0, with a new job's credit.
    assert attached.streams == (wire.StreamState(Stream.INPUT, max_offset=INPUT_WINDOW),)


def test_a_job_without_input_needs_no_stream_named(daemon: Daemon) -> None:
    """The answer to the start of a command that reads nothing is as short as can be."""
    daemon.attach(spec=wire.encode_spec(wire.CommandSpec(argv=(b"true",), stdin=False)))
    assert daemon.heard() == [(1, wire.Attached())]


PLAIN_SPEC = wire.encode_spec(wire.CommandSpec(argv=(b"true",), stdin=False))


def test_a_process_is_asked_for_before_its_start_is_answered(daemon: Daemon) -> None:
    """Who acts on the effects as they come has the process under way before the channel is made."""
    message = wire.Attach("d", FIRST, ALICE, (), PLAIN_SPEC, "here", tenant="t")
    steps = iter(daemon.table.steps(daemon.link, control(1, message), 0.0))
    assert next(steps) == (daemon.job(), Effect.START)
    assert daemon.link.attachments == {}
    assert daemon.heard() == []
    assert list(steps) == []
    assert daemon.heard() == [(1, wire.Attached())]


@pytest.mark.parametrize("what", ["started", "exited", "failed"])
def test_the_first_event_says_that_the_start_was_taken(daemon: Daemon, what: str) -> None:
    """Where the answer would say nothing new and an event is there in time, the answer is left out."""
    daemon.attach(spec=PLAIN_SPEC, cursors=())
    job = daemon.job()
    if what == "failed":
        job.failed(FailedCode.SPAWN, "no such file")
    else:
        job.started(7)
        job.tell_started()
    if what == "exited":
        exit_with(job)
    expected = {
        "started": [wire.Started],
        "exited": [wire.Started, wire.Exited],
        "failed": [wire.Failed],
    }
    assert [type(message) for _, message in daemon.heard()] == expected[what]


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"cursors": cursors()}, id="cursors"),
        pytest.param({"role": Role.VIEWER}, id="a viewer"),
        pytest.param({"spec": wire.encode_spec(wire.CommandSpec((b"true",)))}, id="input"),
        pytest.param(
            {"spec": wire.encode_spec(wire.CommandSpec((b"true",), stdin=False, detach=True))},
            id="detached",
        ),
    ],
)
def test_an_answer_that_says_something_is_given(daemon: Daemon, changes: dict[str, Any]) -> None:
    """Whatever is not as the client would suppose comes first, in words."""
    daemon.attach(**{"spec": PLAIN_SPEC, "cursors": (), **changes})
    daemon.job().started(7)
    exit_with(daemon.job())
    (_, first), *_ = daemon.heard()
    assert isinstance(first, wire.Attached)


def test_a_second_start_is_answered_whatever_has_happened(daemon: Daemon) -> None:
    """Only who created the job knows what its answer would say."""
    daemon.attach(spec=PLAIN_SPEC, cursors=())
    daemon.job().started(7)
    daemon.heard()
    daemon.attach(2, spec=PLAIN_SPEC, cursors=())
    assert (2, wire.Attached(state=JobState.RUNNING)) in [
        (
            number,
            attrs.evolve(message, streams=()) if isinstance(message, wire.Attached) else message,
        )
        for number, message in daemon.heard()
    ]


def test_attach_twice_starts_once(daemon: Daemon) -> None:
    """(5) The same start again, on whatever link, is an attachment to the job that runs."""
    daemon.attach()
    second = daemon.restarted_link()
    assert daemon.attach(2) == []
    assert second.attach(1) == []
    assert len(daemon.table.jobs) == 1


def test_attach_with_another_spec_is_a_conflict(daemon: Daemon) -> None:
    """The same id with another spec runs nothing, and touches no attachment."""
    daemon.attach()
    owner = daemon.job().owner
    daemon.heard()
    for changes in ({}, {"takeover": True}, {"role": Role.VIEWER}, {"client": BOB}):
        effects = daemon.attach(daemon.link.last_channel + 1, spec=OTHER_SPEC, **changes)
        assert effects == []
        assert refusal(daemon.heard(), daemon.link.last_channel) is RefusedCode.JOB_ID_CONFLICT
    assert daemon.job().owner is owner


def test_jobs_of_other_tenants_are_absent(daemon: Daemon) -> None:
    """Another tenant's id can't be told from one that doesn't exist, nor is it taken by it."""
    daemon.attach()
    daemon.heard()
    daemon.resume(2, tenant="u")
    assert refusal(daemon.heard(), 2) is RefusedCode.JOB_NOT_FOUND
    assert daemon.end(tenant="u") == []
    ((job, effect),) = daemon.attach(3, job_id="chosen", tenant="u")
    assert effect is Effect.START
    assert job.key == ("u", "chosen")


def test_attach_without_a_spec_needs_the_job(daemon: Daemon) -> None:
    """Nothing is created for who doesn't say what to run."""
    assert daemon.resume() == []
    assert refusal(daemon.heard(), 1) is RefusedCode.JOB_NOT_FOUND
    assert daemon.resume(2, instance="here") == []
    assert refusal(daemon.heard(), 2) is RefusedCode.JOB_NOT_FOUND
    assert daemon.table.jobs == {}


@pytest.mark.parametrize("spec", [pytest.param(SPEC, id="spec"), pytest.param(None, id="no spec")])
def test_what_was_sent_to_another_instance_is_lost(daemon: Daemon, spec: bytes | None) -> None:
    """(5) A job that went to a former process of this daemon may have run: it never starts here."""
    assert daemon.attach(spec=spec, instance="before") == []
    assert refusal(daemon.heard(), 1) is RefusedCode.LOST
    assert daemon.table.jobs == {}


def test_a_spec_this_daemon_cannot_do_is_refused(daemon: Daemon) -> None:
    """An unsupported spec costs its own job, not the link; the id stays free."""
    assert daemon.attach(spec=b"?") == []
    assert refusal(daemon.heard(), 1) is RefusedCode.UNSUPPORTED
    assert [effect for _, effect in daemon.attach(2)] == [Effect.START]


def test_an_ownership_that_is_gone_starts_nothing(daemon: Daemon) -> None:
    """Who resumes a job, or has read of it, wants that one: it isn't started in its place."""
    assert daemon.attach(1, generation=1) == []
    assert refusal(daemon.heard(), 1) is RefusedCode.JOB_NOT_FOUND
    assert daemon.attach(2, cursors=cursors(output=5)) == []
    assert refusal(daemon.heard(), 2) is RefusedCode.JOB_NOT_FOUND
    assert daemon.table.jobs == {}


def test_a_full_daemon_denies_new_jobs(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond MAX_JOBS nothing starts, while what runs can still be attached to."""
    monkeypatch.setattr(jobs_module, "MAX_JOBS", 1)
    daemon.attach()
    daemon.heard()
    assert daemon.attach(2, job_id=f"{ALICE}.2") == []
    assert refusal(daemon.heard(), 2) is RefusedCode.DENIED
    daemon.resume(3)
    assert isinstance(daemon.heard()[-1][1], wire.Attached)


def test_while_no_chosen_id_can_be_remembered_none_starts(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full memory of chosen ids refuses new ones, generated ids go on, and a day later all is well."""
    monkeypatch.setattr(tombstones_module, "MAX_CHOSEN", 2)
    daemon.end("one")
    daemon.end("two")
    daemon.attach(1, job_id="three")
    assert refusal(daemon.heard(), 1) is RefusedCode.DENIED
    assert [effect for _, effect in daemon.attach(2)] == [Effect.START]
    daemon.heard()
    daemon.now += tombstones_module.KEEP_SECONDS
    assert [effect for _, effect in daemon.attach(3, job_id="three")] == [Effect.START]


# ---- attaching -----------------------------------------------------------------------------------


def test_a_resumed_channel_goes_on_at_its_offset(daemon: Daemon) -> None:
    """(1) Each stream continues where the client says it is, and the answer says where everything is."""
    daemon.attach()
    job = daemon.job()
    job.started(7)
    job.tell_started()
    job.write(Stream.OUTPUT, b"0123456789")
    job.write(Stream.ERROR, b"abc")
    daemon.receive(data(1, Stream.INPUT, 0, b"input"))
    daemon.receive(op(1, 0, wire.Signal("INT")))
    daemon.table.close_link(daemon.link, 0.0)
    again = daemon.restarted_link()
    again.resume(cursors=cursors(output=4, error=3, events=1), generation=1)
    (attached, *rest) = [said for _, said in again.heard()]
    states = {state.stream: state for state in attached.streams}
    assert states[Stream.OUTPUT] == wire.StreamState(Stream.OUTPUT, end=10, start=4)
    assert states[Stream.ERROR] == wire.StreamState(Stream.ERROR, end=3, start=3)
    assert states[Stream.INPUT].received == 5
    assert states[Stream.OPS].received == 1
    assert attached.state is JobState.RUNNING
    assert rest == [Bytes(Stream.OUTPUT, 4, b"456789")]


def test_attach_without_offsets_begins_at_the_oldest_kept(daemon: Daemon) -> None:
    """Who was never there gets everything that is kept: nothing below what the owner has."""
    daemon.attach()
    job = daemon.job()
    job.started(7)
    job.tell_started()
    job.write(Stream.OUTPUT, b"0123456789")
    daemon.heard()
    daemon.receive(control(1, wire.Window((wire.StreamWindow(Stream.OUTPUT, 6, wire.MIB),))))
    daemon.resume(
        2, client=BOB, role=Role.VIEWER, cursors=cursors(output=None, error=None, events=None)
    )
    ((channel, attached), *rest) = daemon.heard()
    assert (channel, attached.role) == (2, Role.VIEWER)
    (output,) = [state for state in attached.streams if state.stream is Stream.OUTPUT]
    assert output == wire.StreamState(Stream.OUTPUT, base=6, floor=6, end=10, start=6)
    assert rest == [(2, wire.Started(7)), (2, Bytes(Stream.OUTPUT, 6, b"6789"))]


def test_attach_below_the_oldest_kept_gets_a_gap_first(daemon: Daemon) -> None:
    """(2) Who asks for bytes that are gone is told exactly which, and gets all the rest."""
    daemon.attach()
    daemon.job().write(Stream.OUTPUT, b"0123456789")
    daemon.heard()
    daemon.receive(control(1, wire.Window((wire.StreamWindow(Stream.OUTPUT, 6, wire.MIB),))))
    daemon.resume(2, client=BOB, role=Role.VIEWER, cursors=cursors(output=2))
    said = [said for channel, said in daemon.heard() if channel == 2]
    assert said[1:] == [Skip(Stream.OUTPUT, 2, 6), Bytes(Stream.OUTPUT, 6, b"6789")]


def test_attach_beyond_the_end_is_refused(daemon: Daemon) -> None:
    """An offset that was never reached costs the Attach, not the link and all that is on it."""
    daemon.attach()
    daemon.job().write(Stream.OUTPUT, b"0123456789")
    daemon.heard()
    daemon.resume(2, client=BOB, role=Role.VIEWER, cursors=cursors(output=11))
    assert refusal(daemon.heard(), 2) is RefusedCode.DENIED
    daemon.resume(3, client=BOB, takeover=True, cursors=cursors(output=11))
    assert refusal(daemon.heard(), 3) is RefusedCode.DENIED
    assert daemon.job().client == ALICE


@pytest.mark.parametrize("role", Role)
def test_attach_to_a_job_that_was_forgotten_is_refused(daemon: Daemon, role: Role) -> None:
    """A client that was cut off while its job was ended learns so; its old offsets do no harm."""
    daemon.attach()
    job = daemon.job()
    job.started(7)
    job.write(Stream.OUTPUT, b"0123456789")
    exit_with(job)
    daemon.end()
    daemon.heard()
    daemon.resume(2, cursors=cursors(output=10, events=2), generation=1, role=role)
    assert refusal(daemon.heard(), 2) is RefusedCode.JOB_NOT_FOUND


@pytest.mark.parametrize(
    "asked",
    [
        pytest.param((wire.Cursor(Stream.INPUT, 5),), id="wrong way"),
        pytest.param((wire.Cursor(Stream.OUTPUT, 5), wire.Cursor(Stream.OUTPUT, 6)), id="twice"),
    ],
)
def test_attach_with_senseless_cursors_is_refused(
    daemon: Daemon, asked: tuple[wire.Cursor, ...]
) -> None:
    """What no client can mean creates no job, and costs nobody else on the link anything."""
    daemon.attach(cursors=asked)
    assert "twice, or the wrong way" in complaint_about(daemon, 1)
    assert daemon.table.jobs == {}


def test_channel_numbers_only_rise(daemon: Daemon) -> None:
    """A channel number is used once on a link; 0 is the link's own."""
    with pytest.raises(RemoteProtocolError, match="behind 0"):
        daemon.attach(0)
    daemon.attach(5)
    for number in (5, 4):
        with pytest.raises(RemoteProtocolError, match="behind 5"):
            daemon.attach(number, job_id="another")
    assert list(daemon.table.jobs) == [("t", FIRST)]
    daemon.attach(9, job_id="another")


def test_output_goes_to_all_who_are_attached(daemon: Daemon) -> None:
    """(1) Owner and viewers get every byte and event, each by its own cursor."""
    daemon.attach()
    daemon.resume(2, client=BOB, role=Role.VIEWER)
    daemon.heard()
    job = daemon.job()
    job.started(7)
    job.tell_started()
    job.tell_started()
    job.write(Stream.OUTPUT, b"out")
    job.write(Stream.ERROR, b"err")
    exit_with(job, 3)
    finals = {Stream.OUTPUT: 3, Stream.ERROR: 3}
    expected = [
        wire.Started(7),
        wire.Exited(3, None, Outcome.EXITED, 1.5, False, finals),
        Bytes(Stream.OUTPUT, 0, b"out", True),
        Bytes(Stream.ERROR, 0, b"err", True),
    ]
    heard = daemon.heard()
    for channel in (1, 2):
        assert [said for number, said in heard if number == channel] == expected


def test_an_attach_without_cursors_gets_every_stream(daemon: Daemon) -> None:
    """All from its beginning, within the initial credit."""
    daemon.attach(cursors=())
    job = daemon.job()
    job.started(1)
    job.tell_started()
    job.write(Stream.OUTPUT, b"x")
    (channel,) = [attachment.channel for attachment in daemon.link.attachments.values()]
    credit = {stream: cursor.max_offset for stream, cursor in channel.send.items()}
    assert credit == {
        Stream.EVENTS: wire.MESSAGE_WINDOW,
        Stream.OUTPUT: wire.INITIAL_OUTPUT_BYTES,
        Stream.ERROR: wire.INITIAL_OUTPUT_BYTES,
    }
    ((_, attached), *rest) = daemon.heard()
    assert isinstance(attached, wire.Attached)
    assert rest == [(1, wire.Started(1)), (1, Bytes(Stream.OUTPUT, 0, b"x"))]


def test_a_start_is_told_with_the_end_that_comes_at_once(daemon: Daemon) -> None:
    """One event tells both; the pid is not lost, and no stream needs a frame of its own to end."""
    daemon.attach(cursors=())
    daemon.heard()
    daemon.job().started(7)
    exit_with(daemon.job())
    assert daemon.heard() == [
        (1, wire.Exited(0, None, Outcome.EXITED, 1.5, False, finals={}, pid=7))
    ]


def test_a_job_lost_after_its_start_was_started(daemon: Daemon) -> None:
    """Who hears of a failure knows whether the process ran."""
    daemon.attach(cursors=())
    daemon.heard()
    daemon.job().started(7)
    daemon.job().failed(FailedCode.LOST, "gone")
    assert [said for _, said in daemon.heard()] == [
        wire.Started(7),
        wire.Failed(FailedCode.LOST, "gone"),
    ]


def test_an_end_on_a_channel_closes_it(daemon: Daemon) -> None:
    """Leaving a job that has ended is one message; one that runs is killed, and its owner is detached."""
    daemon.attach(1)
    daemon.attach(2, job_id=f"{ALICE}.2")
    exit_with(daemon.job())
    daemon.heard()
    end = wire.End("d", FIRST, None, ALICE, "t")
    assert [effect for _, effect in daemon.receive(control(1, end))] == [Effect.FORGOTTEN]
    running = daemon.job(f"{ALICE}.2")
    end = wire.End("d", f"{ALICE}.2", None, ALICE, "t")
    assert daemon.receive(control(2, end)) == [(running, Effect.END)]
    assert running.owner is None
    assert not daemon.link.attachments
    with pytest.raises(RemoteProtocolError, match="never opened"):
        daemon.receive(control(3, end))


# ---- owners --------------------------------------------------------------------------------------


def test_a_job_has_one_owner_at_a_time(daemon: Daemon) -> None:
    """Another client is refused while the owner is attached, and is the owner once it has left."""
    daemon.attach()
    daemon.heard()
    daemon.resume(2, client=BOB)
    ((_, refused),) = daemon.heard()
    assert refused.code is RefusedCode.BUSY
    assert "takeover=True" in refused.message
    daemon.receive(control(1, wire.Detach()))
    daemon.resume(3, client=BOB)
    ((_, attached),) = daemon.heard()
    assert attached.generation == 2
    assert daemon.job().client == BOB


@pytest.mark.parametrize("role", Role)
def test_nothing_is_sent_on_a_channel_that_was_closed(daemon: Daemon, role: Role) -> None:
    """What was due to somebody who left is not sent any more, whoever else is attached."""
    daemon.attach()
    daemon.resume(2, client=BOB, role=Role.VIEWER)
    daemon.heard()
    daemon.job().write(Stream.OUTPUT, b"x")
    left, stays = (1, 2) if role is Role.OWNER else (2, 1)
    daemon.receive(control(left, wire.Detach()))
    assert daemon.heard() == [(stays, Bytes(Stream.OUTPUT, 0, b"x"))]


def test_takeover_tells_the_loser(daemon: Daemon) -> None:
    """The owner that is displaced hears Taken, and its channel is closed."""
    daemon.attach()
    daemon.heard()
    daemon.resume(2, client=BOB, takeover=True)
    (told, answer) = daemon.heard()
    assert told == (1, wire.Taken())
    assert answer[0] == 2
    assert answer[1].generation == 2
    daemon.job().write(Stream.OUTPUT, b"x")
    assert daemon.heard() == [(2, Bytes(Stream.OUTPUT, 0, b"x"))]


def test_late_frames_of_the_loser_have_no_effect(daemon: Daemon) -> None:
    """What the former owner had under way is dropped, and is no error."""
    daemon.attach()
    job = daemon.job()
    job.write(Stream.OUTPUT, b"0123456789")
    daemon.heard()
    daemon.receive(data(1, Stream.INPUT, 0, b"alice"))
    daemon.resume(2, client=BOB, takeover=True)
    daemon.heard()
    for late in (
        data(1, Stream.INPUT, 5, b"late"),
        data(1, Stream.INPUT, 5, final=True),
        op(1, 0, wire.Signal("KILL")),
        control(1, wire.Window((wire.StreamWindow(Stream.OUTPUT, 10, wire.MIB),))),
        control(1, wire.Detach()),
        control(0, wire.End("d", FIRST, 0.0, tenant="t", client=ALICE)),
    ):
        assert daemon.receive(late) == []
    assert (job.input.received, job.input.final, job.ops.received) == (5, None, 0)
    assert job.sends[Stream.OUTPUT].floor == 0
    assert (job.end_requested, job.end_outcome) == (False, None)
    assert job.owner is daemon.link.attachments[2]
    assert daemon.heard() == []


def test_the_loser_cannot_come_back_as_the_owner(daemon: Daemon) -> None:
    """A client that lost the job while it was cut off is told so, even if the new owner has left."""
    daemon.attach()
    daemon.resume(2, client=BOB, takeover=True)
    daemon.heard()
    daemon.resume(3, generation=1)
    assert refusal(daemon.heard(), 3) is RefusedCode.TAKEN
    daemon.receive(control(2, wire.Detach()))
    daemon.resume(4, generation=1)
    assert refusal(daemon.heard(), 4) is RefusedCode.TAKEN
    daemon.resume(5, role=Role.VIEWER, generation=1)
    ((_, attached),) = daemon.heard()
    assert attached.role is Role.VIEWER
    daemon.resume(6, takeover=True)
    assert daemon.heard()[-1][1].generation == 3


def test_an_attach_that_comes_late_has_no_effect(daemon: Daemon) -> None:
    """(8) It was under way on a connection that its client has given up for the one it attached on since."""
    daemon.attach(1, attempt=2)
    daemon.heard()
    daemon.attach(2, attempt=1)
    assert refusal(daemon.heard(), 2) is RefusedCode.TAKEN
    daemon.resume(3, client=BOB, takeover=True, attempt=6)
    daemon.resume(4, takeover=True, attempt=3)
    owner = daemon.job().owner
    daemon.heard()
    daemon.resume(5, client=BOB, takeover=True, attempt=5)
    assert refusal(daemon.heard(), 5) is RefusedCode.TAKEN
    assert daemon.job().owner is owner
    daemon.resume(6, role=Role.VIEWER, attempt=1)  # who looks on takes nothing from anybody
    assert isinstance(daemon.heard()[0][1], wire.Attached)


def test_of_many_owners_the_latest_are_remembered(daemon: Daemon) -> None:
    """A job that goes from hand to hand doesn't grow."""
    daemon.attach(1, attempt=1)
    for number in range(2, 40):
        daemon.resume(number, client=f"{number:016x}", takeover=True, attempt=number)
    owners = list(daemon.job().attempts)
    assert owners == [f"{number:016x}" for number in range(40 - jobs_module.MAX_ATTEMPTS, 40)]


def test_who_started_a_job_and_never_heard_of_it_may_have_lost_it(daemon: Daemon) -> None:
    """(7) A start that is repeated because its answer was lost doesn't mix input with a later owner's."""
    daemon.attach()  # the answer is lost
    daemon.table.close_link(daemon.link, 0.0)
    again = daemon.restarted_link()
    again.attach(1)
    assert again.heard()[-1][1].generation == 1
    again.resume(2, client=BOB, takeover=True)
    again.receive(data(2, Stream.INPUT, 0, b"bob"))
    again.receive(control(2, wire.Detach()))
    again.heard()
    again.attach(3)
    assert refusal(again.heard(), 3) is RefusedCode.TAKEN
    again.resume(4)
    assert again.heard()[-1][1].generation == 3


def test_the_same_client_resumes_on_a_new_link_while_the_old_one_is_open(daemon: Daemon) -> None:
    """A client whose old link isn't known to be dead yet goes on at once; the old link closes without effect."""
    daemon.attach()
    job = daemon.job()
    daemon.receive(data(1, Stream.INPUT, 0, b"abc"))
    daemon.heard()
    fresh = daemon.restarted_link()
    fresh.resume(generation=1)
    ((_, attached),) = fresh.heard()
    assert attached.generation == 1
    assert daemon.receive(data(1, Stream.INPUT, 3, b"late")) == []
    assert daemon.table.close_link(daemon.link, 0.0) == []
    assert job.owner is fresh.link.attachments[1]
    job.write(Stream.OUTPUT, b"x")
    assert fresh.heard() == [(1, Bytes(Stream.OUTPUT, 0, b"x"))]


def test_whoever_is_displaced_is_told(daemon: Daemon) -> None:
    """(7) A second owner from the same client neither leaves the first waiting, nor shares with it."""
    daemon.attach()
    daemon.heard()
    daemon.resume(2)
    assert [said for channel, said in daemon.heard() if channel == 1] == [wire.Taken()]
    daemon.table.close_link(daemon.link, 0.0)  # before the first has heard it
    again = daemon.restarted_link()
    again.resume(1, generation=1)
    assert refusal(again.heard(), 1) is RefusedCode.TAKEN
    again.resume(2, generation=2)
    assert isinstance(again.heard()[0][1], wire.Attached)


def test_a_start_that_is_repeated_stays_the_same_ownership(daemon: Daemon) -> None:
    """However often its answer is lost, who started the job owns it as from the beginning."""
    for channel in (1, 2, 3):
        daemon.attach(channel)
        assert daemon.heard()[-1][1].generation == 1


def test_a_new_owner_gets_what_the_former_had_not(daemon: Daemon) -> None:
    """(1) All that the former owner hadn't acknowledged is the new one's to read, and its input goes on behind."""
    daemon.attach()
    job = daemon.job()
    job.write(Stream.OUTPUT, b"0123456789")
    daemon.receive(data(1, Stream.INPUT, 0, b"alice"))
    daemon.heard()
    daemon.receive(control(1, wire.Window((wire.StreamWindow(Stream.OUTPUT, 3, wire.MIB),))))
    daemon.resume(2, client=BOB, takeover=True, cursors=cursors(output=None))
    said = [said for channel, said in daemon.heard() if channel == 2]
    states = {state.stream: state for state in said[0].streams}
    assert states[Stream.INPUT].received == 5
    assert said[-1] == Bytes(Stream.OUTPUT, 3, b"3456789")
    daemon.receive(data(2, Stream.INPUT, 5, b"bob"))
    assert job.take_input(100) == b"alicebob"


def test_viewers_change_nothing(daemon: Daemon) -> None:
    """A viewer's ack frees nothing, and it can neither write nor signal."""
    daemon.attach()
    job = daemon.job()
    job.write(Stream.OUTPUT, b"0123456789")
    daemon.resume(2, client=BOB, role=Role.VIEWER)
    daemon.heard()
    window = wire.Window((wire.StreamWindow(Stream.OUTPUT, 10, wire.MIB),))
    assert daemon.receive(control(2, window)) == []
    assert job.sends[Stream.OUTPUT].floor == 0
    daemon.receive(data(2, Stream.INPUT, 0, b"x"))
    assert "does not flow this way" in complaint_about(daemon, 2)
    daemon.resume(3, client=BOB, role=Role.VIEWER)
    daemon.heard()
    daemon.receive(op(3, 0, wire.Signal("KILL")))
    assert "does not flow this way" in complaint_about(daemon, 3)
    assert job.owner is not None
    assert (job.input.received, job.ops.received, job.viewers) == (0, 0, {})


def test_a_viewer_that_reads_nothing_holds_nobody_back(daemon: Daemon) -> None:
    """(10) Without credit a viewer is overtaken; owner and process go on as if it weren't there."""
    daemon.attach()
    daemon.resume(2, client=BOB, role=Role.VIEWER, cursors=cursors(credit=4))
    job = daemon.job()
    sent = b""
    for round_ in range(5):
        job.write(Stream.OUTPUT, bytes([round_]) * RING)
        assert job.room(Stream.OUTPUT) == job.outputs[Stream.OUTPUT].window - RING
        heard = [said for channel, said in daemon.heard() if channel == 1]
        sent += b"".join(said.body for said in heard if isinstance(said, Bytes))
        window = wire.StreamWindow(Stream.OUTPUT, len(sent), len(sent) + wire.MIB)
        daemon.receive(control(1, wire.Window((window,))))
    assert len(sent) == 5 * RING
    assert daemon.heard() == []
    granted = wire.StreamWindow(Stream.OUTPUT, 4, 8)
    daemon.receive(control(2, wire.Window((granted,))))
    assert daemon.heard() == [(2, Skip(Stream.OUTPUT, 4, 5 * RING))]


# ---- input and ops -------------------------------------------------------------------------------


def test_input_comes_in_order_and_grants_new_credit(daemon: Daemon) -> None:
    """(7) The process gets what was written; what it takes is acknowledged and granted anew."""
    daemon.attach()
    job = daemon.job()
    daemon.heard()
    chunk = bytes(100 * wire.KIB)
    assert daemon.receive(data(1, Stream.INPUT, 0, chunk)) == [(job, Effect.INPUT)]
    assert daemon.receive(data(1, Stream.INPUT, len(chunk), chunk, final=True))
    assert daemon.heard() == []
    assert len(job.take_input(wire.MIB)) == 200 * wire.KIB
    assert job.input.at_end
    assert job.take_input(10) == b""


def test_credit_of_input_follows_what_the_process_takes(daemon: Daemon) -> None:
    """Acks mean handed to the process: none for what merely arrived."""
    daemon.attach()
    job = daemon.job()
    daemon.heard()
    daemon.receive(data(1, Stream.INPUT, 0, bytes(wire.ACK_EVERY_BYTES)))
    job.take_input(wire.ACK_EVERY_BYTES - 1)
    assert daemon.heard() == []
    job.take_input(1)
    end = wire.ACK_EVERY_BYTES
    taken = wire.StreamWindow(Stream.INPUT, end, end + INPUT_WINDOW)
    assert daemon.heard() == [(1, wire.Window((taken,)))]


def test_input_beyond_its_credit_costs_the_channel(daemon: Daemon) -> None:
    """What the daemon holds for a process that doesn't read is bounded."""
    daemon.attach()
    job = daemon.job()
    for start in range(0, INPUT_WINDOW, wire.MAX_DATA_BYTES):
        daemon.receive(data(1, Stream.INPUT, start, bytes(wire.MAX_DATA_BYTES)))
    daemon.heard()
    daemon.receive(data(1, Stream.INPUT, INPUT_WINDOW, b"x"))
    assert "exceeds its credit" in complaint_about(daemon, 1)
    assert job.input.received == INPUT_WINDOW


def test_input_that_has_ended_grants_a_new_owner_nothing(daemon: Daemon) -> None:
    """(7) End of file comes once: who takes over after it can't send more, and saying it again is fine."""
    daemon.attach()
    daemon.receive(data(1, Stream.INPUT, 0, b"abc", final=True))
    daemon.heard()
    daemon.resume(2, client=BOB, takeover=True)
    attached = daemon.heard()[-1][1]
    states = {state.stream: state for state in attached.streams}
    assert (states[Stream.INPUT].received, states[Stream.INPUT].max_offset) == (3, 3)
    daemon.receive(data(2, Stream.INPUT, 3, final=True))
    assert daemon.job().take_input(10) == b"abc"
    assert daemon.job().input.at_end
    assert daemon.heard() == []


def test_ops_come_in_order_and_once(daemon: Daemon) -> None:
    """Ops wait until the process takes them, and are acknowledged in time."""
    daemon.attach()
    job = daemon.job()
    daemon.heard()
    assert job.next_op() is None
    for n in range(16):
        assert daemon.receive(op(1, n, wire.Signal(f"S{n}"))) == [(job, Effect.OPS)]
    taken = [job.next_op() for _ in range(16)]
    assert taken == [wire.Signal(f"S{n}") for n in range(16)]
    assert job.next_op() is None
    assert daemon.heard() == [(1, wire.Window((wire.StreamWindow(Stream.OPS, 16, 80),)))]


def test_a_job_detaches_on_request(daemon: Daemon) -> None:
    """As soon as DetachJob has arrived the job outlives its owner, whoever takes the op and when."""
    daemon.attach(spec=LEASED)
    job = daemon.job()
    assert not job.detached
    assert daemon.receive(op(1, 0, wire.DetachJob())) == [(job, Effect.OPS)]
    assert job.detached
    daemon.receive(control(1, wire.Detach()))
    assert daemon.tick(6000) == []
    assert job.next_op() == wire.DetachJob()
    daemon.heard()
    daemon.resume(2, client=BOB)
    assert daemon.heard()[0][1].detached


@pytest.mark.parametrize("spec", ["LEASED", "DETACHED"])
def test_who_attaches_is_told_whether_the_job_outlives_it(daemon: Daemon, spec: str) -> None:
    """It knows then what its leaving will do."""
    daemon.attach(spec=globals()[spec])
    ((_, attached),) = daemon.heard()
    assert attached.detached is (spec == "DETACHED")


# ---- word of what has arrived --------------------------------------------------------------------


def test_a_flush_is_sent_back_once_all_of_it_has_arrived(daemon: Daemon) -> None:
    """Control overtakes data: the answer waits for every op, every byte and the end of input."""
    daemon.attach()
    daemon.heard()
    flush = wire.Flush(ops=1, input=5, ended=True)
    assert daemon.receive(control(1, flush)) == []
    for received in (
        op(1, 0, wire.Signal("INT")),
        data(1, Stream.INPUT, 0, b"abc"),
        data(1, Stream.INPUT, 3, b"de"),
    ):
        daemon.receive(received)
        assert daemon.heard() == []
    daemon.receive(data(1, Stream.INPUT, 5, final=True))
    assert daemon.heard() == [(1, flush)]
    daemon.receive(op(1, 1, wire.Signal("INT")))
    assert daemon.heard() == []  # once


def test_a_flush_of_what_is_there_is_sent_back_at_once(daemon: Daemon) -> None:
    """What the process has taken doesn't matter, only that it has arrived."""
    daemon.attach()
    daemon.receive(data(1, Stream.INPUT, 0, b"abc"))
    daemon.heard()
    daemon.receive(control(1, wire.Flush(input=3)))
    daemon.resume(2, client=BOB, role=Role.VIEWER, cursors=())
    daemon.receive(control(2, wire.Flush()))
    heard = daemon.heard()
    assert (1, wire.Flush(input=3)) in heard
    assert (2, wire.Flush()) in heard


def test_of_two_flushes_the_later_counts(daemon: Daemon) -> None:
    """Who asks again has sent more, and waits for that."""
    daemon.attach()
    daemon.heard()
    daemon.receive(control(1, wire.Flush(input=1)))
    daemon.receive(control(1, wire.Flush(input=2)))
    daemon.receive(data(1, Stream.INPUT, 0, b"a"))
    assert daemon.heard() == []
    daemon.receive(data(1, Stream.INPUT, 1, b"b"))
    assert daemon.heard() == [(1, wire.Flush(input=2))]


def test_a_flush_on_a_channel_that_was_closed_is_no_error(daemon: Daemon) -> None:
    """The loser of a takeover may ask, and hears nothing any more; the winner's input answers nobody."""
    daemon.attach()
    daemon.receive(control(1, wire.Flush(input=1)))
    daemon.resume(2, client=BOB, takeover=True)
    daemon.heard()
    assert daemon.receive(control(1, wire.Flush())) == []
    daemon.receive(data(2, Stream.INPUT, 0, b"x"))
    assert daemon.heard() == []


def test_ops_of_a_newer_version_are_passed_on_as_unknown(daemon: Daemon) -> None:
    """An op that this daemon doesn't know counts as one, and breaks nothing."""
    daemon.attach()
    newer = wire.encode_op(wire.Signal("INT")).replace(b"\xa6signal", b"\xa6repeat")
    daemon.receive(data(1, Stream.OPS, 0, newer))
    assert daemon.job().next_op() == wire.Unknown("repeat")


@pytest.mark.parametrize("final", [False, True])
def test_a_broken_op_costs_the_channel_and_never_counts(daemon: Daemon, final: bool) -> None:
    """What can't be read is refused where it arrives, and the next channel starts before it."""
    daemon.attach()
    job = daemon.job()
    daemon.heard()
    daemon.receive(data(1, Stream.OPS, 0, b"nonsense", final=final))
    assert "bad op" in complaint_about(daemon, 1)
    assert (job.ops.received, job.next_op()) == (0, None)


def test_ops_may_end(daemon: Daemon) -> None:
    """A client that has nothing more to ask may say so."""
    daemon.attach()
    daemon.receive(data(1, Stream.OPS, 0, wire.encode_op(wire.Signal("INT")), final=True))
    daemon.receive(data(1, Stream.OPS, 1, final=True))
    assert daemon.job().next_op() == wire.Signal("INT")
    assert daemon.job().next_op() is None


@pytest.mark.parametrize(
    ("broken", "complaint"),
    [
        pytest.param(data(1, Stream.OUTPUT, 0, b"x"), "does not flow this way", id="output"),
        pytest.param(gap(1, Stream.INPUT, 0, 5), "does not flow this way", id="gap in input"),
        pytest.param(gap(1, Stream.OPS, 0, 5), "bad op|this way", id="gap in ops"),
        pytest.param(data(1, Stream.INPUT, 1, b"x"), "expected 0", id="hole in input"),
        pytest.param(
            control(1, wire.Window((wire.StreamWindow(Stream.OUTPUT, 11, 99),))),
            "beyond what was sent",
            id="ack beyond sent",
        ),
        pytest.param(
            control(1, wire.Window((wire.StreamWindow(Stream.OUTPUT, 0, 99),))),
            "went down",
            id="credit went down",
        ),
        pytest.param(
            control(1, wire.Window((wire.StreamWindow(Stream.INPUT, 0, 99),))),
            "is not sent on channel",
            id="window the wrong way",
        ),
    ],
)
def test_a_rule_that_a_client_breaks_costs_its_channel(
    daemon: Daemon, broken: wire.Frame, complaint: str
) -> None:
    """It is told, and nobody else on the link is touched; the job goes on over the next channel."""
    daemon.attach()
    daemon.attach(2, job_id="another", client=BOB)
    job = daemon.job()
    job.write(Stream.OUTPUT, b"0123456789")
    daemon.heard()
    daemon.receive(broken)
    assert re.search(complaint, complaint_about(daemon, 1))
    assert list(daemon.link.attachments) == [2]
    daemon.resume(3, cursors=cursors(output=10), generation=1)
    ((_, attached),) = daemon.heard()
    assert {state.received for state in attached.streams} == {0}
    job.write(Stream.OUTPUT, b"x")
    assert daemon.heard() == [(3, Bytes(Stream.OUTPUT, 10, b"x"))]


@pytest.mark.parametrize(
    ("broken", "complaint"),
    [
        pytest.param(data(2, Stream.INPUT, 0, b"x"), "never opened", id="channel ahead"),
        pytest.param(data(0, Stream.INPUT, 0, b"x"), "never opened", id="channel 0"),
        pytest.param(control(7, wire.Detach()), "never opened", id="detach ahead"),
        pytest.param(control(1, wire.Taken()), "not for a daemon", id="wrong direction"),
        pytest.param(control(1, wire.Ping()), "not for a daemon", id="ping on a channel"),
    ],
)
def test_a_rule_that_the_router_breaks_costs_the_link_and_no_job(
    daemon: Daemon, broken: wire.Frame, complaint: str
) -> None:
    """After a RemoteProtocolError the link is closed, and the job goes on over the next one."""
    daemon.attach()
    job = daemon.job()
    job.write(Stream.OUTPUT, b"0123456789")
    daemon.heard()
    with pytest.raises(RemoteProtocolError, match=complaint):
        daemon.receive(broken)
    assert daemon.table.close_link(daemon.link, 0.0) == []
    again = daemon.restarted_link()
    again.resume(cursors=cursors(output=10), generation=1)
    ((_, attached),) = again.heard()
    assert {state.received for state in attached.streams} == {0}
    job.write(Stream.OUTPUT, b"x")
    assert again.heard() == [(1, Bytes(Stream.OUTPUT, 10, b"x"))]


def test_messages_of_a_newer_version_are_ignored(daemon: Daemon) -> None:
    """An unknown control message on any channel changes nothing."""
    daemon.attach()
    for channel in (0, 1, 99):
        assert daemon.receive(unknown(channel)) == []


def test_acks_make_room_for_the_process(daemon: Daemon) -> None:
    """(4) The owner's ack frees memory, tells the shell, and shows that the link works."""
    daemon.attach()
    job = daemon.job()
    job.write(Stream.OUTPUT, bytes(RING))
    daemon.heard()
    assert job.room(Stream.OUTPUT) == 0
    daemon.link.progressed = False  # the attach was progress, too
    window = wire.Window((wire.StreamWindow(Stream.OUTPUT, 1000, 2 * wire.MIB),))
    assert daemon.receive(control(1, window)) == [(job, Effect.ROOM)]
    assert job.room(Stream.OUTPUT) == 1000
    assert daemon.link.progressed


# ---- the end -------------------------------------------------------------------------------------


def test_the_end_is_told_with_what_became_of_it(daemon: Daemon) -> None:
    """(6) The exit event carries the real status and the final offsets, and nothing comes behind it."""
    daemon.attach()
    job = daemon.job()
    job.started(7)
    job.write(Stream.OUTPUT, b"abc")
    job.finish(Stream.OUTPUT)
    job.exited(code=None, signal=9, outcome=Outcome.SIGNALED, seconds=2, pipes_held=True)
    finals = {Stream.OUTPUT: 3}
    assert (1, wire.Exited(None, 9, Outcome.SIGNALED, 2, True, finals, 7)) in daemon.heard()
    assert job.state is JobState.ENDED
    with pytest.raises(LocalProtocolError, match="finished"):
        job.write(Stream.OUTPUT, b"late")
    with pytest.raises(LocalProtocolError, match="ended already"):
        exit_with(job)
    with pytest.raises(LocalProtocolError, match="ended already"):
        job.failed(FailedCode.LOST, "twice")
    assert daemon.heard() == []


def test_a_failure_is_told_within_bounds(daemon: Daemon) -> None:
    """A failure's text and file name are cut to what one event holds, whatever they were."""
    daemon.attach()
    job = daemon.job()
    daemon.heard()
    job.failed(FailedCode.SPAWN, "m" * 10_000, errno=36, filename=b"n" * 200_000)
    ((_, failed), *_rest) = daemon.heard()
    assert isinstance(failed, wire.Failed)
    assert failed.message == "m" * wire.MAX_TEXT_LENGTH
    assert failed.filename == b"n" * wire.MAX_TEXT_LENGTH
    assert (failed.errno, failed.finals) == (36, {})


def test_output_left_in_the_pipes_at_the_exit_is_kept(daemon: Daemon) -> None:
    """After the exit there is room for what the pipes hold, even if nobody reads."""
    daemon.attach()
    job = daemon.job()
    job.write(Stream.OUTPUT, bytes(RING))
    job.sends[Stream.EVENTS].capacity = None
    assert job.room(Stream.OUTPUT) == 0
    job.make_room(1000)
    assert (job.room(Stream.OUTPUT), job.room(Stream.ERROR)) == (1000, RING + 1000)
    assert job.sends[Stream.EVENTS].capacity is None


def test_dropping_job_never_waits_for_a_reader(daemon: Daemon) -> None:
    """(2) With on_full="drop_oldest" the oldest output goes, and whoever reads is told."""
    spec = wire.encode_spec(wire.CommandSpec((b"x",), on_full=wire.OnFull.DROP_OLDEST))
    daemon.attach(spec=spec, cursors=cursors(credit=4 * RING))
    job = daemon.job()
    for _ in range(3):
        job.write(Stream.OUTPUT, bytes(RING))
    heard = [said for _, said in daemon.heard()]
    assert heard[1] == Skip(Stream.OUTPUT, 0, 2 * RING)
    assert sum(len(said.body) for said in heard[2:]) == RING
    assert job.room(Stream.OUTPUT) == RING


def test_end_kills_a_job_that_runs(daemon: Daemon) -> None:
    """The shell is told to kill it; it is forgotten once it has ended and its owner has left."""
    daemon.attach()
    job = daemon.job()
    assert daemon.end(grace=0.25) == [(job, Effect.END)]
    assert (job.end_outcome, job.end_grace) == (Outcome.CANCELLED, 0.25)
    exit_with(job)
    assert daemon.table.ended(job, 0.0) == []
    daemon.heard()
    assert daemon.receive(control(1, wire.Detach())) == [(job, Effect.FORGOTTEN)]
    assert daemon.table.jobs == {}


def test_end_of_a_job_whose_owner_left_forgets_it_when_it_ends(daemon: Daemon) -> None:
    """Nobody will ask for the results, so they aren't kept."""
    daemon.attach()
    job = daemon.job()
    daemon.end()
    daemon.receive(control(1, wire.Detach()))
    exit_with(job)
    assert daemon.table.ended(job, 0.0) == [(job, Effect.FORGOTTEN)]
    assert daemon.table.ended(job, 0.0) == []


def test_end_of_a_job_that_ended_forgets_it(daemon: Daemon) -> None:
    """The owner's leaving acknowledges everything; the id stays used up."""
    daemon.attach()
    job = daemon.job()
    exit_with(job)
    end = wire.End("d", FIRST, None, ALICE, "t")
    assert daemon.receive(control(1, end)) == [(job, Effect.FORGOTTEN)]
    assert daemon.link.attachments == {}
    assert daemon.table.ended(job, 0.0) == []
    daemon.heard()
    daemon.attach(2)
    assert refusal(daemon.heard(), 2) is RefusedCode.ENDED


def test_who_ends_a_job_that_has_just_ended_hears_how(daemon: Daemon) -> None:
    """The exit that was about to be told is; as of a job that ran, its owner then takes its leave."""
    daemon.attach()
    job = daemon.job()
    exit_with(job, code=3)
    assert daemon.end(client=ALICE, grace=1.0) == []
    (ended,) = [said for _, said in daemon.heard() if isinstance(said, wire.Exited)]
    assert ended.code == 3
    assert daemon.receive(control(1, wire.Detach())) == [(job, Effect.FORGOTTEN)]


def test_a_forgotten_job_goes_without_a_search_for_cycles(daemon: Daemon) -> None:
    """Cycles of twenty objects for each command would be a thirtieth of a busy daemon's time."""
    daemon.attach()
    daemon.job().write(Stream.OUTPUT, b"x" * 1000)
    daemon.heard()
    exit_with(daemon.job())
    gone = weakref.ref(daemon.job())
    gc.disable()
    try:
        daemon.end()
        daemon.heard()
        assert gone() is None
    finally:
        gc.enable()


def test_viewers_of_a_forgotten_job_are_told(daemon: Daemon) -> None:
    """Nobody waits for ever for the output of a job that is gone; the owner who ended it knows."""
    daemon.attach()
    daemon.resume(2, client=BOB, role=Role.VIEWER)
    exit_with(daemon.job())
    daemon.heard()
    daemon.receive(control(1, wire.End("d", FIRST, None, ALICE, "t")))
    assert refusal(daemon.heard(), 2) is RefusedCode.ENDED
    assert daemon.link.attachments == {}


def test_an_owner_whose_job_somebody_else_ended_is_told(daemon: Daemon) -> None:
    """An End in nobody's name forgets the job; its owner, still attached, learns of it."""
    daemon.attach()
    exit_with(daemon.job())
    daemon.heard()
    daemon.end()
    assert refusal(daemon.heard(), 1) is RefusedCode.ENDED


def test_end_in_the_name_of_another_client_is_ignored(daemon: Daemon) -> None:
    """Whoever isn't the owner, or is no more, can't end the job in its own name."""
    daemon.attach()
    assert daemon.end(client=BOB) == []
    assert not daemon.job().end_requested
    exit_with(daemon.job())
    assert daemon.end(client=BOB) == []
    assert ("t", FIRST) in daemon.table.jobs
    daemon.receive(control(1, wire.Detach()))
    assert daemon.end(client=BOB) == []
    assert [effect for _, effect in daemon.end(client=ALICE)] == [Effect.FORGOTTEN]


def test_end_before_the_start_keeps_it_from_running(daemon: Daemon) -> None:
    """(5) An End for a job never heard of is remembered: a start that arrives later never runs."""
    for job_id in (FIRST, "chosen"):
        assert daemon.end(job_id, client=ALICE) == []
        assert daemon.attach(daemon.link.last_channel + 1, job_id=job_id) == []
        assert refusal(daemon.heard(), daemon.link.last_channel) is RefusedCode.ENDED


def test_settled_ids_never_start(daemon: Daemon) -> None:
    """(5) Below what a client calls settled, none of its ids starts any more."""
    daemon.attach(1, job_id=f"{ALICE}.7", settled=7)
    daemon.heard()
    daemon.attach(2, job_id=f"{ALICE}.6", settled=7)
    assert refusal(daemon.heard(), 2) is RefusedCode.ENDED
    assert [effect for _, effect in daemon.attach(3, job_id=f"{BOB}.6", client=BOB)] == [
        Effect.START
    ]


def test_a_flood_of_ends_takes_bounded_memory(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ends of ids never heard of fill the memory for them, and no more; known jobs are still buried."""
    monkeypatch.setattr(tombstones_module, "MAX_CHOSEN", 10)
    daemon.attach(1, job_id="known")
    for n in range(50):
        daemon.end(f"unheard-{n}")
        daemon.end(f"{ALICE}.{n + 1000}")
    assert len(daemon.table.tombstones) <= 20
    exit_with(daemon.job("known"))
    daemon.end("known")
    assert daemon.table.tombstones.holds(("t", "known"), 0.0)


def test_the_first_reason_to_kill_is_the_one_reported(daemon: Daemon) -> None:
    """A later End changes nothing but a shorter grace."""
    daemon.attach()
    job = daemon.job()
    daemon.table.stop(job, Outcome.TIMED_OUT)
    assert (job.end_outcome, job.end_grace) == (Outcome.TIMED_OUT, 5.0)
    daemon.end(grace=9.0)
    assert (job.end_outcome, job.end_grace) == (Outcome.TIMED_OUT, 5.0)
    daemon.end(grace=1.0)
    assert job.end_grace == 1.0
    daemon.end()
    assert job.end_grace == 1.0


def test_a_kill_has_a_signal_of_its_own(daemon: Daemon) -> None:
    """Each reason to end a job says what it gets first; who says nothing means TERM."""
    daemon.attach()
    job = daemon.job()
    assert daemon.table.stop(job, Outcome.CANCELLED, 3.0, signal="INT") == [(job, Effect.END)]
    assert (job.end_signal, job.end_grace) == ("INT", 3.0)
    daemon.end()
    assert (job.end_signal, job.end_grace) == ("TERM", 3.0)


# ---- requests ------------------------------------------------------------------------------------

JOBS = wire.encode_spec(wire.JobsSpec())
REQUEST = f"{ALICE}.9"


def test_a_request_is_a_job_that_is_in_no_list(daemon: Daemon) -> None:
    """It is started like any other, and can be neither seen nor named."""
    daemon.attach()
    ((request, effect),) = daemon.attach(2, job_id=REQUEST, spec=JOBS)
    assert effect is Effect.START
    assert request.spec == wire.JobsSpec()
    assert daemon.table.commands("t") == [daemon.job()]
    assert daemon.table.find("t", REQUEST) is None
    assert daemon.table.find("t", FIRST) is daemon.job()


def test_lists_and_names_are_the_tenants_own(daemon: Daemon) -> None:
    """A job of another tenant is absent, and so is one that never was."""
    daemon.attach()
    daemon.attach(2, tenant="u", job_id=f"{ALICE}.2")
    assert [job.key for job in daemon.table.commands("u")] == [("u", f"{ALICE}.2")]
    assert daemon.table.find("u", FIRST) is None
    assert daemon.table.find("u", "x") is None


def test_a_request_is_between_its_client_and_the_daemon(daemon: Daemon) -> None:
    """For everybody else it isn't there; its client resumes it as any job."""
    daemon.attach(job_id=REQUEST, spec=JOBS)
    daemon.heard()
    for changes in ({}, {"takeover": True}, {"role": Role.VIEWER}, {"spec": JOBS}):
        channel = daemon.link.last_channel + 1
        daemon.attach(channel, REQUEST, **{"client": BOB, "spec": None, "instance": ""} | changes)
        assert refusal(daemon.heard(), channel) is RefusedCode.JOB_NOT_FOUND
    again = daemon.restarted_link()
    again.resume(job_id=REQUEST, generation=1)
    assert isinstance(again.heard()[-1][1], wire.Attached)


def test_a_daemon_full_of_jobs_takes_requests(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else nobody could tell it to end some; requests have a bound of their own, and give it back."""
    monkeypatch.setattr(jobs_module, "MAX_JOBS", 1)
    monkeypatch.setattr(jobs_module, "MAX_REQUESTS", 2)
    daemon.attach()
    for n in (8, 9):
        assert len(daemon.attach(n, job_id=f"{ALICE}.{n}", spec=JOBS)) == 1
    daemon.heard()
    assert daemon.attach(10, job_id=f"{ALICE}.10", spec=JOBS) == []
    assert refusal(daemon.heard(), 10) is RefusedCode.DENIED
    exit_with(daemon.job(REQUEST))
    assert [effect for _, effect in daemon.end(REQUEST)] == [Effect.FORGOTTEN]
    daemon.heard()
    assert len(daemon.attach(11, job_id=f"{ALICE}.11", spec=JOBS)) == 1
    daemon.heard()
    assert daemon.attach(12, job_id=f"{ALICE}.12") == []
    assert refusal(daemon.heard(), 12) is RefusedCode.DENIED
    exit_with(daemon.job())
    daemon.end()
    assert len(daemon.attach(13, job_id=f"{ALICE}.13")) == 1


def test_a_request_that_nobody_waits_for_is_taken_back_after_its_lease(daemon: Daemon) -> None:
    """It takes no place for ever, whatever became of its client."""
    daemon.attach(job_id=REQUEST, spec=JOBS)
    daemon.receive(control(1, wire.Detach()))
    assert daemon.tick(24 * 3600) == [(daemon.job(REQUEST), Effect.END)]


def test_what_has_ended_can_be_forgotten(daemon: Daemon) -> None:
    """Whoever is attached is told, and the id is used up; what runs can't be."""
    daemon.attach()
    job = daemon.job()
    with pytest.raises(LocalProtocolError, match="has ended"):
        daemon.table.forget(job, 0.0)
    exit_with(job)
    daemon.heard()
    assert daemon.table.forget(job, 0.0) == [(job, Effect.FORGOTTEN)]
    assert refusal(daemon.heard(), 1) is RefusedCode.ENDED
    assert daemon.table.forget(job, 0.0) == []
    daemon.attach(2)
    assert refusal(daemon.heard(), 2) is RefusedCode.ENDED


# ---- links ---------------------------------------------------------------------------------------


def test_a_closed_link_leaves_jobs_alone(daemon: Daemon) -> None:
    """A cut takes the attachments, and nothing else."""
    daemon.attach()
    daemon.resume(2, client=BOB, role=Role.VIEWER)
    job = daemon.job()
    assert daemon.table.close_link(daemon.link, 0.0) == []
    assert (job.owner, job.viewers, daemon.link.attachments) == (None, {}, {})
    assert job.client == ALICE
    assert daemon.table.close_link(daemon.link, 0.0) == []


@pytest.mark.parametrize("owner_first", [True, False])
def test_a_closed_link_forgets_a_job_once(daemon: Daemon, owner_first: bool) -> None:
    """A job that ended and was left is forgotten when the link goes, whoever else was attached."""
    for number in (1, 2):
        if (number == 1) is owner_first:
            daemon.attach(number)
        else:
            daemon.attach(number, client=BOB, role=Role.VIEWER)
    job = daemon.job()
    daemon.end()
    exit_with(job)
    daemon.table.ended(job, 0.0)
    assert daemon.table.close_link(daemon.link, 0.0) == [(job, Effect.FORGOTTEN)]
    assert daemon.table.jobs == {}


def test_dirty_says_that_something_is_to_be_sent(daemon: Daemon) -> None:
    """The shell need not look at a link that says nothing new."""
    daemon.attach()
    assert daemon.link.dirty
    daemon.heard()
    daemon.link.dirty = False
    daemon.job().write(Stream.OUTPUT, b"x")
    assert daemon.link.dirty


def test_jobs_print_as_what_they_are(daemon: Daemon) -> None:
    """A job in a log or a failed test is recognisable."""
    daemon.attach()
    assert repr(daemon.job()) == f"<Job {FIRST} queued, 0 viewers>"
    assert "Channel 1" in repr(daemon.link.attachments[1].channel)


# ---- time ----------------------------------------------------------------------------------------

# ---- what the daemon begins itself -----------------------------------------------------------------


def begun(daemon: Daemon, *, claim_within: float = 60.0) -> Job:
    """A connection that came to Alice's listener, which is her first job."""
    if ("t", FIRST) not in daemon.table.jobs:
        daemon.attach(spec=wire.encode_spec(wire.ListenSpec("127.0.0.1")))
    spec = wire.ConnectSpec("whoever", 1)
    made = daemon.table.begin(daemon.job(), spec, daemon.now, claim_within=claim_within)
    assert made is not None
    job, effects = made
    assert effects == [(job, Effect.START)]
    return job


def test_what_the_daemon_begins_is_claimed_by_the_client_it_is_for(daemon: Daemon) -> None:
    """By the same Attach as ever; the shell hears of it once, and what had come is there."""
    job = begun(daemon)
    assert job.key[1] != begun(daemon).key[1]
    job.started(0)
    job.write(Stream.OUTPUT, b"came before")
    daemon.heard()
    assert daemon.resume(2, job.key[1]) == [(job, Effect.CLAIMED)]
    (_, attached), *said = daemon.heard()
    assert attached.state is JobState.RUNNING
    assert (2, Bytes(Stream.OUTPUT, 0, b"came before")) in said
    daemon.receive(control(2, wire.Detach()))
    assert daemon.resume(3, job.key[1], generation=attached.generation) == []


@pytest.mark.parametrize(
    "changes", [{"client": BOB}, {"client": BOB, "takeover": True}, {"tenant": "other"}]
)
def test_nobody_else_claims_it(daemon: Daemon, changes: dict[str, Any]) -> None:
    """To another client of the tenant, and to another tenant, it is not there."""
    job = begun(daemon)
    daemon.heard()
    assert daemon.resume(2, job.key[1], **changes) == []
    assert refusal(daemon.heard(), 2) is RefusedCode.JOB_NOT_FOUND
    assert job.claim_within is not None


def test_nobody_starts_a_job_of_an_id_that_the_daemon_generates(daemon: Daemon) -> None:
    """Neither of one that was, nor of the next: it would be in the way of what the daemon begins."""
    job = begun(daemon)
    name, _, number = job.key[1].rpartition(".")
    assert daemon.end(job.key[1]) == [(job, Effect.END)]
    job.failed(FailedCode.CANCELLED, "")
    assert daemon.table.ended(job, daemon.now) == [(job, Effect.FORGOTTEN)]
    daemon.heard()
    for channel, sequence in enumerate((int(number), int(number) + 1), 2):
        assert daemon.attach(channel, f"{name}.{sequence}") == []
        assert refusal(daemon.heard(), channel) is RefusedCode.ENDED
    assert begun(daemon).key == ("t", f"{name}.{int(number) + 1}")


def test_what_nobody_claims_is_ended_and_forgotten(daemon: Daemon) -> None:
    """After the time for that and not before; what was claimed has its lease."""
    job, claimed = begun(daemon), begun(daemon)
    daemon.resume(2, claimed.key[1])
    daemon.receive(control(2, wire.Detach()))
    assert daemon.tick(55.0) == []
    assert daemon.tick(10.0) == [(job, Effect.END)]
    job.failed(FailedCode.CANCELLED, "")
    assert daemon.table.ended(job, daemon.now) == [(job, Effect.FORGOTTEN)]
    assert daemon.tick(3500.0) == []
    assert (claimed, Effect.END) in daemon.tick(200.0)


def test_the_daemon_begins_nothing_that_there_is_no_room_for(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor when it is about to stop."""
    begun(daemon)
    spec = wire.ConnectSpec("whoever", 1)
    with monkeypatch.context() as patch:
        patch.setattr(jobs_module, "MAX_REQUESTS", 2)
        assert daemon.table.begin(daemon.job(), spec, 0.0, claim_within=60.0) is None
    daemon.table.draining = True
    assert daemon.table.begin(daemon.job(), spec, 0.0, claim_within=60.0) is None
    assert len(daemon.table.jobs) == 2


LEASED = wire.encode_spec(wire.CommandSpec(argv=(b"x",), lease=60.0))
DETACHED = wire.encode_spec(wire.CommandSpec(argv=(b"x",), lease=60.0, detach=True))


def test_a_lease_runs_while_nobody_owns_the_job(daemon: Daemon) -> None:
    """An owned job is ended when its lease is over, counted from the owner's leaving, viewers or not."""
    daemon.attach(spec=LEASED)
    daemon.resume(2, client=BOB, role=Role.VIEWER)
    job = daemon.job()
    assert daemon.tick(600) == []
    daemon.receive(control(1, wire.Detach()))
    assert daemon.tick(55) == []
    assert daemon.tick(5) == [(job, Effect.END)]
    assert job.end_outcome is Outcome.LEASE_EXPIRED
    assert daemon.tick(600) == []


def test_a_lease_starts_anew_with_each_owner(daemon: Daemon) -> None:
    """An owner that came back has the whole lease again."""
    daemon.attach(spec=LEASED)
    daemon.receive(control(1, wire.Detach()))
    daemon.tick(55)
    daemon.resume(2)
    daemon.receive(control(2, wire.Detach()))
    assert daemon.tick(55) == []
    assert len(daemon.tick(5)) == 1


def test_a_suspended_machine_expires_nothing(daemon: Daemon) -> None:
    """However long the clock says it was, one tick counts for LONGEST_TICK at most."""
    daemon.attach(spec=LEASED)
    daemon.receive(control(1, wire.Detach()))
    daemon.table.tick(0.0)
    assert daemon.table.tick(1e6) == []
    assert daemon.job().unowned_seconds == jobs_module.LONGEST_TICK


def test_time_counts_from_when_a_job_is_left(daemon: Daemon) -> None:
    """While each has its owner nobody need call; what passed until then is nobody's."""
    assert daemon.table.tick(0.0) == []
    daemon.attach(spec=LEASED)
    assert daemon.table.tick(0.0) == []
    assert not daemon.table.has_unowned
    daemon.receive(control(1, wire.Detach()))
    assert daemon.table.has_unowned
    for now, seconds in ((4.0, 0.0), (5.5, 1.5)):
        assert daemon.table.tick(now) == []
        assert daemon.table.has_unowned
        assert daemon.job().unowned_seconds == seconds
    daemon.resume(2)
    assert daemon.table.tick(6.0) == []
    assert not daemon.table.has_unowned


@pytest.mark.parametrize("how", ["by a viewer", "by the daemon", "and its link is gone"])
def test_a_job_may_never_have_an_owner(daemon: Daemon, how: str) -> None:
    """Then its time counts from its start."""
    if how == "by a viewer":
        daemon.attach(spec=LEASED, role=Role.VIEWER)
    elif how == "by the daemon":
        begun(daemon)
    else:
        daemon.attach(spec=LEASED)
        daemon.table.close_link(daemon.link, daemon.now)
    assert daemon.table.has_unowned
    assert daemon.table.tick(daemon.now) == []
    assert daemon.table.has_unowned


def test_detached_jobs_have_no_lease(daemon: Daemon) -> None:
    """A job that was told to outlive its owner does."""
    daemon.attach(spec=DETACHED)
    daemon.receive(control(1, wire.Detach()))
    assert daemon.tick(6000) == []


def test_an_expired_job_still_tells_its_end(daemon: Daemon) -> None:
    """Who comes back after the lease learns what became of the job, instead of that there is none."""
    daemon.attach(spec=LEASED)
    daemon.receive(control(1, wire.Detach()))
    daemon.table.retention = 60.0
    ((job, _),) = daemon.tick(60)
    job.exited(code=None, signal=15, outcome=Outcome.LEASE_EXPIRED, seconds=60.0, pipes_held=False)
    assert daemon.table.ended(job, daemon.now) == []
    daemon.heard()
    assert daemon.tick(55) == []
    daemon.resume(2, generation=1)
    outcomes = [said.outcome for _, said in daemon.heard() if isinstance(said, wire.Exited)]
    assert outcomes == [Outcome.LEASE_EXPIRED]


def test_results_are_kept_for_the_retention(daemon: Daemon) -> None:
    """What ended is kept for who owns it, however long it had run alone; then the id is used up."""
    daemon.attach(spec=DETACHED)
    daemon.receive(control(1, wire.Detach()))
    daemon.table.retention = 100.0
    daemon.tick(1000)
    job = daemon.job()
    exit_with(job)
    daemon.table.ended(job, daemon.now)
    assert daemon.tick(95) == []
    assert daemon.tick(5) == [(job, Effect.FORGOTTEN)]
    daemon.heard()
    daemon.resume(2)
    assert refusal(daemon.heard(), 2) is RefusedCode.JOB_NOT_FOUND
    daemon.attach(3, spec=DETACHED)
    assert refusal(daemon.heard(), 3) is RefusedCode.ENDED


def test_results_are_kept_as_long_as_their_owner_is_there(daemon: Daemon) -> None:
    """Retention doesn't run against an owner that is attached."""
    daemon.attach()
    exit_with(daemon.job())
    daemon.table.retention = 100.0
    assert daemon.tick(1000) == []


def test_results_nobody_claims_are_kept_within_a_bound(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """(4) Beyond MAX_ENDED_BYTES the longest unclaimed go first; what runs or is owned is kept."""
    jobs = []
    for n in range(5):
        daemon.attach(n + 1, job_id=f"{ALICE}.{n}")
        job = daemon.job(f"{ALICE}.{n}")
        job.write(Stream.OUTPUT, bytes(100_000))
        jobs.append(job)
    for job in (jobs[1], jobs[0], jobs[2], jobs[3]):  # the last one goes on
        exit_with(job)
        if job is not jobs[3]:  # whose owner stays
            daemon.receive(control(jobs.index(job) + 1, wire.Detach()))
        daemon.tick(5)
    monkeypatch.setattr(jobs_module, "MAX_ENDED_BYTES", 3 * jobs[0].held_bytes)
    daemon.table.ended(jobs[3], daemon.now)
    assert daemon.tick(5) == []
    monkeypatch.setattr(jobs_module, "MAX_ENDED_BYTES", 2 * jobs[0].held_bytes - 1)
    assert daemon.tick(5) == []  # nothing more has come, so nothing is counted
    daemon.table.ended(jobs[3], daemon.now)
    assert daemon.tick(5) == [(jobs[1], Effect.FORGOTTEN), (jobs[0], Effect.FORGOTTEN)]
    assert list(daemon.table.jobs.values()) == [jobs[2], jobs[3], jobs[4]]
    assert jobs[2].held_bytes > 100_000
    assert jobs[0].held_bytes < 10_000  # whoever still has it in hand holds no output by it


def test_a_daemon_that_is_stopping_starts_nothing(daemon: Daemon) -> None:
    """While it drains new jobs are denied, and those it has can still be attached to."""
    daemon.attach()
    daemon.heard()
    daemon.table.draining = True
    daemon.attach(2, job_id="another")
    assert refusal(daemon.heard(), 2) is RefusedCode.DENIED
    daemon.resume(3)
    assert isinstance(daemon.heard()[-1][1], wire.Attached)


def test_a_link_knows_whether_all_output_was_sent(daemon: Daemon) -> None:
    """What waits for credit, or for the writer, is not sent yet."""
    assert not daemon.link.unsent
    daemon.attach(cursors=cursors(credit=5))
    job = daemon.job()
    job.write(Stream.OUTPUT, b"0123456789")
    assert daemon.link.unsent
    daemon.heard()
    assert daemon.link.unsent
    daemon.receive(control(1, wire.Window((wire.StreamWindow(Stream.OUTPUT, 5, 10),))))
    daemon.heard()
    assert not daemon.link.unsent


def test_decoded_frames_are_what_tests_believe(daemon: Daemon) -> None:
    """The scripted peer speaks the same protocol: a sanity check of the tests themselves."""
    assert frame(wire.encode_control(3, wire.Detach())).channel == 3
    assert list(daemon.heard()) == []
