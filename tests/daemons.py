"""Real daemons for tests: ``python -m sandd.daemon`` as a child process of its own; see also forked_python.py.

In a trio test::

    async with open_controller(port=0) as controller:
        async with open_daemon(controller.url, "worker-1", labels={"env": "test"}) as daemon:
            worker = await controller.wait_for_daemon("worker-1")
            ...
            daemon.pid, daemon.log

In a synchronous one `running_daemon` is the same as a plain context manager. Leaving the block
stops the daemon and insists on an orderly end: within `STOP_SECONDS` and with exit code 0. A daemon
that ended before that, unasked, fails the test and shows its log; a test that makes it end calls
`DaemonProcess.stop`, `.kill` or `.wait` and says by that that it knows.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio
from attrs import define
from forked_python import PythonProcess
from patience import Patience

import sandd

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping, Sequence

STOP_SECONDS: Final = 15.0
"""Of calm, for a daemon to end after SIGTERM: it gives itself 8."""
LOG_SECONDS: Final = 20.0
"""Of calm, for a daemon to have logged what it is about to do: mostly milliseconds."""
PROGRAM: Final = (sys.executable, "-m", "sandd.daemon")
_POLL_SECONDS: Final = 0.005
"""Between two looks at whether a child has ended; there is nothing else to wait on everywhere."""


@define(eq=False)
class DaemonProcess:
    """A daemon that was started as a child of this process."""

    id: str
    home: Path
    """A directory for this daemon alone; goes away with it."""
    _process: subprocess.Popen[bytes]
    _end_expected: bool = False
    _whole_log: str | None = None
    """What is left of the log once its file is gone."""

    def __repr__(self) -> str:
        end = self._process.returncode
        state = "runs" if end is None else f"ended with {end}"
        return f"<DaemonProcess {self.id!r} pid={self.pid}: {state}>"

    @property
    def pid(self) -> int:
        """Of the daemon itself; its spawner and the jobs are its descendants."""
        return self._process.pid

    @property
    def state_dir(self) -> Path:
        """Its --state-dir."""
        return self.home / "state"

    @property
    def log(self) -> str:
        """Everything it wrote to stdout and stderr so far; stays after its end."""
        if self._whole_log is not None:
            return self._whole_log
        return (self.home / "log").read_text("utf-8", "replace")

    @property
    def exit_code(self) -> int | None:
        """None while it runs; ``-N`` if signal N ended it."""
        return self._process.poll()

    def signal(self, number: int) -> None:
        """Send it a signal: ``signal.SIGSTOP`` freezes it, ``SIGCONT`` lets it go on."""
        self._process.send_signal(number)

    def terminate(self) -> None:
        """Ask it to end (SIGTERM), and don't wait."""
        self._end_expected = True
        self._process.terminate()

    def kill(self) -> None:
        """End it at once (SIGKILL), and reap it."""
        self._end_expected = True
        self._process.kill()
        self._process.wait()

    async def wait(self, seconds: float = STOP_SECONDS) -> int:
        """Its exit code, once it has ended; AssertionError with its log if that takes longer."""
        self._end_expected = True
        patience = Patience(seconds)
        while self.exit_code is None and not patience.is_over:
            await trio.sleep(_POLL_SECONDS)
        return self._ended(seconds)

    def wait_sync(self, seconds: float = STOP_SECONDS) -> int:
        """`wait` for tests without trio."""
        self._end_expected = True
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        return self._ended(seconds)

    async def stop(self) -> int:
        """Stop it by SIGTERM; returns its exit code, which is 0 if all is well."""
        self.terminate()
        return await self.wait()

    async def wait_for_log(self, text: str, seconds: float = LOG_SECONDS) -> str:
        """Its log, once it has `text` in it; AssertionError with the log if that takes longer."""
        patience = Patience(seconds)
        while text not in self.log and not patience.is_over:
            await trio.sleep(_POLL_SECONDS)
        return self._logged(text, seconds)

    def wait_for_log_sync(self, text: str, seconds: float = LOG_SECONDS) -> str:
        """`wait_for_log` for tests without trio."""
        patience = Patience(seconds)
        while text not in self.log and not patience.is_over:
            time.sleep(_POLL_SECONDS)
        return self._logged(text, seconds)

    def _ended(self, seconds: float) -> int:
        code = self.exit_code
        assert code is not None, self._complaint(f"did not end within {seconds} s")
        return code

    def _logged(self, text: str, seconds: float) -> str:
        assert text in self.log, self._complaint(f"did not log {text!r} within {seconds} s")
        return self.log

    def _complaint(self, text: str) -> str:
        return f"{self!r} {text}; its log:\n{self.log}"

    def _stop_if_running(self) -> bool:
        """Whether it was still there, and has yet to be waited for."""
        if self.exit_code is not None:
            assert self._end_expected, self._complaint("ended by itself")
            return False
        self.terminate()
        return True

    @contextlib.contextmanager
    def _put_away_at_the_end(self) -> Iterator[None]:
        """See that nothing is left of it; a failure in the block shows its log."""
        try:
            yield
        except BaseException as error:
            if self.log not in str(error):
                error.add_note(f"the log of {self!r}:\n{self.log}")
            raise
        finally:
            self.kill()
            self._whole_log = self.log
            shutil.rmtree(self.home, ignore_errors=True)


