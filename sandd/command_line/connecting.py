"""The controller that a command is about: where it is, what it has to be told, and the connection to it."""

from __future__ import annotations

import os
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypedDict
from urllib.parse import urlsplit

import trio
from attrs import field, frozen

from sandd._core._errors import (
    AuthenticationFailed,
    ConfigurationError,
    ControllerUnreachable,
    SanddError,
)
from sandd._core.controller_state import TOKEN_FILE, default_state_dir
from sandd._core.interrupts import protected_context
from sandd._core.program_options import read_boolean, read_token
from sandd._core.tls.files import DIRECTORY, PUBLIC_FILE
from sandd._core.tls.plain import is_loopback
from sandd.command_line.options import (
    CA_FILE_VARIABLE,
    CA_PIN_VARIABLE,
    CLIENT_CERT_VARIABLE,
    CLIENT_KEY_VARIABLE,
    CONTROLLER_VARIABLE,
    DEFAULT_CONTROLLER,
    INSECURE_VARIABLE,
    TOKEN_FILE_VARIABLE,
)
from sandd.command_line.stopping import Failure, Misuse
from sandd.controller import DEFAULT_PORT, connect_controller

if TYPE_CHECKING:
    import argparse
    from collections.abc import AsyncIterator

    from sandd.controller import Controller

CONNECT_SECONDS: Final = 5.0
"""For a controller that is being restarted, or is far away; a person waits as long where there is none."""


@protected_context
async def open_connection(options: argparse.Namespace) -> AsyncIterator[Controller]:
    """The controller that the options mean, or the environment, for as long as the block lasts.

    Leaving the block ends what it has begun there, and harms nothing of others'.

    Raises:
        Failure: it can't be reached, or doesn't let us in; says why, and what to do.
    """
    url = options.controller or os.environ.get(CONTROLLER_VARIABLE) or default_controller()
    token = await _find_token(options, url)
    trust = _trust(options, url)
    async with AsyncExitStack() as stack:
        try:
            controller = await stack.enter_async_context(
                connect_controller(
                    url, token=token.secret, connect_timeout=CONNECT_SECONDS, **trust
                )
            )
        except AuthenticationFailed as error:
            raise Failure(f"the controller at {url} refused us: {error}; {token.origin}") from error
        except ControllerUnreachable as error:
            raise Failure(f"{error}; {_advice(options)}") from error
        except ConfigurationError as error:
            source = "--controller" if options.controller else f"${CONTROLLER_VARIABLE}"
            where = f"{source}: " if repr(url) in str(error) else ""
            raise Misuse(f"{where}{error}") from error
        except SanddError as error:
            raise Failure(f"the controller at {url}: {error}") from error
        yield controller


def _advice(options: argparse.Namespace) -> str:
    """What somebody can do who has no controller."""
    local = ", and --local needs none" if hasattr(options, "local") else ""
    return (
        f"'sandd controller' starts one on this machine, --controller or ${CONTROLLER_VARIABLE} says where "
        f"another one is{local}"
    )


@frozen
class _Token:
    """The secret for operators."""

    secret: bytes | None = field(repr=False)
    """None where nobody has told us one."""
    origin: str
    """Where it is from, or where it was looked for, for whoever is refused with it."""


async def _find_token(options: argparse.Namespace, url: str) -> _Token:
    sources = f"--token-file or ${TOKEN_FILE_VARIABLE}"
    given = options.token_file or os.environ.get(TOKEN_FILE_VARIABLE)
    if given:
        source = "--token-file" if options.token_file else f"${TOKEN_FILE_VARIABLE}"
        secret = await _read(Path(given), f"{source}: ")
        return _Token(secret, f"the token was that of {source} {given}")
    path = own_token_file(url)
    if path is None:
        return _Token(None, f"there was no token: {sources} names a file with it")
    try:
        if await trio.Path(path).exists():
            secret = await _read(path)
            return _Token(secret, f"the token was that in {path}; {sources} names another")
    except OSError:
        pass  # it is in a directory of somebody else's
    # Perhaps no controller of this user runs there, or it has its state elsewhere. Who is there tells.
    return _Token(
        None, f"there was no token: {sources} names a file with it, and there is no {path}"
    )


async def _read(path: Path, source: str = "") -> bytes:
    try:
        return await trio.to_thread.run_sync(read_token, path)
    except ConfigurationError as error:
        raise Failure(f"{source}{error}") from error


def default_controller() -> str:
    """This user's own controller on this machine, by TLS if that is what it speaks."""
    secure = DEFAULT_CONTROLLER.replace("ws://", "wss://")
    ca_file = own_ca_file(secure)
    return DEFAULT_CONTROLLER if ca_file is None or not ca_file.is_file() else secure


class TrustArguments(TypedDict, total=False):
    """Keyword arguments of `connect_controller`: by what the controller is known."""

    ca_pin: str | None
    ca_file: str | Path | None
    client_certificate: str | None
    client_key: str | None
    insecure: bool


def _trust(options: argparse.Namespace, url: str) -> TrustArguments:
    """What the options say of it, or the environment; of a controller of this user's on this machine, its own word."""
    pin = options.ca_pin or os.environ.get(CA_PIN_VARIABLE)
    file: str | Path | None = options.ca_file or os.environ.get(CA_FILE_VARIABLE)
    if options.ca_file and not options.ca_pin:
        pin = None  # what is said here wins over the environment
    if options.ca_pin and not options.ca_file:
        file = None
    if not url.startswith("wss:") and not (options.ca_pin or options.ca_file):
        pin = file = None  # the environment is for other controllers as well
    elif not (pin or file):
        own = own_ca_file(url)
        file = own if own is not None and own.is_file() else None
    certificate = options.client_cert or os.environ.get(CLIENT_CERT_VARIABLE)
    key = options.client_key or os.environ.get(CLIENT_KEY_VARIABLE)
    if not url.startswith("wss:") and not (options.client_cert or options.client_key):
        certificate = key = None
    return TrustArguments(
        ca_pin=pin or None,
        ca_file=file or None,
        client_certificate=certificate or None,
        client_key=key or None,
        insecure=options.insecure or _is_insecure(),
    )


def _is_insecure() -> bool:
    given = os.environ.get(INSECURE_VARIABLE)
    try:
        return bool(given) and read_boolean(f"${INSECURE_VARIABLE}", given)
    except ConfigurationError as error:
        raise Failure(str(error)) from error


def own_token_file(url: str) -> Path | None:
    """Where this user's own controller has put its secret, if the URL is one of this machine."""
    directory = _own_state_dir(url)
    return None if directory is None else directory / TOKEN_FILE


def own_ca_file(url: str) -> Path | None:
    """Where this user's own controller has put the CA that it serves by, if the URL is one of this machine."""
    directory = _own_state_dir(url)
    if directory is None or not url.startswith("wss:"):
        return None
    return directory / DIRECTORY / PUBLIC_FILE


def _own_state_dir(url: str) -> Path | None:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or DEFAULT_PORT
        path = default_state_dir(port)
    except (ValueError, OSError):
        return None  # no URL: who connects complains better; or no place for any state
    return path if is_loopback(host) else None
