"""The agent's end: a controller that daemons dial in to, and handles to run commands on them.

::

    async with sandd.open_controller("0.0.0.0", 8765) as controller:
        worker = await controller.wait_for_daemon("worker-1")
        result = await worker.run("ls -la", timeout=10)
"""

from __future__ import annotations

import getpass
import inspect
import socket
from contextlib import AsyncExitStack, ExitStack, contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any, Final, Literal, ParamSpec, TypeAlias, TypeVar, cast
from urllib.parse import urlsplit

import trio
from attrs import frozen

from sandd import wire
from sandd._core import commands
from sandd._core._errors import ConfigurationError, SanddError
from sandd._core.admission import Admission
from sandd._core.arguments import check_count, check_number, check_text, read_path
from sandd._core.audit.changes import policies_in_force, policies_refused, tokens_set
from sandd._core.audit.options import AuditOptions
from sandd._core.audit.sinks import NO_AUDIT
from sandd._core.audit.writer import open_audit_log
from sandd._core.controller_state import open_controller_state
from sandd._core.daemon_handle import Daemon
from sandd._core.dialer import shown_url
from sandd._core.directory import DaemonEvent, DaemonInfo, Entry
from sandd._core.identity.administration import Enrolled, NewToken, Tokens
from sandd._core.identity.gate import Gate
from sandd._core.identity.proofs import read_credential
from sandd._core.identity.records import EnrolledDaemon, EnrolmentState, TokenInfo
from sandd._core.identity.store import open_store
from sandd._core.identity.tokens import TokenKind, is_token
from sandd._core.interrupts import protected_context
from sandd._core.job_info import JobInfo, KeptOutput
from sandd._core.logs import get_logger
from sandd._core.nurseries import open_unwrapping_nursery
from sandd._core.policy.tenants import DIRECTORY as POLICY_DIRECTORY
from sandd._core.policy.tenants import TenantPolicies
from sandd._core.port_streams import RemoteStream
from sandd._core.process_handle import Process
from sandd._core.rate_limits.job_starts import RateLimits
from sandd._core.rate_limits.rates import Rate
from sandd._core.services import LocalService, RemoteService, Service
from sandd._core.session_handle import Session
from sandd._core.tls.files import DIRECTORY, AuthorityFiles
from sandd._core.tls.pins import read_pins
from sandd._core.tls.plain import leaves_in_the_clear
from sandd._core.tls.trust import Trust
from sandd._core.tls.trust_options import TrustOptions
from sandd.wire import DaemonState, JobState

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path
    from typing import Unpack

    from sandd._core.commands import RunOptions
    from sandd._core.identity.store import Store
    from sandd._core.metrics.http_answers import MetricsAddress
    from sandd._core.results import CommandResult
    from sandd._core.specs import Command
    from sandd._core.tls.contexts import ClientCertificates
    from sandd._core.tls.renewal import LiveCertificates

    Tls: TypeAlias = Literal["auto"] | tuple[str | os.PathLike[str], str | os.PathLike[str]] | None

P = ParamSpec("P")
T = TypeVar("T")

log = get_logger("controller")

__all__ = [
    "Controller",
    "ControllerStatistics",
    "Daemon",
    "DaemonEvent",
    "DaemonInfo",
    "DaemonState",
    "Enrolled",
    "EnrolledDaemon",
    "EnrolmentState",
    "JobInfo",
    "JobState",
    "KeptOutput",
    "NewToken",
    "Process",
    "Rate",
    "RateLimits",
    "RemoteStream",
    "Session",
    "TokenInfo",
    "TokenKind",
    "Tokens",
    "connect_controller",
    "open_controller",
]

MOST_HANDSHAKES_PER_SECOND: Final = 100_000
"""Far beyond what one processor can do: a bound on arithmetic only."""
MOST_AT_ONCE: Final = 1_000_000
"""Daemons that run a broadcast at the same time, where nobody bounds it: more than there are."""
DEFAULT_PORT: Final = 8765


