"""Who is let in, and who has to leave again: the one place where that is decided, for daemons and operators.

Whoever comes says in its Hello by what: a secret that many share, a token, or a daemon's own key. What is wrong with
it is told to nobody: a credential that is missing, wrong, damaged, expired, revoked or forgotten has one answer.
Nothing is changed before a peer has proven what it says; so who knows no secret can neither lock a daemon out nor use
up a token.

A connection has its pass before the records are looked at. So whatever becomes of a token or a key meanwhile, the
connection is not overlooked.
"""

from __future__ import annotations

import secrets
import sqlite3
import time
from typing import TYPE_CHECKING, Final

import trio
from attrs import Factory, define, field

from sandd import wire
from sandd._core._errors import RemoteProtocolError
from sandd._core.audit.changes import daemon_changed, token_changed
from sandd._core.audit.sinks import NO_AUDIT
from sandd._core.identity.database import NameTaken, NotAllowed, Stale, Unrecorded
from sandd._core.identity.journal import Journal
from sandd._core.identity.passes import Passes
from sandd._core.identity.proofs import daemon_secret, proves_secret, proves_token
from sandd._core.identity.records import EnrolledDaemon, EnrolmentState
from sandd._core.identity.rights import (
    DEFAULT_TENANT,
    EVERY_TENANT,
    Principal,
    Role,
    full_name,
)
from sandd._core.identity.tokens import TokenKind, is_client_of
from sandd._core.link import check_hello, check_operator_hello
from sandd._core.logs import get_logger
from sandd._core.nurseries import open_unwrapping_nursery
from sandd.wire import CredentialKind, RejectCode

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandd._core.audit.sinks import AuditSink
    from sandd._core.identity.passes import Pass
    from sandd._core.identity.store import Store
    from sandd._core.reception import Greeting

log = get_logger("identity")

LOOK_SECONDS: Final = 0.5
"""How often the gate looks whether another program has revoked or locked anything: that is to work within a second."""
LOCKED_RETRY: Final = 60.0
"""Seconds after which a locked daemon may ask again."""
TAKEN_RETRY: Final = 10.0
"""Seconds after which a daemon may ask again for an id that is another's."""
UNUSABLE_RETRY: Final = 10.0
"""Seconds after which somebody may ask again who couldn't be put on record."""
RAISED_SECONDS: Final = 60.0
"""How long it is remembered that a daemon came with a later key. It matters to Hellos that were under way then: they
have ten seconds from the challenge on, and wait for a busy database for five more."""
COPIED: Final = "it came with a key that a later one has replaced: its state directory was copied, or rolled back"
OPERATOR_URI: Final = "sandd:operator:"
"""So begins what is in an operator's certificate."""
REFUSED_DAEMON: Final = wire.Reject(
    RejectCode.UNAUTHENTICATED,
    "the daemon's token is missing or wrong, or no longer valid: see its option --token-file; "
    "'sandd token create join' makes one that is",
)
REFUSED_OPERATOR: Final = wire.Reject(
    RejectCode.UNAUTHENTICATED,
    "the operator's token is missing or wrong, or no longer valid: it is the one in operator.token, in the "
    "controller's state directory, or one that 'sandd token create operator' has made "
    "(connect_controller(token=...), --token-file)",
)
NO_TOKEN: Final = wire.Reject(
    RejectCode.UNAUTHENTICATED,
    "this controller has no token configured, so it takes daemons from loopback only: "
    "give the daemon a token to join by (--token-file; 'sandd token create join' makes one), or the controller "
    "('sandd controller --token-file', open_controller(token=...)) and the daemon the same one, or open it to "
    "everybody ('sandd controller --insecure', insecure=True)",
)
NO_OPERATORS: Final = wire.Reject(
    RejectCode.UNAUTHENTICATED,
    "this controller takes no operators, as it has no token for them: give it one "
    "(open_controller(operator_token=...) or state_dir=..., sandd controller)",
)


def _controller_id(gate: Gate) -> str:
    return secrets.token_hex(8) if gate.store is None else gate.store.controller_id


