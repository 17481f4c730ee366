"""The jobs that pass through a router, from their request to their end, each told once.

Pure. A job is known from its request on until it is ended and left; of the latest `MAX_JOBS` of them. What the router
sees is told to a sink; a request that is on record already, because its client asks again after a cut, is recognised.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from attrs import define

from sandd import wire
from sandd._core._errors import RemoteProtocolError
from sandd._core.audit.records import Record, RecordType
from sandd._core.audit.redaction import secrets_in
from sandd._core.tombstones import parse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from sandd._core.audit.sinks import AuditSink

MAX_JOBS: Final = 20_000
"""Jobs remembered; of an older one that is still attached to, what was requested may be recorded once more."""
MAX_ATTACHED: Final = 16
"""Of each job, who is remembered to have attached to it, and how; for others the same may be told once more."""

JobKey: TypeAlias = tuple[str, str, str]
"""Daemon, tenant and job id."""
_KINDS: Final = {spec: kind for kind, spec in wire.SPEC_KINDS.items()}
_TARGETS: Final = ("path", "job_id", "target", "pattern")
"""Fields of a request that say what it is about."""
_LIMITS: Final = (
    "user",
    "isolation",
    "timeout",
    "idle_timeout",
    "kill_grace",
    "lease",
    "detach",
    "shell",
    "require_limits",
)
"""Fields of a program's spec that bound it, or widen what it may do."""
_limits_of: Final = attrgetter(*_LIMITS)


@define(eq=False)
class TrackedJob:
    """One job, as far as the log has told of it."""

    key: JobKey
    spec: bytes | None
    """SHA-256 of the spec that is on record; None: it was there before us."""
    instance: str
    kind: str | None = None
    trace: str = ""
    """What joins it to what others have recorded of it."""
    client: str = ""
    """Who was the latest to ask for it by that spec."""
    started: bool = False
    pid: int = 0
    """Of the process that was told of."""
    asked_again: bool = False
    """Its request has been put on record once more since: another process may come of it."""
    ended: bool = False
    former: int | None = None
    """Of the process of the job that ended before, under the same id, which is told of; 0: it had none; None: there was
    no such job."""
    was_over: bool = False
    """It had ended when it was asked for: the daemon may still have that one, and begin no other."""
    attached: frozenset[tuple[str, wire.Role, bool]] = frozenset()
    """Who has attached to it, and how, of which each is told at its first time whoever causes how many."""


class JobTrail:
    """What is told of a router's jobs."""

    def __init__(
        self,
        sink: AuditSink,
        policies_of: Callable[[str], Iterable[str]] = lambda _tenant: (),
    ) -> None:
        self._sink = sink
        self._policies_of = policies_of
        """Hashes of the policies that a tenant is held to."""
        self._jobs: OrderedDict[JobKey, TrackedJob] = OrderedDict()

    def get(self, key: JobKey) -> TrackedJob | None:
        """The job, if it is known."""
        return self._jobs.get(key)

    def knows(self, key: JobKey, message: wire.Attach) -> bool:
        """This very request, of this client, is on record, and starts nothing that isn't.

        So its id is one that is used once; or the client has been attached, and means that job and no new one. With an
        id that was chosen a job may have ended unheard, and the daemon run another.
        """
        job = self._jobs.get(key)
        return (
            job is not None
            and job.client == message.client
            and (message.generation is not None or parse(message.job_id) is not None)
            and _is_asked_for(job, message)
        )

    def request(self, key: JobKey, message: wire.Attach, actor: str) -> Record:
        """What is to be on the disk before the Attach is passed on."""
        assert message.spec is not None
        said = _describe(message.spec)
        said["trace"] = message.trace or None
        said["policy"] = ",".join(self._policies_of(key[1])) or None
        return _record(RecordType.REQUEST, key, actor, outcome="asked", **said)

    def requested(self, key: JobKey, message: wire.Attach, kind: str | None) -> None:
        """It is there."""
        assert message.spec is not None
        job = self._jobs.get(key)
        if job is None or not _is_asked_for(job, message):
            former = job.pid if job is not None and job.ended else None
            job = TrackedJob(key, digest(message.spec), message.instance, kind, message.trace)
            job.former = former
        else:
            job.asked_again = True
        job.client = message.client
        self._remember(job)

    def attached(self, key: JobKey, message: wire.Attach, actor: str) -> TrackedJob:
        """Somebody has attached to a job that exists: the daemon says so."""
        job = self._jobs.get(key)
        if job is None:
            # It was started before this controller was; its end is still to be told.
            job = TrackedJob(key, None, message.instance, started=True)
            self._remember(job)
        result = {"role": message.role.value, "takeover": message.takeover}
        who = actor, message.role, message.takeover
        self._sink.note(
            _record(RecordType.ATTACH, key, actor, outcome="asked", kind=job.kind, result=result),
            is_bounded=who in job.attached,
        )
        if len(job.attached) < MAX_ATTACHED:
            job.attached |= {who}
        return job

    def answered(self, job: TrackedJob, message: wire.Attached) -> None:
        """The daemon has the job that was requested."""
        job.was_over = message.state is wire.JobState.ENDED

    def refused(
        self, key: JobKey, actor: str, refused: wire.Refused, *, by: str = "controller"
    ) -> None:
        """What was asked for is not done."""
        job = self._jobs.get(key)
        self._sink.note(
            _record(
                RecordType.REFUSAL,
                key,
                actor,
                kind=None if job is None else job.kind,
                outcome=refused.code.value,
                reason=refused.message,
                policy=refused.policy_hash or None,
                result={"by": by},
            ),
            is_bounded=True,
        )

    def stopped(self, key: JobKey, actor: str) -> None:
        """Its owner leaves the job, and ends it if it runs; the id may be used again."""
        job = self._jobs.pop(key, None)
        if job is not None and not job.ended:
            self._sink.note(_record(RecordType.STOP, key, actor, outcome="asked", kind=job.kind))

    def happened(self, job: TrackedJob, actor: str, body: wire.Buffer) -> None:
        """A message of the job's EVENTS passes; each is told once, however many see it."""
        if job.ended:
            return
        try:
            event = wire.decode_event(body)
        except RemoteProtocolError:
            return  # whoever it is for tells it to the daemon
        if job.was_over and _is_former(job, event):
            job.pid, job.ended = job.former or 0, True
            return
        match event:
            case wire.Started() if not job.started or (job.asked_again and event.pid != job.pid):
                job.started, job.pid, job.asked_again = True, event.pid, False
                self._tell(RecordType.START, job, actor, "started", {"pid": event.pid})
            case wire.Exited():
                job.ended, job.pid = True, event.pid or job.pid
                self._tell(RecordType.END, job, actor, event.outcome.value, _of_exit(event))
            case wire.Failed():
                job.ended = True
                result = {"errno": event.errno, "symbol": event.symbol}
                self._tell(
                    RecordType.END, job, actor, event.code.value, result, reason=event.message
                )

    def _tell(
        self,
        what: RecordType,
        job: TrackedJob,
        actor: str,
        outcome: str,
        result: Mapping[str, Any],
        *,
        reason: str | None = None,
    ) -> None:
        daemon, tenant, job_id = job.key
        self._sink.note(
            Record(
                type=what,
                outcome=outcome,
                reason=reason or None,
                tenant=tenant,
                actor=actor,
                daemon=daemon,
                job=job_id,
                kind=job.kind,
                result={name: each for name, each in result.items() if each or name == "code"},
                trace=job.trace or None,
            )
        )

    def _remember(self, job: TrackedJob) -> None:
        self._jobs[job.key] = job
        self._jobs.move_to_end(job.key)
        if len(self._jobs) > MAX_JOBS:
            self._jobs.popitem(last=False)


