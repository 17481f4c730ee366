"""The options of ``sandd controller``: from the command line, the environment and a TOML file, in that order.

A program's own controller may have such a file, too: see `open_controller`.

Its variables are SANDD_CONTROLLER_ and the option's name: SANDD_TOKEN_FILE and SANDD_STATE_DIR are a daemon's,
or a command's, which may well have the same environment.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from attrs import field, fields, frozen

from sandd._core._errors import ConfigurationError
from sandd._core.audit.options import AuditOptions
from sandd._core.identity.tokens import is_token
from sandd._core.program_options import (
    Parser,
    add_common_options,
    add_metrics_options,
    gather,
    read_boolean,
    read_log_format,
    read_log_level,
    read_metrics,
    read_number,
    read_token,
)
from sandd._core.rate_limits.job_starts import RateLimits
from sandd._core.rate_limits.rates import LEAST_PER_SECOND, MOST_PER_SECOND, Rate

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence

    from sandd._core.metrics.http_answers import MetricsAddress
    from sandd._core.program_options import LogFormat
    from sandd._core.tls.contexts import ClientCertificates

DEFAULT_HOST: Final = "127.0.0.1"
DEFAULT_PORT: Final = 8765
_AT_ONCE: Final = {"in_force": "at once"}
"""Metadata of what a reload changes; for the rest it takes a new start."""


@frozen
class ControllerOptions:
    """Everything a stand-alone controller can be told."""

    host: str = DEFAULT_HOST
    port: int = DEFAULT_PORT
    """0: any that is free."""
    state_dir: Path | None = None
    """None: a directory of this user's, one for each port."""
    token_file: Path | None = None
    token: bytes | None = field(default=None, repr=False, metadata=_AT_ONCE)
    """What daemons must know; None: daemons of this machine only."""
    operator_token_file: Path | None = None
    operator_token: bytes | None = field(default=None, repr=False, metadata=_AT_ONCE)
    """What operators must know; None: what is in the state directory, made there if need be."""
    print_join: bool = False
    """Make a join token at the start, and tell the daemon's command with it."""
    bootstrap: bool = False
    """Hand out the daemon, and a script that runs it."""
    policy: Path | None = None
    """What may be asked of daemons; None: what their own policies allow."""
    tls: Literal["auto"] | tuple[Path, Path] | None = None
    """Whose certificate it serves by: its own CA's, or that in a file, with its key."""
    tls_names: tuple[str, ...] = ()
    client_certificates: ClientCertificates = "off"
    insecure: bool = False
    heartbeat: float = 20.0
    dead_after: float = 45.0
    max_handshakes_per_second: float = 200.0
    audit: bool = False
    audit_on_full: Literal["refuse", "run"] = "refuse"
    rate_limits: RateLimits = field(factory=RateLimits)
    metrics: MetricsAddress | None = None
    """Where its figures are to be had; None: nowhere."""
    log_level: str = field(default="info", metadata=_AT_ONCE)
    log_format: LogFormat = field(default="text", metadata=_AT_ONCE)

    def as_arguments(self) -> dict[str, Any]:
        """What `open_controller` is given for them. The rest is about a program: what it prints, and its log."""
        return {
            "host": self.host,
            "port": self.port,
            "token": self.token,
            "operator_token": self.operator_token,
            "state_dir": self.state_dir,
            "policy": self.policy,
            "tls": self.tls,
            "tls_names": self.tls_names,
            "client_certificates": self.client_certificates,
            "insecure": self.insecure,
            "heartbeat": self.heartbeat,
            "dead_after": self.dead_after,
            "max_handshakes_per_second": self.max_handshakes_per_second,
            "audit": AuditOptions(on_full=self.audit_on_full) if self.audit else False,
            "rate_limits": self.rate_limits,
            "metrics": None if self.metrics is None else str(self.metrics),
            "metrics_token": None if self.metrics is None else self.metrics.token,
            "bootstrap": self.bootstrap,
        }

    def differing_for_good(self, other: ControllerOptions) -> list[str]:
        """The options in which `other` is different, and which can't be changed while the program runs."""
        return [
            each.name
            for each in fields(ControllerOptions)
            if each.metadata != _AT_ONCE and getattr(self, each.name) != getattr(other, each.name)
        ]