@define(eq=False)
class Gate:
    """Decides who comes in."""

    store: Store | None = None
    """None: the controller keeps nothing, and nobody can join."""
    token: bytes | None = None
    """What daemons of the tenant "default" may share."""
    operator_token: bytes | None = None
    """What operators may share who may do everything."""
    insecure: bool = False
    """Everybody is trusted as if it were on this machine."""
    controller_id: str = field(default=Factory(_controller_id, takes_self=True))
    """What it is called towards whoever dials in; the same over all its starts, where it keeps anything."""
    passes: Passes = field(factory=Passes)
    audit: AuditSink = NO_AUDIT
    _raised: dict[str, tuple[int, float]] = field(factory=dict)
    """The latest generation of each daemon's key that was used, by uid, and when that began; the earliest first."""
    _clock: Callable[[], float] = time.time

    # -- daemons

    async def admit_daemon(
        self,
        given: Pass,
        greeting: Greeting,
        *,
        is_loopback: bool,
        channel_binding: bytes,
        certificate: str | None = None,
    ) -> wire.Reject | None:
        """The answer to a Hello that isn't let in; None: it is, and `given` says as whom.

        Args:
            given: its pass, which is filled in.
            greeting: what was said.
            is_loopback: the peer is on this machine.
            channel_binding: of the connection, if TLS ends here; else b"".
            certificate: the URI in the certificate that it has shown, which has to be its own; None: it has none.
        """
        hello = greeting.hello
        if not isinstance(hello, wire.Hello):
            raise RemoteProtocolError(
                f"the daemon opened with {type(hello).__name__}, not with a Hello"
            )
        try:
            return await self._judge_daemon(
                given, greeting, hello, is_loopback, channel_binding, certificate
            )
        except sqlite3.Error as error:
            return _unusable(error)

    async def _judge_daemon(
        self,
        given: Pass,
        greeting: Greeting,
        hello: wire.Hello,
        is_loopback: bool,
        channel_binding: bytes,
        certificate: str | None,
    ) -> wire.Reject | None:
        challenge = greeting.challenge
        problem = check_hello(hello)
        if problem is not None:
            return problem
        if channel_binding and hello.channel_binding != channel_binding:
            return REFUSED_DAEMON  # it was said to another than us
        name = full_name(DEFAULT_TENANT, hello.daemon_id)
        match hello.credential:
            case CredentialKind.SHARED if not _fits(certificate, "daemon", name):
                return REFUSED_DAEMON
            case CredentialKind.SHARED if self.token is None:
                if not (is_loopback or self.insecure):
                    return NO_TOKEN
                return await self._admit_unenrolled(given, hello)
            case CredentialKind.SHARED if self.token is not None:
                if proves_secret(hello, challenge, self.token):
                    return await self._admit_unenrolled(given, hello)
            case CredentialKind.JOIN if self.store is not None:
                return await self._join(given, self.store, hello, challenge, certificate)
            case CredentialKind.KEY if self.store is not None:
                secret = daemon_secret(self.store.master_key, hello.key_id, hello.generation)
                # The certificate comes first: a key that is refused is not one that was used.
                if proves_secret(hello, challenge, secret) and await self._fits_enrolled(
                    certificate, self.store, hello.key_id
                ):
                    return await self._log_in(given, self.store, hello, greeting.challenged_at)
        return REFUSED_DAEMON

    async def _admit_unenrolled(self, given: Pass, hello: wire.Hello) -> wire.Reject | None:
        """One that shares its secret with others, or has none: it can't have the id of one that has a key."""
        if self.store is not None:
            holder = await self.store.ask(
                lambda database: database.named(DEFAULT_TENANT, hello.daemon_id)
            )
            if holder is not None:
                return _taken(hello)
        given.name = full_name(DEFAULT_TENANT, hello.daemon_id)
        return None

    async def _join(
        self,
        given: Pass,
        store: Store,
        hello: wire.Hello,
        challenge: wire.Challenge,
        certificate: str | None,
    ) -> wire.Reject | None:
        token = await store.ask(lambda database: database.token(hello.key_id))
        if (
            token is None
            or token.kind is not TokenKind.JOIN
            or not proves_token(hello, challenge, token.digest)
            or not _fits(certificate, "daemon", full_name(token.tenant, hello.daemon_id))
        ):
            return REFUSED_DAEMON
        joined = await store.ask(
            lambda database: database.join(
                hello.key_id,
                hello.daemon_id,
                hello.instance,
                self._clock(),
                ancestors=hello.ancestors,
            )
        )
        match joined:
            case None:
                return REFUSED_DAEMON
            case NameTaken():
                return _taken(hello)
            case NotAllowed(pattern):
                text = f"that join token is for daemons whose id matches {pattern!r}"
                return wire.Reject(RejectCode.BAD_HELLO, text)
        log.info("daemon_joined", daemon_id=joined.name, uid=joined.uid, token=token.id)
        joining = {"daemon": joined.name, "uid": joined.uid}
        self.audit.note(token_changed("joined", token.id, "join", joined.tenant, **joining))
        given.uid = joined.uid
        # Only now does the pass say whose it is: what has become of the daemon since then is asked for.
        latest = await store.ask(lambda database: database.daemon(joined.uid))
        return self._let_in(given, store, latest, hello, has=0)

    async def _fits_enrolled(self, certificate: str | None, store: Store, uid: str) -> bool:
        """Whether the certificate is that of the daemon of this uid, or there is none."""
        if _fits(certificate, "daemon", uid):
            return True
        daemon = await store.ask(lambda database: database.daemon(uid))
        return daemon is not None and _fits(certificate, "daemon", daemon.name)

    async def _log_in(
        self, given: Pass, store: Store, hello: wire.Hello, challenged_at: float
    ) -> wire.Reject | None:
        given.uid = hello.key_id
        daemon = await store.ask(
            lambda database: database.login(
                hello.key_id, hello.generation, hello.instance, self._clock()
            )
        )
        if isinstance(daemon, Unrecorded):
            log.error(
                "login_not_recorded",
                daemon_id=daemon.daemon.name,
                reason=f"{daemon.reason}; it was let in by the key that it has, and got no new one",
            )
            daemon = daemon.daemon
        if not isinstance(daemon, Stale):
            return self._let_in(given, store, daemon, hello, has=hello.generation)
        known = daemon.daemon
        if challenged_at <= self._raised.get(known.uid, (0, 0.0))[1]:
            # It was under way while its successor came, and may not even live any more.
            return wire.Reject(RejectCode.STALE, "a later start of this daemon is known", 0.0)
        await store.ask(lambda database: database.lock(known.uid))
        log.warning(
            "daemon_locked",
            daemon_id=known.name,
            uid=known.uid,
            host=hello.hostname,
            reason=f"{COPIED}; 'sandd daemons unlock' lets whoever comes next in, 'sandd daemons forget' nobody",
        )
        self.audit.note(daemon_changed("locked", known.name, known.tenant, COPIED))
        self.passes.withdraw(uids={known.uid})
        return _locked(known)

    def _let_in(
        self,
        given: Pass,
        store: Store,
        daemon: EnrolledDaemon | None,
        hello: wire.Hello,
        *,
        has: int,
    ) -> wire.Reject | None:
        """What follows from its record; `has` is the generation of the key that it has."""
        if daemon is None or daemon.state is EnrolmentState.FORGOTTEN:
            return REFUSED_DAEMON
        if daemon.state is EnrolmentState.LOCKED:
            return _locked(daemon)
        if daemon.id != hello.daemon_id:
            text = f"this daemon has joined as {daemon.id!r}, and its key is for that id alone"
            return wire.Reject(RejectCode.BAD_HELLO, text)
        if has > self._raised.get(daemon.uid, (0, 0.0))[0]:
            self._note_raised(daemon.uid, has)
        given.name, given.labels = daemon.name, daemon.labels
        if daemon.offered > has:
            secret = daemon_secret(store.master_key, daemon.uid, daemon.offered)
            given.enrolment = wire.Enrolment(daemon.uid, daemon.offered, secret)
        return None

    def _note_raised(self, uid: str, generation: int) -> None:
        """A key of this generation is used for the first time, or for the first time in RAISED_SECONDS."""
        now = trio.current_time()
        self._raised.pop(uid, None)
        self._raised[uid] = (generation, now)  # behind those that were raised before
        while (oldest := next(iter(self._raised))) != uid and (
            now - self._raised[oldest][1] > RAISED_SECONDS
        ):
            del self._raised[oldest]

    # -- operators

    async def admit_operator(
        self,
        given: Pass,
        greeting: Greeting,
        *,
        channel_binding: bytes,
        certificate: str | None = None,
    ) -> wire.Reject | None:
        """As `admit_daemon`, for an operator."""
        hello = greeting.hello
        if not isinstance(hello, wire.OperatorHello):
            raise RemoteProtocolError(
                f"the operator opened with {type(hello).__name__}, not with an OperatorHello"
            )
        try:
            return await self._judge_operator(
                given, hello, greeting.challenge, channel_binding, certificate
            )
        except sqlite3.Error as error:
            return _unusable(error)

    async def _judge_operator(
        self,
        given: Pass,
        hello: wire.OperatorHello,
        challenge: wire.Challenge,
        channel_binding: bytes,
        certificate: str | None,
    ) -> wire.Reject | None:
        problem = check_operator_hello(hello)
        if problem is not None:
            return problem
        if self.operator_token is None and self.store is None:
            return NO_OPERATORS
        if channel_binding and hello.channel_binding != channel_binding:
            return REFUSED_OPERATOR  # it was said to another than us
        match hello.credential:
            case CredentialKind.SHARED if self.operator_token is not None:
                is_operator = (certificate or OPERATOR_URI).startswith(OPERATOR_URI)
                if proves_secret(hello, challenge, self.operator_token) and is_operator:
                    name = f"operator:{hello.name}"[: wire.MAX_ID_LENGTH]
                    given.principal = Principal(name, EVERY_TENANT, Role.ADMIN)
                    return None
            case CredentialKind.OPERATOR if self.store is not None:
                given.token_id = hello.key_id
                token = await self.store.ask(lambda database: database.token(hello.key_id))
                if (
                    token is not None
                    and token.kind is TokenKind.OPERATOR
                    and proves_token(hello, challenge, token.digest)
                    and token.is_valid(self._clock())
                    and _fits(certificate, "operator", token.name)
                ):
                    if not is_client_of(hello.client, token.id):
                        text = "that client's name is not one for this token"
                        return wire.Reject(RejectCode.BAD_HELLO, text)
                    given.principal = token.principal
                    if token.expires_at is not None:
                        given.expires_at = token.expires_at
                    return None
        return REFUSED_OPERATOR

    # -- leaving again

    async def watch(self) -> None:
        """Withdraw the passes by what another program does to tokens and daemons, or time; for ever.

        And have the audit log tell of what it does.
        """
        if self.store is None:
            return
        async with open_unwrapping_nursery() as nursery:
            if (
                self.audit.is_on
            ):  # by itself: its disk may hang, and who was revoked has to leave all the same
                nursery.start_soon(Journal(self.store, self.audit).keep, LOOK_SECONDS)
            await self._look_for_ever(self.store)

    async def _look_for_ever(self, store: Store) -> None:
        seen = None
        complaint = ""
        while True:
            try:
                version = await store.ask(lambda database: database.version())
                if version != seen or self.passes.has_expired(self._clock()):
                    await self.look()
                    seen = version
                complaint = ""
            except sqlite3.Error as error:  # it may pass, and whoever is here is no worse for it
                if str(error) != complaint:
                    complaint = str(error)
                    log.error("records_unreadable", error=complaint)
            await trio.sleep(LOOK_SECONDS)

    async def look(self) -> None:
        """Withdraw the passes that are good no more."""
        if self.store is not None:
            tokens, daemons = await self.store.ask(lambda database: database.invalid(self._clock()))
            self.passes.withdraw(token_ids=tokens, uids=daemons)


