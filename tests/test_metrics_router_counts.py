"""What a router counts as frames pass: each once, and by whom it concerns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import pytest
from scripted import control, cursors, data, drain, event, op

from sandd import wire
from sandd._core.identity.rights import EVERYTHING, Principal, Role, Verb, full_name
from sandd._core.metrics.statistics import ProcessFigures
from sandd._core.router import Router
from sandd._core.tombstones import generate
from sandd.wire import DaemonState, RefusedCode, Stream

if TYPE_CHECKING:
    from sandd._core.metrics.router_counts import RouterCounts
    from sandd._core.metrics.tallies import Tally
    from sandd._core.router_links import ClientLink, DaemonLink

TRUE = wire.encode_spec(wire.CommandSpec((b"true",)))
FALSE = wire.encode_spec(wire.CommandSpec((b"false",)))
ATTACH = wire.Attach("d", generate("client", 1), "client", (), TRUE, "here")
EXITED = wire.Exited(0, None, wire.Outcome.EXITED, 1.0)


class Network:
    """A router with a daemon of one tenant, and an operator of it."""

    def __init__(self, tenant: str = "default") -> None:
        self.router = Router()
        self.tenant = tenant
        self.name = full_name(tenant, "d")
        about = wire.DaemonDescription(platform="linux")
        self.daemon = self.router.add_daemon(self.name, "here", about)
        self.client = self.join(Principal("p", tenant))

    @property
    def counts(self) -> RouterCounts:
        """All that it has counted."""
        return self.router.counts

    @property
    def tally(self) -> Tally:
        """That of the tenant."""
        tally = self.counts.tallies.of(self.tenant)
        assert tally is not None
        return tally

    def join(self, principal: Principal = EVERYTHING) -> ClientLink:
        """One more client."""
        link = self.router.add_client(principal=principal)
        drain(link.scheduler)
        return link

    def attach(self, channel: int = 1, link: ClientLink | None = None, **changes: Any) -> int:
        """A client attaches; returns the channel that the daemon hears it on."""
        said = attrs.evolve(ATTACH, daemon_id=self.name if link else "d", **changes)
        self.router.receive(link or self.client, control(channel, said))
        ((number, _),) = drain(self.daemon.scheduler)
        return number

    def end(
        self, channel: int, said: wire.Event = EXITED, *, link: DaemonLink | None = None
    ) -> None:
        """The daemon says how a job ended."""
        self.router.receive(link or self.daemon, event(channel, 0, said))


@pytest.fixture
def network() -> Network:
    """That of the tenant "acme"."""
    return Network("acme")


def test_a_command_is_a_job_of_its_tenant(network: Network) -> None:
    """From its start to its end, which the owner has heard of when it leaves."""
    number = network.attach()
    assert (network.tally.jobs_asked, network.tally.jobs_running) == (1, 1)
    network.end(number)
    assert (network.tally.jobs_running, network.tally.jobs_ended) == (0, {"exited": 1})
    network.router.receive(
        network.client, control(1, wire.End("d", ATTACH.job_id, client="client"))
    )
    assert len(network.counts.census) == 0
    assert network.counts.tallies.of("default") is None


def test_an_end_that_several_hear_is_one(network: Network) -> None:
    """Who looks on hears it, too; and who attaches again hears it again."""
    first = network.attach()
    watcher = network.join()
    second = network.attach(1, watcher, spec=None, role=wire.Role.VIEWER, cursors=cursors())
    third = network.attach(2)
    for number in (first, second, third):
        network.end(number)
    assert (network.tally.jobs_asked, network.tally.jobs_ended) == (1, {"exited": 1})


def test_a_request_is_no_job(network: Network) -> None:
    """Files, ports and lists are counted by themselves."""
    number = network.attach(spec=wire.encode_spec(wire.JobsSpec()))
    network.end(number)
    assert (network.tally.requests, network.tally.jobs_asked, network.tally.jobs_ended) == (
        1,
        0,
        {},
    )


@pytest.mark.parametrize(
    ("spec", "use"),
    [
        (wire.CommandSpec((b"true",)), "program"),
        (wire.DownloadSpec(b"/x"), "transfer"),
        (wire.ConnectSpec("localhost", 80), "forward"),
        (wire.JobsSpec(), "request"),
    ],
    ids=["command", "download", "connect", "jobs"],
)
def test_bytes_of_streams_are_counted_by_what_they_are_for(
    network: Network, spec: wire.Spec, use: str
) -> None:
    """Each way, without what they are wrapped in."""
    number = network.attach(spec=wire.encode_spec(spec))
    network.router.receive(network.client, data(1, Stream.INPUT, 0, b"abc"))
    network.router.receive(network.client, op(1, 0, wire.Signal("INT")))
    network.router.receive(network.daemon, event(number, 0, wire.Started(1)))
    network.router.receive(network.daemon, data(number, Stream.OUTPUT, 0, b"defgh"))
    traffic = network.tally.traffic[use]
    assert (traffic.to_daemons, traffic.to_clients) == (3, 5)
    assert (network.tally.bytes_to_daemons, network.tally.bytes_to_clients) == (3, 5)


def test_a_job_that_the_daemon_refuses_did_not_run(network: Network) -> None:
    """Its code is counted, and who said it."""
    number = network.attach()
    refused = wire.Refused(RefusedCode.POLICY_DENIED, "no")
    network.router.receive(network.daemon, control(number, refused))
    assert network.tally.jobs_ended == {"refused": 1}
    assert network.counts.refused == {("daemon", "policy_denied"): 1}


def test_who_is_refused_a_job_of_somebody_else_does_not_end_it(network: Network) -> None:
    """BUSY says that it runs."""
    network.attach()
    other = network.attach(1, network.join(), client="other", spec=None, cursors=cursors())
    network.router.receive(network.daemon, control(other, wire.Refused(RefusedCode.BUSY, "no")))
    assert (network.tally.jobs_running, network.tally.jobs_ended) == (1, {})


@pytest.mark.parametrize(
    ("code", "changes"),
    [
        pytest.param(RefusedCode.JOB_ID_CONFLICT, {"spec": FALSE}, id="another-spec"),
        pytest.param(RefusedCode.DENIED, {"spec": None, "cursors": cursors()}, id="bad-cursor"),
    ],
)
@pytest.mark.parametrize("heard", [wire.Attached(), wire.Started(7)])
def test_a_job_that_runs_is_not_ended_by_what_another_is_refused(
    network: Network,
    code: RefusedCode,
    changes: dict[str, Any],
    heard: wire.Attached | wire.Started,
) -> None:
    """However the daemon has said that it is there; its end is heard and counted."""
    number = network.attach()
    said = control(number, heard) if isinstance(heard, wire.Attached) else event(number, 0, heard)
    network.router.receive(network.daemon, said)
    other = network.attach(1, network.join(), client="other", **changes)
    network.router.receive(network.daemon, control(other, wire.Refused(code, "no")))
    assert (network.tally.jobs_running, network.tally.jobs_ended) == (1, {})
    network.end(number)
    assert (network.tally.jobs_running, network.tally.jobs_ended) == (0, {"exited": 1})


def test_another_spec_says_that_the_job_is_there(network: Network) -> None:
    """Though its own start has had no answer yet."""
    network.attach()
    other = network.attach(1, network.join(), client="other", spec=FALSE)
    refused = wire.Refused(RefusedCode.JOB_ID_CONFLICT, "no")
    network.router.receive(network.daemon, control(other, refused))
    assert (network.tally.jobs_running, network.tally.jobs_ended) == (1, {})


@pytest.mark.parametrize("is_open", [False, True])
def test_a_job_that_the_daemon_has_forgotten_runs_no_more(network: Network, is_open: bool) -> None:
    """Nobody has heard how it ended; whoever is attached then, or attaches later, is told that it isn't there."""
    number = network.attach()
    network.router.receive(network.daemon, control(number, wire.Attached()))
    if not is_open:
        network.router.receive(network.client, control(1, wire.Detach()))
        drain(network.daemon.scheduler)
        number = network.attach(2, spec=None, cursors=cursors())
    network.router.receive(network.daemon, control(number, wire.Refused(RefusedCode.ENDED, "no")))
    assert (network.tally.jobs_running, network.tally.jobs_ended) == (0, {"unheard": 1})


