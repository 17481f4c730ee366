"""The router: whose frame goes to whom, in whose name, and what is left when somebody goes."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from scripted import (
    Bytes,
    Skip,
    control,
    cursors,
    data,
    drain,
    event,
    frames_from,
    gap,
    op,
    unknown,
)

from sandd import wire
from sandd._core._errors import LocalProtocolError, RemoteProtocolError
from sandd._core.identity.rights import EVERYTHING, Principal
from sandd._core.identity.rights import Role as RightsRole
from sandd._core.limits import NO_LIMITS, Limits
from sandd._core.router import Router
from sandd._core.router_links import ClientLink, DaemonLink, RouterLink
from sandd.wire import DaemonState, FrameType, RefusedCode, Role, Stream

ATTACH = wire.Attach("d", "job", "client", cursors(), b"spec", "here")
ONLINE = wire.DaemonStatus("d", DaemonState.ONLINE, "here")
AWAY = wire.DaemonStatus("d", DaemonState.AWAY, "here")
GONE = wire.DaemonStatus("d", DaemonState.GONE, "here")
TOLD = (0, wire.DaemonsTold())
ATTACHED = wire.Attached(Role.OWNER, 1, wire.JobState.RUNNING, ())


class Network:
    """A router with one daemon, "d", and one client that has heard of it."""

    def __init__(self) -> None:
        self.router = Router()
        self.daemon = self.router.add_daemon("d", "here")
        self.client = self.join()

    def join(self, principal: Principal = EVERYTHING, client: str = "") -> ClientLink:
        """Another client, that has heard what there is; one in another process has a name."""
        link = self.router.add_client(principal=principal, client=client)
        drain(link.scheduler)
        return link

    def attach(self, channel: int = 1, client: ClientLink | None = None, **changes: Any) -> int:
        """A client attaches; returns the channel the daemon hears it on."""
        link = client or self.client
        self.router.receive(link, control(channel, attrs.evolve(ATTACH, **changes)))
        ((number, message),) = drain(self.daemon.scheduler)
        assert isinstance(message, wire.Attach)
        return number

    def is_empty(self) -> bool:
        """No channel of anybody is left, and nothing waits to be sent."""
        links: list[RouterLink] = [*self.router.clients, *self.router.daemons.values()]
        return not any(link.routes or link.scheduler.pending for link in links)


@pytest.fixture
def network() -> Network:
    """A daemon and a client that are online."""
    return Network()


# ---- who is there --------------------------------------------------------------------------------


def test_clients_hear_of_every_daemon() -> None:
    """A client is told what there is when it comes, and of each change after that."""
    router = Router()
    router.add_daemon("d", "here")
    client = router.add_client()
    assert drain(client.scheduler) == [(0, ONLINE), TOLD]
    other = router.add_daemon("e", "there")
    router.remove_daemon(other, DaemonState.GONE)
    assert [message.state for _, message in drain(client.scheduler)] == ["online", "gone"]
    late = router.add_client()
    *known, told = drain(late.scheduler)
    assert {message.daemon_id for _, message in known} == {"d", "e"}
    assert told == TOLD


def test_an_absent_daemon_can_be_given_up_and_forgotten(network: Network) -> None:
    """AWAY turns to GONE once, and a daemon that is forgotten is one nobody has heard of."""
    network.router.remove_daemon(network.daemon, DaemonState.AWAY)
    network.router.daemon_gone("d")
    network.router.daemon_gone("d")
    network.router.daemon_gone("stranger")
    assert drain(network.client.scheduler) == [(0, AWAY), (0, GONE)]
    network.router.forget_daemon("d")
    assert drain(network.router.add_client().scheduler) == [TOLD]
    network.router.receive(network.client, control(1, ATTACH))
    ((_, refused),) = drain(network.client.scheduler)
    assert refused.code is RefusedCode.DAEMON_NOT_FOUND


def test_a_daemon_that_is_online_is_not_given_up(network: Network) -> None:
    """A give-up that comes too late is no matter."""
    network.router.daemon_gone("d")
    assert drain(network.client.scheduler) == []


def test_a_new_link_supersedes_the_old_one(network: Network) -> None:
    """(8) At most one link a daemon is live: attachments by the old one are over, and clients know."""
    number = network.attach()
    fresh = network.router.add_daemon("d", "here")
    assert drain(network.client.scheduler) == [(1, wire.Away()), (0, ONLINE)]
    assert network.router.daemons == {"d": fresh}
    network.router.receive(network.daemon, event(number, 0, wire.Started(1)))
    network.router.receive(network.daemon, control(number, ATTACHED))
    network.router.remove_daemon(network.daemon, DaemonState.AWAY)
    assert drain(network.client.scheduler) == []
    assert network.router.daemons == {"d": fresh}
    assert network.is_empty()


# ---- attaching -----------------------------------------------------------------------------------


def test_attach_is_passed_on_in_the_links_own_name(network: Network) -> None:
    """The principal is the link's and the tenant the daemon's, whatever the client said; all else is as it said."""
    client = network.join(Principal("alice"))
    message = wire.Attach(
        daemon_id="d",
        job_id="j",
        client="c",
        cursors=cursors(output=5),
        spec=b"s",
        instance="here",
        role=Role.VIEWER,
        takeover=True,
        generation=3,
        settled=9,
        attempt=7,
        tenant="forged",
        principal="root",
        output_credit=77,
        limits=Limits(processes=7),
        isolation=wire.IsolationLevel.BWRAP,
        trace="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    )
    assert all(
        getattr(message, field.name) != field.default
        for field in attrs.fields(wire.Attach)
        if field.default is not attrs.NOTHING
    )
    network.router.receive(client, control(4, message))
    stamped = attrs.evolve(
        message,
        tenant="default",
        principal="alice",
        limits=NO_LIMITS,
        isolation=wire.IsolationLevel.NONE,
    )
    assert drain(network.daemon.scheduler) == [(1, stamped)]


def test_an_attach_is_stamped_with_the_limits_of_its_policies() -> None:
    """Whatever the client said there."""
    allowed = Limits(processes=7)
    router = Router(limits_of=lambda _, message: allowed if message.job_id == "j" else NO_LIMITS)
    daemon, client = router.add_daemon("d", "here"), router.add_client()
    for number, (job_id, expected) in enumerate((("j", allowed), ("k", NO_LIMITS)), 1):
        said = Limits(processes=1000, wall=3.0)
        message = wire.Attach("d", job_id, "c", spec=b"s", instance="here", limits=said)
        router.receive(client, control(number, message))
        [(_, stamped)] = drain(daemon.scheduler)
        assert isinstance(stamped, wire.Attach)
        assert stamped.limits == expected


def test_an_attach_is_stamped_with_its_tenants_isolation() -> None:
    """That is the controller's policy's to say; a daemon takes the most of it, its own and the request's."""
    levels = {"default": wire.IsolationLevel.LANDLOCK}
    router = Router(isolation_of=levels.__getitem__)
    daemon, client = router.add_daemon("d", "here"), router.add_client()
    message = wire.Attach("d", "j", "c", spec=b"s", instance="here")
    router.receive(client, control(1, message))
    [(_, stamped)] = drain(daemon.scheduler)
    assert isinstance(stamped, wire.Attach)
    assert stamped.isolation is wire.IsolationLevel.LANDLOCK


