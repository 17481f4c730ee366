"""A daemon on this machine, as a child of this program and for as long as it wants one."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import trio
from attrs import define

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from pathlib import Path

    from sandd.controller import Controller, Daemon

STOP_SECONDS: Final = 12.0
"""For the daemon to end when it is asked to; it gives itself eight."""


class DaemonDidNotCome(Exception):
    """The daemon ended before it had dialled in, or took too long; says its last words."""


@define(eq=False)
class LocalDaemon:
    """A daemon that is a child process of ours."""

    id: str
    process: trio.Process
    _log: Path

    def last_words(self) -> str:
        """The last lines of its log."""
        return "\n".join(self._log.read_text("utf-8", "replace").splitlines()[-5:])

    async def dialled_in(self, controller: Controller, seconds: float) -> Daemon:
        """The daemon, once it has dialled in to this controller.

        Raises:
            DaemonDidNotCome: it ended instead, or that took longer than so many seconds.
        """
        with trio.move_on_after(seconds):
            async with trio.open_nursery() as nursery:

                async def watch() -> None:
                    await self.process.wait()
                    nursery.cancel_scope.cancel()

                nursery.start_soon(watch)
                worker = await controller.wait_for_daemon(self.id)
                nursery.cancel_scope.cancel()
                return worker
        raise DaemonDidNotCome(f"the daemon did not dial in. Its last words:\n{self.last_words()}")


@asynccontextmanager
async def open_local_daemon(
    url: str,
    daemon_id: str,
    directory: Path,
    *,
    options: Sequence[str] = (),
    on_start: Callable[[trio.Process], None] = lambda _: None,
) -> AsyncIterator[LocalDaemon]:
    """A daemon that keeps all its files in `directory`; it is gone when the block is left.

    Args:
        url: of its controller.
        daemon_id: its id.
        directory: of its own.
        options: more of its command line.
        on_start: called with its process: who cleans up waits for it, unless somebody kills it.
    """
    # An option for daemons that this user has in the environment is meant for another one.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SANDD_")}
    command = [sys.executable, "-m", "sandd.daemon", "--server-url", url, "--daemon-id", daemon_id]
    command += ["--state-dir", str(directory / "state"), "--reconnect-max", "0.5", *options]
    # In a group of its own: a Ctrl-C is for us, and we end the daemon in good order.
    group: dict[str, Any] = {"start_new_session": True}
    if sys.platform == "win32":
        group = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    log = directory / "daemon.log"
    with log.open("wb") as file:
        process = await trio.lowlevel.open_process(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file, **group
        )
    on_start(process)
    try:
        yield LocalDaemon(daemon_id, process, log)
    finally:
        process.terminate()
        with trio.CancelScope(shield=True):
            with trio.move_on_after(STOP_SECONDS):
                await process.wait()
            process.kill()  # nothing happens if it has ended
            await process.wait()
