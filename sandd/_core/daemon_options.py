"""The daemon's options: from the command line, the environment and a TOML file, in that order."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from attrs import Factory, define, field

from sandd._core._errors import ConfigurationError
from sandd._core.identity.proofs import read_credential
from sandd._core.identity.tokens import TokenKind
from sandd._core.isolation import options as isolation_options
from sandd._core.isolation.options import IsolationOptions
from sandd._core.limits import NO_LIMITS, Limits, limits_from, read_limits
from sandd._core.link import check_daemon_id, check_labels
from sandd._core.program_options import (
    Parser,
    add_common_options,
    add_metrics_options,
    add_trust_options,
    gather,
    read_boolean,
    read_log_format,
    read_log_level,
    read_metrics,
    read_number,
    read_token,
    read_trust,
)
from sandd._core.tls.plain import leaves_in_the_clear
from sandd._core.tls.trust_options import TrustOptions
from sandd.wire import MIB, IsolationLevel

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence

    from sandd._core.identity.proofs import Credential
    from sandd._core.metrics.http_answers import MetricsAddress
    from sandd._core.program_options import LogFormat

GIB: Final = 1024 * MIB
MAX_SIZE: Final = 2**60
"""Bytes; far beyond any disk, and exact in every arithmetic."""
_SIZE: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(?:([kmgt])(i?b)?|b)?")


@define
class DaemonOptions:
    """Everything a daemon can be told."""

    server_url: str
    """ws:// or wss:// URL of the controller."""
    daemon_id: str | None = None
    """None: made from the host's name, and kept in the state directory."""
    labels: Mapping[str, str] = field(default=Factory(dict))
    credential: Credential | None = None
    """A join token, or the secret that it shares with others; None: neither."""
    state_dir: Path | None = None
    log_level: str = "info"
    log_format: LogFormat = "text"
    reconnect_max: float = 30.0
    """Seconds between dials at most."""
    max_running: int | None = None
    """Jobs that may run at once; None: min(256, open files / 8)."""
    spool_quota: int = 8 * GIB
    """Bytes of output on disk, of all jobs that nobody is attached to; 0: output stays in memory."""
    job_spool_quota: int = 1 * GIB
    """Bytes of output on disk, of one job."""
    root: Path | None = None
    """The directory that a client's paths are confined to; None: whatever the daemon's user may reach."""
    policy: Path | None = None
    """A file with what may be asked for; None: anything."""
    trust: TrustOptions = Factory(TrustOptions)
    """By what the controller is known, and what is presented to it, where the URL is wss://."""
    limits: Limits = NO_LIMITS
    """What each job may use."""
    limit_total: Limits = NO_LIMITS
    """What all jobs together may use."""
    require_limits: bool = False
    """Nothing is started, this daemon included, that can't be held to its limits."""
    isolation: IsolationOptions = Factory(IsolationOptions)
    """How jobs are kept apart."""
    metrics: MetricsAddress | None = None
    """Where its figures are to be had; None: nowhere."""
    insecure: bool = False
    """A ws:// URL of another machine is dialled all the same."""


TOKEN_VARIABLE: Final = "SANDD_TOKEN"  # noqa: S105 - the name of a variable, and no secret
"""The token itself, instead of a file with it; taken out of the environment as soon as it was read."""

# option -> environment variables; the first that is set counts
_VARIABLES: Final = {
    "server_url": ("SANDD_SERVER_URL", "SERVER_URL"),
    "daemon_id": ("SANDD_DAEMON_ID", "DAEMON_ID"),
    "labels": ("SANDD_LABELS",),
    "token_file": ("SANDD_TOKEN_FILE",),
    "ca_pin": ("SANDD_CA_PIN",),
    "ca_file": ("SANDD_CA_FILE",),
    "client_cert": ("SANDD_CLIENT_CERT",),
    "client_key": ("SANDD_CLIENT_KEY",),
    "insecure": ("SANDD_INSECURE",),
    "state_dir": ("SANDD_STATE_DIR",),
    "root": ("SANDD_ROOT",),
    "policy": ("SANDD_POLICY",),
    "limit": ("SANDD_LIMIT",),
    "limit_total": ("SANDD_LIMIT_TOTAL",),
    "require_limits": ("SANDD_REQUIRE_LIMITS",),
    "metrics_address": ("SANDD_METRICS_ADDRESS",),
    "metrics_token_file": ("SANDD_METRICS_TOKEN_FILE",),
    "log_level": ("SANDD_LOG_LEVEL",),
    "log_format": ("SANDD_LOG_FORMAT",),
    "reconnect_max": ("SANDD_RECONNECT_MAX",),
    "max_running": ("SANDD_MAX_RUNNING",),
    "spool_quota": ("SANDD_SPOOL_QUOTA",),
    "job_spool_quota": ("SANDD_JOB_SPOOL_QUOTA",),
    **{name: (f"SANDD_{name.upper()}",) for name in isolation_options.OPTIONS},
    "config": ("SANDD_CONFIG",),
}