def test_clients_share_a_daemons_link(network: Network) -> None:
    """Each attachment has a channel of its own towards the daemon, whatever its number at the client."""
    other = network.join()
    assert [network.attach(1), network.attach(7, other), network.attach(3)] == [1, 2, 3]
    for number, body in ((1, b"one"), (2, b"seven"), (3, b"three")):
        network.router.receive(network.daemon, data(number, Stream.OUTPUT, 0, body))
    assert drain(network.client.scheduler) == [
        (1, Bytes(Stream.OUTPUT, 0, b"one")),
        (3, Bytes(Stream.OUTPUT, 0, b"three")),
    ]
    assert drain(other.scheduler) == [(7, Bytes(Stream.OUTPUT, 0, b"seven"))]


def test_attach_to_an_absent_daemon_is_away(network: Network) -> None:
    """Nothing is queued for a link that isn't live: the client is told to come again."""
    network.router.remove_daemon(network.daemon, DaemonState.AWAY)
    drain(network.client.scheduler)
    network.router.receive(network.client, control(1, ATTACH))
    assert drain(network.client.scheduler) == [(1, wire.Away())]
    assert network.is_empty()


def test_attach_to_an_unknown_daemon_is_refused(network: Network) -> None:
    """A daemon nobody has heard of can't be waited for."""
    network.router.receive(network.client, control(1, attrs.evolve(ATTACH, daemon_id="x")))
    ((number, refused),) = drain(network.client.scheduler)
    assert (number, refused.code) == (1, RefusedCode.DAEMON_NOT_FOUND)
    assert network.is_empty()


def test_channel_numbers_only_rise(network: Network) -> None:
    """A channel number is used once on a link; 0 is the link's own."""
    with pytest.raises(RemoteProtocolError, match="behind 0"):
        network.router.receive(network.client, control(0, ATTACH))
    network.attach(5)
    with pytest.raises(RemoteProtocolError, match="behind 5"):
        network.router.receive(network.client, control(5, ATTACH))
    assert drain(network.daemon.scheduler) == []


def test_an_attach_too_large_to_be_stamped_is_refused(network: Network) -> None:
    """A client at the limit of a message gets an answer, and leaves no channel behind."""
    client = network.join(Principal("p" * 128))
    plain = len(wire.encode_control(1, attrs.evolve(ATTACH, spec=b""))[1])
    largest = attrs.evolve(ATTACH, spec=bytes(wire.MAX_CONTROL_BYTES - plain - 8))
    network.router.receive(client, control(1, largest))
    ((number, refused),) = drain(client.scheduler)
    assert (number, refused.code) == (1, RefusedCode.DENIED)
    assert network.is_empty()
    network.router.receive(client, data(1, Stream.INPUT, 0, b"late"))
    assert network.attach(2, client) == 1


# ---- whose daemons -------------------------------------------------------------------------------

ACME = Principal("alice", "acme", RightsRole.RUNNER)
EVE = Principal("eve", role=RightsRole.VIEWER)


def test_a_client_hears_of_its_tenants_daemons_alone(network: Network) -> None:
    """When it comes, and of each change after that; by plain ids, and told no end of what it never saw."""
    network.router.add_daemon("acme/d", "there")
    client = network.router.add_client(principal=ACME)
    assert drain(client.scheduler) == [
        (0, wire.DaemonStatus("d", DaemonState.ONLINE, "there")),
        TOLD,
    ]
    network.router.add_daemon("e", "here")
    network.router.tell_cloned("d", "x", wire.UNDESCRIBED)
    network.router.remove_daemon(network.daemon, DaemonState.GONE)
    assert drain(client.scheduler) == []
    network.router.tell_cloned("acme/d", "x", wire.UNDESCRIBED)
    assert drain(client.scheduler) == [(0, wire.DaemonCloned("d", "x"))]


@pytest.mark.parametrize("said", ["d", "other/d", "acme/d", "default/d", "nobody", "/", ""])
def test_another_tenants_daemon_is_answered_for_as_none(network: Network, said: str) -> None:
    """Online, away or never there: one answer, and nothing reaches a daemon."""
    network.router.add_daemon("other/d", "there")
    network.router.add_daemon("other/away", "there")
    client = network.join(ACME)
    drain(network.daemon.scheduler)
    network.router.receive(client, control(1, attrs.evolve(ATTACH, daemon_id=said)))
    assert drain(client.scheduler) == [
        (1, wire.Refused(RefusedCode.DAEMON_NOT_FOUND, "no such daemon"))
    ]
    network.router.receive(client, control(0, wire.End(said, "job")))
    assert drain(network.daemon.scheduler) == []
    assert network.router.daemons["other/d"].scheduler.pending == 0
    kept = [end.daemon_id for end in network.router.kept_ends]
    assert all(name.startswith("acme/") for name in kept)


def test_jobs_and_ends_are_of_the_daemons_tenant(network: Network) -> None:
    """Whoever asks, its tenant's or one who sees all; and the daemon hears its full name."""
    acme = network.router.add_daemon("acme/d", "there")
    for principal, said in ((ACME, "d"), (EVERYTHING, "acme/d")):
        client = network.join(principal)
        network.router.receive(client, control(1, attrs.evolve(ATTACH, daemon_id=said)))
        network.router.receive(client, control(0, wire.End(said, "job", client="c")))
        (_, attach), (_, end) = drain(acme.scheduler)
        assert (attach.daemon_id, attach.tenant, attach.principal) == (
            *("acme/d", "acme"),
            principal.name,
        )
        assert end == wire.End("acme/d", "job", client="c", tenant="acme")
    assert drain(network.daemon.scheduler) == []