def test_what_the_controller_refuses_is_counted(network: Network) -> None:
    """By its code, which is one of a closed set; nothing was asked of a daemon."""
    network.router.receive(network.client, control(1, attrs.evolve(ATTACH, daemon_id="nobody")))
    viewer = network.join(Principal("v", "acme", Role.VIEWER))
    network.router.receive(viewer, control(1, attrs.evolve(ATTACH, job_id="chosen")))
    assert network.counts.refused == {
        ("controller", "daemon_not_found"): 1,
        ("controller", "denied"): 1,
    }
    assert network.tally.jobs_asked == 0


@pytest.mark.parametrize("how", ["gone", "restarted"])
def test_jobs_of_a_daemon_that_is_no_more_are_lost(network: Network, how: str) -> None:
    """It won't come back, or has come back as another instance."""
    network.attach()
    if how == "gone":
        network.router.remove_daemon(network.daemon, DaemonState.GONE)
    else:
        network.router.remove_daemon(network.daemon, DaemonState.AWAY)
        assert network.tally.jobs_running == 1
        network.router.add_daemon(network.name, "there")
    assert (network.tally.jobs_running, network.tally.jobs_ended) == (0, {"lost": 1})


def test_a_job_outlives_a_cut(network: Network) -> None:
    """The daemon comes back, the client attaches again, and it is the same job."""
    network.attach()
    network.router.remove_daemon(network.daemon, DaemonState.AWAY)
    network.daemon = network.router.add_daemon(network.name, "here")
    network.end(network.attach(2))
    assert (network.tally.jobs_asked, network.tally.jobs_ended) == (1, {"exited": 1})