def build_parser(prog: str, version: str) -> argparse.ArgumentParser:
    """The command line's grammar."""
    parser = Parser(
        prog=prog,
        description="Run commands for a controller: dial out to it, and keep at it.",
        epilog="Each option is also read from the environment (SANDD_SERVER_URL, ...) and from the TOML file "
        "given by --config; the command line wins, then the environment.",
        argument_default=None,
        allow_abbrev=False,
    )
    add_daemon_options(parser, version)
    return parser


def add_daemon_options(parser: argparse.ArgumentParser, version: str) -> None:
    """All that it can be told."""
    parser.add_argument(
        "-s", "--server-url", metavar="URL", help="controller to dial, e.g. ws://host:8765/ws"
    )
    parser.add_argument(
        "-d",
        "--daemon-id",
        metavar="ID",
        help="name of this daemon (default: host name and a suffix)",
    )
    parser.add_argument(
        "-l",
        "--label",
        action="append",
        dest="labels",
        metavar="KEY=VALUE",
        help="label, may be given often",
    )
    parser.add_argument(
        "--token-file",
        metavar="FILE",
        help="file that holds the token: one to join by, or a secret that daemons share",
    )
    add_trust_options(parser)
    parser.add_argument(
        "--insecure",
        action="store_const",
        const=True,
        help="dial a ws:// URL of another machine, without TLS: whoever is on the way can read all, and command "
        "this daemon",
    )
    parser.add_argument("--state-dir", metavar="DIR", help="directory of this daemon's own")
    parser.add_argument(
        "--root",
        metavar="DIR",
        help="reach files beneath this directory only (commands are not confined by this)",
    )
    parser.add_argument(
        "--policy",
        metavar="FILE",
        help="do only what this file allows (see 'sandd policy check'); it must be root's or ours, and nobody "
        "else may write it",
    )
    isolation_options.add_isolation_options(parser)
    parser.add_argument(
        "--limit",
        action="append",
        metavar="KEY=VALUE",
        help="what each job may use at most, as in memory=1G, processes=200 or wall=3600; may be given often",
    )
    parser.add_argument(
        "--limit-total",
        action="append",
        metavar="KEY=VALUE",
        help="what all jobs together may use: memory, processes or cpus",
    )
    parser.add_argument(
        "--require-limits",
        action="store_const",
        const=True,
        help="start nothing that can't be held to its limits on this machine",
    )
    parser.add_argument(
        "--reconnect-max", metavar="SECONDS", help="longest wait between dials (default: 30)"
    )
    parser.add_argument(
        "--max-running", metavar="N", help="jobs at once (default: min(256, open files / 8))"
    )
    parser.add_argument(
        "--spool-quota",
        metavar="SIZE",
        help="output on disk while nobody is attached, all jobs together (default: 8GiB; 0: none)",
    )
    parser.add_argument(
        "--job-spool-quota", metavar="SIZE", help="the same for one job (default: 1GiB)"
    )
    add_metrics_options(parser)
    add_common_options(parser, version)


def parse_daemon_options(
    arguments: Sequence[str], environment: Mapping[str, str], *, prog: str, version: str
) -> DaemonOptions:
    """The options in force. ConfigurationError, in one line, for whatever can't be used."""
    given = gather(build_parser(prog, version), _VARIABLES, arguments, environment)
    return _build(given, environment.get(TOKEN_VARIABLE))