_NAMES: Final = (
    *("host", "port", "state_dir", "token_file", "operator_token_file", "print_join", "insecure"),
    "bootstrap",
    *("audit", "audit_on_full"),
    *("heartbeat", "dead_after", "max_handshakes_per_second", "rate_limits", "policy"),
    *("metrics_address", "metrics_token_file"),
    *("tls", "tls_cert", "tls_key", "tls_name", "client_certificates"),
    *("log_level", "log_format", "config"),
)
SCOPES: Final = ("operator", "tenant", "daemon")
"""Whose starts may be limited."""
VARIABLES: Final = {name: (f"SANDD_CONTROLLER_{name.upper()}",) for name in _NAMES}


def build_parser(prog: str, version: str) -> argparse.ArgumentParser:
    """The command line's grammar."""
    parser = Parser(
        prog=prog,
        description="Be a controller: let daemons dial in, and people and programs run commands on them. "
        "'ready URL' on stdout says that it listens. SIGTERM and Ctrl-C end it in good order; SIGHUP reads "
        "the token files, the certificate, the policies and --config again.",
        epilog="Each option is also read from the environment (SANDD_CONTROLLER_PORT, ...) and from the TOML "
        "file given by --config; the command line wins, then the environment. Exit code: 0 after "
        "SIGTERM or Ctrl-C, 2 for a bad option, 125 if it can't listen, or can't use its state directory.",
        argument_default=None,
        allow_abbrev=False,
    )
    add_options(parser, version)
    return parser


def add_options(parser: argparse.ArgumentParser, version: str) -> None:
    """All that it can be told."""
    parser.add_argument(
        "--host",
        metavar="HOST",
        help=f"address to listen on (default: {DEFAULT_HOST}; 0.0.0.0 for all)",
    )
    parser.add_argument(
        "--port",
        metavar="PORT",
        help=f"TCP port (default: {DEFAULT_PORT}; 0: any that is free, told when it is ready)",
    )
    parser.add_argument(
        "--state-dir",
        metavar="DIR",
        help="directory of this controller's own (default: one of this user's, by port)",
    )
    parser.add_argument(
        "--token-file",
        metavar="FILE",
        help="file with the secret that daemons have to know; without it daemons of this machine only",
    )
    parser.add_argument(
        "--operator-token-file",
        metavar="FILE",
        help="file with the secret that commands and programs have to know (default: operator.token "
        "in the state directory, made there at the first start)",
    )
    parser.add_argument(
        "--print-join",
        action="store_const",
        const=True,
        help="make a token by which one daemon may join within 15 minutes, in the state directory, and tell "
        "the command for it",
    )
    parser.add_argument(
        "--bootstrap",
        action="store_const",
        const=True,
        help="hand out the daemon to whoever asks, and tell the line for a shell by which a machine with only Python "
        "and curl has one (--print-join does so, too)",
    )
    parser.add_argument(
        "--policy",
        metavar="FILE",
        help="let only what this file allows be asked of daemons; for one tenant besides: policy/TENANT.toml in "
        "the state directory",
    )
    parser.add_argument(
        "--insecure",
        action="store_const",
        const=True,
        help="take daemons from anywhere without a token",
    )
    parser.add_argument(
        "--tls",
        metavar="auto|off",
        help="auto: TLS with a certificate of a CA of its own, which peers know by --ca-pin (default: off)",
    )
    parser.add_argument(
        "--tls-cert", metavar="FILE", help="TLS with this certificate, in PEM, and --tls-key"
    )
    parser.add_argument("--tls-key", metavar="FILE", help="its key, in PEM")
    parser.add_argument(
        "--tls-name",
        action="append",
        metavar="NAME",
        help="host name or address that it is dialled by, for --tls auto; may be given often",
    )
    parser.add_argument(
        "--client-certificates",
        metavar="HOW",
        help="whether whoever dials in needs a certificate (sandd ca issue): off, optional or required "
        "(default: off)",
    )
    parser.add_argument(
        "--heartbeat",
        metavar="SECONDS",
        help="silence after which daemons ping (default: 20)",
    )
    parser.add_argument(
        "--dead-after",
        metavar="SECONDS",
        help="silence after which a connection is given up (default: 45)",
    )
    parser.add_argument(
        "--max-handshakes-per-second",
        metavar="N",
        help="how many connections are let in (default: 200)",
    )
    parser.add_argument(
        "--audit",
        action="store_const",
        const=True,
        help="keep an audit log in the state directory: nothing runs before its request is on the disk there",
    )
    parser.add_argument(
        "--audit-on-full",
        metavar="WHAT",
        help="while the audit log can't be written: refuse (default), or run unrecorded",
    )
    parser.add_argument(
        "--rate-limits",
        metavar="SCOPE=N[:BURST],...",
        help="commands and sessions that may be started per second, and at once, by each operator, by each "
        "tenant and on each daemon: operator=10:50,daemon=5 (default: as many as anybody likes)",
    )
    add_metrics_options(parser)
    add_common_options(parser, version)


