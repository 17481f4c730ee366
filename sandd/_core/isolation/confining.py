"""`Isolation`: at which level a job runs on this daemon, and what is started then. POSIX only."""

from __future__ import annotations

import errno
import os
import sys
from typing import TYPE_CHECKING, Final

if sys.platform == "win32":
    raise ImportError("POSIX only")  # where mypy stops reading, too

from attrs import evolve

from sandd import wire
from sandd._core._errors import ConfigurationError, SpawnFailed
from sandd._core.isolation import bubblewrap, rulesets
from sandd._core.isolation.allotments import FILE_NAME, Allotments, NoUserLeftError
from sandd._core.isolation.levels import strongest
from sandd._core.isolation.probing import probe
from sandd._core.isolation.workspaces import DIRECTORY, WorkspaceError, Workspaces
from sandd._core.logs import get_logger
from sandd._core.policy import environment
from sandd._core.policy.paths import is_beneath
from sandd._core.processes import Confinement
from sandd.wire import IsolationLevel, RefusedCode

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from sandd._core.isolation.options import IsolationOptions
    from sandd._core.isolation.workspaces import Workspace
    from sandd._core.policy.permits import Permit
    from sandd._core.policy.rules import Policy
    from sandd._core.processes import SpawnRequest

log = get_logger("isolation")

_PATH: Final = "/usr/local/bin:/usr/bin:/bin"
"""Where the daemon has none."""
_PROGRAMS: Final = (wire.CommandSpec, wire.SessionSpec)
"""A tuple, as each spec is asked whether it is one of them, and a union takes longer for that."""
_ABOUT_JOBS: Final = (wire.JobsSpec, wire.KillSpec, wire.ForgetSpec)
"""Requests that reach neither files nor ports."""