def test_an_end_closes_no_channel_of_another_daemon(network: Network) -> None:
    """It may name one daemon, and come on a channel that leads to another: that one is only detached."""
    acme = network.router.add_daemon("acme/d", "there")
    number = network.attach(1)
    network.router.receive(network.client, control(1, wire.End("acme/d", "job")))
    assert drain(network.daemon.scheduler) == [(number, wire.Detach())]
    assert drain(acme.scheduler) == [(0, wire.End("acme/d", "job", tenant="acme"))]


def test_a_viewers_channel_carries_nothing_to_the_daemon(network: Network) -> None:
    """Whatever the daemon would say to that."""
    client = network.join(EVE, client="0" * 16)
    number = network.attach(1, client, spec=None, role=Role.VIEWER)
    for stream in (Stream.INPUT, Stream.OPS):
        with pytest.raises(RemoteProtocolError, match="only looks on"):
            network.router.receive(client, data(1, stream, 0, b"x"))
    network.router.receive(client, control(1, wire.End("d", "job")))
    assert drain(network.daemon.scheduler) == [(number, wire.Detach())]


def test_what_a_client_may_not_do_is_refused_before_the_daemon_hears_of_it(
    network: Network,
) -> None:
    """By the router, whose table says which right it takes."""
    client = network.join(EVE, client="0" * 16)
    network.router.receive(client, control(1, ATTACH))
    ((number, refused),) = drain(client.scheduler)
    assert (number, refused.code) == (1, RefusedCode.DENIED)
    assert "'eve' may not do that" in refused.message
    assert network.is_empty()


# ---- frames --------------------------------------------------------------------------------------


def test_payloads_are_passed_on_verbatim(network: Network) -> None:
    """Data, ends, gaps, events and ops arrive bit for bit, under the other channel number."""
    number = network.attach(9)
    for received in (
        event(number, 0, wire.Started(5)),
        data(number, Stream.OUTPUT, 3, b"abc"),
        gap(number, Stream.OUTPUT, 6, 9),
        data(number, Stream.OUTPUT, 9, b"", final=True),
    ):
        network.router.receive(network.daemon, received)
        (sent,) = frames_from(network.client.scheduler)
        assert (sent.type, sent.channel, sent.payload) == (received.type, 9, received.payload)
    for received in (op(9, 0, wire.Signal("INT")), data(9, Stream.INPUT, 0, b"x", final=True)):
        network.router.receive(network.client, received)
        (sent,) = frames_from(network.daemon.scheduler)
        assert (sent.type, sent.channel, sent.payload) == (received.type, number, received.payload)


def test_messages_of_a_channel_are_passed_on(network: Network) -> None:
    """What the two ends of a channel say to each other arrives there."""
    number = network.attach(9)
    window = wire.Window((wire.StreamWindow(Stream.OUTPUT, 1, 2),))
    for message in (ATTACHED, window):
        network.router.receive(network.daemon, control(number, message))
        assert drain(network.client.scheduler) == [(9, message)]
    network.router.receive(network.client, control(9, window))
    assert drain(network.daemon.scheduler) == [(number, window)]
    network.router.receive(network.daemon, unknown(number))
    assert drain(network.client.scheduler) == [(9, wire.Unknown("newer"))]


def test_a_flush_goes_there_and_back(network: Network) -> None:
    """The question reaches the daemon on its channel, the answer the client on its own."""
    network.attach(1)
    number = network.attach(2)
    network.router.receive(network.client, control(2, wire.Flush(1, 2, True)))
    assert drain(network.daemon.scheduler) == [(number, wire.Flush(1, 2, True))]
    network.router.receive(network.daemon, control(number, wire.Flush(1, 2, True)))
    assert drain(network.client.scheduler) == [(2, wire.Flush(1, 2, True))]
    network.router.receive(network.client, control(2, wire.Detach()))
    network.router.receive(network.client, control(2, wire.Flush()))
    network.router.receive(network.daemon, control(number, wire.Flush()))
    assert drain(network.daemon.scheduler) == [(number, wire.Detach())]
    assert drain(network.client.scheduler) == []


def test_a_streams_order_is_kept_and_messages_overtake_bytes(network: Network) -> None:
    """Within a stream nothing overtakes; what an application waits for doesn't wait behind bulk."""
    number = network.attach(1)
    network.router.receive(network.daemon, data(number, Stream.OUTPUT, 0, b"ab"))
    network.router.receive(network.daemon, data(number, Stream.OUTPUT, 2, b"cd", final=True))
    network.router.receive(network.daemon, event(number, 0, wire.Started(1)))
    network.router.receive(network.daemon, control(number, ATTACHED))
    assert drain(network.client.scheduler) == [
        (1, ATTACHED),
        (1, wire.Started(1)),
        (1, Bytes(Stream.OUTPUT, 0, b"ab")),
        (1, Bytes(Stream.OUTPUT, 2, b"cd", True)),
    ]


@pytest.mark.parametrize(
    ("broken", "complaint"),
    [
        pytest.param(data(2, Stream.INPUT, 0, b"x"), "never opened", id="data ahead"),
        pytest.param(data(0, Stream.INPUT, 0, b"x"), "never opened", id="data on the link"),
        pytest.param(control(2, wire.Detach()), "never opened", id="detach ahead"),
        pytest.param(data(1, Stream.OUTPUT, 0, b"x"), "not flow to the daemon", id="output"),
        pytest.param(gap(1, Stream.INPUT, 0, 5), "not flow to the daemon", id="gap in input"),
        pytest.param(control(1, ATTACHED), "not for a client", id="an answer"),
        pytest.param(control(0, ONLINE), "not for a client", id="a status"),
        pytest.param(control(0, wire.Ping()), "not for a client", id="a ping"),
        pytest.param(
            wire.Frame(FrameType.CONTROL, 1, memoryview(b"?")), "bad control", id="no message"
        ),
        pytest.param(wire.Frame(FrameType.DATA, 1, memoryview(b"?")), "shorter than", id="no data"),
    ],
)
def test_a_client_that_breaks_the_rules_touches_no_other(
    network: Network, broken: wire.Frame, complaint: str
) -> None:
    """The client's link is to be closed; the daemon hears nothing of it but a Detach."""
    number = network.attach(1)
    other = network.join()
    with pytest.raises(RemoteProtocolError, match=complaint):
        network.router.receive(network.client, broken)
    assert drain(network.daemon.scheduler) == []
    network.router.remove_client(network.client)
    assert drain(network.daemon.scheduler) == [(number, wire.Detach())]
    assert drain(other.scheduler) == []
    assert network.is_empty()