@frozen
class ControllerStatistics:
    """A snapshot of a controller: see `Controller.statistics` and `Controller.fetch_statistics`."""

    daemons_online: int
    daemons_away: int
    platforms: Mapping[str, int]
    """Daemons online or away, by platform."""
    jobs: int
    """Jobs this process has open."""
    jobs_started: int
    """Jobs this process ever asked for."""
    bytes_received: int
    """From daemons, on the wire before TLS and WebSocket framing; of a controller in another process, from that."""
    bytes_sent: int
    loop_lag: float
    """Seconds that the event loop of this program was late at the last look: much more than 0.01 means that something
    in it blocks the loop."""
    certificate_failures: int = 0
    """Times that a new certificate could not be used, and the old one stayed."""

    # What all clients of the controller have done together, since it was started. None: not known, or not ours to know.
    total_jobs_started: int | None = None
    """Commands and sessions that any client asked for."""
    total_jobs_running: int | None = None
    """Of these, those of which no end was heard: a detached one that nobody is attached to counts, ended or not."""
    total_jobs_ended: Mapping[str, int] | None = None
    """By what was heard: an `Outcome`'s value, why it failed ("spawn", ...), "refused", "lost" with its daemon, or
    "unheard" where its owner left before that."""
    total_requests: int | None = None
    """What else was asked of daemons: files, transfers, ports, lists of jobs."""
    bytes_to_daemons: int | None = None
    """What jobs and requests were sent, without what it was wrapped in."""
    bytes_to_clients: int | None = None
    """What they have put out."""
    operators: int | None = None
    """Clients in other processes that are connected now."""
    uptime: float | None = None
    """Seconds since the controller was started."""
    controller_loop_lag: float | None = None
    """As `loop_lag`, of the program that the controller is in."""


def _configurable(opening: Callable[P, T]) -> Callable[P, T]:
    """Arguments that aren't given come from the file that is named by `config`, if one is."""

    @wraps(opening)
    def opened(*args: P.args, **kwargs: P.kwargs) -> T:
        config = cast("str | os.PathLike[str] | None", kwargs.pop("config", None))
        with _refusing_nonsense():
            path = read_path("config", config)
        if path is None:
            return opening(*args, **kwargs)
        # Not before: most have no such file, and start sooner without.
        from sandd._core.controller_options import read_controller_config

        given = inspect.signature(opening).bind_partial(*args, **kwargs).arguments
        arguments: dict[str, Any] = read_controller_config(path).as_arguments() | given
        return cast("Callable[..., T]", opening)(**arguments)

    return opened