def _is_asked_for(job: TrackedJob, message: wire.Attach) -> bool:
    """Whether the Attach means that very job, and no other of its id."""
    return (
        message.spec is not None
        and (not job.ended or parse(message.job_id) is not None)
        and (job.spec, job.instance) == (digest(message.spec), message.instance)
    )


def _is_former(job: TrackedJob, event: wire.Event | wire.Unknown) -> bool:
    """Whether the event is of the job that is told of, which the daemon still has."""
    match event:
        case wire.Started() | wire.Exited():
            return event.pid != 0 and event.pid == job.former
        case wire.Failed():
            return not job.started and job.former == 0
    return False


def digest(spec: bytes) -> bytes:
    """What a spec is known again by."""
    return hashlib.sha256(spec).digest()


def _record(what: RecordType, key: JobKey, actor: str, **said: Any) -> Record:
    daemon, tenant, job = key
    return Record(type=what, tenant=tenant, actor=actor, daemon=daemon, job=job, **said)


def _describe(spec: bytes) -> dict[str, Any]:
    """What is asked for: of what the daemon will refuse to read, that it can't be read."""
    try:
        asked = wire.decode_spec(spec)
    except RemoteProtocolError as error:
        shown = {"spec_sha256": digest(spec).hex()}
        return {"reason": f"it can't be read here: {error}", "result": shown}
    said: dict[str, Any] = {"kind": _KINDS[type(asked)]}
    if isinstance(asked, wire.CommandSpec | wire.SessionSpec):
        said["argv"] = asked.argv
        said["cwd"] = asked.cwd
        said["env"] = tuple(sorted(asked.env)) or None
        said["limits"] = {
            name: each
            for name, each in zip(_LIMITS, _limits_of(asked), strict=True)
            if each is not None and each is not False
        } | asked.limits.given
        if asked.env:
            said["secrets"] = secrets_in(asked.env)
        return said
    said["target"] = _target(asked)
    return said


def _target(asked: wire.Request) -> str | None:
    """What a request is about, as one text."""
    if isinstance(asked, wire.ConnectSpec | wire.ListenSpec):
        if asked.path:
            return f"unix:{asked.path.decode('utf-8', 'backslashreplace')}"
        return f"{asked.host}:{asked.port}"
    parts = []
    for name in _TARGETS:
        value = getattr(asked, name, None)
        if value is not None:
            parts.append(
                value if isinstance(value, str) else value.decode("utf-8", "backslashreplace")
            )
    return " -> ".join(parts) or None


def _of_exit(event: wire.Exited) -> dict[str, Any]:
    return {
        "code": event.code,
        "signal": event.signal,
        "seconds": round(event.seconds, 6),
        "pid": event.pid,
        "pipes_held": event.pipes_held,
        "limit": event.limit,
        "limits": event.limits.given,
        "cpu_seconds": round(event.cpu_seconds, 6),
        "max_rss_bytes": event.max_rss_bytes,
        "stdout": event.finals.get(wire.Stream.OUTPUT, 0),
        "stderr": event.finals.get(wire.Stream.ERROR, 0),
    }