@pytest.mark.parametrize(
    ("broken", "complaint"),
    [
        pytest.param(data(2, Stream.OUTPUT, 0, b"x"), "never opened", id="data ahead"),
        pytest.param(control(0, ATTACHED), "never opened", id="an answer on the link"),
        pytest.param(data(1, Stream.INPUT, 0, b"x"), "not flow to the client", id="input"),
        pytest.param(gap(1, Stream.EVENTS, 0, 5), "not flow to the client", id="gap in events"),
        pytest.param(control(1, ATTACH), "not for a daemon", id="an attach"),
        pytest.param(control(1, wire.Away()), "not for a daemon", id="the router's word"),
        pytest.param(control(0, ONLINE), "not for a daemon", id="a status"),
        pytest.param(control(1, wire.Detach()), "not for a daemon", id="a detach"),
        pytest.param(
            wire.Frame(FrameType.CONTROL, 1, memoryview(b"?")), "bad control", id="no message"
        ),
        pytest.param(wire.Frame(FrameType.DATA, 1, memoryview(b"?")), "shorter than", id="no data"),
    ],
)
def test_a_daemon_that_breaks_the_rules_touches_no_other(
    network: Network, broken: wire.Frame, complaint: str
) -> None:
    """The daemon's link is to be closed; its clients hear that it is away."""
    network.attach(1)
    with pytest.raises(RemoteProtocolError, match=complaint):
        network.router.receive(network.daemon, broken)
    assert drain(network.client.scheduler) == []
    network.router.remove_daemon(network.daemon, DaemonState.AWAY)
    assert drain(network.client.scheduler) == [(1, wire.Away()), (0, AWAY)]
    assert network.is_empty()


def test_messages_of_a_newer_version_are_ignored(network: Network) -> None:
    """A link message that this router doesn't know costs nobody a connection."""
    network.attach(1)
    network.router.receive(network.daemon, unknown(0))
    network.router.receive(network.client, unknown(0))
    network.router.receive(network.client, unknown(1))
    assert drain(network.daemon.scheduler) == []
    assert drain(network.client.scheduler) == []


def test_a_link_of_no_kind_is_our_own_mistake(network: Network) -> None:
    """Every link belongs to a client or to a daemon."""
    with pytest.raises(LocalProtocolError):
        network.router.receive(RouterLink(set()), control(0, wire.Ping()))


# ---- channels close ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "last", [wire.Refused(RefusedCode.BUSY), wire.Taken()], ids=["refused", "taken"]
)
def test_a_channel_that_the_daemon_closed_is_gone(network: Network, last: wire.Control) -> None:
    """The last word arrives, the route is gone, and late frames of either side are no error."""
    number = network.attach(1)
    network.router.receive(network.daemon, control(number, last))
    assert drain(network.client.scheduler) == [(1, last)]
    assert network.is_empty()
    network.router.receive(network.client, data(1, Stream.INPUT, 0, b"late"))
    network.router.receive(network.client, control(1, wire.Detach()))
    network.router.receive(network.daemon, data(number, Stream.OUTPUT, 0, b"late"))
    network.router.receive(network.daemon, control(number, ATTACHED))
    assert network.is_empty()


def test_a_channel_that_the_client_closed_is_gone(network: Network) -> None:
    """The daemon hears the Detach, what waited for the client is dropped, and late frames are no error."""
    number = network.attach(1)
    network.router.receive(network.daemon, data(number, Stream.OUTPUT, 0, b"waiting"))
    network.router.receive(network.client, control(1, wire.Detach()))
    assert drain(network.daemon.scheduler) == [(number, wire.Detach())]
    network.router.receive(network.daemon, data(number, Stream.OUTPUT, 7, b"late"))
    assert network.is_empty()


def test_a_client_that_goes_is_detached_everywhere(network: Network) -> None:
    """Its jobs go on, its channels are closed, and nothing is scheduled for it any more."""
    numbers = [network.attach(1), network.attach(2)]
    network.router.receive(network.client, data(1, Stream.INPUT, 0, b"waiting"))
    network.router.remove_client(network.client)
    assert drain(network.daemon.scheduler) == [(number, wire.Detach()) for number in numbers]
    network.router.receive(network.daemon, data(numbers[0], Stream.OUTPUT, 0, b"late"))
    assert network.client not in network.router.dirty
    assert network.is_empty()


def test_a_daemon_that_says_goodbye_is_gone(network: Network) -> None:
    """Clients hear that it won't return; Ends sent to it are not kept for anybody."""
    network.attach(1)
    network.router.receive(network.client, control(0, wire.End("d", "job")))
    network.router.remove_daemon(network.daemon, DaemonState.GONE)
    assert drain(network.client.scheduler) == [(1, wire.Away()), (0, GONE)]
    fresh = network.router.add_daemon("d", "another")
    assert drain(fresh.scheduler) == []


# ---- dirty ---------------------------------------------------------------------------------------


def test_dirty_names_the_links_that_have_something_to_send(network: Network) -> None:
    """The shell wakes exactly the writers of these."""
    network.router.dirty.clear()
    number = network.attach(1)
    assert network.router.dirty == {network.daemon}
    network.router.dirty.clear()
    network.router.receive(network.daemon, data(number, Stream.OUTPUT, 0, b"x"))
    assert network.router.dirty == {network.client}
    network.router.remove_daemon(network.daemon, DaemonState.AWAY)
    assert network.router.dirty == {network.client}


# ---- ends ----------------------------------------------------------------------------------------