@_configurable
@protected_context
async def open_controller(
    host: str = "127.0.0.1",
    port: int = DEFAULT_PORT,
    *,
    config: str | os.PathLike[str] | None = None,
    token: str | bytes | None = None,
    operator_token: str | bytes | None = None,
    state_dir: str | os.PathLike[str] | None = None,
    policy: str | os.PathLike[str] | None = None,
    tls: Tls = None,
    tls_names: Sequence[str] = (),
    client_certificates: ClientCertificates = "off",
    insecure: bool = False,
    heartbeat: float = 20.0,
    dead_after: float = 45.0,
    max_handshakes_per_second: float = 200.0,
    audit: bool | AuditOptions = False,
    rate_limits: RateLimits | None = None,
    metrics: str | None = None,
    metrics_token: str | bytes | None = None,
    bootstrap: bool = False,
) -> AsyncIterator[Controller]:
    """A `Controller` that listens while the block lasts.

    Without a `token` only daemons on this machine (loopback) may register, whatever `host` is.
    Clients in other processes, operators, are let in where there is an `operator_token` or a `state_dir`: see
    `connect_controller`.

    Leaving the block ends every job that is still open, with its process tree, tells the daemons to
    come back later, and closes all connections; that takes a few seconds at most, plus the kill
    graces of what still runs. Ctrl-C while it does so saves these graces: the daemons have been told,
    and kill without us. What operators run goes on. An exception of the body comes out as itself.

    Args:
        host: address to listen on; "0.0.0.0" or "::" for all.
        port: TCP port; 0 takes a free one, see `Controller.url`.
        config: a TOML file, as ``sandd controller --config`` takes it, which says what arguments don't that are
            given. What is in it for a program alone (``print_join``, ``log_level``, ``log_format``) has no effect.
        token: secret that daemons must prove to know (their option ``--token-file``); white space
            around it doesn't count, there and here.
        operator_token: secret that operators must prove to know.
        state_dir: a directory of this controller's own, made where it is missing, for what outlives it:
            ``operator.token``, made for you and used where `operator_token` isn't given, the tokens and daemons of
            `Controller.tokens` and `Controller.enrolled`, the jobs that are still to be ended on daemons that are away,
            and the CA of ``tls="auto"``. ``policy/TENANT.toml`` in it is a tenant's policy.
        policy: a TOML file with what may be asked of daemons at all, by this program as well; see
            `Controller.reload_policy`. A daemon may have one of its own, and only what both allow is done.
        tls: "auto": TLS 1.3 with a certificate of the controller's own CA, which it makes, keeps in the state directory
            (without one it is of this run alone), and renews; daemons and operators know it by `Controller.ca_pin`. A
            pair of files in PEM, certificate and key: these, read again when they change. None: no TLS.
        tls_names: host names and addresses that the controller is dialled by, beside `host`, this machine's name and
            those of loopback; for "auto".
        client_certificates: "optional" or "required": whoever dials in is asked for a certificate of the controller's
            own CA (``sandd ca issue``).
        insecure: take daemons from anywhere without a token.
        heartbeat: seconds of silence after which daemons ping, 0.05 to 3,600.
        dead_after: seconds without a word from a daemon until its connection is given up; above
            `heartbeat`, and at most 7,200.
        max_handshakes_per_second: how many connections are let in, above 0 and up to 100,000; a
            quarter of a second's worth may come at once. Others wait for up to five seconds, or are
            told when to come back. By default 200, which takes this program about a third of its time
            while it lasts, and has 10,000 daemons back within a minute after a restart.
        audit: True, or how: keep a log of who asked for what and what became of it, in ``audit/`` in the `state_dir`.
            Nothing is run before its request is on the disk there. See `AuditOptions`.
        rate_limits: how often operators may start commands and sessions; None: as often as they like.
        metrics: ``HOST:PORT`` where ``/metrics`` (for Prometheus), ``/healthz`` and ``/readyz`` are to be had; None:
            nowhere. A port of 0 takes a free one, see `Controller.metrics_address`.
        metrics_token: secret that who asks for figures must know, as ``Authorization: Bearer ...``; other machines are
            answered with one only.
        bootstrap: hand out a script, and with it the daemon as one file, to whoever asks: see
            `Controller.bootstrap_command`. Over TLS, or to this machine; to anybody, where it is `insecure`.

    Raises:
        OSError: the address can't be listened on.
        ConfigurationError: an argument makes no sense; the state directory can't be used, or is in use; or a
            policy or a certificate can't be used; metrics can't be served.
    """
    secret = _secret(token, "token", "take daemons from loopback only")
    operator_secret = _secret(operator_token, "operator_token", "let no operators in")
    with _refusing_nonsense():
        check_text("host", host, what="an address to listen on, such as '127.0.0.1' or '0.0.0.0'")
        check_count("port", port, lowest=0, most=65535, what="the number of a port, 0 to 65535")
        check_number("heartbeat", heartbeat)
        check_number("dead_after", dead_after)
        check_number(
            "max_handshakes_per_second", max_handshakes_per_second, what="a number of connections"
        )
        state_path, policy_path = read_path("state_dir", state_dir), read_path("policy", policy)
        if not isinstance(rate_limits, RateLimits | None):
            raise TypeError(
                f"rate_limits is {rate_limits!r}; it must be a sandd.RateLimits, or None"
            )
    metrics_address = _metrics_address(metrics, metrics_token)
    if not heartbeat < dead_after:
        raise ConfigurationError(f"heartbeat ({heartbeat}) must be below dead_after ({dead_after})")
    try:
        wire.Welcome(1, heartbeat, dead_after)
    except ValueError as error:  # daemons could not be told
        raise ConfigurationError(str(error)) from error
    if not 0 < max_handshakes_per_second <= MOST_HANDSHAKES_PER_SECOND:
        raise ConfigurationError(
            f"max_handshakes_per_second is {max_handshakes_per_second}; it must be above 0 and at most "
            f"{MOST_HANDSHAKES_PER_SECOND:,}"
        )
    options = AuditOptions() if audit is True else audit
    if options and state_path is None:
        raise ConfigurationError("an audit log needs a state_dir, where it is kept")
    async with AsyncExitStack() as stack:
        state = store = sink = None
        if state_path is not None:
            state = stack.enter_context(open_controller_state(state_path))
            operator_secret = operator_secret or state.operator_token
            store = await stack.enter_async_context(open_store(state_path))
            if options:
                secrets = [each for each in (secret, operator_secret) if each is not None]
                sink = await stack.enter_async_context(
                    open_audit_log(state_path, options, secrets=secrets)
                )
        policies = TenantPolicies(
            file=policy_path,
            directory=None if state_path is None else state_path / POLICY_DIRECTORY,
        )
        await trio.to_thread.run_sync(policies.read)
        if sink is not None:
            sink.note(policies_in_force(policies.hashes))
        files = stack.enter_context(ExitStack())
        certificates = await _open_certificates(
            files, tls, host, tls_names, client_certificates, state_path
        )
        service = LocalService(
            host=host,
            port=port,
            gate=Gate(store, secret, operator_secret, insecure, audit=sink or NO_AUDIT),
            heartbeat=heartbeat,
            dead_after=dead_after,
            admission=Admission(max_handshakes_per_second),
            rate_limits=RateLimits() if rate_limits is None else rate_limits,
            ends=None if state is None else state.ends,
            audit=sink or NO_AUDIT,
            policies=policies,
            certificates=certificates,
            metrics=metrics_address,
            log_written=sink,
            state_dir=state_path,
            bootstrap=bootstrap,
        )
        if sink is not None:
            sink.settle = service.link.flush
        async with _running(service) as controller:
            yield controller


