"""What has passed a router, by tenant: jobs, requests, and the bytes of their streams. Pure.

A tenant is counted by itself from when a daemon of it was let in, so no stranger makes one. There are `MOST_TENANTS` of
them at most; what comes later shares one tally, that of nobody in particular.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from attrs import define, field

if TYPE_CHECKING:
    from collections.abc import Iterator

MOST_TENANTS: Final = 200
"""With a tally of their own: each is some fifty time series for whoever records them."""
OTHER: Final = "other"
"""What those beyond are called, all together; and so is a tenant of that name, as it could not be told from them."""

PROGRAM: Final = "program"
TRANSFER: Final = "transfer"
FORWARD: Final = "forward"
REQUEST: Final = "request"
USES: Final = (PROGRAM, TRANSFER, FORWARD, REQUEST)
"""What streams are for: commands and sessions, files that are copied, connections, and all else that is asked for."""
_USES: Final = {
    "command": PROGRAM, "session": PROGRAM,
    "upload": TRANSFER, "download": TRANSFER, "read": TRANSFER, "write": TRANSFER,
    "connect": FORWARD, "listen": FORWARD,
}  # fmt: skip


def use_of(kind: str) -> str:
    """What a job of that kind is for."""
    return _USES.get(kind, REQUEST)


@define(eq=False)
class Traffic:
    """Bytes of streams, without what they are wrapped in."""

    to_daemons: int = 0
    to_clients: int = 0


@define(eq=False)
class Tally:
    """One tenant's."""

    jobs_asked: int = 0
    """Commands and sessions that were passed on to a daemon."""
    jobs_running: int = 0
    """Of these, those whose end has not been heard of: see `job_census`."""
    jobs_ended: dict[str, int] = field(factory=dict)
    """By outcome."""
    requests: int = 0
    """All else that was asked of daemons."""
    traffic: dict[str, Traffic] = field(factory=lambda: {use: Traffic() for use in USES})
    """By use."""

    def ended(self, outcome: str) -> None:
        """One that ran does no more."""
        self.jobs_running -= 1
        self.jobs_ended[outcome] = self.jobs_ended.get(outcome, 0) + 1

    @property
    def bytes_to_daemons(self) -> int:
        """For whatever use."""
        return sum(each.to_daemons for each in self.traffic.values())

    @property
    def bytes_to_clients(self) -> int:
        """For whatever use."""
        return sum(each.to_clients for each in self.traffic.values())

    def add(self, other: Tally) -> None:
        """Count what another has counted, too."""
        self.jobs_asked += other.jobs_asked
        self.jobs_running += other.jobs_running
        self.requests += other.requests
        for outcome, count in other.jobs_ended.items():
            self.jobs_ended[outcome] = self.jobs_ended.get(outcome, 0) + count
        for use, traffic in other.traffic.items():
            self.traffic[use].to_daemons += traffic.to_daemons
            self.traffic[use].to_clients += traffic.to_clients


class Tallies:
    """All tenants'."""

    def __init__(self, most_tenants: int = MOST_TENANTS) -> None:
        self._most = most_tenants
        self._tallies: dict[str, Tally] = {}
        self._others = Tally()
        """Of those that have none of their own."""
        self._shared = False
        """There is somebody whose it is."""

    def __iter__(self) -> Iterator[tuple[str, Tally]]:
        """Tenant and tally; OTHER is the last, if there is one."""
        yield from self._tallies.items()
        if self._shared:
            yield OTHER, self._others

    def join(self, tenant: str) -> Tally:
        """That of a tenant that exists: its own, if there is room for one."""
        known = self._tallies.get(tenant)
        if known is not None:
            return known
        if tenant == OTHER or len(self._tallies) >= self._most:
            self._shared = True
            return self._others
        return self._tallies.setdefault(tenant, Tally())

    def label(self, tenant: str) -> str:
        """What a tenant is called where there is a bound on names."""
        return tenant if tenant in self._tallies else OTHER

    def of(self, tenant: str) -> Tally | None:
        """The tenant's own; None: it has none yet, or shares one, which is nobody's to see."""
        return self._tallies.get(tenant)

    def total(self) -> Tally:
        """Of all of them together."""
        total = Tally()
        for _, each in self:
            total.add(each)
        return total