def _fits(certificate: str | None, kind: str, *names: str) -> bool:
    """Whether the certificate is that of one of these, or there is none; see ``sandd ca issue``."""
    return certificate is None or certificate in {f"sandd:{kind}:{name}" for name in names}


def _unusable(error: sqlite3.Error) -> wire.Reject:
    log.error("records_unusable", error=f"{error}; nobody is let in who has to be put on record")
    return wire.Reject(
        RejectCode.BUSY,
        "the controller can't use its records of tokens and daemons, as when its disk is full; its log says more",
        UNUSABLE_RETRY,
    )


def _taken(hello: wire.Hello) -> wire.Reject:
    return wire.Reject(
        RejectCode.ID_IN_USE,
        f"the daemon id {hello.daemon_id!r} is that of a daemon that has joined, and has a key of its own; give this "
        f"one another id, or have that one forgotten ('sandd daemons forget {hello.daemon_id}')",
        TAKEN_RETRY,
    )


def _locked(daemon: EnrolledDaemon) -> wire.Reject:
    return wire.Reject(
        RejectCode.LOCKED,
        f"the daemon {daemon.id!r} is locked: by somebody, or because its key was copied; 'sandd daemons unlock' on "
        "the controller's machine lets it in again",
        LOCKED_RETRY,
    )