@protected_context
async def connect_controller(
    url: str,
    *,
    token: str | bytes | None = None,
    ca_pin: str | None = None,
    ca_file: str | os.PathLike[str] | None = None,
    client_certificate: str | os.PathLike[str] | None = None,
    client_key: str | os.PathLike[str] | None = None,
    insecure: bool = False,
    connect_timeout: float = 10.0,
) -> AsyncIterator[Controller]:
    """A controller in another process, as a `Controller` of this one, while the block lasts.

    It has the same interface, and the same promises: when the connection breaks, or the controller is
    restarted, everything goes on as soon as it is back, and nothing is lost. Until then all daemons count as AWAY.

    Leaving the block ends every job of this program that is still open, with its process tree, and nobody else's;
    where the controller can't be reached then, they end by their leases. An exception of the body comes out as itself.

    Args:
        url: of the controller: ``ws://HOST:PORT``, or ``wss://HOST:PORT`` if it speaks TLS. The port is 8765 where none
            is named; a path of ``/ws`` or ``/operator`` doesn't matter, any other is that which a proxy has it under.
        token: an operator's token (``sdo_...``), or the controller's `operator_token`; white space around it doesn't
            count.
        ca_pin: ``sha256:HEX``, what the controller's own CA is known by, see `Controller.ca_pin`; several with commas
            between them. No other certificate is taken, and nothing is said to whoever has another.
        ca_file: CA certificates to trust, in PEM. Without this and `ca_pin`: those of this system.
        client_certificate: what to show to a controller that asks for a certificate, in PEM.
        client_key: the key to it; None: it is in the same file.
        insecure: dial a ``ws://`` URL of another machine, where whoever is on the way can read all, and take the
            controller's place.
        connect_timeout: seconds in which the first connection has to come about.

    Raises:
        ControllerUnreachable: it did not; an OSError, too.
        AuthenticationFailed: the token is missing or wrong, or the controller takes no operators. Later it
            comes out of the block, if the controller doesn't know the token any more when we dial again.
        RequestRefused: the controller speaks another version.
        ConfigurationError: an argument makes no sense.
    """
    secret = _secret(token, "token", "be refused", accepted=TokenKind.OPERATOR)
    with _refusing_nonsense():
        check_text("url", url, what="the URL of a controller, such as ws://HOST:PORT")
        check_number("connect_timeout", connect_timeout)
        trust_options = TrustOptions(
            pins=() if ca_pin is None else read_pins(check_text("ca_pin", ca_pin)),
            ca_file=read_path("ca_file", ca_file),
            client_certificate=read_path("client_certificate", client_certificate),
            client_key=read_path("client_key", client_key),
        )
    operator_url, daemon_url = _urls(url)
    trust = _trust(operator_url, trust_options, insecure=insecure)
    if trust is not None:
        await trio.to_thread.run_sync(trust.check)
    if not connect_timeout > 0:
        raise ConfigurationError(f"connect_timeout is {connect_timeout}; it must be above 0")
    service = RemoteService(
        operator_url,
        daemon_url=daemon_url,
        credential=None if secret is None else read_credential(secret, TokenKind.OPERATOR),
        name=_own_name(),
        connect_timeout=connect_timeout,
        trust=trust,
    )
    async with _running(service) as controller:
        yield controller


