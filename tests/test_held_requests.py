"""The router and the audit log: what waits for a record, what may not overtake it, and what becomes of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import pytest
from relay_world import ModelLog
from scripted import control, data, drain, event, frames_from, op

from sandd import wire
from sandd._core._errors import RemoteProtocolError
from sandd._core.audit.records import RecordType
from sandd._core.audit.trail import MAX_ATTACHED
from sandd._core.identity.rights import Principal
from sandd._core.router import Router
from sandd._core.tombstones import generate
from sandd.wire import DaemonState, RefusedCode, Stream

if TYPE_CHECKING:
    from sandd._core.router_links import ClientLink

SPEC = wire.encode_spec(wire.CommandSpec((b"make",), env={b"A_TOKEN": b"t0ps3cret"}))
JOB = generate("00000000000000aa", 1)
ATTACH = wire.Attach("d", JOB, "client", spec=SPEC, instance="here")
END = wire.End("d", JOB, None, "client")


class Network:
    """An audited router with one daemon, and one client in another process."""

    def __init__(self) -> None:
        self.log = ModelLog()
        self.router = Router(audit=self.log)
        self.daemon = self.router.add_daemon("d", "here")
        self.client = self.join("client")

    def join(self, client: str = "") -> ClientLink:
        """Another client, that has heard what there is."""
        principal = Principal(f"operator:{client}")
        link = self.router.add_client(principal=principal, client=client)
        link.carrier = Carrier()
        drain(link.scheduler)
        return link

    def send(self, *frames: wire.Frame, link: ClientLink | None = None) -> None:
        """The client sends them."""
        for frame in frames:
            self.router.receive(link or self.client, frame)

    @property
    def told(self) -> list[RecordType]:
        """What the log has of jobs."""
        return [record.type for record in self.log.durable]

    @property
    def to_daemon(self) -> list[Any]:
        """What the daemon is sent by now."""
        return [message for _, message in drain(self.daemon.scheduler)]


class Carrier:
    """Of a link."""

    closed = ""

    def wake(self) -> None:
        """Nothing: tests look."""

    def close(self, reason: str) -> None:
        """The link is over."""
        self.closed = reason


@pytest.fixture
def network() -> Network:
    """All of it."""
    return Network()


def types(messages: list[Any]) -> list[type]:
    """Of messages."""
    return [type(message) for message in messages]


def test_nothing_is_passed_on_before_its_request_is_on_record(network: Network) -> None:
    """Nor what follows on its channel; then all of it, in order."""
    network.send(control(1, ATTACH), data(1, Stream.INPUT, 0, b"in"), op(1, 0, wire.Signal("INT")))
    assert network.to_daemon == []
    assert network.told == []
    network.log.write()
    assert network.told == [RecordType.REQUEST]
    sent = network.to_daemon
    assert isinstance(sent[0], wire.Attach)
    assert len(sent) == 3
    assert network.client.held == {}
    assert network.client.held_bytes == 0


def test_a_request_says_what_was_asked_for(network: Network) -> None:
    """Who, where and what; of the environment only names."""
    network.send(control(1, ATTACH))
    network.log.write()
    (record,) = network.log.durable
    assert (record.actor, record.tenant, record.daemon, record.job) == (
        "operator:client",
        "default",
        "d",
        JOB,
    )
    assert (record.kind, record.argv, record.env) == ("command", (b"make",), (b"A_TOKEN",))
    assert record.secrets == (b"t0ps3cret",)


def test_another_channel_waits_for_nobody(network: Network) -> None:
    """What is open goes on while a request is held."""
    network.send(control(1, ATTACH))
    network.log.write()
    _ = network.to_daemon
    network.send(control(2, attrs.evolve(ATTACH, job_id="other")))
    network.send(op(1, 0, wire.Signal("INT")))
    assert len(network.to_daemon) == 1
    network.send(control(0, END))
    assert types(network.to_daemon) == [wire.End]


@pytest.mark.parametrize("channel", [0, 1])
def test_an_end_does_not_overtake_its_request(network: Network, channel: int) -> None:
    """On the channel or beside it: the daemon hears both, in order, and the log says so."""
    network.send(control(1, ATTACH), control(channel, END))
    assert network.to_daemon == []
    network.log.write()
    assert types(network.to_daemon) == [wire.Attach, wire.End]
    assert network.told == [RecordType.REQUEST, RecordType.STOP]


def test_an_end_means_the_request_before_it(network: Network) -> None:
    """And not one that is held behind it, of the same id."""
    other = wire.encode_spec(wire.CommandSpec((b"rm",)))
    network.send(control(1, ATTACH), control(0, END), control(2, attrs.evolve(ATTACH, spec=other)))
    network.log.write()
    assert types(network.to_daemon) == [wire.Attach, wire.End, wire.Attach]


def test_leaving_a_session_ends_nothing(network: Network) -> None:
    """Who only lets it go on stops nothing, and the log says nothing of the kind."""
    network.send(control(1, ATTACH))
    network.log.write()
    network.send(control(1, attrs.evolve(END, left=1)))
    assert network.told == [RecordType.REQUEST]
    again = network.join("client")
    network.send(control(1, ATTACH), link=again)
    assert not network.log.waiting


def test_an_end_of_another_job_does_not_wait(network: Network) -> None:
    """Killing is not what is held up by a disk."""
    network.send(control(1, ATTACH), control(0, attrs.evolve(END, job_id="other")))
    assert types(network.to_daemon) == [wire.End]


def test_detaching_comes_after_the_request(network: Network) -> None:
    """A job that is to outlive its client is started all the same."""
    network.send(control(1, ATTACH), control(1, wire.Detach()))
    network.log.write()
    assert types(network.to_daemon) == [wire.Attach, wire.Detach]


def test_attaching_to_a_held_job_waits_for_it(network: Network) -> None:
    """Somebody who was told of the job finds it there."""
    other = network.join("other")
    network.send(control(1, ATTACH))
    network.send(control(1, attrs.evolve(ATTACH, spec=None)), link=other)
    assert network.to_daemon == []
    network.log.write()
    first, second = network.to_daemon
    assert (first.client, second.client) == ("client", "other")
    network.router.receive(network.daemon, control(2, wire.Attached()))
    assert network.told == [RecordType.REQUEST, RecordType.ATTACH]


def test_attaching_to_a_job_that_runs_does_not_wait(network: Network) -> None:
    """It starts nothing; it is told, though, when it is known that there is such a job."""
    network.send(control(1, attrs.evolve(ATTACH, spec=None)))
    assert types(network.to_daemon) == [wire.Attach]
    assert network.told == []
    network.router.receive(network.daemon, control(1, wire.Attached()))
    assert network.told == [RecordType.ATTACH]


def test_attaching_to_no_job_is_a_refusal_and_nothing_more(network: Network) -> None:
    """Ids that are made up are any number: none of them takes the place of a job in memory."""
    refused = wire.Refused(RefusedCode.JOB_NOT_FOUND, "no such job")
    for number in range(1, 4):
        network.send(control(number, attrs.evolve(ATTACH, spec=None, job_id=f"made-up-{number}")))
        network.router.receive(network.daemon, control(number, refused))
    assert network.told == [RecordType.REFUSAL] * 3
    assert not network.router._trail._jobs


def test_attaching_again_is_told_within_bounds(network: Network) -> None:
    """Each who does so, and each way to, is told at its first time, whatever came before; then it may be a number."""
    network.send(control(1, ATTACH))
    network.log.write()
    roles = (wire.Role.VIEWER, wire.Role.VIEWER, wire.Role.OWNER, wire.Role.VIEWER)
    for number, role in enumerate(roles, 2):
        network.send(control(number, attrs.evolve(ATTACH, spec=None, role=role)))
        network.router.receive(network.daemon, control(number, wire.Attached(role)))
    other = network.join("other")
    network.send(control(1, attrs.evolve(ATTACH, spec=None, role=wire.Role.VIEWER)), link=other)
    network.router.receive(network.daemon, control(6, wire.Attached(wire.Role.VIEWER)))
    assert network.told == [RecordType.REQUEST, *[RecordType.ATTACH] * 5]
    assert network.log.bounded == [False, True, False, True, False]


def test_who_attaches_is_forgotten_sooner_than_memory_is_full(network: Network) -> None:
    """Of a job that very many attach to, some may be told of within bounds alone."""
    network.send(control(1, ATTACH))
    network.log.write()
    for number in range(2, MAX_ATTACHED + 4):
        client = network.join(f"client-{number}")
        network.send(control(1, attrs.evolve(ATTACH, spec=None)), link=client)
        network.router.receive(network.daemon, control(number, wire.Attached()))
    (job,) = network.router._trail._jobs.values()
    assert len(job.attached) == MAX_ATTACHED
    assert network.log.bounded == [False] * (MAX_ATTACHED + 2)


def test_asking_again_is_the_same_request(network: Network) -> None:
    """Before the record is there, and after: one line for one thing that was asked for."""
    network.send(control(1, ATTACH))
    again = network.join("client")
    network.send(control(1, attrs.evolve(ATTACH, attempt=2)), link=again)
    network.log.write()
    assert types(network.to_daemon) == [wire.Attach, wire.Attach]
    once_more = network.join("client")
    network.send(control(1, attrs.evolve(ATTACH, attempt=3)), link=once_more)
    assert types(network.to_daemon) == [wire.Attach]
    assert network.told == [RecordType.REQUEST]


@pytest.mark.parametrize("is_under_way", [False, True])
@pytest.mark.parametrize("said", ["client", "other"])
def test_what_another_asks_for_is_another_request(
    network: Network, is_under_way: bool, said: str
) -> None:
    """Though it be the same, and whoever it says that it is: it may come to hold the job."""
    attach = attrs.evolve(ATTACH, job_id="chosen")
    network.send(control(1, attach))
    if not is_under_way:
        network.log.write()
    other = network.join("other")
    network.send(control(1, attrs.evolve(attach, client=said)), link=other)
    network.log.write()
    asked = [(record.type, record.actor) for record in network.log.durable]
    assert asked == [
        (RecordType.REQUEST, "operator:client"),
        (RecordType.REQUEST, "operator:other"),
    ]


def test_a_job_that_two_have_asked_for_is_told_once(network: Network) -> None:
    """Its start, and its end."""
    attach = attrs.evolve(ATTACH, job_id="chosen")
    other = network.join("other")
    network.send(control(1, attach))
    network.send(control(1, attach), link=other)
    network.log.write()
    ended = wire.Exited(0, None, wire.Outcome.EXITED, 1.0)
    for channel in (1, 2):
        network.router.receive(network.daemon, event(channel, 0, wire.Started(77)))
        network.router.receive(network.daemon, event(channel, 1, ended))
    assert network.told.count(RecordType.START) == network.told.count(RecordType.END) == 1


def test_asking_for_something_else_is_another_request(network: Network) -> None:
    """Of the same id, while the first is under way, and after: what the daemon makes of it is its own affair."""
    other = wire.encode_spec(wire.CommandSpec((b"rm",)))
    network.send(control(1, ATTACH), control(2, attrs.evolve(ATTACH, spec=other)))
    network.log.write()
    assert [record.argv for record in network.log.durable] == [(b"make",), (b"rm",)]
    network.send(control(3, ATTACH))
    assert len(network.log.waiting) == 1


def test_a_chosen_id_may_be_used_again(network: Network) -> None:
    """When the job has ended, the same request is another one."""
    attach = attrs.evolve(ATTACH, job_id="chosen")
    network.send(control(1, attach))
    network.log.write()
    network.router.receive(
        network.daemon, event(1, 0, wire.Exited(0, None, wire.Outcome.EXITED, 1.0))
    )
    network.send(control(2, attach))
    assert len(network.log.waiting) == 1


def test_a_chosen_id_may_be_used_again_though_nobody_heard_of_an_end(network: Network) -> None:
    """Its client left the job to itself; the daemon may have forgotten it since, and would run the request anew."""
    attach = attrs.evolve(ATTACH, job_id="chosen")
    network.send(control(1, attach))
    network.log.write()
    network.send(control(1, wire.Detach()))
    assert types(network.to_daemon) == [wire.Attach, wire.Detach]
    network.send(control(2, attrs.evolve(attach, attempt=2)))
    assert network.to_daemon == []
    network.log.write()
    assert network.told == [RecordType.REQUEST, RecordType.REQUEST]
    assert types(network.to_daemon) == [wire.Attach]


def test_each_request_may_start_a_process(network: Network) -> None:
    """One that is recorded again, and no more than one: a daemon can't fill the disk with starts."""
    attach = attrs.evolve(ATTACH, job_id="chosen")
    told = []
    for channel in (1, 2):
        network.send(control(channel, attach))
        network.log.write()
        for number, pid in enumerate((77, 77 + channel, 99)):
            network.router.receive(network.daemon, event(channel, number, wire.Started(pid)))
        told.append(network.told.count(RecordType.START))
    assert told == [1, 2]


