"""A daemon's policy, enforced: from a job that was asked for to the process that may be started for it. POSIX only.

`judging` has looked at texts. What is left is what a disk can make of them: links, other owners, another program.
The program and the directory are opened here, once, and are what the process is started with; the paths among its
arguments are looked at, but it is the program that opens them, later.
"""

from __future__ import annotations

import errno
import os
import sys
from typing import TYPE_CHECKING, Final

if sys.platform == "win32":
    raise ImportError("POSIX only")  # where mypy stops reading, too

from attrs import evolve

from sandd._core._errors import ConfigurationError, PolicyDenied, SpawnFailed
from sandd._core.limits import Limits
from sandd._core.logs import get_logger
from sandd._core.policy import environment, linting
from sandd._core.policy.executables import Owner, UntrustedError, open_executable, owner_of
from sandd._core.policy.judging import Category, Denied, judge
from sandd._core.policy.paths import as_text, is_beneath, lies_beneath
from sandd._core.policy.permits import Gate
from sandd._core.policy.refusing import denial, judge_spec
from sandd._core.policy.rules import ExecLock
from sandd._core.policy.trust import walk
from sandd._core.processes import CheckedProgram, exec_lock
from sandd._core.spawn_requests import UNLIMITED, Allowance, spawn_request

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sandd import wire
    from sandd._core.job import Job
    from sandd._core.policy.executables import Executable
    from sandd._core.policy.judging import PathArgument
    from sandd._core.policy.permits import Permit
    from sandd._core.policy.rules import Policy, Rule
    from sandd._core.processes import SpawnRequest

log = get_logger("policy")

_SHORTAGES: Final = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""They say nothing of what was looked at, and may pass."""
_NO_BASE: Final[Mapping[bytes, bytes]] = {}
"""Nothing passes from the daemon's environment but what is chosen."""


class PolicyGate(Gate):
    """A policy, and whether this machine can hold its lock. See `open_gate`."""

    def __init__(self, policy: Policy, *, locks: bool) -> None:
        self.policy = policy
        self.locks = locks
        chosen = environment.base_of(os.environ) | {"PATH": policy.path}
        self._base = {os.fsencode(k): os.fsencode(v) for k, v in chosen.items()}
        """What every program gets, as the daemon's own environment doesn't change."""

    def judge(self, spec: wire.Spec) -> wire.Refused | None:
        refused = judge_spec(self.policy, spec)
        if refused is not None:
            log.warning("policy_denied", kind=type(spec).__name__, policy=self.policy.hash)
        return refused

    def check(
        self,
        job: Job,
        spec: wire.ProgramSpec,
        instance: str,
        permit: Permit,
        allowance: Allowance = UNLIMITED,
    ) -> SpawnRequest:
        verdict = judge(self.policy, spec)
        if isinstance(verdict, Denied):
            raise self._denied(verdict.category)
        rule = verdict.rule
        assert rule is not None  # a program is allowed by a rule alone
        try:
            request = spawn_request(job, evolve(spec, user=rule.user), instance, allowance)
            owner = owner_of(rule.user)
            program = open_executable(rule.exe, owner, sha256=rule.sha256, hold=permit.hold)
            directory = None if spec.cwd is None else permit.hold(_open_directory(spec.cwd, rule))
            for path in verdict.paths:
                _check_path(path)
            ruleset = self._open_ruleset(rule, program, owner, permit) if self.locks else None
        except (UntrustedError, OSError) as error:
            if isinstance(error, OSError) and error.errno in _SHORTAGES:
                raise SpawnFailed(error.errno or 0, error.strerror or "") from error
            # Who asked learns no more than before; who runs the daemon has to know.
            log.warning("policy_check_failed", job=job.key[1], rule=rule.name, error=str(error))
            raise self._denied(Category.COMMAND) from error
        return evolve(
            request,
            limits=Limits.least(request.limits, self.policy.limits, rule.limits),
            env=self._environment(request, rule),
            base=_NO_BASE,
            checked=CheckedProgram(
                path=os.fsencode(program.path),
                executable=None
                if program.is_script or not _EXECUTES_OPEN_FILES
                else program.descriptor,
                directory=directory,
                ruleset=ruleset,
                is_alone=not rule.may_start,
            ),
        )

    def _denied(self, category: Category) -> PolicyDenied:
        return PolicyDenied(denial(self.policy, category), policy_hash=self.policy.hash)

    def _environment(self, request: SpawnRequest, rule: Rule) -> Mapping[bytes, bytes]:
        given = {os.fsencode(k): os.fsencode(v) for k, v in rule.env.items()}
        return {**self._base, **request.env, **given, b"SANDD_JOB": request.marker}

    def _open_ruleset(self, rule: Rule, program: Executable, owner: Owner, permit: Permit) -> int:
        files = [program.descriptor, *program.needed]
        for path in rule.may_start:
            try:
                other = open_executable(path, owner, hold=permit.hold)
            except FileNotFoundError:
                continue  # what isn't there can't be started
            files += [other.descriptor, *other.needed]
        return permit.hold(exec_lock.open_ruleset(files))