def test_end_is_passed_on_in_the_links_own_name(network: Network) -> None:
    """The tenant is the daemon's, all else as the client said; a job needn't be attached for it."""
    client = network.join()
    message = wire.End("d", "job", 1.5, "client", "forged")
    network.router.receive(client, control(0, message))
    assert drain(network.daemon.scheduler) == [(0, attrs.evolve(message, tenant="default"))]


def test_end_is_kept_for_a_daemon_that_is_away(network: Network) -> None:
    """It is the first thing said on the daemon's return, once, before anybody can attach."""
    network.router.remove_daemon(network.daemon, DaemonState.AWAY)
    for job in ("one", "two", "one"):
        network.router.receive(network.client, control(0, wire.End("d", job, client="c")))
    network.router.receive(network.client, control(0, wire.End("stranger", "job")))
    fresh = network.router.add_daemon("d", "here")
    assert drain(fresh.scheduler) == [
        (0, wire.End("d", job, client="c", tenant="default")) for job in ("one", "two")
    ]
    again = network.router.add_daemon("d", "here")
    assert len(drain(again.scheduler)) == 2
    assert drain(network.router.add_daemon("e", "here").scheduler) == []


def test_ends_of_two_clients_for_one_job_are_both_kept(network: Network) -> None:
    """Which of them owned the job is for the daemon to say."""
    network.router.remove_daemon(network.daemon, DaemonState.AWAY)
    for client in ("winner", "loser"):
        network.router.receive(network.client, control(0, wire.End("d", "job", client=client)))
    ends = drain(network.router.add_daemon("d", "here").scheduler)
    assert [end.client for _, end in ends] == ["winner", "loser"]


def test_end_is_said_again_after_a_cut(network: Network) -> None:
    """An End that was under way when the link broke may not have arrived."""
    network.router.receive(network.client, control(0, wire.End("d", "job")))
    drain(network.daemon.scheduler)
    network.router.remove_daemon(network.daemon, DaemonState.AWAY)
    fresh = network.router.add_daemon("d", "here")
    assert drain(fresh.scheduler) == [(0, wire.End("d", "job", tenant="default"))]


def test_an_end_that_has_arrived_is_not_kept(network: Network) -> None:
    """What comes on a channel tells that the daemon has all that was sent before that was opened, and nothing else."""
    router, daemon = network.router, network.daemon
    first = network.attach(1, job_id="one")
    router.receive(daemon, event(first, 0, wire.Started(1)))
    router.receive(network.client, control(1, wire.End("d", "one")))
    drain(daemon.scheduler)
    second = network.attach(2, job_id="two")
    router.receive(network.client, control(0, wire.End("d", "between")))
    drain(daemon.scheduler)
    third = network.attach(3, job_id="three")
    router.receive(network.client, control(2, wire.End("d", "two")))
    router.receive(daemon, event(first, 1, wire.Started(1)))  # sent before it had any of them
    assert [end.job_id for end, _ in daemon.ends_under_way()] == ["one", "between", "two"]
    router.receive(daemon, control(second, ATTACHED))
    assert [end.job_id for end, _ in daemon.ends_under_way()] == ["between", "two"]
    with pytest.raises(RemoteProtocolError):
        router.receive(daemon, control(third + 1, ATTACHED))
    router.remove_daemon(daemon, DaemonState.AWAY)
    ends = drain(router.add_daemon("d", "here").scheduler)
    assert [end.job_id for _, end in ends] == ["between", "two"]


def test_a_link_keeps_the_ends_of_what_runs_at_a_time(network: Network) -> None:
    """A thousand commands one after the other leave two at most: a link is for long, and of links there are many."""
    for number in range(1, 1001):
        theirs = network.attach(number, job_id=f"job-{number}")
        network.router.receive(network.daemon, event(theirs, 0, wire.Started(number)))
        end = wire.End("d", f"job-{number}", client="client")
        network.router.receive(network.client, control(number, end))
        drain(network.daemon.scheduler)
        assert len(network.daemon.ends) <= 2


def test_an_old_end_does_not_hit_a_new_job_of_the_same_id(network: Network) -> None:
    """A chosen id may be used again one day: only an End behind its last start is said again."""
    for job_id in ("chosen", "other"):
        network.router.receive(network.client, control(0, wire.End("d", job_id)))
    drain(network.daemon.scheduler)
    network.attach(1, job_id="chosen", spec=None)
    network.attach(2, job_id="chosen")
    network.router.remove_daemon(network.daemon, DaemonState.AWAY)
    fresh = network.router.add_daemon("d", "here")
    assert drain(fresh.scheduler) == [(0, wire.End("d", "other", tenant="default"))]


def test_kept_ends_are_bounded(network: Network) -> None:
    """Beyond the bound the oldest goes, and that job's lease ends it."""
    network.router._ends.limit = 3
    network.router.remove_daemon(network.daemon, DaemonState.AWAY)
    for n in range(5):
        network.router.receive(network.client, control(0, wire.End("d", f"{n}")))
    fresh = network.router.add_daemon("d", "here")
    assert [end.job_id for _, end in drain(fresh.scheduler)] == ["2", "3", "4"]


def test_a_forgotten_daemons_ends_are_forgotten_too(network: Network) -> None:
    """Nothing is kept of a daemon nobody asks for."""
    network.router.remove_daemon(network.daemon, DaemonState.AWAY)
    network.router.receive(network.client, control(0, wire.End("d", "job")))
    network.router.daemon_gone("d")
    network.router.forget_daemon("d")
    assert network.router.kept_ends == []
    assert drain(network.router.add_daemon("d", "here").scheduler) == []


def test_ends_are_kept_for_a_daemon_that_is_not_back_yet() -> None:
    """A controller that was restarted knows of nobody, but clients come back with what they had said."""
    router = Router()
    client = router.add_client(client="c")
    before = router.ends_version
    router.receive(client, control(0, wire.End("d", "job", client="pretended")))
    end = wire.End("d", "job", client="c", tenant="default")
    assert router.kept_ends == [end]
    assert router.ends_version > before
    another = Router()
    another.restore_ends(router.kept_ends)
    assert drain(another.add_daemon("d", "here").scheduler) == [(0, end)]
    assert another.kept_ends == []


def test_a_client_is_who_it_was_let_in_as(network: Network) -> None:
    """Whatever it says in an Attach or an End: else it could take another's jobs, or end them."""
    client = network.join(client="c")
    network.router.receive(client, control(1, attrs.evolve(ATTACH, client="another")))
    network.router.receive(client, control(0, wire.End("d", "job", client="another")))
    (_, attach), (_, end) = drain(network.daemon.scheduler)
    assert (attach.client, end.client) == ("c", "c")