@pytest.mark.parametrize("kind", ["told", "quick", "failed"])
def test_a_daemon_that_still_has_the_job_of_a_chosen_id_starts_none(
    network: Network, kind: str
) -> None:
    """So what it tells once more is no news; but another process is, though nobody heard when it began."""

    def run(pid: int) -> list[wire.Event]:
        if kind == "failed":
            return [wire.Failed(wire.FailedCode.SPAWN, "no such program")]
        exited = wire.Exited(0, None, wire.Outcome.EXITED, 1.0, pid=0 if kind == "told" else pid)
        return [wire.Started(pid), exited] if kind == "told" else [exited]

    attach = attrs.evolve(ATTACH, job_id="chosen")
    ends = []
    for channel, pid in ((1, 77), (2, 77), (3, 77), (4, 78)):
        network.send(control(channel, attach))
        network.log.write()
        if channel > 1:
            state = wire.JobState.ENDED
            network.router.receive(network.daemon, control(channel, wire.Attached(state=state)))
        for number, each in enumerate(run(pid)):
            network.router.receive(network.daemon, event(channel, number, each))
        ends.append((network.told.count(RecordType.START), network.told.count(RecordType.END)))
    starts = kind == "told"
    again = 1 if kind == "failed" else 2  # that nothing was started, twice, looks like once
    assert ends == [(starts, 1)] * 3 + [(2 * starts, again)]


