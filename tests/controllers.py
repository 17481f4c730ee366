"""Stand-alone controllers for tests: ``sandd controller`` as a child process of its own, and commands that find it.

::

    with running_controller() as controller, running_daemon(controller.url, "worker-1"):
        done = controller.run_command("ps")
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import pytest
from attrs import define
from daemons import DaemonProcess, daemon_environment, running_command, running_daemon
from forked_python import PythonProcess, run_python
from patience import Patience

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

SECONDS: Final = 40.0
"""Of calm, for what takes one or two."""


@define(eq=False)
class ControllerProcess:
    """A controller that was started as a child of this process."""

    process: subprocess.Popen[str]
    url: str
    """For daemons, and for commands as well."""
    home: Path
    """Where it keeps what it has."""

    @property
    def state_dir(self) -> Path:
        """Its --state-dir."""
        return self.home / "state"

    @property
    def port(self) -> int:
        """That it listens on, on loopback."""
        return int(self.url.rpartition(":")[2].partition("/")[0])

    @property
    def token_file(self) -> Path:
        """What operators have to know."""
        return self.state_dir / "operator.token"

    @property
    def ca_file(self) -> Path:
        """What they have to trust, where its CA is its own."""
        return self.state_dir / "tls" / "ca.pem"

    @property
    def log(self) -> str:
        """Everything it wrote to stderr so far."""
        return (self.home / "log").read_text("utf-8", "replace")

    @property
    def env(self) -> dict[str, str]:
        """What a command has to have in its environment to find it."""
        found = {"SANDD_CONTROLLER": self.url, "SANDD_OPERATOR_TOKEN_FILE": str(self.token_file)}
        if self.url.startswith("wss:"):
            found["SANDD_CA_FILE"] = str(self.ca_file)
        return found

    def run_command(
        self, *arguments: str, env: Mapping[str, str] | None = None, **settings: Any
    ) -> subprocess.CompletedProcess[str]:
        """``sandd`` with these arguments, to its end."""
        return run_python(
            [sys.executable, "-m", "sandd", *arguments],
            env=daemon_environment(self.env | dict(env or {})),
            **{
                "stdin": subprocess.DEVNULL,
                "capture_output": True,
                "text": True,
                "timeout": SECONDS,
            }
            | settings,
        )

    def running_command(
        self, *arguments: str, env: Mapping[str, str] | None = None
    ) -> contextlib.AbstractContextManager[subprocess.Popen[str]]:
        """``sandd`` with these arguments, as it runs."""
        return running_command(*arguments, env=self.env | dict(env or {}))

    def objects(self, *arguments: str) -> list[dict[str, Any]]:
        """What a command prints, line by line, that is to succeed and prints JSON."""
        done = self.run_command(*arguments)
        assert (done.returncode, done.stderr) == (0, "")
        return [json.loads(line) for line in done.stdout.splitlines()]

    @contextlib.contextmanager
    def daemon(self, daemon_id: str, **settings: Any) -> Iterator[DaemonProcess]:
        """A daemon, which the controller has heard of."""
        with running_daemon(self.url, daemon_id, **settings) as daemon:
            self.wait_for_daemon(daemon_id)
            yield daemon

    def wait_for_daemon(self, daemon_id: str, state: str = "online") -> None:
        """Until the controller says so."""
        with self.running_command("ps", "--watch", "--json", "--match", daemon_id) as watching:
            assert watching.stdout is not None
            for line in watching.stdout:
                if json.loads(line)["state"] == state:
                    return
        pytest.fail(f"{daemon_id} was never {state}")

    def wait_for_log(self, pattern: str) -> re.Match[str]:
        """The first match in its log, once there is one."""
        patience = Patience(SECONDS)
        while (found := re.search(pattern, self.log)) is None:
            assert not patience.is_over, f"it never logged {pattern!r}:\n{self.log}"
            time.sleep(0.005)
        return found


def start_controller(
    *arguments: str, home: Path, env: Mapping[str, str] | None = None, anew: bool = False
) -> subprocess.Popen[str]:
    """Start one that keeps all it has in `home`, and return at once; `anew` where its start is what matters."""
    options = ["--port", "0", "--state-dir", str(home / "state")]
    with (home / "log").open("ab") as log:
        return (subprocess.Popen if anew else PythonProcess)(
            [sys.executable, "-m", "sandd", "controller", *options, *arguments],
            env=daemon_environment(env),
            cwd=home,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,  # out of the reach of a Ctrl-C that is meant for the tests
        )


def read_ready(process: subprocess.Popen[str]) -> str:
    """The URL that a controller tells its supervisor once it listens."""
    assert process.stdout is not None
    if sys.platform != "win32":
        patience = Patience(SECONDS)
        while not select.select([process.stdout], [], [], patience.left)[0]:
            assert not patience.is_over, "it is not ready in time"
    line = process.stdout.readline()
    found = re.fullmatch(r"ready (wss?://\S+)\n", line)
    assert found, f"{line!r}, and its exit code is {process.poll()}"
    return found[1]


@contextlib.contextmanager
def running_controller(
    *arguments: str, env: Mapping[str, str] | None = None, home: Path | None = None
) -> Iterator[ControllerProcess]:
    """A controller on a free port; leaving the block stops it, and insists on an orderly end.

    Args:
        arguments: further options.
        env: further variables.
        home: stays, so that another one can go on with it; None: one of its own, which doesn't.
    """
    if home is None:
        own = Path(tempfile.mkdtemp(prefix="sandd-controller-"))
        try:
            with running_controller(*arguments, env=env, home=own) as controller:
                yield controller
        finally:
            shutil.rmtree(own, ignore_errors=True)
        return
    process = start_controller(*arguments, home=home, env=env)
    try:
        controller = ControllerProcess(process, read_ready(process), home)
        yield controller
        process.terminate()
        assert process.wait(SECONDS) == 0, controller.log
    except BaseException as error:
        if (home / "log").exists():
            error.add_note(f"the controller's log:\n{(home / 'log').read_text('utf-8', 'replace')}")
        raise
    finally:
        process.kill()
        process.communicate()


Sink: TypeAlias = "Callable[[], contextlib.AbstractContextManager[Any]]"
"""Opens what a command is to write to."""


def full_disk() -> contextlib.AbstractContextManager[Any]:
    """A file that takes nothing."""
    return open("/dev/full", "wb")


@contextlib.contextmanager
def unread_pipe() -> Iterator[int]:
    """A pipe whose reader has gone."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        yield writer
    finally:
        os.close(writer)


def run_into(
    stdout: Sink, *arguments: str, env: Mapping[str, str] | None = None
) -> tuple[int, str]:
    """The exit code of ``sandd`` with these arguments, as a shell has it, and its stderr."""
    with stdout() as sink:
        done = run_python(
            [sys.executable, "-m", "sandd", *arguments],
            env=daemon_environment(env),
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.PIPE,
            text=True,
            timeout=SECONDS,
        )
    return (done.returncode if done.returncode >= 0 else 128 - done.returncode), done.stderr


def next_line(process: subprocess.Popen[str], text: str = "", *, file: str = "stdout") -> str:
    """The next line of its output that has the text."""
    stream = getattr(process, file)
    for line in stream:
        if text in line:
            return str(line)
    pytest.fail(f"it never printed {text!r}; its exit code is {process.poll()}")


def peak_memory(pid: int) -> int:
    """Bytes that a process had resident at most; Linux only."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024
