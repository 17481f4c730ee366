"""What a program of ours is told: on its command line, in its environment and in a TOML file, in that order.

The daemon and the stand-alone controller each have a list of options and what they mean; how they are
found, and how what can't be used is told, is here.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn

from sandd._core import parsing
from sandd._core._errors import ConfigurationError
from sandd._core.tls.pins import read_pins
from sandd._core.tls.trust_options import TrustOptions

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence

    from sandd._core.metrics.http_answers import MetricsAddress

    LogFormat = Literal["text", "json"]

LOG_LEVELS: Final = ("debug", "info", "warning", "error")
MAX_TOKEN_BYTES: Final = 4096


class Parser(parsing.Parser):
    """One whose caller tells what is wrong."""

    def error(self, message: str) -> NoReturn:
        """Raise it as ConfigurationError."""
        raise ConfigurationError(message)


def add_common_options(parser: argparse.ArgumentParser, version: str) -> None:
    """The options that both programs have."""
    parser.add_argument("--config", metavar="FILE", help="TOML file with any of these options")
    parser.add_argument(
        "--log-level", metavar="LEVEL", help=f"{', '.join(LOG_LEVELS)} (default: info)"
    )
    parser.add_argument("--log-format", metavar="FORMAT", help="text or json (default: text)")
    parser.add_argument("--version", action="version", version=f"sandd {version}")


def add_metrics_options(parser: argparse._ActionsContainer) -> None:
    """Where a program's figures are to be had."""
    parser.add_argument(
        "--metrics-address",
        metavar="HOST:PORT",
        help="answer /metrics (for Prometheus), /healthz and /readyz there, e.g. 127.0.0.1:9464 (default: nowhere)",
    )
    parser.add_argument(
        "--metrics-token-file",
        metavar="FILE",
        help="file with the secret that who asks for metrics has to know; needed for an address off loopback",
    )


def read_metrics(given: Mapping[str, Any]) -> MetricsAddress | None:
    """What was said by these options. ConfigurationError if they can't be, or not together."""
    address, token_file = given.get("metrics_address"), given.get("metrics_token_file")
    if address is None:
        if token_file is not None:
            raise ConfigurationError("--metrics-token-file is for --metrics-address")
        return None
    # Not before: most have no such address, and start sooner without.
    from sandd._core.metrics.http_answers import read_metrics_address

    token = None if token_file is None else read_token(Path(str(token_file)))
    return read_metrics_address(str(address), token, option="--metrics-address")


def add_trust_options(parser: argparse._ActionsContainer) -> None:
    """By what a controller is known, for whoever dials it."""
    parser.add_argument(
        "--ca-pin",
        metavar="PIN",
        help="sha256:HEX of the controller's CA certificate, as the controller prints it (several: with commas)",
    )
    parser.add_argument(
        "--ca-file",
        metavar="FILE",
        help="CA certificates to trust, in PEM (default without a pin: those of this system)",
    )
    parser.add_argument(
        "--client-cert",
        metavar="FILE",
        help="certificate to show to a controller that asks for one (sandd ca issue)",
    )
    parser.add_argument("--client-key", metavar="FILE", help="its key (default: in the same file)")


def read_trust(given: Mapping[str, Any]) -> TrustOptions:
    """What was said by these options. ConfigurationError if they can't be, or not together."""

    def path(name: str) -> Path | None:
        return None if given.get(name) is None else Path(str(given[name]))

    pins = given.get("ca_pin")
    return TrustOptions(
        pins=() if pins is None else read_pins(str(pins)),
        ca_file=path("ca_file"),
        client_certificate=path("client_cert"),
        client_key=path("client_key"),
    )


def gather(
    parser: argparse.ArgumentParser,
    variables: Mapping[str, Sequence[str]],
    arguments: Sequence[str],
    environment: Mapping[str, str],
) -> dict[str, Any]:
    """What is said of each option, by whoever comes first: the command line, a variable, the file.

    Args:
        parser: its options' default is None, each.
        variables: option to environment variables; the first that is set, and not empty, counts. The
            file may have any of these options but "config".

    Raises:
        ConfigurationError: the command line or the file can't be read, or names an option there is not.
    """
    given = {
        name: value
        for name, value in vars(parser.parse_args(list(arguments))).items()
        if value is not None
    }
    for name, its_variables in variables.items():
        for variable in its_variables:
            if name not in given and environment.get(variable):
                given[name] = environment[variable]
    if "config" in given:
        given = _read_config(Path(given.pop("config")), set(variables) - {"config"}) | given
    return given


def _read_config(path: Path, known: set[str]) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            values = tomllib.load(file)
    except (OSError, ValueError) as error:  # TOML that is none, or not even UTF-8
        raise ConfigurationError(f"can't read the config file {path}: {error}") from error
    unknown = sorted(set(values) - known)
    if unknown:
        raise ConfigurationError(
            f"{path}: unknown option {unknown[0]!r}; known are {', '.join(sorted(known))}"
        )
    return values


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


_BOOLEANS: Final = {
    **dict.fromkeys(("1", "true", "yes", "on"), True),
    **dict.fromkeys(("0", "false", "no", "off"), False),
}


def read_boolean(option: str, given: object) -> bool:
    """Yes or no, in any of the usual words."""
    value = _BOOLEANS.get(str(given).lower())
    if value is None:
        raise ConfigurationError(f"{option} {given!r} is neither true nor false")
    return value


def read_log_level(given: Mapping[str, Any]) -> str:
    """``--log-level``, in lower case."""
    return _one_of("--log-level", given.get("log_level", "info"), LOG_LEVELS)


def read_log_format(given: Mapping[str, Any]) -> LogFormat:
    """``--log-format``, in lower case."""
    chosen = _one_of("--log-format", given.get("log_format", "text"), ("text", "json"))
    return "json" if chosen == "json" else "text"


def _one_of(option: str, given: object, choices: Sequence[str]) -> str:
    value = str(given).lower()
    if value not in choices:
        raise ConfigurationError(f"{option} {value!r} is not one of {', '.join(choices)}")
    return value


def read_number(option: str, value: object, *, least: float, most: float = 1e9) -> float:
    """A finite number within bounds."""
    try:
        number = float(str(value))
    except ValueError:
        number = float("nan")
    if not least <= number <= most:
        upper = f" and at most {most:g}" if most < 1e9 else ""
        raise ConfigurationError(f"{option} {value!r} is not a number of at least {least:g}{upper}")
    return number