def test_who_was_attached_to_a_job_of_a_chosen_id_means_that_one(network: Network) -> None:
    """The daemon starts nothing in its place, so after a cut there is nothing to record."""
    attach = attrs.evolve(ATTACH, job_id="chosen")
    network.send(control(1, attach))
    network.log.write()
    network.send(control(2, attrs.evolve(attach, attempt=2, generation=1)))
    assert types(network.to_daemon) == [wire.Attach, wire.Attach]
    assert network.told == [RecordType.REQUEST]


def test_a_log_that_refuses_runs_nothing(network: Network) -> None:
    """The client is told why, its channel is closed, and what it had sent is gone."""
    network.send(control(1, ATTACH), data(1, Stream.INPUT, 0, b"in"), control(0, END))
    network.log.write(refusal="the audit log is full")
    assert types(network.to_daemon) == [wire.End]  # which may mean a job of before
    ((channel, refused),) = drain(network.client.scheduler)
    assert (channel, refused) == (1, wire.Refused(RefusedCode.DENIED, "the audit log is full"))
    assert RecordType.REQUEST not in network.told
    assert RecordType.REFUSAL in network.told
    network.send(data(1, Stream.INPUT, 2, b"late"))
    assert network.to_daemon == []
    assert network.client.held_bytes == 0


