"""The controller that a command is about: where it is, what it has to be told, and the connection to it."""

from __future__ import annotations

import ipaddress
import os
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import trio

from sandd._core._errors import AuthenticationFailed, ControllerUnreachable, SanddError
from sandd._core.controller_state import TOKEN_FILE, default_state_dir
from sandd._core.interrupts import protected_context
from sandd.command_line.options import CONTROLLER_VARIABLE, DEFAULT_CONTROLLER, TOKEN_FILE_VARIABLE
from sandd.command_line.stopping import Failure
from sandd.controller import DEFAULT_PORT, connect_controller

if TYPE_CHECKING:
    import argparse
    from collections.abc import AsyncIterator
    from pathlib import Path

    from sandd.controller import Controller

CONNECT_SECONDS: Final = 5.0
"""For a controller that is being restarted, or is far away; a person waits as long where there is none."""
_WHERE: Final = f"; is it running, and is it where --controller or ${CONTROLLER_VARIABLE} says?"


@protected_context
async def open_connection(options: argparse.Namespace) -> AsyncIterator[Controller]:
    """The controller that the options mean, or the environment, for as long as the block lasts.

    Leaving the block ends what it has begun there, and harms nothing of others'.

    Raises:
        Failure: it can't be reached, or doesn't let us in; says why, and what to do.
    """
    url = options.controller or os.environ.get(CONTROLLER_VARIABLE) or DEFAULT_CONTROLLER
    token = await _token(options, url)
    async with AsyncExitStack() as stack:
        try:
            controller = await stack.enter_async_context(
                connect_controller(url, token=token, connect_timeout=CONNECT_SECONDS)
            )
        except AuthenticationFailed as error:
            raise Failure(f"the controller at {url} refused us: {error}{_advice(token)}") from error
        except ControllerUnreachable as error:
            raise Failure(f"{error}{_WHERE}") from error
        except SanddError as error:
            raise Failure(f"the controller at {url}: {error}") from error
        yield controller


def _advice(token: bytes | None) -> str:
    if token is not None:
        return ""
    return f"; the token is what --token-file or ${TOKEN_FILE_VARIABLE} names"


async def _token(options: argparse.Namespace, url: str) -> bytes | None:
    """The secret for operators; None where nobody has told us one."""
    given = options.token_file or os.environ.get(TOKEN_FILE_VARIABLE)
    if given:
        try:
            return await trio.Path(given).read_bytes()
        except OSError as error:
            source = "--token-file" if options.token_file else f"${TOKEN_FILE_VARIABLE}"
            raise Failure(f"{source} {given}: {error.strerror}") from error
    path = own_token_file(url)
    if path is None:
        return None
    try:
        return await trio.Path(path).read_bytes()
    except OSError:
        # Perhaps no controller of this user runs there, or it has its state elsewhere. Who is there tells.
        return None


def own_token_file(url: str) -> Path | None:
    """Where this user's own controller has put its secret, if the URL is one of this machine."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or DEFAULT_PORT
        path = default_state_dir(port) / TOKEN_FILE
    except (ValueError, OSError):
        return None  # no URL: who connects complains better; or no place for any state
    return path if is_loopback(host) else None


def is_loopback(host: str) -> bool:
    """A name or an address of this machine, which no other machine can have."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