@protected_context
async def _running(service: Service) -> AsyncIterator[Controller]:
    """A `Controller` in front of the service, which runs while the block lasts."""
    try:
        async with open_unwrapping_nursery() as nursery:
            serving: trio.CancelScope = await nursery.start(service.run)
            # Whatever is being cancelled, daemons are heard of until the last job has ended.
            serving.shield = True
            try:
                yield Controller._create(service)
            finally:
                await service.close()
    finally:
        service.abandon()


@contextmanager
def _refusing_nonsense() -> Iterator[None]:
    """ConfigurationError for an argument of another kind, as for any other that makes no sense."""
    try:
        yield
    except ConfigurationError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigurationError(str(error)) from error


def _secret(
    token: str | bytes | None, name: str, otherwise: str, *, accepted: TokenKind | None = None
) -> bytes | None:
    if token is None:
        return None
    if not isinstance(token, str | bytes):  # which is not shown: who knows what it is
        raise ConfigurationError(
            f"the {name} is a {type(token).__name__}; it must be the secret itself, a text or bytes "
            "(of a file that holds it, what its read_text() gives)"
        )
    # As the daemon does: a file that holds it ends with a newline.
    secret = (token.encode() if isinstance(token, str) else token).strip()
    if not secret:
        raise ConfigurationError(f"the {name} is empty; leave it out to {otherwise}")
    if is_token(secret) and accepted is None:
        raise ConfigurationError(
            f"the {name} is a secret of your own choice, and this is a token of sandd's: whoever is to come in by "
            "that has it, and the controller knows it by its state directory"
        )
    return secret


def _metrics_address(metrics: str | None, token: str | bytes | None) -> MetricsAddress | None:
    secret = _secret(token, "metrics_token", "serve metrics on loopback only")
    if metrics is None:
        if secret is not None:
            raise ConfigurationError(
                "metrics_token is for metrics, and there is no address for them"
            )
        return None
    # Not before: most have no such address, and start sooner without.
    from sandd._core.metrics.http_answers import read_metrics_address

    with _refusing_nonsense():
        check_text("metrics", metrics, what="an address to listen on, such as '127.0.0.1:9464'")
    return read_metrics_address(metrics, secret, option="metrics")


def _urls(url: str) -> tuple[str, str]:
    """Where operators and where daemons dial in."""
    try:
        parts = urlsplit(url)
        port = parts.port or DEFAULT_PORT
    except ValueError as error:
        raise ConfigurationError(f"{url!r} is no URL: {error}") from error
    if parts.scheme not in ("ws", "wss") or not parts.hostname:
        raise ConfigurationError(
            f"{url!r} is no URL of a controller; ws://HOST:PORT is, and wss://HOST:PORT"
        )
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    path = parts.path.rstrip("/")
    for end in (wire.DAEMON_PATH, wire.OPERATOR_PATH):
        path = path.removesuffix(end)
    base = f"{parts.scheme}://{host}:{port}{path}"
    return base + wire.OPERATOR_PATH, base + wire.DAEMON_PATH