def test_a_client_that_goes_takes_its_requests_along(network: Network) -> None:
    """Nothing is started for nobody; but an end that was said is said."""
    network.send(
        control(1, ATTACH),
        control(2, attrs.evolve(ATTACH, job_id="x")),
        control(2, attrs.evolve(END, job_id="x")),
    )
    network.router.remove_client(network.client)
    network.log.write()
    assert [type(each) for each in network.to_daemon] == [wire.End]
    assert network.client.held_bytes == 0


def test_a_daemon_that_goes_meanwhile_is_away(network: Network) -> None:
    """The client asks again when it is back; an end is kept for it."""
    network.send(control(1, ATTACH), data(1, Stream.INPUT, 0, b"in"), control(1, END))
    network.router.remove_daemon(network.daemon, DaemonState.AWAY)
    drain(network.client.scheduler)
    network.log.write()
    assert drain(network.client.scheduler) == [(1, wire.Away())]
    assert [end.job_id for end in network.router.kept_ends] == [JOB]


def test_a_daemon_that_comes_back_meanwhile_gets_it(network: Network) -> None:
    """On its newest link."""
    network.send(control(1, ATTACH))
    network.router.remove_daemon(network.daemon, DaemonState.AWAY)
    network.daemon = network.router.add_daemon("d", "here")
    network.log.write()
    assert types(network.to_daemon) == [wire.Attach]