class Isolation:
    """How a daemon keeps its tenants' jobs apart. Made by `open_isolation`.

    Its methods may be called in any thread, but for `judge`, which looks at no disk.
    """

    def __init__(
        self,
        options: IsolationOptions,
        workspaces: Workspaces,
        missing: Mapping[IsolationLevel, str | None],
        *,
        policy: Policy | None = None,
    ) -> None:
        asked = [options.level, None if policy is None else policy.isolation]
        self.level = strongest(asked)
        """The least of all jobs, and that of files."""
        self.workspaces = workspaces
        self.missing = missing
        """Of each level why it is not to be had; None: it is."""
        self._options = options
        self._has_policy = policy is not None
        self._readable = tuple(map(os.fspath, options.readable))

    def __repr__(self) -> str:
        return f"<Isolation at {self.level!s}, of {', '.join(self.available)}>"

    @property
    def available(self) -> tuple[IsolationLevel, ...]:
        """The levels that are to be had, from the least."""
        return tuple(level for level, reason in self.missing.items() if reason is None)

    def announce(self) -> None:
        """Say in the log what there is."""
        reason = self.missing[self.level]
        if reason is not None:
            log.error("isolation_unavailable", level=str(self.level), reason=reason)
        log.info(
            "isolation_in_force",
            level=str(self.level),
            available=",".join(self.available),
            workspaces=str(self.workspaces.directory),
        )
        for level, why in self.missing.items():
            if why is not None:
                log.debug("isolation_level_missing", level=str(level), reason=why)

    def level_of(
        self, spec: wire.Spec, least: IsolationLevel = IsolationLevel.NONE
    ) -> IsolationLevel:
        """At which a job of that spec runs: never below the daemon's own, nor `least`, the controller's for it."""
        if isinstance(spec, _PROGRAMS):
            if spec.isolation is None and least is IsolationLevel.NONE:
                return self.level
            return strongest([self.level, least, spec.isolation])
        return self.level

    def judge(
        self, spec: wire.Spec, least: IsolationLevel = IsolationLevel.NONE
    ) -> wire.Refused | None:
        """The refusal of a job whose level is not to be had; None if it is. Nothing runs at a lower one."""
        if isinstance(spec, _ABOUT_JOBS):
            return None
        level = self.level_of(spec, least)
        reason = self.missing[level]
        if reason is None:
            return None
        text = f"isolation {str(level)!r} is not to be had on this daemon: {reason}"
        return wire.Refused(RefusedCode.UNSUPPORTED, text[: wire.MAX_TEXT_LENGTH])

    def confine(
        self,
        tenant: str,
        level: IsolationLevel,
        spec: wire.ProgramSpec,
        request: SpawnRequest,
        permit: Permit,
    ) -> SpawnRequest:
        """What to start instead of `request`, at that level. What it has opened is the permit's. Blocking.

        Raises:
            SpawnFailed: there is no user, or no workspace, for that tenant; or another user was asked for. Nothing ran.
        """
        if level is IsolationLevel.NONE:
            return request
        workspace = self._open_workspace(tenant, level)
        if workspace.uid is not None and request.user not in (None, str(workspace.uid)):
            raise SpawnFailed(
                errno.EPERM,
                f"at isolation {str(level)!r} a command runs as its tenant's own user, uid {workspace.uid}",
                request.user,
            )
        home = os.fsencode(workspace.path)
        cwd = home if request.cwd is None else os.path.join(home, request.cwd)
        uid = workspace.uid
        confinement = Confinement(
            identity=None if uid is None else (uid, uid, ()),
            ruleset=self._open_ruleset(level, workspace, permit),
            wrapper=self._wrapper(level, workspace, cwd),
        )
        return evolve(
            request,
            env=self._environment(spec, request, workspace),
            base=_NO_BASE,
            cwd=cwd,
            user=None if uid is not None else request.user,
            confinement=confinement,
        )

    def _open_workspace(self, tenant: str, level: IsolationLevel) -> Workspace:
        try:
            workspace = self.workspaces.open(tenant)
            if level is IsolationLevel.BWRAP:
                self.workspaces.open_tmp(workspace)
        except (WorkspaceError, NoUserLeftError) as error:
            log.warning("workspace_unusable", tenant=tenant, error=str(error))
            raise SpawnFailed(errno.EACCES, str(error)) from error
        except OSError as error:
            log.warning("workspace_unusable", tenant=tenant, error=str(error))
            text = f"its tenant's workspace can't be made: {error.strerror}"
            raise SpawnFailed(error.errno or errno.EIO, text) from error
        return workspace

    def _open_ruleset(
        self, level: IsolationLevel, workspace: Workspace, permit: Permit
    ) -> int | None:
        try:
            if level is IsolationLevel.LANDLOCK:
                return permit.hold(rulesets.open_ruleset(workspace, self._readable))
            if level is IsolationLevel.BWRAP:
                # Under rules about files nobody may mount any; and it needs none, as it sees no others.
                scopes = rulesets.open_scopes()
                return None if scopes is None else permit.hold(scopes)
        except OSError as error:
            raise SpawnFailed(error.errno or errno.EIO, error.strerror or str(error)) from error
        return None

    def _wrapper(
        self, level: IsolationLevel, workspace: Workspace, cwd: bytes
    ) -> tuple[bytes, ...]:
        if level is not IsolationLevel.BWRAP:
            return ()
        bwrap, env = bubblewrap.find(), bubblewrap.find_env()
        if bwrap is None or env is None:
            raise SpawnFailed(errno.ENOENT, "it was there when the daemon started", "bwrap")
        if not bubblewrap.sees(cwd, workspace, self._readable):
            text = "it is not to be seen at isolation 'bwrap'"
            raise SpawnFailed(errno.ENOENT, text, os.fsdecode(cwd))
        return bubblewrap.command_line(
            bwrap,
            env,
            workspace,
            cwd=cwd,
            readable=self._readable,
            has_network=self._options.has_network,
        )

    def _environment(
        self, spec: wire.ProgramSpec, request: SpawnRequest, workspace: Workspace
    ) -> Mapping[bytes, bytes]:
        """Little of the daemon's own, and what says where the tenant is at home."""
        own = {b"HOME": os.fsencode(workspace.path), b"TMPDIR": os.fsencode(workspace.temporary)}
        if workspace.uid is not None:
            own |= dict.fromkeys((b"USER", b"LOGNAME"), b"%d" % workspace.uid)
        chosen = {}
        if not self._has_policy:  # which has chosen already
            kept = environment.base_of(os.environ) | {"PATH": os.environ.get("PATH", _PATH)}
            chosen = {os.fsencode(k): os.fsencode(v) for k, v in kept.items()}
        own = {name: value for name, value in own.items() if name not in spec.env}
        return {**chosen, **request.env, **own}