@pytest.mark.parametrize(
    "asked",
    [
        (wire.Cursor(Stream.INPUT, 5),),
        (wire.Cursor(Stream.OUTPUT, 5, 0), wire.Cursor(Stream.OUTPUT, 9, 500)),
    ],
)
def test_senseless_cursors_cost_a_client_its_link_and_nobody_anything(
    network: Network, asked: tuple[wire.Cursor, ...]
) -> None:
    """The daemon hears nothing of them, and what others may send to it is as before."""
    client = network.join(client="c")
    with pytest.raises(RemoteProtocolError, match="twice, or for one to the daemon"):
        network.router.receive(client, control(1, attrs.evolve(ATTACH, cursors=asked)))
    network.router.remove_client(client)
    assert (network.daemon.pool.promised, network.daemon.pool.flows) == (0, 0)
    assert drain(network.daemon.scheduler) == []


def test_what_waits_keeps_no_more_than_a_few_times_its_size(network: Network) -> None:
    """Frames that came in large messages wait without these, data and control alike."""
    client = network.join(client="c")
    network.router.receive(client, control(1, attrs.evolve(ATTACH, client="c")))
    ((number, _),) = drain(network.daemon.scheduler)
    padding = b"".join(wire.encode_control(0, wire.Ping())) * 50_000
    size = 3 * wire.KIB  # so that no two of them are put together
    for offset in range(20):
        parts = [*wire.encode_data(number, Stream.OUTPUT, offset * size, bytes(size))]
        newer = unknown(number)
        first = next(wire.decode_frames(b"".join(parts) + padding))
        view = memoryview(bytes(newer.payload) + padding)[: len(newer.payload)]
        network.router.receive(network.daemon, first)
        network.router.receive(network.daemon, newer._replace(payload=view))
    frames = client.scheduler.next_frames()
    assert len(frames) == 40
    held = sum(memoryview(body.obj).nbytes for _, body in frames if isinstance(body, memoryview))
    assert held < 20 * (size + 64)


def test_credit_that_was_under_way_takes_none_back(network: Network) -> None:
    """A gap moves a stream beyond it; who had granted less before that was there hasn't said less."""
    client = network.join(client="c")
    asked = (wire.Cursor(Stream.OUTPUT, 100, 0),)
    network.router.receive(client, control(1, attrs.evolve(ATTACH, client="c", cursors=asked)))
    ((number, _),) = drain(network.daemon.scheduler)
    network.router.receive(network.daemon, gap(number, Stream.OUTPUT, 50, 5000))
    assert drain(client.scheduler) == [(1, Skip(Stream.OUTPUT, 50, 5000))]
    window = wire.Window((wire.StreamWindow(Stream.OUTPUT, 0, 300),))
    network.router.receive(client, control(1, window))
    told = [m.streams[0].max_offset for _, m in drain(network.daemon.scheduler)]
    assert told == sorted(told)
    assert told[-1] == 5000


def test_who_comes_late_is_told_since_when_daemons_are_there() -> None:
    """By the clock of whoever calls; and what they said of themselves."""
    router = Router()
    about = wire.DaemonDescription("host", "linux", labels={"env": "prod"})
    router.add_daemon("d", "here", about, now=100.0)
    ((_, status), _) = drain(router.add_client(now=130.0).scheduler)
    assert (status.about, status.connected_for) == (about, 30.0)
    early = router.add_client(now=130.0)
    drain(early.scheduler)
    router.add_daemon("d", "here", about, now=150.0)
    ((_, status),) = drain(early.scheduler)
    assert status.connected_for == 0.0


def test_a_copy_is_told_to_everybody() -> None:
    """That a daemon came whose state directory is a copy of another's."""
    router = Router()
    client = router.add_client()
    drain(client.scheduler)
    router.tell_cloned("d", "two", wire.UNDESCRIBED)
    assert drain(client.scheduler) == [(0, wire.DaemonCloned("d", "two"))]


def test_only_links_with_a_carrier_are_woken(network: Network) -> None:
    """The client in this process looks by itself."""
    woken = []

    class Carrier:
        def wake(self) -> None:
            woken.append(self)

        def close(self, reason: str) -> None:
            raise AssertionError(reason)

    network.daemon.carrier = Carrier()
    network.router.dirty = {network.daemon, network.client}
    network.router.wake_carriers()
    assert woken == [network.daemon.carrier]
    assert not network.router.dirty


def test_links_are_told_apart() -> None:
    """Two links of one daemon are two, whatever they hold."""
    router = Router()
    first = router.add_daemon("d", "here")
    second = router.add_daemon("d", "here")
    assert isinstance(first, DaemonLink)
    assert first != second
    assert len({first, second}) == 2


def test_what_is_not_authorised_reaches_no_daemon() -> None:
    """The client is told what the judge said; nobody is asked of a daemon that isn't there."""
    asked: list[str] = []
    refused = wire.Refused(RefusedCode.RATE_LIMITED, "too many", 1.5, "daemon")

    def judge(_link: ClientLink, message: wire.Attach) -> wire.Refused | None:
        asked.append(message.job_id)
        return refused if message.job_id == "bad" else None

    router = Router(judge)
    daemon = router.add_daemon("d", "here")
    client = router.add_client()
    drain(client.scheduler)
    router.receive(client, control(1, attrs.evolve(ATTACH, job_id="bad")))
    assert drain(client.scheduler) == [(1, refused)]
    assert (drain(daemon.scheduler), daemon.routes, client.routes) == ([], {}, {})
    router.receive(client, control(2, attrs.evolve(ATTACH, job_id="good")))
    assert len(drain(daemon.scheduler)) == 1
    router.receive(client, control(3, attrs.evolve(ATTACH, daemon_id="none", job_id="other")))
    assert asked == ["bad", "good"]


# ---- whoever says too much is hurt alone ------------------------------------------------------------


def metered(network: Network, name: str = "c") -> ClientLink:
    """A client in another process, of its own principal."""
    return network.join(client=name, principal=Principal(f"operator:{name}", "*"))