def test_nobody_waits_for_a_daemon_that_is_away(network: Network) -> None:
    """There is nothing to be recorded where nothing can be started."""
    network.router.remove_daemon(network.daemon, DaemonState.AWAY)
    drain(network.client.scheduler)
    network.send(control(1, ATTACH))
    assert drain(network.client.scheduler) == [(1, wire.Away())]
    assert not network.log.waiting


@pytest.mark.parametrize(
    "frame",
    [
        data(1, Stream.INPUT, wire.INITIAL_INPUT_BYTES, b"x"),
        data(1, Stream.OUTPUT, 0, b"x"),
    ],
)
def test_what_is_held_is_bounded_by_the_credit(network: Network, frame: wire.Frame) -> None:
    """Whoever sends more than it may before there is an answer breaks the protocol."""
    network.send(control(1, ATTACH))
    with pytest.raises(RemoteProtocolError):
        network.send(frame)


def test_ops_are_bounded_too(network: Network) -> None:
    """By the window of messages."""
    network.send(control(1, ATTACH))
    for number in range(wire.MESSAGE_WINDOW):
        network.send(op(1, number, wire.Signal("INT")))
    with pytest.raises(RemoteProtocolError):
        network.send(op(1, wire.MESSAGE_WINDOW, wire.Signal("INT")))


def test_what_breaks_the_protocol_later_ends_its_link_alone(network: Network) -> None:
    """What was held is looked at when it goes on; another client's goes on as well."""
    other = network.join("other")
    network.send(control(1, ATTACH), control(1, wire.Attached()))
    network.send(control(1, attrs.evolve(ATTACH, client="other", job_id="x")), link=other)
    network.log.write()
    assert isinstance(network.client.carrier, Carrier)
    assert "broke the protocol" in network.client.carrier.closed
    assert types(network.to_daemon) == [wire.Attach, wire.Attach]