def test_daemons_are_counted_as_they_come_and_go(network: Network) -> None:
    """By tenant and state, and by platforms, of which there are four names."""
    population = network.counts.population
    odd = network.router.add_daemon("e", "x", wire.DaemonDescription(platform="plan9"))
    assert set(population) == {("acme", DaemonState.ONLINE, 1), ("default", DaemonState.ONLINE, 1)}
    assert population.platforms == {"linux": 1, "darwin": 0, "win32": 0, "other": 1}
    network.router.remove_daemon(odd, DaemonState.AWAY)
    assert (population.total(DaemonState.ONLINE), population.total(DaemonState.AWAY)) == (1, 1)
    odd = network.router.add_daemon("e", "x", wire.DaemonDescription(platform="linux"))
    assert (population.reconnects, population.platforms["linux"]) == (1, 2)
    network.router.remove_daemon(odd, DaemonState.GONE)
    network.router.forget_daemon("e")
    network.router.forget_daemon(network.name)  # while it is here: nothing is left of it
    assert (set(population), sum(population.platforms.values())) == (set(), 0)


# ---- what clients are told -----------------------------------------------------------------------


def ask(network: Network, principal: Principal) -> wire.Statistics:
    """What somebody is told."""
    link = network.join(principal)
    network.router.receive(link, control(0, wire.AskStatistics(7)))
    ((channel, answer),) = drain(link.scheduler)
    assert channel == 0
    assert isinstance(answer, wire.Statistics)
    assert answer.number == 7
    return answer


def test_a_tenant_is_told_of_itself(network: Network) -> None:
    """Of jobs and bytes; not of the program, nor of anybody else."""
    network.router.process = lambda: ProcessFigures(3, 4.0, 0.5)
    network.end(network.attach())
    told = ask(network, Principal("v", "acme", Role.VIEWER))
    assert (told.jobs_asked, told.jobs_running, told.jobs_ended) == (1, 0, {"exited": 1})
    assert (told.operators, told.uptime, told.loop_lag) == (None, None, None)


