"""The daemon's options: from the command line, the environment and a TOML file, in that order."""

from __future__ import annotations

import argparse
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn
from urllib.parse import urlsplit

from attrs import Factory, define, field

from sandd._core._errors import ConfigurationError
from sandd._core.link import check_daemon_id, check_labels
from sandd.wire import MIB

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

GIB: Final = 1024 * MIB
LOG_LEVELS: Final = ("debug", "info", "warning", "error")
MAX_TOKEN_BYTES: Final = 4096
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
    token: bytes | None = field(default=None, repr=False)
    state_dir: Path | None = None
    log_level: str = "info"
    log_format: Literal["text", "json"] = "text"
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


# option -> environment variables; the first that is set counts
_VARIABLES: Final = {
    "server_url": ("SANDD_SERVER_URL", "SERVER_URL"),
    "daemon_id": ("SANDD_DAEMON_ID", "DAEMON_ID"),
    "labels": ("SANDD_LABELS",),
    "token_file": ("SANDD_TOKEN_FILE",),
    "state_dir": ("SANDD_STATE_DIR",),
    "root": ("SANDD_ROOT",),
    "log_level": ("SANDD_LOG_LEVEL",),
    "log_format": ("SANDD_LOG_FORMAT",),
    "reconnect_max": ("SANDD_RECONNECT_MAX",),
    "max_running": ("SANDD_MAX_RUNNING",),
    "spool_quota": ("SANDD_SPOOL_QUOTA",),
    "job_spool_quota": ("SANDD_JOB_SPOOL_QUOTA",),
    "config": ("SANDD_CONFIG",),
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigurationError(message)


def build_parser(prog: str, version: str) -> argparse.ArgumentParser:
    """The command line's grammar."""
    parser = _Parser(
        prog=prog,
        description="Run commands for a controller: dial out to it, and keep at it.",
        epilog="Each option is also read from the environment (SANDD_SERVER_URL, ...) and from the TOML file "
        "given by --config; the command line wins, then the environment.",
        argument_default=None,
        allow_abbrev=False,
    )
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
        "--token-file", metavar="FILE", help="file that holds the token the controller asks for"
    )
    parser.add_argument("--state-dir", metavar="DIR", help="directory of this daemon's own")
    parser.add_argument(
        "--root",
        metavar="DIR",
        help="reach files beneath this directory only (commands are not confined by this)",
    )
    parser.add_argument("--config", metavar="FILE", help="TOML file with any of these options")
    parser.add_argument(
        "--log-level", metavar="LEVEL", help=f"{', '.join(LOG_LEVELS)} (default: info)"
    )
    parser.add_argument("--log-format", metavar="FORMAT", help="text or json (default: text)")
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
    parser.add_argument("--version", action="version", version=f"sandd {version}")
    return parser


def parse_daemon_options(
    arguments: Sequence[str], environment: Mapping[str, str], *, prog: str, version: str
) -> DaemonOptions:
    """The options in force. ConfigurationError, in one line, for whatever can't be used."""
    given = {
        k: v
        for k, v in vars(build_parser(prog, version).parse_args(list(arguments))).items()
        if v is not None
    }
    for name, variables in _VARIABLES.items():
        for variable in variables:
            if name not in given and environment.get(variable):
                given[name] = environment[variable]
    if "config" in given:
        given = _read_config(Path(given.pop("config"))) | given
    return _build(given)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            values = tomllib.load(file)
    except (OSError, ValueError) as error:  # TOML that is none, or not even UTF-8
        raise ConfigurationError(f"can't read the config file {path}: {error}") from error
    unknown = sorted(set(values) - (set(_VARIABLES) - {"config"}))
    if unknown:
        known = ", ".join(sorted(set(_VARIABLES) - {"config"}))
        raise ConfigurationError(f"{path}: unknown option {unknown[0]!r}; known are {known}")
    return values


def _build(given: dict[str, Any]) -> DaemonOptions:
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
    if parts.path in ("", "/"):
        url = parts._replace(path="/ws").geturl()
    daemon_id = given.get("daemon_id")
    labels = _labels(given.get("labels"))
    problem = (check_daemon_id(str(daemon_id)) if daemon_id is not None else None) or check_labels(
        labels
    )
    if problem:
        raise ConfigurationError(problem)
    token_file = given.get("token_file")
    state_dir = given.get("state_dir")
    max_running = given.get("max_running")
    log_format = _one_of(
        "--log-format", str(given.get("log_format", "text")).lower(), ("text", "json")
    )
    return DaemonOptions(
        server_url=url,
        daemon_id=None if daemon_id is None else str(daemon_id),
        labels=labels,
        token=None if token_file is None else read_token(Path(str(token_file))),
        state_dir=None if state_dir is None else Path(str(state_dir)),
        root=_root(given.get("root")),
        log_level=_one_of("--log-level", str(given.get("log_level", "info")).lower(), LOG_LEVELS),
        log_format="json" if log_format == "json" else "text",
        reconnect_max=_number("--reconnect-max", given.get("reconnect_max", 30.0), least=0.05),
        max_running=None
        if max_running is None
        else int(_number("--max-running", max_running, least=1)),
        spool_quota=_size("--spool-quota", given.get("spool_quota", 8 * GIB)),
        job_spool_quota=_size("--job-spool-quota", given.get("job_spool_quota", 1 * GIB)),
    )


def read_token(path: Path) -> bytes:
    """The token in a file, without the white space around it; an empty one is an error, never "open"."""
    try:
        token = path.read_bytes().strip()
    except OSError as error:
        raise ConfigurationError(f"can't read the token file {path}: {error.strerror}") from error
    if not token or len(token) > MAX_TOKEN_BYTES:
        raise ConfigurationError(
            f"the token file {path} is empty, or larger than {MAX_TOKEN_BYTES} bytes"
        )
    return token


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


def _one_of(option: str, value: str, choices: Sequence[str]) -> str:
    if value not in choices:
        raise ConfigurationError(f"{option} {value!r} is not one of {', '.join(choices)}")
    return value


def _number(option: str, value: object, *, least: float) -> float:
    try:
        number = float(str(value))
    except ValueError:
        number = float("nan")
    if not least <= number <= 1e9:
        raise ConfigurationError(f"{option} {value!r} is not a number of at least {least:g}")
    return number


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