def daemon_environment(env: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a daemon under test: ours without its options, then `env` over it."""
    ours = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("SANDD_") and name not in ("SERVER_URL", "DAEMON_ID")
    }
    # The package under test, whether it is installed or found by the current directory.
    path = [str(Path(sandd.__file__).parent.parent), ours.get("PYTHONPATH", "")]
    ours["PYTHONPATH"] = os.pathsep.join(filter(None, path))
    return ours | dict(env or {})


def start_daemon(
    url: str,
    daemon_id: str = "worker-1",
    *,
    labels: Mapping[str, str] | None = None,
    env: Mapping[str, str] | None = None,
    arguments: Sequence[str] = (),
    program: Sequence[str] = PROGRAM,
) -> DaemonProcess:
    """Start a daemon, and return at once; `open_daemon` and `running_daemon` end it too.

    Args:
        url: of the controller (or of a proxy before it): ``Controller.url``.
        daemon_id: its --daemon-id.
        labels: each becomes a --label.
        env: over this process' environment, from which all options for daemons are taken out. Jobs
            inherit it: ``env=dict([marker])`` marks all of them.
        arguments: more of its command line, such as ``["--token-file", str(path)]``. An option
            given twice counts as given last, so these win over ours (--log-level info, and a
            --reconnect-max of 0.5 s that keeps tests of cut connections short).
        program: what to start, such as a bundle.
    """
    home = Path(tempfile.mkdtemp(prefix="sandd-daemon-"))
    command = [*program, "--server-url", url, "--daemon-id", daemon_id]
    command += ["--state-dir", str(home / "state"), "--log-level", "info", "--reconnect-max", "0.5"]
    for key, value in (labels or {}).items():
        command += ["--label", f"{key}={value}"]
    try:
        with (home / "log").open("wb") as log:
            process = PythonProcess(
                [*command, *arguments],
                env=daemon_environment(env),
                cwd=home,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Out of the reach of a Ctrl-C that is meant for the tests.
                start_new_session=True,
            )
    except BaseException:
        shutil.rmtree(home, ignore_errors=True)
        raise
    return DaemonProcess(daemon_id, home, process)


@contextlib.asynccontextmanager
async def open_daemon(
    url: str,
    daemon_id: str = "worker-1",
    *,
    labels: Mapping[str, str] | None = None,
    env: Mapping[str, str] | None = None,
    arguments: Sequence[str] = (),
    program: Sequence[str] = PROGRAM,
) -> AsyncIterator[DaemonProcess]:
    """A running daemon, which may not have connected yet; leaving the block stops it."""
    daemon = start_daemon(
        url, daemon_id, labels=labels, env=env, arguments=arguments, program=program
    )
    with daemon._put_away_at_the_end():
        yield daemon
        if daemon._stop_if_running():
            # Waiting lets the controller, which may live in this very thread, take the daemon's
            # leave.
            assert await daemon.wait() == 0, daemon._complaint("did not end well")


@contextlib.contextmanager
def running_daemon(
    url: str,
    daemon_id: str = "worker-1",
    *,
    labels: Mapping[str, str] | None = None,
    env: Mapping[str, str] | None = None,
    arguments: Sequence[str] = (),
) -> Iterator[DaemonProcess]:
    """`open_daemon` for tests without trio."""
    daemon = start_daemon(url, daemon_id, labels=labels, env=env, arguments=arguments)
    with daemon._put_away_at_the_end():
        yield daemon
        if daemon._stop_if_running():
            assert daemon.wait_sync() == 0, daemon._complaint("did not end well")


@contextlib.contextmanager
def running_command(
    *arguments: str, env: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """``sandd`` with these arguments, as it runs; nothing of it stays."""
    process = PythonProcess(
        [sys.executable, "-m", "sandd", *arguments],
        env=daemon_environment(env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:  # the test failed: its own daemon is to end with it
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=STOP_SECONDS)
        process.kill()
        process.communicate()