def _trust(url: str, options: TrustOptions, *, insecure: bool) -> Trust | None:
    """By what the controller is known; None: it speaks no TLS."""
    if url.startswith("wss:"):
        return Trust(url, options)
    if not options.is_empty:
        raise ConfigurationError(
            f"a CA pin, a CA file and a client certificate are for TLS, and {shown_url(url)} is not: use wss://"
        )
    if leaves_in_the_clear(url):
        if not insecure:
            raise ConfigurationError(
                f"{shown_url(url)} would be dialled without TLS, and whoever is on the way could take the "
                "controller's place: use wss://, or say insecure=True (--insecure)"
            )
        log.warning("connection_is_not_secure", url=shown_url(url))
    return None


async def _open_certificates(
    stack: ExitStack,
    tls: Tls,
    host: str,
    names: Sequence[str],
    client_certificates: ClientCertificates,
    directory: Path | None,
) -> LiveCertificates | None:
    """What the controller is to serve by; None: no TLS."""
    if tls != "auto" and directory is not None:
        # Else commands on this machine would dial by it.
        await trio.to_thread.run_sync(AuthorityFiles(directory / DIRECTORY).withdraw)
    if tls is None:
        if names or client_certificates != "off":
            raise ConfigurationError(
                'tls_names and client_certificates are for TLS: say tls="auto", or give it files'
            )
        return None
    # Not before: cryptography takes long to load, and is of no use without TLS.
    from sandd._core.tls.certificates import choose_certificates
    from sandd._core.tls.renewal import LiveCertificates

    certificates = choose_certificates(
        tls,
        host=host,
        names=names,
        client_certificates=client_certificates,
        state_dir=directory,
        stack=stack,
    )
    return await LiveCertificates.load(certificates)