def _build(given: dict[str, Any], token: str | None) -> DaemonOptions:
    url = str(given.get("server_url") or "")
    if not url:
        raise ConfigurationError(
            "no controller to dial: give --server-url ws://HOST:PORT/ws, or set SANDD_SERVER_URL"
        )
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("ws", "wss") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise ConfigurationError(
            f"--server-url {url!r} is not usable: it must look like ws://HOST:PORT/ws or wss://..."
        )
    trust = read_trust(given)
    if parts.scheme == "ws" and not trust.is_empty:
        raise ConfigurationError(
            f"--ca-pin, --ca-file and --client-cert are for TLS, and --server-url {url!r} is not: use wss://"
        )
    insecure = read_boolean("--insecure", given.get("insecure", False))
    if leaves_in_the_clear(url) and not insecure:
        raise ConfigurationError(
            f"--server-url {url!r} would be dialled without TLS, and whoever is on the way could command this "
            "daemon: use wss:// (with --ca-pin, for a controller with --tls auto), or say --insecure"
        )
    if parts.path in ("", "/"):
        url = parts._replace(path="/ws").geturl()
    daemon_id = given.get("daemon_id")
    labels = _labels(given.get("labels"))
    problem = (check_daemon_id(str(daemon_id)) if daemon_id is not None else None) or check_labels(
        labels
    )
    if problem:
        raise ConfigurationError(problem)
    isolation = isolation_options.read_isolation(given)
    if given.get("root") is not None and isolation.level is not IsolationLevel.NONE:
        raise ConfigurationError(
            "--root and --isolation: with isolation each tenant's files are those of its workspace"
        )
    state_dir = given.get("state_dir")
    policy = given.get("policy")
    max_running = given.get("max_running")
    return DaemonOptions(
        server_url=url,
        daemon_id=None if daemon_id is None else str(daemon_id),
        labels=labels,
        credential=_credential(given.get("token_file"), token),
        trust=trust,
        insecure=insecure,
        isolation=isolation,
        state_dir=None if state_dir is None else Path(str(state_dir)),
        root=_root(given.get("root")),
        policy=None if policy is None else Path(str(policy)),
        limits=_limits("--limit", given.get("limit")),
        limit_total=_total("--limit-total", given.get("limit_total")),
        require_limits=read_boolean("--require-limits", given.get("require_limits", False)),
        metrics=read_metrics(given),
        log_level=read_log_level(given),
        log_format=read_log_format(given),
        reconnect_max=read_number("--reconnect-max", given.get("reconnect_max", 30.0), least=0.05),
        max_running=None
        if max_running is None
        else int(read_number("--max-running", max_running, least=1)),
        spool_quota=_size("--spool-quota", given.get("spool_quota", 8 * GIB)),
        job_spool_quota=_size("--job-spool-quota", given.get("job_spool_quota", 1 * GIB)),
    )


def _credential(token_file: object, token: str | None) -> Credential | None:
    if token_file is not None:
        path = Path(str(token_file))
        try:
            source, text = f"the token file {path}", read_token(path)
        except ConfigurationError as error:
            if path.exists():
                raise
            raise ConfigurationError(
                f"{error} (a daemon that has joined by it needs none any more: leave the option out)"
            ) from error
    elif token is not None:
        source, text = f"${TOKEN_VARIABLE}", os.fsencode(token).strip()
        if not text:
            raise ConfigurationError(f"{source} is empty")
    else:
        return None
    try:
        return read_credential(text, TokenKind.JOIN)
    except ConfigurationError as error:
        raise ConfigurationError(f"{source}: {error}") from error


def _root(given: object) -> Path | None:
    if given is None:
        return None
    path = Path(str(given))
    if not path.is_dir():
        raise ConfigurationError(f"--root {str(path)!r} is not a directory")
    return path.absolute()


def _labels(given: object) -> dict[str, str]:
    if given is None:
        return {}
    if isinstance(given, dict):
        return {str(key): str(value) for key, value in given.items()}
    entries = given.split(",") if isinstance(given, str) else given
    labels = {}
    for entry in entries if isinstance(entries, list) else [str(entries)]:
        key, equals, value = str(entry).partition("=")
        if not equals or not key.strip():
            raise ConfigurationError(f"label {entry!r} is not of the form KEY=VALUE")
        labels[key.strip()] = value.strip()
    return labels


def _limits(option: str, given: object) -> Limits:
    """From several options, from one text with commas, or from a table of the file."""
    try:
        if isinstance(given, dict):
            return limits_from(given, place=option)
        entries = given.split(",") if isinstance(given, str) else given or []
        if not isinstance(entries, list):
            raise ValueError(f"{option} is {given!r:.60}; it must be a table of limits")
        return read_limits([str(each) for each in entries], option=option)
    except ValueError as error:
        raise ConfigurationError(str(error)) from error


def _total(option: str, given: object) -> Limits:
    limits = _limits(option, given)
    for name in limits.given:
        if name not in ("memory_bytes", "processes", "cpus"):
            raise ConfigurationError(
                f"{option}: {name} is no limit of all jobs together; memory_bytes, processes and cpus are"
            )
    return limits


def _size(option: str, value: object) -> int:
    match = _SIZE.fullmatch(str(value).strip().lower())
    if match is not None:
        base = 1000 if match[3] == "b" else 1024  # GB is decimal; GiB and G are binary
        size = float(match[1]) * base ** "bkmgt".index(match[2] or "b")
        if size <= MAX_SIZE:
            return int(size)
    raise ConfigurationError(
        f"{option} {value!r} is not a size: give bytes, or a number with KiB, MiB, GiB or TiB"
    )


def default_max_running(open_files: int) -> int:
    """Jobs at once that `open_files` descriptors allow: each takes up to eight while it starts."""
    return max(1, min(256, open_files // 8))