_NO_BASE: Final[Mapping[bytes, bytes]] = {}
"""Nothing passes from the daemon's environment but what is chosen."""


def open_isolation(
    options: IsolationOptions, state: Path, *, policy: Policy | None = None
) -> Isolation:
    """How jobs are kept apart on this machine, as far as it can. Blocking: it tries what it can.

    Args:
        state: the daemon's state directory.
        policy: the daemon's, which may ask for more.

    Raises:
        ConfigurationError: the options can't be met, and have to be; or what was allotted before can't be read.
    """
    missing = dict(probe(options))
    directory = options.workspaces or state / DIRECTORY
    allotments = None
    if missing[IsolationLevel.USER] is None:
        allotments = Allotments(state / FILE_NAME, options.uids, workspaces=directory)
    passing = state if directory.is_relative_to(state) else None
    workspaces = Workspaces(directory, allotments, passing=passing)
    problem = _barred(workspaces)
    for level in missing:
        if level is not IsolationLevel.NONE:
            missing[level] = missing[level] or problem
    exposed = _exposed(directory, state, options)
    for level in (IsolationLevel.LANDLOCK, IsolationLevel.BWRAP):
        missing[level] = missing[level] or exposed
    if policy is not None:
        missing[IsolationLevel.BWRAP] = missing[IsolationLevel.BWRAP] or (
            "it has a policy, whose programs are executed as they were checked, which bubblewrap can't"
        )
    isolation = Isolation(options, workspaces, missing, policy=policy)
    level, reason = isolation.level, missing[isolation.level]
    if reason is not None and options.is_required:
        raise ConfigurationError(f"isolation {str(level)!r} is not to be had here: {reason}")
    if policy is not None and allotments is not None and level is not IsolationLevel.NONE:
        other = next((rule for rule in policy.rules if rule.user is not None), None)
        if other is not None:
            raise ConfigurationError(
                f"rule {other.name!r} of the policy runs as {other.user}, and isolation {str(level)!r} as each "
                "tenant's own user: only one of the two can be"
            )
    return isolation


def _barred(workspaces: Workspaces) -> str | None:
    """Why tenants' users would not find their workspaces."""
    if workspaces.allotments is None:
        return None
    try:
        barred = workspaces.way_in()
    except OSError as error:
        return f"{workspaces.directory} can't be looked at: {error.strerror}"
    if barred is None:
        return None
    return (
        f"{workspaces.directory} can't be reached by tenants' users, as {barred} is not theirs to pass: "
        "give another directory by --workspaces"
    )


def _exposed(directory: Path, state: Path, options: IsolationOptions) -> str | None:
    """What jobs could read of each other's, or of ours, since it is among what all of them may read."""
    readable = [os.path.realpath(each) for each in (*rulesets.SYSTEM, *map(str, options.readable))]
    for ours in (os.path.realpath(directory), os.path.realpath(state)):
        for each in readable:
            if is_beneath(ours, each) or is_beneath(each, ours):
                return f"jobs may read {each}, and so {ours}: give another directory by --workspaces, or --state-dir"
    return None