def _own_name() -> str:
    """Who we are, for the controller's log."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError, ImportError):  # a user id without an entry: usual in containers
        user = "?"
    return f"{user}@{socket.gethostname()}"[:255]


class Controller:
    """Daemons that have dialled in, and what can be asked of them.

    Made by `open_controller`, or by `connect_controller` where the daemons have dialled in to another process.
    """

    def __init__(self) -> None:
        raise TypeError("use sandd.open_controller() or sandd.connect_controller()")

    @classmethod
    def _create(cls, service: Service) -> Controller:
        self = object.__new__(cls)
        self._service = service
        return self

    _service: Service

    def __repr__(self) -> str:
        return f"<sandd.Controller {self.url}, {len(self.daemons())} daemons>"

    # -- what it knows

    @property
    def address(self) -> str:
        """``HOST:PORT`` it listens on, with the real port; of a controller in another process, what was dialled."""
        return self._service.address

    @property
    def url(self) -> str:
        """The URL for a daemon's ``--server-url`` on this machine; elsewhere, put this machine's name in it.

        Of a controller in another process: for a daemon that can reach it by the name that was dialled here.
        """
        return self._service.url

    @property
    def ca_pin(self) -> str | None:
        """``sha256:HEX``, what the CA behind this controller's certificate is known by; None where that is not its own.

        A daemon's option ``--ca-pin``, and `connect_controller`'s `ca_pin`.
        """
        return self._service.ca_pin

    @property
    def metrics_address(self) -> str | None:
        """``HOST:PORT`` where its figures are to be had, with the real port; None: nowhere, or in another process."""
        service = self._service
        return service.metrics_address if isinstance(service, LocalService) else None

    @property
    def bootstrap_command(self) -> str | None:
        """What a shell on this machine fetches a script by that runs a daemon, for ``... | sh``; elsewhere, put this
        machine's name in it. None where nothing is handed out.

        It knows the controller by its certificate's present key, where its CA is its own: that is for some days.
        """
        service = self._service
        if not isinstance(service, LocalService) or service.bootstrap is None:
            return None
        return service.bootstrap.fetching(service.url)

    async def reload_tls(self) -> bool:
        """Read the certificate again, and serve new connections by it; False: it can't be used, and the old one stays.

        That happens by itself, within ten seconds, where a file has changed. Without TLS there is nothing to read.

        Raises:
            RuntimeError: the controller is in another process.
        """
        service = self._service
        if not isinstance(service, LocalService):
            raise RuntimeError("the controller is in another process, and so is its certificate")
        return service.certificates is None or await service.certificates.reload()

    def daemons(self, labels: Mapping[str, str] | None = None, *, match: str = "*") -> list[Daemon]:
        """The daemons, online or away, that have all of `labels` and whose id matches the glob, by id."""
        entries = self._service.directory.select(labels, match)
        return [self._handle(entry) for entry in sorted(entries, key=lambda e: e.info.id)]

    def daemon(self, daemon_id: str) -> Daemon:
        """The daemon of that id, online or away.

        Raises:
            DaemonNotFound: none of that id is known.
        """
        return self._handle(self._service.directory.find(daemon_id))

    async def wait_for_daemon(self, daemon_id: str) -> Daemon:
        """The daemon, as soon as it is online: at once, or when it dials in. Bound it with `trio.fail_after`."""
        return self._handle(await self._service.directory.wait_online(daemon_id))

    @property
    def tokens(self) -> Tokens:
        """Tokens by which daemons join, and operators come in.

        Raises:
            ConfigurationError: the controller has no `state_dir` to keep them in.
            RuntimeError: the controller is in another process.
        """
        return Tokens(*self._keeps())

    @property
    def enrolled(self) -> Enrolled:
        """Daemons that have joined by a token, whether they are here or not. Errors as of `tokens`."""
        return Enrolled(*self._keeps())

    def _keeps(self) -> tuple[Store, Gate]:
        service = self._service
        if not isinstance(service, LocalService):
            raise RuntimeError("the controller is in another process, and so are its tokens")
        if service.gate.store is None:
            raise ConfigurationError(
                "this controller keeps no tokens: give it a directory for them (open_controller(state_dir=...))"
            )
        return service.gate.store, service.gate

    def open_events(self) -> AbstractAsyncContextManager[AsyncIterator[DaemonEvent]]:
        """An async context manager for an endless async iterator over what happens to daemons from now on.

        1,024 events are held for a slow reader; then one event of kind "missed" counts the rest.
        """
        return self._service.directory.subscribe()

    def statistics(self) -> ControllerStatistics:
        """Numbers of this moment, as far as this program has them.

        Of a controller in another process it doesn't know what other clients do: see `fetch_statistics`.
        """
        told = self._service.own_statistics()
        return self._statistics(wire.Statistics(0) if told is None else told)

    async def fetch_statistics(self) -> ControllerStatistics:
        """Numbers of this moment, from the controller, wherever it is.

        It waits for a controller that can't be reached; bound it with `trio.fail_after`. An operator is told what
        concerns its tenant, and who may do everything is told all. Who sees a part of a tenant's daemons only gets
        no totals, as they would speak of the rest.
        """
        return self._statistics(await self._service.link.fetch_statistics())

    def _statistics(self, told: wire.Statistics) -> ControllerStatistics:
        online = away = 0
        platforms: dict[str, int] = {}
        for entry in self._service.directory:
            online += entry.state is DaemonState.ONLINE
            away += entry.state is DaemonState.AWAY
            platforms[entry.info.platform] = platforms.get(entry.info.platform, 0) + 1
        received, sent = self._service.traffic
        return ControllerStatistics(
            daemons_online=online,
            daemons_away=away,
            platforms=platforms,
            jobs=self._service.link.job_count,
            jobs_started=self._service.link.jobs_started,
            bytes_received=received,
            bytes_sent=sent,
            loop_lag=self._service.loop_lag.latest,
            certificate_failures=self._service.certificate_failures,
            total_jobs_started=told.jobs_asked,
            total_jobs_running=told.jobs_running,
            total_jobs_ended=None if told.jobs_asked is None else dict(told.jobs_ended),
            total_requests=told.requests,
            bytes_to_daemons=told.bytes_to_daemons,
            bytes_to_clients=told.bytes_to_clients,
            operators=told.operators,
            uptime=told.uptime,
            controller_loop_lag=told.loop_lag,
        )

    # -- what it does

    async def broadcast(
        self,
        command: Command,
        *,
        labels: Mapping[str, str] | None = None,
        match: str = "*",
        concurrency: int | None = None,
        **options: Unpack[RunOptions],
    ) -> dict[str, CommandResult | SanddError]:
        """Run a command on all matching daemons at once.

        One bad daemon delays and fails no other: its entry is the exception that `Daemon.run` raised.
        The answer takes as long as the slowest. A daemon that is away keeps it waiting, within
        `timeout`; but one that goes away with the command running does so for up to a day. Only
        `trio.move_on_after` bounds that too, and the other answers are lost with it.

        Args:
            command: as for `Daemon.run`, and so are the options.
            labels: only daemons that have all of these.
            match: only daemons whose id matches this glob.
            concurrency: how many run it at the same time; None: all.

        Returns:
            Daemon id to its result or its error, sorted by id.
        """
        if concurrency is not None:
            most, what = MOST_AT_ONCE, "a number of daemons, 1 or more"
            check_count("concurrency", concurrency, lowest=1, most=most, what=what)
        prepared = commands.prepare_by(command, options)
        link, ids = self._service.link, [daemon.id for daemon in self.daemons(labels, match=match)]
        if concurrency is None:
            return await commands.run_on_each(link, ids, prepared)
        limiter = trio.CapacityLimiter(concurrency)
        results: dict[str, CommandResult | SanddError] = {}

        async def run_on(daemon_id: str) -> None:
            async with limiter:
                try:
                    results[daemon_id] = await commands.run(link, daemon_id, prepared)
                except SanddError as error:
                    results[daemon_id] = error

        async with open_unwrapping_nursery() as nursery:
            for daemon_id in ids:
                nursery.start_soon(run_on, daemon_id)
        return {daemon_id: results[daemon_id] for daemon_id in ids}

    def set_tokens(self, *, token: str | bytes | None, operator_token: str | bytes | None) -> None:
        """From now on these are the secrets that daemons and operators must know; who is connected stays.

        Args:
            token: as for `open_controller`, and so is `operator_token`.
            operator_token: None: no operators are let in.

        Raises:
            ConfigurationError: one is empty. Nothing has changed.
            RuntimeError: the controller is in another process.
        """
        service = self._service
        if not isinstance(service, LocalService):
            raise RuntimeError("the controller is in another process, and so are its tokens")
        secret = _secret(token, "token", "take daemons from loopback only")
        operator_secret = _secret(operator_token, "operator_token", "let no operators in")
        service.gate.token, service.gate.operator_token = secret, operator_secret
        audit = service.link.audit
        if audit.redactor is not None:
            audit.redactor.learn(each for each in (secret, operator_secret) if each is not None)
        audit.note(tokens_set(daemons=secret is not None, operators=operator_secret is not None))

    async def reload_policy(self) -> None:
        """Read the policies again: `policy`, and ``policy/TENANT.toml`` in the state directory for each tenant.

        They apply to what is asked for from now on; what runs goes on. A tenant is held to both, its own and that
        of everybody.

        Raises:
            ConfigurationError: one of them can't be used. Those that were in force still are.
            RuntimeError: the controller is in another process.
        """
        service = self._service
        if not isinstance(service, LocalService):
            raise RuntimeError("the controller is in another process, and so are its policies")
        audit = service.link.audit
        try:
            await trio.to_thread.run_sync(service.policies.read)
        except ConfigurationError as error:
            audit.note(policies_refused(str(error)))
            raise
        audit.note(policies_in_force(service.policies.hashes))

    # -- inside

    def _handle(self, entry: Entry) -> Daemon:
        return Daemon._create(self._service.link, entry)
