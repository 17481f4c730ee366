"""A controller's policies: one for everybody, one for each tenant. All that apply must allow what is asked for."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

from sandd._core._errors import ConfigurationError
from sandd._core.isolation.levels import strongest
from sandd._core.limits import NO_LIMITS, Limits
from sandd._core.logs import get_logger
from sandd._core.policy import linting
from sandd._core.policy.reading import MAX_POLICY_BYTES, read_policy
from sandd._core.policy.refusing import judge_attach, limits_of_attach
from sandd.wire import IsolationLevel

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from sandd import wire
    from sandd._core.policy.rules import Policy

log = get_logger("policy")

DIRECTORY: Final = "policy"
"""In the controller's state directory: ``TENANT.toml`` for each tenant that has one."""


class TenantPolicies:
    """What is in force. It changes as a whole, or not at all."""

    def __init__(self, *, file: Path | None = None, directory: Path | None = None) -> None:
        """Of everybody's file, and of the directory with those of tenants; nothing is read yet."""
        self._file, self._directory = file, directory
        self._everybodys: tuple[Policy, ...] = ()
        self.is_empty = True
        """No policy is in force, whose ever."""
        self._tenants: Mapping[str, Policy] = {}

    @property
    def hashes(self) -> dict[str, str]:
        """Of each policy in force; everybody's has the name ``*``."""
        named = [*(("*", policy) for policy in self._everybodys), *self._tenants.items()]
        return {name: policy.hash for name, policy in named}

    def of(self, tenant: str) -> tuple[Policy, ...]:
        """Those that apply to a tenant."""
        own = self._tenants.get(tenant)
        return self._everybodys if own is None else (*self._everybodys, own)

    def judge(self, tenant: str, attach: wire.Attach) -> wire.Refused | None:
        """The refusal of what the Attach would start on a daemon of the tenant; None if it may be tried."""
        if self.is_empty:
            return None
        policies = self.of(tenant)
        refused = judge_attach(policies, attach) if policies else None
        if refused is not None:
            log.warning(
                "policy_denied",
                tenant=tenant,
                daemon=attach.daemon_id,
                job=attach.job_id,
                policy=refused.policy_hash,
            )
        return refused

    def limits(self, tenant: str, attach: wire.Attach) -> Limits:
        """What may be used by what the Attach, which may be tried, would start."""
        if self.is_empty:
            return NO_LIMITS
        policies = self.of(tenant)
        return limits_of_attach(policies, attach) if policies else NO_LIMITS

    def isolation(self, tenant: str) -> IsolationLevel:
        """What the tenant's jobs are kept apart from, at least, whatever they ask for and their daemon says."""
        if self.is_empty:
            return IsolationLevel.NONE
        return strongest(policy.isolation for policy in self.of(tenant))

    def read(self) -> None:
        """Put in force what the files say now. Blocking.

        Raises:
            ConfigurationError: one of them can't be used. What was in force still is.
        """
        everybodys = () if self._file is None else (_read(self._file, "--policy"),)
        tenants: dict[str, Policy] = {}
        if self._directory is not None:
            tenants = {file.stem: _read(file, "policy") for file in _files_in(self._directory)}
        self._everybodys, self._tenants = everybodys, tenants
        self.is_empty = not (everybodys or tenants)
        if everybodys or tenants:
            log.info("policies_in_force", policies=self.hashes)


def _files_in(directory: Path) -> list[Path]:
    """Those of tenants; none where there is no such directory."""
    try:
        # Not glob(), which finds nothing in a directory that can't be read: tenants would be held to nothing.
        return sorted(each for each in directory.iterdir() if each.match("*.toml"))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ConfigurationError(f"can't list {directory}: {error.strerror}") from error


def _read(path: Path, option: str) -> Policy:
    if sys.platform == "win32":
        try:
            data = path.read_bytes()
        except OSError as error:
            raise ConfigurationError(f"can't read {option} {str(path)!r}: {error}") from error
    else:
        # The other platform can't import it.
        from sandd._core.policy.trust import read_trusted

        data = read_trusted(str(path), max_bytes=MAX_POLICY_BYTES, option=option)
    policy = read_policy(data, name=str(path))
    for finding in linting.errors(policy):
        rule = "" if finding.rule is None else f"rule {finding.rule!r}: "
        raise ConfigurationError(f"{path} is refused: {rule}{finding.text}")
    return policy