def test_who_may_do_everything_is_told_everything(network: Network) -> None:
    """All tenants together, and the program."""
    network.router.process = lambda: ProcessFigures(3, 4.0, 0.5)
    network.attach()
    network.router.add_daemon("e", "x")
    told = ask(network, EVERYTHING)
    assert (told.jobs_asked, told.jobs_running, told.requests) == (1, 1, 0)
    assert (told.operators, told.uptime, told.loop_lag) == (3, 4.0, 0.5)
    looker = ask(network, Principal("v", "*", Role.VIEWER))
    assert (looker.jobs_asked, looker.operators) == (1, None)


@pytest.mark.parametrize(
    "principal",
    [
        Principal("n", "nobody"),
        Principal("n", "acme", daemons="d*"),
        Principal("n", "acme", verbs=frozenset({Verb.LIST})),
        Principal("n", "acme", verbs=frozenset({Verb.JOBS})),
    ],
    ids=["other-tenant", "some-daemons", "no-jobs", "no-list"],
)
def test_nobody_is_told_of_what_it_may_not_see(network: Network, principal: Principal) -> None:
    """Another tenant's, those of daemons that it doesn't see, or what its token leaves out."""
    network.attach()
    assert ask(network, principal) == wire.Statistics(7)


def test_who_shares_a_tally_is_told_nothing(network: Network) -> None:
    """It would be of others, too."""
    network.counts.tallies._most = 1
    network.router.add_daemon("late/e", "x")
    assert ask(network, Principal("l", "late")) == wire.Statistics(7)


# ---- what is read off the wire -------------------------------------------------------------------


@pytest.mark.parametrize(
    "said",
    [
        wire.Started(5),
        wire.Stalled(Stream.OUTPUT, wire.StallReason.DISK, "full"),
        *(wire.Exited(None, 9, each, 2.5, True, {Stream.OUTPUT: 7}) for each in wire.Outcome),
        *(wire.Failed(each, "\xa7outcome") for each in wire.FailedCode),
    ],
    ids=str,
)
def test_an_outcome_is_what_the_event_says(said: wire.Event) -> None:
    """In whatever order a peer writes its fields."""
    encoded = wire.encode_event(said)
    expected = None
    if isinstance(said, wire.Exited):
        expected = said.outcome.value
    elif isinstance(said, wire.Failed):
        expected = said.code.value
    assert wire.peek_outcome(memoryview(encoded)) == expected
    reordered = dict(reversed(wire._unpack(encoded).items()))
    assert wire.peek_outcome(wire._pack(reordered)) == expected


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xa1t\xa6exited",
        b"x\xa7outcome\xa1t\xa6exited",
        b"\xa7outcome\xa5exite\xa1t\xa6exited",
    ],
    ids=["empty", "no-outcome", "cut", "no-such"],
)
def test_what_is_no_event_tells_no_end(body: bytes) -> None:
    """A daemon can spoil only its own numbers, and nothing else."""
    assert wire.peek_outcome(body) is None


@pytest.mark.parametrize("kind", wire.SPEC_KINDS)
def test_a_kind_is_what_the_spec_says(kind: str) -> None:
    """However it is written; and what isn't known has no name."""
    assert wire.peek_kind(wire._pack({"kind": kind, "a": 1})) == kind
    assert wire.peek_kind(wire._pack({"a": 1, "kind": kind})) == kind
    assert wire.peek_kind(wire._pack({"kind": f"{kind}2"})) == ""


@pytest.mark.parametrize("spec", [b"", b"spec", b"\x81\xa4kind"], ids=["empty", "text", "cut"])
def test_what_is_no_spec_has_no_kind(spec: bytes) -> None:
    """The daemon says what is wrong with it."""
    assert wire.peek_kind(spec) == ""
