"""How often whoever is in may start jobs: each operator, each tenant, and on each daemon.

A job start is a command or a session. Requests - for files, ports, lists of jobs, a kill - are none: they start no
program, and a copied tree is thousands of them.
"""

from __future__ import annotations

from typing import Final, Literal

from attrs import field, frozen
from attrs.validators import instance_of, optional

from sandd import wire
from sandd._core._errors import RemoteProtocolError
from sandd._core.rate_limits.bounded_table import KeyedRate
from sandd._core.rate_limits.rates import Rate

Scope = Literal["operator", "tenant", "daemon"]

MOST_KEYS: Final = 131_072
"""Kept track of in each scope, at some 200 bytes each: more than the daemons that a controller knows (100,000). Nobody
makes one who isn't in."""

_optional_rate = optional(instance_of(Rate))


@frozen(kw_only=True)
class RateLimits:
    """How often jobs - commands and sessions - may be started; None: as often as anybody likes.

    What is beyond is refused by `RateLimited`, which says when to try again; nothing ran.
    """

    operator: Rate | None = field(default=None, validator=_optional_rate)
    """Of each operator, by its name."""
    tenant: Rate | None = field(default=None, validator=_optional_rate)
    """Of all operators of a tenant together."""
    daemon: Rate | None = field(default=None, validator=_optional_rate)
    """On each daemon, whoever starts them."""
    includes_agent: bool = False
    """They hold for the program that the controller is part of, too."""


@frozen
class Excess:
    """One more would be too many."""

    scope: Scope
    """Whose limit it is; of several the one that lasts longest."""
    retry_after: float
    """Seconds until one more may come."""


class JobStartLimiter:
    """Says of each job start whether it is one too many."""

    def __init__(self, limits: RateLimits, most_keys: int = MOST_KEYS) -> None:
        self._includes_agent = limits.includes_agent
        rates: dict[Scope, Rate | None] = {
            "operator": limits.operator,
            "tenant": limits.tenant,
            "daemon": limits.daemon,
        }
        self._limits: dict[Scope, KeyedRate[str]] = {
            scope: KeyedRate(rate, most_keys) for scope, rate in rates.items() if rate is not None
        }

    @property
    def is_limiting(self) -> bool:
        """Whether there is any limit."""
        return bool(self._limits)

    def judge(
        self, attach: wire.Attach, *, operator: str, tenant: str, is_agent: bool, now: float
    ) -> wire.Refused | None:
        """The refusal, if it starts a job and that is one too many.

        An Attach that starts a job a second time, after a cut, counts again: nothing here tells it from a first one.
        Its client knows, and then waits: see `Client.held_back`.
        """
        if not self._limits or attach.spec is None or (is_agent and not self._includes_agent):
            return None
        if not _starts_program(attach.spec):
            return None
        excess = self.take(operator, tenant, attach.daemon_id, now)
        if excess is None:
            return None
        whose = {"operator": "of this operator", "tenant": "of this tenant", "daemon": "there"}
        return wire.Refused(
            wire.RefusedCode.RATE_LIMITED,
            f"too many commands {whose[excess.scope]} were started; one more may be in {excess.retry_after:.3g} s",
            excess.retry_after,
            excess.scope,
        )

    def take(self, operator: str, tenant: str, daemon: str, now: float) -> Excess | None:
        """Count one more start; or, where it is one too many for any of the three, count nothing and say so."""
        keys: dict[Scope, str] = {"operator": operator, "tenant": tenant, "daemon": daemon}
        waits = {scope: each.wait(keys[scope], now) for scope, each in self._limits.items()}
        scope = max(waits, key=lambda name: waits[name], default=None)
        if scope is not None and waits[scope] > 0.0:
            return Excess(scope, waits[scope])
        for name, each in self._limits.items():
            each.count(keys[name], now)
        return None


def _starts_program(spec: bytes) -> bool:
    try:
        return isinstance(wire.decode_spec(spec), wire.ProgramSpec)
    except (wire.UnsupportedSpec, RemoteProtocolError):
        return True  # for the daemon to refuse; nobody gets around a limit by being unclear