def parse_controller_options(
    arguments: Sequence[str], environment: Mapping[str, str], *, prog: str, version: str
) -> ControllerOptions:
    """The options in force. ConfigurationError, in one line, for whatever can't be used."""
    return _build(gather(build_parser(prog, version), VARIABLES, arguments, environment))


def read_controller_config(path: Path) -> ControllerOptions:
    """The options that a file names, and nothing else does. ConfigurationError as above."""
    return _build(gather(build_parser("", ""), VARIABLES, [f"--config={path}"], {}))


def _build(given: dict[str, Any]) -> ControllerOptions:
    token_file, operator_token_file = (
        _path(given, "token_file"),
        _path(given, "operator_token_file"),
    )
    heartbeat = read_number("--heartbeat", given.get("heartbeat", 20.0), least=0.05, most=3600)
    dead_after = read_number("--dead-after", given.get("dead_after", 45.0), least=0.05, most=7200)
    if not heartbeat < dead_after:
        raise ConfigurationError(
            f"--heartbeat ({heartbeat:g}) must be below --dead-after ({dead_after:g})"
        )
    tls = _tls(given)
    names, asks = _names(given.get("tls_name")), _client_certificates(given)
    if names and tls != "auto":
        raise ConfigurationError(
            "--tls-name is for --tls auto: a certificate file has its own names"
        )
    if asks != "off" and tls is None:
        raise ConfigurationError("--client-certificates is for TLS: say --tls auto, or --tls-cert")
    print_join = read_boolean("--print-join", given.get("print_join", False))
    return ControllerOptions(
        tls=tls,
        tls_names=names,
        client_certificates=asks,
        host=str(given.get("host", DEFAULT_HOST)),
        port=_port(given.get("port", DEFAULT_PORT)),
        state_dir=_path(given, "state_dir"),
        token_file=token_file,
        token=None if token_file is None else read_secret(token_file),
        operator_token_file=operator_token_file,
        operator_token=None if operator_token_file is None else read_secret(operator_token_file),
        print_join=print_join,
        bootstrap=read_boolean("--bootstrap", given.get("bootstrap", print_join)),
        policy=_path(given, "policy"),
        insecure=read_boolean("--insecure", given.get("insecure", False)),
        heartbeat=heartbeat,
        dead_after=dead_after,
        max_handshakes_per_second=read_number(
            "--max-handshakes-per-second",
            given.get("max_handshakes_per_second", 200.0),
            least=0.1,
            most=100_000,
        ),
        audit=read_boolean("--audit", given.get("audit", False)),
        audit_on_full=_on_full(given.get("audit_on_full", "refuse")),
        rate_limits=_rate_limits(given.get("rate_limits", "")),
        metrics=read_metrics(given),
        log_level=read_log_level(given),
        log_format=read_log_format(given),
    )


