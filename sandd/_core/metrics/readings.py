"""What the figures of a controller, and of a daemon, are at this moment. Pure; bounded by the number of labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

from sandd._core.metrics import catalogue
from sandd._core.metrics.catalogue import Reading, one
from sandd._core.metrics.comings import DAEMON, OPERATOR

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sandd._core.metrics.audit_counts import AuditCounts
    from sandd._core.metrics.comings import Comings
    from sandd._core.metrics.daemon_tally import DaemonTally
    from sandd._core.metrics.link_bytes import LinkBytes
    from sandd._core.metrics.loop_lag import LoopLag
    from sandd._core.metrics.router_counts import RouterCounts
    from sandd._core.spool import Spool


@frozen
class ControllerFigures:
    """Where a controller's figures are."""

    version: str
    counts: RouterCounts
    comings: Comings
    daemon_links: LinkBytes
    operator_links: LinkBytes
    operators: int
    ends_kept: int
    certificate_failures: int
    loop_lag: LoopLag
    audit: AuditCounts | None
    """None: there is no log."""
    audit_is_failing: bool


@frozen
class DaemonFigures:
    """Where a daemon's figures are."""

    version: str
    tally: DaemonTally
    link: LinkBytes
    is_connected: bool
    dials: int
    links: int
    running: int
    queued: int
    kept: int
    spool: Spool | None
    loop_lag: LoopLag


def read_controller(figures: ControllerFigures) -> list[Reading]:
    """All of a controller's."""
    counts, comings = figures.counts, figures.comings
    tallies = list(counts.tallies)
    daemons: dict[tuple[str, ...], int] = {}
    for tenant, state, number in counts.population:
        key = (counts.tallies.label(tenant), state.value)
        daemons[key] = daemons.get(key, 0) + number
    links = {DAEMON: figures.daemon_links, OPERATOR: figures.operator_links}
    readings = [
        Reading(catalogue.BUILD, {(figures.version,): 1}),
        Reading(catalogue.DAEMONS, daemons),
        _by_one(catalogue.PLATFORMS, counts.population.platforms.items()),
        one(catalogue.OPERATORS, figures.operators),
        _by_one(catalogue.ADMITTED, comings.admitted.items()),
        _by_two(catalogue.TURNED_AWAY, comings.refused),
        one(catalogue.BARRED, comings.barred),
        one(catalogue.UNHEARD, comings.unheard),
        one(catalogue.RECONNECTS, counts.population.reconnects),
        _by_one(catalogue.LINK_RECEIVED, ((peer, each.received) for peer, each in links.items())),
        _by_one(catalogue.LINK_SENT, ((peer, each.sent) for peer, each in links.items())),
        _by_one(catalogue.JOBS_STARTED, ((name, each.jobs_asked) for name, each in tallies)),
        Reading(
            catalogue.JOBS_ENDED,
            {
                (name, outcome): number
                for name, each in tallies
                for outcome, number in each.jobs_ended.items()
            },
        ),
        _by_one(catalogue.JOBS_RUNNING, ((name, each.jobs_running) for name, each in tallies)),
        _by_one(catalogue.REQUESTS, ((name, each.requests) for name, each in tallies)),
        Reading(
            catalogue.STREAM_TO_DAEMONS,
            {
                (name, use): traffic.to_daemons
                for name, each in tallies
                for use, traffic in each.traffic.items()
            },
        ),
        Reading(
            catalogue.STREAM_TO_CLIENTS,
            {
                (name, use): traffic.to_clients
                for name, each in tallies
                for use, traffic in each.traffic.items()
            },
        ),
        _by_two(catalogue.REFUSED, counts.refused),
        _by_one(catalogue.RATE_LIMITED, counts.rate_limited.items()),
        one(catalogue.ENDS_KEPT, figures.ends_kept),
        one(catalogue.CERTIFICATE_FAILURES, figures.certificate_failures),
        one(catalogue.CONTROLLER_LAG, figures.loop_lag.histogram.snapshot()),
    ]
    if figures.audit is not None:
        readings += [
            one(catalogue.AUDIT_RECORDS, figures.audit.records),
            one(catalogue.AUDIT_HOLD, figures.audit.hold.snapshot()),
            one(catalogue.AUDIT_FAILURES, figures.audit.failures),
            one(catalogue.AUDIT_FAILING, int(figures.audit_is_failing)),
        ]
    return readings


def read_daemon(figures: DaemonFigures) -> list[Reading]:
    """All of a daemon's."""
    tally, spool = figures.tally, figures.spool
    traffic = tally.traffic.items()
    return [
        Reading(catalogue.BUILD, {(figures.version,): 1}),
        one(catalogue.CONNECTED, int(figures.is_connected)),
        one(catalogue.DIALS, figures.dials),
        one(catalogue.LINKS, figures.links),
        one(catalogue.DAEMON_RECEIVED, figures.link.received),
        one(catalogue.DAEMON_SENT, figures.link.sent),
        one(catalogue.DAEMON_STARTED, tally.jobs_started),
        _by_one(catalogue.DAEMON_ENDED, tally.jobs_ended.items()),
        one(catalogue.DAEMON_RUNNING, figures.running),
        one(catalogue.DAEMON_QUEUED, figures.queued),
        one(catalogue.DAEMON_KEPT, figures.kept),
        _by_one(catalogue.DAEMON_REQUESTS, tally.requests.items()),
        _by_one(catalogue.DAEMON_REFUSED, tally.refused.items()),
        _by_one(catalogue.DAEMON_INPUT, ((use, each.to_daemons) for use, each in traffic)),
        _by_one(catalogue.DAEMON_OUTPUT, ((use, each.to_clients) for use, each in traffic)),
        one(catalogue.SPOOL_USED, 0 if spool is None else spool.used),
        one(catalogue.SPOOL_QUOTA, 0 if spool is None else spool.daemon_quota),
        one(catalogue.DAEMON_LAG, figures.loop_lag.histogram.snapshot()),
    ]


def _by_one(metric: catalogue.Metric, values: Iterable[tuple[str, int]]) -> Reading:
    """Of a figure that has one label."""
    return Reading(metric, {(label,): value for label, value in values})


def _by_two(metric: catalogue.Metric, values: Mapping[tuple[str, str], int]) -> Reading:
    """Of a figure that has two."""
    return Reading(metric, {(one, two): value for (one, two), value in values.items()})
