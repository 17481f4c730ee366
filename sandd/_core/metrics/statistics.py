"""What a client is told of the controller's figures: those of what it may see. Pure.

Numbers are of whole tenants. So who sees a part of a tenant's daemons is told none, as they would speak of the rest;
nor is who shares a tally with others. What concerns the program itself is for those who may do everything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

from sandd import wire
from sandd._core.identity.rights import EVERY_TENANT, Verb

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandd._core.identity.rights import Principal
    from sandd._core.metrics.tallies import Tallies, Tally


@frozen
class ProcessFigures:
    """Of the program that is the controller."""

    operators: int = 0
    uptime: float = 0.0
    loop_lag: float = 0.0


def tally_for(principal: Principal, tallies: Tallies) -> Tally | None:
    """What it may know of; None: nothing."""
    if principal.daemons != "*" or not principal.may(Verb.LIST) or not principal.may(Verb.JOBS):
        return None
    return tallies.total() if principal.tenant == EVERY_TENANT else tallies.of(principal.tenant)


def statistics_for(
    principal: Principal,
    asked: wire.AskStatistics,
    tallies: Tallies,
    process: Callable[[], ProcessFigures],
) -> wire.Statistics:
    """The answer."""
    tally = tally_for(principal, tallies)
    if tally is None:
        return wire.Statistics(asked.number)
    figures = process() if principal.is_unlimited else None
    return wire.Statistics(
        asked.number,
        jobs_asked=tally.jobs_asked,
        jobs_running=tally.jobs_running,
        jobs_ended=dict(tally.jobs_ended),
        requests=tally.requests,
        bytes_to_daemons=tally.bytes_to_daemons,
        bytes_to_clients=tally.bytes_to_clients,
        operators=None if figures is None else figures.operators,
        uptime=None if figures is None else figures.uptime,
        loop_lag=None if figures is None else figures.loop_lag,
    )