def attached(network: Network, client: ClientLink, channel: int = 1, **changes: Any) -> int:
    """It attaches; the daemon's channel."""
    return network.attach(channel, client, job_id=f"{client.client}-{channel}", **changes)


@pytest.mark.parametrize(
    "flood",
    [
        pytest.param(
            lambda n: wire.Window((wire.StreamWindow(Stream.OUTPUT, n, wire.MIB + n),)), id="window"
        ),
        pytest.param(lambda n: wire.Flush(n), id="flush"),
    ],
)
def test_a_flood_of_what_only_the_latest_counts_of_is_one_frame(
    network: Network, flood: Any
) -> None:
    """Acks, credit and flushes that wait, either way: the latest says it all, after any number of them."""
    client = metered(network)
    number = attached(network, client)
    for n in range(10_000):
        network.router.receive(client, control(1, flood(n)))
    ((channel, said),) = drain(network.daemon.scheduler)
    assert channel == number
    if isinstance(said, wire.Flush):
        assert said == flood(9999)
        for n in range(10_000):
            network.router.receive(network.daemon, control(number, flood(n)))
        assert drain(client.scheduler) == [(1, flood(9999))]
    else:
        assert said.streams[0].ack == 9999


@pytest.mark.parametrize("last", [wire.Detach(), wire.End("d", "c-1", client="c")])
def test_acks_that_wait_are_heard_before_the_channel_closes(
    network: Network, last: wire.Control
) -> None:
    """What the client had read is not to be read again by the next one."""
    client = metered(network)
    number = attached(network, client)
    window = wire.Window((wire.StreamWindow(Stream.OUTPUT, 5, 5),))
    network.router.receive(client, control(1, window))
    network.router.receive(client, control(1, last))
    (first, said), (second, closed) = drain(network.daemon.scheduler)
    assert (first, second) == (number, number)
    assert said.streams[0].ack == 5
    assert isinstance(closed, type(last))


def test_a_client_that_floods_attaches_is_refused(network: Network) -> None:
    """A line that takes nothing holds a part of it; others still come through, and the daemon's link stands."""
    network.daemon.backlog.limit = 1_000_000
    hostile, honest = metered(network), metered(network, "honest")
    spec = bytes(50_000)
    for channel in range(1, 100):
        network.router.receive(hostile, control(channel, attrs.evolve(ATTACH, spec=spec)))
        network.router.receive(hostile, control(channel, wire.Detach()))
    refused = [said for _, said in drain(hostile.scheduler)]
    assert {said.code for said in refused} == {RefusedCode.DENIED}
    assert 85 < len(refused) < 99
    assert network.daemon.backlog.waiting <= network.daemon.backlog.limit
    network.router.receive(honest, control(1, attrs.evolve(ATTACH, client="honest")))
    assert drain(honest.scheduler) == []
    heard = [
        said.client for _, said in drain(network.daemon.scheduler) if isinstance(said, wire.Attach)
    ]
    assert heard[-1] == "honest"
    assert network.daemon.backlog.waiting == 0
    network.router.receive(hostile, control(100, attrs.evolve(ATTACH, spec=spec)))
    assert drain(hostile.scheduler) == []


def test_with_another_connection_a_client_has_no_more_room(network: Network) -> None:
    """What waits counts for whom it was let in as, until it is sent."""
    network.daemon.backlog.limit = 350_000
    for n in range(2):
        client = network.join(client=f"c{n}", principal=Principal("operator:one", "*"))
        network.router.receive(client, control(1, attrs.evolve(ATTACH, spec=bytes(100_000))))
        assert len(drain(client.scheduler)) == n
        network.router.remove_client(client)


def test_a_client_that_floods_ends_loses_its_link(network: Network) -> None:
    """There is no channel that could be refused; what others say is heard."""
    network.daemon.backlog.limit = 10_000
    hostile, honest = metered(network), metered(network, "honest")
    with pytest.raises(RemoteProtocolError, match="too many Ends for daemon 'd'"):  # noqa: PT012 - one of them
        for n in range(100):
            network.router.receive(hostile, control(0, wire.End("d", f"{n}")))
    network.router.remove_client(hostile)
    network.router.receive(honest, control(0, wire.End("d", "job")))
    assert drain(network.daemon.scheduler)[-1][1].client == "honest"


@pytest.mark.parametrize("way", ["ops", "events", "newer", "unasked"])
def test_messages_within_credit_cost_their_channel_and_no_link(network: Network, way: str) -> None:
    """Large ones on many channels to a line that takes none: who sends them has so much room, and no more."""
    client, other = metered(network), metered(network, "other")
    for link in (client, network.daemon):
        link.backlog.limit = 10 * wire.MIB
    numbers = [attached(network, client, channel) for channel in range(1, 9)]
    body = bytes(wire.MAX_WORD_BYTES)
    for n in range(wire.MESSAGE_WINDOW):
        for channel, number in enumerate(numbers, 1):
            match way:
                case "ops":
                    network.router.receive(client, data(channel, Stream.OPS, n, body))
                case "unasked":  # 64 KiB of INPUT, in the smallest pieces there are
                    for offset in range(1024 * n, 1024 * (n + 1), 32):
                        network.router.receive(
                            client, data(channel, Stream.INPUT, offset, body[:32])
                        )
                case "events":
                    network.router.receive(network.daemon, data(number, Stream.EVENTS, n, body))
                case "newer":
                    frame = unknown(number)
                    frame = frame._replace(
                        payload=memoryview(_padded(bytes(frame.payload), 100_000))
                    )
                    network.router.receive(network.daemon, frame)
    victim = network.daemon if way in ("ops", "unasked") else client
    assert victim.waiting <= 10 * wire.MIB
    assert victim.backlog.waiting <= 10 * wire.MIB
    assert not victim.scheduler.overrun
    said = [each for _, each in drain(client.scheduler) if isinstance(each, wire.Refused)]
    if way == "unasked":  # crumbs are put together: all of it is there, and no more
        assert not said
        assert sum(len(each.body) for _, each in drain(network.daemon.scheduler)) == 8 * 65536
    else:
        # The jobs run: a code that says that nothing does would be a lie.
        assert {each.code for each in said} == {RefusedCode.LOST}
        assert len(said) == 8
        drain(network.daemon.scheduler)
    attached(network, other)
    assert victim.backlog.waiting == 0
    assert victim.waiting == 0