_EXECUTES_OPEN_FILES: Final = sys.platform == "linux"
"""Elsewhere nothing executes what is open; there the file can be replaced, by who may write it, until it runs."""


def open_gate(policy: Policy) -> PolicyGate:
    """The gate of a policy that can be enforced here.

    Raises:
        ConfigurationError: it is unsafe, or needs a lock that this machine doesn't have.
    """
    errors = linting.errors(policy)
    if errors:
        first = errors[0]
        of_rule = "" if first.rule is None else f"rule {first.rule!r}: "
        raise ConfigurationError(f"the policy is refused: {of_rule}{first.text}")
    _check_write_grants(policy)
    missing = exec_lock.unavailable()
    if missing is not None and policy.exec_lock is ExecLock.REQUIRED:
        raise ConfigurationError(
            f"the policy says exec_lock = 'required', and this machine has no such lock: {missing}"
        )
    locks = missing is None and policy.exec_lock is not ExecLock.OFF
    if policy.exec_lock is ExecLock.IF_AVAILABLE and missing is not None:
        log.warning("exec_lock_unavailable", reason=missing)
    as_root = [rule.name for rule in policy.rules if rule.user is None and os.geteuid() == 0]
    if as_root:
        log.warning("rules_run_as_root", rules=as_root)
    log.info("policy_in_force", policy=policy.hash, rules=len(policy.rules), exec_lock=locks)
    return PolicyGate(policy, locks=locks)


def _check_write_grants(policy: Policy) -> None:
    """By their names they were looked at by the linter; but a directory of programs has others, too."""
    if policy.write_executables:
        return
    programs = [os.path.realpath(each) for each in policy.executable_directories]
    for grant in policy.files_write:
        real = os.path.realpath(grant)
        for directory in programs:
            if is_beneath(real, directory) or is_beneath(directory, real):
                raise ConfigurationError(
                    f"the policy is refused: files in {grant} may be written, and programs are in {directory}; "
                    "write_executables = true says that it is meant"
                )


def _open_directory(path: bytes, rule: Rule) -> int:
    """The working directory, if it is where the rule says by all its links."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        real = os.path.realpath(path)
        # What is open is what the name led to, or there is another now.
        if not os.path.samestat(os.fstat(descriptor), os.stat(real)):
            raise UntrustedError("the working directory was replaced while it was looked at")
        grants = tuple(os.path.realpath(each) for each in rule.cwd_beneath)
        if not lies_beneath(as_text(real), grants) or _passes_processes(as_text(path)):
            raise UntrustedError("the working directory is elsewhere by its links")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _check_path(argument: PathArgument) -> None:
    real, grant = os.path.realpath(argument.path), os.path.realpath(argument.directory)
    if not is_beneath(real, grant) or (
        _passes_processes(argument.path) and not is_beneath(argument.directory, "/proc")
    ):
        raise UntrustedError(f"an argument, {argument.path!r:.200}, is elsewhere by its links")


def _passes_processes(path: str) -> bool:
    """Whether it leads through /proc, where links mean another thing to each process."""
    try:
        return any(is_beneath(part, "/proc") for part, _ in walk(path))
    except FileNotFoundError:
        return False  # up to there it doesn't, and behind that there is nothing yet