def test_a_disk_that_stands_still_costs_bounded_memory(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is beyond that is refused, and the rest goes on."""
    monkeypatch.setattr("sandd._core.held_requests.MAX_HELD_BYTES", 1000)
    for number in range(1, 11):
        network.send(control(number, attrs.evolve(ATTACH, job_id=f"j{number}")))
    refused = [message for _, message in drain(network.client.scheduler)]
    assert {each.code for each in refused} == {RefusedCode.DENIED}
    assert 0 < len(refused) < 10
    network.log.write()
    assert len(network.to_daemon) == 10 - len(refused)
    assert (network.client.held, network.client.held_bytes) == ({}, 0)


def test_ends_that_wait_cost_bounded_memory(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody could be told that one is refused, so who says too many loses its link."""
    monkeypatch.setattr("sandd._core.held_requests.MAX_HELD_BYTES", 1000)
    network.send(control(1, ATTACH))
    with pytest.raises(RemoteProtocolError, match="too many Ends"):
        network.send(*[control(0, END)] * 100)
    assert network.client.held_bytes < 2000


def test_what_is_no_message_is_not_held(network: Network) -> None:
    """It ends its link at once; so a link that goes meanwhile leaves nothing behind."""
    network.send(control(1, ATTACH))
    network.log.write()
    network.send(control(2, attrs.evolve(ATTACH, job_id="x")))
    _ = network.to_daemon
    with pytest.raises(RemoteProtocolError):
        network.send(wire.Frame(wire.FrameType.CONTROL, 2, memoryview(b"\xc1")))
    network.router.remove_client(network.client)
    assert types(network.to_daemon) == [wire.Detach]
    network.log.write()
    assert network.to_daemon == []
    assert (network.client.held, network.client.held_bytes) == ({}, 0)


# ---- what is told of what becomes of it ---------------------------------------------------------


def test_a_job_is_told_from_its_start_to_its_end_once(network: Network) -> None:
    """However many see it; with its result."""
    network.send(control(1, ATTACH))
    network.log.write()
    other = network.join("other")
    network.send(control(1, attrs.evolve(ATTACH, spec=None, client="other")), link=other)
    network.router.receive(network.daemon, control(2, wire.Attached()))
    ended = wire.Exited(3, None, wire.Outcome.EXITED, 1.25, finals={Stream.OUTPUT: 7})
    for channel in (1, 2):
        network.router.receive(network.daemon, event(channel, 0, wire.Started(77)))
        network.router.receive(network.daemon, event(channel, 1, ended))
    assert network.told == [
        RecordType.REQUEST,
        RecordType.ATTACH,
        RecordType.START,
        RecordType.END,
    ]
    assert network.log.durable[2].result == {"pid": 77}
    end = network.log.durable[3]
    assert (end.outcome, end.result) == ("exited", {"code": 3, "seconds": 1.25, "stdout": 7})
    network.send(control(1, END))
    assert RecordType.STOP not in network.told


def test_a_job_that_fails_is_told(network: Network) -> None:
    """With why."""
    network.send(control(1, ATTACH))
    network.log.write()
    failed = wire.Failed(wire.FailedCode.SPAWN, "No such file", 2, b"make")
    network.router.receive(network.daemon, event(1, 0, failed))
    end = network.log.durable[-1]
    assert (end.type, end.outcome, end.reason) == (RecordType.END, "spawn", "No such file")


def test_a_daemons_refusal_is_told(network: Network) -> None:
    """By whom, and why."""
    network.send(control(1, ATTACH))
    network.log.write()
    network.router.receive(network.daemon, control(1, wire.Refused(RefusedCode.DENIED, "not here")))
    refusal = network.log.durable[-1]
    assert (refusal.type, refusal.outcome, refusal.reason, refusal.result) == (
        RecordType.REFUSAL,
        "denied",
        "not here",
        {"by": "daemon"},
    )


def test_an_unknown_daemon_is_told(network: Network) -> None:
    """Somebody who tries names is seen."""
    network.send(control(1, attrs.evolve(ATTACH, daemon_id="nobody")))
    assert network.told == [RecordType.REFUSAL]
    assert not network.log.waiting


def test_an_event_that_is_none_is_passed_on(network: Network) -> None:
    """Whoever it is for tells the daemon; the log is no judge."""
    network.send(control(1, ATTACH))
    network.log.write()
    network.router.receive(network.daemon, data(1, Stream.EVENTS, 0, b"\xc1"))
    assert network.told == [RecordType.REQUEST]
    assert len(list(frames_from(network.client.scheduler))) == 1


def test_what_cant_be_read_is_recorded_as_such(network: Network) -> None:
    """A client may be newer than the controller; its request has a hash to be known by."""
    network.send(control(1, attrs.evolve(ATTACH, spec=b"\x81\xa4kind\xa4news")))
    network.log.write()
    (record,) = network.log.durable
    assert record.reason is not None
    assert "can't be read" in record.reason
    assert record.result is not None
    assert len(record.result["spec_sha256"]) == 64


@pytest.mark.parametrize(
    ("spec", "target"),
    [
        (wire.ReadSpec(b"/etc/passwd"), "/etc/passwd"),
        (wire.RenameSpec(b"/a", b"/b"), "/a -> /b"),
        (wire.KillSpec("job-7"), "job-7"),
        (wire.GlobSpec(b"/x", b"*\xff"), "/x -> *\\xff"),
        (wire.ConnectSpec("db", 5432), "db:5432"),
        (wire.ListenSpec("", 0, b"/run/s"), "unix:/run/s"),
        (wire.UploadSpec(b"/to"), "/to"),
        (wire.JobsSpec(), None),
    ],
)
def test_requests_say_what_they_are_about(
    network: Network, spec: wire.Spec, target: str | None
) -> None:
    """A path, an address, a job."""
    network.send(control(1, attrs.evolve(ATTACH, spec=wire.encode_spec(spec))))
    network.log.write()
    (record,) = network.log.durable
    assert record.target == target
    assert wire.SPEC_KINDS[str(record.kind)] is type(spec)