def read_secret(path: Path) -> bytes:
    """The secret in a file, that others have to know. ConfigurationError as `read_token`, or for a token of ours."""
    secret = read_token(path)
    if is_token(secret):
        raise ConfigurationError(
            f"{path} holds a token that sandd has made, and a secret of your own choice belongs there: who is to "
            "come in by that token has it, and the controller knows it by its state directory"
        )
    return secret


def _tls(given: Mapping[str, Any]) -> Literal["auto"] | tuple[Path, Path] | None:
    how = str(given.get("tls", "off")).lower()
    certificate, key = _path(given, "tls_cert"), _path(given, "tls_key")
    if how not in ("auto", "off"):
        raise ConfigurationError(f"--tls {how!r} is neither auto nor off")
    if certificate is None and key is None:
        return "auto" if how == "auto" else None
    if how == "auto":
        raise ConfigurationError(
            "--tls auto makes a certificate; leave out --tls-cert and --tls-key"
        )
    if certificate is None or key is None:
        raise ConfigurationError("--tls-cert and --tls-key need each other")
    return certificate, key


def _names(given: object) -> tuple[str, ...]:
    if given is None:
        return ()
    entries = given if isinstance(given, list) else str(given).split(",")
    return tuple(name for entry in entries if (name := str(entry).strip()))


def _client_certificates(given: Mapping[str, Any]) -> ClientCertificates:
    match str(given.get("client_certificates", "off")).lower():
        case "off" | "optional" | "required" as how:
            return how
        case how:
            raise ConfigurationError(
                f"--client-certificates {how!r} is not one of off, optional, required"
            )


def _path(given: Mapping[str, Any], name: str) -> Path | None:
    value = given.get(name)
    return None if value is None else Path(str(value))


def _port(given: object) -> int:
    text = str(given)
    if not (text.isascii() and text.isdecimal() and len(text) <= 5 and int(text) <= 65535):
        raise ConfigurationError(f"--port {given!r} is no TCP port: 0 to 65535")
    return int(text)


def _on_full(given: object) -> Literal["refuse", "run"]:
    if given == "refuse" or given == "run":
        return given
    raise ConfigurationError(f"--audit-on-full {given!r} is neither refuse nor run")


def _rate_limits(given: object) -> RateLimits:
    """From a text as on the command line, or from a table of the file."""
    if isinstance(given, dict):
        pairs = [(str(scope), str(rate)) for scope, rate in given.items()]
    else:
        pairs = []
        for text in filter(None, str(given).split(",")):
            scope, equals, rate = text.partition("=")
            if not equals:
                raise ConfigurationError(f"--rate-limits {text!r} is not SCOPE=N[:BURST]")
            pairs.append((scope.strip(), rate.strip()))
    rates: dict[str, Rate] = {}
    for scope, rate in pairs:
        if scope not in SCOPES:
            raise ConfigurationError(
                f"--rate-limits {scope!r} is nobody's limit: a scope is one of {', '.join(SCOPES)}"
            )
        rates[scope] = _rate(f"--rate-limits {scope}", rate)
    return RateLimits(
        operator=rates.get("operator"), tenant=rates.get("tenant"), daemon=rates.get("daemon")
    )


def _rate(option: str, text: str) -> Rate:
    number, colon, burst = text.partition(":")
    per_second = read_number(option, number, least=LEAST_PER_SECOND, most=MOST_PER_SECOND)
    if not colon:
        return Rate(per_second)
    if not (burst.isascii() and burst.isdecimal() and 1 <= len(burst) <= 7):
        raise ConfigurationError(f"{option}: a burst of {burst!r} is not a whole number")
    try:
        return Rate(per_second, int(burst))
    except ConfigurationError as error:
        raise ConfigurationError(f"{option}: {error}") from error
