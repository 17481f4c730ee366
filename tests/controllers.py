"""A controller as a process of its own, and what a command needs to know to find it.

::

    with running_controller() as controller, running_daemon(controller.url, "w"):
        subprocess.run([sys.executable, "-m", "sandd", "exec", "w", "ls"], env=daemon_environment(controller.env))
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from attrs import define
from daemons import daemon_environment

if TYPE_CHECKING:
    from collections.abc import Iterator

STOP_SECONDS: Final = 20.0
_PROGRAM: Final = """
import sys, trio, sandd

async def main():
    async with sandd.open_controller(port=int(sys.argv[1]), state_dir=sys.argv[2]) as controller:
        print(controller.url, flush=True)
        await trio.sleep_forever()

try:
    trio.run(main)
except KeyboardInterrupt:
    pass
"""


@define(eq=False)
class ControllerProcess:
    """A controller that daemons of this machine dial in to, and operators who know its token."""

    url: str
    """Where daemons dial in, and operators, too."""
    state_dir: Path
    _process: subprocess.Popen[str]

    @property
    def port(self) -> int:
        """That it listens on, on loopback."""
        return int(self.url.rpartition(":")[2].partition("/")[0])

    @property
    def token_file(self) -> Path:
        """What operators have to know."""
        return self.state_dir / "operator.token"

    @property
    def env(self) -> dict[str, str]:
        """Makes commands of this environment find it."""
        return {"SANDD_CONTROLLER": self.url, "SANDD_TOKEN_FILE": str(self.token_file)}

    def signal(self, number: int) -> None:
        """Send it a signal."""
        self._process.send_signal(number)


@contextlib.contextmanager
def running_controller(
    port: int = 0, *, state_dir: Path | None = None
) -> Iterator[ControllerProcess]:
    """It listens when the block is entered, and has ended in good order when it is left.

    Args:
        port: 0 for a free one.
        state_dir: stays, so that another one can go on with it; None: one of its own, which doesn't.
    """
    if state_dir is None:
        own = Path(tempfile.mkdtemp(prefix="sandd-controller-"))
        try:
            with running_controller(port, state_dir=own) as controller:
                yield controller
        finally:
            shutil.rmtree(own, ignore_errors=True)
        return
    process = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, str(port), str(state_dir)],
        env=daemon_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # out of the reach of a Ctrl-C that is meant for the tests
    )
    try:
        assert process.stdout is not None
        yield ControllerProcess(process.stdout.readline().strip(), state_dir, process)
        process.send_signal(signal.SIGINT)
        assert process.wait(STOP_SECONDS) == 0
    finally:
        process.kill()
        process.communicate()
