"""Who somebody is to a controller, and what each thing that can be asked for needs.

`NEEDED_BY_MESSAGE` and `NEEDED_BY_SPEC` are the whole of it: a message or a kind of job that isn't in them is asked
for by nobody, which a test sees to.
"""

from __future__ import annotations

import enum
import re
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final

from attrs import field, frozen

from sandd import wire
from sandd._core.tombstones import parse
from sandd.wire import RefusedCode
from sandd.wire import Role as AttachRole

if TYPE_CHECKING:
    from collections.abc import Mapping

DEFAULT_TENANT: Final = "default"
EVERY_TENANT: Final = "*"
TENANT: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
"""Tenants go into file names and metric labels, as daemon ids do; "/" stands between the two."""


class Verb(enum.StrEnum):
    """One thing that somebody may do."""

    LIST = "list"  # see daemons, and what becomes of them
    JOBS = "jobs"  # see which jobs they have
    READ = "read"  # see what a job prints, and how it ends
    RUN = "run"  # start jobs, hold them, write to them, send them signals
    END = "end"  # kill and forget jobs that somebody else holds
    FILES = "files"  # see files: stat, list, read, watch, download
    WRITE = "write"  # change files
    PORTS = "ports"  # connections from the daemon's side
    ADMINISTER = "administer"  # tokens, daemons' enrolment


class Role(enum.StrEnum):
    """What somebody may do at most; a token's verbs may leave less of it."""

    VIEWER = "viewer"
    RUNNER = "runner"
    ADMIN = "admin"


VERBS: Final[Mapping[Role, frozenset[Verb]]] = {
    Role.VIEWER: frozenset({Verb.LIST, Verb.JOBS, Verb.READ}),
    Role.RUNNER: frozenset(Verb) - {Verb.ADMINISTER},
    Role.ADMIN: frozenset(Verb),
}

NEEDED_BY_SPEC: Final[Mapping[str, Verb]] = {
    "command": Verb.RUN, "session": Verb.RUN,
    "jobs": Verb.JOBS, "statistics": Verb.JOBS, "kill": Verb.END, "forget": Verb.END,
    "stat": Verb.FILES, "list": Verb.FILES, "glob": Verb.FILES, "read": Verb.FILES,
    "watch": Verb.FILES, "download": Verb.FILES,
    "mkdir": Verb.WRITE, "remove": Verb.WRITE, "rename": Verb.WRITE, "symlink": Verb.WRITE,
    "touch": Verb.WRITE, "change": Verb.WRITE, "write": Verb.WRITE, "upload": Verb.WRITE,
    # What comes to a listener is a job of its own, which is held as any other.
    "connect": Verb.PORTS, "listen": Verb.RUN,
}  # fmt: skip
"""Of a job that is to be started, by the kind of its spec."""


class Speaker(enum.Enum):
    """Whose a message is."""

    CONTROLLER = enum.auto()  # it is no peer's to send
    NEWCOMER = enum.auto()  # said once, before anything else is heard
    LINK = enum.auto()  # either end of a link that is live, whoever it is
    DAEMON = enum.auto()  # a daemon whose link is live, about its own jobs
    CHANNEL = enum.auto()  # who holds the channel: what it may do was settled when that was opened
    CLIENT = enum.auto()  # a client whose link is live, if it has the right; see `Rights`


NEEDED_BY_MESSAGE: Final[Mapping[type, Speaker]] = {
    wire.Challenge: Speaker.CONTROLLER, wire.Welcome: Speaker.CONTROLLER,
    wire.Reject: Speaker.CONTROLLER, wire.DaemonStatus: Speaker.CONTROLLER,
    wire.DaemonCloned: Speaker.CONTROLLER, wire.DaemonsTold: Speaker.CONTROLLER,
    wire.Away: Speaker.CONTROLLER, wire.Statistics: Speaker.CONTROLLER,
    wire.Hello: Speaker.NEWCOMER, wire.OperatorHello: Speaker.NEWCOMER,
    wire.Ping: Speaker.LINK, wire.Pong: Speaker.LINK, wire.Goodbye: Speaker.LINK,
    wire.Attached: Speaker.DAEMON, wire.Refused: Speaker.DAEMON, wire.Taken: Speaker.DAEMON,
    wire.Detach: Speaker.CHANNEL, wire.Flush: Speaker.CHANNEL, wire.Window: Speaker.CHANNEL,
    wire.Attach: Speaker.CLIENT, wire.End: Speaker.CLIENT, wire.AskStatistics: Speaker.CLIENT,
}  # fmt: skip
"""Who may send each control message. Flush and Window go both ways on a channel."""