def test_a_channel_given_up_before_its_answer_may_have_a_job(network: Network) -> None:
    """Its Attach has been passed on, and what follows is too much for the line: whether it runs is not known."""
    client = metered(network)
    network.router.receive(client, control(1, ATTACH))
    assert any(isinstance(said, wire.Attach) for _, said in drain(network.daemon.scheduler))
    network.daemon.backlog.limit = 100_000
    for n in range(3):
        network.router.receive(client, data(1, Stream.OPS, n, bytes(60_000)))
    (refused,) = [said for _, said in drain(client.scheduler) if isinstance(said, wire.Refused)]
    assert refused.code is RefusedCode.LOST


def _padded(payload: bytes, size: int) -> bytes:
    """A message of a newer version with a large field more."""
    assert payload[0] & 0xF0 == 0x80  # a map of less than 16
    field = b"\xa1x" + b"\xc6" + size.to_bytes(4, "big") + bytes(size)
    return bytes([payload[0] + 1]) + payload[1:] + field


def test_crumbs_that_wait_are_put_together(network: Network) -> None:
    """Of a program that prints byte by byte it is not the heads that fill memory; nothing is changed by that."""
    client = metered(network)
    number = attached(network, client, cursors=cursors(credit=wire.MIB))
    count = 20_000
    for n in range(count):
        for stream in (Stream.OUTPUT, Stream.ERROR):
            network.router.receive(network.daemon, data(number, stream, n, bytes([n % 251])))
    assert client.waiting < 3 * count
    network.router.receive(network.daemon, gap(number, Stream.OUTPUT, count, count + 5))
    network.router.receive(network.daemon, gap(number, Stream.OUTPUT, count + 5, count + 9))
    network.router.receive(network.daemon, data(number, Stream.OUTPUT, count + 9, b"x"))
    network.router.receive(network.daemon, data(number, Stream.OUTPUT, count + 10, final=True))
    heard = [said for _, said in drain(client.scheduler)]
    *pieces, skip, end = [said for said in heard if said.stream is Stream.OUTPUT]
    assert b"".join(each.body for each in pieces) == bytes(n % 251 for n in range(count))
    assert (skip, end) == (
        Skip(Stream.OUTPUT, count, count + 9),
        Bytes(Stream.OUTPUT, count + 9, b"x", True),
    )
    assert client.waiting == 0


def test_a_hole_stays_a_hole(network: Network) -> None:
    """What a daemon left out without a word is for its client to notice: nothing is put together across it."""
    client = metered(network)
    number = attached(network, client)
    network.router.receive(network.daemon, data(number, Stream.OUTPUT, 0, b"ab"))
    network.router.receive(network.daemon, data(number, Stream.OUTPUT, 5, b"cd"))
    assert drain(client.scheduler) == [
        (1, Bytes(Stream.OUTPUT, 0, b"ab")),
        (1, Bytes(Stream.OUTPUT, 5, b"cd")),
    ]


def test_attached_is_said_once(network: Network) -> None:
    """Again and again it would fill the client's link."""
    number = attached(network, metered(network))
    network.router.receive(network.daemon, control(number, ATTACHED))
    with pytest.raises(RemoteProtocolError, match="Attached twice"):
        network.router.receive(network.daemon, control(number, ATTACHED))


# ---- a daemon that leaves for good -------------------------------------------------------------------


def leaving(network: Network) -> tuple[ClientLink, list[Any]]:
    """A client on a slow line has two jobs' results under way; then the daemon says goodbye."""
    client = metered(network)
    numbers = [attached(network, client, channel) for channel in (1, 2)]
    expected: list[Any] = []
    for channel, number in enumerate(numbers, 1):
        network.router.receive(network.daemon, event(number, 0, wire.Started(1)))
        network.router.receive(network.daemon, data(number, Stream.OUTPUT, 0, b"result"))
        expected += [(channel, wire.Started(1)), (channel, Bytes(Stream.OUTPUT, 0, b"result"))]
    network.router.remove_daemon(network.daemon, DaemonState.GONE)
    return client, expected


def test_results_under_way_arrive_before_their_daemon_is_gone(network: Network) -> None:
    """Its status overtakes nothing that was there before; then each channel is closed, and all of it told."""
    client, expected = leaving(network)
    assert client.pool.flows == 4  # what waits still counts
    heard = drain(client.scheduler)
    assert sorted(heard[: len(expected)], key=str) == sorted(expected, key=str)
    assert heard[len(expected) :] == [(1, wire.Away()), (2, wire.Away()), (0, GONE)]
    assert (client.routes, client.partings, client.waiting) == ({}, {}, 0)
    assert not any(client.pool.held.values())
    assert client.pool.flows == 0


def test_a_successor_is_told_behind_them(network: Network) -> None:
    """The latest of what became of the daemon; who asks for the old one meanwhile has to wait for that."""
    client, expected = leaving(network)
    fresh = network.router.add_daemon("d", "another")
    network.router.receive(client, control(3, ATTACH))
    heard = drain(client.scheduler)
    assert heard[0] == (3, wire.Away())
    assert len(heard) == 1 + len(expected) + 3
    assert heard[-1] == (0, wire.DaemonStatus("d", DaemonState.ONLINE, "another"))
    assert drain(fresh.scheduler) == []
    network.router.receive(client, control(4, ATTACH))
    assert len(drain(fresh.scheduler)) == 1


def test_a_client_may_leave_what_is_under_way(network: Network) -> None:
    """It closes the channels: nothing is sent on them any more, and the daemon's end is told at once."""
    client, _ = leaving(network)
    network.router.receive(client, control(1, wire.Detach()))
    network.router.receive(client, control(1, wire.Detach()))
    network.router.receive(client, control(2, wire.Window(())))
    network.router.receive(client, data(2, Stream.INPUT, 0, b"late"))
    network.router.receive(client, control(2, wire.End("d", "c-2")))
    assert drain(client.scheduler) == [(0, GONE)]
    assert (client.partings, client.waiting) == ({}, 0)


def test_a_client_that_goes_leaves_nothing_of_them(network: Network) -> None:
    """Nothing is kept for a link that is gone."""
    client, _ = leaving(network)
    network.router.remove_client(client)
    assert (client.waiting, client.partings) == (0, {})
    assert not client.scheduler.pending
