"""``sandd controller``, assembled: a controller, what it says, signals, and an orderly end."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio
from attrs import define, field

from sandd._core import logs
from sandd._core._errors import ConfigurationError
from sandd._core.controller_options import read_secret
from sandd._core.controller_state import TOKEN_FILE, DirectoryTaken, default_state_dir
from sandd._core.early_stop import reload_signals
from sandd._core.nurseries import open_unwrapping_nursery
from sandd._core.own_output import CantWrite
from sandd._core.service_manager import NOBODY
from sandd._core.state_directory import replace_file
from sandd.command_line.stopping import Failure
from sandd.command_line.telling import put_out, say
from sandd.controller import open_controller
from sandd.standalone.announcing import Announcement

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from sandd._core.controller_options import ControllerOptions
    from sandd._core.service_manager import ServiceManager
    from sandd.controller import Controller

log = logs.get_logger("controller")

JOIN_TOKEN_FILE: Final = "join.token"  # noqa: S105 - its name
"""In the state directory, with ``--print-join``."""
STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


async def run_controller(
    options: ControllerOptions,
    *,
    read_again: Callable[[], ControllerOptions],
    stop_requested: Callable[[], bool],
    reload_requested: Callable[[], bool],
    manager: ServiceManager = NOBODY,
) -> None:
    """Be a controller until SIGTERM or SIGINT.

    Args:
        options: what it is told at first.
        read_again: what it is told now; ConfigurationError if that can't be used.
        stop_requested: whether a signal came before this could catch it.
        reload_requested: the same of SIGHUP.
        manager: who hears how it stands.

    Raises:
        ConfigurationError: the state directory can't be used, or is another controller's.
        Failure: the address can't be listened on.
    """
    program = Program(options, read_again, manager)
    with trio.open_signal_receiver(*STOP_SIGNALS, *reload_signals()) as signals:
        if stop_requested():
            return
        program.reload_is_due = reload_requested()
        async with open_unwrapping_nursery() as nursery:
            nursery.start_soon(program.heed, signals)
            nursery.start_soon(manager.attend, program.status)
            with program.scope:
                await program.serve()
            nursery.cancel_scope.cancel()
    log.info("stopped")


@define(eq=False)
class Program:
    """One run of it."""

    options: ControllerOptions
    _read_again: Callable[[], ControllerOptions]
    _manager: ServiceManager = NOBODY
    scope: trio.CancelScope = field(factory=trio.CancelScope)
    """Around all that a stop ends; closing a controller is shielded from it, and bounded."""
    reload_is_due: bool = False
    """SIGHUP came before there was anything to reload."""
    _controller: Controller | None = None
    _token_file: Path | None = None
    """Where the operators' token is."""
    _state_dir: Path | None = None

    async def serve(self) -> None:
        """Be a controller, for ever."""
        options = self.options
        with _state_directory(options) as state_dir:
            arguments = options.as_arguments() | {"state_dir": state_dir}
            opening = open_controller(**arguments)
            self._state_dir = state_dir
            self._token_file = options.operator_token_file or state_dir / TOKEN_FILE
            async with contextlib.AsyncExitStack() as stack:
                try:
                    self._controller = await stack.enter_async_context(opening)
                except OSError as error:
                    raise Failure(_cant_listen(options, error)) from error
                except DirectoryTaken as error:
                    if options.state_dir is not None:
                        raise
                    raise Failure(_runs_already(options)) from error
                await self._announce(self._controller)
                if self.reload_is_due:
                    await self._reload()
                self._manager.ready()
                await trio.sleep_forever()

    async def heed(self, signals: AsyncIterator[int]) -> None:
        """Do what signals say, for ever."""
        async for number in signals:
            if number in STOP_SIGNALS:
                log.info("stopping", signal=signal.Signals(number).name)
                self._manager.stopping()
                self.scope.cancel()
            elif self._controller is None:
                self.reload_is_due = True
            else:
                await self._reload()

    def status(self) -> str:
        """How it stands, for a person."""
        if self._controller is None:
            return "starting"
        now = self._controller.statistics()
        daemons = f"{now.daemons_online} daemons online, {now.daemons_away} away"
        return f"serving at {self._controller.url}: {daemons}"

    async def _announce(self, controller: Controller) -> None:
        assert self._token_file is not None
        join_file = await self._make_join_token(controller) if self.options.print_join else None
        port = int(controller.address.rpartition(":")[2])
        is_found = self._token_file == default_state_dir(port) / TOKEN_FILE
        said = Announcement.of(
            controller.url,
            self.options,
            None if is_found else self._token_file,
            join_token_file=join_file,
            ca_pin=controller.ca_pin,
            bootstrap_command=controller.bootstrap_command,
        )
        log.info(
            "ready",
            url=said.url,
            daemon_command=said.daemon_command,
            operator_command=said.operator_command,
            **({"bootstrap_line": said.bootstrap_line} if said.bootstrap_line else {}),
        )
        # Nobody has to read them, and the controller serves whether somebody does or not.
        if self.options.log_format == "text":
            await say(str(said))
        with contextlib.suppress(CantWrite):
            await put_out(f"ready {said.url}")

    async def _make_join_token(self, controller: Controller) -> Path:
        """A token for one daemon, in a file that nobody else can read; who brings it elsewhere takes the file."""
        assert self._state_dir is not None
        made = await controller.tokens.create_join(name="--print-join")
        path = self._state_dir / JOIN_TOKEN_FILE
        content = f"{made.text}\n".encode()
        try:
            await trio.to_thread.run_sync(partial(replace_file, path, content, mode=0o600))
        except OSError as error:
            raise Failure(f"can't write {path}: {error.strerror}") from error
        return path

    async def _reload(self) -> None:
        """Take over what has changed, or nothing if any of it can't be used."""
        assert self._controller is not None
        self._manager.reloading()
        try:
            await self._take_over(self._controller)
        finally:
            self._manager.ready()

    async def _take_over(self, controller: Controller) -> None:
        try:
            options, operator_token = await trio.to_thread.run_sync(self._read_all_again)
            # First, as certificates that have changed are taken by themselves anyway.
            if not await controller.reload_tls():
                raise ConfigurationError("the certificate can't be used; see the line before")
            await controller.reload_policy()
        except ConfigurationError as error:
            log.error("reload_failed", error=str(error))
            return
        controller.set_tokens(token=options.token, operator_token=operator_token)
        logs.configure(options.log_level, options.log_format)
        for name in self.options.differing_for_good(options):
            log.warning("option_needs_restart", option=name)
        log.info("reloaded")

    def _read_all_again(self) -> tuple[ControllerOptions, bytes]:
        options = self._read_again()
        if options.operator_token is not None:
            return options, options.operator_token
        assert self._token_file is not None
        return options, read_secret(self._token_file)


def _runs_already(options: ControllerOptions) -> str:
    """Nobody has named the directory: it is that of the port."""
    return (
        f"a controller of yours runs on port {options.port} already ('sandd ps' shows its daemons); "
        "another one needs another --port"
    )


def _cant_listen(options: ControllerOptions, error: OSError) -> str:
    number = error.errno or 0
    # Its own text has the address in it already; one of a name that can't be found has no number.
    why = os.strerror(number) if number > 0 else error.strerror or error
    taken = "; is there a controller already?" if number == errno.EADDRINUSE else ""
    return f"can't listen on {options.host}:{options.port}: {why}{taken}"


@contextlib.contextmanager
def _state_directory(options: ControllerOptions) -> Iterator[Path]:
    """The chosen one; else the user's for that port; for a port that is nobody's yet, one for this run."""
    if options.state_dir is not None:
        yield options.state_dir
    elif options.port:
        yield default_state_dir(options.port)
    else:
        with tempfile.TemporaryDirectory(
            prefix="sandd-controller-", ignore_cleanup_errors=True
        ) as path:
            yield Path(path)