@frozen
class Principal:
    """Somebody who was let in, and what for."""

    name: str
    """Who it is, for the audit log and for daemons."""
    tenant: str = DEFAULT_TENANT
    """Whose daemons it sees; "*": all."""
    role: Role = Role.ADMIN
    daemons: str = "*"
    """Glob over plain ids: those that it sees."""
    verbs: frozenset[Verb] | None = None
    """None: all that its role has."""

    is_unlimited: bool = field(init=False, repr=False, eq=False)
    """It may do everything, everywhere: so of each message it need not be asked what it may."""

    @is_unlimited.default
    def _may_do_everything(self) -> bool:
        return (
            self.tenant == EVERY_TENANT
            and self.role is Role.ADMIN
            and self.daemons == "*"
            and self.verbs is None
        )

    def may(self, verb: Verb) -> bool:
        """Whether it has the right."""
        return verb in VERBS[self.role] and (self.verbs is None or verb in self.verbs)

    def full_name(self, said: str) -> str | None:
        """The daemon that it means, by its full name; None if that is none of those it may see."""
        if self.is_unlimited:
            return said
        name = said
        if self.tenant != EVERY_TENANT:
            if "/" in said:
                return None  # another's, or its own by a name that it doesn't know
            name = full_name(self.tenant, said)
        return name if self.sees(name) else None

    def shown(self, name: str) -> str | None:
        """What the daemon of that full name is called towards it; None: it is not to hear of that."""
        if not self.sees(name):
            return None
        return name if self.tenant == EVERY_TENANT else split_name(name)[1]

    def sees(self, name: str) -> bool:
        """Whether the daemon of that full name is among those that it may see."""
        tenant, daemon_id = split_name(name)
        return (
            self.tenant in (EVERY_TENANT, tenant)
            and (self.daemons == "*" or fnmatchcase(daemon_id, self.daemons))
            and self.may(Verb.LIST)
        )

    def refusal(self, message: wire.Attach, client: str) -> wire.Refused | None:
        """Why the job may not be attached to, or started, by it, as this client; None: it may."""
        if self.is_unlimited:
            return None  # without a look at the spec, which only the daemon has to understand
        needed = self._needed(message, client)
        missing = sorted(verb.value for verb in needed if not self.may(verb))
        if not missing:
            return None
        return wire.Refused(
            RefusedCode.DENIED,
            f"{self.name!r} may not do that: it needs the right to {', '.join(missing)}, and has the role "
            f"{self.role.value}",
        )

    def may_end(self, job_id: str, client: str) -> bool:
        """Whether it may leave, as this client, a job of that id. Of one that never came, it takes the id away."""
        return self.is_unlimited or self.may(Verb.RUN) or is_of(job_id, client)

    def _needed(self, message: wire.Attach, client: str) -> set[Verb]:
        if not self.may(Verb.RUN) and not is_of(message.job_id, client):
            # Under an id that may be wanted by others it could only be in their way.
            return {
                Verb.READ
                if message.spec is None and message.role is AttachRole.VIEWER
                else Verb.RUN
            }
        if message.spec is None and is_of(message.job_id, client):
            return set()  # it has started that: it attaches again
        if message.spec is None:
            return {Verb.READ if message.role is AttachRole.VIEWER else Verb.RUN}
        kind = wire.kind_of_spec(message.spec)
        # What isn't in the table is for those who may do everything a job can.
        if kind is None or kind not in NEEDED_BY_SPEC:
            return {*VERBS[Role.RUNNER]}
        return {NEEDED_BY_SPEC[kind]}


EVERYTHING: Final = Principal("local", EVERY_TENANT)
"""The controller's own program."""


def is_of(job_id: str, client: str) -> bool:
    """Whether it is one of the ids that this client generates, and nobody else."""
    generated = parse(job_id)
    return generated is not None and generated[0] == client


def full_name(tenant: str, daemon_id: str) -> str:
    """What a daemon is called where all tenants' are."""
    return daemon_id if tenant == DEFAULT_TENANT else f"{tenant}/{daemon_id}"


def split_name(name: str) -> tuple[str, str]:
    """(tenant, plain id) of a full name."""
    tenant, slash, daemon_id = name.rpartition("/")
    return (tenant, daemon_id) if slash else (DEFAULT_TENANT, daemon_id)


def check_tenant(tenant: str) -> str | None:
    """What is wrong with a tenant's name, for people; None when nothing is."""
    if TENANT.fullmatch(tenant):
        return None
    return (
        f"tenant {tenant[:80]!r} is not usable: 1 to 63 letters, digits and any of . _ -, "
        "beginning with a letter or digit"
    )
